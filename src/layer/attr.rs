//! The attributes of a file.

use rustix::fs::{FileType, Statx, StatxAttributes, StatxTimestamp};

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    Char,
    /// A block device.
    Block,
}

impl FileKind {
    /// Takes the kind from the file type bits of `mode`; anything unknown is a regular file.
    pub fn from_mode(mode: u32) -> Self {
        match FileType::from_raw_mode(mode) {
            FileType::Directory => Self::Directory,
            FileType::Symlink => Self::Symlink,
            FileType::Fifo => Self::Fifo,
            FileType::Socket => Self::Socket,
            FileType::CharacterDevice => Self::Char,
            FileType::BlockDevice => Self::Block,
            FileType::RegularFile | FileType::Unknown => Self::Regular,
        }
    }

    /// Returns the kind as rustix has it.
    pub fn file_type(self) -> FileType {
        match self {
            Self::Regular => FileType::RegularFile,
            Self::Directory => FileType::Directory,
            Self::Symlink => FileType::Symlink,
            Self::Fifo => FileType::Fifo,
            Self::Socket => FileType::Socket,
            Self::Char => FileType::CharacterDevice,
            Self::Block => FileType::BlockDevice,
        }
    }
}

/// A point in time: seconds since 1970 (negative before) and nanoseconds after that second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Whole seconds, rounded down.
    pub secs: i64,
    /// 0 to 999,999,999.
    pub nanos: u32,
}

impl From<StatxTimestamp> for Timestamp {
    fn from(t: StatxTimestamp) -> Self {
        Self { secs: t.tv_sec, nanos: t.tv_nsec }
    }
}

/// The attributes of a file, as stat(2) shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// The inode number: of the layer's file system, or of the union once the union has answered.
    pub ino: u64,
    /// The device of the layer's file system (major, minor).
    pub dev: (u32, u32),
    /// What the file is.
    pub kind: FileKind,
    /// Permission bits with set-user-id, set-group-id and sticky: 07777 at most.
    pub mode: u32,
    /// Names that the file has.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The device that a device node stands for (major, minor).
    pub rdev: (u32, u32),
    /// Bytes.
    pub size: u64,
    /// Blocks of 512 bytes in use.
    pub blocks: u64,
    /// The preferred size of a transfer, in bytes.
    pub blksize: u32,
    /// Whether nothing about the file may change (`chattr +i`).
    pub immutable: bool,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the contents.
    pub mtime: Timestamp,
    /// Last change of the attributes.
    pub ctime: Timestamp,
}

impl Attr {
    /// Returns whether this is the character device 0:0 that overlayfs marks a removed name with.
    pub fn is_char_whiteout(&self) -> bool {
        self.kind == FileKind::Char && self.rdev == (0, 0)
    }

    /// Returns whether the file is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == FileKind::Directory
    }
}

impl From<&Statx> for Attr {
    fn from(s: &Statx) -> Self {
        let mode = u32::from(s.stx_mode);
        Self {
            ino: s.stx_ino,
            dev: (s.stx_dev_major, s.stx_dev_minor),
            kind: FileKind::from_mode(mode),
            mode: mode & 0o7777,
            nlink: s.stx_nlink,
            uid: s.stx_uid,
            gid: s.stx_gid,
            rdev: (s.stx_rdev_major, s.stx_rdev_minor),
            size: s.stx_size,
            blocks: s.stx_blocks,
            blksize: s.stx_blksize,
            immutable: s.stx_attributes.contains(StatxAttributes::IMMUTABLE),
            atime: s.stx_atime.into(),
            mtime: s.stx_mtime.into(),
            ctime: s.stx_ctime.into(),
        }
    }
}

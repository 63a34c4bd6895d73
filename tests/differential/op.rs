//! The operations, as data that a failing run prints and the minimiser drops.

use std::path::PathBuf;

use rustix::fs::{Access, AtFlags, FallocateFlags, FileType, OFlags, RenameFlags, SeekFrom, Timespec, XattrFlags};

use super::observe::brief;

/// How many descriptors a run may hold at a time.
pub const SLOTS: usize = 6;

/// A path, from the root of the mount or from a directory that a slot holds.
#[derive(Clone)]
pub struct At(pub Option<usize>, pub PathBuf);

impl std::fmt::Debug for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(slot) => write!(f, "<{slot}>/{:?}", self.1),
            None => write!(f, "{:?}", self.1),
        }
    }
}

/// The value of an xattr.
#[derive(Clone)]
pub struct Value(pub Vec<u8>);

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\"", brief(&self.0))
    }
}

/// Whether a symlink at the end of a path is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    Yes,
    No,
}

impl Follow {
    /// Returns the flags for a call that follows unless told otherwise.
    pub fn flags(self) -> AtFlags {
        match self {
            Self::Yes => AtFlags::empty(),
            Self::No => AtFlags::SYMLINK_NOFOLLOW,
        }
    }
}

/// A time for utimensat.
#[derive(Clone, Copy, Debug)]
pub enum Time {
    Set(i64, i64),
    Now,
    Omit,
}

impl Time {
    /// Returns the time as utimensat(2) takes it.
    pub fn timespec(self) -> Timespec {
        let (tv_sec, tv_nsec) = match self {
            Self::Set(seconds, nanoseconds) => (seconds, nanoseconds),
            Self::Now => (0, rustix::fs::UTIME_NOW),
            Self::Omit => (0, rustix::fs::UTIME_OMIT),
        };
        Timespec { tv_sec, tv_nsec }
    }
}

/// One operation.
#[derive(Clone, Debug)]
pub enum Op {
    // Whole files by their name.
    WriteFile {
        at: At,
        flags: OFlags,
        mode: u32,
        offset: u64,
        len: usize,
        seed: u64,
    },
    ReadFile {
        at: At,
    },
    Truncate {
        path: PathBuf,
        len: u64,
    },
    // Names.
    Mkdir {
        at: At,
        mode: u32,
    },
    Mknod {
        at: At,
        kind: FileType,
        mode: u32,
        device: (u32, u32),
    },
    Symlink {
        target: PathBuf,
        at: At,
    },
    Link {
        from: At,
        to: At,
        follow: Follow,
    },
    Unlink {
        at: At,
    },
    Rmdir {
        at: At,
    },
    Rename {
        from: At,
        to: At,
        flags: RenameFlags,
        probe: bool,
    },
    /// Removes a directory with all that is in it, as rm -r does.
    RemoveTree {
        at: At,
    },
    // Attributes.
    Stat {
        at: At,
        follow: Follow,
    },
    Access {
        at: At,
        access: Access,
    },
    Readlink {
        at: At,
    },
    Statfs {
        path: PathBuf,
    },
    Chmod {
        at: At,
        mode: u32,
    },
    Chown {
        at: At,
        uid: Option<u32>,
        gid: Option<u32>,
        follow: Follow,
    },
    Utimens {
        at: At,
        atime: Time,
        mtime: Time,
        follow: Follow,
    },
    SetXattr {
        path: PathBuf,
        name: String,
        value: Value,
        flags: XattrFlags,
        follow: Follow,
    },
    GetXattr {
        path: PathBuf,
        name: String,
        follow: Follow,
    },
    ListXattr {
        path: PathBuf,
        follow: Follow,
    },
    RemoveXattr {
        path: PathBuf,
        name: String,
        follow: Follow,
    },
    // Directories.
    List {
        at: At,
        buffer: usize,
    },
    /// Lists with a small buffer and removes, as it goes, every entry that can be unlinked.
    ListAndUnlink {
        at: At,
        buffer: usize,
    },
    // Descriptors that stay open.
    Open {
        slot: usize,
        at: At,
        flags: OFlags,
        mode: u32,
    },
    Close {
        slot: usize,
    },
    Read {
        slot: usize,
        offset: u64,
        len: usize,
    },
    Write {
        slot: usize,
        offset: Option<u64>,
        len: usize,
        seed: u64,
    },
    Ftruncate {
        slot: usize,
        len: u64,
    },
    Fallocate {
        slot: usize,
        mode: FallocateFlags,
        offset: u64,
        len: u64,
    },
    Seek {
        slot: usize,
        to: SeekFrom,
    },
    CopyRange {
        from: usize,
        to: usize,
        offset: u64,
        to_offset: u64,
        len: usize,
    },
    Fstat {
        slot: usize,
    },
    SameInode {
        slot: usize,
        at: At,
    },
    Fchmod {
        slot: usize,
        mode: u32,
    },
    Fchown {
        slot: usize,
        uid: Option<u32>,
        gid: Option<u32>,
    },
    Futimens {
        slot: usize,
        mtime: Time,
    },
    Fsync {
        slot: usize,
    },
    FsetXattr {
        slot: usize,
        name: String,
        value: Value,
    },
    FlistXattr {
        slot: usize,
    },
    FremoveXattr {
        slot: usize,
        name: String,
    },
    // The process.
    Umask {
        mask: u32,
    },
}

impl Op {
    /// Returns the slot whose descriptor the operation uses up, changes or reads.
    pub fn slot(&self) -> Option<usize> {
        match *self {
            Self::Open { slot, .. }
            | Self::Close { slot }
            | Self::Read { slot, .. }
            | Self::Write { slot, .. }
            | Self::Ftruncate { slot, .. }
            | Self::Fallocate { slot, .. }
            | Self::Seek { slot, .. }
            | Self::Fstat { slot }
            | Self::SameInode { slot, .. }
            | Self::Fchmod { slot, .. }
            | Self::Fchown { slot, .. }
            | Self::Futimens { slot, .. }
            | Self::Fsync { slot }
            | Self::FsetXattr { slot, .. }
            | Self::FlistXattr { slot }
            | Self::FremoveXattr { slot, .. } => Some(slot),
            Self::CopyRange { to, .. } => Some(to),
            _ => None,
        }
    }
}

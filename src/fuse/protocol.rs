//! The messages of the FUSE protocol, as fuse(4) and the kernel's `include/uapi/linux/fuse.h` have them.
//!
//! Numbers are in the byte order of the machine. Names are the kernel's, in Rust's spelling.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The protocol's version that is spoken here.
pub(super) const VERSION: (u32, u32) = (7, 42);

/// The oldest minor version whose messages are as they are below: Linux 3.15.
pub(super) const MINOR_MIN: u32 = 23;

/// The code of the notice that has the kernel forget the attributes, or the data, of an inode.
pub(super) const NOTIFY_INVAL_INODE: i32 = 2;

bitflags! {
    /// What kernel and server agree on in INIT.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) struct InitFlags: u64 {
        /// Reads may be answered in any order.
        const ASYNC_READ = 1 << 0;
        /// O_TRUNC comes with OPEN.
        const ATOMIC_O_TRUNC = 1 << 3;
        /// Writes may be larger than a page.
        const BIG_WRITES = 1 << 5;
        /// The server applies the umask, or the default ACL in its place.
        const DONT_MASK = 1 << 6;
        /// Directories take ioctls.
        const HAS_IOCTL_DIR = 1 << 11;
        /// READDIRPLUS is answered.
        const DO_READDIRPLUS = 1 << 13;
        /// The kernel chooses between READDIR and READDIRPLUS.
        const READDIRPLUS_AUTO = 1 << 14;
        /// Direct I/O does not wait for one request after the other.
        const ASYNC_DIO = 1 << 15;
        /// What is written stays in the page cache for a while.
        const WRITEBACK_CACHE = 1 << 16;
        /// ENOSYS to OPEN means that it need not be sent.
        const NO_OPEN_SUPPORT = 1 << 17;
        /// Lookups and listings of one directory come at the same time.
        const PARALLEL_DIROPS = 1 << 18;
        /// The kernel asks for ACLs and checks them.
        const POSIX_ACL = 1 << 20;
        /// `max_pages` holds.
        const MAX_PAGES = 1 << 22;
        /// The kernel keeps the targets of symbolic links.
        const CACHE_SYMLINKS = 1 << 23;
        /// ENOSYS to OPENDIR means that it need not be sent.
        const NO_OPENDIR_SUPPORT = 1 << 24;
        /// Cached data goes when it is told to, and not because the times have changed.
        const EXPLICIT_INVAL_DATA = 1 << 25;
        /// The server clears set-user-id, set-group-id and capabilities.
        const HANDLE_KILLPRIV_V2 = 1 << 28;
        /// The upper half of the flags holds.
        const INIT_EXT = 1 << 30;
        /// An open file may be one of the server's.
        const PASSTHROUGH = 1 << 37;
        /// Requests come through io_uring.
        const OVER_IO_URING = 1 << 41;
    }
}

/// `FOPEN_KEEP_CACHE`: what is cached of the file stays.
pub(super) const FOPEN_KEEP_CACHE: u32 = 1 << 1;
/// `FOPEN_CACHE_DIR`: the listing may be cached.
pub(super) const FOPEN_CACHE_DIR: u32 = 1 << 3;
/// `FOPEN_PASSTHROUGH`: the kernel reads and writes the backing file.
pub(super) const FOPEN_PASSTHROUGH: u32 = 1 << 7;

/// `FUSE_WRITE_CACHE`: from the page cache, by nobody in particular.
pub(super) const WRITE_CACHE: u32 = 1 << 0;
/// `FUSE_WRITE_KILL_SUIDGID`: the writer may not leave such bits behind.
pub(super) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `FUSE_FSYNC_FDATASYNC`: the data alone.
pub(super) const FSYNC_FDATASYNC: u32 = 1 << 0;

bitflags! {
    /// What a SETATTR sets.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) struct Valid: u32 {
        const MODE = 1 << 0;
        const UID = 1 << 1;
        const GID = 1 << 2;
        const SIZE = 1 << 3;
        const ATIME = 1 << 4;
        const MTIME = 1 << 5;
        const FH = 1 << 6;
        const ATIME_NOW = 1 << 7;
        const MTIME_NOW = 1 << 8;
    }
}

/// Declares messages.
macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub(super) struct $name {
            $(pub(super) $field: $type,)*
        }
    )*};
}

messages! {
    /// What every request begins with.
    InHeader {
        len: u32,
        opcode: u32,
        unique: u64,
        nodeid: u64,
        uid: u32,
        gid: u32,
        pid: u32,
        extensions: u16,
        padding: u16,
    }
    /// What every answer and every notice begins with.
    OutHeader { len: u32, error: i32, unique: u64, }

    InitIn { major: u32, minor: u32, max_readahead: u32, flags: u32, }
    /// What follows `InitIn` where `INIT_EXT` is set.
    InitInExtended { flags2: u32, unused: [u32; 11], }
    InitOut {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u32,
        max_background: u16,
        congestion_threshold: u16,
        max_write: u32,
        time_gran: u32,
        max_pages: u16,
        map_alignment: u16,
        flags2: u32,
        max_stack_depth: u32,
        request_timeout: u16,
        unused: [u16; 11],
    }

    Attr {
        ino: u64,
        size: u64,
        blocks: u64,
        atime: i64,
        mtime: i64,
        ctime: i64,
        atimensec: u32,
        mtimensec: u32,
        ctimensec: u32,
        mode: u32,
        nlink: u32,
        uid: u32,
        gid: u32,
        rdev: u32,
        blksize: u32,
        flags: u32,
    }
    EntryOut {
        nodeid: u64,
        generation: u64,
        entry_valid: u64,
        attr_valid: u64,
        entry_valid_nsec: u32,
        attr_valid_nsec: u32,
        attr: Attr,
    }
    AttrOut { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr, }

    ForgetIn { nlookup: u64, }
    ForgetOne { nodeid: u64, nlookup: u64, }
    BatchForgetIn { count: u32, dummy: u32, }

    SetattrIn {
        valid: u32,
        padding: u32,
        fh: u64,
        size: u64,
        lock_owner: u64,
        atime: i64,
        mtime: i64,
        ctime: i64,
        atimensec: u32,
        mtimensec: u32,
        ctimensec: u32,
        mode: u32,
        unused4: u32,
        uid: u32,
        gid: u32,
        unused5: u32,
    }
    MknodIn { mode: u32, rdev: u32, umask: u32, padding: u32, }
    MkdirIn { mode: u32, umask: u32, }
    RenameIn { newdir: u64, }
    Rename2In { newdir: u64, flags: u32, padding: u32, }
    LinkIn { oldnodeid: u64, }
    OpenIn { flags: u32, open_flags: u32, }
    CreateIn { flags: u32, mode: u32, umask: u32, open_flags: u32, }
    OpenOut { fh: u64, open_flags: u32, backing_id: u32, }
    CreateOut { entry: EntryOut, open: OpenOut, }
    ReadIn {
        fh: u64,
        offset: u64,
        size: u32,
        read_flags: u32,
        lock_owner: u64,
        flags: u32,
        padding: u32,
    }
    WriteIn {
        fh: u64,
        offset: u64,
        size: u32,
        write_flags: u32,
        lock_owner: u64,
        flags: u32,
        padding: u32,
    }
    WriteOut { size: u32, padding: u32, }
    ReleaseIn { fh: u64, flags: u32, release_flags: u32, lock_owner: u64, }
    FsyncIn { fh: u64, fsync_flags: u32, padding: u32, }
    SetxattrIn { size: u32, flags: u32, }
    GetxattrIn { size: u32, padding: u32, }
    GetxattrOut { size: u32, padding: u32, }
    IoctlIn { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32, }
    IoctlOut { result: i32, flags: u32, in_iovs: u32, out_iovs: u32, }
    FallocateIn { fh: u64, offset: u64, length: u64, mode: u32, padding: u32, }
    LseekIn { fh: u64, offset: i64, whence: u32, padding: u32, }
    LseekOut { offset: u64, }
    CopyFileRangeIn {
        fh_in: u64,
        off_in: u64,
        nodeid_out: u64,
        fh_out: u64,
        off_out: u64,
        len: u64,
        flags: u64,
    }
    StatfsOut {
        blocks: u64,
        bfree: u64,
        bavail: u64,
        files: u64,
        ffree: u64,
        bsize: u32,
        namelen: u32,
        frsize: u32,
        padding: u32,
        spare: [u32; 6],
    }
    /// Followed by the name, and by zeros up to a multiple of eight.
    Dirent { ino: u64, off: u64, namelen: u32, kind: u32, }
    NotifyInvalInodeOut { ino: u64, off: i64, len: i64, }
}

/// Declares the operations that are answered, by their opcodes.
macro_rules! opcodes {
    ($($name:ident = $code:literal,)+) => {
        /// The operation of a request.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Opcode {
            $($name,)+
        }

        impl Opcode {
            /// Returns the operation that `code` stands for, if it is answered here.
            pub(super) fn from_code(code: u32) -> Option<Self> {
                match code {
                    $($code => Some(Self::$name),)+
                    _ => None,
                }
            }
        }
    };
}

opcodes! {
    Lookup = 1,
    Forget = 2,
    Getattr = 3,
    Setattr = 4,
    Readlink = 5,
    Symlink = 6,
    Mknod = 8,
    Mkdir = 9,
    Unlink = 10,
    Rmdir = 11,
    Rename = 12,
    Link = 13,
    Open = 14,
    Read = 15,
    Write = 16,
    Statfs = 17,
    Release = 18,
    Fsync = 20,
    Setxattr = 21,
    Getxattr = 22,
    Listxattr = 23,
    Removexattr = 24,
    Flush = 25,
    Init = 26,
    Opendir = 27,
    Readdir = 28,
    Releasedir = 29,
    Fsyncdir = 30,
    Access = 34,
    Create = 35,
    Interrupt = 36,
    Destroy = 38,
    Ioctl = 39,
    BatchForget = 42,
    Fallocate = 43,
    Readdirplus = 44,
    Rename2 = 45,
    Lseek = 46,
    CopyFileRange = 47,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_sizes_that_the_kernel_counts_with() {
        assert_eq!(size_of::<InHeader>(), 40);
        assert_eq!(size_of::<OutHeader>(), 16);
        assert_eq!(size_of::<InitIn>() + size_of::<InitInExtended>(), 64);
        assert_eq!(size_of::<InitOut>(), 64);
        assert_eq!(size_of::<Attr>(), 88);
        assert_eq!(size_of::<EntryOut>(), 128);
        assert_eq!(size_of::<SetattrIn>(), 88);
        assert_eq!((size_of::<ReadIn>(), size_of::<WriteIn>()), (40, 40));
        assert_eq!(size_of::<CopyFileRangeIn>(), 56);
        assert_eq!(size_of::<StatfsOut>(), 80);
        assert_eq!(size_of::<Dirent>(), 24);
        assert_eq!((size_of::<AttrOut>(), size_of::<OpenOut>(), size_of::<CreateOut>()), (104, 16, 144));
        assert_eq!((size_of::<MknodIn>(), size_of::<MkdirIn>(), size_of::<CreateIn>()), (16, 8, 16));
        assert_eq!((size_of::<RenameIn>(), size_of::<Rename2In>(), size_of::<LinkIn>()), (8, 16, 8));
        assert_eq!((size_of::<IoctlIn>(), size_of::<IoctlOut>()), (32, 16));
        assert_eq!((size_of::<FallocateIn>(), size_of::<LseekIn>(), size_of::<LseekOut>()), (32, 24, 8));
        assert_eq!((size_of::<ReleaseIn>(), size_of::<FsyncIn>(), size_of::<SetxattrIn>()), (24, 16, 8));
        assert_eq!((size_of::<ForgetIn>(), size_of::<ForgetOne>(), size_of::<BatchForgetIn>()), (8, 16, 8));
        assert_eq!(size_of::<NotifyInvalInodeOut>(), 24);
    }
}

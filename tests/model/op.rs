//! The operations of a sequence, as text that can be pasted into a test.

/// Which file an operation is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// The one at this path, looked up for the operation.
    Path(String),
    /// One that was looked up before and not forgotten, its name perhaps gone: this one modulo their count.
    Held(usize),
}

/// What is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Make {
    Regular,
    Directory,
    Symlink,
    Fifo,
    Socket,
    Device,
    /// A character device 0:0, which nobody may make: it would be a whiteout.
    Whiteout,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    Read,
    Write,
    Truncate,
}

/// How an xattr is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    Any,
    Create,
    Replace,
}

/// How the union is ended before it is built again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With `Union::end`.
    Clean,
    /// Without, as a crash leaves it.
    Crash,
    /// With `Union::end`, and what was upper becomes the topmost lower under a fresh upper.
    Restack,
}

/// Whose set-user-id bits go with a change of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Root,
    User,
}

/// One operation. Offsets and lengths are in bytes; handles and listings count modulo those that are open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Create {
        path: String,
        make: Make,
        mode: u32,
        umask: u32,
        who: Who,
    },
    /// Makes a file in a directory that was looked up before and may have been removed.
    CreateIn {
        held: usize,
        name: String,
        make: Make,
    },
    Unlink(String),
    Rmdir(String),
    /// The flags of renameat2(2): 1 NOREPLACE, 2 EXCHANGE, 4 WHITEOUT.
    Rename {
        from: String,
        to: String,
        flags: u32,
    },
    Link {
        of: At,
        to: String,
    },
    Write {
        at: At,
        offset: usize,
        len: usize,
        fill: u8,
        who: Who,
    },
    Truncate {
        at: At,
        size: usize,
        who: Who,
    },
    /// Allocates and so extends, or punches a hole.
    Allocate {
        at: At,
        punch: bool,
        offset: usize,
        len: usize,
    },
    CopyRange {
        from: At,
        to: At,
        from_offset: usize,
        to_offset: usize,
        len: usize,
    },
    Chmod {
        at: At,
        mode: u32,
    },
    Chown {
        at: At,
        uid: Option<u32>,
        gid: Option<u32>,
    },
    Utimes {
        at: At,
        secs: i64,
    },
    SetXattr {
        at: At,
        key: &'static str,
        len: usize,
        how: Set,
    },
    RemoveXattr {
        at: At,
        key: &'static str,
    },
    /// Looks a path up and keeps it.
    Hold(String),
    /// Gives back one lookup of a file that is held.
    Forget(usize),
    /// Gives back every lookup that no open handle needs.
    ForgetAll,
    Open {
        at: At,
        how: Open,
    },
    Close(usize),
    WriteHandle {
        handle: usize,
        offset: usize,
        len: usize,
        fill: u8,
        who: Who,
    },
    TruncateHandle {
        handle: usize,
        size: usize,
    },
    /// Begins to list a directory, and stops after a few entries.
    ListSome {
        path: String,
        entries: usize,
    },
    /// Lists on to the end.
    ListRest(usize),
    /// Ends the union and builds it again on the same directories.
    Remount(End),
}

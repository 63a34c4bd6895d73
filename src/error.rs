//! The one error type of the library, and the one place where an errno is decided.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// The result of a library call.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong in the library.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call on a layer failed.
    #[error("{call}({file}): {errno}")]
    Call {
        /// The system call.
        call: &'static str,
        /// The layer and the file below it, as `upper:etc/passwd`.
        file: Location,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The operation is refused by the semantics of the union, with the errno POSIX names for it.
    #[error("{0}")]
    Refused(Errno),
    /// What a layer says cannot be followed: an overlay xattr is garbage, or points out of the layer.
    #[error("corrupt layer: {file}: {reason}")]
    Corrupt {
        /// The layer and the file below it.
        file: Location,
        /// What is wrong with it.
        reason: String,
    },
    /// A layer asks for something that this mount was told not to follow.
    #[error("{file}: {what} is not followed by this mount; mount with {option} to allow it")]
    NotFollowed {
        /// The layer and the file below it.
        file: Location,
        /// What the layer holds, as `a metacopy`.
        what: &'static str,
        /// The option that allows it.
        option: &'static str,
    },
    /// The union cannot be built from these paths and options.
    #[error("{}: {reason}; {remedy}", path.display())]
    Setup {
        /// The path that cannot be used.
        path: PathBuf,
        /// Why not.
        reason: String,
        /// What to do about it.
        remedy: String,
    },
    /// The file system cannot be mounted, or not be served any longer.
    #[error("{}: {reason}; {remedy}", mountpoint.display())]
    Mount {
        /// The directory that was mounted on.
        mountpoint: PathBuf,
        /// Why it failed.
        reason: String,
        /// What to do about it.
        remedy: String,
    },
    /// A mount that the caller has made cannot be unmounted by the library.
    #[error("{}: was not mounted here; unmount it where it was mounted", mountpoint.display())]
    NotOurs {
        /// The directory that it is mounted on, as the caller has named it.
        mountpoint: PathBuf,
    },
}

/// A file below a layer, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    layer: String,
    path: PathBuf,
}

impl Location {
    /// Names `path` below `layer`.
    pub fn new(layer: impl Into<String>, path: impl AsRef<Path>) -> Self {
        Self { layer: layer.into(), path: path.as_ref().to_owned() }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:?}", self.layer, self.path)
    }
}

impl Error {
    /// Wraps the errno of `call` on `name` in the layer called `layer`.
    pub fn call(call: &'static str, layer: impl Into<String>, name: impl AsRef<OsStr>, errno: Errno) -> Self {
        Self::Call { call, file: Location::new(layer, Path::new(name.as_ref())), errno }
    }

    /// Builds a [`Error::Setup`].
    pub fn setup(path: impl AsRef<Path>, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Setup { path: path.as_ref().to_owned(), reason: reason.into(), remedy: remedy.into() }
    }

    /// Returns the errno that a program which made the request sees.
    pub fn errno(&self) -> Errno {
        match self {
            // What the kernel said about a layer is the best answer there is.
            Self::Call { errno, .. } | Self::Refused(errno) => *errno,
            // overlayfs answers EIO for an entry it cannot make sense of; the rest of the tree works.
            Self::Corrupt { .. } | Self::NotFollowed { .. } => Errno::IO,
            // Never reaches a request: these end `build`, `Mount::new` and `Unmounter::unmount`.
            Self::Setup { .. } | Self::Mount { .. } | Self::NotOurs { .. } => Errno::INVAL,
        }
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Self::Refused(errno)
    }
}

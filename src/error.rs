//! The one error type of the library, and the one place where an errno is decided.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// The result of a library call.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong in the library.
///
/// Its text is for people. A program asks for [`Error::kind`], and for [`Error::errno`] where an operation on the tree
/// failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
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
        /// Whose fault it is.
        kind: ErrorKind,
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
        /// Whose fault it is.
        kind: ErrorKind,
    },
    /// An image, a part of one, or the store of images cannot be used, or not be made.
    #[error("{subject}: {reason}")]
    Image {
        /// What it is about, from the whole to the part: the image, the layer's digest, the member.
        subject: String,
        /// What is wrong with it, and what to do about it where something can be done.
        reason: String,
        /// Whose fault it is.
        kind: ErrorKind,
    },
    /// A mount that the caller has made cannot be unmounted by the library.
    #[error("{}: was not mounted here; unmount it where it was mounted", mountpoint.display())]
    NotOurs {
        /// The directory that it is mounted on, as the caller has named it.
        mountpoint: PathBuf,
    },
}

/// What kind of failure it is, for a program that acts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The layers, the workdir, the mountpoint or the options that were named cannot be used, whoever tries.
    Setup,
    /// Another mount uses the upper or the workdir, or covers the mountpoint; it may be gone later.
    InUse,
    /// This user may not; another one, or root, may.
    Permission,
    /// The machine lacks something: FUSE, a program, a limit that is high enough.
    Machine,
    /// The mount was made by the caller, and can be ended by the caller alone.
    NotOurs,
    /// A layer holds what cannot be followed, or what this mount was told not to follow.
    Layer,
    /// What an image, an archive or the store holds is not what it has to be.
    Image,
    /// There is no image, layer or container of that name.
    Absent,
    /// An operation on the tree failed; [`Error::errno`] says why.
    Operation,
}

impl ErrorKind {
    /// Returns what `errno` says, else `otherwise`.
    fn of(errno: Errno, otherwise: Self) -> Self {
        match errno {
            Errno::ACCESS | Errno::PERM => Self::Permission,
            Errno::BUSY => Self::InUse,
            Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN | Errno::NOSYS => Self::Machine,
            _ => otherwise,
        }
    }
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

    /// Builds a [`Error::Setup`] of [`ErrorKind::Setup`].
    pub fn setup(path: impl AsRef<Path>, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (path, kind) = (path.as_ref().to_owned(), ErrorKind::Setup);
        Self::Setup { path, reason: reason.into(), remedy: remedy.into(), kind }
    }

    /// Builds a [`Error::Mount`] of [`ErrorKind::Machine`].
    pub fn mount(mountpoint: impl AsRef<Path>, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (mountpoint, kind) = (mountpoint.as_ref().to_owned(), ErrorKind::Machine);
        Self::Mount { mountpoint, reason: reason.into(), remedy: remedy.into(), kind }
    }

    /// Builds an [`Error::Image`] of [`ErrorKind::Image`].
    pub fn image(subject: impl fmt::Display, reason: impl Into<String>) -> Self {
        Self::Image { subject: subject.to_string(), reason: reason.into(), kind: ErrorKind::Image }
    }

    /// Builds an [`Error::Image`] of what the system, or a stream that holds something wrong, has answered.
    #[cfg(feature = "image")]
    pub(crate) fn image_io(subject: impl fmt::Display, error: &std::io::Error) -> Self {
        let kind = match error.kind() {
            std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof => ErrorKind::Image,
            // What is wrapped with a path has no errno any more.
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::Machine,
            std::io::ErrorKind::PermissionDenied => ErrorKind::Permission,
            // What was named is not there, or is something else.
            std::io::ErrorKind::NotFound
            | std::io::ErrorKind::AlreadyExists
            | std::io::ErrorKind::NotADirectory
            | std::io::ErrorKind::IsADirectory => ErrorKind::Image,
            _ => Errno::from_io_error(error).map_or(ErrorKind::Image, |errno| ErrorKind::of(errno, ErrorKind::Machine)),
        };
        Self::Image { subject: subject.to_string(), reason: error.to_string(), kind }
    }

    /// Says what larger thing an [`Error::Image`] is about.
    #[cfg(feature = "image")]
    pub(crate) fn within(mut self, whole: impl fmt::Display) -> Self {
        if let Self::Image { subject, .. } = &mut self {
            *subject = format!("{whole}: {subject}");
        }
        self
    }

    /// Makes it one of `kind`, if it was built by [`Error::setup`], [`Error::mount`] or [`Error::image`].
    pub(crate) fn of_kind(mut self, of: ErrorKind) -> Self {
        if let Self::Setup { kind, .. } | Self::Mount { kind, .. } | Self::Image { kind, .. } = &mut self {
            *kind = of;
        }
        self
    }

    /// Makes it one of the kind that the system's answer belongs to, as [`Error::of_kind`] does.
    pub(crate) fn because(self, cause: impl Into<std::io::Error>) -> Self {
        let errno = Errno::from_io_error(&cause.into());
        let kind = errno.map_or(self.kind(), |errno| ErrorKind::of(errno, self.kind()));
        self.of_kind(kind)
    }

    /// Returns what kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Setup { kind, .. } | Self::Mount { kind, .. } | Self::Image { kind, .. } => *kind,
            Self::NotOurs { .. } => ErrorKind::NotOurs,
            Self::Corrupt { .. } | Self::NotFollowed { .. } => ErrorKind::Layer,
            // What the kernel said about one file says nothing about the mount: EACCES may be the right answer.
            Self::Call { .. } | Self::Refused(_) => ErrorKind::Operation,
        }
    }

    /// Returns the errno that a program which made the request sees.
    pub fn errno(&self) -> Errno {
        match self {
            // What the kernel said about a layer is the best answer there is.
            Self::Call { errno, .. } | Self::Refused(errno) => *errno,
            // overlayfs answers EIO for an entry it cannot make sense of; the rest of the tree works.
            Self::Corrupt { .. } | Self::NotFollowed { .. } => Errno::IO,
            // Never reaches a request: these end `build`, `Mount::new` and `Unmounter::unmount`, or are about no mount.
            Self::Setup { .. } | Self::Mount { .. } | Self::Image { .. } | Self::NotOurs { .. } => Errno::INVAL,
        }
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Self::Refused(errno)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_answer_tells_the_kind() {
        let of = |errno: Errno| Error::setup("/upper", "reason", "remedy").because(errno).kind();
        assert_eq!(of(Errno::ACCESS), ErrorKind::Permission);
        assert_eq!(of(Errno::NOENT), ErrorKind::Setup);
        assert_eq!(of(Errno::MFILE), ErrorKind::Machine);
        let mount = |errno: Errno| Error::mount("/mnt", "reason", "remedy").because(errno).kind();
        assert_eq!([Errno::NODEV, Errno::BUSY].map(mount), [ErrorKind::Machine, ErrorKind::InUse]);
        // Of an operation the errno is the answer.
        assert_eq!(Error::Refused(Errno::ACCESS).because(Errno::ACCESS).kind(), ErrorKind::Operation);
    }
}

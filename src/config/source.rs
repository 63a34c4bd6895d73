//! Where a layer is: a path, or a directory that somebody has opened already.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::CWD;

/// A directory that a union is made of, as it is named.
///
/// Whatever names a path can be turned into one, and so can what is an open directory:
///
/// ```
/// use unionfs_rs::union::Union;
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("lower");
/// # std::fs::create_dir(&path)?;
/// let opened = std::fs::File::open(&path)?;
/// let union = Union::builder().lower(opened).build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub enum Source {
    /// The directory at this path when the union is built.
    Path(PathBuf),
    /// This directory, opened with O_PATH or for reading; a mount that no path leads to will do (fsmount(2), open_tree(2)).
    ///
    /// The union opens it anew: the descriptor is not needed once the union is built.
    Fd(Arc<OwnedFd>),
}

impl Source {
    /// Returns what it is called in messages: the path, also that of a descriptor where one leads to it, else
    /// `descriptor N`.
    pub fn name(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Fd(fd) => path_of(fd).unwrap_or_else(|| format!("descriptor {}", fd.as_raw_fd()).into()),
        }
    }
}

/// Returns the path that the kernel knows for `fd`, where it leads to the same file: of a detached mount, or of what was
/// moved out of sight, it says something that looks like a path and is none.
fn path_of(fd: &OwnedFd) -> Option<PathBuf> {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()?;
    let stat = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    let there = rustix::fs::statat(CWD, &path, rustix::fs::AtFlags::NO_AUTOMOUNT).ok().map(stat);
    (there.is_some() && there == rustix::fs::fstat(fd).ok().map(stat)).then_some(path)
}

impl PartialEq for Source {
    /// Two paths are compared by their text, and two descriptors by whether they are one.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Path(a), Self::Path(b)) => a == b,
            (Self::Fd(a), Self::Fd(b)) => Arc::ptr_eq(a, b),
            (Self::Path(_), Self::Fd(_)) | (Self::Fd(_), Self::Path(_)) => false,
        }
    }
}

impl Eq for Source {}

impl From<PathBuf> for Source {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl From<OsString> for Source {
    fn from(path: OsString) -> Self {
        Self::Path(path.into())
    }
}

impl From<String> for Source {
    fn from(path: String) -> Self {
        Self::Path(path.into())
    }
}

impl<T: AsRef<OsStr> + ?Sized> From<&T> for Source {
    fn from(path: &T) -> Self {
        Self::Path(Path::new(path).to_owned())
    }
}

impl From<OwnedFd> for Source {
    fn from(fd: OwnedFd) -> Self {
        Self::Fd(Arc::new(fd))
    }
}

impl From<File> for Source {
    fn from(directory: File) -> Self {
        OwnedFd::from(directory).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_called_by_its_path_as_long_as_that_leads_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("layer");
        std::fs::create_dir(&path).unwrap();
        let file = File::open(&path).unwrap();
        let number = file.as_raw_fd();
        let source = Source::from(file);
        assert_eq!(source.name(), path);
        std::fs::remove_dir(&path).unwrap();
        assert_eq!(source.name(), Path::new(&format!("descriptor {number}")));
        assert_eq!(Source::from("a/b").name(), Path::new("a/b"));
        assert!(source == source.clone() && source != Source::from("a/b"));
    }
}

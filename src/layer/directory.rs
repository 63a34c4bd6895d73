//! A directory that was named for a union: opened once, and known from then on by what it is.
//!
//! Whether one directory is inside another is found out from the directories themselves, by walking `..` upwards and
//! comparing devices and inode numbers. Paths would not do: two of them may lead to one directory, through a symbolic
//! link or a bind mount, and none to one that came as a descriptor of a detached mount. The walk ends at the root of
//! what can be seen from the directory, or where this user may not look.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use crate::config::Source;
use crate::error::{Error, Result};

/// What a directory is, whichever way leads to it: device and inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    dev: (u32, u32),
    ino: u64,
}

impl Identity {
    /// Returns what is behind `fd`; asks no server of a network or FUSE file system, which may not answer.
    pub fn of(fd: BorrowedFd<'_>) -> rustix::io::Result<Self> {
        let how = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let seen = rustix::fs::statx(fd, "", how, StatxFlags::INO)?;
        Ok(Self { dev: (seen.stx_dev_major, seen.stx_dev_minor), ino: seen.stx_ino })
    }
}

/// A directory that was named for a union, open.
#[derive(Debug)]
pub struct Directory {
    name: PathBuf,
    fd: OwnedFd,
    /// Itself, and what it is in, up to the root.
    way_up: Vec<Identity>,
}

const FLAGS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl Directory {
    /// Opens what a configuration names, as [`Directory::at`] does.
    pub fn open(source: &Source) -> Result<Self> {
        match source {
            Source::Path(path) => Self::at(path),
            Source::Fd(fd) => {
                // The caller's may have been opened in any way; and its number is its own.
                let own = rustix::fs::openat(fd, ".", FLAGS, Mode::empty());
                Self::opened(source.name(), own)
            }
        }
    }

    /// Opens the directory at `path` with O_PATH; the errors are for the person who gave the path.
    pub fn at(path: &Path) -> Result<Self> {
        Self::opened(path.to_owned(), rustix::fs::open(path, FLAGS, Mode::empty()))
    }

    fn opened(name: PathBuf, fd: rustix::io::Result<OwnedFd>) -> Result<Self> {
        let path = &name;
        let refused = |errno| match errno {
            Errno::NOENT => Error::setup(path, "no such directory", "create it or correct the path"),
            Errno::NOTDIR => Error::setup(path, "not a directory", "name the directory that holds the layer"),
            Errno::ACCESS => Error::setup(path, "permission denied", "make it searchable for the user that mounts"),
            errno => Error::setup(path, format!("cannot be opened: {errno}"), "check the path"),
        };
        let fd = fd.map_err(|errno| refused(errno).because(errno))?;
        let failed = |e| Error::setup(path, format!("cannot be looked at: {e}"), "check the file system");
        let way_up = way_up(fd.as_fd()).map_err(failed)?;
        Ok(Self { name, fd, way_up })
    }

    /// Returns the path as it was given, or what a descriptor is called, for messages.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Returns the O_PATH descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Gives up everything but the descriptor.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Returns what the directory is, then what it is in, and so on up to the root.
    pub fn way_up(&self) -> &[Identity] {
        &self.way_up
    }

    /// Returns whether both are one directory.
    pub fn is(&self, other: &Self) -> bool {
        self.way_up.first() == other.way_up.first()
    }

    /// Returns whether this is `outer` or below it.
    pub fn is_inside(&self, outer: &Self) -> bool {
        outer.way_up.first().is_some_and(|outer| self.way_up.contains(outer))
    }

    /// Returns the path without symbolic links, where one leads here.
    pub fn path(&self) -> Option<PathBuf> {
        let path = std::fs::canonicalize(&self.name).ok()?;
        // The name of a descriptor may lead elsewhere, and the directory at a path may have been exchanged.
        let there = rustix::fs::open(&path, FLAGS, Mode::empty()).ok()?;
        (Some(&Identity::of(there.as_fd()).ok()?) == self.way_up.first()).then_some(path)
    }
}

/// Collects what `fd` is and what it is in.
fn way_up(fd: BorrowedFd<'_>) -> rustix::io::Result<Vec<Identity>> {
    let mut way = vec![Identity::of(fd)?];
    // A directory that is being moved meanwhile could lead in a circle, and a tree is not deeper than its longest path.
    const DEEPEST: usize = 4096;
    let mut at = rustix::fs::openat(fd, "..", FLAGS, Mode::empty());
    while let Ok(dir) = at {
        let Ok(seen) = Identity::of(dir.as_fd()) else { break };
        if way.last() == Some(&seen) || way.len() == DEEPEST {
            break;
        }
        way.push(seen);
        at = rustix::fs::openat(&dir, "..", FLAGS, Mode::empty());
    }
    Ok(way)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_told_by_what_it_is_and_not_by_its_path() {
        let root = tempfile::tempdir().unwrap();
        let (outer, inner, beside) = (root.path().join("a"), root.path().join("a/b/c"), root.path().join("ab"));
        std::fs::create_dir_all(&inner).unwrap();
        std::fs::create_dir(&beside).unwrap();
        std::os::unix::fs::symlink(&inner, root.path().join("link")).unwrap();
        let open = |path: &Path| Directory::at(path).unwrap();
        let (outer, inner, beside, link) = (open(&outer), open(&inner), open(&beside), open(&root.path().join("link")));
        assert!(link.is(&inner) && link.is_inside(&outer) && inner.is_inside(&inner));
        assert!(!outer.is_inside(&inner) && !beside.is_inside(&outer) && !beside.is(&outer));
        assert_eq!(link.name(), root.path().join("link"));
        assert_eq!(link.path(), Some(inner.name().canonicalize().unwrap()));
    }
}

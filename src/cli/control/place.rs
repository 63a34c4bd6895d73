//! Where control sockets are: a directory that one user alone can enter.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::sys::proc_path;

/// How long another daemon may be busy with its own socket; then one goes on without the lock.
const PATIENCE: Duration = Duration::from_secs(1);

/// A directory for control sockets, open. It is used by its descriptor: a mount may come to cover its path.
#[derive(Debug)]
pub struct Place {
    fd: OwnedFd,
    path: PathBuf,
}

impl Place {
    /// Opens the first directory that this user can have, and makes it where it is missing.
    ///
    /// Errors: why there is none, for each that was tried.
    pub fn make() -> Result<Self, String> {
        let mut reasons = Vec::new();
        for path in own() {
            let made = match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
                _ => Self::open(&path, rustix::process::geteuid().as_raw()),
            };
            match made {
                Ok(place) => return Ok(place),
                Err(error) => reasons.push(format!("{}: {error}", path.display())),
            }
        }
        Err(reasons.join("; "))
    }

    /// Opens the directory at `path`, which must be `owner`'s alone.
    pub fn open(path: &Path, owner: u32) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        if stat.st_uid != owner || stat.st_mode & 0o077 != 0 {
            return Err(io::Error::other(format!("is not a directory of user {owner} alone (mode 0700)")));
        }
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Returns the path of the directory, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the directory.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Returns a path to `name` in it, short enough for the address of a socket however long its own is.
    pub fn address(&self, name: &str) -> PathBuf {
        Path::new(&proc_path(&self.fd)).join(name)
    }

    /// Runs `change` while no other daemon changes what is in the directory, as far as that can be had soon.
    pub fn alone<T>(&self, change: impl FnOnce() -> T) -> T {
        let deadline = Instant::now() + PATIENCE;
        let locked = loop {
            match rustix::fs::flock(&self.fd, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                done => break done.is_ok(),
            }
        };
        let done = change();
        if locked {
            let _ = rustix::fs::flock(&self.fd, FlockOperation::Unlock); // What is held can be given up.
        }
        done
    }

    /// Removes `name`; that it is gone is no failure.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Lists the names in it.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let listing = File::from(rustix::fs::openat(
            &self.fd,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?);
        let mut names = Vec::new();
        crate::sys::dents::each(listing.as_fd(), |name, _, _| {
            names.extend(std::str::from_utf8(name).map(str::to_owned));
        })?;
        Ok(names)
    }
}

/// Returns the directories of this user, the best first.
///
/// Root's first does not end with a session, as its XDG_RUNTIME_DIR would. Root of a user namespace cannot make it.
pub fn own() -> Vec<PathBuf> {
    let uid = rustix::process::geteuid();
    let system = uid.is_root().then(|| PathBuf::from("/run/unionfs-rs"));
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let session = runtime.map(|dir| dir.join("unionfs-rs"));
    system.into_iter().chain(session).chain([fallback(uid.as_raw())]).collect()
}

/// Returns the directories of the user `uid`, for root who looks at the mount of another.
pub fn of_user(uid: u32) -> [PathBuf; 2] {
    [PathBuf::from(format!("/run/user/{uid}/unionfs-rs")), fallback(uid)]
}

fn fallback(uid: u32) -> PathBuf {
    PathBuf::from(format!("/tmp/unionfs-rs-{uid}"))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_directory_that_others_can_enter_or_that_is_a_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (own, link) = (dir.path().join("own"), dir.path().join("link"));
        let uid = rustix::process::geteuid().as_raw();
        DirBuilder::new().mode(0o700).create(&own).unwrap();
        symlink(&own, &link).unwrap();
        assert!(Place::open(&own, uid).is_ok());
        assert!(Place::open(&link, uid).is_err());
        assert!(Place::open(&own, uid + 1).is_err());
        fs::set_permissions(&own, Permissions::from_mode(0o750)).unwrap();
        assert!(Place::open(&own, uid).unwrap_err().to_string().contains("0700"));
    }
}

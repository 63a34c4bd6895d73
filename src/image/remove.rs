//! Removing trees of any depth, by names in open directories: a container may have nested directories deeper than any path is
//! long, and than this process may have files open.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, RenameFlags};
use rustix::io::{Errno, Result};

use crate::sys::mode;

/// How deep directories are entered; what is below is first moved up.
const DEPTH_MAX: usize = 32;

/// How a directory is opened that is no link.
pub const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes what is under `name` in `dir`, a directory with all that is in it; links are removed and not followed.
///
/// Directories of this user that may not be read or written are made so first.
pub fn remove_at(dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        done => return done,
    }
    let top = open(dir, name)?;
    let mut moved = Moved { top, names: Vec::new(), count: 0 };
    empty(moved.top.try_clone().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?, 0, &mut moved)?;
    while let Some(name) = moved.names.pop() {
        let inside = open(moved.top.as_fd(), &name)?;
        empty(inside, 1, &mut moved)?;
        rustix::fs::unlinkat(&moved.top, &name, AtFlags::REMOVEDIR)?;
    }
    gone(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR))
}

/// Directories that were too deep, now in the topmost one.
struct Moved {
    top: OwnedFd,
    names: Vec<OsString>,
    count: u64,
}

/// Removes what is in `dir`, which is so many directories below the topmost.
fn empty(dir: OwnedFd, depth: usize, moved: &mut Moved) -> Result<()> {
    let mut names = Vec::new();
    for entry in Dir::read_from(&dir)? {
        let name = OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    for name in names {
        match unlink(dir.as_fd(), &name) {
            Err(Errno::ISDIR) if depth < DEPTH_MAX => gone(empty_and_remove(dir.as_fd(), &name, depth, moved))?,
            // Two may remove one tree: who ends a container, and who finds what is left of it.
            Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => gone(move_up(dir.as_fd(), &name, moved))?,
            done => done?,
        }
    }
    Ok(())
}

fn empty_and_remove(dir: BorrowedFd<'_>, name: &OsStr, depth: usize, moved: &mut Moved) -> Result<()> {
    empty(open(dir, name)?, depth + 1, moved)?;
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// Takes it for done where there is nothing any more.
fn gone(removed: Result<()>) -> Result<()> {
    if removed == Err(Errno::NOENT) { Ok(()) } else { removed }
}

fn unlink(dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ACCESS) => {
            // A directory of our own that may not be written.
            rustix::fs::fchmod(dir, Mode::RWXU)?;
            rustix::fs::unlinkat(dir, name, AtFlags::empty())
        }
        done => done,
    }
}

fn move_up(dir: BorrowedFd<'_>, name: &OsStr, moved: &mut Moved) -> Result<()> {
    loop {
        moved.count += 1;
        let new = OsString::from(format!(".moved-up-{}", moved.count));
        match rustix::fs::renameat_with(dir, name, &moved.top, &new, RenameFlags::NOREPLACE) {
            Ok(()) => {
                moved.names.push(new);
                return Ok(());
            }
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn open(dir: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd> {
    match rustix::fs::openat(dir, name, DIR, Mode::empty()) {
        Err(Errno::ACCESS) => {
            // It is a directory, as removing it has said; what it has become since is not followed.
            mode::set(dir, name, 0o700)?;
            rustix::fs::openat(dir, name, DIR, Mode::empty())
        }
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_may_remove_one_tree() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..400 {
            std::fs::create_dir_all(dir.path().join(format!("d/{}/{n}", n % 20))).unwrap();
        }
        let top: OwnedFd = std::fs::File::open(dir.path()).unwrap().into();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let removed = remove_at(top.as_fd(), OsStr::new("d"));
                    // Who finds nothing has come when all was gone, and has not left off in the middle.
                    let gone = removed == Err(Errno::NOENT) && !dir.path().join("d").exists();
                    assert!(removed.is_ok() || gone, "{removed:?}");
                });
            }
        });
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_tree_of_any_depth_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let top: OwnedFd = std::fs::File::open(dir.path()).unwrap().into();
        let mut at = top.try_clone().unwrap();
        for n in 0..5000 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            if n % 100 == 0 {
                rustix::fs::mkdirat(&at, "beside", Mode::RWXU).unwrap();
                rustix::fs::symlinkat("/nowhere", &at, "link").unwrap();
            }
            at = rustix::fs::openat(&at, "d", DIR, Mode::empty()).unwrap();
        }
        drop(at);
        remove_at(top.as_fd(), OsStr::new("d")).unwrap();
        remove_at(top.as_fd(), OsStr::new("link")).unwrap();
        remove_at(top.as_fd(), OsStr::new("beside")).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(remove_at(top.as_fd(), OsStr::new("d")), Err(Errno::NOENT));
    }

    #[test]
    fn a_closed_directory_is_removed_by_its_owner() {
        use std::os::unix::fs::{PermissionsExt, chown};

        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("d/closed/in")).unwrap();
        std::fs::write(at("d/closed/f"), "").unwrap();
        let root = rustix::process::geteuid().is_root();
        if root {
            for name in ["", "d", "d/closed", "d/closed/in", "d/closed/f"] {
                chown(at(name), Some(1000), Some(1000)).unwrap();
            }
        }
        for name in ["d/closed/in", "d/closed", "d"] {
            std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(0o000)).unwrap();
        }
        let top: OwnedFd = std::fs::File::open(dir.path()).unwrap().into();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                if root {
                    // Of this thread alone; modes bind who is not root.
                    let user = rustix::process::Uid::from_raw(1000);
                    rustix::thread::set_thread_res_uid(user, user, user).unwrap();
                }
                remove_at(top.as_fd(), OsStr::new("d")).unwrap();
            });
        });
        assert!(!at("d").exists());
    }
}

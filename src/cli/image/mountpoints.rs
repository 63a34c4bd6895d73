//! What a runtime makes in a container's tree to mount something on: taken away again, so that it is no change.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// How many links to nothing are followed on the way to a target.
const LINKS_MAX: usize = 8;

/// The mount points that a tree lacks.
pub struct MountPoints {
    root: OwnedFd,
    /// What is not there, what is in a directory after this.
    missing: Vec<PathBuf>,
}

impl MountPoints {
    /// Notes which of `targets`, in the tree at `root`, are not there, and which directories on the way to them.
    pub fn lacking<'a>(root: &Path, targets: impl Iterator<Item = &'a str>) -> rustix::io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(root, flags, Mode::empty())?;
        let mut missing = Vec::new();
        for target in targets {
            note_missing(&root, clean(Path::new(target)), &mut missing);
        }
        missing.sort();
        missing.dedup();
        Ok(Self { root, missing })
    }

    /// Takes away what is there now and has nothing in it.
    pub fn clear(self) {
        for path in self.missing.iter().rev() {
            match self.remove(path) {
                // One that something was put into is a change; one below another mount was never there.
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::NOTEMPTY | Errno::EXIST) => {}
                Err(errno) => log::warn!("the mount point {}: {errno}", path.display()),
            }
        }
    }

    fn remove(&self, path: &Path) -> rustix::io::Result<()> {
        let (above, name) = (path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or(OsStr::new("")));
        let above = open(&self.root, above, OFlags::DIRECTORY)?;
        let stat = rustix::fs::statat(&above, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => rustix::fs::unlinkat(&above, name, AtFlags::REMOVEDIR),
            FileType::RegularFile if stat.st_size == 0 => rustix::fs::unlinkat(&above, name, AtFlags::empty()),
            _ => Ok(()),
        }
    }
}

/// Notes what is missing of `path`, and where a link on the way to it leads to nothing, what is missing there.
fn note_missing(root: &OwnedFd, path: PathBuf, missing: &mut Vec<PathBuf>) {
    let mut left = LINKS_MAX;
    let mut waiting = vec![path];
    while let Some(path) = waiting.pop() {
        for path in path.ancestors().filter(|path| path.file_name().is_some()) {
            match open(root, path, OFlags::empty()) {
                Err(Errno::NOENT) => {}
                // What is no directory is the runtime's to complain of.
                _ => break,
            }
            match open(root, path, OFlags::NOFOLLOW).and_then(|link| rustix::fs::readlinkat(link, "", Vec::new())) {
                Ok(target) if left > 0 => {
                    left -= 1;
                    let target = path.parent().unwrap_or(Path::new("/")).join(OsStr::from_bytes(target.as_bytes()));
                    waiting.push(clean(&target));
                }
                Ok(_) => {}
                Err(_) => missing.push(path.to_owned()),
            }
        }
    }
}

/// Returns a path from the root without `.` and `..`, as runtimes take them before they look at links.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    clean
}

/// Opens a path of the tree; links lead nowhere but into it.
fn open(root: &OwnedFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags | OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_was_made_to_mount_on_is_taken_away_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        fs::create_dir_all(at("there/empty")).unwrap();
        fs::create_dir(at("run")).unwrap();
        symlink("/run", at("link")).unwrap();
        symlink("/made/later", at("nowhere")).unwrap();
        let targets =
            ["/proc", "/there/empty", "/a/b/c", "/a/file", "/there/data", "/link/x", "/no/../cleaned", "/nowhere/y"];
        let points = MountPoints::lacking(dir.path(), targets.into_iter()).unwrap();
        for path in ["proc", "a/b/c", "there/data", "run/x", "cleaned", "made/later/y"] {
            fs::create_dir_all(at(path)).unwrap();
        }
        fs::write(at("a/file"), "").unwrap();
        fs::write(at("there/data/kept"), "written").unwrap();
        points.clear();
        for (path, there) in [
            ("proc", false),
            ("a", false),
            ("run/x", false),
            ("run", true),
            ("there/empty", true),
            ("there/data/kept", true),
            ("cleaned", false),
            ("made", false),
        ] {
            assert_eq!(at(path).exists(), there, "{path}");
        }
    }
}

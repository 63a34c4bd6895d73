//! What a runtime makes in a container's tree to mount something on: taken away again, so that it is no change.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// How many links are followed on the way to a target, as the kernel does.
const LINKS_MAX: usize = 40;

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
            note_missing(&root, &clean(Path::new(target)), &mut missing);
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

/// Notes what is missing of `path`, by names from the root on that are no links.
fn note_missing(root: &OwnedFd, path: &Path, missing: &mut Vec<PathBuf>) {
    let mut links = LINKS_MAX;
    // From the last to the first.
    let mut names = names(path);
    let mut at = PathBuf::from("/");
    while let Some(name) = names.pop() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        match open(root, &next, OFlags::NOFOLLOW).and_then(|found| read_link(&found)) {
            Ok(Some(_)) if links == 0 => return,
            Ok(Some(target)) => {
                links -= 1;
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                names.extend(self::names(&target));
            }
            Ok(None) => at = next,
            Err(Errno::NOENT) => {
                missing.push(next.clone());
                at = next;
            }
            // What is no directory is the runtime's to complain of.
            Err(_) => return,
        }
    }
}

/// Returns the target of a link; `None` for anything else.
fn read_link(found: &OwnedFd) -> rustix::io::Result<Option<PathBuf>> {
    if FileType::from_raw_mode(rustix::fs::fstat(found)?.st_mode) != FileType::Symlink {
        return Ok(None);
    }
    let target = rustix::fs::readlinkat(found, "", Vec::new())?;
    Ok(Some(PathBuf::from(OsStr::from_bytes(target.as_bytes()))))
}

/// Returns the names of a path, the last one first.
fn names(path: &Path) -> Vec<OsString> {
    let name = |part: Component<'_>| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    };
    path.components().rev().filter_map(name).collect()
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
        symlink("/srv/data", at("data")).unwrap();
        symlink("../else/d", at("run/d")).unwrap();
        let targets = [
            "/proc",
            "/there/empty",
            "/a/b/c",
            "/a/file",
            "/there/data",
            "/link/x",
            "/no/../cleaned",
            "/nowhere/y",
            "/data/x",
            "/link/d/x",
        ];
        let points = MountPoints::lacking(dir.path(), targets.into_iter()).unwrap();
        for path in ["proc", "a/b/c", "there/data", "run/x", "cleaned", "made/later/y", "srv/data/x", "else/d/x"] {
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
            ("srv", false),
            ("else", false),
        ] {
            assert_eq!(at(path).exists(), there, "{path}");
        }
    }
}

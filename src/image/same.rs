//! Whether two directories hold the same, as they are on the disk: marks and xattrs of an overlay count, inode numbers do not.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};

use super::remove::DIR;
use super::stack::open_regular;
use crate::error::{Error, Result};
use crate::layer::name::WH_PREFIX;
use crate::sys::xattr;

/// How many differences are told.
const TOLD: usize = 10;

/// Something that is not the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Where, from the two directories on; empty for these.
    pub path: PathBuf,
    /// What differs.
    pub what: &'static str,
}

/// Compares what `ours` and `theirs` are and hold; tells the first few differences, parents before what is in them.
///
/// Errors: [`Error::Image`] with the path of what cannot be read.
pub fn differences(ours: BorrowedFd<'_>, theirs: BorrowedFd<'_>) -> Result<Vec<Difference>> {
    let mut walk = Walk { told: Vec::new() };
    walk.entry(Path::new(""), (ours, theirs), OsStr::new("."))?;
    walk.told.truncate(TOLD);
    Ok(walk.told)
}

struct Walk {
    told: Vec<Difference>,
}

type Pair<'a> = (BorrowedFd<'a>, BorrowedFd<'a>);

impl Walk {
    fn tell(&mut self, path: &Path, what: &'static str) {
        self.told.push(Difference { path: path.to_owned(), what });
    }

    /// Compares what has the name `name` in two directories.
    fn entry(&mut self, path: &Path, (ours, theirs): Pair<'_>, name: &OsStr) -> Result<()> {
        let failed = |error: io::Error| Error::image_io(path.display(), &error);
        let stat = |dir| rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|errno| failed(errno.into()));
        let (one, other) = (stat(ours)?, stat(theirs)?);
        let kind = FileType::from_raw_mode(one.st_mode);
        if kind != FileType::from_raw_mode(other.st_mode) {
            self.tell(path, "is another kind of file");
            return Ok(());
        }
        // No layer says how old a mark is.
        let mark =
            kind == FileType::CharacterDevice && one.st_rdev == 0 || name.as_bytes().starts_with(WH_PREFIX.as_bytes());
        if let Some(what) = attributes(&one, &other, kind, mark) {
            self.tell(path, what);
        }
        if xattrs(ours, name).map_err(failed)? != xattrs(theirs, name).map_err(failed)? {
            self.tell(path, "has other xattrs");
        }
        let open = |dir, flags| rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(io::Error::from);
        match kind {
            FileType::Directory => {
                let inside = (open(ours, DIR).map_err(failed)?, open(theirs, DIR).map_err(failed)?);
                self.directory(path, &inside)
            }
            FileType::RegularFile => {
                let contents = |dir| {
                    let seen = open(dir, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC)?;
                    open_regular(&seen)?.ok_or_else(|| io::ErrorKind::NotFound.into())
                };
                let same = contents(ours).and_then(|ours| same_contents(ours, contents(theirs)?)).map_err(failed)?;
                if !same {
                    self.tell(path, "has other contents");
                }
                Ok(())
            }
            FileType::Symlink => {
                let target = |dir| rustix::fs::readlinkat(dir, name, Vec::new()).map_err(|errno| failed(errno.into()));
                if target(ours)? != target(theirs)? {
                    self.tell(path, "leads elsewhere");
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn directory(&mut self, path: &Path, (ours, theirs): &(OwnedFd, OwnedFd)) -> Result<()> {
        let failed = |error: io::Error| Error::image_io(path.display(), &error);
        let (one, other) = (names(ours).map_err(failed)?, names(theirs).map_err(failed)?);
        for name in one.union(&other) {
            if self.told.len() >= TOLD {
                return Ok(());
            }
            let path = path.join(name);
            match (one.contains(name), other.contains(name)) {
                (true, true) => self.entry(&path, (ours.as_fd(), theirs.as_fd()), name)?,
                (true, false) => self.tell(&path, "should not be there"),
                _ => self.tell(&path, "is missing"),
            }
        }
        Ok(())
    }
}

/// Returns which of the attributes that a layer gives a file differs.
fn attributes(one: &Stat, other: &Stat, kind: FileType, mark: bool) -> Option<&'static str> {
    let device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
    [
        (one.st_mode != other.st_mode, "has another mode"),
        ((one.st_uid, one.st_gid) != (other.st_uid, other.st_gid), "has another owner"),
        (kind != FileType::Directory && one.st_size != other.st_size, "has another size"),
        (kind != FileType::Directory && one.st_nlink != other.st_nlink, "has another number of names"),
        (device && one.st_rdev != other.st_rdev, "is another device"),
        (!mark && (one.st_mtime, one.st_mtime_nsec) != (other.st_mtime, other.st_mtime_nsec), "has another time"),
    ]
    .into_iter()
    .find_map(|(differs, what)| differs.then_some(what))
}

fn xattrs(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Vec<(OsString, Vec<u8>)>> {
    let mut all = Vec::new();
    for key in xattr::list(dir, name)? {
        let value = xattr::whole(dir, name, &key)?;
        all.push((key, value));
    }
    all.sort();
    Ok(all)
}

fn names(dir: &OwnedFd) -> io::Result<BTreeSet<OsString>> {
    let mut names = BTreeSet::new();
    for entry in Dir::read_from(dir)? {
        let name = OsString::from_vec(entry?.file_name().to_bytes().to_vec());
        if name.as_bytes() != b"." && name.as_bytes() != b".." {
            names.insert(name);
        }
    }
    Ok(names)
}

/// Returns whether two files hold the same bytes.
pub fn same_contents(mut one: File, mut other: File) -> io::Result<bool> {
    let (mut ours, mut theirs) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        let len = one.read(&mut ours)?;
        if len == 0 {
            return Ok(other.read(&mut theirs)? == 0);
        }
        let part = theirs.get_mut(..len).unwrap_or_default();
        match other.read_exact(part) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            done => done?,
        }
        if ours.get(..len) != Some(&*part) {
            return Ok(false);
        }
    }
}

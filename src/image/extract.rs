//! What a tree shows, made in a directory of the host: by names in open directories, so that no link, whoever made it and
//! when, leads anywhere else.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::Errno;

use super::stack::{Object, Stack};
use super::tar::Member;
use super::unpack::keep::set_times;
use crate::error::{Error, Result};
use crate::layer::attr::FileKind;
use crate::sys::xattr;

/// Whose the copies are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// This process's user's.
    Mine,
    /// This user's and group's.
    Of(u32, u32),
    /// As in the tree, with xattrs; needs who may give files away.
    Kept,
}

/// What becomes of something else that has the name already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// A file is replaced; where one of both is a directory it is an error.
    Refused,
    /// It is removed, a directory with all that is in it.
    Removed,
}

/// Makes what a tree shows.
#[derive(Debug, Clone, Copy)]
pub struct Extract {
    /// Whose it is.
    pub owners: Owners,
    /// What it may replace.
    pub conflict: Conflict,
}

/// How a directory is opened.
const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Extract {
    /// Makes `object` under `name` in `dir`, with all that is in it. A directory that is there gets what is in it besides.
    ///
    /// Errors: [`Error::Image`] with the path from `name` on, and what the system says.
    pub fn copy(self, stack: &Stack, object: &Object, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        let made = self.put(stack, object, dir, name)?;
        let (Some(made), Object::Dir(..)) = (made, object) else { return Ok(()) };
        self.copy_inside(stack, object, made.as_fd()).map_err(|error| error.within(name.display()))?;
        self.settle(stack, object, dir, name)
    }

    /// Makes what is in the directory `object` in `dir`.
    pub fn copy_inside(self, stack: &Stack, object: &Object, dir: BorrowedFd<'_>) -> Result<()> {
        let Object::Dir(merged, _) = object else { return Ok(()) };
        for (name, object) in stack.list(merged)? {
            self.copy(stack, &object, dir, &name)?;
        }
        Ok(())
    }

    /// Makes `object` alone, and returns the directory, if it is one: [`Extract::settle`] is for when all is in it.
    pub fn put(self, stack: &Stack, object: &Object, dir: BorrowedFd<'_>, name: &OsStr) -> Result<Option<OwnedFd>> {
        let failed = |error: io::Error| Error::image_io(name.display(), &error);
        let (member, data) = stack.to_member(name.as_bytes().to_vec(), object)?;
        let kind = object.attr().kind;
        self.make_room(dir, name, kind).map_err(failed)?;
        match kind {
            FileKind::Directory => {
                match rustix::fs::mkdirat(dir, name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(failed(errno.into())),
                }
                return rustix::fs::openat(dir, name, DIR, Mode::empty())
                    .map(Some)
                    .map_err(|errno| failed(errno.into()));
            }
            FileKind::Regular => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made =
                    rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR).map_err(|e| failed(e.into()))?;
                if let Some(data) = data {
                    copy_data(&data, &File::from(made)).map_err(failed)?;
                }
            }
            FileKind::Symlink => {
                let target = std::ffi::OsString::from_vec(member.link.clone());
                rustix::fs::symlinkat(target, dir, name).map_err(|e| failed(e.into()))?;
            }
            FileKind::Socket => {
                log::info!("{}: a socket is not copied", name.display());
                return Ok(None);
            }
            FileKind::Fifo | FileKind::Char | FileKind::Block => {
                let device = rustix::fs::makedev(member.rdev.0, member.rdev.1);
                let made = rustix::fs::mknodat(dir, name, kind.file_type(), Mode::RUSR | Mode::WUSR, device);
                made.map_err(|e| failed(e.into()))?;
            }
        }
        self.dress(dir, name, kind, &member).map_err(|e| failed(e.into()))?;
        Ok(None)
    }

    /// Gives the directory `name` what is known of `object`, now that all is in it.
    pub fn settle(self, stack: &Stack, object: &Object, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        let (member, _) = stack.to_member(name.as_bytes().to_vec(), object)?;
        let dressed = self.dress(dir, name, FileKind::Directory, &member);
        dressed.map_err(|errno| Error::image_io(name.display(), &errno.into()))
    }

    /// Sees to it that something of `kind` can be made under `name`.
    fn make_room(self, dir: BorrowedFd<'_>, name: &OsStr, kind: FileKind) -> io::Result<()> {
        let there = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => FileType::from_raw_mode(stat.st_mode),
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        match (there, kind, self.conflict) {
            (FileType::Directory, FileKind::Directory, _) => Ok(()),
            (FileType::Directory, _, Conflict::Refused) => Err(Errno::ISDIR.into()),
            (_, FileKind::Directory, Conflict::Refused) => Err(Errno::NOTDIR.into()),
            _ => Ok(remove_at(dir, name)?),
        }
    }

    /// Gives what was made its owner, xattrs, mode and times.
    fn dress(self, dir: BorrowedFd<'_>, name: &OsStr, kind: FileKind, member: &Member) -> rustix::io::Result<()> {
        // Another owner's privileges are not this one's to give.
        let mut mode = member.mode & 0o1777;
        let give = |uid, gid| {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
        };
        if let Owners::Of(uid, gid) = self.owners {
            give(uid, gid)?;
        }
        if self.owners == Owners::Kept {
            give(member.uid, member.gid)?;
            for (key, value) in &member.xattrs {
                if let Err(errno) = xattr::set(dir, name, key, value, XattrFlags::empty()) {
                    log::warn!("{}: its xattr {key:?} is left out: {errno}", name.display());
                }
            }
            mode = member.mode;
        }
        if kind != FileKind::Symlink {
            set_mode(dir, name, mode)?;
        }
        set_times(dir, name, member.mtime)
    }
}

/// Sets the mode of what is under `name`, which is not followed, whatever it has become.
fn set_mode(dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> rustix::io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
        FileType::Symlink => Err(Errno::LOOP),
        _ => rustix::fs::chmod(crate::sys::proc_path(&fd), Mode::from_raw_mode(mode)),
    }
}

/// Copies the data of a file; its holes stay holes.
fn copy_data(from: &File, to: &File) -> io::Result<()> {
    use rustix::fs::SeekFrom;
    let len = from.metadata()?.len();
    to.set_len(len)?;
    let mut at = 0;
    while at < len {
        let begin = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(begin))?;
        rustix::fs::seek(from, SeekFrom::Start(begin))?;
        rustix::fs::seek(to, SeekFrom::Start(begin))?;
        let (mut part, mut to) = (io::Read::take(from, end - begin), to);
        if io::copy(&mut part, &mut to)? < end - begin {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "became shorter while it was copied"));
        }
        at = end;
    }
    Ok(())
}

/// Removes what is under `name` in `dir`, a directory with all that is in it; links are removed and not followed.
pub fn remove_at(dir: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        done => return done,
    }
    let inside = rustix::fs::openat(dir, name, DIR, Mode::empty())?;
    for entry in Dir::read_from(&inside)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            remove_at(inside.as_fd(), name)?;
        }
    }
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// Opens the directory at `path`, names from `dir` on; `None` where there is none. Links are not followed.
pub fn open_below(dir: BorrowedFd<'_>, path: &[impl AsRef<OsStr>]) -> rustix::io::Result<Option<OwnedFd>> {
    let mut at = rustix::fs::openat(dir, ".", DIR, Mode::empty())?;
    for name in path {
        at = match rustix::fs::openat(&at, name.as_ref(), DIR, Mode::empty()) {
            Ok(next) => next,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(errno) => return Err(errno),
        };
    }
    Ok(Some(at))
}

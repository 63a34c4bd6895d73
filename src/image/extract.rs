//! What a tree shows, made in a directory of the host: by names in open directories, so that no link, whoever made it and
//! when, leads anywhere else.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::Errno;

use super::remove::{DIR, remove_at};
use super::stack::{Object, Stack};
use super::tar::Member;
use super::unpack::keep::set_times;
use crate::error::{Error, Result};
use crate::layer::attr::FileKind;
use crate::sys::xattr;

/// What is copied: files by their names in directories.
pub trait Tree {
    /// A file, or a directory.
    type Node;
    /// Returns what kind of file it is.
    fn kind(&self, node: &Self::Node) -> FileKind;
    /// Returns it as the member of a tar that would make it at `path`, and the data of a regular file.
    fn member(&self, node: &Self::Node, path: Vec<u8>) -> Result<(Member, Option<File>)>;
    /// Lists a directory by name in the order of bytes; anything else has nothing in it.
    fn list(&self, node: &Self::Node) -> Result<Vec<(OsString, Self::Node)>>;
}

impl Tree for Stack {
    type Node = Object;

    fn kind(&self, node: &Object) -> FileKind {
        node.attr().kind
    }

    fn member(&self, node: &Object, path: Vec<u8>) -> Result<(Member, Option<File>)> {
        self.to_member(path, node)
    }

    fn list(&self, node: &Object) -> Result<Vec<(OsString, Object)>> {
        match node {
            Object::Dir(merged, _) => Stack::list(self, merged),
            Object::File(..) => Ok(Vec::new()),
        }
    }
}

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

/// The deepest directory that is copied; a path of 4095 bytes, the longest of a layer, leads no deeper.
const DEPTH_MAX: usize = 2048;

/// What was made.
pub enum Made {
    /// A directory, which is not [`Extract::settle`]d yet.
    New(OwnedFd),
    /// Nothing: this directory was there.
    Old(OwnedFd),
    /// Something else, whole.
    File,
}

impl Extract {
    /// Makes `node` under `name` in `dir`, with all that is in it. A directory that is there gets what is in it besides.
    ///
    /// Errors: [`Error::Image`] with the path from `name` on, and what the system says.
    pub fn copy<T: Tree>(self, tree: &T, node: &T::Node, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        self.copy_at(0, tree, node, (dir, name))
    }

    /// Makes what is in the directory `node` in `dir`.
    pub fn copy_inside<T: Tree>(self, tree: &T, node: &T::Node, dir: BorrowedFd<'_>) -> Result<()> {
        self.inside_at(0, tree, node, dir)
    }

    fn copy_at<T: Tree>(self, depth: usize, tree: &T, node: &T::Node, at: (BorrowedFd<'_>, &OsStr)) -> Result<()> {
        let (dir, name) = at;
        let (inside, settled) = match self.put(tree, node, dir, name)? {
            Made::File => return Ok(()),
            Made::New(inside) => (inside, false),
            Made::Old(inside) => (inside, self.owners != Owners::Kept),
        };
        self.inside_at(depth + 1, tree, node, inside.as_fd()).map_err(|error| error.within(name.display()))?;
        // A directory that was there stays as whoever made it wanted it.
        if settled { Ok(()) } else { self.settle(tree, node, dir, name) }
    }

    fn inside_at<T: Tree>(self, depth: usize, tree: &T, node: &T::Node, dir: BorrowedFd<'_>) -> Result<()> {
        if depth > DEPTH_MAX {
            return Err(Error::image("directory", format!("is more than {DEPTH_MAX} directories deep")));
        }
        for (name, node) in tree.list(node)? {
            self.copy_at(depth, tree, &node, (dir, &name))?;
        }
        Ok(())
    }

    /// Makes `node` alone: [`Extract::settle`] is for when all is in a directory.
    ///
    /// A file has another name until it is whole, and only then takes the place of one that is there. Devices are made only
    /// with their owners, and left out else, as sockets always are.
    pub fn put<T: Tree>(self, tree: &T, node: &T::Node, dir: BorrowedFd<'_>, name: &OsStr) -> Result<Made> {
        let failed = |error: io::Error| Error::image_io(name.display(), &error);
        let kind = tree.kind(node);
        let device = matches!(kind, FileKind::Char | FileKind::Block);
        if kind == FileKind::Socket || (device && self.owners != Owners::Kept) {
            log::warn!("{}: a {} is not copied", name.display(), if device { "device" } else { "socket" });
            return Ok(Made::File);
        }
        self.make_room(dir, name, kind).map_err(failed)?;
        if kind == FileKind::Directory {
            let open = || rustix::fs::openat(dir, name, DIR, Mode::empty()).map_err(|errno| failed(errno.into()));
            return match rustix::fs::mkdirat(dir, name, Mode::RWXU) {
                Ok(()) => Ok(Made::New(open()?)),
                Err(Errno::EXIST) => Ok(Made::Old(open()?)),
                Err(errno) => Err(failed(errno.into())),
            };
        }
        let (member, data) = tree.member(node, name.as_bytes().to_vec())?;
        let new = unfinished_name();
        let made = make(dir, &new, kind, &member, data)
            .and_then(|()| Ok(self.dress(dir, &new, kind, &member)?))
            .and_then(|()| Ok(rustix::fs::renameat(dir, &new, dir, name)?));
        if made.is_err() {
            let _ = rustix::fs::unlinkat(dir, &new, AtFlags::empty()); // It may never have been there.
        }
        made.map(|()| Made::File).map_err(failed)
    }

    /// Gives the directory `name` what is known of `node`, now that all is in it.
    pub fn settle<T: Tree>(self, tree: &T, node: &T::Node, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        let (member, _) = tree.member(node, name.as_bytes().to_vec())?;
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
            (FileType::Directory, ..) | (_, FileKind::Directory, Conflict::Removed) => Ok(remove_at(dir, name)?),
            (_, FileKind::Directory, Conflict::Refused) => Err(Errno::NOTDIR.into()),
            // Renaming takes its place.
            _ => Ok(()),
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

/// Returns a name for what is not whole yet.
fn unfinished_name() -> OsString {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!(".unfinished-{}-{count}", std::process::id()).into()
}

/// Makes what is no directory, under a name that nothing has.
fn make(dir: BorrowedFd<'_>, name: &OsStr, kind: FileKind, member: &Member, data: Option<File>) -> io::Result<()> {
    let mode = Mode::RUSR | Mode::WUSR;
    match kind {
        FileKind::Symlink => Ok(rustix::fs::symlinkat(OsStr::from_bytes(&member.link), dir, name)?),
        FileKind::Regular => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = File::from(rustix::fs::openat(dir, name, flags, mode)?);
            data.map_or(Ok(()), |data| copy_data(&data, &made))
        }
        _ => {
            let device = rustix::fs::makedev(member.rdev.0, member.rdev.1);
            Ok(rustix::fs::mknodat(dir, name, kind.file_type(), mode, device)?)
        }
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
    if len == 0 {
        // Or it is one of /proc, which do not say how long they are.
        return io::copy(&mut { from }, &mut { to }).map(drop);
    }
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

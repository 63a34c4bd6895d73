//! The tree that a layer is unpacked into: found by paths that may say anything, and never left.
//!
//! Each step is one component that is not followed if it is a symbolic link; links are resolved here, below the root. Only
//! this layer is looked at, as containers/storage and Docker's overlay2 do: a link in a lower layer leads nowhere from here.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;

use super::super::digest::invalid;
use super::super::tar::{Member, MemberKind, PATH_MAX};
use super::keep::{self, Keep};
use super::notes::Notes;
use crate::layer::attr::{Attr, FileKind, Timestamp};
use crate::layer::name::WH_PREFIX;
use crate::sys::proc_path;

/// How many symbolic links one path may lead through, as in the kernel (path_resolution(7)).
const LINKS_MAX: usize = 40;

/// How many directories stay open.
const OPEN_MAX: usize = 256;

/// A directory of the tree.
#[derive(Debug, Clone)]
pub struct Dir {
    /// An O_PATH descriptor.
    pub fd: Arc<OwnedFd>,
    /// Where it is, without links, from the root.
    pub path: Arc<Path>,
}

/// What becomes of directories on the way that are not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// They are made, 0755 and root's.
    Make,
    /// It is an error: ENOENT.
    Refuse,
}

/// What stands under a name.
#[derive(Debug)]
pub enum Standing {
    /// Nothing.
    Nothing,
    /// The mark that what is below is removed.
    Whiteout,
    /// A directory.
    Directory,
    /// A symbolic link, with its target.
    Link(Vec<u8>),
    /// Something else.
    File,
}

/// A tree that is being made.
#[derive(Debug)]
pub struct Tree {
    root: Dir,
    /// How owners, modes and marks are kept.
    pub keep: Keep,
    /// Directories by where they are; all are forgotten when one is replaced.
    open: HashMap<Arc<Path>, Arc<OwnedFd>>,
    /// The directory of the member before, by its path as it is written: most often also that of the next.
    last: Option<(Vec<u8>, Dir)>,
    /// What is done in the end.
    pub notes: Notes,
}

impl Tree {
    /// Makes a tree in `root`, an empty directory.
    pub fn new(root: OwnedFd, keep: Keep) -> Self {
        let root = Dir { fd: Arc::new(root), path: Path::new("").into() };
        Self { root, keep, open: HashMap::new(), last: None, notes: Notes::default() }
    }

    /// Finds the directory that `parts` lead to from the root.
    ///
    /// Errors: ENOENT, ENOTDIR where a file is in the way, ELOOP, and `InvalidData` for a path that becomes too long.
    pub fn dir(&mut self, parts: &[&[u8]], missing: Missing) -> io::Result<Dir> {
        let written = parts.join(&b'/');
        if let Some((_, dir)) = self.last.as_ref().filter(|(last, _)| *last == written) {
            return Ok(dir.clone());
        }
        let mut todo: VecDeque<Vec<u8>> = parts.iter().map(|part| part.to_vec()).collect();
        let mut dir = self.root.clone();
        let mut links = 0;
        while let Some(part) = todo.pop_front() {
            if part == b".." {
                // Above the root is the root.
                dir = self.at(dir.path.parent().unwrap_or(Path::new("")))?;
                continue;
            }
            match self.step(&dir, OsStr::from_bytes(&part), missing)? {
                Ok(next) => dir = next,
                Err(target) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(Errno::LOOP.into());
                    }
                    if target.starts_with(b"/") {
                        dir = self.root.clone();
                    }
                    let parts = target.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
                    for part in parts.rev() {
                        todo.push_front(part.to_vec());
                    }
                }
            }
        }
        self.last = Some((written, dir.clone()));
        Ok(dir)
    }

    /// Returns the directory at `path`, which has no links.
    fn at(&mut self, path: &Path) -> io::Result<Dir> {
        if path.as_os_str().is_empty() {
            return Ok(self.root.clone());
        }
        if let Some((path, fd)) = self.open.get_key_value(path) {
            return Ok(Dir { fd: fd.clone(), path: path.clone() });
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat2(&self.root.fd, path, flags, Mode::empty(), resolve)?;
        Ok(self.opened(fd, path.into()))
    }

    /// Goes from `dir` to what is under `name`: a directory, or the target of a link.
    fn step(&mut self, dir: &Dir, name: &OsStr, missing: Missing) -> io::Result<Result<Dir, Vec<u8>>> {
        if name.as_bytes().starts_with(WH_PREFIX.as_bytes()) {
            // Nothing of a layer is inside of a mark, whatever has led there.
            return Err(invalid(format!("leads into a mark that something is removed ({WH_PREFIX}NAME)")));
        }
        let path = dir.path.join(name);
        if let Some((path, fd)) = self.open.get_key_value(path.as_path()) {
            return Ok(Ok(Dir { fd: fd.clone(), path: path.clone() }));
        }
        if path.as_os_str().len() > PATH_MAX {
            return Err(invalid(format!("leads to a path of more than {PATH_MAX} bytes")));
        }
        match open_dir(dir, name) {
            Ok(fd) => Ok(Ok(self.opened(fd, path.into()))),
            Err(Errno::NOENT) if missing == Missing::Make => {
                self.make_dir(dir, name)?;
                let implied = Member::implied();
                self.dress_dir(dir, name, &implied)?;
                Ok(Ok(self.opened(open_dir(dir, name)?, path.into())))
            }
            Err(errno @ (Errno::NOTDIR | Errno::LOOP)) => match self.standing(dir, name)? {
                Standing::Link(target) => Ok(Err(target)),
                Standing::Whiteout => Err(Errno::NOENT.into()),
                _ => Err(errno.into()),
            },
            Err(errno) => Err(errno.into()),
        }
    }

    fn opened(&mut self, fd: OwnedFd, path: Arc<Path>) -> Dir {
        if self.open.len() >= OPEN_MAX {
            self.open.clear();
        }
        let fd = Arc::new(fd);
        self.open.insert(path.clone(), fd.clone());
        Dir { fd, path }
    }

    /// Finds out what stands under `name` in `dir`.
    pub fn standing(&self, dir: &Dir, name: &OsStr) -> io::Result<Standing> {
        let at = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let file = match rustix::fs::statx(&dir.fd, name, at, StatxFlags::BASIC_STATS) {
            Ok(statx) => Attr::from(&statx),
            Err(Errno::NOENT) => return Ok(Standing::Nothing),
            Err(errno) => return Err(errno.into()),
        };
        if file.is_char_whiteout() {
            return Ok(Standing::Whiteout);
        }
        let attr = match self.keep.store {
            Some(store) if file.kind == FileKind::Regular => store.apply(dir.fd.as_fd(), name, file)?,
            _ => file,
        };
        Ok(match (attr.kind, file.kind) {
            (FileKind::Directory, _) => Standing::Directory,
            (FileKind::Symlink, FileKind::Symlink) => {
                Standing::Link(rustix::fs::readlinkat(&dir.fd, name, Vec::new())?.into_bytes())
            }
            (FileKind::Symlink, _) => {
                let fd = rustix::fs::openat(
                    &dir.fd,
                    name,
                    OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::empty(),
                )?;
                let mut target = Vec::new();
                File::from(fd).take(PATH_MAX as u64).read_to_end(&mut target)?;
                Standing::Link(target)
            }
            _ => Standing::File,
        })
    }

    /// Makes a directory that nobody else can use yet.
    fn make_dir(&self, dir: &Dir, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(&dir.fd, name, Mode::RWXU)?)
    }

    /// Makes the directory `name`, or takes the one that is there, whose children stay; anything else is removed.
    pub fn put_dir(&mut self, dir: &Dir, name: &OsStr, member: &Member) -> io::Result<usize> {
        match self.make_dir(dir, name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match self.standing(dir, name)? {
                Standing::Directory => self.keep.undress(dir.fd.as_fd(), name)?,
                _ => {
                    self.remove(dir, name)?;
                    self.make_dir(dir, name)?;
                }
            },
            done => done?,
        }
        self.notes.made(&dir.path.join(name));
        self.dress_dir(dir, name, member)
    }

    /// Gives a directory what `member` says of it; its times and what is inherited from it in the end.
    fn dress_dir(&mut self, dir: &Dir, name: &OsStr, member: &Member) -> io::Result<usize> {
        self.notes.directory(dir.path.join(name), member)?;
        Ok(self.keep.dress_but_times(dir.fd.as_fd(), name, FileKind::Directory, member)?)
    }

    /// Gives the root what `member` says of it.
    pub fn dress_root(&mut self, member: &Member) -> io::Result<usize> {
        self.notes.directory(PathBuf::new(), member)?;
        Ok(self.keep.dress_but_times(self.root.fd.as_fd(), OsStr::new(""), FileKind::Directory, member)?)
    }

    /// Removes what is under `name`, with all that is in it.
    pub fn remove(&mut self, dir: &Dir, name: &OsStr) -> io::Result<()> {
        self.last = None;
        match rustix::fs::unlinkat(&dir.fd, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {}
            done => return Ok(done?),
        }
        self.open = HashMap::new();
        self.notes.removed(&dir.path.join(name));
        std::fs::remove_dir_all(Path::new(&proc_path(&dir.fd)).join(name))
    }

    /// Makes `name` in `dir` by `make`; what is there, if anything, is removed.
    ///
    /// `make` fails with EEXIST where something is there.
    pub fn replace<T>(
        &mut self,
        dir: &Dir,
        name: &OsStr,
        mut make: impl FnMut() -> rustix::io::Result<T>,
    ) -> io::Result<T> {
        let made = match make() {
            Err(Errno::EXIST) => {
                self.remove(dir, name)?;
                make()?
            }
            done => done?,
        };
        self.notes.made(&dir.path.join(name));
        Ok(made)
    }

    /// Marks what was removed, and gives directories their times. Is the last thing that is done.
    ///
    /// Only now is it known what this layer has under a name that it also says is removed below, in whatever order.
    pub fn finish(mut self) -> io::Result<()> {
        self.last = None;
        let notes = std::mem::take(&mut self.notes);
        for path in &notes.whiteouts {
            let (Some(name), Some(dir)) = (path.file_name(), self.still_at(path.parent().unwrap_or(Path::new("")))?)
            else {
                continue;
            };
            match self.standing(&dir, name)? {
                Standing::Nothing => self.keep.whiteout(dir.fd.as_fd(), name)?,
                Standing::Directory => self.keep.make_opaque(open_dir(&dir, name)?.as_fd())?,
                Standing::Whiteout | Standing::Link(_) | Standing::File => {}
            }
        }
        for path in &notes.opaque {
            if let Some(dir) = self.still_at(path)? {
                self.keep.make_opaque(dir.fd.as_fd())?;
            }
        }
        for (path, end) in notes.directories {
            if let Some(acl) = end.default_acl {
                self.keep.set_default_acl(self.at(&path)?.fd.as_fd(), &acl)?;
            }
            // Setting the time of one changes no other. By its name, since those beside it have the same parent.
            let dir = self.at(path.parent().unwrap_or(Path::new("")))?;
            keep::set_times(dir.fd.as_fd(), path.file_name().unwrap_or_default(), end.mtime)?;
        }
        Ok(())
    }

    /// Returns the directory at `path`, unless a later member has put something else in its place or its parents'.
    fn still_at(&mut self, path: &Path) -> io::Result<Option<Dir>> {
        match self.at(path) {
            Ok(dir) => Ok(Some(dir)),
            Err(error)
                if [Errno::NOENT, Errno::NOTDIR, Errno::LOOP]
                    .iter()
                    .any(|e| error.raw_os_error() == Some(e.raw_os_error())) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl Member {
    /// What a directory is that members are in and that is none itself.
    pub(super) fn implied() -> Self {
        Self {
            path: Vec::new(),
            kind: MemberKind::File(FileKind::Directory),
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            size: 0,
            link: Vec::new(),
            rdev: (0, 0),
            xattrs: Vec::new(),
            extents: None,
        }
    }
}

/// Opens the directory `name` in `dir`; a link is not followed.
pub fn open_dir(dir: &Dir, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&dir.fd, name, flags, Mode::empty())
}

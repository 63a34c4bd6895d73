//! The writable layer: how it is opened, and how things are made in its workdir and published whole.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::attr::{Attr, FileKind, Timestamp};
use super::directory::{Directory, Identity};
use super::durability::Durability;
use super::features::{self, Features};
use super::overlay::{Mark, Namespace};
use super::permissions;
use super::whiteout::Whiteouts;
use super::workdir::{self, Earlier, Workdir};
use super::{Layer, LayerId, Root};
use crate::config::{Fsync, UnionConfig};
use crate::error::{Error, Result};
use crate::sys::mount::Limit;
use crate::sys::{mode, xattr};

/// The writable layer and its workdir.
#[derive(Debug)]
pub struct Upper {
    /// The layer.
    pub layer: Layer,
    /// Its workdir.
    pub work: Workdir,
    /// Where overlay xattrs are kept.
    pub namespace: Namespace,
    /// How removed names are marked.
    pub whiteouts: Whiteouts,
    /// What the file system can do.
    pub features: Features,
    /// What is waited for before something is published.
    pub durability: Durability,
    /// Whether reading updates the access times of files.
    atime: bool,
    /// Whether the workdir itself was made for this mount.
    made_workdir: bool,
    /// Rank 5 (leaf, but for the calls that read and write one xattr). Held while owner or mode of a file change that are
    /// kept in an xattr.
    pub(super) changing: Mutex<()>,
    /// Whether it was this mount that began to keep them there.
    pub(super) began_to_keep_apart: AtomicBool,
    /// Held open for its lock.
    _lock: OwnedFd,
}

/// What is to be made.
#[derive(Debug, Clone, Copy)]
pub enum New<'a> {
    /// An empty regular file.
    Regular,
    /// An empty directory.
    Directory,
    /// A symbolic link to this target.
    Symlink(&'a OsStr),
    /// A pipe, socket or device (major, minor).
    Node(FileKind, (u32, u32)),
}

/// Where a file is that is being made: by name in a directory, or a descriptor with an empty name.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The directory, or the file itself.
    pub dir: BorrowedFd<'a>,
    /// The name in the directory; empty for the file itself.
    pub name: &'a OsStr,
}

impl<'a> Place<'a> {
    /// Names `name` in `dir`.
    pub fn at(dir: BorrowedFd<'a>, name: &'a OsStr) -> Self {
        Self { dir, name }
    }

    /// Names the file behind `fd`; only xattrs can be set through one that was opened with O_PATH.
    pub fn file(fd: BorrowedFd<'a>) -> Self {
        Self { dir: fd, name: OsStr::new("") }
    }

    fn flags(&self) -> AtFlags {
        if self.name.is_empty() { AtFlags::EMPTY_PATH } else { AtFlags::SYMLINK_NOFOLLOW }
    }

    /// Gives the file to `uid` and `gid`.
    pub fn chown(&self, uid: u32, gid: u32) -> rustix::io::Result<()> {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(self.dir, self.name, uid, gid, self.flags())
    }

    /// Sets the permission bits. Errors: EOPNOTSUPP for the name of a symbolic link.
    pub fn chmod(&self, mode: u32) -> rustix::io::Result<()> {
        if self.name.is_empty() {
            rustix::fs::fchmod(self.dir, Mode::from_raw_mode(mode))
        } else {
            mode::set(self.dir, self.name, mode)
        }
    }

    /// Sets the permission bits, also through a descriptor that was opened with O_PATH.
    fn set_mode(&self, mode: u32) -> rustix::io::Result<()> {
        if self.name.is_empty() { mode::set_open(self.dir, mode) } else { self.chmod(mode) }
    }

    /// Sets the times of access and change.
    pub fn set_times(&self, atime: Timestamp, mtime: Timestamp) -> rustix::io::Result<()> {
        let spec = |t: Timestamp| rustix::fs::Timespec { tv_sec: t.secs, tv_nsec: t.nanos.into() };
        let times = Timestamps { last_access: spec(atime), last_modification: spec(mtime) };
        if self.name.is_empty() {
            rustix::fs::futimens(self.dir, &times)
        } else {
            rustix::fs::utimensat(self.dir, self.name, &times, AtFlags::SYMLINK_NOFOLLOW)
        }
    }

    /// Sets an xattr.
    pub fn set_xattr(&self, name: &OsStr, value: &[u8]) -> rustix::io::Result<()> {
        xattr::set(self.dir, self.name, name, value, XattrFlags::empty())
    }
}

impl Upper {
    /// Opens `upper` and its workdir, one beside it where none is given; checks and locks them.
    pub fn open(config: &UnionConfig, upper: Directory, work: Option<Directory>, namespace: Namespace) -> Result<Self> {
        let (work, made) = match work {
            Some(work) => (work, false),
            None => workdir_beside(&upper)?,
        };
        let work_path = work.name().to_owned();
        match Self::open_with(config, upper, work, namespace) {
            Ok(opened) => Ok(Self { made_workdir: made, ..opened }),
            Err(error) => {
                if made {
                    remove_made(&work_path);
                }
                Err(error)
            }
        }
    }

    fn open_with(config: &UnionConfig, upper: Directory, work: Directory, namespace: Namespace) -> Result<Self> {
        check_separate(&upper, &work)?;
        let (path, work_path) = (&upper.name().to_owned(), &work.name().to_owned());
        let (upper_root, work_root) = clone_together(upper, work, config.atime);
        let mut layer = Layer::new(LayerId::UPPER, path, upper_root)?;
        layer.overrides = permissions::store(config, &layer)?;
        let deadline = Instant::now() + config.patience;
        let lock = workdir::lock(layer.root(), path, deadline)?;
        check_writable(&layer, path)?;
        let earlier = if config.fsync == Fsync::Volatile { Earlier::Leave } else { Earlier::Sync };
        let work_lock = workdir::lock(work_root.as_fd(), work_path, deadline)?;
        let mut work = Workdir::open(work_lock, work_path, config.index != Some(false), earlier)?;
        let checked = features::check(config, &layer, &work, namespace, config.index);
        let (features, format) = checked.inspect_err(|_| work.withdraw())?;
        layer.fresh = features.stale;
        if !features.xattrs || !features.links {
            work.without_index();
        }
        Ok(Self {
            layer,
            namespace,
            whiteouts: Whiteouts::new(format, namespace, features),
            features,
            durability: Durability::of(config.fsync, &work),
            work,
            atime: config.atime,
            made_workdir: false,
            changing: Mutex::new(()),
            began_to_keep_apart: AtomicBool::new(false),
            _lock: lock,
        })
    }

    /// Removes what opening the layer has made on the disk, for a mount that failed.
    pub fn withdraw(&self) {
        self.whiteouts.end(&self.work);
        self.end_to_keep_apart();
        self.work.discard_volatile_mark();
        self.work.withdraw();
        if self.made_workdir {
            remove_made(self.work.path());
        }
    }

    /// Makes `new` under `name` in the workdir, owned by the server and closed to others; a regular file comes open.
    pub fn make(&self, name: &OsStr, new: New<'_>) -> Result<Option<OwnedFd>> {
        let dir = self.work.fd();
        let private = Mode::RUSR | Mode::WUSR;
        if self.make_stand_in(name, new).map_err(|e| self.layer.error("make in workdir", name, e))? {
            return Ok(None);
        }
        let made = match new {
            New::Regular => {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | self.quiet();
                rustix::fs::openat(dir, name, flags, private).map(Some)
            }
            New::Directory => rustix::fs::mkdirat(dir, name, Mode::RWXU).map(|()| None),
            New::Symlink(target) => rustix::fs::symlinkat(target, dir, name).map(|()| None),
            New::Node(kind, (major, minor)) => {
                let device = rustix::fs::makedev(major, minor);
                rustix::fs::mknodat(dir, name, kind.file_type(), private, device).map(|()| None)
            }
        };
        made.map_err(|e| self.layer.error("make in workdir", name, e))
    }

    /// Opens a new regular file without a name; `None` where the file system cannot.
    pub fn tmpfile(&self) -> Result<Option<OwnedFd>> {
        if !self.features.tmpfile {
            return Ok(None);
        }
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC | self.quiet();
        let fd = rustix::fs::openat(self.work.fd(), ".", flags, Mode::RUSR | Mode::WUSR);
        fd.map(Some).map_err(|e| self.layer.error("open(O_TMPFILE)", OsStr::new("work"), e))
    }

    /// What a new file is opened with besides, so that reading it touches no access time.
    fn quiet(&self) -> OFlags {
        if self.atime { OFlags::empty() } else { OFlags::NOATIME }
    }

    /// Reads the attributes of `name` in `dir`.
    pub fn stat(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<Attr> {
        self.layer.stat(dir, name).map_err(|e| self.layer.error("statx", name, e))
    }

    /// Sets `mark` of a thing in upper or the workdir, also where its mode forbids its owner to write.
    pub fn try_mark(&self, place: Place<'_>, mark: Mark, value: &[u8]) -> rustix::io::Result<()> {
        match self.namespace.set(place.dir, place.name, mark, value) {
            // `user.` xattrs take write permission, which a plain user may have to give himself for the moment.
            Err(Errno::ACCESS) => {
                let mode = self.layer.stat_file(place.dir, place.name)?.mode;
                place.set_mode(mode | 0o200)?;
                let done = self.namespace.set(place.dir, place.name, mark, value);
                place.set_mode(mode)?;
                done
            }
            done => done,
        }
    }

    /// Runs `change`, which makes a name in `dir`, also where the mode of `dir` forbids its owner to.
    ///
    /// What is copied up is not new in the union, so permission to make names plays no part.
    pub fn in_writable(
        &self,
        dir: BorrowedFd<'_>,
        change: impl Fn() -> rustix::io::Result<()>,
    ) -> rustix::io::Result<()> {
        match change() {
            Err(Errno::ACCESS) => {
                let place = Place::at(dir, OsStr::new("."));
                let mode = self.layer.stat_file(dir, OsStr::new(""))?.mode;
                place.set_mode(mode | 0o300)?;
                let done = change();
                place.set_mode(mode)?;
                done
            }
            done => done,
        }
    }

    /// Sets `mark` of a thing that is being made; where it only makes numbers constant, doing without is no failure.
    pub fn set_mark(&self, place: Place<'_>, mark: Mark, value: &[u8]) -> Result<()> {
        match self.try_mark(place, mark, value) {
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSPC) if matches!(mark, Mark::Impure) => Ok(()),
            done => done.map_err(|e| self.layer.error("setxattr", place.name, e)),
        }
    }

    /// Says of a thing that is being made what it is a copy of; returns whether it can hold that.
    pub fn set_origin(&self, place: Place<'_>, origin: &[u8]) -> Result<bool> {
        match self.try_mark(place, Mark::Origin, origin) {
            // `user.` xattrs exist on regular files and directories alone.
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSPC) => Ok(false),
            done => done.map(|()| true).map_err(|e| self.layer.error("setxattr", place.name, e)),
        }
    }

    /// Ends the use of the layer: leaves nothing unfinished.
    pub fn end(&self) {
        self.whiteouts.end(&self.work);
        self.work.discard_left();
    }
}

/// Removes the workdir that was made for a mount that failed.
fn remove_made(path: &Path) {
    if let Err(error) = std::fs::remove_dir(path) {
        log::warn!("{}: is left: {error}", path.display());
    }
}

/// Returns the path of the workdir that `upper` has where none is named.
pub(crate) fn default_workdir(upper: &Directory) -> Result<PathBuf> {
    let none = || {
        Error::setup(upper.name(), "has no path to a directory beside it, for the workdir", "name a workdir (--work)")
    };
    let real = upper.path().ok_or_else(none)?;
    let (Some(parent), Some(name)) = (real.parent(), real.file_name()) else { return Err(none()) };
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".work");
    Ok(parent.join(hidden))
}

/// Returns the workdir beside `upper`, and whether it was made now.
fn workdir_beside(upper: &Directory) -> Result<(Directory, bool)> {
    let path = default_workdir(upper)?;
    let made = match std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(&path) {
        Ok(()) => true,
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => false,
        Err(e) => {
            let error = Error::setup(path, format!("the workdir cannot be made: {e}"), "name another one with --work");
            return Err(error.because(e));
        }
    };
    let opened = Directory::at(&path).inspect_err(|_| {
        if made {
            remove_made(&path);
        }
    })?;
    Ok((opened, made))
}

/// Refuses an upper and workdir that are the same, one inside the other, or on two file systems.
pub(crate) fn check_separate(upper: &Directory, work: &Directory) -> Result<()> {
    let device = |dir: &Directory| rustix::fs::fstat(dir.fd()).map(|stat| stat.st_dev);
    let failed = |e: Errno| Error::setup(upper.name(), format!("cannot be read: {e}"), "check its permissions");
    if device(upper).map_err(failed)? != device(work).map_err(failed)? {
        return Err(Error::setup(
            work.name(),
            format!("is on another file system than {}", upper.name().display()),
            "name a workdir on upper's file system, best beside it",
        ));
    }
    if work.is(upper) {
        return Err(Error::setup(work.name(), "is upper itself", "name an empty directory beside upper"));
    }
    for (inner, outer) in [(upper, work), (work, upper)] {
        if inner.is_inside(outer) {
            return Err(Error::setup(
                inner.name(),
                format!("is inside {}", outer.name().display()),
                "keep upper and workdir beside each other",
            ));
        }
    }
    Ok(())
}

/// Clones upper and workdir out of one mount, because a rename between two mounts is EXDEV.
///
/// Where that is not allowed, or they are not below one directory of one mount, they are used as they are.
pub(crate) fn clone_together(upper: Directory, work: Directory, atime: bool) -> (Root, OwnedFd) {
    match clone_of_both(&upper, &work, atime) {
        Some((root, work)) => (root, work),
        None => (Root::plain(upper), work.into_fd()),
    }
}

fn clone_of_both(upper: &Directory, work: &Directory, atime: bool) -> Option<(Root, OwnedFd)> {
    let (upper_path, work_path) = (upper.path()?, work.path()?);
    let pairs = upper_path.components().zip(work_path.components());
    let common: PathBuf = pairs.take_while(|(a, b)| a == b).map(|(a, _)| a).collect();
    let limit = if atime { Limit::NoDevices } else { Limit::NoAccessTimes };
    let root = Some(Root::of(Directory::at(&common).ok()?, limit)).filter(|root| root.private)?;
    let below = |path: &Path, original: &Directory| -> Option<OwnedFd> {
        let relative = path.strip_prefix(&common).ok()?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&root.fd, relative, flags, Mode::empty()).ok()?;
        // A mount between the common directory and the path is not in the clone: something else is there.
        (Identity::of(fd.as_fd()).ok()? == Identity::of(original.fd()).ok()?).then_some(fd)
    };
    Some((Root { fd: below(&upper_path, upper)?, ..root }, below(&work_path, work)?))
}

fn check_writable(layer: &Layer, path: &Path) -> Result<()> {
    use rustix::fs::Access;
    match rustix::fs::accessat(layer.root(), ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
        Ok(()) => Ok(()),
        Err(Errno::ROFS) => {
            Err(Error::setup(path, "is on a read-only file system", "name an upper that can be written"))
        }
        Err(errno) => {
            Err(Error::setup(path, format!("cannot be written: {errno}"), "make it writable for the user that mounts")
                .because(errno))
        }
    }
}

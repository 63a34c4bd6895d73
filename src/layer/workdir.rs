//! The workdir: the only place where unfinished things exist.
//!
//! Laid out as the kernel's overlayfs has it, so that either can mount what the other left: `work/` holds
//! what is being made and is emptied at mount, `index/` the inodes of copied-up hard links, and
//! `work/incompat/volatile` says that what upper holds may never have reached the disk.

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::acl;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::{dents, mode};

const WORK: &str = "work";
const INDEX: &str = "index";
const INCOMPAT: &str = "incompat";
const VOLATILE: &str = "volatile";
const DIRTY: &str = "dirty";

/// What becomes of what an earlier volatile mount has written, which may be in memory alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Earlier {
    /// It is written to the disk, since this mount is to be relied on.
    Sync,
    /// It stays as it is: this mount is volatile too.
    Leave,
}

/// A workdir that is locked for the life of the mount.
#[derive(Debug)]
pub struct Workdir {
    path: PathBuf,
    work: OwnedFd,
    index: Option<OwnedFd>,
    /// The workdir itself, held open for its lock.
    lock: OwnedFd,
    next: AtomicU64,
    /// Whether something could not be removed yet.
    left: AtomicBool,
    /// What was missing when it was opened.
    made: Vec<&'static str>,
    /// Whether it has the mark of an earlier volatile mount of this run of the system, and keeps it.
    was_volatile: bool,
}

/// The mode of a directory that its owner may use, and nobody else.
const OWNER_ALONE: u32 = 0o700;

/// Opens the directory behind an O_PATH descriptor for reading.
fn readable(dir: BorrowedFd<'_>, name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// How long a mount that is in the way is looked at again.
const POLL: Duration = Duration::from_millis(10);

/// Takes the lock that says that a mount uses the directory at `path`, and waits until `deadline` for one that has it: the
/// process of a mount that is gone from the tree may have something left to do. On file systems without locks there is
/// none.
pub fn lock(dir: BorrowedFd<'_>, path: &Path, deadline: Instant) -> Result<OwnedFd> {
    let failed = |e: Errno| {
        Error::setup(path, format!("cannot be read: {e}"), "make it readable for the user that mounts").because(e)
    };
    let fd = readable(dir, ".").map_err(failed)?;
    let locked = loop {
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(POLL),
            done => break done,
        }
    };
    match locked {
        Ok(()) => Ok(fd),
        Err(Errno::WOULDBLOCK) => Err(Error::setup(
            path,
            "in use by another mount",
            "unmount that one first; two mounts must not share an upper or a workdir",
        )
        .of_kind(ErrorKind::InUse)),
        Err(errno) => {
            log::warn!("{}: cannot be locked ({errno}); nothing keeps a second mount away from it", path.display());
            Ok(fd)
        }
    }
}

impl Workdir {
    /// Checks and empties the workdir behind `lock`, which [`lock`](lock()) has given.
    ///
    /// Nothing on the disk changes before every check has passed.
    pub fn open(lock: OwnedFd, path: &Path, index: bool, earlier: Earlier) -> Result<Self> {
        let io = |what: &str, e: Errno| {
            Error::setup(path, format!("{what}: {e}"), "make it writable for the user that mounts").because(e)
        };
        let mut foreign = None;
        dents::each(lock.as_fd(), |name, _, _| {
            if name != WORK.as_bytes() && name != INDEX.as_bytes() {
                foreign = Some(OsStr::from_bytes(name).to_owned());
            }
        })
        .map_err(|e| io("cannot be listed", e))?;
        if let Some(name) = foreign {
            return Err(Error::setup(
                path.join(name),
                "is no part of a workdir",
                "name an empty directory as workdir, or remove what is in it",
            ));
        }
        let volatile = refuse_incompatible(lock.as_fd(), path)?;
        let stays = volatile && earlier == Earlier::Leave;
        if volatile && !stays {
            rustix::fs::syncfs(&lock).map_err(|e| io("what a volatile mount has written cannot be synced", e))?;
        }
        let wanted = if index { &[WORK, INDEX][..] } else { &[WORK] };
        let missing =
            |name: &&&str| matches!(rustix::fs::statat(&lock, **name, AtFlags::SYMLINK_NOFOLLOW), Err(Errno::NOENT));
        let made: Vec<_> = wanted.iter().filter(missing).copied().collect();
        let work = subdirectory(lock.as_fd(), WORK).map_err(|e| io("`work` cannot be made", e)).and_then(|work| {
            strip(work.as_fd()).map_err(|e| io("the permissions of `work` cannot be set", e))?;
            Ok(work)
        });
        let work = work.inspect_err(|_| remove_made(lock.as_fd(), path, &made))?;
        let mut workdir = Self {
            path: path.to_owned(),
            work,
            index: None,
            lock,
            next: AtomicU64::new(0),
            left: AtomicBool::new(false),
            made,
            was_volatile: stays,
        };
        let ready = workdir.empty().map_err(|e| io("cannot be emptied", e)).and_then(|()| {
            if index {
                let index = subdirectory(workdir.lock.as_fd(), INDEX).map_err(|e| io("`index` cannot be made", e))?;
                workdir.index = Some(index);
            }
            Ok(())
        });
        match ready {
            Ok(()) => Ok(workdir),
            Err(error) => {
                workdir.withdraw();
                Err(error)
            }
        }
    }

    /// Removes what opening the workdir has made, for a mount that failed.
    pub fn withdraw(&self) {
        remove_made(self.lock.as_fd(), &self.path, &self.made);
    }

    /// Returns the workdir's path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the workdir itself.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Returns the directory for unfinished things.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.work.as_fd()
    }

    /// Returns the directory of the index of hard links.
    pub fn index(&self) -> Option<BorrowedFd<'_>> {
        self.index.as_ref().map(|fd| fd.as_fd())
    }

    /// Gives up the index, where upper cannot hold what it needs.
    pub fn without_index(&mut self) {
        self.index = None;
    }

    /// Returns a name in the workdir that nobody else has.
    pub fn temporary(&self) -> OsString {
        let mut name = String::from("#");
        // Relaxed: only uniqueness matters. Writing to a String cannot fail.
        let _ = write!(name, "{:x}", self.next.fetch_add(1, Ordering::Relaxed));
        name.into()
    }

    /// Runs `make` with a new name in the workdir, and removes what it made there when it fails.
    pub fn with_temporary<T>(&self, make: impl FnOnce(&OsStr) -> Result<T>) -> Result<T> {
        let name = self.temporary();
        make(&name).inspect_err(|_| self.discard(&name))
    }

    /// Removes `name` and all below it from the workdir; what cannot be removed goes at the end, or at the next mount.
    pub fn discard(&self, name: &OsStr) {
        match self.remove(name) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => {
                // On NFS and FUSE what is still open goes only when it is closed.
                log::info!("{}: {name:?} is left in the workdir until the end: {errno}", self.path.display());
                self.left.store(true, Ordering::Relaxed); // Relaxed: read when all is over.
            }
        }
    }

    /// Removes what could not be removed before, at the end of the mount.
    pub fn discard_left(&self) {
        // Relaxed: whoever has set it is done.
        if !self.left.swap(false, Ordering::Relaxed) {
            return;
        }
        let removed = names(self.fd()).and_then(|names| {
            // Also what was in a directory that was left, which has moved out of it.
            names.iter().filter(|name| *name != INCOMPAT).try_for_each(|name| self.remove(name))
        });
        if let Err(errno) = removed {
            log::warn!("{}: something is left in the workdir until the next mount: {errno}", self.path.display());
        }
    }

    fn remove(&self, name: &OsStr) -> rustix::io::Result<()> {
        // A name that is left over from an earlier mount may look like one of ours.
        let fresh = || loop {
            let name = self.temporary();
            if matches!(rustix::fs::statat(self.fd(), &name, AtFlags::SYMLINK_NOFOLLOW), Err(Errno::NOENT)) {
                return name;
            }
        };
        remove_tree(self.fd(), name, fresh)
    }

    fn empty(&self) -> rustix::io::Result<()> {
        for name in names(self.fd())? {
            if !(self.was_volatile && name == INCOMPAT) {
                self.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Leaves the mark of a volatile mount, which refuses later mounts once the system has been started anew: until
    /// then, what was written can be read, on the disk or not.
    pub fn mark_volatile(&self) -> rustix::io::Result<()> {
        if self.was_volatile {
            return Ok(());
        }
        let incompat = subdirectory(self.fd(), INCOMPAT)?;
        let volatile = subdirectory(incompat.as_fd(), VOLATILE)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let dirty = rustix::fs::openat(&volatile, DIRTY, flags, Mode::RUSR | Mode::WUSR)?;
        rustix::io::write(&dirty, boot().as_bytes()).map(drop)
    }

    /// Removes the mark of a mount that failed.
    pub fn discard_volatile_mark(&self) {
        if !self.was_volatile {
            self.discard(OsStr::new(INCOMPAT));
        }
    }
}

/// Removes the directories `made` from the workdir `dir`.
fn remove_made(dir: BorrowedFd<'_>, path: &Path, made: &[&str]) {
    for name in made {
        match rustix::fs::unlinkat(dir, *name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => log::warn!("{}: `{name}` is left: {errno}", path.display()),
        }
    }
}

/// Returns what tells this run of the system from others; empty where that is not known.
fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// Reads the marks in `work/incompat`, and what is in that of a volatile mount.
fn incompatible(dir: BorrowedFd<'_>) -> rustix::io::Result<(Vec<OsString>, Vec<u8>)> {
    let found = |incompat: BorrowedFd<'_>| {
        let dirty = look_inside(incompat, VOLATILE, |volatile| {
            let mut left = vec![0; 64];
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = rustix::fs::openat(volatile, DIRTY, flags, Mode::empty())?;
            let len = rustix::io::read(&file, &mut left)?;
            left.truncate(len);
            Ok(left)
        });
        // Without it, as the kernel's overlayfs leaves it, the mark is of some time.
        Ok((names(incompat)?, dirty.unwrap_or_default().unwrap_or_default()))
    };
    let marks = look_inside(dir, WORK, |work| look_inside(work, INCOMPAT, found))?;
    Ok(marks.flatten().unwrap_or_default())
}

/// Refuses a workdir that holds the mark of a feature that this mount cannot make up for; returns whether a volatile mount
/// has left its mark since the system was started.
fn refuse_incompatible(dir: BorrowedFd<'_>, path: &Path) -> Result<bool> {
    let (marks, dirty) = incompatible(dir).map_err(|e| {
        let place = path.join(WORK).join(INCOMPAT);
        let reason = format!("cannot be looked at ({e}), and may hold a mark that forbids this mount");
        Error::setup(
            place,
            reason,
            "mount as the user who mounted with this workdir before, or name a fresh upper and workdir",
        )
        .because(e)
    })?;
    let hindrance = marks.iter().find(|mark| Incompatible::of(mark, &dirty) != Incompatible::VolatileNow);
    let Some(mark) = hindrance else { return Ok(!marks.is_empty()) };
    let place = path.join(WORK).join(INCOMPAT).join(mark);
    if Incompatible::of(mark, &dirty) == Incompatible::VolatileBefore {
        return Err(Error::setup(
            place,
            if dirty.is_empty() || boot().is_empty() {
                "left by a volatile mount, perhaps before the system was started anew: what that wrote may be incomplete"
            } else {
                "the system was started anew since a volatile mount of this upper: what that wrote may be incomplete"
            },
            "start with a fresh upper and workdir; or remove this directory if the system has not crashed since",
        ));
    }
    Err(Error::setup(place, "marks a feature that is not known here", "mount it with what wrote it"))
}

/// What a mark in `work/incompat` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incompatible {
    /// A volatile mount of this run of the system has written to upper.
    VolatileNow,
    /// A volatile mount has, perhaps before the system was started anew.
    VolatileBefore,
    /// Something that is not known here.
    Unknown,
}

impl Incompatible {
    fn of(mark: &OsStr, dirty: &[u8]) -> Self {
        if mark.as_bytes() != VOLATILE.as_bytes() {
            return Self::Unknown;
        }
        let boot = boot();
        let current = !boot.is_empty() && dirty == boot.as_bytes();
        if current { Self::VolatileNow } else { Self::VolatileBefore }
    }
}

/// What a workdir holds besides its index, read without a change.
#[derive(Debug, Default)]
pub struct Survey {
    /// What is no part of a workdir: a mount refuses it.
    pub foreign: Vec<OsString>,
    /// What is left in `work`, but for the device that the kernel's whiteouts are links of: the next mount removes it.
    pub left: Vec<OsString>,
    /// What is in `work/incompat`.
    pub marks: Vec<(OsString, Incompatible)>,
}

/// Looks at the workdir behind `lock`, which [`lock`](lock()) has given.
pub fn survey(lock: BorrowedFd<'_>) -> rustix::io::Result<Survey> {
    let mut foreign = names(lock)?;
    foreign.retain(|name| name != WORK && name != INDEX);
    let unfinished = |work: BorrowedFd<'_>| {
        let mut names = names(work)?;
        names.retain(|name| name != INCOMPAT && !is_whiteout(work, name));
        Ok(names)
    };
    let left = look_inside(lock, WORK, unfinished)?.unwrap_or_default();
    let (marks, dirty) = incompatible(lock)?;
    let marks = marks.into_iter().map(|mark| {
        let is = Incompatible::of(&mark, &dirty);
        (mark, is)
    });
    Ok(Survey { foreign, left, marks: marks.collect() })
}

fn is_whiteout(dir: BorrowedFd<'_>, name: &OsStr) -> bool {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0)
}

/// Opens the index of the workdir behind `lock`; `None` where there is none.
pub fn index(lock: BorrowedFd<'_>) -> rustix::io::Result<Option<OwnedFd>> {
    match readable(lock, INDEX) {
        Ok(index) => Ok(Some(index)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Makes the index of the workdir behind `lock`, where there is none.
pub fn make_index(lock: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    subdirectory(lock, INDEX)
}

/// Removes `path`, `work/NAME` or `index/NAME` of the workdir behind `lock`, and all below it.
pub fn remove_left(lock: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<()> {
    let part = if path.starts_with(INDEX) { INDEX } else { WORK };
    let dir = subdirectory(lock, part)?;
    remove_tree(dir.as_fd(), path.file_name().ok_or(Errno::INVAL)?, || unused(dir.as_fd()))
}

/// Takes what a volatile mount has written for good: brings it to the disk, and then removes the mark.
pub fn settle_volatile(lock: BorrowedFd<'_>) -> rustix::io::Result<()> {
    rustix::fs::syncfs(lock)?;
    let work = subdirectory(lock, WORK)?;
    let incompat = readable(work.as_fd(), INCOMPAT)?;
    remove_tree(incompat.as_fd(), OsStr::new(VOLATILE), || unused(incompat.as_fd()))?;
    match rustix::fs::unlinkat(&work, INCOMPAT, AtFlags::REMOVEDIR) {
        // Another mark stays.
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
        done => done,
    }
}

/// Returns a name that nothing has in `dir`.
fn unused(dir: BorrowedFd<'_>) -> OsString {
    let taken = |name: &str| rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
    let mut number = 0u64;
    loop {
        let name = format!("#{number:x}");
        if !taken(&name) {
            return name.into();
        }
        number += 1;
    }
}

/// Calls `look` with the directory `name` of `dir`; `None` where there is none.
///
/// The kernel's overlayfs makes its directories with no permissions at all, which keeps a plain user out of their own: the
/// mode is then changed for the moment.
fn look_inside<T>(
    dir: BorrowedFd<'_>,
    name: &str,
    look: impl FnOnce(BorrowedFd<'_>) -> rustix::io::Result<T>,
) -> rustix::io::Result<Option<T>> {
    match readable(dir, name) {
        Ok(fd) => look(fd.as_fd()).map(Some),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(Errno::ACCESS) => {
            let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            mode::set(dir, OsStr::new(name), OWNER_ALONE)?;
            let seen = readable(dir, name).and_then(|fd| look(fd.as_fd()));
            mode::set(dir, OsStr::new(name), stat.st_mode & 0o7777)?;
            seen.map(Some)
        }
        Err(errno) => Err(errno),
    }
}

/// Opens the directory `name` in `dir`, making it where it is missing.
fn subdirectory(dir: BorrowedFd<'_>, name: &str) -> rustix::io::Result<OwnedFd> {
    match rustix::fs::mkdirat(dir, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    match readable(dir, name) {
        // The kernel makes its `work` with no permissions at all.
        Err(Errno::ACCESS) => {
            mode::set(dir, OsStr::new(name), OWNER_ALONE)?;
            readable(dir, name)
        }
        done => done,
    }
}

/// Takes what a directory has inherited: what is made in it must not inherit that in turn.
fn strip(dir: BorrowedFd<'_>) -> rustix::io::Result<()> {
    for acl in [acl::DEFAULT, acl::ACCESS] {
        match rustix::fs::fremovexattr(dir, acl) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    rustix::fs::fchmod(dir, Mode::RWXU)
}

/// Lists the names in `dir`, which must be open for reading.
fn names(dir: BorrowedFd<'_>) -> rustix::io::Result<Vec<OsString>> {
    let listing = readable(dir, ".")?;
    let mut names = Vec::new();
    dents::each(listing.as_fd(), |name, _, _| names.push(OsStr::from_bytes(name).to_owned()))?;
    Ok(names)
}

/// Removes `name` in `dir` and all below it, with `fresh` giving names that nobody has in `dir`.
///
/// Directories inside are moved up to `dir` first, so that the depth of the tree does not matter.
fn remove_tree(dir: BorrowedFd<'_>, name: &OsStr, fresh: impl Fn() -> OsString) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        // POSIX has EPERM for a directory, Linux EISDIR.
        Err(Errno::ISDIR | Errno::PERM) => {}
        done => return done,
    }
    let mut left = vec![name.to_owned()];
    while let Some(name) = left.pop() {
        match rustix::fs::unlinkat(dir, &name, AtFlags::REMOVEDIR) {
            Ok(()) => continue,
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        match lift(dir, &name, &fresh) {
            // Somebody may still have the directory, so its mode is left alone where it can be.
            Err(Errno::ACCESS) => {
                mode::set(dir, &name, OWNER_ALONE)?;
                left.extend(lift(dir, &name, &fresh)?);
            }
            lifted => left.extend(lifted?),
        }
        rustix::fs::unlinkat(dir, &name, AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

/// Removes what is in the directory `name` of `dir`, but for directories, which are moved to `dir`; returns their names.
fn lift(dir: BorrowedFd<'_>, name: &OsStr, fresh: &impl Fn() -> OsString) -> rustix::io::Result<Vec<OsString>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inner = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    let mut lifted = Vec::new();
    for entry in names(inner.as_fd())? {
        match rustix::fs::unlinkat(&inner, &entry, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => {
                let moved = fresh();
                match rustix::fs::renameat(&inner, &entry, dir, &moved) {
                    // To move a directory, a plain user must be allowed to write it.
                    Err(Errno::ACCESS) => {
                        mode::set(inner.as_fd(), &entry, OWNER_ALONE)?;
                        rustix::fs::renameat(&inner, &entry, dir, &moved)?;
                    }
                    done => done?,
                }
                lifted.push(moved);
            }
            done => done?,
        }
    }
    Ok(lifted)
}

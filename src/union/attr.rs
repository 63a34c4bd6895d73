//! Attributes: stat, the changes to them, and the figures of the file system.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use parking_lot::MutexGuard;
use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags};
use rustix::io::Errno;

use super::copy_up::Data;
use super::file::check_regular;
use super::inode::{Inode, NodeId};
use super::kept::Access;
use super::{Attr, Caller, Fh, FileKind, Timestamp, Union, quota};
use crate::error::{Error, Result};
use crate::sys::{proc_path, xattr};

/// What a time is set to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The present.
    Now,
    /// This time.
    To(Timestamp),
}

/// Which attributes are set; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits, 07777 at most.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of the contents.
    pub mtime: Option<SetTime>,
}

/// The figures of a file system, as statvfs(3) has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatFs {
    /// Bytes a block.
    pub block_size: u64,
    /// Bytes a fragment, the unit of the counts of blocks.
    pub fragment_size: u64,
    /// Blocks in all.
    pub blocks: u64,
    /// Free blocks.
    pub free: u64,
    /// Free blocks for a plain user.
    pub available: u64,
    /// Inodes in all.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// The longest name, in bytes.
    pub name_max: u32,
}

impl Union {
    /// Reads the attributes of `id`.
    pub fn getattr(&self, id: NodeId) -> Result<Attr> {
        self.attributes(&self.inode(id)?)
    }

    /// Sets attributes of `id` for `caller`, the size through `fh` where there is one, and returns all of them.
    ///
    /// A change of size or owner takes the set-user-id and set-group-id bits and the capabilities of a regular file as
    /// the kernel's file systems do. Errors: EROFS, EPERM, EFBIG, ENOSPC, ETXTBSY, EINVAL for an owner or group that the
    /// mount's map has no place for.
    pub fn setattr(&self, id: NodeId, set: SetAttr, fh: Option<Fh>, caller: Caller) -> Result<Attr> {
        let set = SetAttr {
            uid: set.uid.map(|uid| self.stored_uid(uid)).transpose()?,
            gid: set.gid.map(|gid| self.stored_gid(gid)).transpose()?,
            ..set
        };
        let inode = self.inode(id)?;
        if set.size.is_some() {
            check_regular(&inode)?;
            if fh.is_none() {
                self.check_text(&inode, Some(id))?;
            }
        }
        let mut set = set;
        match set.size {
            Some(size) if self.copy_up_cut(&inode, size, caller)? => set.size = None,
            Some(_) => {}
            None => self.copy_up(&inode, Data::Metadata)?,
        }
        if set == SetAttr::default() {
            return self.attributes_after(&inode);
        }
        let _held = self.hold_metacopy(&inode);
        // What its data is written through is the same object, and saves opening it.
        let kept = if inode.kind == FileKind::Regular { self.files.get(&inode, Access::Write) } else { None };
        let pinned = match kept {
            Some(kept) => kept,
            None => Arc::new(self.pin(&inode)?),
        };
        self.set_owner(&inode, pinned.as_fd(), set)?;
        if let Some(mode) = set.mode {
            self.set_mode(pinned.as_fd(), mode)?;
        }
        if let Some(size) = set.size {
            let file = self.file_of(&inode, fh, Access::Write)?;
            self.set_size(&inode, &file, size, caller)?;
        }
        let _times = set.mtime.map(|_| self.hold_times(&inode));
        self.set_times(pinned.as_fd(), set)?;
        self.charge(&[&inode]);
        // By what was changed where its name cannot be followed any more: the change is made.
        let attr = self.stat(&inode).or_else(|_| self.stat_open(pinned.as_fd()).map(|attr| inode.finish(attr)))?;
        self.shown(&inode, attr)
    }

    /// Reads the attributes of what was changed, once more where that fails: the change is not undone.
    pub(super) fn attributes_after(&self, inode: &Arc<Inode>) -> Result<Attr> {
        self.attributes(inode).or_else(|error| {
            log::warn!("{error}");
            self.attributes(inode)
        })
    }

    fn attributes(&self, inode: &Arc<Inode>) -> Result<Attr> {
        self.shown(inode, self.stat(inode)?)
    }

    /// Returns what was read of `inode` as the mount shows it.
    fn shown(&self, inode: &Arc<Inode>, mut attr: Attr) -> Result<Attr> {
        self.count_blocks(inode, &mut attr)?;
        Ok(self.show(attr))
    }

    /// Keeps others from setting when `inode` was written.
    pub(super) fn hold_times(&self, inode: &Inode) -> MutexGuard<'_, ()> {
        let at = inode.ino.0 as usize % self.times.len();
        self.times[at].lock()
    }

    fn set_owner(&self, inode: &Arc<Inode>, fd: BorrowedFd<'_>, set: SetAttr) -> Result<()> {
        if set.uid.is_none() && set.gid.is_none() {
            return Ok(());
        }
        let done = self.writable()?.set_owner(fd, set.uid, set.gid);
        done.map_err(|e| self.upper_error("chown", inode, e))
    }

    pub(super) fn set_mode(&self, fd: BorrowedFd<'_>, mode: u32) -> Result<()> {
        self.writable()?.set_mode(fd, mode).map_err(Error::Refused)
    }

    /// Reads the attributes of the file of upper that is behind `fd`.
    pub(super) fn stat_open(&self, fd: BorrowedFd<'_>) -> Result<Attr> {
        self.writable()?.layer.stat(fd, OsStr::new("")).map_err(Error::Refused)
    }

    /// Sets the size through a descriptor that is open for writing.
    pub(super) fn set_size(&self, inode: &Inode, file: impl AsFd, size: u64, caller: Caller) -> Result<()> {
        self.drop_privileges_of(caller, file.as_fd())?;
        let done = rustix::fs::ftruncate(&file, size).map_err(|e| self.upper_error("ftruncate", inode, e));
        if let Some(quota) = &self.quota {
            quota.settle(|| quota::look(file.as_fd()));
        }
        done
    }

    /// Clears the privileges of a file that `caller` has changed, unless it may keep them.
    pub(super) fn drop_privileges_of(&self, caller: Caller, fd: BorrowedFd<'_>) -> Result<()> {
        self.drop_capabilities(fd)?;
        // Looking at the caller is for the few files that have such bits.
        if self.stat_open(fd)?.mode & 0o6000 == 0 || caller.keeps_set_id() { Ok(()) } else { self.drop_privileges(fd) }
    }

    /// Takes the capabilities of a file that was changed, where the kernel has not done so with the change itself.
    pub(super) fn drop_capabilities(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.writable()?.drop_capabilities(fd).map_err(Error::Refused)
    }

    /// Changes the contents of `inode`, open as `file`, without its capabilities, which the kernel takes, being lost.
    pub(super) fn keeping_capabilities<T>(
        &self,
        inode: &Inode,
        file: BorrowedFd<'_>,
        change: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let (root, capability) = (OsStr::new(""), OsStr::new("security.capability"));
        let capabilities = xattr::read(file, root, capability).map_err(|e| self.upper_error("getxattr", inode, e))?;
        // The kernel takes them first, and then fails where it does.
        let changed = change();
        if let Some(value) = capabilities
            && let Err(errno) = xattr::set(file, root, capability, &value, XattrFlags::empty())
        {
            return changed.and(Err(self.upper_error("setxattr", inode, errno)));
        }
        changed
    }

    /// Returns whether changing the contents of a file of upper, open as `fd`, takes something that the kernel would not take
    /// by itself.
    pub fn has_privileges(&self, fd: BorrowedFd<'_>) -> Result<bool> {
        Ok(self.stat_open(fd)?.mode & 0o6000 != 0 || self.writable()?.has_capabilities_apart(fd))
    }

    /// Clears set-user-id, and set-group-id of a file that its group may execute.
    pub(super) fn drop_privileges(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.writable()?.drop_set_id(fd).map_err(Error::Refused)
    }

    /// Returns whether `caller` may not leave a file the set-group-id bit that it has: it is not in the group.
    pub(super) fn takes_set_group_id(&self, fd: BorrowedFd<'_>, caller: Caller) -> Result<bool> {
        let attr = self.stat_open(fd)?;
        Ok(attr.mode & 0o2000 != 0 && !caller.keeps_set_id() && !caller.is_in_group(self.shown_gid(attr.gid)))
    }

    /// Clears the set-group-id bit.
    pub(super) fn drop_set_group_id(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.set_mode(fd, self.stat_open(fd)?.mode & !0o2000)
    }

    pub(super) fn set_times(&self, fd: BorrowedFd<'_>, set: SetAttr) -> Result<()> {
        if set.atime.is_none() && set.mtime.is_none() {
            return Ok(());
        }
        let times = Timestamps { last_access: timespec(set.atime), last_modification: timespec(set.mtime) };
        match rustix::fs::utimensat(fd, "", &times, AtFlags::EMPTY_PATH) {
            // Before Linux 5.8 the empty path is not taken.
            Err(Errno::INVAL | Errno::NOENT) => {
                rustix::fs::utimensat(rustix::fs::CWD, proc_path(fd), &times, AtFlags::empty()).map_err(Error::Refused)
            }
            done => done.map_err(Error::Refused),
        }
    }

    /// Reads the figures of upper's file system, or of the topmost lower's.
    pub fn statfs(&self) -> Result<StatFs> {
        let lower = self.lowers.layers().first().map(|layer| layer.root());
        let root = self.upper.as_ref().map(|upper| upper.layer.root()).or(lower).ok_or(Error::Refused(Errno::STALE))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let readable = rustix::fs::openat(root, ".", flags, Mode::empty()).map_err(Error::Refused)?;
        let s = rustix::fs::fstatvfs(&readable).map_err(Error::Refused)?;
        let mut figures = StatFs {
            block_size: s.f_bsize,
            fragment_size: s.f_frsize,
            blocks: s.f_blocks,
            free: s.f_bfree,
            available: s.f_bavail,
            files: s.f_files,
            files_free: s.f_ffree,
            name_max: u32::try_from(s.f_namemax).unwrap_or(255),
        };
        if let Some(quota) = &self.quota {
            quota.limit(&mut figures);
        }
        Ok(figures)
    }

    /// Wraps `errno` of `call` on the object of `inode`.
    pub(super) fn upper_error(&self, call: &'static str, inode: &Inode, errno: Errno) -> Error {
        Error::call(call, "upper", &*inode.place().0.name, errno)
    }
}

fn timespec(set: Option<SetTime>) -> Timespec {
    match set {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(SetTime::To(t)) => Timespec { tv_sec: t.secs, tv_nsec: t.nanos.into() },
    }
}

//! Removal: a whiteout is left only where a lower layer still shows the name.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, OFlags};
use rustix::io::Errno;

use super::copy_up::Data;
use super::inode::{Inode, NodeId, Real};
use super::pace::{ATTEMPTS, Attempt, Pace};
use super::search::{Hit, Top};
use super::{Union, dir_of};
use crate::error::{Error, Result};
use crate::layer::name::Name;
use crate::layer::publish::Publish;
use crate::layer::upper::{New, Place, Upper};
use crate::layer::whiteout::{Format, Standing};
use crate::sys::{caps, dents, xattr};

impl Union {
    /// Removes the name `name` of a file in `parent`.
    ///
    /// Who has the file open goes on using it. Errors: ENOENT, EISDIR, EROFS.
    pub fn unlink(&self, parent: NodeId, name: Name<'_>) -> Result<()> {
        self.unlink_at_pace(parent, name, Pace::Any).map(drop)
    }

    /// Removes a name as [`Union::unlink`], unless data must be copied up for it first.
    pub fn unlink_quickly(&self, parent: NodeId, name: Name<'_>) -> Result<Attempt> {
        self.unlink_at_pace(parent, name, Pace::Quick)
    }

    fn unlink_at_pace(&self, parent: NodeId, name: Name<'_>, pace: Pace) -> Result<Attempt> {
        let parent = self.directory(parent)?;
        let mut kept = false;
        for _ in 0..ATTEMPTS {
            let names = dir_of(&parent)?.lock.write();
            let hit = self.removable(&parent, name)?;
            if hit.attr.is_dir() {
                return Err(Error::Refused(Errno::ISDIR));
            }
            if parent.is_upper() && (kept || !self.will_stay_linked(&hit)) {
                return self.unlink_locked(&parent, name, &hit).map(|()| Attempt::Done);
            }
            // What is copied up is copied without the lock; then all is looked at anew.
            drop(names);
            self.ensure_upper(&parent)?;
            if self.will_stay_linked(&hit) {
                // Its other names must go on leading to one file with the right count, which the index keeps.
                let inode = self.hold(&parent, &name, &hit)?;
                if pace == Pace::Quick && !inode.is_upper() && self.is_long_to_copy(hit.attr.size) {
                    return Ok(Attempt::Long);
                }
                self.copy_up_name(&inode, &parent, &name, Data::Metadata)?;
                kept = true;
            }
        }
        Err(Error::Refused(Errno::BUSY))
    }

    /// Removes a name that was found; the caller holds the lock of `parent`, which is in upper.
    fn unlink_locked(&self, parent: &Arc<Inode>, name: Name<'_>, hit: &Hit) -> Result<()> {
        let inode = self.peek(parent, &name, hit)?;
        let pinned = self.pin_if_known(parent, &inode, &name, hit)?;
        self.settle_count_of(&inode)?;
        inode.note_links_change();
        let leaving = inode.moving();
        let (used, held) = (pinned.is_some(), self.hold_for_credit(parent, &name, hit));
        self.take_away(parent, &name, hit)?;
        dir_of(parent)?.changed();
        self.unname(parent, &inode, &name, pinned);
        drop(leaving);
        self.credit_removed(hit, used);
        drop(held);
        self.charge_whiteout(parent, &name);
        self.charge(&[parent]);
        self.drop_unused_index(&inode);
        Ok(())
    }

    /// Removes the empty directory `name` in `parent`. Errors: ENOENT, ENOTDIR, ENOTEMPTY, EROFS.
    pub fn rmdir(&self, parent: NodeId, name: Name<'_>) -> Result<()> {
        let parent = self.directory(parent)?;
        let mut names = dir_of(&parent)?.lock.write();
        let mut hit = self.removable(&parent, name)?;
        if !parent.is_upper() {
            // Copied up without the lock; what is there then may be something else.
            drop(names);
            self.ensure_upper(&parent)?;
            names = dir_of(&parent)?.lock.write();
            hit = self.removable(&parent, name)?;
        }
        if !hit.attr.is_dir() {
            return Err(Error::Refused(Errno::NOTDIR));
        }
        let inode = self.peek(&parent, &name, &hit)?;
        let inner = dir_of(&inode)?.lock.write();
        let pinned = self.pin_if_known(&parent, &inode, &name, &hit)?;
        let held = self.hold_for_credit(&parent, &name, &hit);
        let leaving = inode.moving();
        let leftover = self.let_in(&parent, &name, &hit, || {
            if !self.is_empty(&inode)? {
                self.release_transient(&inode);
                return Err(Error::Refused(Errno::NOTEMPTY));
            }
            self.take_away(&parent, &name, &hit)
        })?;
        dir_of(&parent)?.changed();
        dir_of(&inode)?.changed();
        let used = pinned.is_some();
        self.unname(&parent, &inode, &name, pinned);
        drop(leaving);
        self.credit_removed(&hit, used);
        drop(held);
        self.charge_whiteout(&parent, &name);
        self.charge(&[&parent]);
        self.release(&inode);
        drop(inner);
        drop(names);
        if let Some(leftover) = leftover {
            self.writable()?.work.discard(&leftover);
        }
        Ok(())
    }

    /// Runs `change` on the directory `name` of `parent`, which was found as `hit`, with its own mode out of the way: who
    /// removes or replaces a directory needs no permission on it, though moving it and looking into it does.
    pub(super) fn let_in<T>(
        &self,
        parent: &Arc<Inode>,
        name: &OsStr,
        hit: &Hit,
        change: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let mode = hit.attr.mode & 0o7777;
        let bound = !self.overrides_modes && !self.writable()?.keeps_modes_apart();
        if !bound || hit.standing() != Standing::Directory || mode & 0o700 == 0o700 {
            return change();
        }
        let upper = self.writable()?;
        let dir = self.upper_dir(parent)?;
        let open = upper.layer.open(dir.as_fd(), name, OFlags::PATH);
        let open = open.map_err(|e| upper.layer.error("openat", name, e))?;
        if self.set_mode(open.as_fd(), mode | 0o700).is_err() {
            // Somebody else's: then the mode decides.
            return change();
        }
        let done = change();
        if let Err(error) = self.set_mode(open.as_fd(), mode) {
            log::warn!("{}: {error}", upper.layer.error("chmod", name, error.errno()));
        }
        done
    }

    /// Returns what `name` in `parent` is. Errors: ENOENT.
    pub(super) fn present(&self, parent: &Arc<Inode>, name: Name<'_>) -> Result<Hit> {
        if name.is_reserved() {
            return Err(Error::Refused(Errno::NOENT));
        }
        self.search(parent, &name)?.ok_or(Error::Refused(Errno::NOENT))
    }

    /// Returns what `name` in `parent` is, to be removed or moved. Errors: ENOENT, and EPERM for what may not change.
    pub(super) fn removable(&self, parent: &Arc<Inode>, name: Name<'_>) -> Result<Hit> {
        let hit = self.present(parent, name)?;
        if hit.attr.immutable { Err(Error::Refused(Errno::PERM)) } else { Ok(hit) }
    }

    /// Returns whether `hit` is a lower file whose other names will still lead to it.
    pub(super) fn will_stay_linked(&self, hit: &Hit) -> bool {
        match &hit.top {
            Top::Lower(dir) => hit.attr.nlink > 1 && !hit.attr.is_dir() && self.keeps_links(dir, hit.attr.kind),
            Top::Upper => false,
        }
    }

    /// Opens the object in upper that is about to lose its name, if somebody may be using it.
    pub(super) fn pin_if_known(
        &self,
        parent: &Arc<Inode>,
        inode: &Arc<Inode>,
        name: &OsStr,
        hit: &Hit,
    ) -> Result<Option<OwnedFd>> {
        let used = self.known(inode.ino.0).is_some_and(|known| Arc::ptr_eq(&known, inode));
        if !used || !matches!(hit.top, Top::Upper) {
            return Ok(None);
        }
        let upper = self.writable()?;
        let open = || {
            let dir = self.upper_dir(parent)?;
            upper.layer.open(dir.as_fd(), name, OFlags::PATH).map_err(|e| upper.layer.error("openat", name, e))
        };
        let pinned = open()?;
        if !leaves_too_few(pinned.as_fd()) {
            return Ok(Some(pinned));
        }
        drop(pinned);
        self.close_kept();
        let pinned = open()?;
        if leaves_too_few(pinned.as_fd()) {
            // It keeps its name: or soon nothing that is open could be read any more.
            return Err(upper.layer.error("openat", name, Errno::MFILE));
        }
        Ok(Some(pinned))
    }

    /// Removes `name` from upper's `parent`, and hides it where a lower layer shows it.
    ///
    /// Returns the name in the workdir of a directory that held whiteouts.
    fn take_away(&self, parent: &Arc<Inode>, name: &OsStr, hit: &Hit) -> Result<Option<OsString>> {
        let upper = self.writable()?;
        let dir = self.upper_dir(parent)?;
        let standing = hit.standing();
        if self.covers(parent, name, hit)? {
            self.prepare_whiteout(upper, parent)?;
            let hidden = upper.whiteouts.hide(&upper.work, dir.as_fd(), name, standing);
            return hidden.map_err(|e| upper.layer.error("whiteout", name, e));
        }
        match standing {
            Standing::Nothing => Ok(None),
            Standing::File => {
                let removed = rustix::fs::unlinkat(dir.as_fd(), name, AtFlags::empty());
                removed.map(|()| None).map_err(|e| upper.layer.error("unlinkat", name, e))
            }
            Standing::Directory => match rustix::fs::unlinkat(dir.as_fd(), name, AtFlags::REMOVEDIR) {
                Ok(()) => Ok(None),
                // Only whiteouts are in it: it goes whole.
                Err(Errno::NOTEMPTY | Errno::EXIST) => self.move_out(upper, parent, name).map(Some),
                Err(errno) => Err(upper.layer.error("rmdir", name, errno)),
            },
        }
    }

    /// Makes ready for a whiteout in upper's `parent`, and remembers that there may be one.
    pub(super) fn prepare_whiteout(&self, upper: &Upper, parent: &Arc<Inode>) -> Result<()> {
        let dir = dir_of(parent)?;
        match upper.whiteouts.format() {
            Format::Char => return Ok(()),
            Format::DotWh => dir.dotwh.record(true),
            Format::Xattr => dir.xwhiteouts.store(true, Ordering::Release),
        }
        let fd = self.upper_dir(parent)?;
        upper.whiteouts.prepare(fd.as_fd()).map_err(|e| upper.layer.error("setxattr", OsStr::new("."), e))
    }

    /// Puts a mark beside `name` in upper's `parent`, so that nothing below shows while what is there is replaced in more
    /// than one step.
    pub(super) fn mark_beside(&self, upper: &Upper, parent: &Arc<Inode>, name: &OsStr) -> Result<()> {
        dir_of(parent)?.dotwh.record(true);
        let dir = self.upper_dir(parent)?;
        let marked = upper.whiteouts.mark_beside(&upper.work, dir.as_fd(), name);
        marked.map_err(|e| upper.layer.error("whiteout", name, e))
    }

    /// Makes a mark beside `name` of the whiteout that stands there in upper's `parent`, so that a directory can take the
    /// name: where names cannot be exchanged. The name is hidden throughout.
    pub(super) fn set_whiteout_aside(&self, upper: &Upper, parent: &Arc<Inode>, name: &OsStr) -> Result<()> {
        self.mark_beside(upper, parent, name)?;
        let dir = self.upper_dir(parent)?;
        let removed = rustix::fs::unlinkat(dir.as_fd(), name, AtFlags::empty());
        removed.map_err(|e| upper.layer.error("unlinkat", name, e))
    }

    /// Moves the directory `name` of upper's `parent` to the workdir; returns its name there.
    fn move_out(&self, upper: &Upper, parent: &Arc<Inode>, name: &OsStr) -> Result<OsString> {
        let dir = self.upper_dir(parent)?;
        let temporary = upper.work.temporary();
        let moved = rustix::fs::renameat(dir.as_fd(), name, upper.work.fd(), &temporary);
        moved.map(|()| temporary).map_err(|e| upper.layer.error("renameat", name, e))
    }

    /// Replaces a directory that shows as empty, and holds whiteouts, by one that is empty and opaque, so that it can be
    /// renamed over; owner, mode, xattrs and times are the same, in case of a crash before that.
    ///
    /// Where names cannot be exchanged it leaves a mark beside its name instead, and nothing under it: after a crash before
    /// the rename the name is free. Returns the name in the workdir of the one that was replaced, which goes back if the
    /// rename fails.
    pub(super) fn clear_whiteouts(&self, parent: &Arc<Inode>, name: &OsStr) -> Result<Option<OsString>> {
        let upper = self.writable()?;
        let dir = self.upper_dir(parent)?;
        let failed = |call: &'static str| move |e: Errno| upper.layer.error(call, name, e);
        let open = upper.layer.open(dir.as_fd(), name, OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed("openat"))?;
        let mut holds = false;
        dents::each(open.as_fd(), |_, _, _| holds = true).map_err(failed("getdents"))?;
        if !holds {
            return Ok(None);
        }
        if !upper.features.exchange {
            self.mark_beside(upper, parent, name)?;
            return self.move_out(upper, parent, name).map(Some);
        }
        // With the xattrs come owner and mode, where they are kept there.
        let attr = upper.layer.stat_file(dir.as_fd(), name).map_err(failed("statx"))?;
        upper.work.with_temporary(|temporary| {
            upper.make(temporary, New::Directory)?;
            let place = Place::at(upper.work.fd(), temporary);
            place.chown(attr.uid, attr.gid).map_err(failed("chown"))?;
            let own = OsStr::new("");
            for xattr in xattr::list(open.as_fd(), own).map_err(failed("listxattr"))? {
                if let Some(value) = xattr::read(open.as_fd(), own, &xattr).map_err(failed("getxattr"))? {
                    place.set_xattr(&xattr, &value).map_err(failed("setxattr"))?;
                }
            }
            self.set_opaque(upper, place)?;
            place.chmod(attr.mode).map_err(failed("chmod"))?;
            place.set_times(attr.atime, attr.mtime).map_err(failed("utimensat"))?;
            let swapped = upper.publish(temporary, dir.as_fd(), name, Publish::Exchange);
            swapped.map_err(failed("exchange"))?;
            Ok(Some(temporary.to_owned()))
        })
    }

    /// Gives a hard link that lost the name it went by another one, so that it needs no descriptor of its own.
    ///
    /// A directory has no other name, so that this is never called while one is being moved, and may reopen one.
    fn go_by_other_name(&self, inode: &Arc<Inode>) {
        let Some((parent, name)) = inode.take_other_name() else { return };
        if !self.leads_to(&parent, &name, inode) {
            return;
        }
        let Some(before) = inode.relocate_if_unlinked(&parent, &name) else { return };
        // With a child it stays in the table, if it was there until now.
        let stays = self.table.get(parent.id()).is_some_and(|known| Arc::ptr_eq(&known, &parent));
        if stays && self.leads_to(&parent, &name, inode) {
            // Whoever removes that name from now on finds the inode under it.
            self.drop_place(Some(before));
        } else {
            // It was removed before the inode went by it.
            self.drop_place(inode.relocate_back(&parent, &name, before));
        }
    }

    /// Returns whether `name` in upper's `parent` is the object of `inode`.
    fn leads_to(&self, parent: &Arc<Inode>, name: &OsStr, inode: &Inode) -> bool {
        let Some(upper) = &self.upper else { return false };
        let attr = self.upper_dir(parent).and_then(|dir| upper.stat(dir.as_fd(), name));
        attr.is_ok_and(|attr| attr.ino == inode.upper_ino())
    }

    /// Records that the name of `inode` is gone; `pinned` keeps its object for those who use it.
    pub(super) fn unname(&self, parent: &Arc<Inode>, inode: &Arc<Inode>, name: &OsStr, pinned: Option<OwnedFd>) {
        if !inode.is_named(parent, name) {
            return;
        }
        self.drop_place(Some(inode.relocate(|place| {
            place.unlinked = true;
            if let (Real::Upper, Some(fd)) = (&place.real, pinned) {
                place.real = Real::Detached(Arc::new(fd));
            }
        })));
        self.go_by_other_name(inode);
    }
}

/// Returns whether so few descriptors come after `fd` that whoever needs one for a moment may get none.
fn leaves_too_few(fd: BorrowedFd<'_>) -> bool {
    /// As many as requests can use at a time.
    const ENOUGH: u64 = 64;
    let (limit, left) = caps::open_files_above(fd);
    left < (limit / 8).min(ENOUGH)
}

//! Rename: what is moved is brought to upper first, and what a lower layer shows under the old name is hidden.

use std::cell::Cell;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::RwLockWriteGuard;
use rustix::fs::{AtFlags, RenameFlags as SysFlags};
use rustix::io::Errno;

use super::copy_up::Data;
use super::create::{forget_mark, remove_mark};
use super::inode::{Inode, NodeId};
use super::pace::{ATTEMPTS, Attempt, Pace};
use super::search::{Hit, InUpper, Top};
use super::{Union, UpperDir, dir_of};
use crate::config::RedirectDir;
use crate::error::{Error, Result};
use crate::layer::name::Name;
use crate::layer::overlay::Mark;
use crate::layer::publish::Publish;
use crate::layer::redirect::Redirect;
use crate::layer::upper::{Place, Upper};
use crate::layer::whiteout::{Format, Standing};

bitflags::bitflags! {
    /// The flags of renameat2(2).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct RenameFlags: u32 {
        /// Nothing may have the new name.
        const NOREPLACE = 1;
        /// Both names exist and are exchanged.
        const EXCHANGE = 2;
        /// A whiteout takes the old name. It hides, and so does not show: the name is gone either way.
        const WHITEOUT = 4;
    }
}

/// One end of a rename: a name in a directory, and what is there.
struct End<'a> {
    parent: &'a Arc<Inode>,
    name: Name<'a>,
    dir: UpperDir<'a>,
    hit: Option<Hit>,
    inode: Option<Arc<Inode>>,
    /// Whether a whiteout stands under the name.
    whiteout: bool,
}

/// A rename that rename(2) allows.
struct Renaming<'a> {
    old: &'a End<'a>,
    new: &'a End<'a>,
    moved: &'a Hit,
    inode: &'a Arc<Inode>,
    /// What has the new name.
    target: Option<(&'a Hit, &'a Arc<Inode>)>,
    exchanged: bool,
    /// The object that is replaced, for those who use it.
    pinned: Cell<Option<OwnedFd>>,
}

impl<'a> Renaming<'a> {
    /// Returns the ends whose object must be in upper first, and is not.
    fn ends_to_copy(&self, union: &Union) -> impl Iterator<Item = &'a End<'a>> {
        let lower = |hit: &Hit| matches!(hit.top, Top::Lower(_));
        let target = self.target.is_some_and(|(hit, _)| lower(hit) && (self.exchanged || union.will_stay_linked(hit)));
        [(lower(self.moved), self.old), (target, self.new)]
            .into_iter()
            .filter_map(|(copied, end)| copied.then_some(end))
    }

    /// Whether much must be copied up first, or a directory that is replaced be emptied of whiteouts.
    fn is_long(&self, union: &Union) -> bool {
        let mut copied = self.ends_to_copy(union).filter_map(|end| end.hit.as_ref());
        let copies =
            copied.any(|hit| hit.attr.kind == super::FileKind::Regular && union.is_long_to_copy(hit.attr.size));
        copies || !self.exchanged && self.target.is_some_and(|(hit, _)| hit.attr.is_dir())
    }
}

impl Union {
    /// Gives what is `name` in `parent` the name `new_name` in `new_parent`, as renameat2(2) has it.
    ///
    /// Errors: ENOENT, EEXIST, EISDIR, ENOTDIR, ENOTEMPTY, EINVAL,
    /// EPERM, EROFS; EXDEV for a directory with lower parts where redirect_dir is not on.
    pub fn rename(
        &self,
        parent: NodeId,
        name: Name<'_>,
        new_parent: NodeId,
        new_name: Name<'_>,
        flags: RenameFlags,
    ) -> Result<()> {
        self.rename_at_pace((parent, name), (new_parent, new_name), flags, Pace::Any).map(drop)
    }

    /// Renames as [`Union::rename`], unless that takes long.
    pub fn rename_quickly(
        &self,
        parent: NodeId,
        name: Name<'_>,
        new_parent: NodeId,
        new_name: Name<'_>,
        flags: RenameFlags,
    ) -> Result<Attempt> {
        self.rename_at_pace((parent, name), (new_parent, new_name), flags, Pace::Quick)
    }

    fn rename_at_pace(
        &self,
        (parent, name): (NodeId, Name<'_>),
        (new_parent, new_name): (NodeId, Name<'_>),
        flags: RenameFlags,
        pace: Pace,
    ) -> Result<Attempt> {
        if flags.contains(RenameFlags::EXCHANGE) && flags != RenameFlags::EXCHANGE {
            return Err(Error::Refused(Errno::INVAL));
        }
        if new_name.is_reserved() {
            return Err(Error::Refused(Errno::INVAL));
        }
        let unable = self.upper.as_ref().is_some_and(|upper| !upper.features.exchange);
        if flags.contains(RenameFlags::EXCHANGE) && unable {
            // As upper's own file system answers.
            return Err(Error::Refused(Errno::INVAL));
        }
        let (from, to) = (self.directory(parent)?, self.directory(new_parent)?);
        if Arc::ptr_eq(&from, &to) && name == new_name {
            self.present(&from, name)?;
            // As rename(2) for two names of one file: nothing happens.
            let refused = flags.contains(RenameFlags::NOREPLACE);
            return if refused { Err(Error::Refused(Errno::EXIST)) } else { Ok(Attempt::Done) };
        }
        for _ in 0..ATTEMPTS {
            let tree = (!Arc::ptr_eq(&from, &to)).then(|| self.tree.lock());
            let locks = lock_both(&from, &to)?;
            if from.is_upper() && to.is_upper() {
                let old = self.rename_end(&from, name)?;
                let new = self.rename_end(&to, new_name)?;
                let Some(renaming) = self.check_rename(&old, &new, flags)? else {
                    return Ok(Attempt::Done);
                };
                if pace == Pace::Quick && renaming.is_long(self) {
                    return Ok(Attempt::Long);
                }
                if renaming.ends_to_copy(self).next().is_none() {
                    return self.rename_locked(&renaming, flags).map(|()| Attempt::Done);
                }
                // What is copied up is copied without the locks; then all is looked at anew.
                drop((locks, tree));
                self.copy_up_ends(&renaming)?;
            } else {
                self.check_movable(&self.present(&from, name)?)?;
                drop((locks, tree));
                self.ensure_upper(&from)?;
                self.ensure_upper(&to)?;
            }
        }
        Err(Error::Refused(Errno::BUSY))
    }

    /// Brings to upper what the rename needs there; no directory is locked.
    fn copy_up_ends(&self, renaming: &Renaming<'_>) -> Result<()> {
        for end in renaming.ends_to_copy(self) {
            if let Some(hit) = &end.hit {
                let inode = self.hold(end.parent, &end.name, hit)?;
                self.copy_up_name(&inode, end.parent, &end.name, Data::Metadata)?;
            }
        }
        Ok(())
    }

    /// Refuses what must not be moved, before anything is copied up.
    fn check_movable(&self, hit: &Hit) -> Result<()> {
        if hit.attr.immutable {
            return Err(Error::Refused(Errno::PERM));
        }
        if hit.attr.is_dir() && !hit.lower.is_empty() && self.redirect_dir != RedirectDir::On {
            return Err(Error::Refused(Errno::XDEV));
        }
        Ok(())
    }

    fn rename_end<'a>(&'a self, parent: &'a Arc<Inode>, name: Name<'a>) -> Result<End<'a>> {
        if parent.place().0.unlinked {
            return Err(Error::Refused(Errno::NOENT));
        }
        let (mut hit, mut whiteout) = (None, false);
        if !name.is_reserved() {
            let found = self.in_upper(parent, &name)?;
            whiteout = matches!(found, InUpper::Whiteout);
            hit = self.search_from(parent, &name, found)?;
        }
        let inode = match &hit {
            Some(hit) => Some(self.peek(parent, &name, hit)?),
            None => None,
        };
        Ok(End { parent, name, dir: self.upper_dir(parent)?, hit, inode, whiteout })
    }

    /// Checks what rename(2) does. `None` for two names of one file, where it does nothing.
    fn check_rename<'a>(&self, old: &'a End<'a>, new: &'a End<'a>, flags: RenameFlags) -> Result<Option<Renaming<'a>>> {
        let (Some(moved), Some(inode)) = (&old.hit, &old.inode) else { return Err(Error::Refused(Errno::NOENT)) };
        let exchanged = flags.contains(RenameFlags::EXCHANGE);
        let target = new.hit.as_ref().zip(new.inode.as_ref());
        if target.is_some() && flags.contains(RenameFlags::NOREPLACE) {
            return Err(Error::Refused(Errno::EXIST));
        }
        if target.is_none() && exchanged {
            return Err(Error::Refused(Errno::NOENT));
        }
        if moved.attr.is_dir() && is_at_or_above(inode, new.parent) {
            return Err(Error::Refused(Errno::INVAL));
        }
        self.check_movable(moved)?;
        if let Some((hit, target)) = target {
            if inode.ino == target.ino {
                return Ok(None);
            }
            if !exchanged {
                self.check_replaceable(old, moved, hit, target)?;
            } else if hit.attr.is_dir() && is_at_or_above(target, old.parent) {
                return Err(Error::Refused(Errno::INVAL));
            } else {
                self.check_movable(hit)?;
            }
        }
        Ok(Some(Renaming { old, new, moved, inode, target, exchanged, pinned: Cell::new(None) }))
    }

    /// Renames what was checked; both directories are in upper and locked, and so is what is moved.
    fn rename_locked(&self, renaming: &Renaming<'_>, flags: RenameFlags) -> Result<()> {
        let Renaming { old, new, moved, inode, target, exchanged, .. } = renaming;
        let replaced = target.filter(|_| !exchanged);
        // Only to keep new entries out of a directory that is about to be replaced.
        let inner = replaced.and_then(|(_, target)| target.dir()).map(|dir| dir.lock.write());
        if let Some((hit, target)) = replaced.filter(|_| inner.is_some())
            && !self.let_in(new.parent, &new.name, hit, || self.is_empty(target))?
        {
            self.release_transient(target);
            return Err(Error::Refused(Errno::NOTEMPTY));
        }
        self.lead_below(old, moved, inode, new.parent)?;
        if let Some((hit, target)) = target.filter(|_| *exchanged) {
            self.lead_below(new, hit, target, old.parent)?;
        }
        if let Some((hit, target)) = replaced {
            self.settle_count_of(target)?;
            target.note_links_change();
            renaming.pinned.set(self.pin_if_known(new.parent, target, &new.name, hit)?);
        }
        let _held = replaced.and_then(|(hit, _)| self.hold_for_credit(new.parent, &new.name, hit));
        self.mark_moved(renaming)?;
        let leaving = (inode.moving(), target.map(|(_, target)| target.moving()));
        let done = match replaced {
            _ if *exchanged => self.move_in_upper(renaming, SysFlags::EXCHANGE),
            Some((hit, _)) => self.let_in(new.parent, &new.name, hit, || self.replace(renaming, flags)),
            None => self.replace(renaming, flags),
        };
        // Also where a late step failed: the names may have moved.
        dir_of(old.parent)?.changed();
        dir_of(new.parent)?.changed();
        done?;
        drop(leaving);
        drop(inner);
        self.finish_rename(renaming)
    }

    /// Records in upper that what comes from below gets there, before it does.
    fn mark_moved(&self, renaming: &Renaming<'_>) -> Result<()> {
        let Renaming { old, new, inode, target, exchanged, .. } = renaming;
        let upper = self.writable()?;
        let from_below = |inode: &Inode| inode.from_below || inode.dir().is_some_and(|dir| !dir.lower.is_empty());
        if from_below(inode) {
            self.mark_impure(upper, new.parent)?;
        }
        match target {
            Some((_, target)) if *exchanged && from_below(target) => self.mark_impure(upper, old.parent),
            _ => Ok(()),
        }
    }

    /// Refuses to replace one kind by another. Errors: EPERM, EISDIR, ENOTDIR, ENOTEMPTY.
    fn check_replaceable(&self, old: &End<'_>, moved: &Hit, target: &Hit, target_inode: &Arc<Inode>) -> Result<()> {
        if target.attr.immutable {
            return Err(Error::Refused(Errno::PERM));
        }
        match (moved.attr.is_dir(), target.attr.is_dir()) {
            (true, false) => Err(Error::Refused(Errno::NOTDIR)),
            (false, true) => Err(Error::Refused(Errno::ISDIR)),
            // What holds the moved directory is not empty.
            (true, true) if is_at_or_above(target_inode, old.parent) => Err(Error::Refused(Errno::NOTEMPTY)),
            _ => Ok(()),
        }
    }

    /// Makes what is moved lead to its lower parts, or to none, under its new name in `parent`.
    fn lead_below(&self, end: &End<'_>, hit: &Hit, inode: &Arc<Inode>, parent: &Arc<Inode>) -> Result<()> {
        let upper = self.writable()?;
        let place = Place::at(end.dir.as_fd(), &end.name);
        let Some(dir) = inode.dir() else {
            return self.lead_metacopy_below(upper, place, inode, (end.parent, &end.name));
        };
        if dir.lower.is_empty() {
            if hit.marks.opaque || dir_of(parent)?.lower.is_empty() {
                return Ok(());
            }
            return self.set_opaque(upper, place);
        }
        let same_parent = Arc::ptr_eq(end.parent, parent);
        let redirect = match hit.marks.redirect.as_deref().map(Redirect::parse) {
            Some(Ok(Redirect::Absolute(_))) => return Ok(()),
            Some(Ok(Redirect::Sibling(_))) if same_parent => return Ok(()),
            None if same_parent => Redirect::Sibling(end.name.as_os_str().to_owned()),
            Some(Ok(Redirect::Sibling(name))) => Redirect::Absolute(self.path_below(end.parent, &name)?),
            _ => Redirect::Absolute(self.path_below(end.parent, &end.name)?),
        };
        match upper.try_mark(place, Mark::Redirect, &redirect.to_bytes()) {
            Ok(()) => Ok(()),
            // Too long a path for an xattr: the caller copies instead, as it does between file systems.
            Err(Errno::NOSPC | Errno::TOOBIG | Errno::RANGE) => Err(Error::Refused(Errno::XDEV)),
            Err(errno) => Err(upper.layer.error("setxattr", &end.name, errno)),
        }
    }

    /// Moves the old name to the new one in upper, and lets the inodes know; for whoever reopens a directory by name
    /// the two are one step.
    fn move_in_upper(&self, renaming: &Renaming<'_>, flags: SysFlags) -> Result<()> {
        let upper = self.writable()?;
        let Renaming { old, new, inode, target, .. } = renaming;
        let target = target.map(|(_, target)| target);
        let directories = [Some(*inode), target].into_iter().flatten().any(|inode| inode.dir().is_some());
        let moving = directories.then(|| Moving::start(&self.moves));
        let (from, to) = (Place::at(old.dir.as_fd(), &old.name), Place::at(new.dir.as_fd(), &new.name));
        upper.features.rename(from, to, flags).map_err(|e| upper.layer.error("renameat2", &old.name, e))?;
        if let Some(target) = target {
            if renaming.exchanged {
                self.rename_inode(target, new, old);
            } else {
                self.unname(new.parent, target, &new.name, renaming.pinned.take());
            }
        }
        self.rename_inode(inode, old, new);
        drop(moving);
        Ok(())
    }

    /// Moves the old name onto the new one in upper, leaving a whiteout where a lower layer shows the old one.
    fn replace(&self, renaming: &Renaming<'_>, flags: RenameFlags) -> Result<()> {
        let upper = self.writable()?;
        let Renaming { old, new, inode, target, .. } = renaming;
        // A whiteout that hides nothing is left where it was asked for and costs no mark on its directory.
        let asked = flags.contains(RenameFlags::WHITEOUT) && upper.whiteouts.format() == Format::Char;
        let hide = asked || self.covers(old.parent, &old.name, renaming.moved)?;
        if hide {
            self.prepare_whiteout(upper, old.parent)?;
        }
        let mut whiteout = new.whiteout;
        if whiteout && inode.dir().is_some() && !upper.features.exchange {
            self.set_whiteout_aside(upper, new.parent, &new.name)?;
            whiteout = false;
        }
        if whiteout && hide && upper.whiteouts.format() != Format::DotWh {
            return self.move_in_upper(renaming, SysFlags::EXCHANGE);
        }
        if whiteout && inode.dir().is_some() {
            self.move_in_upper(renaming, SysFlags::EXCHANGE)?;
            if let Err(error) = self.clear_old_name(upper, old, hide) {
                log::warn!("{error}: a whiteout is left, and the rename is done");
            }
            return Ok(());
        }
        let standing = match target {
            None if whiteout => Standing::File,
            None => Standing::Nothing,
            Some((hit, _)) => hit.standing(),
        };
        let cleared = if standing == Standing::Directory { self.clear_whiteouts(new.parent, &new.name)? } else { None };
        let moved = match standing {
            _ if hide => self.move_and_hide(upper, renaming, standing),
            Standing::Nothing => self.move_in_upper(renaming, SysFlags::NOREPLACE),
            Standing::File | Standing::Directory => self.move_in_upper(renaming, SysFlags::empty()),
        };
        if let Some(before) = cleared {
            if moved.is_err() {
                self.put_back(upper, &before, new, Publish::Exchange);
            }
            // Gone where it was put back by a plain rename.
            upper.work.discard(&before);
        }
        moved
    }

    /// Removes the whiteout that a directory has left under its old name, in exchange; only where it is `hide`, and by a mark
    /// beside it, something shows there below. That comes before the whiteout goes.
    fn clear_old_name(&self, upper: &Upper, old: &End<'_>, hide: bool) -> Result<()> {
        if hide {
            self.hide(upper, old.dir.as_fd(), &old.name)?;
        }
        let removed = rustix::fs::unlinkat(&old.dir, &*old.name, AtFlags::empty());
        removed.map_err(|e| upper.layer.error("unlinkat", &old.name, e))
    }

    fn hide(&self, upper: &Upper, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        let hidden = upper.whiteouts.hide(&upper.work, dir, name, Standing::Nothing);
        hidden.map(drop).map_err(|e| upper.layer.error("whiteout", name, e))
    }

    /// Moves and leaves a whiteout, in one call where the file system can.
    fn move_and_hide(&self, upper: &Upper, renaming: &Renaming<'_>, standing: Standing) -> Result<()> {
        let old = renaming.old;
        match upper.whiteouts.format() {
            Format::DotWh => {
                // The mark comes first, so that what is below never shows.
                self.hide(upper, old.dir.as_fd(), &old.name)?;
                self.move_in_upper(renaming, SysFlags::empty()).inspect_err(|_| {
                    if let Err(error) = remove_mark(upper, old.dir.as_fd(), &old.name) {
                        log::error!("{error}");
                    }
                })
            }
            // One that the file system makes is an inode of its own, which nobody would count.
            Format::Char if upper.features.rename_whiteout && self.quota.is_none() => {
                self.move_in_upper(renaming, SysFlags::WHITEOUT)
            }
            Format::Char | Format::Xattr => self.move_over_whiteout(upper, renaming, standing),
        }
    }

    /// Moves and leaves a whiteout in two steps: the target gives way to a whiteout, which then changes places with what
    /// is moved. A crash between the two leaves the target removed and the rest as it was.
    fn move_over_whiteout(&self, upper: &Upper, renaming: &Renaming<'_>, standing: Standing) -> Result<()> {
        let Renaming { old, new, .. } = renaming;
        let temporary = upper.work.temporary();
        let hidden = upper.whiteouts.hide(&upper.work, upper.work.fd(), &temporary, Standing::Nothing);
        hidden.map_err(|e| upper.layer.error("whiteout", &old.name, e))?;
        let how = if standing == Standing::Nothing { Publish::New } else { Publish::Exchange };
        let placed = upper.publish(&temporary, new.dir.as_fd(), &new.name, how);
        let moved = placed.map_err(|e| upper.layer.error("publish", &new.name, e)).and_then(|()| {
            let moved = self.move_in_upper(renaming, SysFlags::EXCHANGE);
            moved.inspect_err(|_| self.put_back(upper, &temporary, new, how))
        });
        // The target or, where that is back, the whiteout.
        upper.work.discard(&temporary);
        moved
    }

    /// Undoes a publication from the workdir under the name of `end`, after which a further step failed.
    fn put_back(&self, upper: &Upper, temporary: &OsStr, end: &End<'_>, how: Publish) {
        let dir = end.dir.as_fd();
        let undone = match how {
            Publish::Exchange if upper.features.exchange => upper.publish(temporary, dir, &end.name, how),
            // It had left its name, which is hidden by a mark until it is back.
            Publish::Exchange => upper.publish(temporary, dir, &end.name, Publish::New),
            Publish::New | Publish::Replace => rustix::fs::unlinkat(dir, &*end.name, AtFlags::empty()),
        };
        let undone = undone.map_err(|e| upper.layer.error("put back", &end.name, e)).and_then(|()| {
            if how == Publish::Exchange && !upper.features.exchange {
                return remove_mark(upper, dir, &end.name);
            }
            Ok(())
        });
        if let Err(error) = undone {
            log::error!("{error}: a rename that failed is not undone");
        }
    }

    fn rename_inode(&self, inode: &Arc<Inode>, old: &End<'_>, new: &End<'_>) {
        if inode.is_named(old.parent, &old.name) {
            self.drop_place(Some(inode.relocate(|place| {
                place.name = new.name.as_os_str().into();
                place.parent = Some(new.parent.clone());
            })));
        }
    }

    /// Does what follows from a rename that has happened.
    fn finish_rename(&self, renaming: &Renaming<'_>) -> Result<()> {
        let Renaming { old, new, target, exchanged, inode, .. } = renaming;
        let upper = self.writable()?;
        self.charge(&[old.parent, new.parent, inode]);
        self.charge_whiteout(old.parent, &old.name);
        if let Some((hit, target)) = target.filter(|_| !exchanged && self.quota.is_some()) {
            self.credit_removed(hit, self.known(target.ino.0).is_some_and(|known| Arc::ptr_eq(&known, target)));
        }
        if dir_of(new.parent)?.dotwh.possible() {
            forget_mark(upper, new.dir.as_fd(), &new.name);
        }
        let Some((_, target)) = target.filter(|_| !exchanged) else { return Ok(()) };
        if let Some(dir) = target.dir() {
            dir.changed();
            self.release(target);
        }
        self.drop_unused_index(target);
        Ok(())
    }
}

/// Marks the time in which a directory of upper is being moved, for those who reopen one by name.
struct Moving<'a>(&'a std::sync::atomic::AtomicU64);

impl<'a> Moving<'a> {
    fn start(moves: &'a std::sync::atomic::AtomicU64) -> Self {
        // One move at a time: even to odd only.
        loop {
            let now = moves.load(Ordering::Acquire);
            if now.is_multiple_of(2)
                && moves.compare_exchange(now, now + 1, Ordering::AcqRel, Ordering::Acquire).is_ok()
            {
                return Self(moves);
            }
            std::thread::yield_now();
        }
    }
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

/// Locks two directories for writing, ancestors first, else by ascending serial.
fn lock_both<'a>(
    a: &'a Arc<Inode>,
    b: &'a Arc<Inode>,
) -> Result<(RwLockWriteGuard<'a, ()>, Option<RwLockWriteGuard<'a, ()>>)> {
    if Arc::ptr_eq(a, b) {
        return Ok((dir_of(a)?.lock.write(), None));
    }
    let a_first = if is_at_or_above(a, b) {
        true
    } else if is_at_or_above(b, a) {
        false
    } else {
        a.serial < b.serial
    };
    let (first, second) = if a_first { (a, b) } else { (b, a) };
    let first = dir_of(first)?.lock.write();
    Ok((first, Some(dir_of(second)?.lock.write())))
}

/// Returns whether `above` is `inode` or one of the directories above it.
fn is_at_or_above(above: &Arc<Inode>, inode: &Arc<Inode>) -> bool {
    let mut at = Some(inode.clone());
    while let Some(inode) = at {
        if Arc::ptr_eq(above, &inode) {
            return true;
        }
        at = inode.place().0.parent;
    }
    false
}

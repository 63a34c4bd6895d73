//! The index: where the inodes of copied-up hard links are kept, so that their other names find them.
//!
//! As in the kernel's overlayfs: an entry is named for the handle of the lower file, its link count in the
//! union is that of the upper (or lower) inode plus the difference in the `nlink` xattr.
//!
//! While a name that a lower layer has is given to the object in upper, the difference is to the lower's count, which stays:
//! so it is right before and after. From then on it is to upper's, which changes as the union's does. A process that ends
//! in between leaves the first kind, which is made the second before anything changes the count.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;
use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::Union;
use super::inode::{Inode, Real};
use super::search::InUpper;
use crate::error::{Error, Result};
use crate::layer::attr::{Attr, FileKind};
use crate::layer::dir::LayerDir;
use crate::layer::origin::Origin;
use crate::layer::overlay::{Mark, Marks, Namespace};
use crate::layer::upper::{Place, Upper};
use crate::sys::dents;

/// What a stored link count is relative to.
enum Base {
    Upper,
    Lower,
}

fn parse(value: &[u8]) -> Option<(Base, i32)> {
    let (base, number) = value.split_first()?;
    let base = match base {
        b'U' => Base::Upper,
        b'L' => Base::Lower,
        _ => return None,
    };
    Some((base, std::str::from_utf8(number).ok()?.parse().ok()?))
}

/// Returns how far the count that is `delta` more than `lower` is from that of upper's `attr`.
fn relative_to_upper(lower: u32, delta: i32, attr: &Attr) -> i32 {
    let shown = lower.saturating_add_signed(delta);
    (shown as i32).saturating_sub(attr.nlink as i32)
}

/// What is known of the link counts in the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counts {
    /// Nothing: they are as an earlier mount has left them.
    Unseen,
    /// One may be relative to a lower file's, since something has failed here.
    Open,
    /// All are relative to upper's.
    Settled,
}

impl Union {
    /// Reads how far the union's link count of an indexed file is from that of its upper inode, which `attr` has; `lower`
    /// is the count of the lower file, where it is known.
    ///
    /// `None` when nothing is stored; garbage counts as no difference, as in the kernel.
    pub(super) fn read_nlink(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        attr: &Attr,
        marks: &Marks,
        lower: Option<u32>,
    ) -> Result<Option<i32>> {
        if !marks.nlink {
            return Ok(None);
        }
        let upper = self.writable()?;
        let failed = |e: Errno| upper.layer.error("getxattr", name, e);
        let Some(value) = self.namespace.get(dir, name, Mark::Nlink).map_err(failed)? else { return Ok(None) };
        match parse(&value) {
            Some((Base::Upper, delta)) => Ok(Some(delta)),
            Some((Base::Lower, delta)) => Ok(Some(match lower.or_else(|| self.lower_nlink(dir, name)) {
                Some(lower) => relative_to_upper(lower, delta, attr),
                // Handles are for CAP_DAC_READ_SEARCH. At least as many as can be: with too few the entry would go, and
                // with it what was written, while a name still leads to it.
                None => 1,
            })),
            None => Ok(Some(0)),
        }
    }

    /// Returns the link count of the lower file that an upper one was copied up from, where it can be opened.
    fn lower_nlink(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Option<u32> {
        let value = self.namespace.get(dir, name, Mark::Origin).ok()??;
        let origin = Origin::decode(&value)?;
        let dev = self.numbers.device(&origin.uuid)?;
        let layer = self.lowers.layer(self.lowers.roots().iter().find(|root| root.dev == dev)?);
        // By a descriptor with O_PATH no handle can be opened (EBADF).
        let mount = layer.open_listing(layer.root()).ok()?;
        let fd = crate::sys::fhandle::open_by_handle(mount.as_fd(), &origin.handle).ok()?;
        layer.stat(fd.as_fd(), OsStr::new("")).ok().map(|attr| attr.nlink)
    }

    /// Returns whether the names of a lower file of this kind stay linked when one is copied up.
    ///
    /// That takes an index, a handle to find its entry by, and xattrs on the file itself, which `user.` ones are on
    /// regular files and directories alone.
    pub(super) fn keeps_links(&self, dir: &LayerDir, kind: FileKind) -> bool {
        let Some(upper) = &self.upper else { return true };
        let able = kind == FileKind::Regular || kind != FileKind::Directory && self.namespace == Namespace::Trusted;
        able && upper.work.index().is_some() && self.lowers.layer(dir).handles
    }

    /// Returns the name in the index for a lower file that has several names; `None` where there is no index.
    pub(super) fn index_entry(&self, dir: &Arc<LayerDir>, name: &OsStr, lower: &Attr) -> Result<Option<OsString>> {
        if lower.nlink < 2 || !self.keeps_links(dir, lower.kind) {
            return Ok(None);
        }
        Ok(self.origin_of(dir, name)?.and_then(|origin| origin.index_name()))
    }

    /// Gives the indexed file `inode` the name `name` in upper's `parent`, where only lower layers have it.
    ///
    /// The link count in the union stays; the caller holds the lock of `parent`.
    pub(super) fn link_alias(&self, inode: &Arc<Inode>, parent: &Arc<Inode>, name: &OsStr) -> Result<()> {
        let (place, _) = inode.place();
        let Real::Index(entry) = &place.real else { return Ok(()) };
        if !matches!(self.in_upper(parent, name)?, InUpper::Nothing) {
            return Ok(());
        }
        let upper = self.writable()?;
        let index = upper.work.index().ok_or(Error::Refused(Errno::STALE))?;
        let dir = self.upper_dir(parent)?;
        let before = upper.stat(dir.as_fd(), OsStr::new(""))?;
        let delta = inode.nlink_delta().unwrap_or(0);
        self.mark_impure(upper, parent)?;
        let mut counts = self.settle_counts()?;
        if let Some(lower) = self.search_lower(parent, name)? {
            let shown = upper.stat(index, entry)?.nlink as i32 + delta;
            *counts = Counts::Open;
            self.write_count(upper, (index, entry), Base::Lower, shown.saturating_sub(lower.attr.nlink as i32))?;
        }
        let changing = inode.moving();
        let linked = rustix::fs::linkat(index, &**entry, dir.as_fd(), name, AtFlags::empty());
        linked.map_err(|e| upper.layer.error("linkat", name, e))?;
        let delta = delta.saturating_sub(1);
        inode.set_nlink_delta(delta);
        drop(changing);
        self.write_nlink(upper, index, entry, delta)?;
        *counts = Counts::Settled;
        let place = Place::at(dir.as_fd(), OsStr::new("."));
        place.set_times(before.atime, before.mtime).map_err(|e| upper.layer.error("utimensat", name, e))
    }

    /// Stores the difference between the union's link count and that of upper's inode.
    pub(super) fn write_nlink(&self, upper: &Upper, dir: BorrowedFd<'_>, name: &OsStr, delta: i32) -> Result<()> {
        self.write_count(upper, (dir, name), Base::Upper, delta)
    }

    fn write_count(
        &self,
        upper: &Upper,
        (dir, name): (BorrowedFd<'_>, &OsStr),
        base: Base,
        difference: i32,
    ) -> Result<()> {
        let base = match base {
            Base::Upper => 'U',
            Base::Lower => 'L',
        };
        upper.set_mark(Place::at(dir, name), Mark::Nlink, format!("{base}{difference:+}").as_bytes())
    }

    /// Makes ready for a change of the names in upper of `inode`, if it is indexed.
    pub(super) fn settle_count_of(&self, inode: &Inode) -> Result<()> {
        if inode.nlink_delta().is_some() { self.settle_counts().map(drop) } else { Ok(()) }
    }

    /// Makes all counts in the index relative to upper's, unless they are; whoever stores another for a while holds what is
    /// returned, and has it say so.
    pub(super) fn settle_counts(&self) -> Result<MutexGuard<'_, Counts>> {
        let mut counts = self.counts.lock();
        if *counts != Counts::Settled {
            let upper = self.writable()?;
            if let Some(index) = upper.work.index() {
                let mut entries = Vec::new();
                let listed = upper.layer.open_listing(index).and_then(|fd| {
                    dents::each(fd.as_fd(), |name, _, _| entries.push(OsStr::from_bytes(name).to_owned()))
                });
                listed.map_err(|e| upper.layer.error("getdents", OsStr::new("index"), e))?;
                for entry in entries {
                    self.settle_count(upper, index, &entry, *counts)?;
                }
            }
            *counts = Counts::Settled;
        }
        Ok(counts)
    }

    fn settle_count(&self, upper: &Upper, index: BorrowedFd<'_>, entry: &OsStr, counts: Counts) -> Result<()> {
        let value = match self.namespace.get(index, entry, Mark::Nlink) {
            // Its last name went meanwhile.
            Err(Errno::NOENT) => return Ok(()),
            read => read.map_err(|e| upper.layer.error("getxattr", entry, e))?,
        };
        let stored = value.as_deref().and_then(parse);
        let attr = match upper.layer.stat(index, entry) {
            Err(Errno::NOENT) => return Ok(()),
            done => done.map_err(|e| upper.layer.error("statx", entry, e))?,
        };
        let delta = match stored {
            Some((Base::Upper, delta)) => delta,
            // Without its lower file it stays as it is, and is taken for what a name in that layer says.
            Some((Base::Lower, delta)) => match self.lower_nlink(index, entry) {
                Some(lower) => {
                    let delta = relative_to_upper(lower, delta, &attr);
                    self.write_nlink(upper, index, entry, delta)?;
                    delta
                }
                None => return Ok(()),
            },
            None => return Ok(()),
        };
        // Its last name went, and then the process. Nobody of this mount has it open, as it has not been looked at before.
        if counts == Counts::Unseen && attr.nlink == 1 && attr.nlink.saturating_add_signed(delta) == 0 {
            let removed = rustix::fs::unlinkat(index, entry, AtFlags::empty());
            removed.map_err(|e| upper.layer.error("unlinkat", entry, e))?;
        }
        Ok(())
    }

    /// Returns whether what is `entry` in the index says itself that it is a copy of the file that the entry is named for.
    pub(super) fn is_of_entry(&self, index: BorrowedFd<'_>, entry: &OsStr) -> Result<bool> {
        let failed = |e: Errno| Error::call("getxattr", "index", entry, e);
        let value = self.namespace.get(index, entry, Mark::Origin).map_err(failed)?;
        let origin = value.as_deref().and_then(Origin::decode);
        Ok(origin.and_then(|origin| origin.index_name()).is_some_and(|name| name == entry))
    }

    /// Removes the entry of an indexed file whose last name is gone, keeping the file for those who have it open.
    ///
    /// The name is gone whatever comes of this; an entry that is left goes with a later mount.
    pub(super) fn drop_unused_index(&self, inode: &Arc<Inode>) {
        let (place, _) = inode.place();
        let Real::Index(entry) = &place.real else { return };
        if let Err(error) = self.drop_index(inode, entry) {
            log::warn!("{error}: an entry of the index is left");
        }
    }

    fn drop_index(&self, inode: &Arc<Inode>, entry: &OsStr) -> Result<()> {
        let upper = self.writable()?;
        let index = upper.work.index().ok_or(Error::Refused(Errno::STALE))?;
        let failed = |call: &'static str| move |e: Errno| upper.layer.error(call, entry, e);
        // ENOENT: whoever removed another name of the file at the same time was here before.
        let attr = match upper.layer.stat(index, entry) {
            Err(Errno::NOENT) => return Ok(()),
            done => done.map_err(failed("statx"))?,
        };
        if attr.nlink.saturating_add_signed(inode.nlink_delta().unwrap_or(0)) > 0 {
            return Ok(());
        }
        let pinned = match upper.layer.open(index, entry, rustix::fs::OFlags::PATH) {
            Err(Errno::NOENT) => return Ok(()),
            done => done.map_err(failed("openat"))?,
        };
        match rustix::fs::unlinkat(index, entry, AtFlags::empty()) {
            Err(Errno::NOENT) => return Ok(()),
            done => done.map_err(failed("unlinkat"))?,
        }
        if let Some(quota) = &self.quota {
            let used = self.known(inode.ino.0).is_some_and(|known| Arc::ptr_eq(&known, inode));
            if used { quota.leave(attr.ino) } else { quota.remove(attr.ino) }
        }
        self.drop_place(Some(inode.relocate(|place| {
            place.real = Real::Detached(Arc::new(pinned));
            place.unlinked = true;
        })));
        inode.set_nlink_delta(0);
        Ok(())
    }

    /// Records that the index holds something now.
    pub(super) fn note_index(&self) {
        self.index_used.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_link_counts_are_a_base_and_a_signed_number() {
        assert!(matches!(parse(b"U+0"), Some((Base::Upper, 0))));
        assert!(matches!(parse(b"U-3"), Some((Base::Upper, -3))));
        assert!(matches!(parse(b"L+12"), Some((Base::Lower, 12))));
        for garbage in [&b""[..], b"U", b"+1", b"Ux", b"U99999999999"] {
            assert!(parse(garbage).is_none(), "{garbage:?}");
        }
    }
}

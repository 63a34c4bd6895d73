//! The index: where the inodes of copied-up hard links are kept, so that their other names find them.
//!
//! As in the kernel's overlayfs: an entry is named for the handle of the lower file, its link count in the
//! union is that of the upper (or lower) inode plus the difference in the `nlink` xattr.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::Union;
use super::inode::{Inode, Real};
use super::search::InUpper;
use crate::error::{Error, Result};
use crate::layer::attr::{Attr, FileKind};
use crate::layer::dir::LayerDir;
use crate::layer::overlay::{Mark, Marks, Namespace};
use crate::layer::upper::{Place, Upper};

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

impl Union {
    /// Reads how far the union's link count of an indexed file is from that of its upper inode.
    ///
    /// `None` when nothing is stored; garbage counts as no difference, as in the kernel.
    pub(super) fn read_nlink(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        attr: &Attr,
        marks: &Marks,
    ) -> Result<Option<i32>> {
        if !marks.nlink {
            return Ok(None);
        }
        let upper = self.writable()?;
        let failed = |e: Errno| upper.layer.error("getxattr", name, e);
        let Some(value) = self.namespace.get(dir, name, Mark::Nlink).map_err(failed)? else { return Ok(None) };
        match parse(&value) {
            Some((Base::Upper, delta)) => Ok(Some(delta)),
            Some((Base::Lower, delta)) => {
                // Left by a crash between two steps: the lower's own count says the rest.
                let lower = self.lower_nlink(dir, name).unwrap_or(attr.nlink);
                let wanted = lower.saturating_add_signed(delta);
                Ok(Some((wanted as i32).saturating_sub(attr.nlink as i32)))
            }
            None => Ok(Some(0)),
        }
    }

    /// Returns the link count of the lower file that an upper one was copied up from, where it can be opened.
    fn lower_nlink(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Option<u32> {
        let value = self.namespace.get(dir, name, Mark::Origin).ok()??;
        let origin = crate::layer::origin::Origin::decode(&value)?;
        let dev = self.numbers.device(&origin.uuid)?;
        let layer = self.lowers.layer(self.lowers.roots().iter().find(|root| root.dev == dev)?);
        let fd = crate::sys::fhandle::open_by_handle(layer.root(), &origin.handle).ok()?;
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
        let delta = inode.nlink_delta().unwrap_or(0).saturating_sub(1);
        self.mark_impure(upper, parent)?;
        let changing = inode.moving();
        let linked = rustix::fs::linkat(index, &**entry, dir.as_fd(), name, AtFlags::empty());
        linked.map_err(|e| upper.layer.error("linkat", name, e))?;
        // One too high until now: a crash between the two keeps an entry that nobody needs. One too low would drop one
        // that other names lead to.
        inode.set_nlink_delta(delta);
        drop(changing);
        self.write_nlink(upper, index, entry, delta)?;
        let place = Place::at(dir.as_fd(), OsStr::new("."));
        place.set_times(before.atime, before.mtime).map_err(|e| upper.layer.error("utimensat", name, e))
    }

    /// Stores the difference between the union's link count and that of upper's inode.
    pub(super) fn write_nlink(&self, upper: &Upper, dir: BorrowedFd<'_>, name: &OsStr, delta: i32) -> Result<()> {
        upper.set_mark(Place::at(dir, name), Mark::Nlink, format!("U{delta:+}").as_bytes())
    }

    /// Removes the entry of an indexed file whose last name is gone, keeping the file for those who have it open.
    pub(super) fn drop_unused_index(&self, inode: &Arc<Inode>) -> Result<()> {
        let (place, _) = inode.place();
        let Real::Index(entry) = &place.real else { return Ok(()) };
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
        match rustix::fs::unlinkat(index, &**entry, AtFlags::empty()) {
            Err(Errno::NOENT) => return Ok(()),
            done => done.map_err(failed("unlinkat"))?,
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

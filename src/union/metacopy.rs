//! Metacopy: metadata in upper, and data in a layer below until it is brought up.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::copy_data::{self, Known};
use super::copy_up::Data;
use super::inode::{DataPlace, Inode, Real};
use super::{Attr, FileKind, Union};
use crate::error::{Error, Location, Result};
use crate::layer::dir::LayerDir;
use crate::layer::durability::Holds;
use crate::layer::overlay::Mark;
use crate::layer::redirect::Redirect;
use crate::layer::upper::{Place, Upper};
use crate::sys::sync::MutexGuard;

impl Union {
    /// Returns where the data of a metacopy is; `None` when it is where the metadata is.
    ///
    /// Errors: EIO for a metacopy that this mount does not follow, or whose data is nowhere.
    pub(super) fn data_below(&self, inode: &Arc<Inode>) -> Result<Option<(Arc<LayerDir>, OsString)>> {
        if inode.kind != FileKind::Regular || inode.data_place() == DataPlace::Here {
            return Ok(None);
        }
        let (place, version) = inode.place();
        let marks = self.with_object(inode, |layer, dir, name| {
            self.namespace.marks(dir, name).map_err(|e| layer.error("listxattr", name, e))
        })?;
        let option = "--metacopy on";
        let location = || match &place.real {
            Real::Lower(dir) => self.lowers.location(dir, &place.name),
            _ => Location::new("upper", &*place.name),
        };
        if marks.foreign {
            let option = "the --xattr-namespace that it was written with";
            return Err(Error::NotFollowed { file: location(), what: "a metacopy or its redirect", option });
        }
        if !marks.metacopy {
            if inode.is_at(version) {
                inode.set_data_place(DataPlace::Here);
            }
            return Ok(None);
        }
        if !self.metacopy {
            return Err(Error::NotFollowed { file: location(), what: "a metacopy", option });
        }
        let layer = match &place.real {
            Real::Lower(dir) => usize::from(dir.layer.0),
            _ => 0,
        };
        inode.note_data_below();
        self.search_data(place.parent.as_ref(), &place.name, layer, marks.redirect).map(Some)
    }

    /// Puts the blocks of the data below into the attributes of a metacopy.
    pub(super) fn count_blocks(&self, inode: &Arc<Inode>, attr: &mut Attr) -> Result<()> {
        if !self.metacopy || attr.kind != FileKind::Regular || attr.blocks.saturating_mul(512) >= attr.size {
            return Ok(());
        }
        match self.data_below(inode) {
            Ok(Some((dir, name))) => attr.blocks = self.lowers.stat(&dir, &name)?.blocks,
            Ok(None) => {}
            // Reading answers the same error; until then the metadata can be seen.
            Err(error) => log::warn!("{error}"),
        }
        Ok(())
    }

    /// Keeps the data of a metacopy from being filled in until the guard is dropped: that gives the file back the mode,
    /// times and capabilities that it had before.
    pub(super) fn hold_metacopy<'a>(&self, inode: &'a Inode) -> Option<MutexGuard<'a, ()>> {
        let may_be = self.metacopy && inode.kind == FileKind::Regular && inode.data_place() != DataPlace::Here;
        may_be.then(|| inode.lock_copy_up())
    }

    /// Copies the data of a metacopy, in place and whole, also where it is about to be cut: until the mark is removed, the
    /// data below is what is read, and between the two steps of a cut it would be neither the old file nor the new one.
    pub(super) fn fill_metacopy(&self, inode: &Arc<Inode>, data: Data) -> Result<()> {
        if inode.kind != FileKind::Regular || data == Data::Metadata || inode.data_place() == DataPlace::Here {
            return Ok(());
        }
        let Some((dir, name)) = self.data_below(inode)? else { return Ok(()) };
        let _copying = inode.lock_copy_up();
        if inode.data_place() == DataPlace::Here {
            return Ok(());
        }
        let begun = Instant::now();
        let filled = self.fill_from(inode, &dir, &name);
        self.copied.took(begun);
        filled
    }

    /// Copies as [`Union::fill_metacopy`] from `name` in `dir`; the caller has the lock of copying up.
    fn fill_from(&self, inode: &Arc<Inode>, dir: &Arc<LayerDir>, name: &OsStr) -> Result<()> {
        let upper = self.writable()?;
        let target = self.open_object(inode, OFlags::RDWR)?;
        let failed = |call: &'static str| move |e: Errno| upper.layer.error(call, name, e);
        // Who was looked at before the lock was taken may have been filled, and written, since.
        let marks = self.namespace.marks(target.as_fd(), OsStr::new("")).map_err(failed("listxattr"))?;
        if !marks.metacopy {
            inode.set_data_place(DataPlace::Here);
            return Ok(());
        }
        let attr = self.lowers.stat(dir, name)?;
        let wanted = attr.size.min(attr.blocks.saturating_mul(512));
        let room = self.quota.as_ref().map(|quota| quota.reserve(quota.whole(wanted), 0));
        let _room = room.transpose().map_err(Error::Refused)?;
        let kept = self.stat(inode)?;
        let source = self.open_below(dir, name)?;
        // What it is copied to has the whole length already.
        let known = Known { whole: false, ..Known::of(&attr, self.clones_of(dir)) };
        // The caller has written nothing yet, which would take away what gives rights.
        let copied = self.keeping_capabilities(inode, target.as_fd(), || {
            copy_data::copy(source.as_fd(), target.as_fd(), attr.size, known).map_err(failed("copy"))
        });
        // Also where that has failed: the file stays as it was.
        let restored = if kept.mode & 0o6000 != 0 && !upper.keeps_modes_apart() {
            Place::file(target.as_fd()).chmod(kept.mode & 0o7777).map_err(failed("fchmod"))
        } else {
            Ok(())
        };
        if let Err(errno) = Place::file(target.as_fd()).set_times(kept.atime, kept.mtime) {
            // It is about to be written, by which it gets another time.
            log::info!("{}", failed("futimens")(errno));
        }
        // Blocks that were copied are there, whatever has failed after them.
        self.charge(&[inode]);
        self.copied.data(copied?);
        restored?;
        upper.durability.wait_for(target.as_fd(), Holds::Data).map_err(|(call, e)| failed(call)(e))?;
        self.namespace.clear(target.as_fd(), OsStr::new(""), Mark::Metacopy).map_err(failed("removexattr"))?;
        inode.set_data_place(DataPlace::Here);
        // Whoever is opening the data at the moment opens it again.
        self.drop_place(Some(inode.relocate(|_| {})));
        self.files.switched(inode);
        Ok(())
    }

    /// Records where a metacopy goes on below, before it has a name that does not say so.
    ///
    /// `place` is the metacopy in upper, and the last two its parent and name until now.
    pub(super) fn lead_metacopy_below(
        &self,
        upper: &Upper,
        place: Place<'_>,
        inode: &Arc<Inode>,
        (parent, name): (&Arc<Inode>, &OsStr),
    ) -> Result<()> {
        if self.data_below(inode)?.is_none() {
            return Ok(());
        }
        let failed = |e: Errno| upper.layer.error("getxattr", name, e);
        let known = self.namespace.get(place.dir, place.name, Mark::Redirect).map_err(failed)?;
        let path = match known.as_deref().map(Redirect::parse) {
            Some(Ok(Redirect::Absolute(_))) => return Ok(()),
            Some(Ok(Redirect::Sibling(below))) => self.path_below(parent, &below)?,
            _ => self.path_below(parent, name)?,
        };
        upper.set_mark(place, Mark::Redirect, &Redirect::Absolute(path).to_bytes())
    }
}

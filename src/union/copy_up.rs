//! Copy-up: from a lower layer to upper, each step published whole.
//!
//! The climb goes from the topmost ancestor that is not in upper down to the inode. What is copied is made
//! in the workdir and appears under its name in one step; a failure on the way leaves the union as it was.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::fs::{AtFlags, OFlags, XattrFlags};
use rustix::io::Errno;

use super::copy_data::Known;
use super::index::Counts;
use super::inode::{DataPlace, Inode, Real};
use super::kept::Access;
use super::search::InUpper;
use super::short_name::ShortName;
use super::xattr::is_impossible;
use super::{Caller, SetAttr, SetTime, Union, copy_data, dir_of};
use crate::error::{Error, Result};
use crate::layer::attr::{Attr, FileKind};
use crate::layer::dir::LayerDir;
use crate::layer::durability::Holds;
use crate::layer::origin::Origin;
use crate::layer::overlay::{Mark, Namespace};
use crate::layer::permissions::Stat;
use crate::layer::publish::Publish;
use crate::layer::redirect::Redirect;
use crate::layer::upper::{New, Place, Upper};

/// How much of a regular file's data is copied up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Data {
    /// All.
    Copy,
    /// So many bytes: the file gets this length, as this caller has it cut or extended.
    Cut(u64, Caller),
    /// None where the mount allows metacopy, else all.
    Metadata,
}

/// What has been made and waits to be published.
enum Made {
    /// A file without a name.
    Nameless(OwnedFd),
    /// A thing in the workdir.
    Temporary(OsString),
}

/// A copy that waits to be published.
struct Copied {
    made: Made,
    /// What it says that it is a copy of.
    origin: Option<Origin>,
    /// Whether it has its data, so that it can be written through what it was made with.
    whole: bool,
}

/// The lower object that is copied.
struct Source {
    dir: Arc<LayerDir>,
    /// Empty for a directory, which is `dir` itself.
    name: ShortName,
    attr: Attr,
}

impl Union {
    /// Brings `inode` and all above it to upper. Errors: EROFS without one; ENOSPC and such leave everything as it was.
    pub(super) fn copy_up(&self, inode: &Arc<Inode>, data: Data) -> Result<()> {
        self.bring_up(inode, data).map(drop)
    }

    /// Brings `inode` to upper with the length `len`; returns false where it is there, and is yet to be given that.
    ///
    /// A copy is made with the length, and what else a change of it brings about, before it has its name: the file is the
    /// old one or the new one, whatever fails.
    pub(super) fn copy_up_cut(&self, inode: &Arc<Inode>, len: u64, caller: Caller) -> Result<bool> {
        self.bring_up(inode, Data::Cut(len, caller))
    }

    /// Brings `inode` to upper as [`Union::copy_up`]; returns whether its data is as `data` says by that.
    fn bring_up(&self, inode: &Arc<Inode>, data: Data) -> Result<bool> {
        if inode.is_upper() {
            return self.fill_metacopy(inode, data).map(|()| false);
        }
        self.writable()?;
        let mut climb = vec![inode.clone()];
        // What is unlinked goes nowhere, and so needs nothing above it.
        while let Some(place) = climb.last().map(|inode| inode.place().0).filter(|place| !place.unlinked) {
            match place.parent.filter(|parent| !parent.is_upper()) {
                Some(parent) => climb.push(parent),
                None => break,
            }
        }
        let mut done = false;
        for step in climb.iter().rev() {
            let wanted = if Arc::ptr_eq(step, inode) { data } else { Data::Copy };
            done = self.copy_up_one(step, wanted)?;
        }
        if done { Ok(true) } else { self.fill_metacopy(inode, data).map(|()| false) }
    }

    /// Brings the directory `inode` to upper, so that something can be made in it.
    pub(super) fn ensure_upper(&self, inode: &Arc<Inode>) -> Result<()> {
        if inode.is_upper() { Ok(()) } else { self.copy_up(inode, Data::Copy) }
    }

    /// Brings `inode`, whose parent is there, to upper; returns false where another request has.
    fn copy_up_one(&self, inode: &Arc<Inode>, data: Data) -> Result<bool> {
        let _copying = inode.lock_copy_up();
        let (place, _) = inode.place();
        // The lock may have been waited for meanwhile.
        let Real::Lower(dir) = place.real else { return Ok(false) };
        let begun = Instant::now();
        let copied = self.copy_object_up(inode, dir, place.name, data);
        self.copied.took(begun);
        copied.map(|()| true)
    }

    /// Brings what is `name` in the lower directory `dir` to upper as `inode`, whose copy-up the caller has locked.
    fn copy_object_up(&self, inode: &Arc<Inode>, dir: Arc<LayerDir>, name: ShortName, data: Data) -> Result<()> {
        let name: ShortName = if inode.dir().is_some() { OsStr::new("").into() } else { name };
        let attr = self.lowers.stat(&dir, &name)?;
        if attr.immutable {
            return Err(Error::Refused(Errno::PERM));
        }
        if attr.kind != inode.kind {
            return Err(Error::Refused(Errno::STALE));
        }
        let source = Source { dir, name, attr };
        let upper = self.writable()?;
        let room = self.quota.as_ref().map(|quota| {
            let data = match data {
                Data::Cut(len, _) => len.min(source.attr.size),
                Data::Metadata if self.metacopy => 0,
                _ => source.attr.size,
            };
            let data = data.min(source.attr.blocks.saturating_mul(512));
            // And what the xattrs and the directory may take.
            quota.reserve(quota.whole(data).saturating_add(quota.blocks(2)), 1)
        });
        let _room = room.transpose().map_err(Error::Refused)?;
        let copied = match inode.kind {
            FileKind::Regular => self.make_regular(upper, inode, &source, data)?,
            FileKind::Directory => self.make_other(upper, &source, New::Directory)?,
            FileKind::Symlink => {
                let target = self.lowers.with_fd(&source.dir, |fd| {
                    let layer = self.lowers.layer(&source.dir);
                    layer.read_link(fd, &source.name).map_err(|e| layer.error("readlinkat", &source.name, e))
                })?;
                self.make_other(upper, &source, New::Symlink(&target))?
            }
            kind => self.make_other(upper, &source, New::Node(kind, source.attr.rdev))?,
        };
        let published = self.publish_copy(upper, inode, &source, &copied).inspect(|()| self.copied.object());
        if let Made::Temporary(temporary) = &copied.made {
            // Gone already when it was moved; what was linked has its own name now.
            if published.is_err() || inode.kind != FileKind::Directory {
                upper.work.discard(temporary);
            }
        }
        published?;
        // While the room is reserved.
        match inode.place().0.parent {
            Some(parent) => self.charge(&[inode, &parent]),
            None => self.charge(&[inode]),
        }
        if let Copied { made: Made::Nameless(fd), whole: true, .. } = copied {
            // What comes next is written through it.
            self.keep_copy(inode, fd);
        }
        Ok(())
    }

    /// Keeps the descriptor that the data of `inode` was written through, unless somebody has changed what it leads to.
    fn keep_copy(&self, inode: &Arc<Inode>, fd: OwnedFd) {
        let (place, version) = inode.place();
        if place.real.is_upper() && !place.unlinked {
            self.files.keep_of(inode, version, Access::Write, &Arc::new(fd));
        }
    }

    /// Returns whether data of `dir` may be shared with upper's, as far as is known.
    pub(super) fn clones_of(&self, dir: &LayerDir) -> &AtomicBool {
        &self.lowers.layer(dir).clones
    }

    /// Makes a copy of a regular file, with its data as far as `data` says.
    fn make_regular(&self, upper: &Upper, inode: &Arc<Inode>, source: &Source, data: Data) -> Result<Copied> {
        let layer = self.lowers.layer(&source.dir);
        let metadata_alone = data == Data::Metadata && self.metacopy && source.attr.size > 0;
        let len = match data {
            Data::Cut(len, _) => len.min(source.attr.size),
            _ if metadata_alone => 0,
            _ => source.attr.size,
        };
        let fd = if len > 0 { Some(self.open_data(inode, Access::Read)?) } else { None };
        // The data of a metacopy is another file's.
        let own = fd.as_ref().filter(|_| inode.data_place() != DataPlace::Below);
        if let Some(fd) = own {
            let failed = |e| layer.error("statx", &source.name, e);
            let opened = layer.stat_file(fd.as_fd(), OsStr::new("")).map_err(failed)?;
            // What gives rights must not come to the contents of another file that has taken the name meanwhile.
            if (opened.dev, opened.ino) != (source.attr.dev, source.attr.ino) {
                return Err(failed(Errno::STALE));
            }
        }
        let fill = |target: BorrowedFd<'_>| -> Result<Option<Origin>> {
            if let Some(fd) = &fd {
                let known = Known::of(&source.attr, self.clones_of(&source.dir));
                let copied = copy_data::copy(fd.as_fd(), target, len, known);
                self.copied.data(copied.map_err(|e| layer.error("copy", &source.name, e))?);
            }
            if metadata_alone {
                let failed = |e| upper.layer.error("ftruncate", &source.name, e);
                rustix::fs::ftruncate(target, source.attr.size).map_err(failed)?;
                // It has the name of what it is a copy of, so that needs no redirect, whatever that one has.
                upper.set_mark(Place::file(target), Mark::Metacopy, b"")?;
            }
            let origin = self.copy_metadata(upper, source, own.map(AsFd::as_fd), Place::file(target))?;
            if let Data::Cut(len, caller) = data {
                self.drop_privileges_of(caller, target)?;
                rustix::fs::ftruncate(target, len).map_err(|e| upper.layer.error("ftruncate", &source.name, e))?;
                // Also where it has that length already.
                self.set_times(target, SetAttr { mtime: Some(SetTime::Now), ..SetAttr::default() })?;
            }
            // Of an empty file there is nothing that could be missing.
            let holds = if source.attr.size > 0 { Holds::Data } else { Holds::Metadata };
            let waited = upper.durability.wait_for(target, holds);
            waited.map_err(|(call, e)| upper.layer.error(call, &source.name, e))?;
            Ok(origin)
        };
        if let Some(target) = upper.tmpfile()? {
            let origin = fill(target.as_fd())?;
            let whole = data != Data::Metadata;
            return Ok(Copied { made: Made::Nameless(target), origin, whole });
        }
        upper.work.with_temporary(|temporary| {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            let target = rustix::fs::openat(upper.work.fd(), temporary, flags, mode);
            let origin = fill(target.map_err(|e| upper.layer.error("make in workdir", temporary, e))?.as_fd())?;
            Ok(Copied { made: Made::Temporary(temporary.to_owned()), origin, whole: false })
        })
    }

    /// Makes a copy of anything that has no data.
    fn make_other(&self, upper: &Upper, source: &Source, new: New<'_>) -> Result<Copied> {
        upper.work.with_temporary(|temporary| {
            upper.make(temporary, new)?;
            // Opened as long as whoever has made it may read it.
            let to_sync = if upper.durability.is_strict() && matches!(new, New::Directory) {
                let opened = upper.layer.open(upper.work.fd(), temporary, OFlags::RDONLY | OFlags::DIRECTORY);
                Some(opened.map_err(|e| upper.layer.error("openat", temporary, e))?)
            } else {
                None
            };
            let origin = self.copy_metadata(upper, source, None, Place::at(upper.work.fd(), temporary))?;
            if let Some(dir) = to_sync {
                let waited = upper.durability.wait_for(dir.as_fd(), Holds::Metadata);
                waited.map_err(|(call, e)| upper.layer.error(call, temporary, e))?;
            }
            Ok(Copied { made: Made::Temporary(temporary.to_owned()), origin, whole: false })
        })
    }

    /// Gives `target` the owner, xattrs, mode and times of the source, and the source as its origin, which is returned.
    ///
    /// `open` is the source, where its data is copied, too.
    fn copy_metadata(
        &self,
        upper: &Upper,
        source: &Source,
        open: Option<BorrowedFd<'_>>,
        target: Place<'_>,
    ) -> Result<Option<Origin>> {
        let failed = |call: &'static str| move |e: Errno| upper.layer.error(call, &source.name, e);
        let attr = &source.attr;
        upper.give(target, attr.uid, attr.gid).map_err(failed("chown"))?;
        match open {
            Some(fd) => self.copy_xattrs(upper, source, (fd, OsStr::new("")), target)?,
            None => self.lowers.with_fd(&source.dir, |dir| {
                let from = (dir, &*source.name);
                self.copy_xattrs(upper, source, from, target)
            })?,
        }
        let (mut known, mut held) = (None, true);
        if self.keeps_number(upper, source) {
            let origin = self.origin_of(&source.dir, &source.name)?;
            let encoded = origin.as_ref().and_then(Origin::encode);
            // Empty where the lower has no handles: then the file is only known to have come from below.
            held = upper.set_origin(target, encoded.as_deref().unwrap_or_default())?;
            known = origin.filter(|_| held && encoded.is_some());
        }
        if attr.nlink > 1 && self.keeps_links(&source.dir, attr.kind) {
            // By its origin each of its names is known for one of the entry in the index.
            if !held {
                return Err(failed("setxattr")(Errno::NOSPC));
            }
            // Relative to the lower's count until the first name in upper is made.
            upper.set_mark(target, Mark::Nlink, b"L+0")?;
        }
        // Explicit, so that no umask plays a part.
        let Attr { uid, gid, kind, rdev, .. } = *attr;
        let stat = Stat { uid, gid, mode: self.movable_mode(upper, attr), kind, rdev };
        upper.settle(target, stat).map_err(failed("chmod"))?;
        target.set_times(attr.atime, attr.mtime).map_err(failed("utimensat"))?;
        Ok(known)
    }

    /// Returns whether the copy will say by its origin what its number is. As in the kernel's overlayfs, one of several
    /// names that do not stay linked is a file of its own; and some files, and some file systems, cannot hold the xattr.
    fn keeps_number(&self, upper: &Upper, source: &Source) -> bool {
        let kind = source.attr.kind;
        let holds = self.namespace == Namespace::Trusted || matches!(kind, FileKind::Regular | FileKind::Directory);
        let linked = source.attr.nlink < 2 || kind == FileKind::Directory || self.keeps_links(&source.dir, kind);
        upper.features.xattrs && holds && linked && self.lowers.layer(&source.dir).handles
    }

    /// Returns the mode under which a copy can be moved to its place: to move a directory, a plain user must be allowed
    /// to write it.
    fn movable_mode(&self, upper: &Upper, attr: &Attr) -> u32 {
        let bound = attr.is_dir() && !self.overrides_modes && !upper.keeps_modes_apart();
        if bound { attr.mode | 0o200 } else { attr.mode }
    }

    /// Copies the xattrs and ACLs of the source, which is `from`, the overlay's own aside.
    fn copy_xattrs(
        &self,
        upper: &Upper,
        source: &Source,
        from: (BorrowedFd<'_>, &OsStr),
        target: Place<'_>,
    ) -> Result<()> {
        let layer = self.lowers.layer(&source.dir);
        let names = layer.xattrs(from.0, from.1).map_err(|e| layer.error("listxattr", &source.name, e))?;
        for name in names.iter().filter(|name| !is_impossible(source.attr.kind, name)) {
            let value = match layer.xattr(from.0, from.1, name) {
                Err(Errno::NODATA | Errno::OPNOTSUPP) => continue,
                read => read.map_err(|e| layer.error("getxattr", &source.name, e))?,
            };
            match upper.set_xattr(target, name, &value, XattrFlags::empty()) {
                Ok(()) => {}
                // A security module sets its own labels; a plain user, or another file system, cannot keep them.
                Err(Errno::PERM) if is_label(name) => {}
                // As the kernel's overlayfs: only what decides about access must not be lost.
                Err(Errno::OPNOTSUPP) if is_label(name) || !decides_access(name) => {}
                Err(errno) => return Err(upper.layer.error("setxattr", name, errno)),
            }
        }
        Ok(())
    }

    /// Gives what was made its name, and switches the inode to it.
    fn publish_copy(&self, upper: &Upper, inode: &Arc<Inode>, source: &Source, copied: &Copied) -> Result<()> {
        let made = &copied.made;
        let (place, _) = inode.place();
        let parent = place.parent.ok_or(Error::Refused(Errno::STALE))?;
        let names = dir_of(&parent)?.lock.write();
        let (place, _) = inode.place();
        if place.unlinked {
            return self.keep_unlinked(upper, inode, made);
        }
        let dir = self.upper_dir(&parent)?;
        let before = upper.stat(dir.as_fd(), OsStr::new(""))?;
        // Before it has its name: after that nothing may fail.
        let upper_ino = match made {
            Made::Nameless(fd) => upper.stat(fd.as_fd(), OsStr::new(""))?.ino,
            Made::Temporary(name) => upper.stat(upper.work.fd(), name)?.ino,
        };
        self.mark_impure(upper, &parent)?;
        let entry = self.index_entry(&source.dir, &source.name, &source.attr)?;
        let mut counts = if entry.is_some() { Some(self.settle_counts()?) } else { None };
        if let (Some(counts), Some(entry)) = (&mut counts, &entry) {
            **counts = Counts::Open;
            // Who finds the entry by another name from now on finds this inode.
            inode.set_upper_ino(upper_ino);
            self.publish_in_index(upper, entry, made).inspect_err(|_| inode.set_upper_ino(0))?;
        }
        let linked = upper.in_writable(dir.as_fd(), || match (&entry, made) {
            (Some(entry), _) => match upper.work.index() {
                Some(index) => rustix::fs::linkat(index, entry, dir.as_fd(), &*place.name, AtFlags::empty()),
                None => Err(Errno::STALE),
            },
            (None, Made::Nameless(fd)) => upper.link_file(fd.as_fd(), dir.as_fd(), &place.name, Publish::New),
            (None, Made::Temporary(name)) => upper.publish(name, dir.as_fd(), &place.name, Publish::New),
        });
        if let Err(errno) = linked {
            if let Some(entry) = &entry {
                self.withdraw_from_index(upper, inode, entry);
            }
            return Err(upper.layer.error("publish", &place.name, errno));
        }
        match entry {
            Some(entry) => {
                /// Its entry in the index, and its name.
                const LINKS: i32 = 2;
                // Both counts grow and shrink together from now on.
                let _changing = inode.moving();
                inode.set_nlink_delta((source.attr.nlink as i32).saturating_sub(LINKS));
                self.switch(inode, Real::Index(Arc::new(entry)), upper_ino);
            }
            None => {
                match inode.dir() {
                    None => self.keep_known(inode, copied.origin.as_ref(), upper_ino),
                    // Nothing is in it yet.
                    Some(dir) => dir.dotwh.record(false),
                }
                self.switch(inode, Real::Upper, upper_ino);
            }
        }
        dir_of(&parent)?.changed();
        // The copy is a part of the union; what is left changes nothing that could be undone.
        match self.tidy_up(upper, inode, source, (dir.as_fd(), &place.name), &before) {
            Ok(()) => {
                if let Some(counts) = &mut counts {
                    **counts = Counts::Settled;
                }
            }
            Err(error) => log::warn!("{error}"),
        }
        drop((counts, names));
        Ok(())
    }

    /// Makes sure that `inode` is found by the object that it has in upper now as long as it is known: by its origin, or,
    /// where that leads elsewhere, by upper's own number.
    fn keep_known(&self, inode: &Arc<Inode>, origin: Option<&Origin>, upper_ino: u64) {
        let found = origin.and_then(|origin| self.number_of_origin(origin));
        let found = found.unwrap_or_else(|| self.numbers.number(self.upper_dev, upper_ino));
        if found != inode.ino.0 {
            self.table.alias(found, inode);
        }
    }

    /// Does what follows from a copy that has its name: the count of an indexed file, the last mode of a directory, and
    /// the times of the directory that it is in.
    fn tidy_up(
        &self,
        upper: &Upper,
        inode: &Inode,
        source: &Source,
        (dir, name): (BorrowedFd<'_>, &OsStr),
        before: &Attr,
    ) -> Result<()> {
        if let Some(delta) = inode.nlink_delta() {
            self.write_nlink(upper, dir, name, delta)?;
        }
        if self.movable_mode(upper, &source.attr) != source.attr.mode {
            let done = Place::at(dir, name).chmod(source.attr.mode);
            done.map_err(|e| upper.layer.error("chmod", name, e))?;
        }
        let restored = Place::at(dir, OsStr::new(".")).set_times(before.atime, before.mtime);
        restored.map_err(|e| upper.layer.error("utimensat", name, e))
    }

    /// Puts the copy of a file with several names into the index as `entry`.
    fn publish_in_index(&self, upper: &Upper, entry: &OsStr, made: &Made) -> Result<()> {
        let index = upper.work.index().ok_or(Error::Refused(Errno::STALE))?;
        let publish = || match made {
            Made::Nameless(fd) => upper.link_file(fd.as_fd(), index, entry, Publish::New),
            Made::Temporary(name) => upper.publish(name, index, entry, Publish::New),
        };
        self.note_index();
        let published = match publish() {
            // Left by a mount that ended between two steps, with no name in upper: it never was a part of the union.
            Err(Errno::EXIST) if upper.stat(index, entry)?.nlink == 1 => {
                let removed = rustix::fs::unlinkat(index, entry, AtFlags::empty());
                removed.map_err(|e| upper.layer.error("unlinkat", entry, e))?;
                publish()
            }
            done => done,
        };
        published.map_err(|e| upper.layer.error("publish in index", entry, e))
    }

    /// Removes the entry of a copy that did not get its name: its other names lead to the lower file, as this one does.
    fn withdraw_from_index(&self, upper: &Upper, inode: &Inode, entry: &OsStr) {
        let removed = upper.work.index().map_or(Ok(()), |index| rustix::fs::unlinkat(index, entry, AtFlags::empty()));
        match removed {
            Ok(()) => inode.set_upper_ino(0),
            Err(errno) => log::error!("{}", upper.layer.error("unlinkat", entry, errno)),
        }
    }

    /// Keeps the copy of a file whose name was removed while it was copied, for those who have it open.
    fn keep_unlinked(&self, upper: &Upper, inode: &Arc<Inode>, made: &Made) -> Result<()> {
        let fd = match made {
            Made::Nameless(fd) => fd.try_clone().map_err(|_| Error::Refused(Errno::MFILE))?,
            Made::Temporary(name) => {
                let opened = upper.layer.open(upper.work.fd(), name, OFlags::PATH);
                opened.map_err(|e| upper.layer.error("openat", name, e))?
            }
        };
        if let Made::Temporary(name) = made {
            upper.work.discard(name);
        }
        let ino = upper.stat(fd.as_fd(), OsStr::new(""))?.ino;
        if let Some(quota) = &self.quota {
            quota.adopt(fd.as_fd());
        }
        self.switch(inode, Real::Detached(Arc::new(fd)), ino);
        Ok(())
    }

    /// Makes upper's object the inode's; descriptors of the lower one are not used any more.
    fn switch(&self, inode: &Arc<Inode>, real: Real, upper_ino: u64) {
        inode.set_upper_ino(upper_ino);
        self.drop_place(Some(inode.relocate(|place| place.real = real)));
        inode.set_data_place(DataPlace::Unknown);
        self.files.switched(inode);
    }

    /// Records in upper's part of `parent` that entries of it have an origin.
    pub(super) fn mark_impure(&self, upper: &Upper, parent: &Arc<Inode>) -> Result<()> {
        let dir = dir_of(parent)?;
        if !upper.features.xattrs || dir.impure.load(Ordering::Acquire) {
            return Ok(());
        }
        let fd = self.upper_dir(parent)?;
        upper.set_mark(Place::at(fd.as_fd(), OsStr::new("")), Mark::Impure, b"y")?;
        dir.impure.store(true, Ordering::Release);
        Ok(())
    }

    /// Copies up a hard link of an indexed file under the name that an operation is about to change.
    pub(super) fn copy_up_name(&self, inode: &Arc<Inode>, parent: &Arc<Inode>, name: &OsStr, data: Data) -> Result<()> {
        self.ensure_upper(parent)?;
        self.copy_up(inode, data)?;
        if inode.nlink_delta().is_some() {
            // Two names in two directories change one count.
            let _copying = inode.lock_copy_up();
            let _names = dir_of(parent)?.lock.write();
            if matches!(self.in_upper(parent, name)?, InUpper::Nothing) {
                self.link_alias(inode, parent, name)?;
            }
        }
        Ok(())
    }

    /// Returns the path that leads to `name` of the directory `parent` in the layers below upper: the names of its
    /// ancestors, or where upper says that they go on.
    pub(super) fn path_below(&self, parent: &Arc<Inode>, name: &OsStr) -> Result<Vec<OsString>> {
        let upper = self.writable()?;
        let mut path = vec![name.to_owned()];
        let mut at = parent.clone();
        loop {
            let (place, _) = at.place();
            let Some(above) = place.parent else { break };
            // What is not in upper, as where an indexed file has another name, has its name below.
            let redirect = if place.real.is_upper() {
                let fd = self.upper_dir(&at)?;
                let failed = |e: Errno| upper.layer.error("getxattr", &place.name, e);
                self.namespace.get(fd.as_fd(), OsStr::new(""), Mark::Redirect).map_err(failed)?
            } else {
                None
            };
            match redirect.as_deref().map(Redirect::parse) {
                Some(Ok(Redirect::Absolute(start))) => {
                    path.extend(start.into_iter().rev());
                    break;
                }
                Some(Ok(Redirect::Sibling(below))) => path.push(below),
                _ => path.push(place.name.to_os_string()),
            }
            at = above;
        }
        path.reverse();
        Ok(path)
    }
}

fn decides_access(name: &OsStr) -> bool {
    [&b"security."[..], b"system.posix_acl_"].iter().any(|prefix| name.as_bytes().starts_with(prefix))
}

fn is_label(name: &OsStr) -> bool {
    name == "security.selinux" || name == "security.SMACK64" || name == "security.ima" || name == "security.evm"
}

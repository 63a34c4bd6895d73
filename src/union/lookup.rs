//! Lookup: from a name to the inode that the caller will refer to.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::inode::{Dir, Ino, Inode, NodeId, Parts, Place, Real};
use super::search::{Hit, Top};
use super::table::Interned;
use super::{Union, dir_of};
use crate::error::{Error, Result};
use crate::layer::attr::{Attr, FileKind};
use crate::layer::name::Name;
use crate::layer::origin::Origin;
use crate::layer::overlay::{Mark, Marks};
use crate::sys::fhandle;

/// An inode that was looked up, and its attributes.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// The number to refer to it by, until it is forgotten.
    pub id: NodeId,
    /// Its attributes.
    pub attr: Attr,
    /// Whether the name may be used again without a lookup, as far as only this union changes the layers.
    pub settled: bool,
    /// Whether the attributes may be used again without asking, as [`Union::keeps_attributes`] says.
    pub keeps_attributes: bool,
}

/// What a name leads to, before it is an inode.
pub(super) struct Identity {
    /// What stat(2) shows, unless another file has it.
    number: u64,
    /// Whether there is a lower object behind it.
    from_below: bool,
    /// The number in upper's file system; 0 when it is not there.
    upper_ino: u64,
    /// The link count's distance, for an indexed file.
    nlink_delta: Option<i32>,
    real: Real,
}

/// Whether the caller will refer to an inode, and so forget it later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Count {
    /// It will.
    Lookup,
    /// The operation needs the inode for itself alone.
    Transient,
}

impl Union {
    /// Looks `name` up in `parent`. Errors: ENOENT, ENOTDIR, ESTALE, and EIO for a corrupt layer.
    pub fn lookup(&self, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        let parent = self.directory(parent)?;
        let _names = dir_of(&parent)?.lock.read();
        self.find(&parent, name)?.ok_or(Error::Refused(Errno::NOENT))
    }

    /// Looks up each component of `path` from the root, keeping only the last; symbolic links are not followed.
    pub fn lookup_path(&self, path: &std::path::Path) -> Result<Entry> {
        let attr = self.getattr(NodeId::ROOT)?;
        let mut entry = Entry { id: NodeId::ROOT, attr, settled: true, keeps_attributes: true };
        for part in path.components() {
            let std::path::Component::Normal(name) = part else { continue };
            let next = self.lookup(entry.id, Name::new(name)?);
            if entry.id != NodeId::ROOT {
                self.forget(entry.id, 1);
            }
            entry = next?;
        }
        Ok(entry)
    }

    /// Returns `inode`, which has `attr`, as what a lookup that was counted on `id` has found.
    pub(super) fn entry(&self, id: NodeId, inode: &Inode, attr: Attr) -> Entry {
        let settled = inode.has_settled_links(attr.nlink);
        Entry { id, attr: self.show(attr), settled, keeps_attributes: inode.keeps_attributes() }
    }

    /// Gives up the space of inodes that were forgotten.
    pub fn shrink(&self) {
        self.table.shrink();
    }

    /// Takes `lookups` from the count of `id`; at zero the number may be given to another file.
    pub fn forget(&self, id: NodeId, lookups: u64) {
        self.table.forget(id, lookups, |inode| self.release(inode));
    }

    /// Looks `name` up in `parent`, whose lock the caller holds.
    pub(super) fn find(&self, parent: &Arc<Inode>, name: Name<'_>) -> Result<Option<Entry>> {
        let Some(hit) = self.hit(parent, name)? else { return Ok(None) };
        Ok(Some(self.entry_of(parent, name, &hit)?))
    }

    /// Returns the inode of what was found under `name` in `parent`, whose lock the caller holds.
    pub(super) fn entry_of(&self, parent: &Arc<Inode>, name: Name<'_>, hit: &Hit) -> Result<Entry> {
        let held = self.hold(parent, &name, hit)?;
        let mut attr = hit.attr;
        if held.nlink_delta().is_some() {
            // Another name of this lower file may have been copied up, and its object is the one in the index; and the
            // count of links must be of one time with what it differs by.
            attr = self.stat(&held)?;
        } else {
            self.count_blocks(&held, &mut attr)?;
            attr = held.finish(attr);
        }
        Ok(held.keep(attr))
    }

    /// Returns the number and kind that `name` in `parent`, whose lock the caller holds, shows.
    pub(super) fn number_of(&self, parent: &Arc<Inode>, name: Name<'_>) -> Result<Option<(u64, FileKind)>> {
        let Some(hit) = self.hit(parent, name)? else { return Ok(None) };
        Ok(Some((self.peek(parent, &name, &hit)?.ino.0, hit.attr.kind)))
    }

    fn hit(&self, parent: &Arc<Inode>, name: Name<'_>) -> Result<Option<Hit>> {
        if name.is_reserved() || parent.is_unlinked() { Ok(None) } else { self.search(parent, &name) }
    }

    /// Returns the inode of what was found under `name` in `parent`, made now unless it is known.
    fn intern(
        &self,
        parent: &Arc<Inode>,
        name: &OsStr,
        hit: &Hit,
        identity: Identity,
        count: Count,
    ) -> Result<(Arc<Inode>, NodeId)> {
        let mut number = identity.number;
        for attempt in 0.. {
            let make = || self.make_inode(parent, name, hit, &identity, number);
            let same = |known: &Inode| is_same(known, parent, name, hit, &identity);
            let interned = match count {
                Count::Lookup => self.table.intern(number, 1, same, make),
                Count::Transient => match self.table.get(NodeId(number)) {
                    Some(known) if same(&known) => Interned::Here(known, NodeId(number)),
                    Some(_) => Interned::Taken,
                    None => Interned::Here(make(), NodeId(number)),
                },
            };
            match interned {
                Interned::Here(inode, id) => return Ok((self.anchor(inode, parent, name, hit), id)),
                Interned::Taken => number = self.numbers.spare(hit.attr.dev, hit.attr.ino, attempt),
            }
        }
        Err(Error::Refused(Errno::OVERFLOW))
    }

    /// Returns the inode of what was found, in the table until the guard is dropped: for what is done to it without the
    /// lock of its directory, so that nobody makes a second object of the file meanwhile.
    pub(super) fn hold(&self, parent: &Arc<Inode>, name: &OsStr, hit: &Hit) -> Result<Held<'_>> {
        let identity = self.identify(parent, name, hit)?;
        let (inode, id) = self.intern(parent, name, hit, identity, Count::Lookup)?;
        Ok(Held { union: self, inode, id, kept: false })
    }

    /// Returns the inode of what was just made in upper, as [`Union::hold`] does: nothing below is behind it.
    pub(super) fn hold_new(&self, parent: &Arc<Inode>, name: &OsStr, hit: &Hit) -> Result<Held<'_>> {
        let number = self.numbers.number(hit.attr.dev, hit.attr.ino);
        let identity =
            Identity { number, from_below: false, upper_ino: hit.attr.ino, nlink_delta: None, real: Real::Upper };
        let (inode, id) = self.intern(parent, name, hit, identity, Count::Lookup)?;
        Ok(Held { union: self, inode, id, kept: false })
    }

    /// Returns the inode of what was found, for a call that needs it for itself alone and has its directory locked.
    pub(super) fn peek(&self, parent: &Arc<Inode>, name: &OsStr, hit: &Hit) -> Result<Arc<Inode>> {
        let identity = self.identify(parent, name, hit)?;
        Ok(self.intern(parent, name, hit, identity, Count::Transient)?.0)
    }

    /// Returns the inode that has `number`, by whatever id it goes.
    pub(super) fn known(&self, number: u64) -> Option<Arc<Inode>> {
        self.table.get(NodeId(number)).filter(|inode| inode.ino.0 == number)
    }

    /// Gives an inode whose name was removed the name that it was found under now.
    fn anchor(&self, inode: Arc<Inode>, parent: &Arc<Inode>, name: &OsStr, hit: &Hit) -> Arc<Inode> {
        if matches!(hit.top, Top::Upper) && !hit.attr.is_dir() {
            self.drop_place(inode.relocate_if_unlinked(parent, name));
            if hit.attr.nlink > 1 {
                inode.note_name(parent, name);
            }
        }
        inode
    }

    /// Works out number and object of what was found.
    fn identify(&self, parent: &Arc<Inode>, name: &OsStr, hit: &Hit) -> Result<Identity> {
        let own = self.numbers.number(hit.attr.dev, hit.attr.ino);
        if hit.attr.is_dir() {
            // As in the kernel's overlayfs, a merged directory has the number of its topmost lower part.
            let origin = hit.lower.first().map(|dir| (dir.dev, dir.ino));
            let number = origin.map_or(own, |(dev, ino)| self.numbers.number(dev, ino));
            let (real, upper_ino) = match &hit.top {
                Top::Upper => (Real::Upper, hit.attr.ino),
                Top::Lower(dir) => (Real::Lower(dir.clone()), 0),
            };
            return Ok(Identity { number, from_below: origin.is_some(), upper_ino, nlink_delta: None, real });
        }
        match &hit.top {
            Top::Upper => self.identify_upper(parent, name, hit, own),
            Top::Lower(dir) => {
                let lower = |number| Identity {
                    number,
                    from_below: true,
                    upper_ino: 0,
                    nlink_delta: None,
                    real: Real::Lower(dir.clone()),
                };
                if hit.attr.nlink < 2 {
                    return Ok(lower(own));
                }
                if !self.keeps_links(dir, hit.attr.kind) {
                    return Ok(lower(self.numbers.of_name(hit.attr.dev, hit.attr.ino, parent.ino.0, name)));
                }
                Ok(self.identify_indexed(dir, name, &hit.attr, own)?.unwrap_or_else(|| lower(own)))
            }
        }
    }

    /// Works out the identity of a file in upper: its number is that of the lower file it was copied up from.
    fn identify_upper(&self, parent: &Arc<Inode>, name: &OsStr, hit: &Hit, own: u64) -> Result<Identity> {
        let mut identity =
            Identity { number: own, from_below: false, upper_ino: hit.attr.ino, nlink_delta: None, real: Real::Upper };
        let dir = dir_of(parent)?;
        // Only a file of a merged directory, or of one that says so, was copied up or moved here.
        if dir.lower.is_empty() && !dir.impure.load(Ordering::Acquire) && hit.attr.nlink < 2 {
            return Ok(identity);
        }
        let upper = self.writable()?;
        let fd = self.upper_dir(parent)?;
        let failed = |e: Errno| upper.layer.error("getxattr", name, e);
        let marks = self.namespace.marks(fd.as_fd(), name).map_err(failed)?;
        if !marks.origin {
            return Ok(identity);
        }
        let value = self.namespace.get(fd.as_fd(), name, Mark::Origin).map_err(failed)?;
        let Some(origin) = value.as_deref().and_then(Origin::decode) else { return Ok(identity) };
        if let Some(number) = self.number_of_origin(&origin) {
            identity.number = number;
            identity.from_below = true;
        }
        let entry = upper.work.index().zip(origin.index_name().filter(|_| marks.nlink));
        if let Some((index, entry)) = entry
            // Without its entry, as in a workdir that was emptied, it is a file like any other.
            && upper.layer.stat(index, &entry).is_ok_and(|indexed| indexed.ino == hit.attr.ino)
        {
            identity.nlink_delta = self.read_nlink(fd.as_fd(), name, &hit.attr, &marks, None)?;
            identity.real = Real::Index(Arc::new(entry.as_os_str().to_owned()));
        }
        Ok(identity)
    }

    /// Returns the number that a file has which says that it was copied from `origin`.
    pub(super) fn number_of_origin(&self, origin: &Origin) -> Option<u64> {
        Some(self.numbers.number(self.numbers.device(&origin.uuid)?, origin.inode_number()?))
    }

    /// Works out the identity of a lower hard link, which has the attributes `lower` and the number `own`, that was copied up
    /// under another name.
    fn identify_indexed(
        &self,
        dir: &Arc<crate::layer::dir::LayerDir>,
        name: &OsStr,
        lower: &Attr,
        own: u64,
    ) -> Result<Option<Identity>> {
        if !self.index_used.load(Ordering::Acquire) {
            return Ok(None);
        }
        let Some(upper) = &self.upper else { return Ok(None) };
        let Some(index) = upper.work.index() else { return Ok(None) };
        let Some(origin) = self.origin_of(dir, name)? else { return Ok(None) };
        // Perhaps it was indexed by a mount that did not know the uuid.
        let unknown = origin.uuid != Origin::NO_UUID && self.numbers.device(&Origin::NO_UUID) == Some(dir.dev);
        let unknown = unknown.then(|| Origin { uuid: Origin::NO_UUID, ..origin.clone() });
        for entry in [Some(origin), unknown].into_iter().flatten().filter_map(|origin| origin.index_name()) {
            let attr = match upper.layer.stat(index, &entry) {
                Ok(attr) => attr,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(upper.layer.error("statx", &entry, errno)),
            };
            // What only has the name was put there by somebody else, and leads who knows where.
            if attr.kind != lower.kind || !self.is_of_entry(index, &entry)? {
                log::warn!("index:{entry:?}: is no copy of the lower file that it is named for, and is left aside");
                continue;
            }
            let marks = Marks { nlink: true, ..Marks::default() };
            let nlink_delta = Some(self.read_nlink(index, &entry, &attr, &marks, Some(lower.nlink))?.unwrap_or(0));
            let real = Real::Index(Arc::new(entry.as_os_str().to_owned()));
            return Ok(Some(Identity { number: own, from_below: true, upper_ino: attr.ino, nlink_delta, real }));
        }
        Ok(None)
    }

    /// Returns the handle of a lower file; `None` where its file system has none.
    pub(super) fn origin_of(&self, dir: &Arc<crate::layer::dir::LayerDir>, name: &OsStr) -> Result<Option<Origin>> {
        let layer = self.lowers.layer(dir);
        self.lowers.with_fd(dir, |fd| match fhandle::name_to_handle(fd, name) {
            Ok(handle) => Ok(Some(Origin { uuid: layer.uuid, handle })),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::OVERFLOW) => Ok(None),
            Err(errno) => Err(layer.error("name_to_handle_at", name, errno)),
        })
    }

    fn make_inode(&self, parent: &Arc<Inode>, name: &OsStr, hit: &Hit, identity: &Identity, number: u64) -> Arc<Inode> {
        let place = Place {
            parent: Some(parent.clone()),
            name: name.into(),
            real: identity.real.clone(),
            unlinked: false,
            resident: false,
        };
        let dir = hit
            .attr
            .is_dir()
            .then(|| Dir::new(hit.lower.iter().cloned().collect(), hit.marks.xwhiteouts, hit.marks.impure));
        Inode::new(
            NodeId(number),
            Parts {
                ino: Ino(number),
                kind: hit.attr.kind,
                place,
                from_below: identity.from_below,
                upper_ino: identity.upper_ino,
                nlink_delta: identity.nlink_delta,
                dir,
            },
        )
    }
}

/// An inode that an operation has looked up for itself.
pub(super) struct Held<'a> {
    union: &'a Union,
    inode: Arc<Inode>,
    /// The id that the lookup is counted on: a file that parts meanwhile goes by another.
    id: NodeId,
    /// Whether the lookup is the caller's by now.
    kept: bool,
}

impl Held<'_> {
    /// Leaves the lookup to the caller of the operation.
    pub(super) fn keep(mut self, attr: Attr) -> Entry {
        self.kept = true;
        self.union.entry(self.id, &self.inode, attr)
    }
}

impl std::ops::Deref for Held<'_> {
    type Target = Arc<Inode>;

    fn deref(&self) -> &Arc<Inode> {
        &self.inode
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.union.forget(self.id, 1);
        }
    }
}

/// Returns whether the inode that has the number is the file that was found.
fn is_same(known: &Inode, parent: &Arc<Inode>, name: &OsStr, hit: &Hit, identity: &Identity) -> bool {
    if known.kind != hit.attr.kind {
        return false;
    }
    if known.is_named(parent, name) {
        // Perhaps it was copied up between the search and now.
        return known.upper_ino() == identity.upper_ino || identity.upper_ino == 0 || known.upper_ino() == 0;
    }
    // Only a file with several names, or one that lost or is losing the name it was known by, is found under another.
    if hit.attr.is_dir() || hit.attr.nlink < 2 && !known.is_losing_its_name() {
        return false;
    }
    match identity.upper_ino {
        // They have one number, which is that of the lower file. What is in upper without being indexed only says so.
        0 => {
            // One that is being copied up has its number in upper before it is there.
            let of_links = known.upper_ino() == 0 || known.nlink_delta().is_some() || !known.is_upper();
            known.from_below && identity.from_below && of_links
        }
        upper_ino => known.upper_ino() == upper_ino,
    }
}

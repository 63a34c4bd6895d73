//! An inode of the union: what the kernel knows by number, and where it really is.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use parking_lot::RwLock;

use super::name_index::NameIndex;
use super::short_name::ShortName;
use crate::layer::attr::{Attr, FileKind};
use crate::layer::dir::{DotWh, LayerDir, Serial};
use crate::sys::sync::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, Mutex, MutexGuard, OnceLock};

/// The number that stat(2) shows: unique in the union, the same for the life of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ino(pub u64);

/// The number by which a caller of the union refers to an inode that it has looked up.
///
/// The same as the [`Ino`] but for the root, and for a file that had to part from readers of a lower layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root of the union, which is always there.
    pub const ROOT: Self = Self(1);
}

/// Where the object of an inode is.
#[derive(Debug, Clone)]
pub enum Real {
    /// In upper, under the inode's name.
    Upper,
    /// In a lower layer: a directory itself, or the directory that a file is in under the inode's name.
    Lower(Arc<LayerDir>),
    /// In the index of hard links, under this name.
    Index(Arc<OsString>),
    /// In upper, without a name that is known: this O_PATH descriptor is all there is.
    Detached(Arc<OwnedFd>),
}

impl Real {
    /// Returns whether the object is in upper, and so may be written.
    pub fn is_upper(&self) -> bool {
        !matches!(self, Self::Lower(_))
    }
}

/// The canonical name of an inode and its object.
#[derive(Debug, Clone)]
pub struct Place {
    /// The directory that the name is in; none for the root.
    pub parent: Option<Arc<Inode>>,
    /// The name; empty for the root.
    pub name: ShortName,
    /// Where the object is.
    pub real: Real,
    /// Whether the name is gone.
    pub unlinked: bool,
    /// Whether the inode is in the table, and so counts as a child of its parent.
    pub resident: bool,
}

impl Place {
    fn is_named(&self, parent: &Arc<Inode>, name: &OsStr) -> bool {
        !self.unlinked && *self.name == *name && self.parent.as_ref().is_some_and(|p| Arc::ptr_eq(p, parent))
    }
}

/// Whether a regular file's data is where its metadata is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataPlace {
    /// Nobody has looked yet.
    Unknown,
    /// It is.
    Here,
    /// It is in a lower layer (metacopy).
    Below,
}

/// What a directory has besides.
#[derive(Debug)]
pub struct Dir {
    /// The directories of the lower layers that it consists of, topmost first; they never change.
    pub lower: Box<[Arc<LayerDir>]>,
    /// Rank 3. Guards the names in the directory: written to change them, read to look one up. Taken ancestors
    /// first, else by ascending serial. System calls that touch names and attributes alone; never copies data.
    pub lock: RwLock<()>,
    /// Counts the changes to its names, so that a listing knows whether it is current.
    pub version: AtomicU64,
    /// Whether empty files in upper's part may be whiteouts by xattr.
    pub xwhiteouts: AtomicBool,
    /// Whether entries of upper's part may have an origin.
    pub impure: AtomicBool,
    /// Whether upper's part holds `.wh.` names.
    pub dotwh: DotWh,
    default_acl: AtomicU8,
    /// Which lower parts have a name, once somebody listed them, or asked often.
    names: OnceLock<Option<Box<NameIndex>>>,
    /// How often a name was looked up before that was known.
    asked: AtomicU32,
    /// Inodes in the table that have this one as their parent.
    children: AtomicU32,
}

impl Dir {
    /// Makes the directory part of an inode.
    pub fn new(lower: Box<[Arc<LayerDir>]>, xwhiteouts: bool, impure: bool) -> Self {
        Self {
            lower,
            lock: RwLock::new(()),
            version: AtomicU64::new(0),
            xwhiteouts: AtomicBool::new(xwhiteouts),
            impure: AtomicBool::new(impure),
            dotwh: DotWh::default(),
            default_acl: AtomicU8::new(0),
            names: OnceLock::new(),
            asked: AtomicU32::new(0),
            children: AtomicU32::new(0),
        }
    }

    /// Returns which lower parts have a name, where it is known or was asked for often; then `make` reads them.
    ///
    /// `None` where it is not known, and where they cannot be read: then each is asked.
    pub fn names(&self, make: impl FnOnce() -> Option<NameIndex>) -> Option<&NameIndex> {
        if let Some(known) = self.names.get() {
            return known.as_deref();
        }
        // Relaxed: a hint; whoever counts wrong reads the names a little earlier or later.
        let often = self.lower.len() > 1 && self.asked.fetch_add(1, Ordering::Relaxed) >= NameIndex::WORTH;
        if often { self.names.get_or_init(|| make().map(Box::new)).as_deref() } else { None }
    }

    /// Records which lower parts have a name, as `make` finds out of a listing, where it is not known.
    pub fn note_names(&self, make: impl FnOnce() -> NameIndex) {
        self.names.get_or_init(|| Some(Box::new(make())));
    }

    /// Records that a name was added, removed or moved, or an entry's object changed.
    pub fn changed(&self) {
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Returns the count of changes.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Returns whether the directory has a default ACL; `None` when nobody has looked yet.
    pub fn default_acl(&self) -> Option<bool> {
        // Relaxed: set under the same locks that order the ACL's changes.
        match self.default_acl.load(Ordering::Relaxed) {
            0 => None,
            known => Some(known == 2),
        }
    }

    /// Records whether the directory has a default ACL; `None` when it may have changed.
    pub fn set_default_acl(&self, known: Option<bool>) {
        let value = known.map_or(0, |has| 1 + u8::from(has));
        self.default_acl.store(value, Ordering::Relaxed); // Relaxed: as in `default_acl`.
    }
}

/// A file or directory of the union.
#[derive(Debug)]
pub struct Inode {
    /// What stat(2) shows.
    pub ino: Ino,
    /// What the file is.
    pub kind: FileKind,
    /// Tells this object from all others that were there before.
    pub serial: Serial,
    /// Whether it is a lower object, or was copied up from one, whose number it then has.
    pub from_below: bool,
    /// How often a caller has looked the inode up by its first number. Guarded by the table.
    lookups: AtomicU64,
    /// Rank 4. Guards the switch of name and object. No syscall while held.
    place: Mutex<Place>,
    version: AtomicU32,
    /// Operations that are changing the name on the disk at the moment.
    moving: AtomicU32,
    /// Rank 2. Held while the inode is copied up, data included; nothing unrelated waits for it.
    copy_up: Mutex<()>,
    upper_ino: AtomicU64,
    data: AtomicU8,
    has_descriptor: AtomicBool,
    /// Whether the file could only be opened to append when it was last opened for writing.
    appends: AtomicBool,
    /// Whether the file may be written to without anybody being told.
    unseen: AtomicBool,
    dir: Option<Box<Dir>>,
    rare: OnceLock<Box<Rare>>,
}

/// What few inodes have.
#[derive(Debug, Default)]
struct Rare {
    /// The number that callers know the inode by; 0 for the first one.
    id: AtomicU64,
    /// When a name was last added or removed, in seconds of a clock that only goes forward; 0 for never.
    links_changed: AtomicU32,
    indexed: AtomicBool,
    nlink_delta: AtomicI32,
    /// Rank 5 (leaf). Another name of a hard link, to go by when the first one is removed. No syscall while held.
    other: Mutex<Option<OtherName>>,
}

/// A name that was seen to lead to an inode; it may be gone by now.
type OtherName = (Weak<Inode>, Box<OsStr>);

/// What a new inode is made of.
pub struct Parts {
    /// What stat(2) shows.
    pub ino: Ino,
    /// What the file is.
    pub kind: FileKind,
    /// Name and object.
    pub place: Place,
    /// Whether there is a lower object behind it.
    pub from_below: bool,
    /// The number in upper's file system; 0 when it is not there.
    pub upper_ino: u64,
    /// The link count's distance from upper's, for an indexed file.
    pub nlink_delta: Option<i32>,
    /// The directory part.
    pub dir: Option<Dir>,
}

impl Inode {
    /// Makes an inode that is known by `id`.
    pub fn new(id: NodeId, parts: Parts) -> Arc<Self> {
        let inode = Self {
            ino: parts.ino,
            kind: parts.kind,
            serial: Serial::next(),
            from_below: parts.from_below,
            lookups: AtomicU64::new(0),
            place: Mutex::new(parts.place),
            version: AtomicU32::new(0),
            moving: AtomicU32::new(0),
            copy_up: Mutex::new(()),
            upper_ino: AtomicU64::new(parts.upper_ino),
            data: AtomicU8::new(0),
            has_descriptor: AtomicBool::new(false),
            appends: AtomicBool::new(false),
            unseen: AtomicBool::new(false),
            dir: parts.dir.map(Box::new),
            rare: OnceLock::new(),
        };
        if id.0 != parts.ino.0 {
            inode.set_id(id);
        }
        if let Some(delta) = parts.nlink_delta {
            inode.set_nlink_delta(delta);
        }
        Arc::new(inode)
    }

    fn rare(&self) -> &Rare {
        self.rare.get_or_init(Box::default)
    }

    /// Returns how often a caller has looked the inode up by its first number.
    pub fn lookups(&self) -> u64 {
        self.lookups.load(Ordering::Relaxed) // Relaxed: under the table's lock, as all that set it.
    }

    /// Sets that count.
    pub fn set_lookups(&self, lookups: u64) {
        self.lookups.store(lookups, Ordering::Relaxed); // Relaxed: as in `lookups`.
    }

    /// Returns the number that callers know the inode by.
    pub fn id(&self) -> NodeId {
        match self.rare.get().map_or(0, |rare| rare.id.load(Ordering::Acquire)) {
            0 => NodeId(self.ino.0),
            id => NodeId(id),
        }
    }

    /// Gives the inode another number for callers to know it by, if it still goes by `old`; returns whether it did.
    pub fn change_id(&self, old: NodeId, id: NodeId) -> bool {
        let kept = if old.0 == self.ino.0 { 0 } else { old.0 };
        self.rare().id.compare_exchange(kept, id.0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn set_id(&self, id: NodeId) {
        self.rare().id.store(id.0, Ordering::Release);
    }

    /// Returns name and object, and the version to compare after a call that used them.
    pub fn place(&self) -> (Place, u32) {
        let place = self.place.lock();
        // Relaxed: written under the same lock.
        (place.clone(), self.version.load(Ordering::Relaxed))
    }

    /// Returns whether name and object are still those of `version`, and nobody is changing them on the disk.
    pub fn is_at(&self, version: u32) -> bool {
        self.moving.load(Ordering::Acquire) == 0 && self.version.load(Ordering::Acquire) == version
    }

    /// Says that the name is about to change on the disk: what a call by name finds from now on may be another file.
    pub fn moving(self: &Arc<Self>) -> Leaving {
        self.moving.fetch_add(1, Ordering::AcqRel);
        Leaving(self.clone())
    }

    /// Records that a name is about to be added or removed on the disk.
    pub fn note_links_change(&self) {
        self.rare().links_changed.store(now().max(1), Ordering::Release);
    }

    /// Returns whether a caller may use a name of the file, found with `nlink` links, without looking it up again.
    ///
    /// Linux's FUSE keeps a link count of its own: when a removal is answered, it takes one from the count that it has.
    /// Where a lookup has brought it the new count just before, that is one too many, and at zero link(2) is refused
    /// without asking. A lookup mends it, so a file whose links were changed is looked up each time: while it has several
    /// names, which may go, and for a while after it has one.
    pub fn has_settled_links(&self, nlink: u32) -> bool {
        /// Seconds that a removal takes to be answered, and more.
        const ANSWERED: u32 = 3;
        match self.rare.get().map_or(0, |rare| rare.links_changed.load(Ordering::Acquire)) {
            0 => true,
            changed => nlink < 2 && now().wrapping_sub(changed) > ANSWERED || self.dir.is_some(),
        }
    }

    /// Changes name or object; returns what was there before.
    ///
    /// The caller drops that with no lock held, as it may close a descriptor, and gives a parent that was left to
    /// [`super::Union::forget`], as this may have been its last child.
    #[must_use]
    pub fn relocate(&self, change: impl FnOnce(&mut Place)) -> Place {
        self.relocate_locked(&mut self.place.lock(), change)
    }

    fn relocate_locked(&self, place: &mut Place, change: impl FnOnce(&mut Place)) -> Place {
        let before = place.clone();
        change(place);
        if place.resident {
            count(&before.parent, -1);
            count(&place.parent, 1);
        }
        self.version.fetch_add(1, Ordering::Release);
        before
    }

    /// Gives an inode whose name was removed the name that it was found under; returns what was there before.
    #[must_use]
    pub fn relocate_if_unlinked(&self, parent: &Arc<Inode>, name: &OsStr) -> Option<Place> {
        let mut place = self.place.lock();
        let unlinked = place.unlinked;
        unlinked.then(|| {
            self.relocate_locked(&mut place, |place| {
                place.parent = Some(parent.clone());
                place.name = name.into();
                place.unlinked = false;
                if matches!(place.real, Real::Detached(_)) {
                    place.real = Real::Upper;
                }
            })
        })
    }

    /// Undoes [`Inode::relocate_if_unlinked`], unless the inode was given yet another name; returns what was there.
    #[must_use]
    pub fn relocate_back(&self, parent: &Arc<Inode>, name: &OsStr, before: Place) -> Option<Place> {
        let mut place = self.place.lock();
        place
            .is_named(parent, name)
            .then(|| self.relocate_locked(&mut place, |place| *place = Place { resident: place.resident, ..before }))
    }

    /// Records that the inode is in the table now.
    pub fn enter(&self) {
        let mut place = self.place.lock();
        place.resident = true;
        count(&place.parent, 1);
    }

    /// Records that the inode is not in the table any more; returns the parent that had it as a child.
    pub fn leave(&self) -> Option<Arc<Inode>> {
        let mut place = self.place.lock();
        place.resident = false;
        count(&place.parent, -1);
        // It keeps its parent: without one it would pass for the root.
        place.parent.clone()
    }

    /// Remembers a name that leads to the inode, unless it is the one it goes by.
    pub fn note_name(&self, parent: &Arc<Inode>, name: &OsStr) {
        if !self.is_named(parent, name) {
            let noted = (Arc::downgrade(parent), Box::from(name));
            let old = self.rare().other.lock().replace(noted);
            drop(old);
        }
    }

    /// Takes the other name that was remembered, with its directory if that is still there.
    pub fn take_other_name(&self) -> Option<(Arc<Inode>, Box<OsStr>)> {
        let noted = self.rare.get()?.other.lock().take()?;
        noted.0.upgrade().map(|parent| (parent, noted.1))
    }

    /// Returns whether an inode in the table has this one as its parent.
    pub fn has_children(&self) -> bool {
        self.dir().is_some_and(|dir| dir.children.load(Ordering::Acquire) > 0)
    }

    /// Returns whether the object is in upper.
    pub fn is_upper(&self) -> bool {
        self.place.lock().real.is_upper()
    }

    /// Returns whether the object is in a lower layer, and not removed.
    pub fn is_below(&self) -> bool {
        let place = self.place.lock();
        !place.real.is_upper() && !place.unlinked
    }

    /// Returns whether the name that the inode was known by is gone, or may be by now.
    pub fn is_losing_its_name(&self) -> bool {
        // First the mark of a change that is under way: it ends only after its outcome is known.
        self.moving.load(Ordering::Acquire) > 0 || self.is_unlinked()
    }

    /// Returns whether the inode's name is `name` in `parent`.
    pub fn is_named(&self, parent: &Arc<Inode>, name: &OsStr) -> bool {
        self.place.lock().is_named(parent, name)
    }

    /// Returns whether the name that the inode was known by is gone.
    pub fn is_unlinked(&self) -> bool {
        self.place.lock().unlinked
    }

    /// Takes the lock that a copy-up of the inode holds.
    pub fn lock_copy_up(&self) -> MutexGuard<'_, ()> {
        self.copy_up.lock()
    }

    /// Returns the directory part; `None` for anything else.
    pub fn dir(&self) -> Option<&Dir> {
        self.dir.as_deref()
    }

    /// Returns the number in upper's file system; 0 when the object is not there.
    pub fn upper_ino(&self) -> u64 {
        self.upper_ino.load(Ordering::Acquire)
    }

    /// Records the number in upper's file system.
    pub fn set_upper_ino(&self, ino: u64) {
        self.upper_ino.store(ino, Ordering::Release);
    }

    /// Returns how far the link count is from that of upper's inode; `None` for a file that is not indexed.
    pub fn nlink_delta(&self) -> Option<i32> {
        let rare = self.rare.get().filter(|rare| rare.indexed.load(Ordering::Acquire))?;
        Some(rare.nlink_delta.load(Ordering::Acquire))
    }

    /// Records that the file is indexed, and its distance.
    pub fn set_nlink_delta(&self, delta: i32) {
        let rare = self.rare();
        rare.nlink_delta.store(delta, Ordering::Release);
        rare.indexed.store(true, Ordering::Release);
    }

    /// Returns where the data is.
    pub fn data_place(&self) -> DataPlace {
        match self.data.load(Ordering::Acquire) {
            1 => DataPlace::Here,
            2 => DataPlace::Below,
            _ => DataPlace::Unknown,
        }
    }

    /// Records where the data is.
    pub fn set_data_place(&self, place: DataPlace) {
        let value = match place {
            DataPlace::Unknown => 0,
            DataPlace::Here => 1,
            DataPlace::Below => 2,
        };
        self.data.store(value, Ordering::Release);
    }

    /// Records that the data is below, unless somebody has brought it here meanwhile.
    pub fn note_data_below(&self) {
        // Where it is known already, nothing is left to record.
        let _ = self.data.compare_exchange(0, 2, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Records that a descriptor of the file is kept, and returns whether one was before.
    pub fn note_descriptor(&self, kept: bool) -> bool {
        self.has_descriptor.swap(kept, Ordering::AcqRel)
    }

    /// Records whether the file takes writes at its end alone.
    pub fn set_appends(&self, appends: bool) {
        self.appends.store(appends, Ordering::Release);
    }

    /// Returns whether the file takes writes at its end alone.
    pub fn appends(&self) -> bool {
        self.appends.load(Ordering::Acquire)
    }

    /// Records that the file may be written to without anybody being told, for as long as it is known; returns whether that
    /// is new.
    pub fn note_unseen_changes(&self) -> bool {
        !self.unseen.swap(true, Ordering::AcqRel)
    }

    /// Returns whether all changes of the attributes are asked for by the one number that the inode goes by.
    pub fn keeps_attributes(&self) -> bool {
        self.id().0 == self.ino.0 && !self.unseen.load(Ordering::Acquire)
    }

    /// Makes the layer's attributes those of the union.
    pub fn finish(&self, mut attr: Attr) -> Attr {
        attr.ino = self.ino.0;
        let place = self.place.lock();
        if let Some(dir) = self.dir() {
            let parts = dir.lower.len() + usize::from(place.real.is_upper());
            if place.unlinked {
                attr.nlink = 0;
            } else if parts > 1 {
                // As in the kernel's overlayfs: the subdirectories of several directories are not counted.
                attr.nlink = 1;
            }
        } else if place.unlinked && !place.real.is_upper() {
            attr.nlink = 0;
        } else if let Some(delta) = self.nlink_delta() {
            attr.nlink = attr.nlink.saturating_add_signed(delta);
        }
        attr
    }
}

/// The time in which the name of an inode changes on the disk; over when the inode knows, or nothing came of it.
#[derive(Debug)]
pub struct Leaving(Arc<Inode>);

impl Drop for Leaving {
    fn drop(&mut self) {
        // First the version, so that nobody takes what was found meanwhile for current.
        self.0.version.fetch_add(1, Ordering::AcqRel);
        self.0.moving.fetch_sub(1, Ordering::AcqRel);
    }
}

fn now() -> u32 {
    // Wraps around after a century of uptime.
    rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse).tv_sec as u32
}

/// Counts a child that `parent` gained or lost.
fn count(parent: &Option<Arc<Inode>>, change: i32) {
    if let Some(parent) = parent.as_ref().and_then(|parent| parent.dir()) {
        // Wraps around for -1, as it is meant to.
        parent.children.fetch_add(change as u32, Ordering::AcqRel);
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        // As deep as the tree; dropping the chain of parents by recursion would overflow the stack.
        let mut parent = self.place.get_mut().parent.take();
        while let Some(inode) = parent {
            parent = Arc::into_inner(inode).and_then(|mut inode| inode.place.get_mut().parent.take());
        }
    }
}

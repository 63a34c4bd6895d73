//! The union: the merged view of the layers and every operation on it.
//!
//! Synchronous, and it returns values; it knows nothing of FUSE. A caller holds inodes by [`NodeId`] from
//! the lookup that gave the number until [`Union::forget`].
//!
//! # Locks, ascending
//! 1. `Union::tree`: renames from one directory to another.
//! 2. an inode's copy-up mutex; held while data is copied.
//! 3. directory locks: ancestors first, else by ascending serial.
//! 4. an inode's place: a switch, no system call; `Union::counts` and `Union::times` come before it.
//! 5. leaves: table shards, descriptor caches, listings, what was prefetched.
//!
//! Evicted directories of upper are reopened by name without a lock: `Union::moves` tells whether a
//! directory was moved meanwhile.

mod attr;
mod builder;
mod copy_data;
mod copy_up;
mod create;
mod file;
mod handle;
mod index;
mod inode;
mod kept;
mod link;
mod listing;
mod lookup;
mod merge;
mod metacopy;
mod name_index;
mod numbers;
mod owners;
mod pace;
mod parts;
mod prefetch;
mod quota;
mod readdir;
mod remove;
mod rename;
mod search;
mod short_name;
mod status;
mod stream;
mod table;
mod usage;
mod xattr;

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

pub use crate::layer::attr::{Attr, FileKind, Timestamp};
pub use crate::layer::fds::Hits;
pub use crate::layer::name::Name;
pub use crate::layer::upper::New;
pub use attr::{SetAttr, SetTime, StatFs};
pub use builder::UnionBuilder;
pub use file::{Seek, Written};
pub use handle::{Fh, OpenFile};
pub use inode::{Ino, NodeId};
pub use lookup::Entry;
pub use pace::Attempt;
pub use parts::LowerPart;
pub use quota::{Amount, QuotaUsage};
pub use readdir::{DirEntry, Flow, Looked};
pub use rename::RenameFlags;
#[cfg(feature = "fuse")]
pub(crate) use status::ASKED;
pub use status::{InForce, LayerStatus, Role};
pub use stream::ReadAhead;
pub use usage::{Caches, CopyUps, Usage};

use crate::config::RedirectDir;
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::layer::dir::{Lowers, Serial};
use crate::layer::directory::{Directory, Identity};
use crate::layer::fds::FdCache;
use crate::layer::overlay::Namespace;
use crate::layer::upper::Upper;
use crate::sys::caps;
use handle::Handles;
use index::Counts;
use inode::{Dir, Inode, Place, Real};
use kept::KeptFiles;
use listing::Listings;
use numbers::Numbers;
use owners::OwnerView;
use prefetch::Prefetch;
use quota::Quota;
use table::Table;
use usage::{CopyUpCounts, NameCounts};

/// Who makes a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// User id, for the owner of what is made.
    pub uid: u32,
    /// Group id, for the group of what is made.
    pub gid: u32,
    /// Process id, to find out what else the caller may do; 0 where it is not known.
    pub pid: u32,
}

impl Caller {
    /// The user and group that this process acts as.
    pub fn current() -> Self {
        Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            pid: rustix::process::getpid().as_raw_nonzero().get().unsigned_abs(),
        }
    }

    /// Returns whether what both make belongs to the same user and group.
    fn owns_as(&self, other: &Self) -> bool {
        (self.uid, self.gid) == (other.uid, other.gid)
    }

    /// Returns whether the set-user-id and set-group-id bits stay when the caller changes a file: root with CAP_FSETID.
    fn keeps_set_id(&self) -> bool {
        // Of another user's capabilities it is not known in which user namespace they count.
        self.uid == 0 && caps::standing(self.pid).is_none_or(|s| s.effective.contains(CapabilitySet::FSETID))
    }

    /// Returns whether the caller is in the group that is shown as `gid`.
    fn is_in_group(&self, gid: u32) -> bool {
        self.gid == gid || caps::standing(self.pid).is_some_and(|standing| standing.groups.contains(&gid))
    }
}

/// What is done to what is below a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// It is read.
    Read,
    /// It is read and changed.
    Write,
}

/// Layers presented as one tree.
///
/// ```
/// use unionfs_rs::union::{Caller, Name, New, NodeId, Union};
/// # let dir = tempfile::tempdir()?;
/// # let at = |name: &str| { let p = dir.path().join(name); std::fs::create_dir(&p).map(|()| p) };
/// # let (lower, upper) = (at("lower")?, at("upper")?);
/// std::fs::write(lower.join("greeting"), "hello")?;
/// let union = Union::builder().lower(&lower).upper(&upper).build()?;
///
/// let name = Name::new("greeting".as_ref())?;
/// let entry = union.lookup(NodeId::ROOT, name)?;
/// assert_eq!(entry.attr.size, 5);
/// union.write(entry.id, 5, b", world", None)?;
/// assert_eq!(std::fs::read_to_string(upper.join("greeting"))?, "hello, world");
/// assert_eq!(std::fs::read_to_string(lower.join("greeting"))?, "hello");
///
/// union.unlink(NodeId::ROOT, name)?;
/// assert!(union.lookup(NodeId::ROOT, name).is_err());
/// union.end()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Union {
    lowers: Lowers,
    upper: Option<Upper>,
    /// The device of upper's file system.
    upper_dev: (u32, u32),
    namespace: Namespace,
    redirect_dir: RedirectDir,
    metacopy: bool,
    atime: bool,
    /// Whether ACLs are seen, set and inherited.
    acls: bool,
    /// Whether xattrs are seen and set.
    xattrs: bool,
    static_nlink: bool,
    /// Whether all layers are read by pages.
    paged: bool,
    /// Whether it makes no difference who opens the files of the layers.
    passable: bool,
    view: OwnerView,
    server: Caller,
    /// Whether files can be given to others: CAP_CHOWN.
    may_chown: bool,
    /// Whether modes do not bind the server: CAP_DAC_OVERRIDE.
    overrides_modes: bool,
    numbers: Numbers,
    table: Table,
    /// Descriptors of upper's directories.
    dirs: FdCache<Serial>,
    /// Descriptors that data is read and written through.
    files: KeptFiles,
    listings: Listings,
    prefetch: Prefetch,
    /// Rank 4 (before places). Each for some inodes: when they were written, as [`Union::write_back`] keeps and setattr sets it.
    times: [Mutex<()>; 16],
    handles: Handles,
    /// Rank 1. Held by a rename from one directory to another, so that what is above what stays so.
    tree: Mutex<()>,
    /// Odd while a directory of upper is being moved; changes with every move.
    moves: AtomicU64,
    /// Whether the index holds anything, or has since the mount.
    index_used: AtomicBool,
    /// Rank 4 (before places). What is known of the link counts in the index; held while one of them is relative to a lower
    /// file's. A few system calls on the index happen under it.
    counts: Mutex<Counts>,
    copied: CopyUpCounts,
    names: NameCounts,
    quota: Option<Quota>,
    /// How many descriptors are kept open at most.
    kept_at_most: usize,
    /// What holds besides what was asked for, and why.
    in_force: Vec<InForce>,
}

impl Union {
    /// Starts to describe a union.
    pub fn builder() -> UnionBuilder {
        UnionBuilder::default()
    }

    /// Closes whatever is open only to be used again: for who has no descriptor left.
    pub fn close_kept(&self) {
        self.files.clear();
        self.dirs.clear();
        self.lowers.close_kept();
    }

    /// Returns whether there is no upper, so that nothing can be changed.
    pub fn is_read_only(&self) -> bool {
        self.upper.is_none()
    }

    /// Returns the directories that the union is made of, below which all is that it ever opens.
    pub fn directories(&self) -> impl Iterator<Item = (BorrowedFd<'_>, Reach)> {
        let lowers = self.lowers.layers().iter().map(|layer| (layer.root(), Reach::Read));
        let upper = self.upper.iter().flat_map(|upper| [upper.layer.root(), upper.work.root()]);
        lowers.chain(upper.map(|dir| (dir, Reach::Write)))
    }

    /// Returns whether it makes no difference to anybody when another opens the files of the layers in the server's place:
    /// their file systems take every flag of open(2), and none of them notes who reads where it should not.
    pub fn is_passable(&self) -> bool {
        self.passable
    }

    /// Returns a layer that holds `path` and could not be cloned privately, so that a mount there would be entered.
    ///
    /// Errors: [`Error::Setup`] where `path` is no directory that can be opened.
    pub fn unprotected_layer_above(&self, path: &Path) -> Result<Option<&Path>> {
        let upper = self.upper.as_ref().map(|upper| &upper.layer);
        let mut open = self.lowers.layers().iter().chain(upper).filter(|layer| !layer.is_private()).peekable();
        if open.peek().is_none() {
            return Ok(None);
        }
        let directory = Directory::at(path)?;
        // A layer's root itself may be mounted over: it was opened before.
        let above = directory.way_up().get(1..).unwrap_or_default();
        let holds = |layer: &&Layer| Identity::of(layer.root()).is_ok_and(|layer| above.contains(&layer));
        Ok(open.find(holds).map(|layer| layer.path.as_path()))
    }

    /// Returns what upper holds and may hold, where that is limited.
    pub fn quota_usage(&self) -> Option<QuotaUsage> {
        self.quota.as_ref().map(Quota::usage)
    }

    /// Removes what building the union has made on the disk, for one that was never used.
    pub fn withdraw(self) {
        if let Some(upper) = &self.upper {
            upper.withdraw();
        }
    }

    /// Ends the use of the layers: leaves nothing unfinished in the workdir.
    pub fn end(&self) -> Result<()> {
        if let Some(upper) = &self.upper {
            upper.end();
        }
        Ok(())
    }

    /// Returns the inode known by `id`. Errors: ESTALE for a number that was never given or is forgotten.
    fn inode(&self, id: NodeId) -> Result<Arc<Inode>> {
        self.table.get(id).ok_or(Error::Refused(Errno::STALE))
    }

    /// Returns the inode known by `id` with its directory part. Errors: ENOTDIR.
    fn directory(&self, id: NodeId) -> Result<Arc<Inode>> {
        let inode = self.inode(id)?;
        dir_of(&inode)?;
        Ok(inode)
    }

    /// Returns the writable layer. Errors: EROFS without one.
    fn writable(&self) -> Result<&Upper> {
        self.upper.as_ref().ok_or(Error::Refused(Errno::ROFS))
    }

    /// Drops what an inode left, and its old parent from the table where this was the last child that kept it there.
    fn drop_place(&self, left: Option<Place>) {
        if let Some(parent) = left.and_then(|place| place.parent) {
            self.forget(parent.id(), 0);
        }
    }

    /// Gives up what was kept for an inode that an operation needed for itself alone.
    fn release_transient(&self, inode: &Arc<Inode>) {
        if self.known(inode.ino.0).is_none_or(|known| !Arc::ptr_eq(&known, inode)) {
            self.release(inode);
        }
    }

    /// Gives up what was kept for an inode that is gone.
    fn release(&self, inode: &Inode) {
        self.credit(inode);
        self.files.switched(inode);
        if inode.from_below && inode.dir().is_none() && inode.upper_ino() != 0 {
            self.table.forget_alias(self.numbers.number(self.upper_dev, inode.upper_ino()), inode);
        }
        if inode.dir().is_some() {
            self.dirs.remove(&inode.serial);
            self.forget_listings(inode.serial);
        }
    }

    /// Forgets what is in a directory.
    fn forget_listings(&self, serial: Serial) {
        self.listings.remove(serial);
        self.prefetch.drop_known(serial, None);
    }

    /// Returns an O_PATH descriptor of upper's part of the directory `inode`.
    ///
    /// Errors: ENOENT when it has none, or lost it.
    fn upper_dir(&self, inode: &Arc<Inode>) -> Result<UpperDir<'_>> {
        let upper = self.writable()?;
        let (place, _) = inode.place();
        match place.real {
            Real::Detached(fd) => return Ok(UpperDir::Open(fd)),
            Real::Upper if place.parent.is_none() => return Ok(UpperDir::Root(upper.layer.root())),
            Real::Upper => {}
            Real::Lower(_) | Real::Index(_) => return Err(Error::Refused(Errno::NOENT)),
        }
        if let Some(fd) = self.dirs.get(&inode.serial) {
            return Ok(UpperDir::Open(fd));
        }
        self.reopen(upper, inode).map(UpperDir::Open)
    }

    /// Opens upper's part of `inode` by the names of its ancestors, and keeps what was opened on the way.
    fn reopen(&self, upper: &Upper, inode: &Arc<Inode>) -> Result<Arc<OwnedFd>> {
        loop {
            let before = self.moves.load(Ordering::Acquire);
            let opened = self.reopen_by_name(upper, inode);
            if before.is_multiple_of(2) && self.moves.load(Ordering::Acquire) == before {
                let (fd, steps) = opened?;
                for (serial, fd) in steps {
                    self.dirs.insert(serial, fd);
                }
                return Ok(fd);
            }
            // A directory was moved, which may have led astray; the move itself is one system call.
            std::thread::yield_now();
        }
    }

    fn reopen_by_name(&self, upper: &Upper, inode: &Arc<Inode>) -> Result<(Arc<OwnedFd>, Vec<Step>)> {
        let mut way = Vec::new();
        let mut at = inode.clone();
        let mut base = loop {
            let (place, _) = at.place();
            let fd = match place.real {
                Real::Detached(fd) => Some(fd),
                _ => self.dirs.get(&at.serial),
            };
            if fd.is_some() {
                break fd;
            }
            let Some(parent) = place.parent else { break None };
            way.push((at.serial, place.name));
            at = parent;
        };
        let mut steps = Vec::with_capacity(way.len());
        for (serial, name) in way.into_iter().rev() {
            let from = base.as_ref().map_or(upper.layer.root(), |fd| fd.as_fd());
            let fd = upper.layer.open_dir(from, &name).map_err(|e| upper.layer.error("openat", &name, e))?;
            let fd = Arc::new(fd);
            steps.push((serial, fd.clone()));
            base = Some(fd);
        }
        base.map(|fd| (fd, steps)).ok_or(Error::Refused(Errno::STALE))
    }

    /// Calls `call` with the layer, directory and name of the object of `inode`, again if it moved meanwhile.
    ///
    /// For calls that only read: a call that was led astray by a move has its result thrown away. An empty
    /// name is the directory's own descriptor.
    fn with_object<T>(
        &self,
        inode: &Arc<Inode>,
        mut call: impl FnMut(&Layer, BorrowedFd<'_>, &OsStr) -> Result<T>,
    ) -> Result<T> {
        let own = OsStr::new("");
        loop {
            let (place, version) = inode.place();
            let result = match (&place.real, &place.parent) {
                (Real::Upper, None) => self.writable().and_then(|upper| call(&upper.layer, upper.layer.root(), own)),
                (Real::Upper, Some(parent)) => self
                    .upper_dir(parent)
                    .and_then(|dir| self.writable().and_then(|upper| call(&upper.layer, dir.as_fd(), &place.name))),
                (Real::Lower(dir), _) => {
                    let name = if inode.dir().is_some() { own } else { &*place.name };
                    self.lowers.with_fd(dir, |fd| call(self.lowers.layer(dir), fd, name))
                }
                (Real::Index(name), _) => self.writable().and_then(|upper| {
                    let index = upper.work.index().ok_or(Error::Refused(Errno::STALE))?;
                    call(&upper.layer, index, name)
                }),
                (Real::Detached(fd), _) => self.writable().and_then(|upper| call(&upper.layer, fd.as_fd(), own)),
            };
            if inode.is_at(version) {
                return result;
            }
            // Whoever changes the name needs a system call or two for it.
            std::thread::yield_now();
        }
    }

    /// Opens the object of `inode` with O_PATH: a call on the descriptor cannot be led astray by a move.
    fn pin(&self, inode: &Arc<Inode>) -> Result<OwnedFd> {
        self.with_object(inode, |layer, dir, name| {
            if name.is_empty() {
                return dir.try_clone_to_owned().map_err(|_| Error::Refused(Errno::MFILE));
            }
            layer.open(dir, name, OFlags::PATH).map_err(|e| layer.error("openat", name, e))
        })
    }

    /// Reads the attributes of the object of `inode`, as the union shows them.
    fn stat(&self, inode: &Arc<Inode>) -> Result<Attr> {
        loop {
            let (_, version) = inode.place();
            let attr = self.with_object(inode, |layer, dir, name| {
                layer.stat(dir, name).map_err(|e| layer.error("statx", name, e))
            })?;
            let finished = inode.finish(attr);
            // The count of links has two parts, which must be of one time.
            if inode.is_at(version) {
                return Ok(finished);
            }
            std::thread::yield_now();
        }
    }
}

/// A directory that was opened on the way to another.
type Step = (Serial, Arc<OwnedFd>);

/// Upper's part of a directory, open.
enum UpperDir<'a> {
    /// The layer's root.
    Root(BorrowedFd<'a>),
    /// Any other.
    Open(Arc<OwnedFd>),
}

impl AsFd for UpperDir<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Root(fd) => *fd,
            Self::Open(fd) => fd.as_fd(),
        }
    }
}

/// Returns the directory part of `inode`. Errors: ENOTDIR.
fn dir_of(inode: &Inode) -> Result<&Dir> {
    inode.dir().ok_or(Error::Refused(Errno::NOTDIR))
}

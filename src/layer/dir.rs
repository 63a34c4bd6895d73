//! Directories of the layers, and what a layer says about a name in one of them.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::attr::{Attr, FileKind};
use super::fds::{FdCache, Hits};
use super::name::{NAME_MAX, WH_OPAQUE, WH_PREFIX};
use super::overlay::{Marks, Namespace};
use super::{Layer, LayerId};
use crate::error::{Error, Location, Result};
use crate::sys::dents;

/// Tells two directories apart, whatever became of their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial(u64);

impl Serial {
    /// Returns a number that no other directory has had.
    pub fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed)) // Relaxed: only uniqueness matters.
    }
}

/// Whether a directory holds names that begin with `.wh.`; a lower directory never changes.
#[derive(Debug, Default)]
pub struct DotWh(AtomicU8);

impl DotWh {
    /// Records whether there are any, or are about to be.
    pub fn record(&self, any: bool) {
        self.0.store(if any { 2 } else { 1 }, Ordering::Relaxed); // Relaxed: a hint about one directory.
    }

    /// Returns whether there may be such names.
    pub fn possible(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 1 // Relaxed: a stale answer costs one more stat.
    }
}

/// A directory of a lower layer. It never moves, whatever is renamed in the union.
#[derive(Debug)]
pub struct LayerDir {
    /// The layer that it is in.
    pub layer: LayerId,
    /// Its own number in the layer's file system.
    pub ino: u64,
    /// The device of that file system.
    pub dev: (u32, u32),
    /// Whether empty files in it may be whiteouts by xattr.
    pub xwhiteouts: bool,
    /// Whether nothing below it shows.
    pub opaque: bool,
    /// Whether it holds `.wh.` names.
    pub dotwh: DotWh,
    serial: Serial,
    /// Where its descriptor is while it is open.
    fds: Arc<FdCache<Serial>>,
    opened: AtomicBool,
    parent: Option<Arc<LayerDir>>,
    name: Box<OsStr>,
}

impl LayerDir {
    /// Makes the directory at the root of a layer.
    pub fn root(layer: LayerId, attr: &Attr, marks: &Marks, fds: Arc<FdCache<Serial>>) -> Arc<Self> {
        Arc::new(Self {
            layer,
            ino: attr.ino,
            dev: attr.dev,
            xwhiteouts: marks.xwhiteouts,
            opaque: marks.opaque,
            dotwh: DotWh::default(),
            serial: Serial::next(),
            fds,
            opened: AtomicBool::new(false),
            parent: None,
            name: Box::from(OsStr::new("")),
        })
    }

    /// Makes the directory `name` in `self`.
    pub fn child(self: &Arc<Self>, name: &OsStr, attr: &Attr, marks: &Marks) -> Arc<Self> {
        Arc::new(Self {
            layer: self.layer,
            ino: attr.ino,
            dev: attr.dev,
            xwhiteouts: marks.xwhiteouts,
            opaque: marks.opaque,
            dotwh: DotWh::default(),
            serial: Serial::next(),
            fds: self.fds.clone(),
            opened: AtomicBool::new(false),
            parent: Some(self.clone()),
            name: name.into(),
        })
    }

    /// Returns the names from the layer's root to the directory.
    pub fn components(&self) -> Vec<OsString> {
        let mut parts = Vec::new();
        let mut dir = self;
        while let Some(parent) = &dir.parent {
            parts.push(dir.name.to_os_string());
            dir = parent;
        }
        parts.reverse();
        parts
    }

    /// Returns the name of the directory itself, for messages.
    fn own_name(&self) -> &OsStr {
        if self.name.is_empty() { OsStr::new(".") } else { &self.name }
    }

    /// Returns the path of `name` in the directory, for messages.
    pub fn path_of(&self, name: &OsStr) -> PathBuf {
        self.components().iter().map(OsString::as_os_str).chain([name]).collect()
    }
}

impl Drop for LayerDir {
    fn drop(&mut self) {
        if *self.opened.get_mut() {
            self.fds.remove(&self.serial);
        }
        // A chain of the last references is as deep as the tree; dropping it by recursion would overflow the stack.
        let mut parent = self.parent.take();
        while let Some(dir) = parent {
            parent = Arc::into_inner(dir).and_then(|mut dir| dir.parent.take());
        }
    }
}

/// What one layer says about a name.
#[derive(Debug)]
pub enum Found {
    /// Nothing.
    Absent,
    /// That it was removed.
    Whiteout,
    /// That it is something other than a directory.
    File(Attr),
    /// That it is a directory.
    Dir(Attr, Marks),
}

/// Whether a directory may have something below it, so that it matters whether it is opaque.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Below {
    /// It may.
    Something,
    /// It has not, unless a redirect leads there.
    Nothing,
}

/// The lower layers and the descriptors of their directories.
pub struct Lowers {
    layers: Vec<Layer>,
    roots: Vec<Arc<LayerDir>>,
    fds: Arc<FdCache<Serial>>,
    namespace: Namespace,
    /// The position of the first one.
    first: usize,
}

impl Lowers {
    /// Collects the layers, topmost first, and keeps about `capacity` directories open.
    ///
    /// Their positions follow each other. An upper alone will do, for who reads it as it is.
    pub fn new(layers: Vec<Layer>, namespace: Namespace, capacity: usize) -> Result<Self> {
        let mut roots = Vec::with_capacity(layers.len());
        let fds = Arc::new(FdCache::new(capacity));
        for layer in &layers {
            let failed = |errno: Errno| {
                Error::setup(&layer.path, format!("cannot be read: {errno}"), "check its permissions").because(errno)
            };
            let attr = layer.stat(layer.root(), OsStr::new("")).map_err(failed)?;
            let mut marks = namespace.marks(layer.root(), OsStr::new("")).map_err(failed)?;
            marks.opaque |= exists(layer, layer.root(), OsStr::new(WH_OPAQUE)).map_err(|e| failed(e.errno()))?;
            roots.push(LayerDir::root(layer.id, &attr, &marks, fds.clone()));
        }
        let first = layers.first().map_or(1, |layer| usize::from(layer.id.0));
        Ok(Self { layers, roots, fds, namespace, first })
    }

    /// Closes the directories that are open only to be used again.
    pub fn close_kept(&self) {
        self.fds.clear();
    }

    /// Returns the layers, topmost first.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Returns the roots of the layers, topmost first.
    pub fn roots(&self) -> &[Arc<LayerDir>] {
        &self.roots
    }

    /// Returns the layer that `dir` is in.
    pub fn layer(&self, dir: &LayerDir) -> &Layer {
        &self.layers[usize::from(dir.layer.0) - self.first]
    }

    /// Returns how many directories are open.
    pub fn open_directories(&self) -> usize {
        self.fds.len()
    }

    /// Returns how often a directory that was needed was open.
    pub fn asked_for_open(&self) -> Hits {
        self.fds.asked()
    }

    /// Runs `call` with a descriptor of `dir` for what is below it, opened through its parents where it is not open.
    ///
    /// It is opened with O_PATH, or was opened for a listing.
    pub fn with_fd<T>(&self, dir: &Arc<LayerDir>, call: impl FnOnce(BorrowedFd<'_>) -> Result<T>) -> Result<T> {
        let layer = self.layer(dir);
        if dir.parent.is_none() {
            return call(layer.root());
        }
        if let Some(fd) = self.fds.get(&dir.serial) {
            return call(fd.as_fd());
        }
        let fd = self.reopen(layer, dir)?;
        call(fd.as_fd())
    }

    /// Opens `dir`, from the nearest parent that is open, and keeps what was opened on the way.
    fn reopen(&self, layer: &Layer, dir: &Arc<LayerDir>) -> Result<Arc<OwnedFd>> {
        let mut way = vec![dir];
        let mut base = None;
        let mut at = dir;
        while let Some(parent) = &at.parent {
            if parent.parent.is_none() {
                break;
            }
            if let Some(fd) = self.fds.get(&parent.serial) {
                base = Some(fd);
                break;
            }
            way.push(parent);
            at = parent;
        }
        let mut opened = base;
        for step in way.into_iter().rev() {
            let from = opened.as_ref().map_or(layer.root(), |fd| fd.as_fd());
            let fd = layer.open_dir(from, &step.name).map_err(|e| layer.error("openat", &step.name, e))?;
            let fd = Arc::new(fd);
            self.keep(step, fd.clone());
            opened = Some(fd);
        }
        opened.ok_or(Error::Refused(Errno::STALE))
    }

    /// Calls `each` with the name, type and inode number of every entry of `dir` but `.` and `..`.
    ///
    /// The type may be `Unknown` on some file systems. Errors: those of openat(2) and getdents64(2).
    pub fn each_entry(&self, dir: &Arc<LayerDir>, each: impl FnMut(&[u8], FileType, u64)) -> Result<()> {
        let open = self.open_listing(dir)?;
        dents::each(open.as_fd(), each).map_err(|e| self.layer(dir).error("getdents", dir.own_name(), e))
    }

    /// Opens `dir` for reading its entries. Errors: those of openat(2).
    pub fn open_listing(&self, dir: &Arc<LayerDir>) -> Result<Arc<OwnedFd>> {
        let open = Arc::new(self.open_to_list(dir)?);
        // It is as good for what will be looked up in the directory. But a server of files may have few handles, of which
        // O_PATH takes none.
        if self.layer(dir).local && dir.parent.is_some() && self.fds.get(&dir.serial).is_none() {
            self.keep(dir, open.clone());
        }
        Ok(open)
    }

    fn open_to_list(&self, dir: &Arc<LayerDir>) -> Result<OwnedFd> {
        let layer = self.layer(dir);
        let failed = |e: Errno| layer.error("openat", dir.own_name(), e);
        let Some(parent) = &dir.parent else { return layer.open_listing(layer.root()).map_err(failed) };
        if let Some(fd) = self.fds.get(&dir.serial) {
            match layer.open_listing(fd.as_fd()) {
                // By "." it takes the right to search it, too.
                Err(Errno::ACCESS) => {}
                opened => return opened.map_err(failed),
            }
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        self.with_fd(parent, |fd| layer.open_noatime(fd, &dir.name, flags).map_err(failed))
    }

    /// Keeps a descriptor of `dir`.
    fn keep(&self, dir: &LayerDir, fd: Arc<OwnedFd>) {
        // Relaxed: read again only when nobody else has the directory any more.
        dir.opened.store(true, Ordering::Relaxed);
        self.fds.insert(dir.serial, fd);
    }

    /// Returns what the layer of `dir` says about `name`, `.wh.` names aside.
    pub fn examine(&self, dir: &Arc<LayerDir>, name: &OsStr, below: Below) -> Result<Found> {
        // The lowest layer.
        let below = if usize::from(dir.layer.0) == self.layers.len() { Below::Nothing } else { below };
        self.with_fd(dir, |fd| examine(self.layer(dir), self.namespace, fd, name, dir.xwhiteouts, below))
    }

    /// Returns whether `dir` holds `.wh.NAME`, which hides `name` in the layers below this one.
    pub fn hides_by_name(&self, dir: &Arc<LayerDir>, name: &OsStr) -> Result<bool> {
        if !dir.dotwh.possible() {
            return Ok(false);
        }
        self.with_fd(dir, |fd| hides_by_name(self.layer(dir), fd, name))
    }

    /// Reads the attributes of `name` in `dir`.
    pub fn stat(&self, dir: &Arc<LayerDir>, name: &OsStr) -> Result<Attr> {
        let layer = self.layer(dir);
        self.with_fd(dir, |fd| layer.stat(fd, name).map_err(|e| layer.error("statx", name, e)))
    }

    /// Returns whether `name` in `dir` is a device that marks a removed name.
    pub fn is_char_whiteout(&self, dir: &Arc<LayerDir>, name: &OsStr) -> Result<bool> {
        let layer = self.layer(dir);
        self.with_fd(dir, |fd| layer.is_char_whiteout(fd, name))
    }

    /// Returns an error that says what is wrong with `name` in `dir`.
    pub fn corrupt(&self, dir: &LayerDir, name: &OsStr, reason: impl Into<String>) -> Error {
        Error::Corrupt { file: self.location(dir, name), reason: reason.into() }
    }

    /// Names `name` in `dir` for messages.
    pub fn location(&self, dir: &LayerDir, name: &OsStr) -> Location {
        Location::new(self.layer(dir).label(), dir.path_of(name))
    }
}

/// Returns what `layer` says about `name` in the directory `dir`, `.wh.` names aside.
///
/// One call for anything but a directory; a directory costs the reading of its marks.
pub fn examine(
    layer: &Layer,
    ns: Namespace,
    dir: BorrowedFd<'_>,
    name: &OsStr,
    xwhiteouts: bool,
    below: Below,
) -> Result<Found> {
    let attr = match layer.stat(dir, name) {
        Ok(attr) => attr,
        // ENAMETOOLONG: this layer's file system takes shorter names than the union, so it does not have this one.
        Err(Errno::NOENT | Errno::NAMETOOLONG) => return Ok(Found::Absent),
        Err(errno) => return Err(layer.error("statx", name, errno)),
    };
    if attr.is_char_whiteout() {
        return Ok(Found::Whiteout);
    }
    let marks = || ns.marks(dir, name).map_err(|e| layer.error("listxattr", name, e));
    match attr.kind {
        FileKind::Directory => {
            let mut marks = marks()?;
            if !marks.opaque && (below == Below::Something || marks.redirect.is_some()) {
                marks.opaque = has_opaque_entry(layer, dir, name)?;
            }
            Ok(Found::Dir(attr, marks))
        }
        FileKind::Regular if xwhiteouts && attr.size == 0 && marks()?.whiteout => Ok(Found::Whiteout),
        _ => Ok(Found::File(attr)),
    }
}

/// Returns whether the directory `name` holds the entry that makes it opaque in image layers.
fn has_opaque_entry(layer: &Layer, dir: BorrowedFd<'_>, name: &OsStr) -> Result<bool> {
    layer.has_entry(dir, name, OsStr::new(WH_OPAQUE)).map_err(|e| layer.error("openat2", name, e))
}

/// Returns whether `dir` holds `.wh.NAME`.
pub fn hides_by_name(layer: &Layer, dir: BorrowedFd<'_>, name: &OsStr) -> Result<bool> {
    match dotwh_name(name) {
        Some(mark) => exists(layer, dir, &mark),
        None => Ok(false),
    }
}

/// Returns `.wh.NAME`; `None` where that is no name any more.
pub fn dotwh_name(name: &OsStr) -> Option<OsString> {
    let mut mark = OsString::from(WH_PREFIX);
    mark.push(name);
    (mark.len() <= NAME_MAX).then_some(mark)
}

fn exists(layer: &Layer, dir: BorrowedFd<'_>, name: &OsStr) -> Result<bool> {
    match layer.stat_file(dir, name) {
        Ok(_) => Ok(true),
        // EACCES: a plain user who may not search the directory cannot see what it hides either.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => Ok(false),
        Err(errno) => Err(layer.error("statx", name, errno)),
    }
}

//! How a union is described, checked and opened.

use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, StatxFlags};

use super::handle::Handles;
use super::index::Counts;
use super::inode::{Dir, Ino, Inode, NodeId, Parts, Place, Real};
use super::kept::KeptFiles;
use super::listing::Listings;
use super::numbers::Numbers;
use super::owners::OwnerView;
use super::prefetch::Prefetch;
use super::quota::Quota;
use super::table::Table;
use super::usage::{CopyUpCounts, NameCounts};
use super::{Caller, Union, status};
use crate::config::{Fsync, RedirectDir, Source, UnionConfig, XattrNamespace};
use crate::error::{Error, Result};
use crate::layer::attr::{Attr, FileKind};
use crate::layer::dir::Lowers;
use crate::layer::directories::Directories;
use crate::layer::directory::Directory;
use crate::layer::fds::FdCache;
use crate::layer::name::WH_OPAQUE;
use crate::layer::overlay::{Marks, Namespace};
use crate::layer::upper::Upper;
use crate::layer::{Layer, LayerId, Root};
use crate::sys::mount::Limit;
use crate::sys::{caps, dents, mountinfo};

/// Describes a union; made by [`Union::builder`].
#[derive(Debug, Clone, Default)]
pub struct UnionBuilder {
    config: UnionConfig,
}

impl UnionBuilder {
    /// Adds a read-only layer below those that are there: a path, or an open directory.
    pub fn lower(mut self, layer: impl Into<Source>) -> Self {
        self.config.lowers.push(layer.into());
        self
    }

    /// Adds read-only layers, topmost first.
    pub fn lowers(mut self, layers: impl IntoIterator<Item = impl Into<Source>>) -> Self {
        self.config.lowers.extend(layers.into_iter().map(Into::into));
        self
    }

    /// Sets the writable layer.
    pub fn upper(mut self, layer: impl Into<Source>) -> Self {
        self.config.upper = Some(layer.into());
        self
    }

    /// Sets the workdir, which is else a directory beside upper.
    pub fn work(mut self, directory: impl Into<Source>) -> Self {
        self.config.work = Some(directory.into());
        self
    }

    /// Sets how many descriptors are kept open: see [`UnionConfig::descriptors`].
    pub fn descriptors(mut self, most: NonZeroUsize) -> Self {
        self.config.descriptors = Some(most);
        self
    }

    /// Sets how long an upper or workdir is waited for that another mount still uses; else it is refused at once.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.config.patience = patience;
        self
    }

    /// Takes everything else from `config`.
    pub fn config(mut self, config: UnionConfig) -> Self {
        self.config = config;
        self
    }

    /// Opens, checks and locks the layers.
    ///
    /// Errors: [`Error::Setup`], which names the path, the reason and the way out; then nothing on the disk has changed.
    pub fn build(self) -> Result<Union> {
        Union::from_config(&self.config)
    }
}

impl Union {
    /// Opens the union that `config` describes, as [`UnionBuilder::build`] does.
    pub fn from_config(config: &UnionConfig) -> Result<Self> {
        // First, since each layer takes a descriptor.
        let kept = kept_open(config);
        let directories = Directories::open(config)?;
        let namespace = match config.xattr_namespace {
            XattrNamespace::Trusted => Namespace::Trusted,
            XattrNamespace::User => Namespace::User,
            XattrNamespace::Auto if caps::trusted_xattrs() => Namespace::Trusted,
            XattrNamespace::Auto => Namespace::User,
        };
        let lowers = Lowers::new(open_lowers(directories.lowers, config)?, namespace, kept)?;
        // Last, because it makes what is missing in the workdir.
        let upper = match directories.upper {
            Some(upper) => Some(Upper::open(config, upper, directories.work, namespace)?),
            None => None,
        };
        let settled = settle(config, &lowers, upper.as_ref(), namespace).inspect_err(|_| {
            if let Some(upper) = &upper {
                upper.withdraw();
            }
        })?;
        let Settled { upper_dev, redirect_dir, numbers, root } = settled;
        let index_used = upper.as_ref().is_some_and(index_is_used);
        let paged = lowers.layers().iter().chain(upper.as_ref().map(|upper| &upper.layer)).all(|layer| layer.local);
        let passable = lowers.layers().iter().all(|layer| layer.direct && layer.quiet)
            && upper.as_ref().is_none_or(|upper| upper.layer.direct && (upper.layer.quiet || config.atime));
        let quota = upper.as_ref().filter(|_| config.quota.is_set()).map(|upper| {
            let failed = |e: rustix::io::Errno| {
                let reason = format!("what it holds cannot be counted for the quota: {e}");
                Error::setup(&upper.layer.path, reason, "make it readable for the user that mounts").because(e)
            };
            upper
                .layer
                .open_listing(upper.layer.root())
                .and_then(|root| Quota::count(root.as_fd(), upper.work.index(), config.quota))
                .map_err(failed)
        });
        let quota = quota.transpose().inspect_err(|_| {
            if let Some(upper) = &upper {
                upper.withdraw();
            }
        })?;
        let in_force = status::in_force(config, upper.as_ref(), &lowers, namespace, redirect_dir);
        let union = Self {
            paged,
            passable,
            upper_dev,
            namespace,
            redirect_dir,
            metacopy: config.metacopy,
            atime: config.atime,
            acls: config.acls && config.xattrs,
            xattrs: config.xattrs,
            static_nlink: config.static_nlink,
            view: OwnerView::new(config.owners.clone()),
            server: Caller::current(),
            overrides_modes: caps::effective(rustix::thread::CapabilitySet::DAC_OVERRIDE),
            may_chown: caps::effective(rustix::thread::CapabilitySet::CHOWN),
            table: Table::new(root),
            dirs: FdCache::new(kept),
            files: KeptFiles::new(kept),
            listings: Listings::new(),
            prefetch: Prefetch::default(),
            times: Default::default(),
            handles: Handles::default(),
            tree: Mutex::new(()),
            moves: AtomicU64::new(0),
            index_used: AtomicBool::new(index_used),
            counts: Mutex::new(if index_used { Counts::Unseen } else { Counts::Settled }),
            copied: CopyUpCounts::default(),
            names: NameCounts::default(),
            quota,
            kept_at_most: 3 * kept,
            in_force,
            lowers,
            upper,
            numbers,
        };
        // As the kernel's overlayfs does at each mount. What cannot be settled now is, before a count changes.
        if index_used && let Err(error) = union.settle_counts() {
            log::warn!("{error}: what an earlier mount has left in the index stays there");
        }
        Ok(union)
    }
}

/// What depends on all layers.
struct Settled {
    upper_dev: (u32, u32),
    redirect_dir: RedirectDir,
    numbers: Numbers,
    root: Arc<Inode>,
}

/// Settles what depends on all layers, and marks a volatile upper.
fn settle(config: &UnionConfig, lowers: &Lowers, upper: Option<&Upper>, namespace: Namespace) -> Result<Settled> {
    let redirect_dir = redirect_dir(config, upper)?;
    let upper = match upper {
        Some(upper) => Some((upper, root_attr(upper)?)),
        None => None,
    };
    let upper_dev = upper.map_or((0, 0), |(_, attr)| attr.dev);
    let numbered = lowers.roots().iter().zip(lowers.layers()).map(|(root, layer)| (root.dev, layer.uuid));
    let numbers =
        Numbers::new(upper.map(|(upper, attr)| (attr.dev, upper.layer.uuid)), numbered, config.xino, config.ino32);
    let root = open_root(lowers, upper, &numbers, namespace)?;
    if let Some((upper, _)) = upper {
        let failed = |e| Error::setup(&upper.layer.path, format!("its owner and mode cannot be kept: {e}"), "check it");
        upper.begin_to_keep_apart().map_err(failed)?;
    }
    if let Some((upper, _)) = upper.filter(|_| config.fsync == Fsync::Volatile) {
        let failed = |e| Error::setup(upper.work.path(), format!("cannot be marked volatile: {e}"), "check free space");
        upper.work.mark_volatile().map_err(failed)?;
    }
    Ok(Settled { upper_dev, redirect_dir, numbers, root })
}

/// Reads the attributes of upper's root.
fn root_attr(upper: &Upper) -> Result<Attr> {
    let failed = |e| Error::setup(&upper.layer.path, format!("cannot be read: {e}"), "check the file system");
    upper.layer.stat(upper.layer.root(), OsStr::new("")).map_err(failed)
}

/// Returns how many descriptors are kept open for each: directories of upper, those of the lowers, and data.
fn kept_open(config: &UnionConfig) -> usize {
    const MOST: usize = 16384;
    match config.descriptors {
        Some(most) => most.get() / 3,
        // A quarter each; the rest is for handles, for what is unlinked and still in use, and for the process that embeds
        // the union.
        None => usize::try_from(caps::raise_open_files() / 4).unwrap_or(usize::MAX).min(MOST),
    }
}

fn open_lowers(lowers: Vec<Directory>, config: &UnionConfig) -> Result<Vec<Layer>> {
    let owners = &config.owners;
    let idmapped = if owners.uids.is_identity() && owners.gids.is_identity() { Vec::new() } else { idmapped_mounts() };
    let owners = Arc::new(owners.clone());
    let open = |(lower, id): (Directory, u16)| {
        let name = lower.name().to_owned();
        let idmap = is_on_one_of(lower.fd(), &idmapped).then(|| owners.clone());
        let mut layer = Layer::new(LayerId(id), &name, Root::of(lower, Limit::ReadOnly))?;
        layer.idmap = idmap;
        if let Some(store) = layer.overrides.take_if(|store| !store.is_credible(config.permissions)) {
            let path = layer.path.display();
            log::warn!(
                "{path}: its {} is not believed; mount with xattr_permissions=2 if the layer can be trusted",
                store.name()
            );
        }
        Ok(layer)
    };
    lowers.into_iter().zip(1u16..).map(open).collect()
}

/// Returns the numbers of the mounts that show other owners than are stored.
///
/// containers/storage gives a mount program lower layers on such mounts, and the map that they apply besides: for these
/// layers the map is not to be applied once more. That the two maps are one it alone knows.
fn idmapped_mounts() -> Vec<u64> {
    let table = mountinfo::read().inspect_err(|error| log::warn!("/proc/self/mountinfo: {error}")).unwrap_or_default();
    table.into_iter().filter(|mount| mount.idmapped).map(|mount| mount.id).collect()
}

fn is_on_one_of(fd: BorrowedFd<'_>, mounts: &[u64]) -> bool {
    if mounts.is_empty() {
        return false;
    }
    let seen = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::MNT_ID);
    seen.is_ok_and(|seen| mounts.contains(&seen.stx_mnt_id))
}

/// Settles whether redirects are written, which needs xattrs.
fn redirect_dir(config: &UnionConfig, upper: Option<&Upper>) -> Result<RedirectDir> {
    let able = upper.is_some_and(|upper| upper.features.xattrs);
    match (config.redirect_dir, upper) {
        (RedirectDir::Auto, _) if able => Ok(RedirectDir::On),
        (RedirectDir::Auto, _) => Ok(RedirectDir::Follow),
        (RedirectDir::On, Some(upper)) if !able => Err(Error::setup(
            &upper.layer.path,
            "cannot hold the xattr that redirect_dir=on needs",
            "use redirect_dir=off or another file system",
        )),
        (asked, _) => Ok(asked),
    }
}

/// Makes the root: all layers' roots down to the first opaque one.
fn open_root(
    lowers: &Lowers,
    upper: Option<(&Upper, Attr)>,
    numbers: &Numbers,
    namespace: Namespace,
) -> Result<Arc<Inode>> {
    let own = OsStr::new("");
    let mut marks = Marks::default();
    let mut upper_ino = 0;
    let mut number = None;
    if let Some((upper, attr)) = upper {
        upper_ino = attr.ino;
        number = Some(numbers.number(attr.dev, attr.ino));
        let failed =
            |e| Error::setup(&upper.layer.path, format!("its xattrs cannot be read: {e}"), "check the file system");
        marks = namespace.marks(upper.layer.root(), own).map_err(failed)?;
        marks.opaque |= upper.layer.stat(upper.layer.root(), OsStr::new(WH_OPAQUE)).is_ok();
    }
    let mut parts = Vec::new();
    if !marks.opaque {
        for root in lowers.roots() {
            parts.push(root.clone());
            if root.opaque {
                break;
            }
        }
    }
    let top = parts.first().cloned();
    // As in the kernel's overlayfs: the root alone has upper's number where there is an upper.
    if let Some(top) = top.as_ref().filter(|_| number.is_none()) {
        number = Some(numbers.number(top.dev, top.ino));
    }
    let real = match (upper, top) {
        (None, Some(top)) => Real::Lower(top),
        _ => Real::Upper,
    };
    let place = Place { parent: None, name: own.into(), real, unlinked: false, resident: false };
    Ok(Inode::new(
        NodeId::ROOT,
        Parts {
            ino: Ino(number.unwrap_or(NodeId::ROOT.0)),
            kind: FileKind::Directory,
            place,
            from_below: false,
            upper_ino,
            nlink_delta: None,
            dir: Some(Dir::new(parts.into(), marks.xwhiteouts, marks.impure)),
        },
    ))
}

fn index_is_used(upper: &Upper) -> bool {
    let Some(index) = upper.work.index() else { return false };
    let mut used = false;
    let listed = upper.layer.open_listing(index).and_then(|fd| dents::each(fd.as_fd(), |_, _, _| used = true));
    // What cannot be listed may hold something: looking is then the safe answer.
    used || listed.is_err()
}

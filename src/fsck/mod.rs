//! Checks an upper, and its workdir, against the lower layers that it belongs to, and repairs what can be repaired.
//!
//! A check changes nothing. It reads the upper once, directory by directory: what is held meanwhile are the names of the
//! directories that are still to be read, the entries of the index, and the directories with a redirect. The lower layers
//! are asked by name, and are read whole only where a link count is in doubt. Every name is resolved as `layer` does it,
//! one component that is no symbolic link; whatever the bytes of a layer say is a finding at worst.
//!
//! What is found depends on the lower layers that are named: with others, or in another order, whiteouts hide nothing and
//! redirects lead nowhere. So a repair takes away no contents that a name leads to, and what the union shows over *these*
//! layers stays as it is, but for what was EIO or shown twice before.
//!
//! Every step of a repair is one system call that a crash leaves done or undone, and where there are two, the state between
//! them shows the same tree as the one after them.

mod duplicates;
mod finding;
mod index;
mod merged;
mod origins;
mod repair;
mod tree;

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Instant;

use crate::config::{UnionConfig, XattrNamespace};
use crate::error::{Error, ErrorKind, Result};
use crate::layer::dir::Lowers;
use crate::layer::directories::Directories;
use crate::layer::directory::Directory;
use crate::layer::overlay::Namespace;
use crate::layer::{Layer, LayerId, Root, upper, workdir};
use crate::sys::mount::Limit;
use crate::sys::{caps, mountinfo};

pub use finding::{Finding, Problem, Repair, Side, Weight};
use merged::Layers;
use origins::Origins;

/// How many directories of upper, and of the lowers, are kept open.
const KEPT_OPEN: usize = 256;

/// An upper and the layers below it, locked as a mount locks them.
///
/// ```
/// use unionfs_rs::config::UnionConfig;
/// use unionfs_rs::fsck::{Fsck, Problem};
/// # let dir = tempfile::tempdir()?;
/// # let at = |name: &str| { let p = dir.path().join(name); std::fs::create_dir(&p).map(|()| p) };
/// # let (lower, upper) = (at("lower")?, at("upper")?);
/// std::fs::write(upper.join(".wh.gone"), "")?; // hides a name that no lower layer has
///
/// let config = UnionConfig { lowers: vec![(&lower).into()], upper: Some((&upper).into()), ..UnionConfig::default() };
/// let fsck = Fsck::open(&config)?;
/// let mut findings = Vec::new();
/// fsck.check(&mut |finding| findings.push(finding))?;
/// assert_eq!(findings[0].problem, Problem::WhiteoutOfNothing);
///
/// for finding in &findings {
///     println!("{finding}");
///     fsck.repair(finding)?;
/// }
/// fsck.check(&mut |finding| panic!("{finding}"))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Fsck {
    layers: Layers,
    origins: Origins,
    work: Option<Work>,
    /// Held open for its lock.
    _lock: OwnedFd,
}

/// A workdir.
struct Work {
    /// Itself, held open for its lock.
    lock: OwnedFd,
}

impl Work {
    fn fd(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }
}

impl std::fmt::Debug for Fsck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fsck").finish_non_exhaustive()
    }
}

impl Fsck {
    /// Opens and locks the layers that `config` names; of the rest of it the namespace of the xattrs counts, whose xattrs of
    /// owners are believed, and how long a mount that is ending is waited for.
    ///
    /// Without a workdir the one beside upper is taken, if it is there.
    ///
    /// Errors: [`Error::Setup`], which names the path, the reason and the way out, as for a mount;
    /// [`ErrorKind::InUse`] while it is mounted, by this union or, as far as this mount namespace shows it, by the
    /// kernel's overlayfs.
    pub fn open(config: &UnionConfig) -> Result<Self> {
        let Directories { lowers, upper, work } = Directories::open(config)?;
        let Some(upper) = upper else {
            return Err(Error::setup("", "no upper was named", "name the one to check with --upper"));
        };
        let work = match work {
            Some(work) => Some(work),
            None => workdir_beside(&upper)?,
        };
        let path = upper.name().to_owned();
        refuse_mounted(&upper, work.as_ref())?;
        let namespace = match config.xattr_namespace {
            XattrNamespace::Trusted => Namespace::Trusted,
            XattrNamespace::User => Namespace::User,
            XattrNamespace::Auto if caps::trusted_xattrs() => Namespace::Trusted,
            XattrNamespace::Auto => Namespace::User,
        };
        let open = |(lower, id): (Directory, u16)| {
            let name = lower.name().to_owned();
            open_layer(config, LayerId(id), &name, Root::of(lower, Limit::ReadOnly))
        };
        let lowers = lowers.into_iter().zip(1u16..).map(open).collect::<Result<Vec<_>>>()?;
        let lowers = Lowers::new(lowers, namespace, KEPT_OPEN)?;
        let deadline = Instant::now() + config.patience;
        let (root, work) = match work {
            Some(work) => {
                upper::check_separate(&upper, &work)?;
                let work_path = work.name().to_owned();
                let (root, work) = upper::clone_together(upper, work, false);
                (root, Some((work, work_path)))
            }
            None => (Root::of(upper, Limit::NoAccessTimes), None),
        };
        let layer = open_layer(config, LayerId::UPPER, &path, root)?;
        let lock = workdir::lock(layer.root(), &path, deadline)?;
        let work = match work {
            Some((work, path)) => Some(Work { lock: workdir::lock(work.as_fd(), &path, deadline)? }),
            None => None,
        };
        let upper = Lowers::new(vec![layer], namespace, KEPT_OPEN)?;
        let origins = Origins::of(&lowers);
        Ok(Self { layers: Layers { upper, lowers, namespace }, origins, work, _lock: lock })
    }

    /// Returns whether there is a workdir.
    pub fn has_workdir(&self) -> bool {
        self.work.is_some()
    }

    /// Checks everything, and calls `each` with what is found: of the workdir first, then of upper.
    ///
    /// Errors: those of reading what all else depends on; what cannot be read of one file is a finding.
    pub fn check(&self, each: &mut dyn FnMut(Finding)) -> Result<()> {
        self.check_workdir(each)?;
        let indexed = self.check_index(each)?;
        let claims = self.check_tree(&indexed, each)?;
        self.check_claims(&claims, each);
        Ok(())
    }

    /// Returns upper as a layer.
    fn upper(&self) -> Result<&Layer> {
        // There is one, always.
        self.layers.upper.layers().first().ok_or(Error::Refused(rustix::io::Errno::STALE))
    }
}

/// Opens a layer, whose xattrs of owners count only where a mount would believe them.
fn open_layer(config: &UnionConfig, id: LayerId, path: &Path, root: Root) -> Result<Layer> {
    let mut layer = Layer::new(id, path, root)?;
    layer.overrides = layer.overrides.filter(|store| store.is_credible(config.permissions));
    Ok(layer)
}

/// Opens the workdir that a mount takes where none is named; `None` where that has not been made.
fn workdir_beside(upper: &Directory) -> Result<Option<Directory>> {
    let Ok(path) = upper::default_workdir(upper) else { return Ok(None) };
    match std::fs::symlink_metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        _ => Directory::at(&path).map(Some),
    }
}

/// Refuses what a mount of the kernel's overlayfs writes to, which takes no lock that could be seen.
fn refuse_mounted(upper: &Directory, work: Option<&Directory>) -> Result<()> {
    let table = match mountinfo::read() {
        Ok(table) => table,
        Err(error) => {
            log::warn!("/proc/self/mountinfo: {error}; whether the kernel's overlayfs uses the upper is not known");
            return Ok(());
        }
    };
    for mount in table.iter().filter(|mount| mount.kind == "overlay") {
        let options = mount.options.as_encoded_bytes();
        for (key, ours) in [("upperdir=", Some(upper)), ("workdir=", work)] {
            let Some(ours) = ours else { continue };
            let value = options.split(|&byte| byte == b',').find_map(|option| option.strip_prefix(key.as_bytes()));
            let Some(path) = value.map(|value| Path::new(OsStr::from_bytes(value))) else { continue };
            // A relative one was relative to whoever mounted it.
            if path.is_absolute() && Directory::at(path).is_ok_and(|theirs| theirs.is(ours)) {
                let reason = format!("in use by the kernel's overlayfs on {}", mount.path.display());
                let refused = Error::setup(ours.name(), reason, "unmount that first");
                return Err(refused.of_kind(ErrorKind::InUse));
            }
        }
    }
    Ok(())
}

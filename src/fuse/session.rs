//! A mount: made, served on threads of this process, and ended.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use fuser::{Session, SessionACL};

use super::dev::Dev;
use super::device::{self, Way};
use super::server::Server;
use crate::config::{Access, MountConfig};
use crate::error::{Error, Result};
use crate::union::Union;

/// A union that is mounted and has shaken hands with the kernel, but serves no request yet.
///
/// ```no_run
/// use unionfs_rs::config::MountConfig;
/// use unionfs_rs::fuse::Mount;
/// use unionfs_rs::union::Union;
///
/// let union = Union::builder().lower("/layers/base").upper("/layers/upper").build()?;
/// let mount = Mount::new(union, &MountConfig::new("/mnt/merged"))?.spawn()?;
/// println!("{}", std::fs::read_to_string("/mnt/merged/etc/hostname")?);
/// mount.unmount_and_join()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Mount {
    session: Session<Dev>,
    server: Arc<Server>,
    unmounter: Unmounter,
}

/// Unmounts from any thread.
#[derive(Debug, Clone)]
pub struct Unmounter {
    mountpoint: PathBuf,
    way: Way,
}

/// A mount that is served by threads of its own.
pub struct MountHandle {
    thread: JoinHandle<Result<()>>,
    unmounter: Unmounter,
}

impl Mount {
    /// Mounts `union` as `config` says.
    ///
    /// Errors: [`Error::Setup`] for a mountpoint that cannot be used, [`Error::Mount`] when the machine refuses;
    /// then nothing is mounted.
    pub fn new(union: Union, config: &MountConfig) -> Result<Self> {
        match device::mountpoint(config).and_then(|mountpoint| refuse_layer(&union, &mountpoint).map(|()| mountpoint)) {
            Ok(mountpoint) => Self::mount_on(union, config, mountpoint),
            Err(error) => {
                union.withdraw();
                Err(error)
            }
        }
    }

    fn mount_on(union: Union, config: &MountConfig, mountpoint: PathBuf) -> Result<Self> {
        // Files are opened without asking, so the kernel itself must know that nothing can be written.
        let config = &MountConfig { read_only: config.read_only || union.is_read_only(), ..config.clone() };
        let (fd, way) = match device::mount(&mountpoint, config) {
            Ok(mounted) => mounted,
            Err(error) => {
                union.withdraw();
                return Err(error);
            }
        };
        let unmounter = Unmounter { mountpoint: mountpoint.clone(), way };
        let server = Arc::new(Server::new(union, config));
        let acl = match config.access {
            Access::Root => SessionACL::RootAndOwner,
            // The kernel itself keeps others out of a mount without allow_other.
            Access::Owner | Access::All => SessionACL::All,
        };
        let mut options = fuser::Config::default();
        options.n_threads = Some(threads(config).get());
        match Session::from_fd(Dev::new(server.clone()), fd, acl, options) {
            Ok(session) => {
                server.notices.start(&server, session.notifier());
                Ok(Self { session, server, unmounter })
            }
            Err(error) => {
                for undone in [unmounter.unmount(), server.end()] {
                    if let Err(error) = undone {
                        log::error!("{error}");
                    }
                }
                let reason = format!("the kernel's handshake failed: {error}");
                Err(Error::Mount { mountpoint, reason, remedy: "see dmesg for the kernel's reason".into() })
            }
        }
    }

    /// Returns what unmounts this from any thread.
    pub fn unmounter(&self) -> Unmounter {
        self.unmounter.clone()
    }

    /// Serves until the mount is unmounted, then ends the use of the layers.
    pub fn run(self) -> Result<()> {
        let served = self.session.run();
        self.server.end()?;
        served.map_err(|error| Error::Mount {
            mountpoint: self.unmounter.mountpoint,
            reason: format!("serving ended: {error}"),
            remedy: "unmount and mount again".into(),
        })
    }

    /// Serves on a thread of its own.
    pub fn spawn(self) -> Result<MountHandle> {
        let unmounter = self.unmounter.clone();
        let mountpoint = unmounter.mountpoint.clone();
        let thread = std::thread::Builder::new().name("unionfs-session".into()).spawn(move || self.run());
        let thread = thread.map_err(|error| Error::Mount {
            mountpoint,
            reason: format!("no thread can be started: {error}"),
            remedy: "raise the limit on processes (ulimit -u)".into(),
        })?;
        Ok(MountHandle { thread, unmounter })
    }
}

/// Refuses a mountpoint inside a layer that would be entered through it.
fn refuse_layer(union: &Union, mountpoint: &Path) -> Result<()> {
    let Some(layer) = union.unprotected_layer_above(mountpoint) else { return Ok(()) };
    let reason =
        format!("the mountpoint is inside the layer {}, which cannot be cloned privately here", layer.display());
    Err(Error::setup(mountpoint, reason, "mount elsewhere, or as root or in a user namespace (unshare -Urm)"))
}

fn threads(config: &MountConfig) -> NonZeroUsize {
    const TWO: NonZeroUsize = NonZeroUsize::new(2).expect("is not zero");
    config.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(TWO, |n| n.max(TWO)))
}

impl Unmounter {
    /// Unmounts; programs that are in the tree keep what they have open until they end.
    pub fn unmount(&self) -> Result<()> {
        device::unmount(&self.mountpoint, self.way)
    }
}

impl MountHandle {
    /// Unmounts and waits until all requests are answered and everything is in upper.
    pub fn unmount_and_join(self) -> Result<()> {
        self.unmounter.unmount()?;
        self.join()
    }

    /// Waits until somebody unmounts.
    pub fn join(self) -> Result<()> {
        let panicked = |_| Error::Mount {
            mountpoint: self.unmounter.mountpoint,
            reason: "the session panicked".into(),
            remedy: "unmount, and report what the log says".into(),
        };
        self.thread.join().map_err(panicked)?
    }
}

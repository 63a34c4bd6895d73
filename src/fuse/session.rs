//! A mount: made, served on threads of this process, and ended.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use fuser::{Session, SessionACL};

use super::dev::Dev;
use super::device::{self, Mounted};
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
    mounted: Arc<Mounted>,
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
        let (fd, mounted) = match device::mount(mountpoint, config) {
            Ok(mounted) => mounted,
            Err(error) => {
                union.withdraw();
                return Err(error);
            }
        };
        let unmounter = Unmounter { mounted: Arc::new(mounted) };
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
                server.notices.start(session.notifier());
                Ok(Self { session, server, unmounter })
            }
            Err(error) => {
                withdraw(&unmounter, server);
                let reason = format!("the kernel's handshake failed: {error}");
                Err(unmounter.error(reason, "see dmesg for the kernel's reason"))
            }
        }
    }

    /// Returns what unmounts this from any thread.
    pub fn unmounter(&self) -> Unmounter {
        self.unmounter.clone()
    }

    /// Serves until the mount is unmounted, then ends the use of the layers.
    ///
    /// Errors: [`Error::Mount`] when it cannot be served; then it is unmounted.
    pub fn run(self) -> Result<()> {
        let Self { session, server, unmounter } = self;
        let served = session.run();
        match &served {
            Ok(()) => unmounter.mounted.note_gone(),
            // Nobody answers any more, or not as many as there should be.
            Err(_) => unmounter.unmount_or_log(),
        }
        let ended = server.end();
        let Err(error) = served else { return ended };
        if let Err(error) = ended {
            log::error!("{error}");
        }
        Err(unmounter
            .error(format!("serving ended: {error}"), "mount again; a limit on threads may be too low (ulimit -u)"))
    }

    /// Serves on a thread of its own.
    ///
    /// Errors: [`Error::Mount`]; then it is unmounted.
    pub fn spawn(self) -> Result<MountHandle> {
        let (unmounter, server) = (self.unmounter.clone(), self.server.clone());
        match std::thread::Builder::new().name("unionfs-session".into()).spawn(move || self.run()) {
            Ok(thread) => Ok(MountHandle { thread, unmounter }),
            Err(error) => {
                withdraw(&unmounter, server);
                let reason = format!("no thread can be started: {error}");
                Err(unmounter.error(reason, "raise the limit on processes (ulimit -u)"))
            }
        }
    }

    /// Unmounts without having served, and removes what the mount has made on the disk.
    pub fn withdraw(self) {
        let Self { session, server, unmounter } = self;
        drop(session);
        withdraw(&unmounter, server);
    }
}

/// Undoes a mount that was never served and whose session is gone.
fn withdraw(unmounter: &Unmounter, server: Arc<Server>) {
    unmounter.unmount_or_log();
    server.notices.end();
    // The session was the other one that had it.
    if let Some(server) = Arc::into_inner(server) {
        server.union.withdraw();
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
    ///
    /// Only this mount, wherever it has been moved to: where it is gone, nothing is done. Errors: [`Error::Mount`], also
    /// where another mount covers this one.
    pub fn unmount(&self) -> Result<()> {
        self.mounted.unmount()
    }

    fn unmount_or_log(&self) {
        if let Err(error) = self.unmount() {
            log::error!("{error}");
        }
    }

    fn error(&self, reason: String, remedy: &str) -> Error {
        Error::Mount { mountpoint: self.mounted.mountpoint().to_owned(), reason, remedy: remedy.into() }
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
        let Self { thread, unmounter } = self;
        let panicked = |_| unmounter.error("the session panicked".into(), "unmount, and report what the log says");
        thread.join().map_err(panicked)?
    }
}

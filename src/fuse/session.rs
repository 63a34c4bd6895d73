//! A mount: made or taken over, served on threads of this process, and ended.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;

use rustix::fs::{FileType, OFlags};
use rustix::io::{Errno, FdFlags};

use super::connection::Connection;
use super::handshake::{self, Agreed, Failure, Wishes};
use super::linger::{self, Linger, Servers};
use super::server::Server;
use super::statistics::Statistics;
use super::status::{Observer, Status};
use super::unmounter::Unmounter;
use super::{affinity, dev, device};
use crate::config::MountConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::union::Union;

/// The numbers of /dev/fuse: admin-guide/devices.txt in the kernel's documentation.
const FUSE_DEVICE: (u32, u32) = (10, 229);

/// A union that is mounted and has shaken hands with the kernel, but serves no request yet.
///
/// To be ended by [`Mount::run`], [`Mount::spawn`] or [`Mount::withdraw`]: one that is dropped leaves a mount that nobody
/// serves, and in the workdir what the next mount removes.
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
    server: Arc<Server>,
    agreed: Agreed,
    threads: NonZeroUsize,
    unmounter: Unmounter,
}

/// A mount that is served by threads of its own.
///
/// Dropped without [`MountHandle::join`], it goes on being served until somebody unmounts, or the process ends; nobody
/// learns then what went wrong, and when upper can be used again.
pub struct MountHandle {
    thread: JoinHandle<Result<()>>,
    server: Arc<Server>,
    unmounter: Unmounter,
}

impl Mount {
    /// Mounts `union` as `config` says.
    ///
    /// Errors: [`Error::Setup`] for a mountpoint that cannot be used, [`Error::Mount`] when the machine refuses;
    /// then nothing is mounted.
    pub fn new(union: Union, config: &MountConfig) -> Result<Self> {
        // Files are opened without asking, so the kernel itself must know that nothing can be written.
        let config = &MountConfig { read_only: config.read_only || union.is_read_only(), ..config.clone() };
        if config.checks_permissions() && !config.default_permissions {
            log::warn!(
                "everybody may use the mount, so permissions are checked all the same; --no-allow-other keeps others out"
            );
        }
        let mounted = device::mountpoint(config).and_then(|mountpoint| {
            refuse_layer(&union, &mountpoint)?;
            device::mount(mountpoint, config)
        });
        match mounted {
            Ok((fd, mounted)) => {
                let unmounter = Unmounter::of(mounted);
                Self::shake_hands(union, fd, unmounter, config, "see dmesg for the kernel's reason")
            }
            Err(error) => {
                union.withdraw();
                Err(error)
            }
        }
    }

    /// Takes over `fd`, a /dev/fuse descriptor that the caller has opened and mounted, for instance in another mount
    /// namespace or by fsopen(2), and whose kernel nobody has answered yet.
    ///
    /// What mount(2) was told must be what `config` says: `default_permissions` where [`MountConfig::checks_permissions`] does,
    /// and `allow_other` unless the mount is the owner's alone; `ro` belongs to a union without an upper, or opening a file for writing succeeds and each write fails.
    /// Besides the kernel wants `rootmode=40000`, `user_id` and `group_id`. The mountpoint in `config` is for messages and
    /// may be empty; it must not be inside a layer.
    ///
    /// Unmounting stays with the caller: [`Unmounter::unmount`] answers [`Error::NotOurs`], and [`Mount::run`] and
    /// [`MountHandle::join`] return when the caller has unmounted and the last user of the tree is gone.
    ///
    /// Errors: [`Error::Mount`] for a descriptor that is no connection to a kernel, or was not mounted; then what building
    /// the union has made on the disk is removed, and the descriptor is closed, which ends the caller's mount.
    ///
    /// ```no_run
    /// use std::os::fd::{AsRawFd, OwnedFd};
    /// use rustix::mount::{MountFlags, mount};
    /// use unionfs_rs::config::MountConfig;
    /// use unionfs_rs::fuse::Mount;
    /// use unionfs_rs::union::Union;
    ///
    /// let device: OwnedFd = std::fs::File::options().read(true).write(true).open("/dev/fuse")?.into();
    /// let data = format!("fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other", device.as_raw_fd());
    /// let data = std::ffi::CString::new(data)?;
    /// mount("mine", "/mnt/merged", "fuse.mine", MountFlags::empty(), Some(&*data))?;
    ///
    /// let union = Union::builder().lower("/layers/base").upper("/layers/upper").build()?;
    /// let served = Mount::attach(union, device, &MountConfig::new("/mnt/merged"))?.spawn()?;
    /// println!("{}", std::fs::read_to_string("/mnt/merged/etc/hostname")?);
    /// rustix::mount::unmount("/mnt/merged", rustix::mount::UnmountFlags::empty())?;
    /// served.join()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn attach(union: Union, fd: OwnedFd, config: &MountConfig) -> Result<Self> {
        let unmounter = Unmounter::of_callers(&config.mountpoint);
        if let Err(error) = ready_for_service(fd.as_fd(), &unmounter) {
            union.withdraw();
            return Err(error);
        }
        Self::shake_hands(union, fd, unmounter, config, "mount the descriptor before, and attach it once")
    }

    fn shake_hands(
        union: Union,
        fd: OwnedFd,
        unmounter: Unmounter,
        config: &MountConfig,
        remedy: &str,
    ) -> Result<Self> {
        let connection = Arc::new(Connection::new(fd));
        let wishes = Wishes::of(&union, config);
        match handshake::shake(&connection, &wishes) {
            Ok(agreed) => {
                if agreed.ring.is_some() && config.threads.is_some() {
                    log::info!("requests come through io_uring, to a thread for each processor: threads has no effect");
                }
                let server = Arc::new(Server::new(union, connection, config, &wishes, &agreed));
                Ok(Self { server, agreed, threads: threads(config), unmounter })
            }
            Err(Failure { reason, remedy: better }) => {
                // The caller's mount ends with the descriptor.
                drop(connection);
                unmounter.unmount_or_log();
                union.withdraw();
                Err(unmounter.error(format!("the kernel's handshake failed: {reason}"), better.unwrap_or(remedy)))
            }
        }
    }

    /// Returns what unmounts this from any thread.
    pub fn unmounter(&self) -> Unmounter {
        self.unmounter.clone()
    }

    /// Returns what the mount holds and has done.
    pub fn statistics(&self) -> Statistics {
        self.server.statistics()
    }

    /// Returns what is mounted, how and why, and what it holds and has done.
    pub fn status(&self) -> Status {
        self.server.status()
    }

    /// Returns what looks at the mount from any thread, for as long as it is served.
    pub fn observer(&self) -> Observer {
        Observer::of(&self.server)
    }

    /// Serves until the mount is unmounted, then ends the use of the layers.
    ///
    /// Errors: [`Error::Mount`] when it cannot be served; then it is unmounted.
    pub fn run(self) -> Result<()> {
        self.run_counted().0
    }

    /// Serves as [`Mount::run`], and returns besides what the mount holds at its end and has done in all.
    pub(crate) fn run_counted(self) -> (Result<()>, Statistics) {
        let Self { server, mut agreed, threads, unmounter } = self;
        let served = match agreed.ring.take() {
            Some(ring) => ring.serve(&server, &agreed),
            None => serve(&server, &agreed, threads, &unmounter),
        };
        match &served {
            Ok(()) => unmounter.note_gone(),
            // Nobody answers any more, and whoever waits would do so for ever, unless the connection ends.
            Err(_) => {
                server.pool.end();
                server.connection.disconnect();
                unmounter.unmount_or_log();
            }
        }
        let ended = server.end();
        let statistics = server.statistics();
        let Err(error) = served else { return (ended, statistics) };
        if let Err(error) = ended {
            log::error!("{error}");
        }
        let reason = format!("serving ended: {error}");
        let error = unmounter.error(
            reason,
            "mount again, by --transport dev if it was the ring; a limit on threads may be too low (ulimit -u)",
        );
        (Err(error), statistics)
    }

    /// Serves on a thread of its own.
    ///
    /// Errors: [`Error::Mount`]; then it is unmounted.
    pub fn spawn(self) -> Result<MountHandle> {
        let (unmounter, server) = (self.unmounter.clone(), self.server.clone());
        match std::thread::Builder::new().name("unionfs-session".into()).spawn(move || self.run()) {
            Ok(thread) => Ok(MountHandle { thread, server, unmounter }),
            Err(error) => {
                withdraw(&unmounter, server);
                let reason = format!("no thread can be started: {error}");
                Err(unmounter.error(reason, "raise the limit on processes (ulimit -u)"))
            }
        }
    }

    /// Unmounts without having served, and removes what the mount has made on the disk.
    pub fn withdraw(self) {
        withdraw(&self.unmounter, self.server);
    }
}

/// Serves /dev/fuse by so many threads until the mount is gone.
///
/// Where one of them cannot be started or go on, the mount is taken down, which ends the others.
fn serve(server: &Arc<Server>, agreed: &Agreed, threads: NonZeroUsize, unmounter: &Unmounter) -> io::Result<()> {
    // On many processors, whose threads are as many, somebody would be awake for nothing most of the time.
    let linger = (threads.get() <= linger::FEW).then(|| Linger::new(Servers::Any));
    if linger.is_some() {
        server.connection.stop_waiting()?;
    }
    // Each on a processor of its own: two that look for requests on the same one leave another to be woken.
    let mut processors = if linger.is_some() { affinity::processors() } else { Vec::new() };
    if threads.get() < processors.len() {
        processors.clear();
    }
    let work = |at: usize| {
        server.confinement.enter();
        let processor = processors.get(at % processors.len().max(1)).copied();
        let panicked = |_| Err(io::Error::other("a thread that takes requests panicked"));
        catch_unwind(AssertUnwindSafe(|| dev::work(server, agreed, linger.as_ref(), processor)))
            .unwrap_or_else(panicked)
    };
    let (report, reports) = channel();
    std::thread::scope(|scope| {
        for at in 0..threads.get() {
            let report = report.clone();
            // Whoever does not hear it has given up.
            let work = move || drop(report.send(work(at)));
            match std::thread::Builder::new().name(format!("unionfs-dev{at}")).spawn_scoped(scope, work) {
                Ok(_) => {}
                Err(error) => {
                    unmounter.unmount_or_log();
                    return Err(error);
                }
            }
        }
        drop(report);
        // Unmounting is for this thread: the others are kept from it.
        let unmounted = |done: &io::Result<()>| {
            if let Err(error) = done {
                log::error!("requests cannot be served any longer: {error}");
                unmounter.unmount_or_log();
            }
        };
        reports.into_iter().inspect(unmounted).fold(Ok(()), io::Result::and)
    })
}

/// Undoes a mount that was never served.
fn withdraw(unmounter: &Unmounter, server: Arc<Server>) {
    unmounter.unmount_or_log();
    // Nobody else has it: no thread was started.
    if let Some(server) = Arc::into_inner(server) {
        server.union.withdraw();
    }
}

/// Refuses a mountpoint inside a layer that would be entered through it.
fn refuse_layer(union: &Union, mountpoint: &Path) -> Result<()> {
    let Some(layer) = union.unprotected_layer_above(mountpoint)? else { return Ok(()) };
    let reason =
        format!("the mountpoint is inside the layer {}, which cannot be cloned privately here", layer.display());
    Err(Error::setup(mountpoint, reason, "mount elsewhere, or as root or in a user namespace (unshare -Urm)"))
}

/// Checks that `fd` is a connection to the kernel, and has reading from it wait for requests.
fn ready_for_service(fd: BorrowedFd<'_>, unmounter: &Unmounter) -> Result<()> {
    let failed = |what: &str, errno: Errno| unmounter.error(format!("{what}: {errno}"), "give an open /dev/fuse");
    let stat = rustix::fs::fstat(fd).map_err(|e| failed("the descriptor cannot be looked at", e))?;
    let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || device != FUSE_DEVICE {
        let error = unmounter.error("the descriptor is not /dev/fuse", "give an open and mounted /dev/fuse");
        return Err(error.of_kind(ErrorKind::Setup));
    }
    let flags = rustix::fs::fcntl_getfl(fd).map_err(|e| failed("the descriptor cannot be used", e))?;
    rustix::fs::fcntl_setfl(fd, flags - OFlags::NONBLOCK).map_err(|e| failed("the descriptor cannot wait", e))?;
    // The programs that the process starts must not keep the mount alive.
    rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC).map_err(|e| failed("the descriptor cannot be kept to oneself", e))
}

fn threads(config: &MountConfig) -> NonZeroUsize {
    const TWO: NonZeroUsize = NonZeroUsize::new(2).expect("is not zero");
    config.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(TWO, |n| n.max(TWO)))
}

impl MountHandle {
    /// Returns what the mount holds and has done.
    pub fn statistics(&self) -> Statistics {
        self.server.statistics()
    }

    /// Returns what is mounted, how and why, and what it holds and has done.
    pub fn status(&self) -> Status {
        self.server.status()
    }

    /// Returns what looks at the mount from any thread, for as long as it is served.
    pub fn observer(&self) -> Observer {
        Observer::of(&self.server)
    }

    /// Returns what unmounts this from any thread.
    pub fn unmounter(&self) -> Unmounter {
        self.unmounter.clone()
    }

    /// Unmounts and waits until all requests are answered and everything is in upper.
    ///
    /// Then no thread and no descriptor is left, and the layers can be mounted again. That waits for the last program that
    /// has a file of the mount open.
    ///
    /// Errors: those of [`Unmounter::unmount`], where the mount is served on; those of [`MountHandle::join`].
    pub fn unmount_and_join(self) -> Result<()> {
        self.unmounter.unmount()?;
        self.join()
    }

    /// Waits until somebody unmounts, and as [`MountHandle::unmount_and_join`] does after that.
    ///
    /// Errors: [`Error::Mount`] when it could not be served any longer, and what ending the use of upper has met.
    pub fn join(self) -> Result<()> {
        let Self { thread, server, unmounter } = self;
        // So that the layers are let go of when the thread has ended.
        drop(server);
        let panicked = |_| unmounter.error("the session panicked", "unmount, and report what the log says");
        thread.join().map_err(panicked)?
    }
}

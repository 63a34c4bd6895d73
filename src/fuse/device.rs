//! How /dev/fuse is opened and mounted: by mount(2) for root, by fusermount3 for everybody else.

use std::ffi::OsStr;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType};

use crate::config::{Access, MountConfig, Propagation};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::mountinfo;

const DEVICE: &str = "/dev/fuse";
const FUSERMOUNT: &str = "fusermount3";

/// Where SELinux shows itself; a kernel without it takes no context.
const SELINUX: &str = "/sys/fs/selinux";

/// How a mount was made, which is how it is unmounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// mount(2).
    System,
    /// fusermount3, set-user-id root.
    Helper,
}

/// A mount of ours, which is told by its device from whatever else is mounted at the same path.
#[derive(Debug)]
pub(super) struct Mounted {
    mountpoint: PathBuf,
    device: (u32, u32),
    way: Way,
    /// Whether it is known to be gone, after which the device's number may be another mount's.
    ///
    /// A leaf. Held while the mount is looked for and unmounted, so that nobody here unmounts it in between.
    gone: Mutex<bool>,
}

/// What becomes of a mount that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Busy {
    /// It stays.
    Refuse,
    /// It is taken out of the tree now, and ends with its last user.
    Detach,
}

fn failed(mountpoint: &Path, reason: impl Into<String>, remedy: impl Into<String>) -> Error {
    Error::mount(mountpoint, reason, remedy)
}

/// Checks the mountpoint and returns its path without symbolic links.
pub(super) fn mountpoint(config: &MountConfig) -> Result<PathBuf> {
    let path = &config.mountpoint;
    let real = std::fs::canonicalize(path).map_err(|e| {
        Error::setup(path, format!("the mountpoint cannot be resolved: {e}"), "create the directory").because(e)
    })?;
    if !real.is_dir() {
        return Err(Error::setup(path, "the mountpoint is not a directory", "name a directory"));
    }
    Ok(real)
}

/// Mounts on `mountpoint` and returns the connection to the kernel.
///
/// Errors: [`Error::Mount`]; then nothing is mounted.
pub(super) fn mount(mountpoint: PathBuf, config: &MountConfig) -> Result<(OwnedFd, Mounted)> {
    let context = context(&mountpoint, config);
    let (fd, way) = match mount_by_system(&mountpoint, config, context)? {
        Some(fd) => (fd, Way::System),
        None => (mount_by_helper(&mountpoint, config)?, Way::Helper),
    };
    if let Some(context) = context.filter(|_| way == Way::Helper) {
        // It refuses options that it does not know, and this is one.
        log::warn!("{}: mounted by fusermount3, which takes no context: {context} is left out", mountpoint.display());
    }
    if let Err(reason) = propagate(&mountpoint, way, config.propagation) {
        return Err(take_back(&mountpoint, way, &reason));
    }
    match device_at(&mountpoint) {
        Ok(device) => Ok((fd, Mounted { mountpoint, device, way, gone: Mutex::new(false) })),
        Err(errno) => {
            let reason = format!("what was mounted cannot be told from other mounts (statx: {errno})");
            Err(take_back(&mountpoint, way, &reason))
        }
    }
}

/// Sets whether mounts below are seen elsewhere; returns the reason where that fails.
fn propagate(mountpoint: &Path, way: Way, wanted: Option<Propagation>) -> std::result::Result<(), String> {
    let flag = match wanted {
        None => return Ok(()),
        Some(_) if way == Way::Helper => {
            log::warn!("{}: mounted as a plain user, who cannot set its propagation", mountpoint.display());
            return Ok(());
        }
        Some(Propagation::Private) => MountPropagationFlags::PRIVATE,
        Some(Propagation::Shared) => MountPropagationFlags::SHARED,
        Some(Propagation::Slave) => MountPropagationFlags::DOWNSTREAM,
    };
    rustix::mount::mount_change(mountpoint, flag).map_err(|errno| format!("its propagation cannot be set: {errno}"))
}

/// Unmounts what was mounted just now and cannot be used, and returns the error that says why.
fn take_back(mountpoint: &Path, way: Way, reason: &str) -> Error {
    match unmount(mountpoint, way, Busy::Detach) {
        Ok(()) => failed(mountpoint, reason, "try again, and report it if that does not help"),
        Err(more) => failed(mountpoint, format!("{reason}, nor unmounted: {more}"), "unmount it (fusermount3 -u -z)"),
    }
}

/// Returns the device that is seen at `path`; asks no server for it, which may not answer yet, or no longer.
fn device_at(path: &Path) -> rustix::io::Result<(u32, u32)> {
    let seen = rustix::fs::statx(CWD, path, AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT, StatxFlags::empty())?;
    Ok((seen.stx_dev_major, seen.stx_dev_minor))
}

/// Mounts by mount(2); `None` where this process may not.
fn mount_by_system(mountpoint: &Path, config: &MountConfig, context: Option<&str>) -> Result<Option<OwnedFd>> {
    let device = match rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(device) => device,
        // The helper may open it where this user may not.
        Err(Errno::ACCESS | Errno::PERM) => return Ok(None),
        Err(Errno::NOENT | Errno::NODEV | Errno::NXIO) => {
            return Err(failed(
                mountpoint,
                "there is no /dev/fuse",
                "load the fuse module (modprobe fuse), or give the container the device",
            ));
        }
        Err(errno) => {
            return Err(
                failed(mountpoint, format!("/dev/fuse cannot be opened: {errno}"), "check the device").because(errno)
            );
        }
    };
    let mut flags = MountFlags::empty();
    for (set, flag) in [
        (config.read_only, MountFlags::RDONLY),
        (!config.suid, MountFlags::NOSUID),
        (!config.dev, MountFlags::NODEV),
        (!config.exec, MountFlags::NOEXEC),
    ] {
        flags.set(flag, set);
    }
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let mut data = format!("fd={},rootmode=40000,user_id={uid},group_id={gid}", device.as_raw_fd());
    for option in shared_options(config) {
        data.push(',');
        data.push_str(option);
    }
    if let Some(context) = context {
        // The quotes keep its commas.
        data.push_str(&format!(",context=\"{context}\""));
    }
    let data = std::ffi::CString::new(data).map_err(|_| Error::Refused(Errno::INVAL))?;
    let kind = format!("fuse.{}", config.subtype);
    match rustix::mount::mount(&*config.fsname, mountpoint, &*kind, flags, Some(&*data)) {
        Ok(()) => Ok(Some(device)),
        Err(Errno::PERM) => Ok(None),
        Err(errno) => {
            Err(failed(mountpoint, format!("mount(2) failed: {errno}"), "see dmesg for the kernel's reason")
                .because(errno))
        }
    }
}

/// Returns the context to mount with, where the kernel knows contexts.
fn context<'a>(mountpoint: &Path, config: &'a MountConfig) -> Option<&'a str> {
    let context = config.context.as_deref()?;
    if Path::new(SELINUX).exists() {
        return Some(context);
    }
    log::warn!("{}: this kernel has no SELinux; the context {context} is left out", mountpoint.display());
    None
}

fn shared_options(config: &MountConfig) -> impl Iterator<Item = &'static str> {
    let allow = (config.access != Access::Owner).then_some("allow_other");
    let permissions = config.checks_permissions().then_some("default_permissions");
    allow.into_iter().chain(permissions)
}

/// Mounts through fusermount3, which sends the connection back over a socket.
fn mount_by_helper(mountpoint: &Path, config: &MountConfig) -> Result<OwnedFd> {
    let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let (ours, theirs) = pair.map_err(|e| failed(mountpoint, format!("socketpair: {e}"), "free some descriptors"))?;
    // As its standard input, so that no other process that this one starts meanwhile inherits it.
    let child = Command::new(FUSERMOUNT)
        .arg("-o")
        .arg(OsStr::from_bytes(helper_options(config).as_bytes()))
        .arg("--")
        .arg(mountpoint)
        .env("_FUSE_COMMFD", "0")
        .stdin(theirs)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let child = child.map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            let remedy =
                "install it (Debian: apt-get install fuse3), or mount as root or in a user namespace (unshare -Urm)";
            failed(mountpoint, "a plain user mounts through fusermount3, which is not installed", remedy)
        }
        _ => failed(mountpoint, format!("fusermount3 cannot be started: {e}"), "check that it may be executed"),
    })?;
    let received = receive(&ours);
    let ended = child.wait_with_output();
    match (received, ended) {
        // Sent once all is done.
        (Ok(fd), _) => Ok(fd),
        // It has mounted, but there is nothing to serve the mount by.
        (Err(reason), Ok(output)) if output.status.success() => {
            let reason = format!("the connection cannot be received from fusermount3: {reason}");
            Err(take_back(mountpoint, Way::Helper, &reason))
        }
        (Err(_), Ok(output)) => Err(helper_failed(mountpoint, String::from_utf8_lossy(&output.stderr).trim())),
        (Err(_), Err(error)) => Err(helper_failed(mountpoint, &format!("fusermount3 cannot be waited for: {error}"))),
    }
}

fn helper_failed(mountpoint: &Path, words: &str) -> Error {
    let may_not = words.contains("user_allow_other") || words.contains("Operation not permitted");
    let remedy = if words.contains("user_allow_other") {
        "add a line `user_allow_other` to /etc/fuse.conf as root, or leave out allow_other and allow_root"
    } else if words.contains("Operation not permitted") {
        "check that fusermount3 is set-user-id root; in a user namespace it needs a mount namespace too (unshare -Urm)"
    } else {
        "`unionfs-rs doctor` says what is missing"
    };
    let reason = if words.is_empty() { "fusermount3 failed without a word" } else { words };
    let kind = if may_not { ErrorKind::Permission } else { ErrorKind::Machine };
    failed(mountpoint, reason, remedy).of_kind(kind)
}

fn helper_options(config: &MountConfig) -> String {
    let mut options: Vec<String> = shared_options(config).map(String::from).collect();
    options.push(format!("fsname={}", config.fsname));
    options.push(format!("subtype={}", config.subtype));
    // nosuid and nodev are what it does for a plain user anyhow; it refuses the opposite.
    for (set, word) in [(config.read_only, "ro"), (!config.exec, "noexec"), (config.suid, "suid"), (config.dev, "dev")]
    {
        if set {
            options.push(word.into());
        }
    }
    options.join(",")
}

/// Receives the one descriptor that the helper sends.
fn receive(socket: &OwnedFd) -> std::result::Result<OwnedFd, String> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0u8; 1];
    let mut iov = [IoSliceMut::new(&mut byte)];
    let message = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket.as_fd(), &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC)
    });
    message.map_err(|errno| errno.to_string())?;
    let received = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    // The kernel leaves out what this process has no room for.
    received.ok_or_else(|| "no descriptor has come; too many may be open (ulimit -n)".to_owned())
}

impl Mounted {
    /// Returns the directory that was mounted on.
    pub(super) fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Returns the number of the device.
    pub(super) fn device(&self) -> (u32, u32) {
        self.device
    }

    /// Notes that the kernel has ended the mount.
    pub(super) fn note_gone(&self) {
        *self.gone.lock() = true;
    }

    /// Unmounts, wherever the mount has been moved to; where it is gone there is nothing to do.
    ///
    /// Who is using the tree finishes. Errors: [`Error::Mount`], also where another mount covers this one.
    pub(super) fn unmount(&self) -> Result<()> {
        let mut gone = self.gone.lock();
        let path = self.path().filter(|_| !*gone);
        let Some(path) = path else {
            *gone = true;
            return Ok(());
        };
        match device_at(&path) {
            Ok(device) if device == self.device => {}
            Ok(_) => {
                return Err(
                    failed(&path, "something else is mounted over it", "unmount that first").of_kind(ErrorKind::InUse)
                );
            }
            Err(errno) => {
                return Err(failed(&path, format!("cannot be reached: {errno}"), "unmount it as root").because(errno));
            }
        }
        // By path, as there is no other way through the helper; who is faster than this unmounts it himself.
        if let Err(reason) = unmount(&path, self.way, Busy::Refuse) {
            match unmount(&path, self.way, Busy::Detach) {
                Ok(()) => log::warn!(
                    "{}: detached while in use ({reason}); it is served until its last user is gone",
                    path.display()
                ),
                Err(_) if self.path().is_none() => {}
                Err(reason) => {
                    return Err(failed(&path, reason, "end the programs that use it, or unmount it as root"));
                }
            }
        }
        *gone = self.path().is_none();
        Ok(())
    }

    /// Returns what it is mounted on now, rather where it was made than elsewhere.
    fn path(&self) -> Option<PathBuf> {
        // Without /proc it can only be where it was made.
        let Ok(table) = mountinfo::read() else { return Some(self.mountpoint.clone()) };
        let ours = table.into_iter().filter(|line| line.device == self.device).map(|line| line.path);
        ours.min_by_key(|path| *path != self.mountpoint)
    }
}

/// Unmounts what is on `path`; returns the reason where that fails.
fn unmount(path: &Path, way: Way, busy: Busy) -> std::result::Result<(), String> {
    if way == Way::System {
        let flags = match busy {
            Busy::Refuse => UnmountFlags::NOFOLLOW,
            Busy::Detach => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
        };
        return rustix::mount::unmount(path, flags).map_err(|errno| errno.to_string());
    }
    let lazy = (busy == Busy::Detach).then_some("-z");
    let mut command = Command::new(FUSERMOUNT);
    let output = command.arg("-u").args(lazy).arg("--").arg(path).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("fusermount3: {error}")),
    }
}

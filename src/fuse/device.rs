//! How /dev/fuse is opened and mounted: by mount(2) for root, by fusermount3 for everybody else.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType};

use crate::config::{Access, MountConfig};
use crate::error::{Error, Result};

const DEVICE: &str = "/dev/fuse";
const FUSERMOUNT: &str = "fusermount3";

/// How a mount was made, which is how it is unmounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// mount(2).
    System,
    /// fusermount3, set-user-id root.
    Helper,
}

fn failed(mountpoint: &Path, reason: impl Into<String>, remedy: impl Into<String>) -> Error {
    Error::Mount { mountpoint: mountpoint.to_owned(), reason: reason.into(), remedy: remedy.into() }
}

/// Checks the mountpoint and returns its path without symbolic links.
pub(super) fn mountpoint(config: &MountConfig) -> Result<PathBuf> {
    let path = &config.mountpoint;
    let real = std::fs::canonicalize(path)
        .map_err(|e| Error::setup(path, format!("the mountpoint cannot be resolved: {e}"), "create the directory"))?;
    if !real.is_dir() {
        return Err(Error::setup(path, "the mountpoint is not a directory", "name a directory"));
    }
    Ok(real)
}

/// Mounts on `mountpoint` and returns the connection to the kernel.
///
/// Errors: [`Error::Mount`]; then nothing is mounted.
pub(super) fn mount(mountpoint: &Path, config: &MountConfig) -> Result<(OwnedFd, Way)> {
    match mount_by_system(mountpoint, config)? {
        Some(fd) => Ok((fd, Way::System)),
        None => Ok((mount_by_helper(mountpoint, config)?, Way::Helper)),
    }
}

/// Mounts by mount(2); `None` where this process may not.
fn mount_by_system(mountpoint: &Path, config: &MountConfig) -> Result<Option<OwnedFd>> {
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
            return Err(failed(mountpoint, format!("/dev/fuse cannot be opened: {errno}"), "check the device"));
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
    let data = std::ffi::CString::new(data).map_err(|_| Error::Refused(Errno::INVAL))?;
    let kind = format!("fuse.{}", config.subtype);
    match rustix::mount::mount(&*config.fsname, mountpoint, &*kind, flags, Some(&*data)) {
        Ok(()) => Ok(Some(device)),
        Err(Errno::PERM) => Ok(None),
        Err(errno) => Err(failed(mountpoint, format!("mount(2) failed: {errno}"), "see dmesg for the kernel's reason")),
    }
}

fn shared_options(config: &MountConfig) -> impl Iterator<Item = &'static str> {
    let allow = (config.access != Access::Owner).then_some("allow_other");
    let permissions = config.default_permissions.then_some("default_permissions");
    allow.into_iter().chain(permissions)
}

/// Mounts through fusermount3, which sends the connection back over a socket.
fn mount_by_helper(mountpoint: &Path, config: &MountConfig) -> Result<OwnedFd> {
    let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let (ours, theirs) = pair.map_err(|e| failed(mountpoint, format!("socketpair: {e}"), "free some descriptors"))?;
    // The helper inherits a copy that is not closed when it starts, from this process and no other that it may start.
    let passed =
        rustix::io::dup(&theirs).map_err(|e| failed(mountpoint, format!("dup: {e}"), "free some descriptors"))?;
    drop(theirs);
    let child = Command::new(FUSERMOUNT)
        .arg("-o")
        .arg(OsStr::from_bytes(helper_options(config).as_bytes()))
        .arg("--")
        .arg(mountpoint)
        .env("_FUSE_COMMFD", passed.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    drop(passed);
    let mut child = child.map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            let remedy =
                "install it (Debian: apt-get install fuse3), or mount as root or in a user namespace (unshare -Urm)";
            failed(mountpoint, "a plain user mounts through fusermount3, which is not installed", remedy)
        }
        _ => failed(mountpoint, format!("fusermount3 cannot be started: {e}"), "check that it may be executed"),
    })?;
    let received = receive(&ours);
    let mut words = String::new();
    if let Some(stderr) = child.stderr.as_mut() {
        // What it says is for the message alone; without it the status still tells.
        let _ = stderr.read_to_string(&mut words);
    }
    let status = child.wait();
    match received {
        Some(fd) if status.is_ok_and(|status| status.success()) => Ok(fd),
        _ => Err(helper_failed(mountpoint, words.trim())),
    }
}

fn helper_failed(mountpoint: &Path, words: &str) -> Error {
    let remedy = if words.contains("user_allow_other") {
        "add a line `user_allow_other` to /etc/fuse.conf as root, or leave out allow_other and allow_root"
    } else if words.contains("Operation not permitted") {
        "check that fusermount3 is set-user-id root; in a user namespace it needs a mount namespace too (unshare -Urm)"
    } else {
        "`unionfs-rs doctor` says what is missing"
    };
    let reason = if words.is_empty() { "fusermount3 failed without a word" } else { words };
    failed(mountpoint, reason, remedy)
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

/// Receives the one descriptor that the helper sends; `None` when it ends without.
fn receive(socket: &OwnedFd) -> Option<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0u8; 1];
    let mut iov = [IoSliceMut::new(&mut byte)];
    let message = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket.as_fd(), &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC)
    });
    message.ok().filter(|message| message.bytes > 0)?;
    control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    })
}

/// Unmounts `mountpoint`, at once for new users of the tree; those that are in it finish.
pub(super) fn unmount(mountpoint: &Path, way: Way) -> Result<()> {
    if way == Way::System {
        return match rustix::mount::unmount(mountpoint, UnmountFlags::DETACH) {
            // Somebody else was faster.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
            Err(errno) => Err(failed(mountpoint, format!("cannot be unmounted: {errno}"), "try umount -l as root")),
        };
    }
    let output = Command::new(FUSERMOUNT).args(["-u", "-z", "--"]).arg(mountpoint).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            if is_mounted(mountpoint) { Err(failed(mountpoint, words, "end the programs that use it")) } else { Ok(()) }
        }
        Err(error) => Err(failed(mountpoint, format!("fusermount3: {error}"), "install fuse3")),
    }
}

fn is_mounted(mountpoint: &Path) -> bool {
    let Ok(mut file) = File::open("/proc/self/mountinfo") else { return false };
    let mut mounts = Vec::new();
    // An unreadable table counts as no mount: there is nothing left to do about it.
    let _ = file.read_to_end(&mut mounts);
    let escaped = |path: &[u8]| {
        path.iter()
            .flat_map(|&b| if b" \t\n\\".contains(&b) { format!("\\{b:03o}").into_bytes() } else { vec![b] })
            .collect()
    };
    let wanted: Vec<u8> = escaped(mountpoint.as_os_str().as_bytes());
    mounts.split(|&b| b == b'\n').any(|line| line.split(|&b| b == b' ').nth(4) == Some(&wanted))
}

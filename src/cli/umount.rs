//! `unionfs-rs umount`: with umount2(2) as root, through fusermount3 as anyone else.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::exit::{Exit, Failure};
use crate::sys::mountinfo::{self, Line};

/// The types of our mounts, as the command line makes them: under the name fuse-overlayfs they have its type, and one
/// that it made itself is a union as well.
const KINDS: [&str; 2] = ["fuse.unionfs-rs", "fuse.fuse-overlayfs"];

/// Whether a mount that is in use is left to its users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Busy {
    /// It is refused.
    Refuse,
    /// It is taken out of the tree now and ends with its last user (MNT_DETACH).
    Detach,
}

/// Unmounts the union on `mountpoint`.
pub fn run(mountpoint: &Path, busy: Busy) -> Result<Exit, Failure> {
    let mountpoint = resolve(mountpoint)?;
    check_is_ours(&mountpoint)?;
    if rustix::process::geteuid().is_root() {
        let flags = match busy {
            Busy::Refuse => UnmountFlags::NOFOLLOW,
            Busy::Detach => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
        };
        rustix::mount::unmount(&mountpoint, flags).map_err(|errno| refused(&mountpoint, errno))?;
    } else {
        through_fusermount(&mountpoint, busy)?;
    }
    Ok(Exit::Done)
}

/// Returns the path as the kernel lists it.
///
/// The last component is not looked into: the mount may have lost its server and answer nothing.
fn resolve(path: &Path) -> Result<PathBuf, Failure> {
    let resolved = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if fs::read_link(path).is_err() => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            fs::canonicalize(parent).map(|parent| parent.join(name))
        }
        _ => fs::canonicalize(path),
    };
    resolved
        .map_err(|error| fail(Exit::Setup, path, &error.to_string(), "name a directory that something is mounted on"))
}

/// Finds the union on `mountpoint`: its path as the kernel lists it, and its line of the table. Nobody who serves a mount is
/// asked.
pub fn find(mountpoint: &Path) -> Result<(PathBuf, Line), Failure> {
    let mountpoint = resolve(mountpoint)?;
    let read = mountinfo::read();
    let table = read
        .map_err(|error| Failure::new(Exit::Machine, format!("/proc/self/mountinfo: {error}; mount proc on /proc")))?;
    let line = ours(table, &mountpoint, "name the mountpoint of a union")?;
    Ok((mountpoint, line))
}

/// Refuses what is not a mount of ours, or is covered by one that is not.
fn check_is_ours(mountpoint: &Path) -> Result<(), Failure> {
    match mountinfo::read() {
        Ok(table) => ours(table, mountpoint, "use umount(8) for it").map(drop),
        // Without /proc the kernel's own answer has to do.
        Err(error) => {
            log::debug!("/proc/self/mountinfo: {error}");
            Ok(())
        }
    }
}

/// Returns the line of the union that is on `mountpoint`; `remedy` is for who names another mount.
fn ours(table: Vec<Line>, mountpoint: &Path, remedy: &str) -> Result<Line, Failure> {
    match table.into_iter().rfind(|mounted| mounted.path == mountpoint) {
        Some(mounted) if KINDS.iter().any(|kind| mounted.kind == *kind) => Ok(mounted),
        Some(mounted) => {
            let reason = format!("a mount of type {}, not one of unionfs-rs", mounted.kind.display());
            Err(fail(Exit::Setup, mountpoint, &reason, remedy))
        }
        None => {
            // Nothing is mounted on it, so that looking at it asks no server.
            let reason = match fs::symlink_metadata(mountpoint) {
                Ok(_) => "nothing is mounted there".to_owned(),
                Err(error) => error.to_string(),
            };
            Err(fail(Exit::Setup, mountpoint, &reason, "findmnt -t fuse.unionfs-rs lists what is mounted"))
        }
    }
}

/// Asks the setuid helper, which unmounts what its caller has mounted.
fn through_fusermount(mountpoint: &Path, busy: Busy) -> Result<(), Failure> {
    let mut command = Command::new("fusermount3");
    command.arg("-u");
    if busy == Busy::Detach {
        command.arg("-z");
    }
    let output = command.arg("--").arg(mountpoint).output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => fail(
            Exit::Machine,
            Path::new("fusermount3"),
            "not found in PATH",
            "install the package fuse3, or unmount as root",
        ),
        _ => fail(Exit::Machine, Path::new("fusermount3"), &error.to_string(), "unmount as root"),
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = OsStr::from_bytes(output.stderr.trim_ascii()).display().to_string();
    let remedy = if said.contains("busy") { IN_USE } else { "unmount it as the user who mounted it, or as root" };
    Err(fail(Exit::Failed, mountpoint, &said, remedy))
}

const IN_USE: &str = "end what uses it (fuser -vm shows it), or detach it with --lazy";

/// Words the kernel's refusal; see umount2(2).
fn refused(mountpoint: &Path, errno: Errno) -> Failure {
    match errno {
        Errno::BUSY => fail(Exit::Failed, mountpoint, "the mount is in use", IN_USE),
        Errno::PERM => fail(
            Exit::Machine,
            mountpoint,
            "not permitted",
            "unmount in the namespace that mounted it, with CAP_SYS_ADMIN",
        ),
        Errno::INVAL => fail(
            Exit::Setup,
            mountpoint,
            "not a mount point of this mount namespace",
            "unmount it where it was mounted",
        ),
        errno => fail(Exit::Failed, mountpoint, &format!("cannot be unmounted: {errno}"), "see umount2(2)"),
    }
}

fn fail(exit: Exit, path: &Path, reason: &str, remedy: &str) -> Failure {
    Failure::new(exit, format!("{}: {reason}; {remedy}", path.display()))
}

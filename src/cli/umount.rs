//! `unionfs-rs umount`: with umount2(2) as root, through fusermount3 as anyone else.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::exit::{Exit, Failure};

/// Whether a mount that is in use is left to its users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Busy {
    /// It is refused.
    Refuse,
    /// It is taken out of the tree now and ends with its last user (MNT_DETACH).
    Detach,
}

/// Unmounts the FUSE mount on `mountpoint`.
pub fn run(mountpoint: &Path, busy: Busy) -> Result<Exit, Failure> {
    let mountpoint = resolve(mountpoint)?;
    check_is_fuse(&mountpoint)?;
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

/// Refuses what is not a FUSE mount: ours is the only kind this command is for.
fn check_is_fuse(mountpoint: &Path) -> Result<(), Failure> {
    let table = match fs::read("/proc/self/mountinfo") {
        Ok(table) => table,
        // Without /proc the kernel's own answer has to do.
        Err(error) => {
            log::debug!("/proc/self/mountinfo: {error}");
            return Ok(());
        }
    };
    match mounted_type(&table, mountpoint) {
        Some(kind) if kind == b"fuse" || kind.starts_with(b"fuse.") => Ok(()),
        Some(kind) => {
            let reason = format!("a mount of type {}, not one of unionfs-rs", String::from_utf8_lossy(kind));
            Err(fail(Exit::Setup, mountpoint, &reason, "use umount(8) for it"))
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

/// Returns the type of the topmost mount on `mountpoint`; see proc_pid_mountinfo(5).
fn mounted_type<'a>(mountinfo: &'a [u8], mountpoint: &Path) -> Option<&'a [u8]> {
    // Mounts are listed in the order in which they were made, so the last one covers the others.
    mountinfo.split(|&byte| byte == b'\n').rev().find_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ');
        let path = fields.nth(4)?;
        // Optional fields end at a dash; the type is next.
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        (unescape_octal(path) == mountpoint).then_some(kind)
    })
}

/// Reads `\040` and its like, which stand for white space and backslashes in mount tables.
fn unescape_octal(field: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| byte == b'\\') {
            Some(escaped) => {
                plain.push(escaped);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                plain.push(byte);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(plain))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_of_a_mountpoint_is_found_in_the_table() {
        let table: &[u8] = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            30 22 0:40 / /mnt/a\\040b rw shared:2 master:1 - tmpfs tmpfs rw\n\
            31 30 0:41 / /mnt/a\\040b rw - fuse.unionfs-rs unionfs-rs rw,user_id=0\n\
            32 22 0:42 / /mnt/c\\134d rw - fuse.x x rw\n\
            short line\n";
        let found = |path: &str| mounted_type(table, Path::new(path)).map(String::from_utf8_lossy);
        assert_eq!(found("/").as_deref(), Some("ext4"));
        assert_eq!(found("/mnt/a b").as_deref(), Some("fuse.unionfs-rs"));
        assert_eq!(found(r"/mnt/c\d").as_deref(), Some("fuse.x"));
        assert_eq!(found("/mnt"), None);
    }
}

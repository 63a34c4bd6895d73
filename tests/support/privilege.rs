//! What the tests' own process may do, which decides what they can build and expect.

use std::os::unix::fs::MetadataExt;

use super::record_skip;
use super::test_name;

/// What the running tests may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// Root of the initial user namespace.
    Root,
    /// Uid 0 of another user namespace: may mount, but not write `trusted.` xattrs.
    UserNamespace,
    /// Any other user, who mounts through fusermount3.
    Plain,
}

/// Returns what the running tests may do.
pub fn privilege() -> Privilege {
    if !rustix::process::geteuid().is_root() {
        return Privilege::Plain;
    }
    // PROC_USER_INIT_INO: the number of the initial namespace.
    let namespace = std::fs::metadata("/proc/self/ns/user").expect("/proc is mounted");
    if namespace.ino() == 0xEFFF_FFFD { Privilege::Root } else { Privilege::UserNamespace }
}

/// Whether the test runs as root; where it does not, the test is reported as skipped for `need`.
pub fn require_root(need: &str) -> bool {
    if privilege() == Privilege::Root {
        return true;
    }
    record_skip(&test_name(), &format!("needs root of the initial namespace: {need}"));
    false
}

/// Says why FUSE passthrough cannot be used here, where it cannot.
pub fn passthrough_obstacle() -> Option<String> {
    if privilege() != Privilege::Root {
        // fs/fuse/backing.c: FUSE_DEV_IOC_BACKING_OPEN asks for CAP_SYS_ADMIN.
        return Some("io=passthrough needs root of the initial namespace".to_owned());
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc is mounted");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (6, 9) => None,
        _ => Some(format!("io=passthrough needs Linux 6.9, this is {}", release.trim())),
    }
}

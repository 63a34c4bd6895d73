//! Namespaces that a process makes for itself.

// The call below has no safe wrapper.
#![allow(unsafe_code)]

use std::io;

use rustix::thread::UnshareFlags;

/// Which namespaces are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespaces {
    /// One of mounts, which begins as a copy.
    Mounts,
    /// One of users, in which no id is mapped yet, and one of mounts that belongs to it.
    UsersAndMounts,
}

/// Enters new namespaces.
///
/// Errors: EDEADLK if the process has other threads, which would stay where they are; EPERM; ENOSPC past the limit of
/// /proc/sys/user/max_user_namespaces. Needs /proc. See unshare(2).
pub fn unshare(namespaces: Namespaces) -> io::Result<()> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::from_raw_os_error(libc::EDEADLK));
    }
    let flags = match namespaces {
        Namespaces::Mounts => UnshareFlags::NEWNS,
        Namespaces::UsersAndMounts => UnshareFlags::NEWNS | UnshareFlags::NEWUSER,
    };
    // SAFETY: descriptors stay shared, which is all that the call could break.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

//! Attributes of a mount that nobody else sees: mount_setattr(2), Linux 5.12.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::{Errno, Result};

/// What a private clone of a mount is limited to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// No device is opened.
    NoDevices,
    /// That, and reading does not touch access times.
    NoAccessTimes,
    /// That, and nothing can be written.
    ReadOnly,
}

/// Limits the mount whose root `mount` is, which must be a detached clone.
///
/// Errors: ENOSYS before Linux 5.12; EPERM where the flags are locked by another user namespace.
pub fn limit(mount: BorrowedFd<'_>, limit: Limit) -> Result<()> {
    // The kernel wants the old choice cleared when another one of access times is set.
    let (more, attr_clr) = match limit {
        Limit::NoDevices => (0, 0),
        Limit::NoAccessTimes => (libc::MOUNT_ATTR_NOATIME, libc::MOUNT_ATTR__ATIME),
        Limit::ReadOnly => (libc::MOUNT_ATTR_NOATIME | libc::MOUNT_ATTR_RDONLY, libc::MOUNT_ATTR__ATIME),
    };
    let attr = libc::mount_attr { attr_set: libc::MOUNT_ATTR_NODEV | more, attr_clr, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is an empty C string and attr a struct mount_attr of the size given; both outlive the call.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if ret == 0 {
        return Ok(());
    }
    Err(std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
}

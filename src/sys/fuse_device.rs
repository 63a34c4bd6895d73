//! The ioctls of /dev/fuse.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result};

/// `FUSE_DEV_IOC_BACKING_OPEN`
const BACKING_OPEN: libc::c_ulong = 0x4010_e501;
/// `FUSE_DEV_IOC_BACKING_CLOSE`
const BACKING_CLOSE: libc::c_ulong = 0x4004_e502;

/// `struct fuse_backing_map`
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

fn last_errno() -> Errno {
    std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

/// Registers `file` with the connection `device`, and returns the number of it there.
///
/// Errors: EPERM without CAP_SYS_ADMIN, EOPNOTSUPP for a connection without passthrough, ELOOP for a file of a file system
/// that is stacked too high.
pub fn open_backing(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<u32> {
    let map = BackingMap { fd: file.as_raw_fd(), flags: 0, padding: 0 };
    // SAFETY: the request reads one `struct fuse_backing_map` at its argument.
    let ret = unsafe { libc::ioctl(device.as_raw_fd(), BACKING_OPEN, &raw const map) };
    u32::try_from(ret).map_err(|_| last_errno())
}

/// Undoes [`open_backing`]. Errors: EPERM, EOPNOTSUPP as there, ENOENT for a number that was not given.
pub fn close_backing(device: BorrowedFd<'_>, backing: u32) -> Result<()> {
    // SAFETY: the request reads one u32 at its argument.
    let ret = unsafe { libc::ioctl(device.as_raw_fd(), BACKING_CLOSE, &raw const backing) };
    if ret < 0 { Err(last_errno()) } else { Ok(()) }
}

/// Takes the connection away from the descriptor `device`, which is /dev/null from then on.
///
/// The kernel ends a connection, and whatever waits for answers, when its last descriptor is gone. Errors: those of
/// open(2) and dup3(2).
pub fn disconnect(device: BorrowedFd<'_>) -> Result<()> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: the number stays an open descriptor of the same owner; what it stands for changes in one step.
    let ret = unsafe { libc::dup3(null.as_raw_fd(), device.as_raw_fd(), libc::O_CLOEXEC) };
    if ret < 0 { Err(last_errno()) } else { Ok(()) }
}

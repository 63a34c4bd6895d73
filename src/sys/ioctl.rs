//! The ioctls that a file's flags and version are read and set with.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::{Errno, Result};

/// `FS_IOC_GETFLAGS`
pub const GETFLAGS: u32 = 0x8008_6601;
/// `FS_IOC_SETFLAGS`
pub const SETFLAGS: u32 = 0x4008_6602;
/// `FS_IOC_GETVERSION`
pub const GETVERSION: u32 = 0x8008_7601;
/// `FS_IOC_FSGETXATTR`
pub const FSGETXATTR: u32 = 0x801c_581f;
/// `FS_IOC_FSSETXATTR`
pub const FSSETXATTR: u32 = 0x401c_5820;

/// Returns whether a request changes the flags of a file, which takes its owner, and for some flags a capability.
pub fn sets_flags(request: u32) -> bool {
    matches!(request, SETFLAGS | FSSETXATTR)
}

/// The size of the largest argument, `struct fsxattr`.
const ARG_MAX: usize = 28;

/// Runs one of the ioctls above on `fd`: `input` is copied in, what the kernel has written comes back.
///
/// Flags and version are an `int`, though their numbers say `long`: programs have room for four bytes.
///
/// Errors: ENOTTY for any other request, EINVAL for an input that is too long.
pub fn file_attributes(fd: BorrowedFd<'_>, request: u32, input: &[u8]) -> Result<Vec<u8>> {
    let written = match request {
        GETFLAGS | GETVERSION => size_of::<libc::c_int>(),
        FSGETXATTR => ARG_MAX,
        SETFLAGS | FSSETXATTR => 0,
        _ => return Err(Errno::NOTTY),
    };
    let mut arg = [0u8; ARG_MAX];
    arg.get_mut(..input.len()).ok_or(Errno::INVAL)?.copy_from_slice(input);
    // SAFETY: each of these requests reads or writes at most ARG_MAX bytes at its argument.
    let ret = unsafe { libc::ioctl(fd.as_raw_fd(), libc::c_ulong::from(request), arg.as_mut_ptr()) };
    if ret < 0 {
        return Err(std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error));
    }
    Ok(arg[..written].to_vec())
}

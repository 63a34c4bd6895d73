//! System calls that rustix lacks, and probes of what this kernel and this process may do.
//!
//! The only module with `unsafe`. It knows no policy: what an answer means is for the callers to say.
//! Descriptors come in as `BorrowedFd` and go out as `OwnedFd`.

pub mod caps;
#[cfg(feature = "cli")]
pub mod daemon;
pub mod dents;
pub mod ext4;
pub mod fault;
pub mod fhandle;
pub mod fiemap;
#[cfg(feature = "fuse")]
pub mod fuse_device;
#[cfg(feature = "fuse")]
pub mod fuse_ring;
pub mod ioctl;
#[cfg(feature = "fuse")]
pub mod memory;
pub mod mode;
pub mod mount;
pub mod mountinfo;
#[cfg(feature = "cli")]
pub mod namespace;
#[cfg(feature = "cli")]
pub mod peer;
#[cfg(feature = "fuse")]
pub mod processors;
#[cfg(feature = "fuse")]
pub mod scheduling;
#[cfg(feature = "cli")]
pub mod signals;
pub mod sync;
pub mod writeback;
pub mod xattr;

use std::os::fd::{AsFd, AsRawFd};

/// Returns the path under /proc that reopens `fd`, which may have been opened with O_PATH.
pub fn proc_path(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

//! Writing the data of a file to its disk without syncing the file.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::{Errno, Result};

/// Writes the dirty data of `file` and waits until it was written: sync_file_range(2) of the whole file.
///
/// No metadata is synced, and no cache of the disk is flushed. Errors: those of the call; EIO and ENOSPC where the data could
/// not be written.
pub fn write_out(file: BorrowedFd<'_>) -> Result<()> {
    const ALL: libc::c_uint =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: the call takes a descriptor and numbers; 0 bytes are all that follow.
    let done = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, ALL) };
    if done == 0 {
        return Ok(());
    }
    Err(std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
}

//! Writing the data of a file to its disk without syncing the file.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::{Errno, Result};

/// Writes the dirty data of `file` and waits until it was written: sync_file_range(2) of the whole file.
///
/// No metadata is synced, and no cache of the disk is flushed. Errors: those of the call; EIO and ENOSPC where the data could
/// not be written.
pub fn write_out(file: BorrowedFd<'_>) -> Result<()> {
    sync_file_range(
        file,
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER,
    )
}

/// Has the dirty data of `file` written from now on, and waits for none of it.
///
/// For what will be synced later: the disk begins meanwhile. Errors: those of the call, which that sync will meet again.
pub fn begin(file: BorrowedFd<'_>) -> Result<()> {
    sync_file_range(file, libc::SYNC_FILE_RANGE_WRITE)
}

fn sync_file_range(file: BorrowedFd<'_>, flags: libc::c_uint) -> Result<()> {
    // SAFETY: the call takes a descriptor and numbers; 0 bytes are all that follow.
    let done = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) };
    if done == 0 {
        return Ok(());
    }
    Err(std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
}

//! Directory entries in large batches of getdents64(2).

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, RawDir};
use rustix::io::Result;

const BATCH: usize = 128 * 1024;

/// Calls `each` with the name, type and inode number of every entry of `dir` but `.` and `..`.
///
/// `dir` must be open for reading and at its beginning. The type may be `Unknown` on some file systems.
pub fn each(dir: BorrowedFd<'_>, mut each: impl FnMut(&[u8], FileType, u64)) -> Result<()> {
    let mut batch = vec![MaybeUninit::uninit(); BATCH];
    let mut entries = RawDir::new(dir.as_fd(), &mut batch);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            each(name, entry.file_type(), entry.ino());
        }
    }
    Ok(())
}

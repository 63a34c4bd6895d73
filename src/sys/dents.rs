//! Directory entries in large batches of getdents64(2).

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, RawDir};
use rustix::io::Result;

const BATCH: usize = 128 * 1024;

/// The entries of a directory, read batch by batch.
#[derive(Debug)]
pub struct Batches<D> {
    dir: D,
    buffer: Vec<MaybeUninit<u8>>,
}

impl<D: AsFd> Batches<D> {
    /// Reads `dir`, which must be open for reading, from where it is.
    pub fn new(dir: D) -> Self {
        Self { dir, buffer: vec![MaybeUninit::uninit(); BATCH] }
    }

    /// Calls `each` with the name, type and inode number of every entry but `.` and `..` of the next batch; returns false
    /// where there is none.
    ///
    /// The type may be `Unknown` on some file systems. After an error, for which nothing was called, it can be tried again.
    pub fn next(&mut self, mut each: impl FnMut(&[u8], FileType, u64)) -> Result<bool> {
        let mut entries = RawDir::new(self.dir.as_fd(), &mut self.buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                each(name, entry.file_type(), entry.ino());
            }
            if entries.is_buffer_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Calls `each` with the name, type and inode number of every entry of `dir` but `.` and `..`.
///
/// `dir` must be open for reading and at its beginning. The type may be `Unknown` on some file systems.
pub fn each(dir: BorrowedFd<'_>, mut each: impl FnMut(&[u8], FileType, u64)) -> Result<()> {
    let mut batches = Batches::new(dir);
    while batches.next(&mut each)? {}
    Ok(())
}

//! Copies the data of a file: by reference where the file system can, else without filling its holes.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::SeekFrom;
use rustix::io::{Errno, Result};

use crate::layer::attr::Attr;

/// Bytes that one call copies at most, so that a signal or an error is noticed in time.
const CHUNK: u64 = 64 << 20;

/// The buffer where the kernel cannot copy by itself.
const BUFFER: usize = 1 << 20;

/// What is known of a file before it is copied.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// Whether the file system may share its data with the copy's; false once it has said that it cannot.
    pub clones: &'a AtomicBool,
    /// Whether it has so few bytes, and so many blocks, that there is no hole worth keeping.
    pub whole: bool,
}

impl<'a> Known<'a> {
    /// Looks at the attributes of the file.
    pub fn of(attr: &Attr, clones: &'a AtomicBool) -> Self {
        /// Bytes up to which a hole is not looked for where there are blocks enough: some of them may be elsewhere.
        const FEW: u64 = 1 << 17;
        Self { clones, whole: attr.size <= FEW && attr.blocks * 512 >= attr.size }
    }
}

/// Copies the first `len` bytes of `source` to `target`, which is empty, and gives `target` that length.
///
/// Holes stay holes. Returns how many bytes were read and written: none where the data is shared. Errors: those of reading and writing, ENOSPC above all.
pub fn copy(source: BorrowedFd<'_>, target: BorrowedFd<'_>, len: u64, known: Known<'_>) -> Result<u64> {
    // Relaxed: whoever does not know yet asks once more.
    if len > 0 && known.clones.load(Ordering::Relaxed) {
        match rustix::fs::ioctl_ficlone(target, source) {
            Ok(()) => return rustix::fs::ftruncate(target, len).map(|()| 0),
            Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::NOTTY) => known.clones.store(false, Ordering::Relaxed),
            // This file cannot be shared; the next one may.
            Err(_) => {}
        }
    }
    if known.whole {
        let copied = copy_range(source, target, 0, len)?;
        return if copied == len { Ok(len) } else { rustix::fs::ftruncate(target, len).map(|()| copied) };
    }
    let (mut at, mut copied) = (0, 0);
    while at < len {
        let Some((start, end)) = next_data(source, at)? else { break };
        if start >= len {
            break;
        }
        copied += copy_range(source, target, start, end.min(len))?;
        at = end;
    }
    rustix::fs::ftruncate(target, len).map(|()| copied)
}

/// Returns where data begins at or after `at`, and where it ends; `None` when only a hole is left.
fn next_data(source: BorrowedFd<'_>, at: u64) -> Result<Option<(u64, u64)>> {
    let start = match rustix::fs::seek(source, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        // No file system call to tell holes: all of it is data.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, u64::MAX))),
        Err(errno) => return Err(errno),
    };
    let end = rustix::fs::seek(source, SeekFrom::Hole(start))?;
    Ok(Some((start, end)))
}

fn copy_range(source: BorrowedFd<'_>, target: BorrowedFd<'_>, start: u64, end: u64) -> Result<u64> {
    let (mut from, mut to) = (start, start);
    while from < end {
        let len = (end - from).min(CHUNK);
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), len as usize) {
            // The file is shorter than it was; what is missing reads as zeros, as in the kernel's overlayfs.
            Ok(0) => break,
            Ok(_) => {}
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::TXTBSY) => {
                from = copy_through_buffer(source, target, from, end)?;
                break;
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(from - start)
}

/// Copies from `at` to `end`, or to where the file ends, and returns where that was.
fn copy_through_buffer(source: BorrowedFd<'_>, target: BorrowedFd<'_>, mut at: u64, end: u64) -> Result<u64> {
    let mut buffer = vec![0; BUFFER];
    while at < end {
        let want = (end - at).min(BUFFER as u64) as usize;
        let got = rustix::io::retry_on_intr(|| rustix::io::pread(source, &mut buffer[..want], at))?;
        if got == 0 {
            break;
        }
        let mut written = 0;
        while written < got {
            written +=
                rustix::io::retry_on_intr(|| rustix::io::pwrite(target, &buffer[written..got], at + written as u64))?;
        }
        at += got as u64;
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Seek, SeekFrom, Write};
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    static CLONES: AtomicBool = AtomicBool::new(true);
    const UNKNOWN: Known<'static> = Known { clones: &CLONES, whole: false };

    #[test]
    fn a_small_file_is_copied_whole_and_one_that_shrank_keeps_its_length() {
        let mut source = tempfile::tempfile().unwrap();
        source.write_all(&[7; 5000]).unwrap();
        let clones = AtomicBool::new(false);
        for len in [5000, 6000] {
            let target = tempfile::tempfile().unwrap();
            let copied = copy(source.as_fd(), target.as_fd(), len, Known { clones: &clones, whole: true }).unwrap();
            assert_eq!((copied, target.metadata().unwrap().len()), (5000, len));
            assert!(contents(&target)[..5000] == contents(&source));
        }
    }

    fn sparse() -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.seek(SeekFrom::Start(8 << 20)).unwrap();
        file.write_all(&[7; 5000]).unwrap();
        file.set_len(64 << 20).unwrap();
        file
    }

    fn contents(file: &File) -> Vec<u8> {
        let mut all = vec![0; file.metadata().unwrap().len() as usize];
        std::os::unix::fs::FileExt::read_exact_at(file, &mut all, 0).unwrap();
        all
    }

    #[test]
    fn holes_stay_holes_and_the_rest_is_the_same() {
        let (source, target) = (sparse(), tempfile::tempfile().unwrap());
        copy(source.as_fd(), target.as_fd(), 64 << 20, UNKNOWN).unwrap();
        assert!(contents(&source) == contents(&target));
        assert!(target.metadata().unwrap().blocks() <= source.metadata().unwrap().blocks() + 16);
    }

    #[test]
    fn a_prefix_is_copied_where_the_rest_is_not_wanted() {
        let (source, target) = (sparse(), tempfile::tempfile().unwrap());
        copy(source.as_fd(), target.as_fd(), (8 << 20) + 100, UNKNOWN).unwrap();
        assert!(contents(&target) == contents(&source)[..(8 << 20) + 100]);
    }

    #[test]
    fn the_buffer_copies_what_the_kernel_does_not() {
        let (source, target) = (sparse(), tempfile::tempfile().unwrap());
        copy_through_buffer(source.as_fd(), target.as_fd(), 8 << 20, (8 << 20) + 5000).unwrap();
        target.set_len(64 << 20).unwrap();
        assert!(contents(&source) == contents(&target));
    }
}

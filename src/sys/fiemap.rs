//! Where a file has space, written or not: FS_IOC_FIEMAP, Documentation/filesystems/fiemap.rst in the kernel.

// libc has neither the structures nor the number.
#![allow(unsafe_code)]

use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::{Errno, Result};

/// `_IOWR('f', 11, struct fiemap)`
const FS_IOC_FIEMAP: libc::Ioctl = 0xC020_660B_u32 as libc::Ioctl;

/// How many extents one call tells.
const EXTENTS: usize = 64;

const LAST: u32 = 1;

/// `struct fiemap_extent`
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// `struct fiemap` with room for extents.
#[repr(C)]
struct Map {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    room: u32,
    reserved: u32,
    extents: [Extent; EXTENTS],
}

/// Returns the parts of `range` of `file` for which there is space, or is promised, in order; they may reach beyond it.
///
/// Errors: EOPNOTSUPP and ENOTTY on file systems that do not tell.
pub fn allocated(file: BorrowedFd<'_>, range: Range<u64>) -> Result<Vec<Range<u64>>> {
    let (mut parts, mut at) = (Vec::new(), range.start);
    while at < range.end {
        let mut map = Map {
            start: at,
            length: range.end - at,
            flags: 0,
            mapped: 0,
            room: EXTENTS as u32,
            reserved: 0,
            extents: [Extent::default(); EXTENTS],
        };
        // SAFETY: `map` is laid out as the call has it, with as many extents as `room` says, and outlives the call.
        if unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut map) } != 0 {
            return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
        }
        let told = map.extents.get(..map.mapped as usize).unwrap_or_default();
        parts.extend(told.iter().map(|extent| extent.logical..extent.logical.saturating_add(extent.length)));
        match told.last() {
            Some(extent) if extent.flags & LAST == 0 && told.len() == EXTENTS => {
                at = extent.logical.saturating_add(extent.length).max(at + 1);
            }
            _ => break,
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_is_written_and_what_is_allocated_is_told_and_holes_are_not() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 4096], 8192).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 1 << 20, 8192).unwrap();
        let parts = match allocated(file.as_fd(), 0..1 << 21) {
            // tmpfs
            Err(Errno::OPNOTSUPP | Errno::NOTTY) => return,
            parts => parts.unwrap(),
        };
        let has = |at: u64| parts.iter().any(|part| part.contains(&at));
        assert!(has(8192) && has(1 << 20) && has((1 << 20) + 8191) && !has(0) && !has(1 << 19), "{parts:?}");
    }
}

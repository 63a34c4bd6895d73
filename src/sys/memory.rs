//! Memory by pages, and memory that the process does not need any more.
#![allow(unsafe_code)]

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use rustix::io::Result;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Bytes that begin at a page, zero until they are written, and no memory until they are used.
///
/// What the kernel copies by pages goes between such pages in one piece each.
#[derive(Debug)]
pub struct Pages {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: nobody else has the memory.
unsafe impl Send for Pages {}
// SAFETY: as above; it is changed through `&mut` alone.
unsafe impl Sync for Pages {}

impl Pages {
    /// Maps `len` bytes, which must be some. Errors: ENOMEM, EINVAL for none.
    pub fn new(len: usize) -> Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping, at an address of the kernel's choice, that nothing else refers to.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags) }?;
        NonNull::new(start.cast()).map(|start| Self { start, len }).ok_or(rustix::io::Errno::NOMEM)
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: so many bytes are mapped at `start`, readable, and lent for as long as `self` is.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: so many bytes are mapped at `start`, writable, and lent to nobody else while `self` is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's, and nothing refers to it any more.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        // Fails for addresses that are none alone.
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

/// Gives what was freed back to the system, where the allocator would keep it: glibc's does, all but the end of a heap.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and may be called by any thread at any time (malloc_trim(3), MT-Safe).
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_begin_at_a_page_and_are_zero() {
        let mut pages = Pages::new(10_000).unwrap();
        assert_eq!(pages.as_ptr() as usize % rustix::param::page_size(), 0);
        assert!(pages.len() == 10_000 && pages.iter().all(|&byte| byte == 0));
        pages[9_999] = 7;
        assert_eq!(pages[9_999], 7);
        assert!(Pages::new(0).is_err());
    }
}

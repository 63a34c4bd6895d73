//! Memory that the process does not need any more.
#![allow(unsafe_code)]

/// Gives what was freed back to the system, where the allocator would keep it: glibc's does, all but the end of a heap.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and may be called by any thread at any time (malloc_trim(3), MT-Safe).
    unsafe {
        libc::malloc_trim(0);
    }
}

//! Memory to read into.

use std::cell::RefCell;

/// Calls `call` with a buffer of `size` bytes that this thread uses again and again.
pub(super) fn with_buffer<T>(size: usize, call: impl FnOnce(&mut [u8]) -> T) -> T {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        call(buffer.get_mut(..size).unwrap_or_default())
    })
}

//! The end of a mount that cannot be served any longer.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::sys::fuse_ring::Waker;

/// Ends the threads of a mount when one of them cannot go on: without it its requests would wait for ever, and so would
/// the programs that made them.
pub(super) struct Halt {
    raised: AtomicBool,
    wakers: Vec<Waker>,
}

impl Halt {
    /// Ends the threads that wait for `wakers`.
    pub(super) fn new(wakers: Vec<Waker>) -> Self {
        Self { raised: AtomicBool::new(false), wakers }
    }

    /// Has all threads end.
    pub(super) fn raise(&self) {
        self.raised.store(true, Ordering::Release);
        self.wakers.iter().for_each(Waker::wake);
    }

    /// Returns whether this thread is to end.
    pub(super) fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Acquire)
    }
}

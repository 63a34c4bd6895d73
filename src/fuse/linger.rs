//! How long a thread looks for the next request before it sleeps.
//!
//! A processor that has nothing to do stops, in a virtual machine with the help of its host, and starting it again costs
//! more than most requests. A program that waits for an answer leaves its processor to the thread that answers; when that
//! thread sleeps, the scheduler sees another processor idle, wakes it, and moves the program there, for each request.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long after a request the next one is looked for.
const LINGER: Duration = Duration::from_micros(50);

/// So many threads, each for a processor, stay awake together for a mount that is in use.
pub(super) const FEW: usize = 4;

/// The requests that threads wait for together: while some come, none of these threads sleeps.
#[derive(Debug)]
pub(super) struct Linger {
    begun: Instant,
    /// When a request last came, in nanoseconds since.
    last: AtomicU64,
}

impl Linger {
    pub(super) fn new() -> Self {
        Self { begun: Instant::now(), last: AtomicU64::new(0) }
    }

    /// Notes that a request has come.
    pub(super) fn note_request(&self) {
        self.last.store(self.now(), Ordering::Relaxed); // Relaxed: a hint about time.
    }

    /// Looks for `news` for a while, giving way to whoever else would run here.
    pub(super) fn look_for<T>(&self, mut news: impl FnMut() -> Option<T>) -> Option<T> {
        // Relaxed: as above.
        while self.now().saturating_sub(self.last.load(Ordering::Relaxed)) < LINGER.as_nanos() as u64 {
            if let Some(found) = news() {
                return Some(found);
            }
            std::thread::yield_now();
        }
        None
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

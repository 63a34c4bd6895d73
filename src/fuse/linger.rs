//! How long a thread looks for the next request before it sleeps.
//!
//! A processor that has nothing to do stops, in a virtual machine with the help of its host, and starting it again costs
//! more than most requests. A program that waits for an answer leaves its processor to the thread that answers; when that
//! thread sleeps, the scheduler sees another processor idle, wakes it, and moves the program there, for each request.
//!
//! Whoever looks gives way all the time. To somebody who computes, or for whom the kernel copies data, the scheduler gives a
//! turn of some milliseconds each time; a thread that slept would be run as soon as it is woken. So where requests wait for
//! one thread alone, such a turn begins a pause in which nobody looks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::sys::scheduling;

/// How long after a request the next one is looked for.
const LINGER: Duration = Duration::from_micros(50);

/// How long the turns of a thread that serves requests are; most requests take less. Who has short turns gets them soon.
const TURN: Duration = Duration::from_micros(100);

/// Giving way for longer was to others than those who wait for answers.
const CROWDED: Duration = Duration::from_micros(400);

/// How long nobody looks after that: at first, and at most.
const PAUSES: [Duration; 2] = [Duration::from_millis(4), Duration::from_millis(512)];

/// So many threads, each for a processor, stay awake together for a mount that is in use.
pub(super) const FEW: usize = 4;

/// Giving way takes longer than this where somebody else had a turn: two switches between processes, and a request.
const SWITCH: Duration = Duration::from_micros(2);

/// A look for requests.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    /// When it is, in nanoseconds since the [`Linger`] was made.
    pub(super) now: u64,
    /// Whether somebody else had a turn on this processor just before.
    pub(super) after_others: bool,
}

/// Who serves a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Servers {
    /// One thread, that of the processor that it came from.
    One,
    /// Whichever thread comes first.
    Any,
}

/// The requests that threads wait for together: while some come, none of these threads sleeps.
///
/// All times are nanoseconds since it was made, and hints: no order among them is relied upon.
#[derive(Debug)]
pub(super) struct Linger {
    servers: Servers,
    begun: Instant,
    /// When a request last came.
    last: AtomicU64,
    /// How long the last pause was, and when it ends.
    pause: AtomicU64,
    resumes: AtomicU64,
}

impl Linger {
    pub(super) fn new(servers: Servers) -> Self {
        let zero = || AtomicU64::new(0);
        Self { servers, begun: Instant::now(), last: zero(), pause: zero(), resumes: zero() }
    }

    /// Has the scheduler run this thread, which serves requests, soon after one has come.
    pub(super) fn take_short_turns() {
        if let Err(errno) = scheduling::set_slice(TURN) {
            log::debug!("the turns of a thread cannot be made short: {errno}");
        }
    }

    /// Notes that a request has come.
    pub(super) fn note_request(&self) {
        self.last.store(self.now(), Ordering::Relaxed); // Relaxed: a hint about time.
    }

    /// Looks for `news` for a while, giving way to whoever else would run here.
    pub(super) fn look_for<T>(&self, mut news: impl FnMut(Look) -> Option<T>) -> Option<T> {
        let mut look = Look { now: self.now(), after_others: false };
        while self.is_time_to_look(look.now) {
            if let Some(found) = news(look) {
                self.note_success();
                return Some(found);
            }
            let looked = self.now();
            std::thread::yield_now();
            let now = self.now();
            if self.servers == Servers::One && now.saturating_sub(look.now) > nanoseconds(CROWDED) {
                self.pause_from(now);
            }
            look = Look { now, after_others: now.saturating_sub(looked) > nanoseconds(SWITCH) };
        }
        None
    }

    fn is_time_to_look(&self, now: u64) -> bool {
        // Relaxed: hints about time.
        let last = self.last.load(Ordering::Relaxed);
        now.saturating_sub(last) < nanoseconds(LINGER) && now >= self.resumes.load(Ordering::Relaxed)
    }

    /// Begins a pause, twice as long as the last one. One moment begins one pause, however many threads notice it.
    fn pause_from(&self, now: u64) {
        // Relaxed: a hint about time.
        if now < self.resumes.load(Ordering::Relaxed) {
            return;
        }
        let [first, most] = PAUSES.map(nanoseconds);
        // Relaxed: hints about time.
        let pause = self.pause.load(Ordering::Relaxed).saturating_mul(2).clamp(first, most);
        self.pause.store(pause, Ordering::Relaxed);
        self.resumes.store(now + pause, Ordering::Relaxed);
    }

    /// Notes that looking was of use, so that the next pause is shorter.
    fn note_success(&self) {
        let pause = self.pause.load(Ordering::Relaxed); // Relaxed: a hint about time.
        // Not written where it stays as it is: all threads share it.
        if pause > 0 {
            self.pause.store(pause / 2, Ordering::Relaxed); // Relaxed: as above.
        }
    }

    fn now(&self) -> u64 {
        nanoseconds(self.begun.elapsed())
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_while_others_compute_and_shrink_while_looking_is_of_use() {
        let linger = Linger::new(Servers::One);
        let pause = || {
            let at = linger.resumes.load(Ordering::Relaxed);
            linger.pause_from(at);
            let pause = linger.resumes.load(Ordering::Relaxed) - at;
            // Another thread has noticed the same.
            linger.pause_from(at + 1);
            assert_eq!(linger.resumes.load(Ordering::Relaxed), at + pause);
            pause
        };
        let [first, most] = PAUSES.map(nanoseconds);
        assert_eq!([pause(), pause(), pause()], [first, 2 * first, 4 * first]);
        for _ in 0..20 {
            pause();
        }
        assert_eq!(pause(), most);
        linger.note_success();
        assert_eq!(pause(), most, "half as long, and then twice as long");
        (0..100).for_each(|_| linger.note_success());
        assert_eq!(pause(), first);
    }

    #[test]
    fn nothing_is_looked_for_in_a_pause_or_long_after_a_request() {
        let linger = Linger::new(Servers::One);
        let looks = |at| linger.is_time_to_look(at);
        assert!(looks(0) && looks(nanoseconds(LINGER) - 1) && !looks(nanoseconds(LINGER)));
        linger.pause_from(0);
        linger.last.store(nanoseconds(PAUSES[0]), Ordering::Relaxed);
        assert!(!looks(nanoseconds(PAUSES[0]) - 1) && looks(nanoseconds(PAUSES[0])));
    }

    #[test]
    fn a_long_turn_of_others_begins_a_pause_where_one_thread_serves() {
        for (servers, pauses) in [(Servers::One, true), (Servers::Any, false)] {
            let linger = Linger::new(servers);
            let mut looked = 0;
            let found = linger.look_for(|_| {
                looked += 1;
                if looked == 1 {
                    // Taken for a turn of somebody else.
                    std::thread::sleep(2 * CROWDED);
                    linger.note_request();
                }
                None::<()>
            });
            assert_eq!(found, None);
            assert_eq!(linger.resumes.load(Ordering::Relaxed) > 0, pauses, "{servers:?}");
        }
    }
}

//! Which processors a thread that serves requests runs on.
//!
//! A program that waits for each answer is best served on its own processor: no other one has to be woken. Who reads a large
//! file in order does not wait: the kernel reads ahead, and while the program takes what is there, the next piece can be
//! fetched elsewhere. So the thread may run anywhere until other requests come again.

use rustix::thread::CpuSet;

/// From where on in a file a read may be one of a stream: in smaller ones little is read ahead.
const FAR: u64 = 1 << 20;

/// The bytes that such a read asks for at least; one at random asks for less.
const LARGE: u32 = 1 << 16;

/// So many such reads in a row are a stream.
const STREAM: u32 = 4;

/// So many other requests in a row end it.
const CALM: u32 = 16;

/// What a request is to whoever serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pattern {
    /// The kernel reads ahead in a large file.
    ReadAhead,
    /// Anything else.
    Single,
}

impl Pattern {
    /// Returns what a read of `size` bytes at `offset` is.
    pub(super) fn of_read(offset: u64, size: u32) -> Self {
        if offset >= FAR && size >= LARGE { Self::ReadAhead } else { Self::Single }
    }
}

/// Returns the processors that this thread may run on; none where that cannot be known.
pub(super) fn processors() -> Vec<usize> {
    let all = rustix::thread::sched_getaffinity(None).ok();
    all.map(|all| (0..CpuSet::MAX_CPU).filter(|&at| all.is_set(at)).collect()).unwrap_or_default()
}

/// Where this thread may run.
#[derive(Debug)]
pub(super) struct Affinity {
    /// Its own processor, and all that it may run on; `None` where it cannot be moved.
    places: Option<Places>,
    streams: bool,
    /// How many requests in a row spoke against what is.
    against: u32,
}

#[derive(Debug)]
struct Places {
    home: CpuSet,
    all: CpuSet,
}

impl Affinity {
    /// Has this thread run on `processor` alone, if it may run there.
    pub(super) fn to(processor: usize) -> Self {
        let mut home = CpuSet::new();
        home.set(processor);
        // The kernel's numbers have gaps where processors cannot be put in, and whoever started the process may have chosen.
        let all = rustix::thread::sched_getaffinity(None).ok().filter(|all| all.is_set(processor));
        let places = all.map(|all| Places { home, all }).filter(|places| go(&places.home));
        if places.is_none() {
            log::debug!("what comes from processor {processor} is served elsewhere");
        }
        Self { places, streams: false, against: 0 }
    }

    /// Returns whether the thread is kept on its processor, or was.
    pub(super) fn is_kept(&self) -> bool {
        self.places.is_some()
    }

    /// Notes a request.
    pub(super) fn note(&mut self, pattern: Pattern) {
        if self.turns(pattern)
            && let Some(Places { home, all }) = &self.places
            && !go(if self.streams { all } else { home })
        {
            // Its processor may be off at the moment.
            log::debug!("a thread of the ring stays where it is");
        }
    }

    /// Returns whether a stream begins or ends with this request.
    fn turns(&mut self, pattern: Pattern) -> bool {
        if (pattern == Pattern::ReadAhead) == self.streams {
            self.against = 0;
            return false;
        }
        self.against += 1;
        let turns = self.against >= if self.streams { CALM } else { STREAM };
        if turns {
            (self.streams, self.against) = (!self.streams, 0);
        }
        turns
    }
}

fn go(to: &CpuSet) -> bool {
    rustix::thread::sched_setaffinity(None, to).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_leaves_its_processor_for_a_stream_and_comes_back() {
        let all = rustix::thread::sched_getaffinity(None).unwrap();
        let processor = (0..CpuSet::MAX_CPU).find(|&at| all.is_set(at)).unwrap();
        let now = || rustix::thread::sched_getaffinity(None).unwrap();
        let mut affinity = Affinity::to(processor);
        let home = now();
        assert!(home.is_set(processor) && home.count() == 1);
        let mut note = |pattern, times: u32, stays: &CpuSet| {
            for _ in 0..times {
                affinity.note(pattern);
                assert!(now() == *stays);
            }
        };
        note(Pattern::ReadAhead, STREAM - 1, &home);
        note(Pattern::Single, 1, &home);
        note(Pattern::ReadAhead, STREAM - 1, &home);
        note(Pattern::ReadAhead, 1, &all);
        // A few others do not end it.
        note(Pattern::Single, CALM - 1, &all);
        note(Pattern::ReadAhead, 1, &all);
        note(Pattern::Single, CALM - 1, &all);
        note(Pattern::Single, 1, &home);
        rustix::thread::sched_setaffinity(None, &all).unwrap();
    }

    #[test]
    fn what_is_read_in_pieces_or_near_the_beginning_is_no_stream() {
        assert_eq!(Pattern::of_read(FAR, LARGE), Pattern::ReadAhead);
        assert_eq!([Pattern::of_read(FAR - 1, LARGE), Pattern::of_read(FAR, LARGE - 1)], [Pattern::Single; 2]);
    }

    #[test]
    fn a_processor_that_is_not_there_leaves_the_thread_where_it_is() {
        let all = rustix::thread::sched_getaffinity(None).unwrap();
        let Some(absent) = (0..CpuSet::MAX_CPU).find(|&at| !all.is_set(at)) else { return };
        let mut affinity = Affinity::to(absent);
        for _ in 0..STREAM {
            affinity.note(Pattern::ReadAhead);
        }
        assert_eq!(rustix::thread::sched_getaffinity(None).unwrap(), all);
    }
}

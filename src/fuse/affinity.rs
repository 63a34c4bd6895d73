//! Which processors the thread of a queue runs on.
//!
//! A program that waits for each answer is best served on its own processor: no other one has to be woken. Who reads a large
//! file in order does not wait: the kernel reads ahead, and while the program takes what is there, the next piece can be
//! fetched elsewhere. So the thread may run anywhere until other requests come again.

use rustix::thread::CpuSet;

/// From where on in a file a read may be one of a stream: in smaller ones little is read ahead.
pub(super) const FAR: u64 = 1 << 20;

/// The bytes that such a read asks for at least; one at random asks for less.
pub(super) const LARGE: u32 = 1 << 16;

/// So many such reads in a row are a stream.
const STREAM: u32 = 4;

/// So many other requests in a row end it.
const CALM: u32 = 16;

/// Where this thread may run.
#[derive(Debug)]
pub(super) struct Affinity {
    /// The processor of its queue, and all that it may run on; `None` where it cannot be moved.
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
            log::debug!("the queue of processor {processor} is served elsewhere");
        }
        Self { places, streams: false, against: 0 }
    }

    /// Notes a request, and whether by it the kernel reads ahead in a large file.
    pub(super) fn note(&mut self, reads_ahead: bool) {
        if !self.turns(reads_ahead) {
            return;
        }
        if let Some(Places { home, all }) = &self.places
            && !go(if self.streams { all } else { home })
        {
            self.places = None;
        }
    }

    /// Returns whether a stream begins or ends with this request.
    fn turns(&mut self, reads_ahead: bool) -> bool {
        if reads_ahead == self.streams {
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
        let mut note = |reads_ahead: bool, times: u32, stays: &CpuSet| {
            for _ in 0..times {
                affinity.note(reads_ahead);
                assert!(now() == *stays);
            }
        };
        note(true, STREAM - 1, &home);
        note(false, 1, &home);
        note(true, STREAM - 1, &home);
        note(true, 1, &all);
        // A few others do not end it.
        note(false, CALM - 1, &all);
        note(true, 1, &all);
        note(false, CALM - 1, &all);
        note(false, 1, &home);
        rustix::thread::sched_setaffinity(None, &all).unwrap();
    }

    #[test]
    fn a_processor_that_is_not_there_leaves_the_thread_where_it_is() {
        let all = rustix::thread::sched_getaffinity(None).unwrap();
        let Some(absent) = (0..CpuSet::MAX_CPU).find(|&at| !all.is_set(at)) else { return };
        let mut affinity = Affinity::to(absent);
        for _ in 0..STREAM {
            affinity.note(true);
        }
        assert_eq!(rustix::thread::sched_getaffinity(None).unwrap(), all);
    }
}

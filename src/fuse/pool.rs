//! A bounded pool for work that copies data or waits for a disk, so that the threads that take requests do not.
//!
//! Its threads are started by those that take requests, of which each may be bound to a processor and run in short turns.
//! They inherit that and take it back: long work goes wherever there is room, and after whoever serves a request.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};
use rustix::thread::CpuSet;

use crate::sys::scheduling::{self, DEFAULT_SLICE};

type Task = Box<dyn FnOnce() + Send>;

struct Queue {
    tasks: VecDeque<Task>,
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    closed: bool,
}

struct Shared {
    /// A leaf: nothing but the queue is touched while held.
    queue: Mutex<Queue>,
    wake: Condvar,
    max: usize,
    /// Where its threads may run, if that is known.
    processors: Option<CpuSet>,
}

/// Threads that are started when there is work, up to a bound; what is more waits in order.
#[derive(Clone)]
pub(super) struct Pool {
    shared: Arc<Shared>,
}

impl Pool {
    /// Makes a pool of at most `max` threads, which run where this thread may.
    pub(super) fn new(max: NonZeroUsize) -> Self {
        let queue = Queue { tasks: VecDeque::new(), idle: 0, threads: Vec::new(), closed: false };
        let processors = rustix::thread::sched_getaffinity(None).ok();
        let shared = Shared { queue: Mutex::new(queue), wake: Condvar::new(), max: max.get(), processors };
        Self { shared: Arc::new(shared) }
    }

    /// Runs `task` on the pool, or on this thread where no thread can be had.
    pub(super) fn run(&self, task: impl FnOnce() + Send + 'static) {
        let mut queue = self.shared.queue.lock();
        queue.tasks.push_back(Box::new(task));
        if queue.idle < queue.tasks.len() && queue.threads.len() < self.shared.max {
            let shared = self.shared.clone();
            let name = format!("unionfs-long-{}", queue.threads.len());
            match std::thread::Builder::new().name(name).spawn(move || shared.work()) {
                Ok(thread) => queue.threads.push(thread),
                Err(error) if queue.threads.is_empty() => {
                    log::warn!("no thread for long work: {error}");
                    let task = queue.tasks.pop_back();
                    drop(queue);
                    if let Some(task) = task {
                        guard(task);
                    }
                    return;
                }
                // The threads that there are will come to it.
                Err(error) => log::debug!("no further thread for long work: {error}"),
            }
        }
        drop(queue);
        self.shared.wake.notify_one();
    }

    /// Returns whether the pool is to end, and what is of use to later requests alone need not be done any more.
    pub(super) fn is_ending(&self) -> bool {
        self.shared.queue.lock().closed
    }

    /// Finishes what is queued and ends the threads.
    pub(super) fn end(&self) {
        let threads = {
            let mut queue = self.shared.queue.lock();
            queue.closed = true;
            std::mem::take(&mut queue.threads)
        };
        self.shared.wake.notify_all();
        for thread in threads {
            // A task that panicked was caught and logged; there is nothing else to learn here.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn work(&self) {
        self.take_back_what_was_inherited();
        loop {
            let mut queue = self.queue.lock();
            let task = loop {
                if let Some(task) = queue.tasks.pop_front() {
                    break task;
                }
                if queue.closed {
                    return;
                }
                queue.idle += 1;
                self.wake.wait(&mut queue);
                queue.idle -= 1;
            };
            drop(queue);
            guard(task);
        }
    }

    fn take_back_what_was_inherited(&self) {
        let moved = self.processors.as_ref().map_or(Ok(()), |all| rustix::thread::sched_setaffinity(None, all));
        // Each for itself: a filter of system calls may know one of them.
        if let Err(errno) = moved.and(scheduling::set_slice(DEFAULT_SLICE)) {
            log::debug!("long work is scheduled as the thread that began it: {errno}");
        }
    }
}

/// Runs `work`; a panic ends it, and not the thread.
fn guard(work: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        log::error!("long work panicked; the mount goes on");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn tasks_run_wherever_they_may_whoever_begins_them() {
        let all = rustix::thread::sched_getaffinity(None).unwrap();
        let pool = Pool::new(NonZeroUsize::MIN);
        let first = (0..CpuSet::MAX_CPU).find(|&processor| all.is_set(processor)).unwrap();
        let mut one = CpuSet::new();
        one.set(first);
        rustix::thread::sched_setaffinity(None, &one).unwrap();
        scheduling::set_slice(std::time::Duration::from_micros(100)).unwrap();
        let (send, found) = std::sync::mpsc::channel();
        pool.run(move || send.send((rustix::thread::sched_getaffinity(None), scheduling::slice())).unwrap());
        let (processors, slice) = found.recv().unwrap();
        assert_eq!(processors.unwrap(), all);
        // Before Linux 6.12 there are no slices.
        assert_ne!(slice.unwrap(), std::time::Duration::from_micros(100));
        pool.end();
    }

    #[test]
    fn every_task_runs_and_a_panic_ends_none_of_the_others() {
        let pool = Pool::new(NonZeroUsize::new(3).unwrap());
        let done = Arc::new(AtomicUsize::new(0));
        for i in 0..100 {
            let done = done.clone();
            pool.run(move || {
                assert!(i % 10 != 0, "a panic that is expected");
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        pool.end();
        assert_eq!(done.load(Ordering::Relaxed), 90);
    }
}

//! A bounded pool for work that copies data or waits for a disk, so that the threads that take requests do not.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

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
}

/// Threads that are started when there is work, up to a bound; what is more waits in order.
#[derive(Clone)]
pub(super) struct Pool {
    shared: Arc<Shared>,
}

impl Pool {
    /// Makes a pool of at most `max` threads.
    pub(super) fn new(max: NonZeroUsize) -> Self {
        let queue = Queue { tasks: VecDeque::new(), idle: 0, threads: Vec::new(), closed: false };
        Self { shared: Arc::new(Shared { queue: Mutex::new(queue), wake: Condvar::new(), max: max.get() }) }
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

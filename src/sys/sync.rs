//! Locks and counters: those of this machine, or those of a model checker.
//!
//! Built with `--cfg loom` they are loom's, which runs a test under every order of their steps and every value that a load
//! may then see: `scripts/conformance models`. The inode table, the switch of an inode's object and what is kept of
//! descriptors use these; `Arc` is std's in both: nothing here goes by its counts.

#[cfg(not(loom))]
pub use {
    parking_lot::{Mutex, MutexGuard, RwLock},
    std::sync::OnceLock,
    std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64},
    std::thread::yield_now,
};

#[cfg(loom)]
pub use {
    loom::sync::MutexGuard,
    loom::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64},
    loom::thread::yield_now,
    model::{Mutex, OnceLock, RwLock},
};

/// loom's locks with the signatures of parking_lot's, which are never poisoned, and what loom does not have.
#[cfg(loom)]
mod model {
    use std::sync::PoisonError;
    use std::sync::atomic::Ordering;

    use loom::sync::atomic::AtomicBool;
    use loom::sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

    /// A lock for one.
    #[derive(Debug, Default)]
    pub struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        /// Makes a lock that nobody has.
        pub fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        /// Waits for the lock.
        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }

        /// Returns what the lock guards to who has it for itself alone.
        pub fn get_mut(&mut self) -> &mut T {
            self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
        }
    }

    /// A lock for one that writes, or several that read.
    #[derive(Debug, Default)]
    pub struct RwLock<T>(loom::sync::RwLock<T>);

    impl<T> RwLock<T> {
        /// Waits for those who write.
        pub fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().unwrap_or_else(PoisonError::into_inner)
        }

        /// Waits for all others.
        pub fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().unwrap_or_else(PoisonError::into_inner)
        }
    }

    /// A value that is made once. std's orders threads as well, but loom does not see it.
    #[derive(Debug, Default)]
    pub struct OnceLock<T> {
        value: std::sync::OnceLock<T>,
        made: AtomicBool,
        making: Mutex<()>,
    }

    impl<T> OnceLock<T> {
        /// Makes one without a value.
        pub fn new() -> Self {
            Self { value: std::sync::OnceLock::new(), made: AtomicBool::new(false), making: Mutex::new(()) }
        }

        /// Returns the value, if there is one.
        pub fn get(&self) -> Option<&T> {
            if self.made.load(Ordering::Acquire) { self.value.get() } else { None }
        }

        /// Returns the value that there is, or else is made now.
        pub fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
            let _making = self.making.lock();
            let value = self.value.get_or_init(make);
            self.made.store(true, Ordering::Release);
            value
        }
    }
}

/// Runs `model` under every order of its threads' steps in which no more than a few times a thread is interrupted that could
/// go on: `LOOM_MAX_PREEMPTIONS`, or four, as many as what was wrong in `union::kept` took.
#[cfg(test)]
#[cfg(loom)]
pub fn explore(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(4));
    builder.check(model);
}

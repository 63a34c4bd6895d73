//! The end of a test that hangs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::mount::{abort_all, abort_of_test};
use super::test_name;

/// Seconds between the abort of a hanging test's mounts and the end of the process.
const GRACE: Duration = Duration::from_secs(20);

/// Aborts the FUSE connections of the test that made it when its time is over, so that every
/// blocked call returns; where even that does not end the test, the process exits with 124.
#[derive(Debug)]
pub struct Watchdog {
    // Dropped at the end of the test, which wakes the thread.
    _alive: Sender<()>,
    fired: Arc<AtomicBool>,
}

impl Watchdog {
    /// Starts a watchdog with the usual time: 120 s, or `UNIONFS_TEST_TIMEOUT` seconds.
    pub fn start() -> Self {
        let seconds = std::env::var("UNIONFS_TEST_TIMEOUT")
            .map_or(120, |value| value.parse().expect("UNIONFS_TEST_TIMEOUT is in seconds"));
        Self::with(Duration::from_secs(seconds))
    }

    /// Starts a watchdog that fires after `time`.
    pub fn with(time: Duration) -> Self {
        let (alive, gone) = channel();
        let fired = Arc::new(AtomicBool::new(false));
        let test = test_name();
        let flag = Arc::clone(&fired);
        std::thread::spawn(move || {
            if gone.recv_timeout(time) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            flag.store(true, Ordering::SeqCst);
            eprintln!("WATCHDOG: {test} took longer than {time:?}; its mounts are aborted");
            abort_of_test(&test);
            if gone.recv_timeout(GRACE) == Err(RecvTimeoutError::Timeout) {
                eprintln!("WATCHDOG: {test} does not end; the process ends with all its mounts");
                abort_all();
                std::process::exit(124);
            }
        });
        Self { _alive: alive, fired }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // An aborted mount may have let the test pass; a second panic would only hide the first.
        if self.fired.load(Ordering::SeqCst) && !std::thread::panicking() {
            panic!("the test took too long and its mounts were aborted");
        }
    }
}

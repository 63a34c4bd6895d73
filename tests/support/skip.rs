//! Skipped tests, printed and counted.

use std::io::Write;

/// Reports that `test` does not run here, and why: on stderr, and in the file `UNIONFS_SKIP_LOG`.
pub fn record(test: &str, reason: &str) {
    let line = format!("SKIPPED: {test}: {reason}\n");
    // Written to the stream itself: libtest swallows what the print macros print in a test that
    // passes, and a skip must be seen.
    std::io::stderr().write_all(line.as_bytes()).expect("stderr takes the skip");
    if let Some(path) = std::env::var_os("UNIONFS_SKIP_LOG") {
        let mut log =
            std::fs::OpenOptions::new().create(true).append(true).open(&path).expect("UNIONFS_SKIP_LOG can be opened");
        log.write_all(line.as_bytes()).expect("UNIONFS_SKIP_LOG can be written");
    }
}

/// Reports the running test as skipped, with the reason, and returns from it.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)+) => {{
        $crate::support::record_skip(&$crate::support::test_name(), &format!($($reason)+));
        return;
    }};
}

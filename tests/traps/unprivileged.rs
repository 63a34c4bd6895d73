//! The whole suite once more, as those who are not root: what applies to them holds for them.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::skip;
use crate::support::{Home, Who, binary, on_kernel, record_skip, require_root};

/// Less than the runner's own patience, so that what hangs is shown with its output.
const PATIENCE: Duration = Duration::from_secs(240);

/// Runs every test of this file's crate but these as `who`, and shows what failed.
fn whole_suite_as(who: Who) {
    if !require_root("becoming another user") {
        return;
    }
    if on_kernel() {
        skip!("the kernel's overlayfs is mounted by root alone here");
    }
    if let Some(reason) = Home::obstacle(who) {
        skip!("{reason}");
    }
    let home = Home::new();
    let this = std::env::current_exe().expect("/proc is mounted");
    let suite = home.take(&this, "suite");
    let words = home.wrapper(who);
    let (skips, output) = (home.path().join("skipped"), home.path().join("output"));
    let log = fs::File::create(&output).expect("the directory can be written");
    fs::write(&skips, "").expect("the directory can be written");
    std::os::unix::fs::chown(&skips, Some(1000), Some(1000)).expect("root may chown");
    eprintln!("{} as {who:?}", binary().display());
    let mut child = Command::new(&words[0])
        .args(&words[1..])
        .arg(suite)
        .args(["--skip", "unprivileged", "--test-threads", "4"])
        .env("UNIONFS_RS_BIN", home.binary())
        .env("RUST_BACKTRACE", "0")
        .env("UNIONFS_TEST_DIR", home.path())
        .env("UNIONFS_SKIP_LOG", &skips)
        .current_dir(home.path())
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a descriptor can be duplicated"))
        .stderr(log)
        .spawn()
        .expect("unshare and setpriv (package util-linux) are installed");
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().expect("an own child can be waited for") {
            break Some(status);
        }
        if Instant::now() > deadline {
            // Everything it started goes with it: see `Home::wrapper`.
            child.kill().expect("an own child can be killed");
            child.wait().expect("an own child can be waited for");
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let skipped = fs::read_to_string(&skips).expect("the directory can be read");
    // Not those of single modes, which ran as root.
    for line in skipped.lines().filter(|line| !line.contains(" Mode {")) {
        let (test, reason) = line.trim_start_matches("SKIPPED: ").split_once(": ").unwrap_or((line, ""));
        record_skip(&format!("{test} as {who:?}"), reason);
    }
    let output = fs::read_to_string(&output).expect("the directory can be read");
    let failures = output.find("\nfailures:\n").map_or(output.as_str(), |from| &output[from..]);
    let ended = status.map_or("in no time".to_owned(), |status| status.to_string());
    assert!(status.is_some_and(|status| status.success()), "the suite as {who:?} ended {ended}:\n{failures}");
    assert!(output.contains("test result: ok."), "the suite did not run:\n{output}");
}

#[test]
fn everything_that_applies_holds_for_a_plain_user_through_fusermount3() {
    whole_suite_as(Who::PlainUser);
}

#[test]
fn everything_that_applies_holds_for_root_of_a_user_namespace() {
    whole_suite_as(Who::NamespaceRoot);
}

//! The count of a file's links, which two keep: the server, and Linux's FUSE by itself.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::skip;
use crate::support::{Io, Layers, LowersUnchanged, Mounted, Placement, Tree, Watchdog, on_kernel, require_root};

/// How long the answer to the removal is on its way.
const DELAY: Duration = Duration::from_secs(1);

/// A thread whose answers are late, until this is dropped.
struct Late(Child);

impl Late {
    fn attach(process: u32, thread: &str) -> Self {
        let inject = format!("inject=write,writev:delay_enter={}", DELAY.as_micros());
        let child = Command::new("strace")
            .args(["-o", "/dev/null", "-e", "trace=write,writev", "-e", &inject, "-p", thread])
            .stderr(Stdio::null())
            .spawn()
            .expect("strace is installed by scripts/test");
        let status = format!("/proc/{process}/task/{thread}/status");
        wait_until("strace is attached", || {
            fs::read_to_string(&status).is_ok_and(|status| !status.contains("TracerPid:\t0\n"))
        });
        Self(child)
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.0);
        // Ended already, or about to be; either way it must be waited for.
        let _ = kill_process(pid, Signal::INT);
        let _ = self.0.wait(); // A child that cannot be waited for is gone.
    }
}

fn wait_until(what: &str, is: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < Duration::from_secs(5), "{what}: not after 5 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns the thread of the daemon that does what takes long; there is one after something has.
fn thread_for_long_work(process: u32) -> String {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("the daemon runs");
    let mut names = tasks.map(|task| task.expect("the daemon runs").file_name().into_string().expect("it is a number"));
    let long = names.find(|task| {
        fs::read_to_string(format!("/proc/{process}/task/{task}/comm"))
            .is_ok_and(|name| name.starts_with("unionfs-long"))
    });
    long.expect("the removal of a lower file's name has started one")
}

/// Plays `remove`, of the name `d/gone` of the file that is `e/kept` too, while somebody looks at `e/kept`.
///
/// `linked` makes the two names; `is_removed` says when upper has lost the first.
fn assert_counted_once(
    lower: impl Fn(&Tree),
    linked: impl Fn(&Tree),
    remove: impl Fn(&Tree) -> std::io::Result<()> + Sync,
    is_removed: impl Fn(&Tree) -> bool,
) {
    if !require_root("tracing the daemon") {
        return;
    }
    if on_kernel() {
        skip!("the kernel's overlayfs has no daemon whose answers are late");
    }
    let layers = Layers::new(1, Placement::OneFs);
    // A file that is copied up and synced is renamed on the pool, whose one thread is there after that.
    layers.lower(0).file("d/first", "");
    lower(&layers.lower(0));
    let unchanged = LowersUnchanged::new(layers.lowers());
    let _watchdog = Watchdog::start();
    let mut mount = layers.spec(Io::Cached).mount_ours();
    let union = mount.tree();

    linked(&union);
    mount.remount();
    fs::rename(union.path("d/first"), union.path("d/second")).expect("the name is there");
    let process = mount.pid().expect("it is mounted");
    // The kernel knows the file, but not the name that stays.
    assert_eq!(union.stat("d/gone").nlink(), 2);
    let late = Late::attach(process, &thread_for_long_work(process));
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| remove(&union));
        wait_until("the name is removed", || is_removed(&layers.upper()));
        assert_eq!(union.stat("e/kept").nlink(), 1);
        assert!(!removal.is_finished(), "the removal was answered before, so the test shows nothing");
        removal.join().expect("it does not panic").expect("the name is there");
    });
    drop(late);
    match fs::hard_link(union.path("e/kept"), union.path("e/more")) {
        Err(error) if error.kind() == ErrorKind::NotFound => panic!("the kernel counts no link: {error}"),
        linked => linked.expect("a file can be linked"),
    }
    assert_eq!(union.stat("e/kept").nlink(), 2);
    mount.unmount().expect("the union can be unmounted");
    unchanged.check();
}

#[test]
fn a_count_that_is_read_while_a_name_is_removed_is_not_reduced_twice() {
    assert_counted_once(
        |lower| _ = lower.file("e/kept", "").link("e/kept", "d/gone"),
        |_| (),
        |union| fs::remove_file(union.path("d/gone")),
        |upper| upper.is_whiteout("d/gone"),
    );
}

#[test]
fn a_count_that_is_read_while_a_name_is_replaced_is_not_reduced_twice() {
    assert_counted_once(
        // What is copied up, and synced, is renamed by the thread for long work.
        |lower| _ = lower.file("d/lower", "lower"),
        |union| _ = union.file("e/kept", "").link("e/kept", "d/gone"),
        |union| fs::rename(union.path("d/lower"), union.path("d/gone")),
        |upper| upper.is_whiteout("d/lower"),
    );
}

//! FUSE over io_uring where it is refused, and where it breaks: another way is found, or the mount ends; nobody hangs.
//!
//! Everything else is shown by running all other tests on it (`UNIONFS_TEST_TRANSPORT=ring`).

mod support;

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use rustix::io::Errno;
use support::{
    Cleared, Io, Layers, Mounted, Placement, Spec, Watchdog, eventually, finish, is_of_dead_server, mounted, on_kernel,
    require_root,
};

/// Returns whether the kernel offers it; else the test is skipped.
fn offered() -> bool {
    if !require_root("tracing the daemon") {
        return false;
    }
    let parameter = "/sys/module/fuse/parameters/enable_uring";
    let reason = if on_kernel() {
        "the kernel's overlayfs has no daemon"
    } else if !fs::read_to_string(parameter).is_ok_and(|value| value.starts_with('Y')) {
        "needs FUSE over io_uring (Linux 6.14, and as root: echo Y >/sys/module/fuse/parameters/enable_uring)"
    } else if Command::new("strace").arg("-V").output().is_err() {
        "strace cannot be started: install the package strace"
    } else {
        return true;
    };
    support::record_skip(&support::test_name(), reason);
    false
}

/// Returns a mount over this transport whose system calls fail as strace is told.
fn failing(layers: &Layers, transport: &str, inject: &str) -> Spec {
    let mut spec = layers.spec(Io::Cached).args(["--log-level", "info", "--transport", transport]);
    let inject = format!("inject={inject}");
    let words = ["strace", "-f", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=/io_uring", "-e", &inject];
    spec.wrapper = words.map(Into::into).to_vec();
    spec
}

fn layers() -> Layers {
    let layers = Layers::new(1, Placement::OneFs);
    for name in 0..200 {
        layers.lower(0).file(format!("d/f{name}"), "content");
    }
    layers
}

#[test]
fn where_io_uring_is_forbidden_requests_come_through_dev_fuse() {
    if !offered() {
        return;
    }
    for inject in ["io_uring_setup:error=EPERM", "io_uring_enter:error=EPERM", "io_uring_enter:error=ENOSYS"] {
        let _watchdog = Watchdog::start();
        let layers = layers();
        let mut mount = failing(&layers, "auto", inject).mount_ours();
        assert_eq!(mount.tree().names("d").len(), 200);
        fs::write(mount.path().join("d/f1"), "new").expect("the union takes a write");
        assert!(mount.log().contains("requests come through /dev/fuse"), "{inject}: {}", mount.log());
        mount.unmount().expect("the union can be unmounted");
        assert_eq!(layers.upper().read("d/f1"), b"new");
    }
}

#[test]
fn a_ring_that_must_be_and_cannot_says_what_to_do() {
    if !offered() {
        return;
    }
    let _watchdog = Watchdog::start();
    let layers = layers();
    let _cleared = Cleared(layers.mnt());
    let ran = finish(&mut failing(&layers, "ring", "io_uring_setup:error=EPERM").command());
    assert!(ran.err.contains("no queue of io_uring can be had") && ran.err.contains("--transport dev"), "{ran:?}");
    assert_eq!((ran.code, mounted(&layers.mnt())), (Some(4), None));
}

#[test]
fn a_kernel_that_has_no_room_at_the_moment_is_asked_again() {
    if !offered() {
        return;
    }
    for errno in ["EAGAIN", "EBUSY", "ENOMEM", "EINTR"] {
        let _watchdog = Watchdog::start();
        let layers = layers();
        // strace counts for each thread.
        let inject = format!("io_uring_enter:error={errno}:when=10+20");
        let mut mount = failing(&layers, "ring", &inject).mount_ours();
        for name in 0..200 {
            let path = mount.path().join(format!("d/f{name}"));
            assert_eq!(fs::read(path).expect("the union answers"), b"content", "{errno}");
        }
        mount.unmount().expect("the union can be unmounted");
    }
}

/// Reads until the server is dead; returns the error.
fn read_on(mount: &Path) -> io::Error {
    loop {
        for name in 0..200 {
            if let Err(error) = fs::metadata(mount.join(format!("d/none{name}")))
                && error.kind() != io::ErrorKind::NotFound
            {
                return error;
            }
            if let Err(error) = fs::read(mount.join(format!("d/f{name}"))) {
                return error;
            }
        }
        // So that there is always something to ask for.
        if let Err(error) = fs::write(mount.join("d/new"), "new").and_then(|()| fs::remove_file(mount.join("d/new"))) {
            return error;
        }
    }
}

#[test]
fn a_queue_that_breaks_ends_the_mount_and_hangs_nobody() {
    if !offered() {
        return;
    }
    let _watchdog = Watchdog::start();
    let layers = layers();
    let mnt = layers.mnt();
    let _cleared = Cleared(mnt.clone());
    let mut mount = failing(&layers, "ring", "io_uring_enter:error=EFAULT:when=100").mount_ours();
    let errors = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..4).map(|_| scope.spawn(|| read_on(&mnt))).collect();
        readers.into_iter().map(|reader| reader.join().expect("a reader does not panic")).collect::<Vec<_>>()
    });
    for error in errors {
        // Once it is unmounted what is below shows, and that is empty.
        let gone = error.kind() == io::ErrorKind::NotFound;
        assert!(gone || Errno::from_io_error(&error).is_some_and(is_of_dead_server), "{error}");
    }
    eventually("the mount is gone", || mounted(&mnt).is_none());
    assert!(mount.log().contains("requests cannot be served any longer"), "{}", mount.log());
    mount.kill();
    drop(layers.spec(Io::Cached).mount_ours());
}

//! How a mount ends that is asked to, or that cannot be served.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{Pid, Signal, kill_process};

use crate::skip;
use crate::support::{
    Cleared, DEADLINE, Io, Layers, Placement, Privilege, Tmpfs, eventually, finish, mounted, no_mounts, privilege,
    read_all, record_skip, test_name, wait,
};

#[test]
fn signals_end_a_mount_in_the_foreground_cleanly() {
    if let Some(reason) = no_mounts() {
        skip!("{reason}");
    }
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let layers = Layers::new(1, Placement::OneFs);
        let mnt = layers.mnt();
        let _cleared = Cleared(mnt.clone());
        let mut child = layers.spec(Io::Cached).command().stderr(Stdio::piped()).spawn().expect("the binary runs");
        let err = read_all(child.stderr.take().expect("it is piped"));
        eventually("the mount is there", || mounted(&mnt).is_some() || matches!(child.try_wait(), Ok(Some(_))));
        let pid = Pid::from_child(&child);
        kill_process(pid, signal).expect("it is our child");
        let status = wait(&mut child);
        let err = err.recv_timeout(DEADLINE).expect("the stream ends with the process");
        assert_eq!(status.code(), Some(0), "{signal:?}: {status}: {err}");
        assert_eq!(mounted(&mnt), None, "{signal:?}");
    }
}

/// A union in the foreground, on a directory of a tmpfs whose mounts nobody else sees.
struct Signalled {
    // Fields drop in order: what is mounted goes before what it is mounted on.
    _cleared: Cleared,
    _disk: Tmpfs,
    layers: Layers,
    at: PathBuf,
    child: Child,
}

impl Signalled {
    /// Mounts over what `prepare` mounts on the directory.
    fn start(prepare: impl FnOnce(&Path)) -> Option<Self> {
        let obstacle = (privilege() == Privilege::Plain).then(|| "needs the privilege to mount".to_owned());
        if let Some(reason) = obstacle.or_else(no_mounts) {
            record_skip(&test_name(), &reason);
            return None;
        }
        let layers = Layers::new(1, Placement::OneFs);
        let disk = layers.path("disk");
        let _disk = Tmpfs::mount(&disk, "mode=755").expect("a tmpfs can be mounted");
        rustix::mount::mount_change(&disk, MountPropagationFlags::PRIVATE).expect("an own mount");
        let at = disk.join("at");
        fs::create_dir(&at).expect("a new disk has space");
        prepare(&at);
        let _cleared = Cleared(at.clone());
        let log = fs::File::create(layers.path("log")).expect("the test directory can be written");
        let spec = layers.spec(Io::Cached).at(&at).args(["--log-level", "info"]);
        let child = spec.command().stderr(log).spawn().expect("the binary runs");
        eventually("the mount is there", || kind_at(&at) == UNION);
        // It is there before it has shaken hands; this waits for an answer.
        let listed = finish(Command::new("ls").arg(&at));
        assert_eq!(listed.code, Some(0), "{}", listed.err);
        Some(Self { _cleared, _disk, layers, at, child })
    }

    fn log(&self) -> String {
        fs::read_to_string(self.layers.path("log")).expect("it was made")
    }

    /// Sends SIGTERM, and waits until the log says `times` times what became of such signals.
    fn terminate(&self, said: &str, times: usize) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("it is our child");
        eventually(said, || self.log().matches(said).count() == times);
    }

    fn ends(&mut self) {
        let status = wait(&mut self.child);
        assert_eq!(status.code(), Some(0), "{}", self.log());
    }
}

/// Mounts a tmpfs on `at`.
fn cover(at: &Path) {
    rustix::mount::mount("tmpfs", at, "tmpfs", MountFlags::empty(), None).expect("a tmpfs can be mounted");
}

const UNION: &str = "fuse.unionfs-rs";

fn kind_at(at: &Path) -> String {
    mounted(at).map(|(kind, _)| kind).unwrap_or_default()
}

#[test]
fn a_second_signal_leaves_what_was_below_the_mount() {
    let Some(mut union) = Signalled::start(cover) else { return };
    let mut user = Command::new("sleep").arg("60").current_dir(&union.at).spawn().expect("sleep runs");
    union.terminate("SIGTERM: unmounting", 1);
    eventually("it is detached", || kind_at(&union.at) == "tmpfs");
    eventually("the log says that it is in use", || union.log().contains("detached while in use"));
    union.terminate("SIGTERM: unmounting", 2);
    // What an unmount takes, many times over; there is nothing to wait for where nothing is done.
    thread::sleep(Duration::from_millis(300));
    let kind = kind_at(&union.at);
    user.kill().expect("it is our child");
    wait(&mut user);
    assert_eq!(kind, "tmpfs", "{}", union.log());
    union.ends();
    rustix::mount::unmount(&union.at, UnmountFlags::DETACH).expect("it is mounted");
}

#[test]
fn a_signal_leaves_what_covers_the_mount_and_says_so() {
    let Some(mut union) = Signalled::start(|_| ()) else { return };
    cover(&union.at);
    union.terminate("something else is mounted over it", 1);
    assert_eq!(kind_at(&union.at), "tmpfs", "{}", union.log());
    rustix::mount::unmount(&union.at, UnmountFlags::empty()).expect("it is mounted");
    assert_eq!(kind_at(&union.at), UNION);
    union.terminate("SIGTERM: unmounting", 2);
    union.ends();
    assert_eq!(mounted(&union.at), None);
}

#[test]
fn a_signal_unmounts_a_mount_that_was_moved() {
    let Some(mut union) = Signalled::start(|_| ()) else { return };
    let moved = union.at.with_file_name("moved");
    fs::create_dir(&moved).expect("a new disk has space");
    rustix::mount::mount_move(&union.at, &moved).expect("may mount");
    let _cleared = Cleared(moved.clone());
    union.terminate("SIGTERM: unmounting", 1);
    union.ends();
    assert_eq!((mounted(&union.at), mounted(&moved)), (None, None), "{}", union.log());
}

#[test]
fn a_mount_that_cannot_be_served_is_taken_down() {
    if privilege() == Privilege::Plain {
        skip!("the message is that of a mount which this user may make");
    }
    if let Some(reason) = no_mounts() {
        skip!("{reason}");
    }
    if let Err(error) = Command::new("strace").arg("-V").output() {
        skip!("strace cannot be started ({error}): install the package strace");
    }
    // The main thread starts, in this order, the one for signals, that of the control socket, and two that serve.
    for (failing, said) in [(1, "signals cannot be handled"), (3, "serving ended"), (4, "serving ended")] {
        let layers = Layers::new(1, Placement::OneFs);
        let mnt = layers.mnt();
        let _cleared = Cleared(mnt.clone());
        let mut spec = layers.spec(Io::Cached).args(["--volatile", "--threads", "2", "--transport", "dev"]);
        let inject = format!("inject=clone3:error=EAGAIN:when={failing}");
        spec.wrapper = ["strace", "-o", "/dev/null", "-e", "trace=clone3", "-e", &inject].map(Into::into).to_vec();
        let ran = finish(&mut spec.command());
        assert!(ran.code == Some(1) && ran.err.contains(said), "{failing}: {ran:?}");
        assert_eq!(mounted(&mnt), None, "{failing}");
        let left = layers.path("work/work");
        // The mark stays where there was a mount, however short.
        let names = if left.exists() { layers.work().names("work") } else { Vec::new() };
        assert!(names.iter().all(|name| failing > 1 && name == "incompat"), "{failing}: {names:?} is left");
        // The upper can be used again.
        drop(layers.spec(Io::Cached).mount_ours());
    }
}

//! Who answers, and what is said where nobody does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::mount::MountPropagationFlags;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::skip;
use crate::status::figures::mounted;
use crate::support::{
    Cleared, Io, Layers, Mounted, OurMount, Placement, Privilege, Ran, Tmpfs, binary, finish, no_mounts, privilege,
    strace_obstacle,
};

/// Runs `unionfs-rs status` on `mountpoint`.
pub fn status(mountpoint: &Path, args: &[&str]) -> Ran {
    finish(Command::new(binary()).arg("status").args(args).arg(mountpoint))
}

/// Returns the status of a mount that has one.
pub fn json(mountpoint: &Path) -> Value {
    let ran = status(mountpoint, &["--json"]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{ran:?}");
    serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {}", ran.out))
}

pub fn pid_of(mount: &OurMount) -> Pid {
    let pid = mount.pid().and_then(|pid| i32::try_from(pid).ok());
    pid.and_then(Pid::from_raw).expect("it is mounted")
}

/// Returns where the test's own user has the socket of a mount; only root's place is known for sure.
fn socket(status: &Value) -> PathBuf {
    let device = status["device"].as_str().expect("a mount has a device");
    Path::new("/run/unionfs-rs").join(format!("{device}.sock"))
}

#[test]
fn what_is_no_union_is_refused_with_the_path_the_reason_and_a_way_out() {
    let layers = Layers::new(0, Placement::OneFs);
    let absent = layers.path("absent");
    let mnt = layers.mnt();
    for (path, reason) in
        [(&*mnt, "nothing is mounted there"), (Path::new("/proc"), "a mount of type proc"), (&absent, "No such file")]
    {
        let ran = status(path, &[]);
        assert_eq!((ran.code, ran.out.as_str()), (Some(3), ""), "{ran:?}");
        let begin = format!("unionfs-rs: {}: {reason}", path.display());
        assert!(ran.err.starts_with(&begin) && ran.err.contains("; "), "{}", ran.err);
    }
    assert_eq!(status(&mnt, &["--json", "--prometheus"]).code, Some(2));
}

#[test]
fn a_daemon_that_was_killed_is_told_and_what_it_left_is_cleared_away() {
    let (_layers, mut mount) = match mounted(Io::Cached, &[]) {
        Ok(mounted) => mounted,
        Err(reason) => skip!("{reason}"),
    };
    if privilege() != Privilege::Root {
        skip!("the place of the socket is known for root");
    }
    let left = socket(&json(mount.path()));
    kill_process(pid_of(&mount), Signal::KILL).expect("it is our child");
    let begun = Instant::now();
    let mut ran = status(mount.path(), &[]);
    while ran.code == Some(0) || ran.err.contains("cut short") {
        assert!(begun.elapsed() < Duration::from_secs(10), "{ran:?}");
        ran = status(mount.path(), &[]);
    }
    // Another daemon that is starting may have cleared it away already.
    let gone = ran.err.contains("its daemon is gone") && ran.err.contains("umount");
    assert!(ran.code == Some(1) && (gone || !left.exists() && ran.err.contains("no control socket")), "{ran:?}");
    assert!(ran.err.contains(&*mount.path().to_string_lossy()), "{ran:?}");
    mount.kill();
    let (_layers, next) = mounted(Io::Cached, &[]).expect("it was before");
    let own = socket(&json(next.path()));
    // Another may have been given the number meanwhile, and then somebody listens.
    let listens = std::os::unix::net::UnixStream::connect(&left).is_ok();
    assert!(own == left || listens || !left.exists(), "{} is left", left.display());
}

#[test]
fn the_socket_goes_with_the_mount() {
    let (_layers, mut mount) = match mounted(Io::Cached, &[]) {
        Ok(mounted) => mounted,
        Err(reason) => skip!("{reason}"),
    };
    if privilege() != Privilege::Root {
        skip!("the place of the socket is known for root");
    }
    let path = socket(&json(mount.path()));
    let number = |path: &Path| fs::metadata(path).ok().map(|metadata| std::os::unix::fs::MetadataExt::ino(&metadata));
    let made = number(&path);
    assert!(made.is_some());
    mount.unmount().expect("the union can be unmounted");
    // The number may be another mount's by now.
    assert_ne!(number(&path), made);
}

#[test]
fn a_daemon_that_is_stopped_is_waited_for_a_few_seconds_and_no_longer() {
    let (_layers, mount) = match mounted(Io::Cached, &[]) {
        Ok(mounted) => mounted,
        Err(reason) => skip!("{reason}"),
    };
    let daemon = pid_of(&mount);
    kill_process(daemon, Signal::STOP).expect("it is our child");
    let begun = Instant::now();
    let ran = status(mount.path(), &[]);
    let took = begun.elapsed();
    kill_process(daemon, Signal::CONT).expect("it is our child");
    assert!(ran.code == Some(1) && ran.err.contains("does not answer") && ran.err.contains("kill -CONT"), "{ran:?}");
    assert!(took < Duration::from_secs(15), "{took:?}");
    json(mount.path());
}

#[test]
fn a_client_that_says_nothing_or_nonsense_keeps_others_out_for_seconds_alone() {
    use std::io::{Read, Write};
    let (_layers, mut mount) = match mounted(Io::Cached, &[]) {
        Ok(mounted) => mounted,
        Err(reason) => skip!("{reason}"),
    };
    if privilege() != Privilege::Root {
        skip!("the place of the socket is known for root");
    }
    let path = socket(&json(mount.path()));
    for said in ["what\n", "status xml\n", &"x".repeat(10_000)] {
        let mut stream = std::os::unix::net::UnixStream::connect(&path).expect("root may");
        // What is too long is not read to its end.
        let _ = stream.write_all(said.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer); // As above: it may end by ECONNRESET.
        assert!(answer.starts_with(b"error ") || said.len() > 1000, "{said}: {}", String::from_utf8_lossy(&answer));
    }
    let silent: Vec<_> = (0..2).map(|_| std::os::unix::net::UnixStream::connect(&path).expect("root may")).collect();
    json(mount.path());
    // Nor does it keep the mount from ending.
    let also = std::os::unix::net::UnixStream::connect(&path).expect("root may");
    let begun = Instant::now();
    mount.unmount().expect("the union can be unmounted");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    drop((silent, also));
}

#[test]
fn two_mounts_answer_each_for_itself_wherever_they_are_moved() {
    if privilege() == Privilege::Plain {
        skip!("needs the privilege to mount");
    }
    if let Some(reason) = no_mounts() {
        skip!("{reason}");
    }
    let layers = Layers::new(1, Placement::OneFs);
    layers.lower(0).file("f", "f");
    let disk = layers.path("disk");
    let _disk = Tmpfs::mount(&disk, "mode=755").expect("a tmpfs can be mounted");
    rustix::mount::mount_change(&disk, MountPropagationFlags::PRIVATE).expect("an own mount");
    let dirs = ["one", "two", "moved", "bound"].map(|name| disk.join(name));
    for dir in &dirs {
        fs::create_dir(dir).expect("a new disk has space");
    }
    let [one, two, moved, bound] = dirs;
    let (_first, _second) = (Cleared(moved.clone()), Cleared(bound.clone()));
    let first = layers.spec(Io::Cached).read_only().at(&one).mount_ours();
    let second = layers.spec(Io::Cached).read_only().at(&two).mount_ours();
    for (mount, at) in [(&first, &one), (&second, &two)] {
        assert_eq!(json(at)["pid"].as_u64(), mount.pid().map(u64::from));
    }
    rustix::mount::mount_move(&one, &moved).expect("may mount");
    rustix::mount::mount_bind(&two, &bound).expect("may mount");
    assert_eq!(json(&moved)["pid"].as_u64(), first.pid().map(u64::from));
    assert_eq!(json(&bound)["pid"].as_u64(), second.pid().map(u64::from));
    assert_eq!(status(&one, &[]).code, Some(3));
    rustix::mount::unmount(&bound, rustix::mount::UnmountFlags::DETACH).expect("it is mounted");
    rustix::mount::mount_move(&moved, &one).expect("may mount");
}

#[test]
fn a_mount_that_can_have_no_thread_for_the_socket_goes_on_without() {
    if let Some(reason) = strace_obstacle().or_else(no_mounts) {
        skip!("{reason}");
    }
    let layers = Layers::new(1, Placement::OneFs);
    layers.lower(0).file("f", "f");
    let mut spec = layers.spec(Io::Cached).args(["--threads", "2", "--transport", "dev"]);
    // The first is that for signals.
    let inject = "inject=clone3:error=EAGAIN:when=2";
    spec.wrapper = ["strace", "-o", "/dev/null", "-e", "trace=clone3", "-e", inject].map(Into::into).to_vec();
    let mount = spec.mount_ours();
    assert_eq!(fs::read(mount.path().join("f")).expect("the mount answers"), b"f");
    assert!(mount.log().contains("its status cannot be asked for"), "{}", mount.log());
    let ran = status(mount.path(), &[]);
    assert!(ran.code == Some(1) && ran.err.contains("no control socket") && ran.err.contains("SIGUSR1"), "{ran:?}");
}

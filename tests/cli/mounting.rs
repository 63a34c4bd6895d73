//! `mount` and `umount`: what they leave behind, and what they leave alone.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::MountFlags;

use crate::skip;
use crate::support::{
    Cleared, DEADLINE, Io, Layers, Placement, Privilege, binary, eventually, finish, mounted, no_mounts, privilege,
    processes_with, read_all, unionfs, wait,
};

#[test]
fn umount_of_what_is_no_union_exits_with_3_and_leaves_it() {
    let layers = Layers::new(0, Placement::OneFs);
    let ran = finish(Command::new(binary()).arg("umount").arg(layers.mnt()));
    let expected = format!("unionfs-rs: {}: nothing is mounted there; ", layers.mnt().display());
    assert!(ran.code == Some(3) && ran.err.starts_with(&expected), "{ran:?}");
    let ran = unionfs(["umount", "/proc"]);
    assert!(ran.code == Some(3) && ran.err.contains("a mount of type proc"), "{ran:?}");
    assert_eq!(mounted(Path::new("/proc")).map(|(kind, _)| kind).as_deref(), Some("proc"));
}

#[test]
fn umount_of_somebody_elses_fuse_mount_exits_with_3_and_leaves_it() {
    if privilege() != Privilege::Root {
        skip!("needs root, to mount what nobody serves");
    }
    if let Some(reason) = no_mounts() {
        skip!("{reason}");
    }
    let layers = Layers::new(0, Placement::OneFs);
    let mnt = layers.mnt();
    let _cleared = Cleared(mnt.clone());
    let device = fs::File::options().read(true).write(true).open("/dev/fuse").expect("root may open it");
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let data = std::ffi::CString::new(data).expect("it has no zeros");
    rustix::mount::mount("other", &mnt, "fuse.other", MountFlags::empty(), Some(&*data)).expect("root may mount");
    for lazy in [&[] as &[&str], &["--lazy"]] {
        let ran = finish(Command::new(binary()).arg("umount").args(lazy).arg(&mnt));
        assert!(ran.code == Some(3) && ran.err.contains("a mount of type fuse.other"), "{ran:?}");
        assert_eq!(mounted(&mnt).map(|(kind, _)| kind).as_deref(), Some("fuse.other"));
    }
}

#[test]
fn mount_returns_when_the_mount_answers_and_leaves_a_daemon_that_holds_nothing() {
    if let Some(reason) = no_mounts() {
        skip!("{reason}");
    }
    let layers = Layers::new(1, Placement::OneFs);
    layers.lower(0).file("fact", "from below");
    let mnt = layers.mnt();
    let _cleared = Cleared(mnt.clone());
    // Descriptor 9 is inherited, and the paths depend on the working directory.
    let ran = finish(
        Command::new("sh")
            .args(["-c", "umask 077; exec 9>held; exec \"$0\" mount --lower lower0 --upper upper \"$1\""])
            .arg(binary())
            .arg(&mnt)
            .current_dir(layers.path("")),
    );
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (Some(0), "", ""));
    assert_eq!(mounted(&mnt).map(|(kind, _)| kind).as_deref(), Some("fuse.unionfs-rs"));
    let read = finish(Command::new("cat").arg(mnt.join("fact")));
    assert_eq!((read.code, read.out.as_str()), (Some(0), "from below"), "{}", read.err);

    let daemons = processes_with(&mnt);
    let [daemon] = daemons.as_slice() else { panic!("one daemon, not {daemons:?}") };
    let proc = PathBuf::from(format!("/proc/{}", daemon.as_raw_pid()));
    for standard in 0..=2 {
        let link = fs::read_link(proc.join(format!("fd/{standard}"))).expect("the daemon runs");
        assert_eq!(link, Path::new("/dev/null"), "descriptor {standard}");
    }
    let held = layers.path("held");
    for entry in fs::read_dir(proc.join("fd")).expect("the daemon runs") {
        let fd = entry.expect("a listing").path();
        // A descriptor may be closed while we look.
        assert_ne!(fs::read_link(&fd).ok().as_ref(), Some(&held), "{} was inherited", fd.display());
    }
    assert_eq!(fs::read_link(proc.join("cwd")).expect("the daemon runs"), Path::new("/"));
    let status = fs::read_to_string(proc.join("status")).expect("the daemon runs");
    assert!(status.contains("Umask:\t0000\n"), "{status}");
    let stat = fs::read_to_string(proc.join("stat")).expect("the daemon runs");
    // Fields after the name in parentheses: state, parent, group, session.
    let session = stat.rsplit(')').next().and_then(|fields| fields.split_ascii_whitespace().nth(3));
    assert_eq!(session, Some(daemon.as_raw_pid().to_string().as_str()), "{stat}");

    let umount = finish(Command::new(binary()).arg("umount").arg(&mnt));
    assert_eq!((umount.code, umount.err.as_str()), (Some(0), ""));
    assert_eq!(mounted(&mnt), None);
    eventually("the daemon ends", || processes_with(&mnt).is_empty());
}

#[test]
fn umount_refuses_a_mount_in_use_and_detaches_it_with_lazy() {
    if let Some(reason) = no_mounts() {
        skip!("{reason}");
    }
    let layers = Layers::new(1, Placement::OneFs);
    let mnt = layers.mnt();
    let _cleared = Cleared(mnt.clone());
    let ran = finish(Command::new(binary()).arg("mount").arg("--lower").arg(&layers.lowers()[0]).arg(&mnt));
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let mut user = Command::new("sleep").arg("60").current_dir(&mnt).spawn().expect("sleep runs");

    let refused = finish(Command::new(binary()).arg("umount").arg(&mnt));
    let still = mounted(&mnt);
    let detached = finish(Command::new(binary()).args(["umount", "--lazy"]).arg(&mnt));
    user.kill().expect("it is our child");
    wait(&mut user);
    assert_eq!(refused.code, Some(1), "{}", refused.err);
    assert!(refused.err.contains(&*mnt.to_string_lossy()) && refused.err.contains("--lazy"), "{}", refused.err);
    assert!(still.is_some());
    assert_eq!((detached.code, mounted(&mnt)), (Some(0), None), "{}", detached.err);
    eventually("the daemon ends with the last user", || processes_with(&mnt).is_empty());
}

#[test]
fn log_file_holds_what_the_level_lets_through() {
    if let Some(reason) = no_mounts() {
        skip!("{reason}");
    }
    let layers = Layers::new(1, Placement::OneFs);
    let mnt = layers.mnt();
    let _cleared = Cleared(mnt.clone());
    let log = layers.path("log");
    let ran = finish(
        Command::new(binary())
            .args(["mount", "--log-level", "trace", "--log-file"])
            .arg(&log)
            .arg("--lower")
            .arg(&layers.lowers()[0])
            .arg(&mnt),
    );
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert_eq!(finish(Command::new(binary()).arg("umount").arg(&mnt)).code, Some(0));
    eventually("the daemon ends", || processes_with(&mnt).is_empty());
    assert_ne!(fs::metadata(&log).expect("the log was made").size(), 0);
    let ran = finish(Command::new(binary()).args(["mount", "--log-file", "/proc/no/log", "--lower", "/"]).arg(&mnt));
    assert!(ran.code == Some(3) && ran.err.starts_with("unionfs-rs: /proc/no/log: "), "{ran:?}");
}

#[test]
fn stats_report_at_the_end_what_was_done() {
    let refused = unionfs(["mount", "--stats", "--lower", "/", "/mnt"]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.err.contains("--foreground") && refused.err.contains("--log-file"), "{}", refused.err);
    if let Some(reason) = no_mounts() {
        skip!("{reason}");
    }
    for foreground in [true, false] {
        let layers = Layers::new(1, Placement::OneFs);
        layers.lower(0).file("fact", "from below");
        let mnt = layers.mnt();
        let _cleared = Cleared(mnt.clone());
        let log = layers.path("log");
        let spec = layers.spec(Io::Cached).args(["--log-level", "error", "--stats"]);
        let mut command = if foreground { spec.command() } else { Command::new(binary()) };
        if !foreground {
            command
                .arg("mount")
                .args(["-o", "stats,io=cached", "--log-level", "error", "--log-file"])
                .arg(&log)
                .arg("--lower");
            command.arg(&layers.lowers()[0]).arg("--upper").arg(layers.path("upper")).arg(&mnt);
        }
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the binary runs");
        let err = read_all(child.stderr.take().expect("it is piped"));
        eventually("the mount is there", || mounted(&mnt).is_some());
        let fact = mnt.join("fact");
        assert_eq!(finish(Command::new("stat").arg(&fact)).code, Some(0));
        assert_eq!(finish(Command::new("sh").args(["-c", "echo >>\"$0\""]).arg(&fact)).code, Some(0));
        assert_eq!(finish(Command::new(binary()).arg("umount").arg(&mnt)).code, Some(0));
        assert_eq!(wait(&mut child).code(), Some(0));
        eventually("the daemon ends", || processes_with(&mnt).is_empty());
        let err = err.recv_timeout(DEADLINE).expect("the stream ends with the process");
        let said = if foreground { err } else { fs::read_to_string(&log).expect("the log was made") };
        assert!(said.contains(&format!("unionfs-rs: {}: statistics", mnt.display())), "{said}");
        let figure = |what: &str| {
            let line = said.lines().find_map(|line| line.trim_start().strip_prefix(what)).unwrap_or_default();
            line.trim().parse::<u64>().unwrap_or_else(|error| panic!("{what}: {error}: {said}"))
        };
        assert!(figure("lookup ") >= 1 && figure("write ") == 1, "{said}");
        assert!(figure("requests ") >= figure("lookup ") + figure("write "), "{said}");
        assert_eq!((figure("objects copied up "), figure("bytes copied up ")), (1, 10), "{said}");
        assert!(figure("inodes known at the end ") >= 1 && figure("handles open at the end ") == 0, "{said}");
        assert!(!said.contains("symlink"), "what did not come is not listed: {said}");
    }
}

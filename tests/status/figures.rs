//! What the fields say.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::skip;
use crate::status::asking::{json, pid_of};
use crate::support::{
    Io, Layers, Mounted, OurMount, Placement, Privilege, eventually, no_mounts, on_kernel, privilege,
};

const LOWER: usize = 300_000;

/// A union of two lowers, mounted with these arguments besides.
pub fn mounted(io: Io, args: &[&str]) -> Result<(Layers, OurMount), String> {
    if on_kernel() {
        return Err("the kernel's overlayfs has no daemon to ask".to_owned());
    }
    if let Some(reason) = no_mounts() {
        return Err(reason);
    }
    let layers = Layers::new(2, Placement::OneFs);
    for name in ["a", "b", "c"] {
        layers.lower(1).file(format!("d/{name}"), name);
    }
    layers.lower(0).file("big", vec![7; LOWER]);
    let mount = layers.spec(io).args(args.iter().copied()).mount_ours();
    Ok((layers, mount))
}

fn option<'a>(status: &'a Value, name: &str) -> (&'a str, &'a str) {
    let option = &status["options"][name];
    (option["value"].as_str().unwrap_or_default(), option["why"].as_str().unwrap_or_default())
}

#[test]
fn figures_are_those_of_what_was_done() {
    let (layers, mount) = match mounted(Io::Cached, &["--transport", "dev"]) {
        Ok(mounted) => mounted,
        Err(reason) => skip!("{reason}"),
    };
    let count = |status: &Value, path: &str| status.pointer(path).and_then(Value::as_u64).unwrap_or_default();
    let before = json(mount.path());
    for name in ["a", "b", "c"] {
        fs::metadata(mount.path().join("d").join(name)).expect("a lower has it");
    }
    fs::metadata(mount.path().join("none")).expect_err("no layer has it");
    let seen = json(mount.path());
    let grown = |path: &str| count(&seen, path) - count(&before, path);
    // `d` and what is in it, and the name that is not there.
    assert!(grown("/requests/by_operation/lookup") >= 5, "{seen:#}");
    assert!(grown("/requests/total") >= grown("/requests/by_operation/lookup"));
    assert_eq!(grown("/absences"), 1, "{seen:#}");
    assert_eq!((grown("/inodes"), grown("/copy_ups/objects")), (4, 0), "{seen:#}");
    assert!(grown("/caches/lower_directories/misses") == 1 && grown("/caches/lower_directories/hits") >= 2, "{seen:#}");
    assert!(count(&seen, "/descriptors/directories") >= 1, "{seen:#}");

    fs::write(mount.path().join("d/a"), "new").expect("the union takes a write");
    let mut permissions = fs::metadata(mount.path().join("big")).expect("a lower has it").permissions();
    permissions.set_mode(0o600);
    fs::set_permissions(mount.path().join("big"), permissions).expect("it is the test's own");
    let seen = json(mount.path());
    // `d`, `d/a`, whose data was cut off before it was copied, and `big`.
    assert_eq!(count(&seen, "/copy_ups/objects"), 3, "{seen:#}");
    assert_eq!(count(&seen, "/copy_ups/bytes"), LOWER as u64, "{seen:#}");
    assert!(seen["copy_ups"]["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{seen:#}");
    assert_eq!(count(&seen, "/requests/by_operation/write"), 1, "{seen:#}");

    let paths: Vec<_> =
        [layers.path("upper"), layers.path("work")].into_iter().chain(layers.lowers().to_vec()).collect();
    let shown: Vec<_> = seen["layers"].as_array().expect("a list").iter().map(|layer| layer["path"].as_str()).collect();
    assert_eq!(shown, paths.iter().map(|path| path.to_str()).collect::<Vec<_>>());
    let roles: Vec<_> = seen["layers"].as_array().expect("a list").iter().map(|layer| layer["role"].as_str()).collect();
    assert_eq!(roles, ["upper", "work", "lower", "lower"].map(Some));
    assert_eq!((seen["format"].as_u64(), seen["mountpoint"].as_str()), (Some(1), mount.path().to_str()));
    assert_eq!(seen["pid"].as_u64(), mount.pid().map(u64::from));
    assert_eq!(option(&seen, "io"), ("cached", "as asked for"));
    assert_eq!(option(&seen, "transport"), ("dev", "as asked for"));
}

#[test]
fn options_say_what_is_in_force_and_why() {
    let upper = match mounted(Io::Auto, &["--transport", "auto", "--index", "off", "--metacopy", "on", "--volatile"]) {
        Ok((_layers, mount)) => json(mount.path()),
        Err(reason) => skip!("{reason}"),
    };
    let ring = fs::read_to_string("/sys/module/fuse/parameters/enable_uring").is_ok_and(|value| value.starts_with('Y'));
    let (transport, why) = option(&upper, "transport");
    assert!((transport == "ring") <= ring && why.starts_with("auto: "), "{transport}, {why}");
    assert!(ring || why.contains("io_uring"), "{why}");
    let (io, why) = option(&upper, "io");
    assert!(["cached", "passthrough"].contains(&io) && why.starts_with("auto: "), "{io}, {why}");
    if privilege() != Privilege::Root {
        assert!(io == "cached" && why.contains("needs root"), "{io}, {why}");
    }
    assert_eq!(option(&upper, "index"), ("off", "as asked for"));
    assert_eq!(option(&upper, "metacopy"), ("on", "as asked for"));
    assert_eq!(option(&upper, "volatile"), ("on", "as asked for"));
    assert_eq!(option(&upper, "fsync").0, "volatile");

    let layers = Layers::new(1, Placement::OneFs);
    let mount = layers.spec(Io::Cached).read_only().mount_ours();
    let read_only = json(mount.path());
    assert_eq!(option(&read_only, "ro").0, "on");
    for name in ["redirect_dir", "index"] {
        let (value, why) = option(&read_only, name);
        assert!(["follow", "off"].contains(&value) && why.contains("no upper"), "{name}: {value}, {why}");
    }
}

#[test]
fn a_wish_that_cannot_be_met_says_so() {
    // An upper that holds files already goes on keeping owners with them.
    let layers = Layers::new(1, Placement::OneFs);
    if let Some(reason) = no_mounts() {
        skip!("{reason}");
    }
    layers.upper().file("old", "old");
    let mount = layers.spec(Io::Cached).args(["--xattr-permissions", "user"]).mount_ours();
    let (value, why) = (json(mount.path()), "asked for, but upper holds files already");
    assert!(option(&value, "xattr_permissions").0 == "off", "{value:#}");
    assert!(option(&value, "xattr_permissions").1.starts_with(why), "{value:#}");
}

#[test]
fn sigusr1_logs_the_status_and_interrupts_nobody() {
    let (_layers, mount) = match mounted(Io::Cached, &[]) {
        Ok(mounted) => mounted,
        Err(reason) => skip!("{reason}"),
    };
    let daemon = pid_of(&mount);
    for times in 1..=3 {
        for name in 0..50 {
            fs::write(mount.path().join(format!("new{name}")), [7; 10_000]).expect("the union takes a write");
            if name == 25 {
                kill_process(daemon, Signal::USR1).expect("it is our child");
            }
        }
        // Signals of one kind that come before the first was taken are one.
        eventually("the log has it", || mount.log().matches("options in force").count() == times);
    }
    let log = mount.log();
    assert!(log.contains("WARN") && log.contains("io=cached") && log.contains("objects copied up"), "{log}");
    assert_eq!(fs::read(mount.path().join("d/b")).expect("the mount goes on"), b"b");
    // All threads but one keep it out.
    let tasks = fs::read_dir(format!("/proc/{}/task", Pid::as_raw(Some(daemon)))).expect("the daemon runs");
    let open = tasks.filter(|task| {
        let path = task.as_ref().expect("a listing").path().join("status");
        let status = fs::read_to_string(path).unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).map(str::trim).unwrap_or("0");
        u64::from_str_radix(mask, 16).is_ok_and(|mask| mask & 1 << (Signal::USR1.as_raw() - 1) == 0)
    });
    assert_eq!(open.count(), 1);
}

//! The threads of a daemon that serve requests are bound by Landlock, and those that unmount are not.

use std::fs;

use crate::skip;
use crate::support::{Io, Layers, Mounted, Placement, Watchdog, no_mounts, on_kernel, unionfs};

#[test]
fn every_thread_that_serves_requests_is_bound_and_those_that_unmount_are_free() {
    if on_kernel() {
        skip!("the kernel's overlayfs has no threads");
    }
    if let Some(reason) = no_mounts() {
        skip!("{reason}");
    }
    let _watchdog = Watchdog::start();
    for (args, wanted) in [(&[][..], "landlock"), (&["--sandbox", "off"], "off")] {
        let layers = Layers::new(1, Placement::OneFs);
        layers.lower(0).file("file", "lower");
        let mut union = layers.spec(Io::Cached).args(args.iter().copied()).mount_ours();
        // So that there is a thread for long work.
        fs::write(union.path().join("file"), "upper").expect("the union can be written");
        let status = unionfs(["status".as_ref(), "--json".as_ref(), union.path().as_os_str()]);
        if wanted == "landlock" && !status.out.contains("\"landlock\"") {
            union.unmount().expect("the union can be unmounted");
            skip!("the kernel has no Landlock that knows LANDLOCK_ACCESS_FS_REFER (Linux 5.19)");
        }
        let tasks = format!("/proc/{}/task", union.pid().expect("it is mounted"));
        let (mut bound, mut free) = (Vec::new(), Vec::new());
        for task in fs::read_dir(&tasks).expect("the daemon lives") {
            let task = task.expect("the daemon lives").path();
            let read = |name: &str| fs::read_to_string(task.join(name)).expect("the daemon lives");
            let name = read("comm").trim().to_owned();
            // Whoever binds itself gives that up first (landlock_restrict_self(2)).
            if read("status").contains("NoNewPrivs:\t1") { bound.push(name) } else { free.push(name) }
        }
        let serves =
            |name: &String| ["unionfs-dev", "unionfs-long", "unionfs-ring"].iter().any(|of| name.starts_with(of));
        if wanted == "landlock" {
            assert!(bound.len() > 1 && bound.iter().all(serves), "bound: {bound:?}, free: {free:?}");
            assert!(!free.iter().any(serves), "bound: {bound:?}, free: {free:?}");
        } else {
            assert!(bound.is_empty(), "{bound:?}");
        }
        union.unmount().expect("a daemon whose threads are bound can be unmounted");
    }
}

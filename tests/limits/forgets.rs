//! Memory: bounded by what the kernel knows, and given back when the kernel forgets it.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::mount::MountFlags;
use serde_json::Value;

use crate::support::{
    Io, Layers, LowersUnchanged, Mounted, OurMount, Placement, Watchdog, eventually, on_kernel, record_skip,
    require_root, test_name, unionfs,
};

const IN_A_DIRECTORY: usize = 500;

/// What the daemon may hold for each inode that the kernel knows.
const BYTES_EACH: u64 = 320;

/// What it may hold besides: pages of the allocator that are in part in use, the heap of each thread, cached directories.
const BYTES_BESIDES: u64 = 8 << 20;

const ROUNDS: usize = 5;

fn count() -> usize {
    if std::env::var_os("UNIONFS_FULL").is_some() { 100_000 } else { 20_000 }
}

fn name(index: usize) -> String {
    format!("d{}/f{index}", index / IN_A_DIRECTORY)
}

/// Returns how many bytes of the daemon are resident.
fn resident(union: &OurMount) -> u64 {
    let pid = union.pid().expect("the daemon lives");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the daemon lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("proc_pid_status(5)");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("proc_pid_status(5)");
    kib * 1024
}

/// Returns how many inodes the kernel knows, as the daemon says.
fn known(union: &OurMount) -> u64 {
    let ran = unionfs(["status".as_ref(), "--json".as_ref(), union.path().as_os_str()]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let status: Value = serde_json::from_str(&ran.out).expect("the status is JSON");
    status["inodes"].as_u64().expect("it has the number of inodes")
}

/// Has the kernel forget all that is not in use there: it sends a FORGET for each, as fast as it can.
fn flood(at: &Path) {
    rustix::mount::mount_remount(at, MountFlags::NOSUID | MountFlags::NODEV, c"").expect("root may remount");
}

/// Changes files and looks at some of those that are being forgotten, until `done`.
fn work(at: &Path, worker: usize, done: &AtomicBool) -> usize {
    let mut rounds = 0;
    let count = count();
    while !done.load(Ordering::Relaxed) {
        let (one, two) = (at.join(format!("own{worker}")), at.join(format!("moved{worker}")));
        fs::write(&one, format!("{worker} {rounds}")).expect("a file can be written");
        fs::rename(&one, &two).expect("a file can be renamed");
        assert_eq!(fs::read_to_string(&two).expect("it can be read"), format!("{worker} {rounds}"));
        fs::remove_file(&two).expect("a file can be removed");
        for step in 0..20 {
            let index = (rounds * 7919 + step * 104_729 + worker) % count;
            let content = fs::read_to_string(at.join(name(index))).unwrap_or_else(|e| panic!("{}: {e}", name(index)));
            assert_eq!(content, format!("lower {index}"));
        }
        rounds += 1;
    }
    rounds
}

#[test]
fn floods_of_forgets_give_memory_back_and_nobody_waits() {
    if on_kernel() {
        record_skip(&test_name(), "the kernel's overlayfs has no requests");
        return;
    }
    if !require_root("a remount") {
        return;
    }
    let _watchdog = Watchdog::with(Duration::from_secs(400));
    let count = count();
    let layers = Layers::new(1, Placement::OneFs);
    for index in 0..count {
        layers.lower(0).file(name(index), format!("lower {index}"));
    }
    let lowers = LowersUnchanged::new(layers.lowers());
    let mut union = layers.spec(Io::Cached).mount_ours();
    let at = union.path().to_owned();
    let before = resident(&union);
    let bound = |known: u64| before + known * BYTES_EACH + BYTES_BESIDES;
    for round in 0..ROUNDS {
        for index in 0..count {
            fs::symlink_metadata(at.join(name(index))).unwrap_or_else(|error| panic!("{index}: {error}"));
        }
        let (full, now) = (known(&union), resident(&union));
        assert!(full > count as u64, "the kernel knows {full} of {count} files");
        assert!(now <= bound(full), "round {round}: {} KiB for {full} inodes, {} before", now / 1024, before / 1024);
        let done = AtomicBool::new(false);
        let rounds = std::thread::scope(|scope| {
            let workers = [0, 1, 2].map(|worker| {
                scope.spawn({
                    let (at, done) = (&at, &done);
                    move || work(at, worker, done)
                })
            });
            for _ in 0..10 {
                flood(&at);
                std::thread::sleep(Duration::from_millis(20));
            }
            done.store(true, Ordering::Relaxed);
            workers.map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        assert!(rounds.iter().all(|&rounds| rounds > 0), "{rounds:?}");
        eventually("what the kernel has forgotten is gone", || {
            flood(&at);
            known(&union) < 100
        });
        eventually("its memory is given back", || resident(&union) <= bound(0));
        println!(
            "{full} inodes: {} KiB; forgotten beside {rounds:?} rounds of work, {} KiB",
            now / 1024,
            resident(&union) / 1024
        );
    }
    union.unmount().expect("the union can be unmounted");
    lowers.check();
}

//! What is written and stays in the kernel for a while.

use std::fs::{self, File};
use std::io::Write;
use std::thread;
use std::time::{Duration, SystemTime};

use rustix::fs::XattrFlags;

use super::copy_up::has_small_disk;
use super::union::{trap, xfs_io};
use crate::support::{Io, Layers, Mode, Placement, Watchdog, on_kernel, record_skip, require_root, test_name};

/// `cap_net_raw=ep`, as setcap(8) stores it (revision 2).
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn capabilities_that_are_set_before_what_was_written_has_come_to_upper_survive() {
    if !require_root("capabilities of files") {
        return;
    }
    trap(1, |layers| {
        layers.lower(0).file("lower", "lower");
    })
    .run(|union| {
        for name in ["lower", "new"] {
            let path = union.at(name);
            let mut file = File::options().append(true).create(true).open(&path).expect("it can be made");
            file.write_all(b"written").expect("it takes data");
            rustix::fs::fsetxattr(&file, "security.capability", &CAPABILITY, XattrFlags::empty()).expect("root may");
            drop(file);
            union.remount();
            let mut value = [0; 64];
            let len = rustix::fs::getxattr(&path, "security.capability", &mut value).expect("it is there");
            assert_eq!(value[..len], CAPABILITY, "{name}");
            // But who writes then takes it.
            File::options().append(true).open(&path).and_then(|mut file| file.write_all(b"!")).expect("it takes data");
            union.remount();
            let gone = rustix::fs::getxattr(&path, "security.capability", &mut value);
            assert_eq!(gone, Err(rustix::io::Errno::NODATA), "{name}");
        }
    });
}

#[test]
fn the_time_of_a_write_is_when_it_was_made() {
    trap(1, |layers| {
        layers.lower(0).file("f", vec![b'f'; 4096]);
    })
    .run(|union| {
        let path = union.at("f");
        let time = || fs::metadata(&path).and_then(|meta| meta.modified()).expect("stat");
        let mut file = File::options().append(true).open(&path).expect("it can be written to");
        file.write_all(b"written").expect("it takes data");
        let written = time();
        // Longer than a tick, by which times differ.
        thread::sleep(Duration::from_millis(20));
        drop(file);
        assert_eq!(time(), written, "closing is no write");
        union.remount();
        assert_eq!(time(), written);
        // Of two writes in one tick, each of which is sent.
        xfs_io(&[], &["mmap -rw 0 4096", "mwrite 0 4", "msync -s 0 4096", "mwrite 0 4", "msync -s 0 4096"], &path);
        let written = time();
        union.remount();
        assert_eq!(time(), written);
    });
}

#[test]
fn the_time_that_is_set_holds_whatever_is_still_to_be_sent() {
    trap(1, |_| {}).run(|union| {
        let path = union.at("f");
        let time = || fs::metadata(&path).and_then(|meta| meta.modified()).expect("stat");
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        for _ in 0..5 {
            let mut file = File::create(&path).expect("it can be made");
            // Many requests, which are sent side by side.
            file.write_all(&vec![b'x'; 16 << 20]).expect("it takes data");
            file.set_modified(old).expect("an own file");
            drop(file);
            assert_eq!(time(), old);
            union.remount();
            assert_eq!(time(), old);
        }
    });
}

#[test]
fn a_lower_file_that_is_removed_or_replaced_is_not_copied_up() {
    if !has_small_disk() {
        return;
    }
    trap(1, |layers| {
        for name in ["removed", "replaced"] {
            layers.lower(0).file(name, vec![b'l'; 8 << 20]);
        }
    })
    .on_a_disk_of("4m")
    .run(|union| {
        // As a kernel that keeps writes has them all, it tells their times when they lose a name.
        for name in ["removed", "replaced"] {
            assert_eq!(fs::read(union.at(name)).expect("it can be read").len(), 8 << 20);
        }
        fs::remove_file(union.at("removed")).expect("a whiteout has room");
        union.merged().file("new", "new");
        fs::rename(union.at("new"), union.at("replaced")).expect("it has room");
        union.remount();
        assert_eq!(union.merged().read("replaced"), b"new");
        if !on_kernel() {
            let log = fs::read_to_string(union.layers.path("daemon.log")).expect("the daemon has one");
            assert!(!log.contains("No space left"), "{log}");
        }
    });
}

#[test]
fn what_was_closed_or_synced_is_in_upper_when_the_daemon_is_killed() {
    if let Some(reason) = (Mode { io: Io::Writeback, placement: Placement::OneFs }).obstacle() {
        return record_skip(&test_name(), &reason);
    }
    let _watchdog = Watchdog::start();
    let layers = Layers::new(1, Placement::OneFs);
    layers.lower(0).file("lower", "lower, ");
    let mut union = layers.spec(Io::Writeback).mount_ours();
    let at = |name: &str| layers.mnt().join(name);
    let append = |name: &str, data: &[u8]| {
        let mut file = File::options().append(true).create(true).open(at(name)).expect("it can be opened");
        file.write_all(data).expect("it takes data");
        file
    };
    drop(append("lower", b"closed"));
    let synced = append("synced", b"synced");
    synced.sync_all().expect("it can be synced");
    // Of this one nobody knows.
    let open = append("open", b"open");
    union.kill();
    drop((synced, open));
    assert_eq!(layers.upper().read("lower"), b"lower, closed");
    assert_eq!(layers.upper().read("synced"), b"synced");
}

//! What is written and stays in the kernel for a while.

use std::fs::{self, File};
use std::io::Write;
use std::thread;
use std::time::Duration;

use rustix::fs::XattrFlags;

use super::union::{trap, xfs_io};
use crate::support::{Io, Layers, Mode, Placement, Watchdog, record_skip, require_root, test_name};

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

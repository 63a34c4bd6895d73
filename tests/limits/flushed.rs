//! A signal ends a mount, and what was written is in upper.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;

use rustix::process::{Pid, Signal, kill_process};

use crate::skip;
use crate::support::{Cleared, Io, Layers, Mode, Placement, Watchdog, eventually, mounted, on_kernel, wait};

/// What is written, in pieces.
const PIECE: usize = 4096;
const PIECES: usize = 2000;

#[test]
fn what_was_written_before_a_signal_is_in_upper() {
    if on_kernel() {
        skip!("the kernel's overlayfs takes no signals");
    }
    let _watchdog = Watchdog::start();
    for io in [Io::Cached, Io::Writeback] {
        let mode = Mode { io, placement: Placement::OneFs };
        if let Some(reason) = mode.obstacle() {
            crate::support::record_skip(&format!("{} {mode:?}", crate::support::test_name()), &reason);
            continue;
        }
        for signal in [Signal::TERM, Signal::INT] {
            let layers = Layers::new(1, Placement::OneFs);
            layers.lower(0).file("lower", vec![1; PIECE]);
            let at = layers.mnt();
            let _cleared = Cleared(at.clone());
            let mut daemon = layers.spec(io).command().spawn().expect("the binary runs");
            eventually("the mount is there", || mounted(&at).is_some());
            let mut closed = File::create(at.join("closed")).expect("the union can be written");
            let open = File::create(at.join("open")).expect("the union can be written");
            let copied = File::options().write(true).open(at.join("lower")).expect("the union can be written");
            for index in 0..PIECES {
                let piece = [index as u8; PIECE];
                closed.write_all(&piece).expect("the union can be written");
                open.write_all_at(&piece, (index * PIECE) as u64).expect("the union can be written");
            }
            copied.write_all_at(&[2; PIECE / 2], 0).expect("the union can be written");
            drop(closed);
            kill_process(Pid::from_child(&daemon), signal).expect("an own child");
            eventually("the mount is gone from the tree", || mounted(&at).is_none());
            // Who has files open uses them to the end.
            open.write_all_at(b"after the signal", 0).expect("what is open can be written");
            drop((open, copied));
            let ended = wait(&mut daemon);
            assert_eq!(ended.code(), Some(0), "{io:?}, {signal:?}: {ended}");
            for name in ["closed", "open"] {
                let found = layers.upper().read(name);
                assert_eq!(found.len(), PIECES * PIECE, "{name}, {io:?}, {signal:?}");
                for (index, piece) in found.chunks(PIECE).enumerate().skip(1) {
                    assert!(piece.iter().all(|byte| *byte == index as u8), "{name}, {io:?}, {signal:?}: piece {index}");
                }
            }
            assert!(layers.upper().read("open").starts_with(b"after the signal"), "{io:?}, {signal:?}");
            let copied = layers.upper().read("lower");
            assert_eq!(copied, [[2; PIECE / 2], [1; PIECE / 2]].concat(), "{io:?}, {signal:?}");
            assert_eq!(layers.work().names("work"), [""; 0]);
            assert!(fs::metadata(layers.lower(0).path("lower")).is_ok());
        }
    }
}

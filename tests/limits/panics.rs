//! A request that panics is answered with EIO, and nothing else is changed by it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use rustix::io::Errno;

use crate::skip;
use crate::support::{Io, Layers, LowersUnchanged, Mounted, Placement, Watchdog, no_mounts, on_kernel};

type Act = fn(&Path) -> io::Result<()>;

/// What panics, as `src/sys/fault.rs` has it, and what asks for it.
const FAULTS: [(&str, Act); 11] = [
    ("unlink:1", |at| fs::remove_file(at.join("d/one"))),
    ("rmdir:1", |at| fs::remove_dir(at.join("empty"))),
    ("mkdir:1", |at| fs::create_dir(at.join("d/made"))),
    ("symlink:1", |at| std::os::unix::fs::symlink("to", at.join("d/symlink"))),
    ("rename:1", |at| fs::rename(at.join("d/one"), at.join("d/moved"))),
    ("link:1", |at| fs::hard_link(at.join("d/one"), at.join("d/linked"))),
    ("setattr:1", |at| OpenOptions::new().write(true).open(at.join("d/one"))?.set_len(1)),
    ("readdirplus:1", |at| fs::read_dir(at.join("d"))?.try_for_each(|entry| entry.map(drop))),
    // With the locks of a directory and of a copy-up held, of work that a pool does.
    ("publish:1", |at| OpenOptions::new().append(true).open(at.join("d/one"))?.write_all(b"more")),
    ("publish:1", |at| fs::hard_link(at.join("d/one"), at.join("d/linked"))),
    // The parent's copy is there by then.
    ("publish:2", |at| fs::set_permissions(at.join("d/one"), std::os::unix::fs::PermissionsExt::from_mode(0o600))),
];

#[test]
fn a_request_that_panics_is_eio_and_the_mount_goes_on() {
    if on_kernel() {
        skip!("the kernel's overlayfs has no requests");
    }
    if !cfg!(debug_assertions) || std::env::var_os("UNIONFS_RS_BIN").is_some() {
        skip!("the binary under test may be a release build, which has no panics to order");
    }
    if let Some(reason) = no_mounts() {
        skip!("{reason}");
    }
    let _watchdog = Watchdog::start();
    for (fault, act) in FAULTS {
        let layers = Layers::new(1, Placement::OneFs);
        layers.lower(0).file("d/one", "one").file("d/two", "two").dir("empty");
        let lowers = LowersUnchanged::new(layers.lowers());
        let mut spec = layers.spec(Io::Cached);
        spec.wrapper = ["env".into(), format!("UNIONFS_TEST_PANIC={fault}").into()].to_vec();
        let mut union = spec.mount_ours();
        let error = act(union.path()).expect_err(fault);
        assert_eq!(Errno::from_io_error(&error), Some(Errno::IO), "{fault}: {error}");
        assert!(union.log().contains("a request panicked"), "{fault}: {}", union.log());
        // The same again, and what needs the same locks.
        act(union.path()).unwrap_or_else(|error| panic!("{fault}: not even once more: {error}"));
        fs::write(union.path().join("d/new"), "new").unwrap_or_else(|error| panic!("{fault}: {error}"));
        fs::remove_file(union.path().join("d/two")).unwrap_or_else(|error| panic!("{fault}: {error}"));
        union.remount();
        assert_eq!(fs::read_to_string(union.path().join("d/new")).expect(fault), "new");
        assert!(!union.path().join("d/two").exists(), "{fault}");
        union.unmount().expect("the union can be unmounted");
        assert_eq!(layers.work().names("work"), [""; 0], "{fault}");
        lowers.check();
    }
}

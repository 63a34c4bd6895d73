//! The black-box test harness: layers on disk, the mounts over them, and the checks that hold for
//! every test.
//!
//! A test builds [`Layers`], takes [`LowersUnchanged`] of them, mounts them with [`Spec`] and
//! looks at the merged view, the upper and the lowers. Every mount is a guard that takes itself
//! down, and a [`Watchdog`] aborts the FUSE connections of a test that hangs. What cannot run here
//! goes through [`skip!`], so that it is printed and counted and never passes silently.
//!
//! Environment: `UNIONFS_RS_BIN` (another binary), `UNIONFS_TEST_DIR` (where the layers go),
//! `UNIONFS_SKIP_LOG` (a file that collects the skips), `UNIONFS_TEST_ON=kernel` (mount the
//! kernel's overlayfs instead, to check a test against the reference), `UNIONFS_TEST_TIMEOUT`
//! (seconds a test may take), `UNIONFS_TEST_TRANSPORT` (`dev` or `ring`, where a test does not say).

// Each test crate compiles this module and uses its own part of it.
#![allow(dead_code, unused_imports, unused_macros)]

mod command;
mod layers;
mod looped;
mod lowers;
mod mount;
mod privilege;
mod rng;
mod skip;
pub mod traced;
mod unprivileged;
mod watchdog;

pub use command::{
    Cleared, DEADLINE, Ran, eventually, finish, mounted, no_mounts, number, processes_with, read_all, run,
    strace_obstacle, unionfs, wait,
};
pub use layers::{Layers, Placement, Tmpfs, Tree};
pub use looped::Looped;
pub use lowers::{Atime, LowersUnchanged};
pub use mount::{Io, KernelMount, Mounted, OurMount, Spec, StartError, fuse_connections, is_of_dead_server};
pub use privilege::{Privilege, privilege, require_root};
pub use rng::Rng;
pub use skip::record as record_skip;
pub use unprivileged::{Home, Who, suite_as};
pub use watchdog::Watchdog;

use std::path::PathBuf;

/// Returns the binary under test: `UNIONFS_RS_BIN`, else the one that cargo built for this test.
pub fn binary() -> PathBuf {
    std::env::var_os("UNIONFS_RS_BIN").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_unionfs-rs")), PathBuf::from)
}

/// Whether the tests run on the kernel's overlayfs instead of ours (`UNIONFS_TEST_ON=kernel`).
pub fn on_kernel() -> bool {
    std::env::var_os("UNIONFS_TEST_ON").is_some_and(|on| on == "kernel")
}

/// Returns the test's own name, as libtest names its thread.
pub fn test_name() -> String {
    std::thread::current().name().unwrap_or("unnamed").to_owned()
}

/// One way in which a test is run: the I/O mode and where the layers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// How the mount reads and writes.
    pub io: Io,
    /// Whether the layers share one file system.
    pub placement: Placement,
}

/// Returns every [`Mode`] that can run here; the others are printed and counted as skipped.
pub fn modes() -> Vec<Mode> {
    let mut possible = Vec::new();
    let all = [Placement::OneFs, Placement::TwoFs];
    // What is kept for a while is kept above the layers, wherever they are.
    for (io, placements) in [(Io::Cached, &all[..]), (Io::Writeback, &all[..1]), (Io::Passthrough, &all[..])] {
        for &placement in placements {
            let mode = Mode { io, placement };
            match mode.obstacle() {
                None => possible.push(mode),
                Some(reason) => record_skip(&format!("{} {mode:?}", test_name()), &reason),
            }
        }
    }
    possible
}

impl Mode {
    /// Says why this mode cannot run here, where it cannot.
    pub fn obstacle(self) -> Option<String> {
        if on_kernel() && self.io != Io::Cached {
            return Some("the kernel's overlayfs has no I/O modes".to_owned());
        }
        if on_kernel() && privilege() != Privilege::Root {
            return Some("a kernel overlay for reference needs root".to_owned());
        }
        if self.io == Io::Passthrough
            && let Some(reason) = privilege::passthrough_obstacle()
        {
            return Some(reason);
        }
        if self.io == Io::Writeback && privilege() == Privilege::Plain {
            return Some("writeback needs CAP_DAC_OVERRIDE".to_owned());
        }
        if self.placement == Placement::TwoFs && privilege() == Privilege::Plain {
            return Some("a second file system needs the privilege to mount a tmpfs".to_owned());
        }
        None
    }
}

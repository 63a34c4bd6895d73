//! Differential tests: random operations in lock step on our mount and on the kernel's overlayfs.
//!
//! Both mounts share the lowers and have an upper each. Every operation must give the same result and
//! the same errno; the trees must be the same in the middle, at the end, after a remount, and after
//! each side has mounted what the other one wrote; and the lowers must be what they were. What may
//! differ stands in `differential/departures.rs`.
//!
//! A run follows from its seed. A failing one is made small and printed. Environment:
//! `UNIONFS_DIFF_SEEDS` (how many seeds a test takes), `UNIONFS_DIFF_OPS` (steps a seed),
//! `UNIONFS_DIFF_SEED` (this seed alone), `UNIONFS_DIFF_FIRST` (the first seed),
//! `UNIONFS_DIFF_MINIMISE` (seconds that making a failure small may take).

mod support;

mod differential {
    pub mod act;
    pub mod actor;
    pub mod departures;
    pub mod generate;
    pub mod minimise;
    pub mod model;
    pub mod observe;
    pub mod op;
    pub mod plan;
    pub mod readers;
    pub mod run;
    pub mod side;
    pub mod tree;
}

use std::time::{Duration, Instant};

use differential::minimise::{minimise, report};
use differential::plan::generate;
use differential::run::{Case, Metacopy, Played, Source, Subject, draw_prelude, play};
use differential::tree::Holes;
use support::{Io, Mode, Placement, Rng, Watchdog, number, require_root};

/// Whether the file system of the test directory has a hole where it had one before. In a file that shares extents, xfs
/// shows a hole that was read as data for as long as it is in the page cache.
fn holes_stay() -> bool {
    const XFS: rustix::fs::FsWord = 0x5846_5342;
    let dir = std::env::var_os("UNIONFS_TEST_DIR").map_or_else(std::env::temp_dir, Into::into);
    rustix::fs::statfs(&dir).is_ok_and(|statfs| statfs.f_type != XFS)
}

/// Returns the case and the random numbers of a seed.
fn case(seed: u64, placement: Placement, subjects: [Subject; 2]) -> (Case, Rng) {
    let mut rng = Rng::new(seed);
    let count = *rng.weighted(&[(4, 2), (4, 3), (1, 4), (1, 6)]);
    // Where the kernel keeps what is written it says that all is data.
    let told = !subjects.contains(&Subject::Ours(Io::Writeback));
    let holes = if seed.is_multiple_of(2) && told && holes_stay() { Holes::Compare } else { Holes::Ignore };
    let layers = generate(&mut rng, count, holes);
    let metacopy = if seed % 5 == 4 { Metacopy::On } else { Metacopy::Off };
    let mut case = Case { layers, prelude: Vec::new(), placement, holes, metacopy, subjects };
    // What a prelude leaves has holes that the kernel's copy-up fills.
    if holes == Holes::Ignore && rng.chance(70) {
        case.prelude = draw_prelude(&case, Rng::new(rng.next()), 40);
    }
    (case, rng)
}

/// Runs the seeds that the environment says, `seeds` where it says nothing.
fn run_seeds(seeds: u64, placement: Placement, subjects: &[Subject; 2]) {
    let steps = number("UNIONFS_DIFF_OPS", 300) as usize;
    let first = number("UNIONFS_DIFF_FIRST", 0);
    let seeds = match std::env::var("UNIONFS_DIFF_SEED") {
        Ok(_) => {
            let seed = number("UNIONFS_DIFF_SEED", 0);
            seed..seed + 1
        }
        Err(_) => first..first + number("UNIONFS_DIFF_SEEDS", seeds),
    };
    for seed in seeds {
        let _watchdog = Watchdog::with(Duration::from_secs(600));
        let (case, rng) = case(seed, placement, subjects.clone());
        let played = play(&case, Source::Random(rng, steps));
        if played.failure.is_some() {
            fail(seed, steps, case, played);
        }
    }
}

fn fail(seed: u64, steps: usize, case: Case, played: Played) -> ! {
    let what = played.failure.as_ref().map_or("", |failure| &failure.what);
    eprintln!("seed {seed} fails after {} steps: {what}", played.steps.len());
    let deadline = Instant::now() + Duration::from_secs(number("UNIONFS_DIFF_MINIMISE", 120));
    let (case, played) = minimise(case, played, deadline);
    panic!(
        "seed {seed} of {} fails (UNIONFS_DIFF_SEED={seed} UNIONFS_DIFF_OPS={steps}); made small:\n{}",
        support::test_name(),
        report(&case, &played)
    );
}

/// Whether `io` with layers placed so can be compared with the kernel here.
fn possible(io: Io, placement: Placement) -> bool {
    if !require_root("the kernel's overlayfs is mounted for comparison") {
        return false;
    }
    match (Mode { io, placement }).obstacle() {
        None => true,
        Some(reason) => {
            support::record_skip(&support::test_name(), &reason);
            false
        }
    }
}

#[test]
fn random_operations_give_what_the_kernel_gives() {
    if possible(Io::Cached, Placement::OneFs) {
        run_seeds(30, Placement::OneFs, &[Subject::Kernel, Subject::Ours(Io::Cached)]);
    }
}

#[test]
fn random_operations_with_writeback_give_what_the_kernel_gives() {
    if possible(Io::Writeback, Placement::OneFs) {
        run_seeds(15, Placement::OneFs, &[Subject::Kernel, Subject::Ours(Io::Writeback)]);
    }
}

#[test]
fn random_operations_with_passthrough_give_what_the_kernel_gives() {
    if possible(Io::Passthrough, Placement::OneFs) {
        run_seeds(15, Placement::OneFs, &[Subject::Kernel, Subject::Ours(Io::Passthrough)]);
    }
}

#[test]
fn random_operations_on_two_file_systems_give_what_the_kernel_gives() {
    if possible(Io::Cached, Placement::TwoFs) {
        run_seeds(15, Placement::TwoFs, &[Subject::Kernel, Subject::Ours(Io::Cached)]);
    }
}

#[test]
fn the_comparison_finds_nothing_between_the_kernel_and_itself() {
    if require_root("the kernel's overlayfs is mounted for comparison") {
        let kernel = [Subject::Kernel, Subject::Kernel];
        run_seeds(4, Placement::OneFs, &kernel);
        run_seeds(4, Placement::TwoFs, &kernel);
    }
}

#[test]
fn the_comparison_tells_fuse_overlayfs_from_the_kernel() {
    if !require_root("the kernel's overlayfs is mounted for comparison") {
        return;
    }
    if std::process::Command::new("fuse-overlayfs").arg("--version").output().is_err() {
        skip!("fuse-overlayfs is not installed, and nothing else is known to differ");
    }
    let _watchdog = Watchdog::start();
    let (case, rng) = case(1, Placement::OneFs, [Subject::Kernel, Subject::FuseOverlayfs]);
    let played = play(&case, Source::Random(rng, 300));
    assert!(played.failure.is_some(), "fuse-overlayfs 1.x differs from the kernel in many ways");
}

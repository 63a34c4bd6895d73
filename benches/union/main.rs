//! How long the union takes for what it does, without a mount and so without the kernel's share; and how long a layer
//! takes to become a tree.
//!
//! `cargo bench` runs all of it in under three minutes, `cargo bench -- lookup/miss` what has this in its name, and
//! `cargo bench -- --save-baseline before`, then `--baseline before`, compares two states of the code.
//!
//! A name says what is done and on what: `lookup/miss/layers=8`. Layers are made by the benchmark, in memory where there
//! is a tmpfs at /dev/shm, and for copy-up also on a disk: in the temporary directory, or that of `UNIONFS_TEST_DIR`.
//! What the union reads is in the kernel's caches always: "cold" means that the union itself knows nothing yet. Each
//! benchmark checks that what it measures has happened.

mod attributes;
mod changes;
mod data;
mod extraction;
mod listing;
mod lookup;
mod stage;

use std::time::Duration;

use criterion::Criterion;

fn main() {
    // Short, for there are many; what differs by a few percent wants `--measurement-time 10`.
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .nresamples(10_000)
        .without_plots()
        .configure_from_args();
    stage::announce();
    lookup::benches(&mut criterion);
    listing::benches(&mut criterion);
    attributes::benches(&mut criterion);
    data::benches(&mut criterion);
    changes::benches(&mut criterion);
    extraction::benches(&mut criterion);
    criterion.final_summary();
}

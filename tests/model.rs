//! Random sequences of operations on [`unionfs_rs::union::Union`] and on a model of it.
//!
//! The model is a plain tree in memory: the layers are merged into it once, and from then on it has ordinary
//! POSIX semantics and knows nothing of layers (but for the two things that a program may notice: which
//! directories have lower parts, and which files were linked in a lower layer). A sequence is generated with its
//! layers, so that a failure shrinks to the fewest layers and operations that show it; what proptest prints can
//! be pasted into [`model::regressions`].
//!
//! Environment: `PROPTEST_CASES` (sequences for each test), `PROPTEST_RNG_SEED` (others than the usual ones),
//! `UNIONFS_TEST_DIR` (where the layers go; a tmpfs is mounted there).

mod support;

mod model {
    pub mod act;
    pub mod check;
    pub mod layers;
    pub mod op;
    pub mod run;
    pub mod stage;
    pub mod strategy;
    pub mod tree;

    pub mod regressions;
    pub mod sequences;
}

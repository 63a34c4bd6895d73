//! Layers and callers that mean harm: a union never resolves outside of its layers, never waits for what somebody has put in
//! the way of a file, and gives nobody rights that they do not have.
//!
//! What a mark means, and what garbage in one does, is in `traps/formats.rs`, `traps/xattrs.rs` and `traps/owners.rs`; what
//! images may hold is in `images/hostile.rs`.

mod support;

#[allow(dead_code, reason = "the traps use the rest")]
#[path = "traps/union.rs"]
mod union;

mod hostile {
    mod bounds;
    mod callers;
    mod confined;
    mod devices;
    mod index;
    mod metacopies;
    mod names;
    mod races;
    mod stage;
    mod unprivileged;
    mod xattrs;
}

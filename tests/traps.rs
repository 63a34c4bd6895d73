//! The traps that union filesystems fall into, a test for each fact.
//!
//! Every fact is stated in both I/O modes, with the layers on one and on two file systems, and about
//! the merged view, the upper and the lowers. What concerns setups that are refused is in
//! `bad_input/`. The whole suite runs once more as a plain user and as root of a user namespace:
//! `traps/unprivileged.rs`.

mod support;

mod traps {
    pub mod acl;
    pub mod union;

    pub mod access;
    pub mod attributes;
    pub mod copy_up;
    mod failures;
    pub mod formats;
    pub mod io;
    pub mod layers;
    pub mod links;
    pub mod names;
    mod owners;
    pub mod programs;
    pub mod removal;
    pub mod renames;
    mod reopened;
    mod shown;
    pub mod unprivileged;
    mod vanishing;
    mod writeback;
    pub mod xattrs;
}

//! Container images: how layers are applied, what hostile ones cannot do, and that a store is whole whatever happens.
//!
//! Archives are made here by another writer of tar (the crate `tar`, and GNU tar), so that a mistake of ours in writing does
//! not hide the same in reading. What podman, skopeo, umoci and a registry say is compared by `scripts/conformance images`.

mod support;

#[path = "images/analyze.rs"]
mod analyze;
#[path = "images/archive.rs"]
mod archive;
#[path = "images/containers.rs"]
mod containers;
#[path = "images/copies.rs"]
mod copies;
#[path = "images/fetch.rs"]
mod fetch;
#[path = "images/hostile.rs"]
mod hostile;
#[path = "images/output.rs"]
mod output;
#[path = "images/rules.rs"]
mod rules;
#[path = "images/store.rs"]
mod store;
#[path = "images/tree.rs"]
mod tree;
#[path = "images/upper.rs"]
mod upper;

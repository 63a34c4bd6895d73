//! What a runtime does with the library: mounts served by its own process.

mod support;

#[path = "embedding/attach.rs"]
mod attach;
#[path = "embedding/descriptors.rs"]
mod descriptors;
#[path = "embedding/errors.rs"]
mod errors;
#[path = "embedding/example.rs"]
mod example;
#[path = "embedding/listing.rs"]
mod listing;
#[path = "embedding/mounts.rs"]
mod mounts;

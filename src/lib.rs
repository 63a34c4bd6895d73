//! A union filesystem in user space: read-only layer directories under one writable upper layer, presented
//! as one tree with the semantics of the kernel's overlayfs.
//!
//! [`union::Union`] is the merged view, which works without a mount; `fuse::Mount` serves it through FUSE;
//! `cli` is the command.

#[cfg(feature = "cli")]
pub mod cli;
pub mod config;
pub mod error;
#[cfg(feature = "fuse")]
pub mod fuse;
pub mod layer;
pub mod sys;
pub mod union;

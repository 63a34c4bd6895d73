//! Container images: what the layers of a union come from, and what is made of what was written to one.
//!
//! A [`store::Store`] keeps images as an OCI layout and the trees of their layers beside it. Images come in by [`load`] and `registry`
//! and go out by [`save`]; [`changes`] says how two of them, or a container and its image, differ, and [`commit`] makes a layer of
//! that; [`layered`] tells what each layer has made of a tree. How a layer becomes a tree is in [`unpack`], what is in its tar in [`tar`].
//!
//! Everything that comes from outside is verified while it streams, and seen by others only when it was. Errors name the
//! image, the layer's digest and the member. Nothing here mounts: the trees are what a union is given as lower layers.

pub mod analyze;
pub mod apply;
pub mod changes;
pub mod commit;
pub mod digest;
pub mod export;
pub mod extract;
pub mod history;
pub mod host;
pub mod instruction;
pub mod layered;
pub mod load;
pub mod manifest;
pub mod media;
mod pipe;
pub mod query;
pub mod reference;
#[cfg(feature = "registry")]
pub mod registry;
mod remove;
pub mod resolve;
pub mod runtime;
mod same;
pub mod save;
pub mod source;
pub mod stack;
pub mod store;
pub mod tar;
pub mod unpack;

//! A union filesystem in user space: read-only layer directories under one writable upper layer, presented
//! as one tree with the semantics of the kernel's overlayfs.
//!
//! [`union::Union`] is the merged view, which works without a mount; `fuse::Mount` serves it through FUSE;
//! `cli` is the command. Whatever they are told is in [`config`], and what can go wrong in [`error`].
//!
//! # A union in the program
//!
//! Operations take and return values. An inode is known by the number that a lookup has given, until it is forgotten.
//!
//! ```
//! use unionfs_rs::union::{Caller, Name, New, NodeId, Union};
//! # let dir = tempfile::tempdir()?;
//! # let at = |name: &str| { let p = dir.path().join(name); std::fs::create_dir(&p).map(|()| p) };
//! # let (lower, upper) = (at("lower")?, at("upper")?);
//! # std::fs::create_dir(lower.join("etc"))?;
//! # std::fs::write(lower.join("etc/motd"), "hello")?;
//!
//! // A layer is a path, or a directory that is open already.
//! let union = Union::builder().lower(std::fs::File::open(&lower)?).upper(&upper).build()?;
//!
//! let motd = union.lookup_path("/etc/motd".as_ref())?;
//! union.write(motd.id, 0, b"HELLO", None)?; // copied up first
//! let made = union.create(NodeId::ROOT, Name::new("run".as_ref())?, New::Directory, 0o755, 0, Caller::current())?;
//! for id in [motd.id, made.id] {
//!     union.forget(id, 1);
//! }
//! assert_eq!(union.copy_ups().objects, 2); // `etc` and `etc/motd`
//! union.end()?;
//!
//! assert_eq!(std::fs::read_to_string(upper.join("etc/motd"))?, "HELLO");
//! assert_eq!(std::fs::read_to_string(lower.join("etc/motd"))?, "hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # A mount served by the program
//!
//! `Mount::new` mounts, as root or through fusermount3; `Mount::attach` takes over a descriptor of /dev/fuse that the
//! program has mounted itself. `spawn` serves it on threads of the process, and `run` on this one. A process can have
//! several: none knows of the others, but each should be given its share of descriptors. When `unmount_and_join` returns,
//! everything is in upper, no thread and no descriptor is left, and the layers can be mounted again.
//!
//! ```no_run
//! # #[cfg(feature = "fuse")] {
//! use std::num::NonZeroUsize;
//! use unionfs_rs::config::MountConfig;
//! use unionfs_rs::error::ErrorKind;
//! use unionfs_rs::fuse::Mount;
//! use unionfs_rs::union::Union;
//!
//! let share = NonZeroUsize::new(3000).ok_or("zero")?;
//! let built = Union::builder().lower("app").lower("base").upper("upper").descriptors(share).build();
//! let union = match built {
//!     Err(error) if error.kind() == ErrorKind::InUse => return Err("another container has this upper".into()),
//!     built => built?,
//! };
//! let mount = Mount::new(union, &MountConfig::new("merged"))?.spawn()?;
//! std::process::Command::new("make").current_dir("merged").status()?;
//! let statistics = mount.statistics();
//! mount.unmount_and_join()?;
//! println!("{} objects copied up, {} requests", statistics.copy_ups.objects, statistics.requests.total());
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `examples/embed.rs` is a small runtime: it runs a command in a union, and prints what the command has changed.
//!
//! # Features
//!
//! `fuse` (mounting), `image` (container images), `registry` (images from and to registries), `cli` (the command, which
//! needs the first two) and `explore` (its interface in the terminal) are on by default. Without them the crate is the union alone.

#[cfg(feature = "cli")]
pub mod cli;
pub mod config;
pub mod error;
pub mod fsck;
#[cfg(feature = "fuse")]
pub mod fuse;
#[cfg(feature = "image")]
pub mod image;
pub mod layer;
pub mod sys;
pub mod union;

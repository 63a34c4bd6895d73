//! The tar of a layer: what members it has, read from bytes that nobody vouches for, and written so that the same tree gives
//! the same bytes.
//!
//! Formats: ustar, the GNU extensions (long names, numbers in base 256, sparse files) and pax records, as tar(5) and
//! pax(1) of POSIX.1-2001 describe them. Every number and length is bounded before memory is taken for it.

mod header;
mod pax;
pub mod read;
mod sparse;
pub mod write;

use std::ffi::OsString;

use crate::layer::attr::{FileKind, Timestamp};

/// The size of a header, and what everything is padded to, in bytes.
pub const BLOCK: usize = 512;

/// The longest path and the longest target of a link that a member may have, in bytes (PATH_MAX without the final zero).
pub const PATH_MAX: usize = 4095;

/// What a member makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberKind {
    /// A file of its own.
    File(FileKind),
    /// One more name for the file whose path is [`Member::link`].
    HardLink,
}

/// One member: what its headers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The path as it is written, not empty, without zeros; anything else may be wrong with it.
    pub path: Vec<u8>,
    /// What it makes.
    pub kind: MemberKind,
    /// Permission bits with set-user-id, set-group-id and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When the contents were changed.
    pub mtime: Timestamp,
    /// How long a regular file is, holes included, in bytes; 0 for anything else.
    pub size: u64,
    /// The target of a symbolic link, or the path that a hard link leads to, as it is written.
    pub link: Vec<u8>,
    /// The device that a device node stands for (major, minor).
    pub rdev: (u32, u32),
    /// Extended attributes in the order in which they are written.
    pub xattrs: Vec<(OsString, Vec<u8>)>,
    /// Where the data of a sparse file is: offset and length in bytes, ascending and apart; all else is zeros.
    pub extents: Option<Vec<(u64, u64)>>,
}

impl Member {
    /// Returns it as one more name for the file whose path is `target`, which has the contents and the xattrs.
    pub fn linked_to(self, target: Vec<u8>) -> Self {
        Self { kind: MemberKind::HardLink, link: target, size: 0, xattrs: Vec::new(), extents: None, ..self }
    }
}

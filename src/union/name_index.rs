//! Which lower layers have a name, for directories that span so many that asking each would be slow.
//!
//! Lower directories never change, so the index holds for the life of the inode: a name that is found costs
//! one system call, one that is not costs none, however many layers there are.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::io::Errno;
use smallvec::SmallVec;

use crate::error::Result;
use crate::layer::dir::{LayerDir, Lowers};
use crate::layer::name::WH_PREFIX;
use crate::sys::dents;

/// From how many lower parts on a directory gets an index when a name is looked up in it.
pub const PARTS_MIN: usize = 4;

/// The parts, counted from the topmost, that have each name.
#[derive(Debug)]
pub struct NameIndex {
    parts: HashMap<Box<[u8]>, SmallVec<[u16; 4]>>,
}

impl NameIndex {
    /// Reads the names of all parts, one pass each.
    pub fn new(lowers: &Lowers, parts: &[Arc<LayerDir>]) -> Result<Self> {
        let mut index: HashMap<Box<[u8]>, SmallVec<[u16; 4]>> = HashMap::new();
        for (part, number) in parts.iter().zip(0u16..) {
            let mut dotwh = false;
            lowers.with_fd(part, |fd| {
                let layer = lowers.layer(part);
                let failed = |e: Errno| layer.error("getdents", OsStr::new("."), e);
                let open = layer.open_listing(fd).map_err(failed)?;
                dents::each(open.as_fd(), |name, _, _| {
                    dotwh |= name.starts_with(WH_PREFIX.as_bytes());
                    match index.get_mut(name) {
                        Some(parts) => parts.push(number),
                        None => drop(index.insert(name.into(), SmallVec::from_slice(&[number]))),
                    }
                })
                .map_err(failed)
            })?;
            // So that nobody looks for `.wh.` marks where there are none.
            part.dotwh.listed(dotwh);
        }
        Ok(Self { parts: index })
    }

    /// Returns the first part at or after `from` that has `name`.
    pub fn next(&self, name: &OsStr, from: usize) -> Option<usize> {
        let parts = self.parts.get(name.as_bytes())?;
        parts.iter().map(|&part| usize::from(part)).find(|&part| part >= from)
    }
}

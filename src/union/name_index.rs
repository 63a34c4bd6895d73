//! Which lower parts of a directory have a name, so that a name that is found costs one system call, and one that is
//! not costs none, however many layers there are.
//!
//! Lower directories never change, so an index holds for the life of the inode. It is made when the directory is listed,
//! and where there are several parts, when names were looked up so often that asking each part has cost about as much.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::listing::hash;
use crate::layer::dir::Below;

/// The parts, counted from the topmost lower one, that have each name.
///
/// Of a name half its hash is kept, in four bytes: one that is not here is in no part, and one that is, is looked for.
#[derive(Debug)]
pub struct NameIndex {
    /// In order.
    hashes: Box<[u32]>,
    /// The part of each; none at all where all are of the first.
    parts: Box<[u16]>,
}

fn short(hash: u64) -> u32 {
    (hash >> 32) as u32
}

impl FromIterator<(u64, u16)> for NameIndex {
    /// Takes hashes of names in order, each with a part that has it.
    fn from_iter<I: IntoIterator<Item = (u64, u16)>>(names: I) -> Self {
        let mut names: Vec<_> = names.into_iter().map(|(hash, part)| (short(hash), part)).collect();
        // They are in order but for names that share half a hash.
        names.sort();
        let hashes = names.iter().map(|name| name.0).collect();
        let one = names.iter().all(|name| name.1 == 0);
        let parts = if one { Box::default() } else { names.iter().map(|name| name.1).collect() };
        Self { hashes, parts }
    }
}

impl NameIndex {
    /// From so many lookups on an index is worth its making: a part is opened and listed in the time of about so many
    /// stats, and one of them is made in each part for each lookup.
    pub const WORTH: u32 = 8;

    /// Returns the first part at or after `from` that has `name`, or a name that cannot be told from it here, and whether
    /// another one below it has.
    pub fn next(&self, name: &OsStr, from: usize) -> Option<(usize, Below)> {
        let sought = short(hash(name.as_bytes()));
        let first = self.hashes.partition_point(|&hash| hash < sought);
        let same = self.hashes.get(first..)?.iter().take_while(|&&hash| hash == sought).count();
        let parts = (first..first + same).map(|at| self.parts.get(at).map_or(0, |&part| usize::from(part)));
        let mut parts = parts.filter(|&part| part >= from);
        let next = parts.next()?;
        Some((next, if parts.any(|part| part > next) { Below::Something } else { Below::Nothing }))
    }
}

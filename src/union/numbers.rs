//! Inode numbers: unique in the union, and the layers' own where that is possible.
//!
//! With one file system they are its own numbers. With several, the file system's index takes the high
//! bits (what the kernel calls xino). A number that has no room for it, or is taken by another file,
//! becomes a hash under the one pattern of high bits that no index has.

use std::collections::hash_map::DefaultHasher;
use std::ffi::OsStr;
use std::hash::{Hash, Hasher};

use crate::config::Xino;
use crate::layer::origin::Origin;

/// How the numbers of the layers' file systems become the union's.
#[derive(Debug)]
pub struct Numbers {
    /// Each file system once; the first keeps its numbers as they are.
    filesystems: Vec<Filesystem>,
    bits: u32,
    always_hash: bool,
    /// How many bits a number has.
    width: u32,
}

/// A file system that layers are on.
#[derive(Debug)]
struct Filesystem {
    dev: (u32, u32),
    uuid: [u8; 16],
    /// Whether a lower layer is on it, so that an origin may be.
    lower: bool,
}

impl Numbers {
    /// Collects the file systems of the layers, by device and uuid; upper's is the first where there is an upper.
    pub fn new(
        upper: Option<((u32, u32), [u8; 16])>,
        lowers: impl Iterator<Item = ((u32, u32), [u8; 16])>,
        xino: Xino,
        ino32: bool,
    ) -> Self {
        let mut filesystems: Vec<Filesystem> =
            upper.into_iter().map(|(dev, uuid)| Filesystem { dev, uuid, lower: false }).collect();
        for (dev, uuid) in lowers {
            match filesystems.iter_mut().find(|known| known.dev == dev) {
                Some(known) => known.lower = true,
                None => filesystems.push(Filesystem { dev, uuid, lower: true }),
            }
        }
        let bits = match filesystems.len() {
            0 | 1 => 0,
            // One pattern more than there are file systems: all ones marks a hash.
            n => usize::BITS - n.leading_zeros(),
        };
        // In 32 bits there is no room for an index.
        let width = if ino32 { u32::BITS } else { u64::BITS };
        Self { filesystems, bits, always_hash: ino32 || xino == Xino::Off, width }
    }

    /// Returns the union's number of inode `ino` on `dev`.
    pub fn number(&self, dev: (u32, u32), ino: u64) -> u64 {
        let index = self.filesystems.iter().position(|known| known.dev == dev);
        match index {
            Some(0) if self.fits(ino) => ino,
            Some(index) if index > 0 && !self.always_hash && self.fits(ino) => {
                (index as u64) << (u64::BITS - self.bits) | ino
            }
            _ => self.hashed(&(dev, ino)),
        }
    }

    fn fits(&self, ino: u64) -> bool {
        // 0 is no inode and 1 is the root's node.
        ino > 1 && ino.leading_zeros() >= self.bits + (u64::BITS - self.width)
    }

    /// Returns the number of a hard link of a lower file that will not stay linked: one for each name.
    pub fn of_name(&self, dev: (u32, u32), ino: u64, parent: u64, name: &OsStr) -> u64 {
        self.hashed(&(dev, ino, parent, name))
    }

    /// Returns another number for a file whose own is taken; `attempt` tells the tries apart.
    pub fn spare(&self, dev: (u32, u32), ino: u64, attempt: u32) -> u64 {
        self.hashed(&(dev, ino, attempt, "spare"))
    }

    fn hashed(&self, what: &impl Hash) -> u64 {
        // DefaultHasher::new() has fixed keys: the number is the same after a remount.
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        let (bits, all) = (self.bits.max(1), u64::MAX >> (u64::BITS - self.width));
        (hasher.finish() | !(all >> bits)) & all
    }

    /// Returns the device of the lower file system that an origin with `uuid` is on, where only one can be meant.
    ///
    /// Zeros mean a file system without a uuid, as in the kernel's overlayfs. Else they were written by a mount that did
    /// not know the uuid (ours before Linux 6.9, the kernel's with `uuid=off`), and mean the only one that there is.
    pub fn device(&self, uuid: &[u8; 16]) -> Option<(u32, u32)> {
        let lowers = || self.filesystems.iter().filter(|known| known.lower);
        match only(lowers().filter(|known| known.uuid == *uuid)) {
            None if *uuid == Origin::NO_UUID => only(lowers()),
            found => found,
        }
        .map(|known| known.dev)
    }
}

/// Returns the one item that there is.
fn only<T>(mut items: impl Iterator<Item = T>) -> Option<T> {
    items.next().filter(|_| items.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: (u32, u32) = (8, 1);
    const B: (u32, u32) = (8, 2);

    #[test]
    fn one_file_system_keeps_its_numbers() {
        let numbers = Numbers::new(Some((A, [1; 16])), [(A, [1; 16])].into_iter(), Xino::Auto, false);
        assert_eq!(numbers.number(A, 42), 42);
        assert_eq!(numbers.number(A, u64::MAX >> 1), u64::MAX >> 1);
        assert_ne!(numbers.number(A, 1), 1, "1 is the root's node");
        assert_ne!(numbers.number(B, 42), 42, "an unknown device cannot clash");
    }

    #[test]
    fn several_file_systems_are_kept_apart() {
        let numbers = Numbers::new(Some((A, [1; 16])), [(B, [2; 16])].into_iter(), Xino::Auto, false);
        assert_eq!(numbers.number(A, 42), 42);
        assert_eq!(numbers.number(B, 42), 1 << 62 | 42);
        let large = numbers.number(B, u64::MAX >> 1);
        assert_eq!(large >> 62, 3, "a number without room is a hash under all ones");
    }

    #[test]
    fn numbers_of_32_bits_keep_what_fits() {
        let numbers = Numbers::new(Some((A, [1; 16])), [(B, [2; 16])].into_iter(), Xino::Auto, true);
        assert_eq!(numbers.number(A, 42), 42);
        for (dev, ino) in [(A, 1 << 40), (A, u64::from(u32::MAX)), (B, 42), (B, 1 << 40)] {
            let number = numbers.number(dev, ino);
            assert_eq!(number >> 30, 3, "{number:#x} is a hash of 32 bits under all ones");
        }
        assert_eq!(numbers.spare(A, 7, 1) >> 30, 3);
    }

    #[test]
    fn an_origin_is_on_the_lower_file_system_that_its_uuid_leaves() {
        const C: (u32, u32) = (8, 3);
        let device = |lowers: &[((u32, u32), u8)], uuid: u8| {
            let lowers = lowers.iter().map(|(dev, uuid)| (*dev, [*uuid; 16]));
            Numbers::new(Some((A, [1; 16])), lowers, Xino::Auto, false).device(&[uuid; 16])
        };
        assert_eq!(device(&[(B, 2)], 2), Some(B));
        assert_eq!(device(&[(B, 2)], 9), None);
        assert_eq!(device(&[(B, 2)], 1), None, "nothing is copied up from upper");
        assert_eq!(device(&[(A, 1), (B, 2)], 1), Some(A));
        assert_eq!(device(&[(B, 2), (C, 2)], 2), None, "two have it");
        assert_eq!(device(&[(B, 2)], 0), Some(B), "zeros mean the only one");
        assert_eq!(device(&[(B, 1)], 0), Some(B), "also where upper's is a copy of it");
        assert_eq!(device(&[(B, 2), (C, 3)], 0), None, "zeros could mean two");
        assert_eq!(device(&[(B, 2), (C, 0)], 0), Some(C), "zeros mean the one that has none");
        assert_eq!(device(&[(B, 0), (C, 0)], 0), None);
    }
}

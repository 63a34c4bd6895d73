//! Inode numbers: unique in the union, and the layers' own where that is possible.
//!
//! With one file system they are its own numbers. With several, the file system's index takes the high
//! bits (what the kernel calls xino). A number that has no room for it, or is taken by another file,
//! becomes a hash under the one pattern of high bits that no index has.

use std::collections::hash_map::DefaultHasher;
use std::ffi::OsStr;
use std::hash::{Hash, Hasher};

use crate::config::Xino;

/// How the numbers of the layers' file systems become the union's.
#[derive(Debug)]
pub struct Numbers {
    /// Device and uuid of each file system; the first keeps its numbers as they are.
    filesystems: Vec<((u32, u32), [u8; 16])>,
    bits: u32,
    always_hash: bool,
}

impl Numbers {
    /// Collects the file systems of the layers, upper's first.
    pub fn new(layers: impl Iterator<Item = ((u32, u32), [u8; 16])>, xino: Xino) -> Self {
        let mut filesystems: Vec<((u32, u32), [u8; 16])> = Vec::new();
        for (dev, uuid) in layers {
            if filesystems.iter().all(|(known, _)| *known != dev) {
                filesystems.push((dev, uuid));
            }
        }
        let bits = match filesystems.len() {
            0 | 1 => 0,
            // One pattern more than there are file systems: all ones marks a hash.
            n => usize::BITS - n.leading_zeros(),
        };
        Self { filesystems, bits, always_hash: xino == Xino::Off }
    }

    /// Returns the union's number of inode `ino` on `dev`.
    pub fn number(&self, dev: (u32, u32), ino: u64) -> u64 {
        let index = self.filesystems.iter().position(|(known, _)| *known == dev);
        match index {
            Some(0) if self.fits(ino) => ino,
            Some(index) if index > 0 && !self.always_hash && self.fits(ino) => (index as u64) << (64 - self.bits) | ino,
            _ => self.hashed(&(dev, ino)),
        }
    }

    fn fits(&self, ino: u64) -> bool {
        // 0 is no inode and 1 is the root's node.
        ino > 1 && (self.bits == 0 || ino >> (64 - self.bits) == 0)
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
        let bits = self.bits.max(1);
        hasher.finish() | !(u64::MAX >> bits)
    }

    /// Returns the device of the file system with `uuid`; with zeros, that of the only one.
    pub fn device(&self, uuid: &[u8; 16]) -> Option<(u32, u32)> {
        let mut matching = self.filesystems.iter().filter(|(_, known)| known == uuid);
        match (matching.next(), matching.next()) {
            (Some((dev, _)), None) => Some(*dev),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: (u32, u32) = (8, 1);
    const B: (u32, u32) = (8, 2);

    #[test]
    fn one_file_system_keeps_its_numbers() {
        let numbers = Numbers::new([(A, [1; 16]), (A, [1; 16])].into_iter(), Xino::Auto);
        assert_eq!(numbers.number(A, 42), 42);
        assert_eq!(numbers.number(A, u64::MAX >> 1), u64::MAX >> 1);
        assert_ne!(numbers.number(A, 1), 1, "1 is the root's node");
        assert_ne!(numbers.number(B, 42), 42, "an unknown device cannot clash");
    }

    #[test]
    fn several_file_systems_are_kept_apart() {
        let numbers = Numbers::new([(A, [1; 16]), (B, [2; 16])].into_iter(), Xino::Auto);
        assert_eq!(numbers.number(A, 42), 42);
        assert_eq!(numbers.number(B, 42), 1 << 62 | 42);
        let large = numbers.number(B, u64::MAX >> 1);
        assert_eq!(large >> 62, 3, "a number without room is a hash under all ones");
        assert_eq!(numbers.device(&[2; 16]), Some(B));
        assert_eq!(numbers.device(&[9; 16]), None);
    }
}

//! What is known of a layer while it is unpacked and done when all of it is there.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use super::super::digest::invalid;
use super::super::tar::Member;
use crate::layer::acl;
use crate::layer::attr::Timestamp;

/// The most bytes of paths and targets that are remembered: a million directories and marks.
const BYTES_MAX: usize = 256 << 20;

/// What a directory is to be in the end: whatever is made in it changes its times, and would inherit from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Its times.
    pub mtime: Timestamp,
    /// The ACL that what is made in it gets.
    pub default_acl: Option<Vec<u8>>,
}

/// Notes, by paths from the root that have no links.
#[derive(Debug, Default)]
pub struct Notes {
    /// Directories.
    pub directories: BTreeMap<PathBuf, End>,
    /// Names that are removed from the layers below.
    pub whiteouts: BTreeSet<PathBuf>,
    /// Directories of which all is removed from the layers below.
    pub opaque: BTreeSet<PathBuf>,
    /// Hard links to files that lower layers have, with the path of the file.
    pub borrowed: BTreeMap<PathBuf, Vec<u8>>,
    bytes: usize,
}

impl Notes {
    /// Notes what a directory is to be.
    pub fn directory(&mut self, path: PathBuf, member: &Member) -> io::Result<()> {
        self.count(path.as_os_str().len())?;
        let default_acl = member.xattrs.iter().find(|(key, _)| key == acl::DEFAULT).map(|(_, value)| value.clone());
        self.directories.insert(path, End { mtime: member.mtime, default_acl });
        Ok(())
    }

    /// Notes that what lower layers have at `path` is removed.
    pub fn whiteout(&mut self, path: PathBuf) -> io::Result<()> {
        self.count(path.as_os_str().len())?;
        self.whiteouts.insert(path);
        Ok(())
    }

    /// Notes that all that lower layers have in the directory at `path` is removed.
    pub fn make_opaque(&mut self, path: &Path) -> io::Result<()> {
        self.count(path.as_os_str().len())?;
        self.opaque.insert(path.to_owned());
        Ok(())
    }

    /// Notes that the name at `path` is to be one of the file that lower layers have at `target`.
    pub fn borrow(&mut self, path: PathBuf, target: Vec<u8>) -> io::Result<()> {
        self.count(path.as_os_str().len() + target.len())?;
        self.borrowed.insert(path, target);
        Ok(())
    }

    /// Notes that something of this layer is at `path`.
    pub fn made(&mut self, path: &Path) {
        self.borrowed.remove(path);
    }

    /// Notes that the directory at `path` is gone with all that was in it. What it said of lower layers holds.
    pub fn removed(&mut self, path: &Path) {
        let below = |at: &&PathBuf| at.starts_with(path);
        let gone: Vec<PathBuf> =
            self.directories.range(path.to_owned()..).map(|(at, _)| at).take_while(below).cloned().collect();
        for at in gone {
            self.directories.remove(&at);
        }
        let gone: Vec<PathBuf> =
            self.borrowed.range(path.to_owned()..).map(|(at, _)| at).take_while(below).cloned().collect();
        for at in gone {
            self.borrowed.remove(&at);
        }
    }

    fn count(&mut self, bytes: usize) -> io::Result<()> {
        self.bytes += bytes;
        if self.bytes > BYTES_MAX { Err(invalid("is one directory or mark too many for a layer")) } else { Ok(()) }
    }
}

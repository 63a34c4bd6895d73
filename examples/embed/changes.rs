//! What an upper has changed, found in time that grows with what is in upper and not with what is below.
//!
//! Two unions are compared that are never mounted: the lowers alone, which is how things were, and upper as a read-only
//! layer on top of them, which is how they are. So every form of whiteout, opaque directory and redirect is read by the
//! library, and the comparison sees names and attributes alone.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use unionfs_rs::config::Source;
use unionfs_rs::error::Result;
use unionfs_rs::union::{Attr, Entry, FileKind, Flow, Name, NodeId, Union};

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// It is new.
    Added,
    /// It is not what it was, or something in it is not.
    Changed,
    /// It is gone, with everything below it.
    Deleted,
}

impl Change {
    /// Returns the letter that `podman diff` has for it.
    pub fn letter(self) -> char {
        match self {
            Self::Added => 'A',
            Self::Changed => 'C',
            Self::Deleted => 'D',
        }
    }
}

/// Returns what `upper` changes in `lowers`, by path; the root itself is left out.
pub fn find(lowers: &[Source], upper: &Source) -> Result<Vec<(PathBuf, Change)>> {
    let before = Union::builder().lowers(lowers.iter().cloned()).build()?;
    let after = Union::builder().lower(upper.clone()).lowers(lowers.iter().cloned()).build()?;
    let mut comparison = Comparison { before, after, found: Vec::new() };
    comparison.directories(Path::new("/"), NodeId::ROOT, NodeId::ROOT)?;
    comparison.found.sort();
    Ok(comparison.found)
}

struct Comparison {
    before: Union,
    after: Union,
    found: Vec<(PathBuf, Change)>,
}

impl Comparison {
    /// Compares a directory that was there with what it is now.
    fn directories(&mut self, path: &Path, before: NodeId, after: NodeId) -> Result<()> {
        for name in self.names_that_may_differ(before, after)? {
            let (old, new) = (look(&self.before, before, &name)?, look(&self.after, after, &name)?);
            let path = path.join(&name);
            match (&old, &new) {
                (None, None) => {}
                (Some(_), None) => self.found.push((path, Change::Deleted)),
                (None, Some(new)) => self.added(path, new)?,
                (Some(old), Some(new)) => self.both(path, old, new)?,
            }
            for (union, entry) in [(&self.before, old), (&self.after, new)] {
                if let Some(entry) = entry {
                    union.forget(entry.id, 1);
                }
            }
        }
        Ok(())
    }

    /// Returns the names in upper's part, where below it is what was there before; else all names of then and now.
    fn names_that_may_differ(&self, before: NodeId, after: NodeId) -> Result<BTreeSet<OsString>> {
        let (old, new) = (self.before.lower_parts(before)?, self.after.lower_parts(after)?);
        if old == new {
            return Ok(BTreeSet::new());
        }
        if new.split_first().is_some_and(|(_upper, below)| below == old) {
            return Ok(self.after.names_of_topmost_part(after)?.into_iter().collect());
        }
        let mut all = names(&self.before, before)?;
        all.append(&mut names(&self.after, after)?);
        Ok(all)
    }

    /// Notes what is new, with everything in it.
    fn added(&mut self, path: PathBuf, new: &Entry) -> Result<()> {
        if new.attr.kind == FileKind::Directory {
            self.all_added(&path, new.id)?;
        }
        self.found.push((path, Change::Added));
        Ok(())
    }

    fn all_added(&mut self, path: &Path, directory: NodeId) -> Result<()> {
        for name in names(&self.after, directory)? {
            if let Some(entry) = look(&self.after, directory, &name)? {
                self.added(path.join(&name), &entry)?;
                self.after.forget(entry.id, 1);
            }
        }
        Ok(())
    }

    /// Compares what was under a name with what is there now.
    fn both(&mut self, path: PathBuf, old: &Entry, new: &Entry) -> Result<()> {
        let is_directory = |entry: &Entry| entry.attr.kind == FileKind::Directory;
        let before = self.found.len();
        match (is_directory(old), is_directory(new)) {
            (true, true) => self.directories(&path, old.id, new.id)?,
            (false, true) => self.all_added(&path, new.id)?,
            (_, false) => {}
        }
        // A directory may be in upper only for what is in it, and a file only because it was changed.
        if self.found.len() > before || !is_directory(new) || differ(&old.attr, &new.attr) {
            self.found.push((path, Change::Changed));
        }
        Ok(())
    }
}

/// Whether a directory itself was changed.
fn differ(old: &Attr, new: &Attr) -> bool {
    (old.kind, old.mode, old.uid, old.gid, old.mtime) != (new.kind, new.mode, new.uid, new.gid, new.mtime)
}

fn look(union: &Union, parent: NodeId, name: &OsStr) -> Result<Option<Entry>> {
    match union.lookup(parent, Name::new(name)?) {
        Ok(entry) => Ok(Some(entry)),
        Err(error) if error.errno() == Errno::NOENT => Ok(None),
        Err(error) => Err(error),
    }
}

/// Lists a directory of `union`.
fn names(union: &Union, directory: NodeId) -> Result<BTreeSet<OsString>> {
    let mut names = BTreeSet::new();
    union.read_dir(directory, 0, |entry| {
        if entry.name != "." && entry.name != ".." {
            names.insert(entry.name.to_owned());
        }
        Flow::More
    })?;
    Ok(names)
}

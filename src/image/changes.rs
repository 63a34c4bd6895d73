//! What differs between two trees: in time proportional to what differs, as far as the layers tell.
//!
//! Two directories that are made of the same parts are the same. Where the lower parts are the same, only names of the
//! others can differ. So a container is compared with its image by what is in its upper, and two images by what is not in
//! the layers that they share.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::same::same_contents;
use super::stack::{Merged, Object, Stack};
use super::tar::PATH_MAX;
use crate::error::{Error, Result};
use crate::layer::attr::{Attr, FileKind};

/// How much of one that is longer is shown.
const SHOWN: usize = 80;

/// How something differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// It is not there any more.
    Deleted,
    /// It is new.
    Added,
    /// It is another; or, of a directory, something in it is.
    Changed,
}

impl ChangeKind {
    /// Returns the letter that `docker diff` prints.
    pub fn letter(self) -> char {
        match self {
            Self::Deleted => 'D',
            Self::Added => 'A',
            Self::Changed => 'C',
        }
    }
}

/// Something that differs.
#[derive(Debug, Clone)]
pub struct Change {
    /// How.
    pub kind: ChangeKind,
    /// Where, from the root, beginning with a slash.
    pub path: PathBuf,
    /// What is there now.
    pub now: Option<Object>,
    /// What was there.
    pub was: Option<Object>,
    /// Whether it differs itself; not so a directory in which alone something does.
    pub itself: bool,
}

/// When two files that the layers have apart are taken for different.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// Always: that a file is in upper means that somebody has changed it, or what is known of it.
    Presence,
    /// When attributes or contents differ.
    Contents,
}

/// Compares the tree `now` with the tree `was`: parents come before what is in them, names in the order of bytes, and in
/// each directory what is deleted first.
pub fn changes(now: &Stack, was: &Stack, compare: Compare) -> Result<Vec<Change>> {
    let mut walk = Walk { now, was, compare, changes: Vec::new() };
    walk.roots(0, 0)?;
    Ok(walk.changes)
}

/// Tells what one layer of `stack` changes of what is below it, in the order of [`changes`]: `at` counts from the topmost. The
/// lowest adds all that it has, the root first.
pub fn changes_of_layer(stack: &Stack, at: usize) -> Result<Vec<Change>> {
    let mut walk = Walk { now: stack, was: stack, compare: Compare::Presence, changes: Vec::new() };
    if at + 1 < stack.depth() {
        walk.roots(at, at + 1)?;
    } else {
        walk.add("/".into(), stack.root_from(at)?)?;
    }
    Ok(walk.changes)
}

struct Walk<'a> {
    now: &'a Stack,
    was: &'a Stack,
    compare: Compare,
    changes: Vec<Change>,
}

impl Walk<'_> {
    /// Compares the roots that the layers show from those at `first` and `second` on down, and what is in them.
    fn roots(&mut self, first: usize, second: usize) -> Result<()> {
        let (new, old) = (self.now.root_from(first)?, self.was.root_from(second)?);
        let (Object::Dir(now, _), Object::Dir(was, _)) = (&new, &old) else { return Ok(()) };
        let said = |stack: &Stack, at| stack.root_member(at).map(|root| (root.mode, root.uid, root.gid, root.xattrs));
        let (now, was) = (now.clone(), was.clone());
        let itself = said(self.now, first)? != said(self.was, second)?;
        if itself {
            self.push(ChangeKind::Changed, "/".into(), Some(new), Some(old), itself);
        }
        self.directory(Path::new("/"), &now, &was)
    }

    /// Compares what is in two directories of one path.
    fn directory(&mut self, path: &Path, now: &Merged, was: &Merged) -> Result<()> {
        refuse_long(path)?;
        let (mut added, mut deleted) = (Vec::new(), Vec::new());
        for name in self.names(now, was)? {
            let (new, old) = (self.now.lookup(now, &name)?, self.was.lookup(was, &name)?);
            match (new, old) {
                (None, None) => {}
                (None, Some(old)) => deleted.push((name, old)),
                (new, old) => added.push((name, new, old)),
            }
        }
        for (name, old) in deleted {
            let path = path.join(name);
            self.push(ChangeKind::Deleted, path, None, Some(old), true);
        }
        for (name, new, old) in added {
            let path = path.join(name);
            match (new, old) {
                (Some(new), Some(old)) => self.both(path, new, old)?,
                (Some(new), None) => self.add(path, new)?,
                (None, _) => {}
            }
        }
        Ok(())
    }

    /// Returns the names in two directories that may be of different things.
    fn names(&self, now: &Merged, was: &Merged) -> Result<BTreeSet<OsString>> {
        let (new, old) = (now.identities(), was.identities());
        let common = new.iter().rev().zip(old.iter().rev()).take_while(|(new, old)| new == old).count();
        let own = |merged: &'_ Merged, stack: &Stack| {
            let parts = merged.parts();
            stack.names(parts.get(..parts.len() - common).unwrap_or_default())
        };
        let mut names = own(now, self.now)?;
        names.extend(own(was, self.was)?);
        Ok(names)
    }

    /// Compares two things of one path.
    fn both(&mut self, path: PathBuf, new: Object, old: Object) -> Result<()> {
        match (&new, &old) {
            (Object::Dir(now, attr), Object::Dir(was, old_attr)) => {
                if now.identities() == was.identities() {
                    return Ok(());
                }
                let (now, was) = (now.clone(), was.clone());
                let itself = self.differ_in_attributes((&new, attr), (&old, old_attr))?;
                let here = self.changes.len();
                self.push(ChangeKind::Changed, path.clone(), Some(new.clone()), Some(old.clone()), itself);
                self.directory(&path, &now, &was)?;
                // Neither it nor anything in it.
                if !itself && self.changes.len() == here + 1 {
                    self.changes.truncate(here);
                }
                Ok(())
            }
            (Object::File(..), Object::File(..)) => {
                if self.differ(&new, &old)? {
                    self.push(ChangeKind::Changed, path, Some(new), Some(old), true);
                }
                Ok(())
            }
            // A file in place of a directory is a change of that path; a directory in place of a file has new contents.
            (Object::Dir(..), Object::File(..)) => {
                self.push(ChangeKind::Changed, path.clone(), Some(new.clone()), Some(old), true);
                self.contents(&path, &new)
            }
            (Object::File(..), Object::Dir(..)) => {
                self.push(ChangeKind::Changed, path, Some(new), Some(old), true);
                Ok(())
            }
        }
    }

    /// Tells of something new, with all that is in it.
    fn add(&mut self, path: PathBuf, new: Object) -> Result<()> {
        self.push(ChangeKind::Added, path.clone(), Some(new.clone()), None, true);
        self.contents(&path, &new)
    }

    fn contents(&mut self, path: &Path, new: &Object) -> Result<()> {
        if let Object::Dir(dir, _) = new {
            refuse_long(path)?;
            for (name, object) in self.now.list(dir)? {
                self.add(path.join(name), object)?;
            }
        }
        Ok(())
    }

    fn push(&mut self, kind: ChangeKind, path: PathBuf, now: Option<Object>, was: Option<Object>, itself: bool) {
        self.changes.push(Change { kind, path, now, was, itself });
    }

    /// Returns whether two files differ.
    fn differ(&self, new: &Object, old: &Object) -> Result<bool> {
        let (Object::File(dir, name, attr), Object::File(old_dir, old_name, old_attr)) = (new, old) else {
            return Ok(true);
        };
        if (attr.dev, attr.ino) == (old_attr.dev, old_attr.ino) {
            return Ok(false);
        }
        if self.compare == Compare::Presence || self.differ_in_attributes((new, attr), (old, old_attr))? {
            return Ok(true);
        }
        match attr.kind {
            FileKind::Regular => {
                let failed = |error: std::io::Error| Error::image_io(name.display(), &error);
                let (new, old) = (self.now.open_file(dir, name)?, self.was.open_file(old_dir, old_name)?);
                Ok(!same_contents(new, old).map_err(failed)?)
            }
            FileKind::Symlink => Ok(self.now.read_link(dir, name)? != self.was.read_link(old_dir, old_name)?),
            _ => Ok(false),
        }
    }

    /// Returns whether what is known of two things differs; of directories neither size nor times, which follow from what is
    /// in them.
    fn differ_in_attributes(&self, (new, attr): (&Object, &Attr), (old, old_attr): (&Object, &Attr)) -> Result<bool> {
        let shown = |attr: &Attr| (attr.kind, attr.mode, attr.uid, attr.gid, attr.rdev);
        if shown(attr) != shown(old_attr) {
            return Ok(true);
        }
        if !attr.is_dir() && (attr.size, attr.mtime) != (old_attr.size, old_attr.mtime) {
            return Ok(true);
        }
        Ok(self.now.xattrs_of(new)? != self.was.xattrs_of(old)?)
    }
}

/// Refuses a path that is longer than any leads, which no layer could say.
pub fn refuse_long(path: &Path) -> Result<()> {
    if path.as_os_str().len() <= PATH_MAX {
        return Ok(());
    }
    let shown: String = path.display().to_string().chars().take(SHOWN).collect();
    Err(Error::image(
        format!("{shown}..."),
        format!("is a path of more than {PATH_MAX} bytes, which no layer can have"),
    ))
}

/// Returns the name of the last part of a path that [`changes`] has given.
pub fn last_name(path: &Path) -> &OsStr {
    path.file_name().unwrap_or(OsStr::new("/"))
}

//! The walk through upper.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::duplicates::Claims;
use super::finding::{Finding, Problem, Side};
use super::merged::Merged;
use super::origins::Verdict;
use super::{Fsck, index};
use crate::error::{Error, Result};
use crate::layer::attr::{Attr, FileKind};
use crate::layer::dir::{Below, Found, LayerDir};
use crate::layer::name::WH_PREFIX;
use crate::layer::overlay::{Keeper, Mark, Marks, mark_of};
use crate::layer::redirect::Redirect;
use crate::sys::xattr;

/// The inodes of the index, and the names that they have there.
pub(super) type Indexed = HashMap<u64, OsString>;

/// A directory that is to be read.
struct Pending {
    dir: Arc<LayerDir>,
    merged: Merged,
    impure: bool,
}

/// The overlay xattrs of one file, with their values where those matter.
#[derive(Default)]
struct Noted {
    /// Every mark, whose it is, and the name of its xattr.
    marks: Vec<(Keeper, Mark, OsString)>,
}

/// The walk, and what must be remembered on the way.
pub(super) struct Walk<'a> {
    fsck: &'a Fsck,
    indexed: &'a Indexed,
    each: &'a mut dyn FnMut(Finding),
    /// Inodes with several names whose origin or index was found wrong: once is enough.
    told: HashSet<u64>,
    claims: Claims,
}

impl Fsck {
    /// Checks everything in upper; returns the directories that lead elsewhere.
    pub(super) fn check_tree(&self, indexed: &Indexed, each: &mut dyn FnMut(Finding)) -> Result<Claims> {
        let merged = self.layers.root();
        let Some(root) = merged.upper.clone() else { return Ok(Claims::default()) };
        let mut walk = Walk { fsck: self, indexed, each, told: HashSet::new(), claims: Claims::default() };
        let impure = walk.root(&root)?;
        let mut pending = vec![Pending { dir: root, merged, impure }];
        while let Some(next) = pending.pop() {
            walk.directory(&next, &mut pending);
        }
        Ok(walk.claims)
    }
}

impl Walk<'_> {
    fn tell(&mut self, path: PathBuf, ino: u64, problem: Problem) {
        (self.each)(Finding { side: Side::Upper, path, problem, ino });
    }

    /// Checks the xattrs of the root itself; returns whether it is marked as impure.
    fn root(&mut self, root: &Arc<LayerDir>) -> Result<bool> {
        let (own, namespace) = (OsStr::new(""), self.fsck.layers.namespace);
        let layer = self.fsck.upper()?;
        let failed = |e: Errno| layer.error("listxattr", OsStr::new("."), e);
        let marks = namespace.marks(layer.root(), own).map_err(failed)?;
        let noted = noted(layer.root(), own).map_err(failed)?;
        self.opaque_values(root, own, root.ino, &noted);
        if let Some(value) = namespace.get(layer.root(), own, Mark::Origin).map_err(failed)? {
            let topmost = self.fsck.layers.lowers.layers().first();
            let topmost = topmost.and_then(|layer| crate::layer::directory::Identity::of(layer.root()).ok());
            let problem = match self.fsck.origins.judge(&value, None) {
                Verdict::Invalid => Some(Problem::OriginInvalid),
                Verdict::Gone => Some(Problem::OriginOfRoot),
                Verdict::There(there) => (there.identity != topmost).then_some(Problem::OriginOfRoot),
                Verdict::Unknown => None,
            };
            if let Some(problem) = problem {
                self.tell(PathBuf::new(), root.ino, problem);
            }
        }
        Ok(marks.impure)
    }

    /// Checks what is in one directory, and adds its directories to `pending`.
    fn directory(&mut self, at: &Pending, pending: &mut Vec<Pending>) {
        let mut copied_up = false;
        // The closure borrows all of the walk, so that the listing must not.
        let layers = &self.fsck.layers;
        let listed = layers.upper.each_entry(&at.dir, |name, kind, ino| {
            let name = OsStr::from_bytes(name);
            match self.entry(at, name, kind, pending) {
                Ok(has_origin) => copied_up |= has_origin,
                Err(error) => self.unreadable(at.dir.path_of(name), ino, &error),
            }
        });
        if let Err(error) = listed {
            self.unreadable(at.dir.components().iter().collect(), at.dir.ino, &error);
        }
        let pure = at.merged.lower.as_ref().is_some_and(Vec::is_empty);
        if copied_up && pure && !at.impure {
            self.tell(at.dir.components().iter().collect(), at.dir.ino, Problem::ImpureMissing);
        }
    }

    fn unreadable(&mut self, path: PathBuf, ino: u64, error: &Error) {
        let garbled = error.errno() == Errno::IO && self.fsck.upper().is_ok_and(|layer| layer.overrides.is_some());
        let problem = if garbled { Problem::OwnerInvalid } else { Problem::Unreadable { error: error.to_string() } };
        self.tell(path, ino, problem);
    }

    /// Checks one entry; returns whether it is a file that its directory must be marked as impure for.
    fn entry(&mut self, at: &Pending, name: &OsStr, kind: FileType, pending: &mut Vec<Pending>) -> Result<bool> {
        if let Some(rest) = name.as_bytes().strip_prefix(WH_PREFIX.as_bytes()) {
            // What begins with two of them is something else, and belongs to who has written it.
            if !rest.is_empty() && !rest.starts_with(WH_PREFIX.as_bytes()) && kind != FileType::Directory {
                self.mark_beside(at, name, OsStr::from_bytes(rest))?;
            }
            return Ok(false);
        }
        let layers = &self.fsck.layers;
        match layers.upper.examine(&at.dir, name, Below::Something)? {
            // It went meanwhile, which is for those to answer who change a layer that is locked.
            Found::Absent => Ok(false),
            Found::Whiteout => {
                if let Some(lower) = &at.merged.lower
                    && layers.shows(lower, name)?.is_none()
                {
                    let attr = layers.upper.stat(&at.dir, name)?;
                    self.tell(at.dir.path_of(name), attr.ino, Problem::WhiteoutOfNothing);
                }
                Ok(false)
            }
            Found::File(attr) => self.file(at, name, &attr),
            Found::Dir(attr, marks) => {
                let child = self.subdirectory(at, name, &attr, &marks)?;
                pending.extend(child);
                Ok(false)
            }
        }
    }

    /// Checks `mark`, which is `.wh.NAME`.
    fn mark_beside(&mut self, at: &Pending, mark: &OsStr, name: &OsStr) -> Result<()> {
        let layers = &self.fsck.layers;
        let Some(lower) = &at.merged.lower else { return Ok(()) };
        let shown = layers.shows(lower, name)?.is_some();
        let problem = match layers.upper.examine(&at.dir, name, Below::Something)? {
            // It keeps what leads elsewhere from being looked at, which would be EIO.
            Found::Dir(_, marks) if !marks.opaque && marks.redirect.is_none() && marks.foreign => return Ok(()),
            _ if !shown => Problem::WhiteoutOfNothing,
            Found::Absent => return Ok(()),
            // It keeps the directory from being merged.
            Found::Dir(_, marks) if !marks.opaque && marks.redirect.is_none() => return Ok(()),
            Found::Dir(..) | Found::File(_) | Found::Whiteout => Problem::WhiteoutBeside,
        };
        let attr = layers.upper.stat(&at.dir, mark)?;
        self.tell(at.dir.path_of(mark), attr.ino, problem);
        Ok(())
    }

    fn noted(&self, dir: &Arc<LayerDir>, name: &OsStr) -> Result<Noted> {
        let upper = &self.fsck.layers.upper;
        upper.with_fd(dir, |fd| noted(fd, name).map_err(|e| upper.layer(dir).error("listxattr", name, e)))
    }

    fn get(&self, dir: &Arc<LayerDir>, name: &OsStr, mark: Mark) -> Result<Option<Vec<u8>>> {
        let (upper, namespace) = (&self.fsck.layers.upper, self.fsck.layers.namespace);
        upper.with_fd(dir, |fd| namespace.get(fd, name, mark).map_err(|e| upper.layer(dir).error("getxattr", name, e)))
    }

    /// Reports values of the opaque mark that nobody knows.
    fn opaque_values(&mut self, dir: &Arc<LayerDir>, name: &OsStr, ino: u64, noted: &Noted) {
        let upper = &self.fsck.layers.upper;
        let path = if name.is_empty() { PathBuf::new() } else { dir.path_of(name) };
        for (_, _, key) in noted.marks.iter().filter(|(_, mark, _)| *mark == Mark::Opaque) {
            let read = upper.with_fd(dir, |fd| xattr::read(fd, name, key).map_err(Error::Refused));
            if let Ok(Some(value)) = read
                && !matches!(&value[..], b"y" | b"x")
            {
                self.tell(path.clone(), ino, Problem::OpaqueUnknown { xattr: key.clone(), value });
            }
        }
    }

    /// Reports redirects and metacopies that this mount does not follow; returns whether there are any.
    fn foreign(&mut self, path: PathBuf, ino: u64, noted: &Noted) -> bool {
        let own = Keeper::Overlay(self.fsck.layers.namespace);
        let leads = |mark: Mark| matches!(mark, Mark::Redirect | Mark::Metacopy);
        let foreign = noted.marks.iter().find(|(keeper, mark, _)| *keeper != own && leads(*mark));
        if let Some((_, _, key)) = foreign {
            self.tell(path, ino, Problem::MarkForeign { xattr: key.clone() });
        }
        foreign.is_some()
    }

    /// Checks a directory; returns it to be read.
    fn subdirectory(&mut self, at: &Pending, name: &OsStr, attr: &Attr, marks: &Marks) -> Result<Option<Pending>> {
        let path = at.dir.path_of(name);
        let noted = self.noted(&at.dir, name)?;
        self.opaque_values(&at.dir, name, attr.ino, &noted);
        let merged = self.fsck.layers.part(&at.merged, name, attr, marks)?;
        if merged.lower.is_none() {
            // Else it is opaque or hidden below, and nobody looks for its lower parts.
            self.foreign(path.clone(), attr.ino, &noted);
        }
        self.misplaced(&path, attr.ino, &noted, &[Mark::Metacopy, Mark::Whiteout]);
        if let Some(value) = &marks.redirect {
            let leads = merged.lower.as_ref().map(|lower| !lower.is_empty());
            let problem = match (Redirect::parse(value), leads) {
                _ if marks.opaque => Some(Problem::RedirectUnused),
                (Err(_), _) => Some(Problem::RedirectInvalid { value: value.clone() }),
                (Ok(_), Some(false)) => Some(Problem::RedirectToNothing { value: value.clone() }),
                (Ok(_), _) => None,
            };
            match problem {
                Some(problem) => self.tell(path, attr.ino, problem),
                None => self.claims.add(&merged, path, attr.ino),
            }
        }
        if marks.origin {
            self.origin(at, name, attr)?;
        }
        let Some(dir) = merged.upper.clone() else { return Ok(None) };
        Ok(Some(Pending { dir, merged, impure: marks.impure }))
    }

    /// Reports marks that say nothing where they are.
    fn misplaced(&mut self, path: &std::path::Path, ino: u64, noted: &Noted, wrong: &[Mark]) {
        let own = Keeper::Overlay(self.fsck.layers.namespace);
        for (keeper, mark, key) in &noted.marks {
            // Of other namespaces only what is read in every one.
            let read = *keeper == own || matches!(mark, Mark::Opaque | Mark::Whiteout);
            if read && wrong.contains(mark) {
                self.tell(path.to_owned(), ino, Problem::MarkMisplaced { xattr: key.clone() });
            }
        }
    }

    /// Checks anything but a directory; returns whether its directory must be marked as impure for it.
    fn file(&mut self, at: &Pending, name: &OsStr, attr: &Attr) -> Result<bool> {
        let noted = self.noted(&at.dir, name)?;
        if noted.marks.is_empty() {
            return Ok(false);
        }
        let path = at.dir.path_of(name);
        let own = Keeper::Overlay(self.fsck.layers.namespace);
        let has = |wanted: Mark| noted.marks.iter().any(|(keeper, mark, _)| *keeper == own && *mark == wanted);
        let regular = attr.kind == FileKind::Regular;
        let mut wrong = vec![Mark::Opaque, Mark::Impure];
        if !regular {
            wrong.extend([Mark::Metacopy, Mark::Redirect]);
        }
        let empty = regular && attr.size == 0;
        if !empty {
            wrong.push(Mark::Whiteout);
        }
        self.misplaced(&path, attr.ino, &noted, &wrong);
        if let Some((_, _, key)) = noted.marks.iter().find(|(_, mark, _)| empty && *mark == Mark::Whiteout) {
            self.tell(path.clone(), attr.ino, Problem::WhiteoutUnseen { xattr: key.clone() });
        }
        if regular && !self.foreign(path.clone(), attr.ino, &noted) && has(Mark::Metacopy) {
            self.metacopy(at, name, attr, path)?;
        }
        if !has(Mark::Origin) {
            return Ok(false);
        }
        let there = self.origin(at, name, attr)?;
        if there && has(Mark::Nlink) {
            self.not_indexed(at, name, attr)?;
        }
        Ok(there && attr.nlink < 2)
    }

    fn metacopy(&mut self, at: &Pending, name: &OsStr, attr: &Attr, path: PathBuf) -> Result<()> {
        let Some(lower) = &at.merged.lower else { return Ok(()) };
        let redirect = self.get(&at.dir, name, Mark::Redirect)?;
        if let Some(reason) = self.fsck.layers.data(lower, name, redirect)? {
            self.tell(path, attr.ino, Problem::MetacopyWithoutData { reason });
        }
        Ok(())
    }

    /// Checks an origin; returns whether it can be read, and is not known to be gone.
    fn origin(&mut self, at: &Pending, name: &OsStr, attr: &Attr) -> Result<bool> {
        let value = self.get(&at.dir, name, Mark::Origin)?.unwrap_or_default();
        // What it should be says the name in the index, which has been checked.
        if self.indexed.contains_key(&attr.ino) {
            return Ok(true);
        }
        let problem = match self.fsck.origins.judge(&value, Some(attr.kind)) {
            Verdict::There(_) => return Ok(true),
            Verdict::Unknown => return Ok(!value.is_empty()),
            Verdict::Invalid => Problem::OriginInvalid,
            Verdict::Gone => Problem::OriginGone,
        };
        if attr.nlink < 2 || attr.is_dir() || self.told.insert(attr.ino) {
            self.tell(at.dir.path_of(name), attr.ino, problem);
        }
        Ok(false)
    }

    /// Reports a file with a link count of its own that is not in the index.
    fn not_indexed(&mut self, at: &Pending, name: &OsStr, attr: &Attr) -> Result<()> {
        if self.indexed.contains_key(&attr.ino) {
            return Ok(());
        }
        let value = self.get(&at.dir, name, Mark::Origin)?.unwrap_or_default();
        let Some(entry) = index::entry_of(&value) else { return Ok(()) };
        if self.told.insert(attr.ino) {
            let possible = self.fsck.work.is_some() && !self.indexed.values().any(|known| *known == entry);
            self.tell(at.dir.path_of(name), attr.ino, Problem::NotIndexed { entry, possible });
        }
        Ok(())
    }
}

/// Reads which overlay xattrs there are on `name` in `dir`.
fn noted(dir: std::os::fd::BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<Noted> {
    let marks = xattr::list(dir, name)?.into_iter().filter_map(|key| {
        let (keeper, mark) = mark_of(&key)?;
        Some((keeper, mark, key))
    });
    Ok(Noted { marks: marks.collect() })
}

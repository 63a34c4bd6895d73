//! What the layers together say about a name: top down, ending at a whiteout, an opaque directory or a file.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;
use smallvec::SmallVec;

use super::inode::{Dir, Inode, NodeId};
use super::name_index::NameIndex;
use super::{Union, dir_of};
use crate::config::RedirectDir;
use crate::error::{Error, Location, Result};
use crate::layer::attr::{Attr, FileKind};
use crate::layer::dir::{Below, Found, LayerDir, examine, hides_by_name};
use crate::layer::name::Name;
use crate::layer::overlay::Marks;
use crate::layer::redirect::Redirect;
use crate::layer::whiteout::Standing;

/// The directories that a merged directory consists of.
pub type Stack = SmallVec<[Arc<LayerDir>; 2]>;

/// Where the topmost object of a name is.
#[derive(Debug, Clone)]
pub enum Top {
    /// In upper.
    Upper,
    /// In this directory of a lower layer.
    Lower(Arc<LayerDir>),
}

/// A name that exists.
#[derive(Debug)]
pub struct Hit {
    /// The attributes of the topmost object.
    pub attr: Attr,
    /// Where that object is.
    pub top: Top,
    /// The lower parts of a directory.
    pub lower: Stack,
    /// What the overlay xattrs of upper's directory say.
    pub marks: Marks,
}

impl Hit {
    /// Returns what removing the name takes away in upper.
    pub fn standing(&self) -> Standing {
        match self.top {
            Top::Lower(_) => Standing::Nothing,
            Top::Upper if self.attr.is_dir() => Standing::Directory,
            Top::Upper => Standing::File,
        }
    }
}

/// What stands in upper under a name.
#[derive(Debug)]
pub enum InUpper {
    /// Nothing, and the lower layers show.
    Nothing,
    /// A mark that the name is removed, under the name itself.
    Whiteout,
    /// Something other than a directory.
    File(Attr),
    /// A directory.
    Dir(Attr, Marks),
}

/// The way down through the parts of a directory, in search of a name that redirects may change.
struct Descent<'a> {
    union: &'a Union,
    parent: &'a Dir,
    index: Option<&'a NameIndex>,
    /// The part to look in next.
    next: usize,
    /// Parts that were passed, and the name sought there: their `.wh.` marks matter only once something is found below.
    passed: SmallVec<[(Arc<LayerDir>, OsString); 4]>,
}

impl<'a> Descent<'a> {
    fn new(union: &'a Union, parent: &'a Dir) -> Self {
        let index = parent.names(|| match union.index_names(parent) {
            Ok(index) => Some(index),
            Err(error) => {
                log::warn!("{error}");
                None
            }
        });
        Self { union, parent, index, next: 0, passed: SmallVec::new() }
    }

    /// Returns the next part that has `name`, and what it says; `None` when there is none, or when it is hidden.
    fn next(&mut self, name: &OsStr) -> Result<Option<(Arc<LayerDir>, Found)>> {
        loop {
            let mut below = if self.next + 1 < self.parent.lower.len() { Below::Something } else { Below::Nothing };
            if let Some(index) = self.index {
                let nowhere = (self.parent.lower.len(), Below::Nothing);
                let found = index.next(name, self.next);
                if self.next == 0 {
                    self.union.names.count(found.is_some());
                }
                let (part, more) = found.unwrap_or(nowhere);
                below = more;
                // What is passed over may hold a mark for the name, where it holds any marks at all.
                for dir in self.parent.lower.get(self.next..part).unwrap_or_default() {
                    self.pass(dir, name);
                }
                self.next = part;
            }
            let Some(dir) = self.parent.lower.get(self.next) else { return Ok(None) };
            self.next += 1;
            match self.union.lowers.examine(dir, name, below)? {
                Found::Absent => self.pass(dir, name),
                found => return Ok(if self.is_hidden()? { None } else { Some((dir.clone(), found)) }),
            }
        }
    }

    /// Records that `name` was sought in `dir`, or passed over there.
    fn pass(&mut self, dir: &Arc<LayerDir>, name: &OsStr) {
        if dir.dotwh.possible() {
            self.passed.push((dir.clone(), name.to_owned()));
        }
    }

    /// Returns whether one of the parts that were passed holds a `.wh.` mark for the name that was sought.
    fn is_hidden(&mut self) -> Result<bool> {
        for (dir, name) in self.passed.drain(..) {
            if self.union.lowers.hides_by_name(&dir, &name)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Union {
    /// Returns whether `name` in `parent` is a directory with lower parts, which may hold many whiteouts in upper.
    pub fn is_merged(&self, parent: NodeId, name: Name<'_>) -> bool {
        let found = self.directory(parent).and_then(|parent| {
            let _names = dir_of(&parent)?.lock.read();
            self.search(&parent, &name)
        });
        matches!(found, Ok(Some(hit)) if !hit.lower.is_empty())
    }

    /// Returns what the layers say about `name` in `parent`; `None` when it is not there.
    pub(super) fn search(&self, parent: &Arc<Inode>, name: &OsStr) -> Result<Option<Hit>> {
        let found = self.in_upper(parent, name)?;
        self.search_from(parent, name, found)
    }

    /// Returns what the layers say about `name` in `parent`, where upper says `found`.
    pub(super) fn search_from(&self, parent: &Arc<Inode>, name: &OsStr, found: InUpper) -> Result<Option<Hit>> {
        match found {
            InUpper::Whiteout => Ok(None),
            InUpper::File(attr) => {
                Ok(Some(Hit { attr, top: Top::Upper, lower: Stack::new(), marks: Marks::default() }))
            }
            InUpper::Dir(attr, marks) => {
                let location = || Location::new("upper", name);
                let mut lower = Stack::new();
                // A mark beside what leads elsewhere is about what was under the name before, or is left there by it: both
                // come before or after the move by a step, and the directory is whole in between.
                let elsewhere = marks.redirect.is_some();
                if !marks.opaque && (elsewhere || !self.hidden_in_upper(parent, name)?) {
                    let way = self.way_below(&marks, name, &location)?;
                    self.collect(dir_of(parent)?, way, &mut lower, None)?;
                }
                Ok(Some(Hit { attr, top: Top::Upper, lower, marks }))
            }
            InUpper::Nothing => {
                let hit = self.search_lower(parent, name)?;
                if hit.is_some() && self.hidden_in_upper(parent, name)? { Ok(None) } else { Ok(hit) }
            }
        }
    }

    /// Returns what stands in upper under `name` in `parent`; `.wh.` marks are not looked for.
    pub(super) fn in_upper(&self, parent: &Arc<Inode>, name: &OsStr) -> Result<InUpper> {
        let Some(upper) = self.upper.as_ref().filter(|_| parent.is_upper()) else { return Ok(InUpper::Nothing) };
        let fd = self.upper_dir(parent)?;
        let xwhiteouts = dir_of(parent)?.xwhiteouts.load(Ordering::Acquire);
        Ok(match examine(&upper.layer, self.namespace, fd.as_fd(), name, xwhiteouts, Below::Something)? {
            Found::Absent => InUpper::Nothing,
            Found::Whiteout => InUpper::Whiteout,
            Found::File(attr) => InUpper::File(attr),
            Found::Dir(attr, marks) => InUpper::Dir(attr, marks),
        })
    }

    /// Returns whether upper holds `.wh.NAME` in `parent`.
    pub(super) fn hidden_in_upper(&self, parent: &Arc<Inode>, name: &OsStr) -> Result<bool> {
        let Some(upper) = self.upper.as_ref().filter(|_| parent.is_upper()) else { return Ok(false) };
        let dir = dir_of(parent)?;
        if dir.lower.is_empty() || !dir.dotwh.possible() {
            return Ok(false);
        }
        let fd = self.upper_dir(parent)?;
        hides_by_name(&upper.layer, fd.as_fd(), name)
    }

    /// Returns what the lower layers say about `name` in `parent`; `None` when it does not show there.
    pub(super) fn search_lower(&self, parent: &Arc<Inode>, name: &OsStr) -> Result<Option<Hit>> {
        let mut lower = Stack::new();
        let mut top = None;
        self.collect(dir_of(parent)?, Redirect::Sibling(name.to_owned()), &mut lower, Some(&mut top))?;
        Ok(top.map(|(attr, dir)| Hit { attr, top: Top::Lower(dir), lower, marks: Marks::default() }))
    }

    /// Returns whether a lower layer shows `name` in `parent`.
    pub(super) fn shows_below(&self, parent: &Arc<Inode>, name: &OsStr) -> Result<bool> {
        if dir_of(parent)?.lower.is_empty() {
            return Ok(false);
        }
        Ok(self.search_lower(parent, name)?.is_some())
    }

    /// Returns whether a lower layer shows `name`, which was found as `hit`, so that removing it takes a whiteout.
    pub(super) fn covers(&self, parent: &Arc<Inode>, name: &OsStr, hit: &Hit) -> Result<bool> {
        // A directory that was renamed has lower parts that are not under this name.
        let merged = !hit.lower.is_empty() && hit.marks.redirect.is_none();
        if merged || matches!(hit.top, Top::Lower(_)) { Ok(true) } else { self.shows_below(parent, name) }
    }

    /// Collects the lower directories that `way` leads to, in the layers of `parent` and below.
    ///
    /// With `top`, the first object may be a file, and is recorded with the directory it is in (a directory: itself).
    fn collect(
        &self,
        parent: &Dir,
        mut way: Redirect,
        lower: &mut Stack,
        mut top: Option<&mut Option<(Attr, Arc<LayerDir>)>>,
    ) -> Result<()> {
        let mut descent = Descent::new(self, parent);
        while let Redirect::Sibling(name) = way {
            let Some((dir, found)) = descent.next(&name)? else { return Ok(()) };
            match found {
                Found::Absent | Found::Whiteout => return Ok(()),
                Found::File(attr) => {
                    if let Some(top) = top.filter(|_| lower.is_empty()) {
                        *top = Some((attr, dir));
                    }
                    return Ok(());
                }
                Found::Dir(attr, marks) => {
                    let child = dir.child(&name, &attr, &marks);
                    if let Some(top) = top.take_if(|_| lower.is_empty()) {
                        *top = Some((attr, child.clone()));
                    }
                    lower.push(child);
                    if marks.opaque {
                        return Ok(());
                    }
                    way = self.way_below(&marks, &name, &|| self.lowers.location(&dir, &name))?;
                    // As in upper, a mark beside what leads elsewhere means what was under the name before.
                    if marks.redirect.is_none() {
                        descent.pass(&dir, &name);
                    }
                }
            }
        }
        let Redirect::Absolute(path) = way else { return Ok(()) };
        if descent.is_hidden()? {
            return Ok(());
        }
        let from = lower.last().map_or(0, |dir| usize::from(dir.layer.0));
        lower.extend(self.along(from, path)?);
        Ok(())
    }

    /// Follows `path` from the roots of the layers from position `from` on, as far as this mount follows redirects.
    fn along(&self, from: usize, path: Vec<OsString>) -> Result<Vec<Arc<LayerDir>>> {
        self.lowers
            .along(from, path, &|dir, name, marks| self.way_below(marks, name, &|| self.lowers.location(dir, name)))
    }

    /// Returns where the search goes on below a directory with `marks`.
    ///
    /// Errors: EIO for a redirect that this mount does not follow, or that is garbage.
    fn way_below(&self, marks: &Marks, name: &OsStr, location: &dyn Fn() -> Location) -> Result<Redirect> {
        if marks.foreign {
            let option = "the --xattr-namespace that it was written with";
            return Err(Error::NotFollowed { file: location(), what: "a redirect", option });
        }
        let Some(value) = &marks.redirect else { return Ok(Redirect::Sibling(name.to_owned())) };
        if matches!(self.redirect_dir, RedirectDir::NoFollow) {
            return Err(Error::NotFollowed { file: location(), what: "a redirect", option: "--redirect-dir follow" });
        }
        Redirect::parse(value).map_err(|reason| Error::Corrupt { file: location(), reason: reason.into() })
    }

    /// Finds the regular file that holds the data of a metacopy: along its redirect, or under its own name below.
    ///
    /// `layer` is the position of the metacopy, whose data is in a layer below. Errors: EIO when there is none.
    pub(super) fn search_data(
        &self,
        parent: Option<&Arc<Inode>>,
        name: &OsStr,
        layer: usize,
        redirect: Option<Vec<u8>>,
    ) -> Result<(Arc<LayerDir>, OsString)> {
        let location = || Location::new(if layer == 0 { "upper".into() } else { format!("lower{}", layer - 1) }, name);
        let corrupt = |reason: &str| Error::Corrupt { file: location(), reason: reason.into() };
        let lost = || corrupt("a metacopy whose data is in no layer below");
        let mut dirs: VecDeque<Arc<LayerDir>> = match parent {
            Some(parent) => {
                let below = dir_of(parent)?.lower.iter().filter(|dir| usize::from(dir.layer.0) > layer);
                below.cloned().collect()
            }
            None => VecDeque::new(),
        };
        let mut name = name.to_owned();
        let (mut layer, mut redirect) = (layer, redirect);
        loop {
            match redirect.take().as_deref().map(Redirect::parse) {
                None => {}
                Some(Err(reason)) => return Err(corrupt(reason)),
                Some(Ok(Redirect::Sibling(other))) => name = other,
                Some(Ok(Redirect::Absolute(mut path))) => {
                    name = path.pop().ok_or_else(lost)?;
                    dirs = self.along(layer, path)?.into();
                }
            }
            let dir = dirs.pop_front().ok_or_else(lost)?;
            match self.lowers.examine(&dir, &name, Below::Nothing)? {
                Found::Absent => {}
                Found::File(attr) if attr.kind == FileKind::Regular => {
                    let marks = self.lowers.with_fd(&dir, |fd| {
                        let failed = |e: Errno| self.lowers.layer(&dir).error("listxattr", &name, e);
                        self.namespace.marks(fd, &name).map_err(failed)
                    })?;
                    if !marks.metacopy {
                        return Ok((dir, name));
                    }
                    layer = usize::from(dir.layer.0);
                    redirect = marks.redirect;
                }
                Found::File(_) | Found::Dir(..) | Found::Whiteout => return Err(lost()),
            }
        }
    }
}

//! What the layers together show: the rules of the union's lookup, asked without a union.
//!
//! The upper is read as it is. Where a lower layer holds what cannot be followed, a directory's lower parts are not
//! known, and nothing is said about what depends on them.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::path::{Component, Path};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::layer::attr::{Attr, FileKind};
use crate::layer::dir::{Below, Found, LayerDir, Lowers};
use crate::layer::overlay::{Marks, Namespace};
use crate::layer::redirect::Redirect;

/// The layers, upper apart from the others.
pub(super) struct Layers {
    /// The upper alone.
    pub upper: Lowers,
    /// The lowers.
    pub lowers: Lowers,
    /// Where overlay xattrs are kept.
    pub namespace: Namespace,
}

/// The lower parts of a directory, topmost first.
pub(super) type Stack = Vec<Arc<LayerDir>>;

/// A directory of the union.
#[derive(Debug, Clone)]
pub(super) struct Merged {
    /// Its part in upper.
    pub upper: Option<Arc<LayerDir>>,
    /// Its lower parts; `None` where they are not known.
    pub lower: Option<Stack>,
    /// Whether it may have had others, to which its redirect leads no more.
    pub lost: bool,
}

/// Why a metacopy has no data.
pub(super) type Lost = String;

impl Layers {
    /// Returns the root of the union.
    pub fn root(&self) -> Merged {
        let upper = self.upper.roots().first().cloned();
        let mut lower = Stack::new();
        if !upper.as_ref().is_some_and(|root| root.opaque) {
            for root in self.lowers.roots() {
                lower.push(root.clone());
                if root.opaque {
                    break;
                }
            }
        }
        Merged { upper, lower: Some(lower), lost: false }
    }

    /// Returns the directory at `path`; `None` where there is none, or it cannot be said.
    pub fn at(&self, path: &Path) -> Result<Option<Merged>> {
        let mut at = self.root();
        for part in path.components() {
            let Component::Normal(name) = part else { continue };
            match self.child(&at, name)? {
                Some(child) => at = child,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// Returns the directory `name` in `parent`; `None` where nothing or something else is there.
    pub fn child(&self, parent: &Merged, name: &OsStr) -> Result<Option<Merged>> {
        let in_upper = match &parent.upper {
            Some(dir) => self.upper.examine(dir, name, Below::Something)?,
            None => Found::Absent,
        };
        match in_upper {
            Found::Whiteout | Found::File(_) => Ok(None),
            Found::Dir(attr, marks) => self.part(parent, name, &attr, &marks).map(Some),
            Found::Absent => {
                let Some(stack) = &parent.lower else { return Ok(None) };
                if self.hidden_in_upper(parent, name)? {
                    return Ok(None);
                }
                let lower = self.follow(stack, Redirect::Sibling(name.to_owned()))?;
                Ok((!lower.is_empty()).then_some(Merged { upper: None, lower: Some(lower), lost: false }))
            }
        }
    }

    /// Returns the directory `name` of `parent`, which upper has with `attr` and `marks`.
    pub fn part(&self, parent: &Merged, name: &OsStr, attr: &Attr, marks: &Marks) -> Result<Merged> {
        let upper = parent.upper.as_ref().map(|dir| dir.child(name, attr, marks));
        let lower = self.below(parent, name, marks)?;
        let leads = lower.as_ref().is_some_and(|lower| !lower.is_empty());
        Ok(Merged { upper, lower, lost: marks.redirect.is_some() && !marks.opaque && !leads })
    }

    /// Returns the lower parts of the directory `name` of `parent`, which upper has with `marks`.
    fn below(&self, parent: &Merged, name: &OsStr, marks: &Marks) -> Result<Option<Stack>> {
        if marks.opaque {
            return Ok(Some(Stack::new()));
        }
        if marks.redirect.is_none() && self.hidden_in_upper(parent, name)? {
            return Ok(Some(Stack::new()));
        }
        let (Some(stack), false) = (&parent.lower, marks.foreign) else { return Ok(None) };
        let way = match way(marks, name) {
            Ok(way) => way,
            // Nothing of it shows. What is in it is judged as a repair leaves it.
            Err(_) => return Ok(Some(Stack::new())),
        };
        match self.follow(stack, way) {
            Ok(lower) => Ok(Some(lower)),
            // The fault of a lower layer.
            Err(Error::Corrupt { .. } | Error::NotFollowed { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns whether upper's part of `dir` holds `.wh.NAME`.
    fn hidden_in_upper(&self, dir: &Merged, name: &OsStr) -> Result<bool> {
        dir.upper.as_ref().map_or(Ok(false), |upper| self.upper.hides_by_name(upper, name))
    }

    /// Returns the part of `stack` that shows `name`, and what it says; `None` where none does.
    pub fn shows(&self, stack: &[Arc<LayerDir>], name: &OsStr) -> Result<Option<(Arc<LayerDir>, Found)>> {
        for (at, dir) in stack.iter().enumerate() {
            let found = match self.lowers.examine(dir, name, Below::Nothing)? {
                Found::Absent => continue,
                Found::Whiteout => return Ok(None),
                found => found,
            };
            for above in stack.get(..at).unwrap_or_default() {
                if self.lowers.hides_by_name(above, name)? {
                    return Ok(None);
                }
            }
            return Ok(Some((dir.clone(), found)));
        }
        Ok(None)
    }

    /// Returns whether the union shows what the lower `part` of `dir` has under `name`.
    pub fn shows_lower(&self, dir: &Merged, part: &LayerDir, name: &OsStr) -> Result<bool> {
        if let Some(upper) = &dir.upper {
            let absent = matches!(self.upper.examine(upper, name, Below::Nothing)?, Found::Absent);
            if !absent || self.hidden_in_upper(dir, name)? {
                return Ok(false);
            }
        }
        let shown = self.shows(dir.lower.as_deref().unwrap_or_default(), name)?;
        Ok(shown.is_some_and(|(by, _)| by.layer == part.layer))
    }

    /// Returns the lower directories that `way` leads to from `stack`.
    fn follow(&self, stack: &[Arc<LayerDir>], mut way: Redirect) -> Result<Stack> {
        let mut found = Stack::new();
        // Parts that were passed, and the name sought there: their `.wh.` marks count for what is below them.
        let mut passed: Vec<(Arc<LayerDir>, OsString)> = Vec::new();
        let mut rest = stack.iter();
        while let Redirect::Sibling(name) = &way {
            let name = name.clone();
            let Some(dir) = rest.next() else { return Ok(found) };
            let (attr, marks) = match self.lowers.examine(dir, &name, Below::Something)? {
                Found::Absent => {
                    passed.push((dir.clone(), name));
                    continue;
                }
                Found::Whiteout | Found::File(_) => return Ok(found),
                Found::Dir(attr, marks) => (attr, marks),
            };
            if self.is_hidden(&mut passed)? {
                return Ok(found);
            }
            found.push(dir.child(&name, &attr, &marks));
            if marks.opaque {
                return Ok(found);
            }
            way = self.way_in_lower(dir, &name, &marks)?;
            // A mark beside what leads elsewhere is about what was under the name before.
            if marks.redirect.is_none() {
                passed.push((dir.clone(), name));
            }
        }
        let Redirect::Absolute(path) = way else { return Ok(found) };
        if self.is_hidden(&mut passed)? {
            return Ok(found);
        }
        let from = found.last().map_or(0, |dir| usize::from(dir.layer.0));
        found.extend(self.along(from, path)?);
        Ok(found)
    }

    fn is_hidden(&self, passed: &mut Vec<(Arc<LayerDir>, OsString)>) -> Result<bool> {
        for (dir, name) in passed.drain(..) {
            if self.lowers.hides_by_name(&dir, &name)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Follows `path` from the roots of the layers from position `from` on.
    fn along(&self, from: usize, path: Vec<OsString>) -> Result<Stack> {
        self.lowers.along(from, path, &|dir, name, marks| self.way_in_lower(dir, name, marks))
    }

    fn way_in_lower(&self, dir: &LayerDir, name: &OsStr, marks: &Marks) -> Result<Redirect> {
        way(marks, name).map_err(|reason| self.lowers.corrupt(dir, name, reason))
    }

    /// Looks for the data of the metacopy `name` in upper's `parent`, which has `redirect`; returns why there is none.
    pub fn data(&self, stack: &[Arc<LayerDir>], name: &OsStr, redirect: Option<Vec<u8>>) -> Result<Option<Lost>> {
        let mut dirs: VecDeque<Arc<LayerDir>> = stack.iter().cloned().collect();
        let (mut name, mut layer, mut redirect) = (name.to_owned(), 0, redirect);
        loop {
            match redirect.take().as_deref().map(Redirect::parse) {
                None => {}
                Some(Err(reason)) => return Ok(Some(reason.to_owned())),
                Some(Ok(Redirect::Sibling(other))) => name = other,
                Some(Ok(Redirect::Absolute(mut path))) => {
                    let Some(last) = path.pop() else { return Ok(Some("its redirect is empty".to_owned())) };
                    name = last;
                    dirs = self.along(layer, path)?.into();
                }
            }
            let Some(dir) = dirs.pop_front() else {
                return Ok(Some("and no lower layer has the data".to_owned()));
            };
            match self.lowers.examine(&dir, &name, Below::Nothing)? {
                Found::Absent => {}
                Found::File(attr) if attr.kind == FileKind::Regular => {
                    let marks = self.lowers.with_fd(&dir, |fd| {
                        let failed = |e| self.lowers.layer(&dir).error("listxattr", &name, e);
                        self.namespace.marks(fd, &name).map_err(failed)
                    })?;
                    if !marks.metacopy {
                        return Ok(None);
                    }
                    layer = usize::from(dir.layer.0);
                    redirect = marks.redirect;
                }
                Found::File(_) | Found::Dir(..) | Found::Whiteout => {
                    let place = self.lowers.location(&dir, &name);
                    return Ok(Some(format!("and {place} is no file that has the data")));
                }
            }
        }
    }
}

/// Returns where the search goes on below the directory `name` with `marks`; the reason where it cannot.
fn way(marks: &Marks, name: &OsStr) -> std::result::Result<Redirect, &'static str> {
    if marks.foreign {
        return Err("a redirect in a namespace that is not followed");
    }
    match marks.redirect.as_deref() {
        None => Ok(Redirect::Sibling(name.to_owned())),
        Some(value) => Redirect::parse(value),
    }
}

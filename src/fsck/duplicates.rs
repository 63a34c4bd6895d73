//! Lower directories that show under two names: a redirect leads to one, and the name that it had still does, too.
//!
//! The old name is the path in the lower layers, or what that has become where a directory on the way was renamed as well.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::Fsck;
use super::finding::{Finding, Problem, Side};
use super::merged::Merged;
use crate::error::Result;
use crate::layer::dir::LayerDir;

/// A directory of upper that a redirect leads down from.
struct Claim {
    path: PathBuf,
    ino: u64,
}

/// The directories with a redirect, by the path of the lower directory that they lead to.
#[derive(Default)]
pub(super) struct Claims(BTreeMap<Vec<OsString>, Vec<Claim>>);

impl Claims {
    /// Adds `merged`, which is at `path` and has the inode `ino` in upper.
    pub fn add(&mut self, merged: &Merged, path: PathBuf, ino: u64) {
        if let Some(topmost) = merged.lower.as_ref().and_then(|lower| lower.first()) {
            self.0.entry(topmost.components()).or_default().push(Claim { path, ino });
        }
    }

    /// Returns the paths of the union under which the lower directory at `target` may show.
    fn names_of(&self, target: &[OsString]) -> Vec<PathBuf> {
        let mut names = vec![target.iter().collect()];
        for depth in 1..=target.len() {
            let (above, rest) = target.split_at(depth);
            for claim in self.0.get(above).into_iter().flatten() {
                names.push(claim.path.iter().map(OsString::from).chain(rest.iter().cloned()).collect());
            }
        }
        names
    }

    fn paths(&self) -> HashSet<&Path> {
        self.0.values().flatten().map(|claim| &*claim.path).collect()
    }
}

impl Fsck {
    /// Reports each directory of `claims` whose lower directory shows under another name, too.
    pub(super) fn check_claims(&self, claims: &Claims, each: &mut dyn FnMut(Finding)) {
        // What is below one of these goes with it. The paths of lower directories come in order, so that it comes first.
        let mut told: HashSet<PathBuf> = HashSet::new();
        let redirected = claims.paths();
        for (target, claimants) in &claims.0 {
            for claim in claimants {
                for other in claims.names_of(target) {
                    // Of two that a redirect leads to, the later one is told of.
                    let later = redirected.contains(&*other) && other > claim.path;
                    if later || other == claim.path || other.ancestors().any(|above| told.contains(above)) {
                        continue;
                    }
                    // What cannot be looked at the walk has told of.
                    if let Ok(Some(hideable)) = self.shows_same(&claim.path, &other) {
                        told.insert(other.clone());
                        let problem = Problem::ShownTwice { other, hideable };
                        each(Finding { side: Side::Upper, path: claim.path.clone(), problem, ino: claim.ino });
                    }
                }
            }
        }
    }

    /// Returns whether `other` shows the topmost lower directory of `path`; and, if so, whether a whiteout can hide it.
    fn shows_same(&self, path: &Path, other: &Path) -> Result<Option<bool>> {
        let topmost = |merged: &Merged| {
            let dir = merged.lower.as_ref()?.first()?;
            Some((dir.layer, dir.dev, dir.ino))
        };
        let (Some(first), Some(second)) = (self.layers.at(path)?, self.layers.at(other)?) else { return Ok(None) };
        if topmost(&first).is_none() || topmost(&first) != topmost(&second) {
            return Ok(None);
        }
        let parent = other.parent().map_or(Ok(None), |parent| self.layers.at(parent))?;
        let kept: Option<&LayerDir> = second.upper.as_deref();
        Ok(Some(kept.is_none() && parent.is_some_and(|parent| parent.upper.is_some())))
    }
}

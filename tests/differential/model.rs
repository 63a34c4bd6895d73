//! What the generator believes of the tree, so that most operations meet something.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags, RenameFlags};

use super::op::{At, Op, SLOTS};
use super::plan::{is_longest, is_within, longest_name, name};
use super::run::Metacopy;
use super::tree::{Holes, Tree};
use crate::support::Rng;

/// What the generator believes about the tree. It may be wrong: an operation on something that is
/// gone is worth a test as well.
pub struct Model {
    nodes: BTreeMap<PathBuf, FileType>,
    gone: Vec<PathBuf>,
    slots: [Option<FileType>; SLOTS],
    /// Whether holes are compared, which decides what may be drawn.
    pub holes: Holes,
    metacopy: Metacopy,
}

impl Model {
    /// Starts with the tree that the mounts show.
    pub fn new(tree: &Tree, holes: Holes, metacopy: Metacopy) -> Self {
        let mut model = Self { nodes: BTreeMap::new(), gone: Vec::new(), slots: [None; SLOTS], holes, metacopy };
        model.learn(tree);
        model
    }

    /// Takes over a tree that was walked.
    pub fn learn(&mut self, tree: &Tree) {
        let relative = |path: &Path| path.strip_prefix("/").map(Path::to_owned);
        self.nodes = tree
            .iter()
            .filter_map(|(path, entry)| Some((relative(path).ok()?, entry.kind)))
            .filter(|(path, _)| !path.as_os_str().is_empty())
            .collect();
    }

    /// Forgets the descriptors.
    pub fn closed(&mut self) {
        self.slots = [None; SLOTS];
    }

    /// Takes over what an operation did that had no error.
    pub fn did(&mut self, op: &Op) {
        match op {
            Op::WriteFile { at: At(None, path), flags, .. } if flags.contains(OFlags::CREATE) => {
                self.nodes.entry(path.clone()).or_insert(FileType::RegularFile);
            }
            Op::Mkdir { at: At(None, path), .. } => self.add(path, FileType::Directory),
            Op::Mknod { at: At(None, path), kind, .. } => self.add(path, *kind),
            Op::Symlink { at: At(None, path), .. } => self.add(path, FileType::Symlink),
            Op::Link { from: At(None, from), to: At(None, to), .. } => {
                let kind = self.nodes.get(from).copied().unwrap_or(FileType::RegularFile);
                self.add(to, kind);
            }
            Op::Unlink { at: At(None, path) }
            | Op::Rmdir { at: At(None, path) }
            | Op::RemoveTree { at: At(None, path) } => {
                self.nodes.retain(|node, _| !is_within(node, path));
                self.gone.push(path.clone());
            }
            Op::Rename { from: At(None, from), to: At(None, to), flags, .. } => {
                let moved = self.take(from);
                let replaced = self.take(to);
                self.put(moved, from, to);
                if flags.contains(RenameFlags::EXCHANGE) {
                    self.put(replaced, to, from);
                } else {
                    self.gone.push(from.clone());
                }
            }
            Op::Open { slot, at, flags, .. } => {
                let kind = self.nodes.get(&at.1).copied().unwrap_or(FileType::RegularFile);
                self.slots[*slot] = Some(kind);
                if flags.contains(OFlags::CREATE) && at.0.is_none() {
                    self.nodes.entry(at.1.clone()).or_insert(FileType::RegularFile);
                }
            }
            Op::Close { slot } => self.slots[*slot] = None,
            _ => {}
        }
    }

    /// Takes over that an operation had an error.
    pub fn failed(&mut self, op: &Op) {
        if let Op::Open { slot, .. } = op {
            self.slots[*slot] = None;
        }
    }

    /// Tells whether a rename or link of these may need a redirect (a directory; with metacopy=on a
    /// file as well) that has the longest name in it, see [`is_longest`].
    pub fn redirects_long_name(&self, from: &At, to: &At) -> bool {
        let redirects = |at: &At| {
            self.metacopy == Metacopy::On || at.0.is_some() || self.nodes.get(&at.1) == Some(&FileType::Directory)
        };
        let is_long = is_longest(&from.1) || is_longest(&to.1);
        is_long && (redirects(from) || redirects(to))
    }

    /// Returns the slots that hold a descriptor.
    pub fn used(&self) -> Vec<usize> {
        (0..SLOTS).filter(|slot| self.slots[*slot].is_some()).collect()
    }

    fn add(&mut self, path: &Path, kind: FileType) {
        self.nodes.insert(path.to_owned(), kind);
    }

    fn take(&mut self, path: &Path) -> Vec<(PathBuf, FileType)> {
        let taken: Vec<_> = self
            .nodes
            .iter()
            .filter(|(node, _)| is_within(node, path))
            .map(|(node, kind)| (node.clone(), *kind))
            .collect();
        self.nodes.retain(|node, _| !is_within(node, path));
        taken
    }

    fn put(&mut self, nodes: Vec<(PathBuf, FileType)>, from: &Path, to: &Path) {
        for (node, kind) in nodes {
            // Within: take() gave them.
            let Ok(rest) = node.strip_prefix(from) else {
                continue;
            };
            let path = if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) };
            self.nodes.insert(path, kind);
        }
    }

    /// Returns a path: something there of a kind in `kinds` (any where it is empty), or, sometimes,
    /// something else.
    pub fn path(&self, rng: &mut Rng, kinds: &[FileType]) -> PathBuf {
        let fitting: Vec<&PathBuf> = self
            .nodes
            .iter()
            .filter(|(_, kind)| kinds.is_empty() || kinds.contains(kind))
            .map(|(path, _)| path)
            .collect();
        let any: Vec<&PathBuf> = self.nodes.keys().collect();
        match rng.below(100) {
            0..80 if !fitting.is_empty() => (*rng.pick(&fitting)).clone(),
            80..87 if !any.is_empty() => (*rng.pick(&any)).clone(),
            87..92 if !self.gone.is_empty() => rng.pick(&self.gone).clone(),
            92..95 => self.odd(rng),
            _ => self.fresh(rng),
        }
    }

    /// Returns a path for something new; it may be taken.
    fn fresh(&self, rng: &mut Rng) -> PathBuf {
        match rng.below(100) {
            0..20 if !self.gone.is_empty() => rng.pick(&self.gone).clone(),
            20..23 => self.odd(rng),
            _ => self.dir(rng).join(name(rng)),
        }
    }

    fn dir(&self, rng: &mut Rng) -> PathBuf {
        let dirs: Vec<&PathBuf> = self
            .nodes
            .iter()
            .filter(|(path, kind)| **kind == FileType::Directory && path.components().count() < 6)
            .map(|(path, _)| path)
            .collect();
        if dirs.is_empty() || rng.chance(15) { PathBuf::new() } else { (*rng.pick(&dirs)).clone() }
    }

    /// Returns a path that is a special case.
    fn odd(&self, rng: &mut Rng) -> PathBuf {
        let any: Vec<&PathBuf> = self.nodes.keys().collect();
        if any.is_empty() {
            return PathBuf::from(".");
        }
        let path = (*rng.pick(&any)).clone();
        match rng.below(8) {
            0 => PathBuf::from("."),
            1 => PathBuf::new(),
            2 => path.join(".."),
            3 => path.join(""),
            4 => path.join("."),
            5 => path.join(longest_name() + "L"),
            6 => path.join(longest_name()),
            _ => path.join("x"),
        }
    }

    /// Returns `path` as seen from the root or, sometimes, from a directory that a slot holds; there
    /// only its last component stays.
    fn at(&self, rng: &mut Rng, path: PathBuf) -> At {
        let dirs: Vec<usize> = (0..SLOTS).filter(|slot| self.slots[*slot] == Some(FileType::Directory)).collect();
        if let Some(last) = path.file_name()
            && !dirs.is_empty()
            && rng.chance(15)
        {
            return At(Some(*rng.pick(&dirs)), PathBuf::from(last));
        }
        At(None, path)
    }

    /// Returns a [`Model::path`] as an operation takes it.
    pub fn existing(&self, rng: &mut Rng, kinds: &[FileType]) -> At {
        let path = self.path(rng, kinds);
        self.at(rng, path)
    }

    /// Returns a path for something new as an operation takes it.
    pub fn new_name(&self, rng: &mut Rng) -> At {
        let path = self.fresh(rng);
        self.at(rng, path)
    }
}

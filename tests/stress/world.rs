//! What one worker believes that it wrote, and how it writes more: a model of its part of the tree,
//! random actions on it, and the check that the mount shows just that.
//!
//! A worker owns the directory of its name and, in the directory `shared`, the names that begin with
//! its own. Nobody else changes these, so that the belief is exact while others work beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::action::{Action, UNFINISHED, pattern, set_mode};
use crate::support::Rng;

/// What a name is believed to be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Dir {
        mode: u32,
    },
    /// One of the names of the file with this number.
    File(u64),
    Symlink(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Data {
    bytes: Vec<u8>,
    mode: u32,
}

/// A part of the tree, as its worker believes it to be. Paths are relative to the mount.
#[derive(Clone, Debug)]
pub struct World {
    name: String,
    nodes: BTreeMap<PathBuf, Node>,
    files: BTreeMap<u64, Data>,
    next_file: u64,
}

/// Which actions are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// All.
    All,
    /// Those that a crash leaves done or not done, and nothing between.
    Atomic,
}

const MOST_NODES: usize = 150;

impl World {
    /// Returns what the lowers hold for the worker `name`: directories, files of about `len` bytes,
    /// hard links and symlinks.
    pub fn initial(name: &str, len: usize) -> Self {
        let mut world = Self { name: name.to_owned(), nodes: BTreeMap::new(), files: BTreeMap::new(), next_file: 0 };
        world.nodes.insert(PathBuf::from(name), Node::Dir { mode: 0o755 });
        for dir in 0..4 {
            let dir = PathBuf::from(name).join(format!("d{dir}"));
            world.nodes.insert(dir.clone(), Node::Dir { mode: 0o755 });
            for file in 0..5_usize {
                let seed = dir.as_os_str().len() as u64 + file as u64;
                world.apply(&Action::Create { path: dir.join(format!("f{file}")), seed, len: len + file * 1000 });
            }
            world.apply(&Action::Link { from: dir.join("f0"), to: dir.join("l0") });
            world.apply(&Action::Symlink { path: dir.join("s"), target: PathBuf::from("f1") });
        }
        for file in 0..5 {
            let path = Path::new("shared").join(format!("{name}-{file}"));
            world.apply(&Action::Create { path, seed: file, len });
        }
        world
    }

    /// Puts the initial world into two lowers, so that its directories are merged.
    pub fn lay(&self, lowers: [&Path; 2]) -> io::Result<()> {
        let mut laid: BTreeMap<u64, PathBuf> = BTreeMap::new();
        for (index, (path, node)) in self.nodes.iter().enumerate() {
            let lower = lowers[index % 2];
            if let Some(parent) = path.parent() {
                fs::create_dir_all(lower.join(parent))?;
            }
            match node {
                Node::Dir { .. } => {
                    for lower in lowers {
                        fs::create_dir_all(lower.join(path))?;
                    }
                }
                Node::Symlink(target) => std::os::unix::fs::symlink(target, lower.join(path))?,
                Node::File(file) => {
                    if let Some(first) = laid.get(file) {
                        // A hard link stays in the layer of its first name.
                        let layer = if first.starts_with(lowers[0]) { lowers[0] } else { lowers[1] };
                        fs::hard_link(first, layer.join(path))?;
                    } else {
                        fs::write(lower.join(path), &self.files[file].bytes)?;
                        set_mode(&lower.join(path), self.files[file].mode)?;
                        laid.insert(*file, lower.join(path));
                    }
                }
            }
        }
        Ok(())
    }

    /// Tells whether a name is one that [`Action::Replace`] had not finished.
    pub fn is_unfinished(path: &Path) -> bool {
        path.as_os_str().to_string_lossy().ends_with(UNFINISHED)
    }

    /// Draws an action that succeeds in this world.
    pub fn draw(&self, rng: &mut Rng, mix: Mix) -> Action {
        loop {
            if let Some(action) = self.propose(rng, mix) {
                return action;
            }
        }
    }

    fn propose(&self, rng: &mut Rng, mix: Mix) -> Option<Action> {
        let full = self.nodes.len() > MOST_NODES;
        let seed = rng.next() % 1000;
        let len = match rng.below(6) {
            0 => 0,
            1 => rng.below(300_000),
            _ => rng.below(10_000),
        };
        let atomic = mix == Mix::Atomic;
        Some(match rng.below(100) {
            0..10 if !full && !atomic => Action::Create { path: self.fresh(rng)?, seed, len },
            10..22 if !atomic => {
                let path = any(rng, &self.files())?;
                let offset = rng.below(self.bytes(&path).len() + 1);
                Action::Write { path, offset, seed, len: len + 1 }
            }
            22..26 if !atomic => Action::Truncate { path: any(rng, &self.files())?, len },
            0..26 if !full => {
                let path = if rng.below(3) == 0 { self.fresh(rng)? } else { any(rng, &self.files())? };
                Action::Replace { path, seed, len }
            }
            26..36 => {
                let mode = [0o700, 0o750, 0o755, 0o744][rng.below(4)];
                let all = [self.files(), self.dirs()].concat();
                Action::Chmod { path: any(rng, &all)?, mode }
            }
            36..44 if !full => Action::Mkdir { path: self.fresh(rng)? },
            44..48 if !full => Action::Symlink { path: self.fresh(rng)?, target: PathBuf::from(format!("to/{seed}")) },
            48..56 if !full => Action::Link { from: any(rng, &self.files())?, to: self.fresh(rng)? },
            56..66 => Action::Unlink { path: any(rng, &self.not_dirs())? },
            66..70 if !atomic => Action::RemoveTree { path: any(rng, &self.own_dirs())? },
            66..72 => Action::Rmdir { path: any(rng, &self.empty_dirs())? },
            72..94 => self.propose_rename(rng)?,
            94..100 => {
                let all = self.movable();
                let (one, two) = (any(rng, &all)?, any(rng, &all)?);
                if one.starts_with(&two) || two.starts_with(&one) {
                    return None;
                }
                Action::Exchange { one, two }
            }
            _ => return None,
        })
    }

    fn propose_rename(&self, rng: &mut Rng) -> Option<Action> {
        let from = any(rng, &self.movable())?;
        let over = match self.nodes.get(&from)? {
            Node::Dir { .. } => self.empty_dirs(),
            _ => self.not_dirs(),
        };
        let to = if rng.below(3) == 0 { any(rng, &over)? } else { self.fresh(rng)? };
        let same_file = match (self.nodes.get(&from), self.nodes.get(&to)) {
            (Some(Node::File(one)), Some(Node::File(two))) => one == two,
            _ => false,
        };
        // rename(2) does nothing where both are names of one file, and refuses a directory below itself.
        if same_file || to.starts_with(&from) || from.starts_with(&to) {
            return None;
        }
        Some(Action::Rename { from, to })
    }

    fn of(&self, is: impl Fn(&Path, &Node) -> bool) -> Vec<PathBuf> {
        self.nodes.iter().filter(|(path, node)| is(path, node)).map(|(path, _)| path.clone()).collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        self.of(|_, node| matches!(node, Node::File(_)))
    }

    fn not_dirs(&self) -> Vec<PathBuf> {
        self.of(|_, node| !matches!(node, Node::Dir { .. }))
    }

    fn dirs(&self) -> Vec<PathBuf> {
        self.of(|_, node| matches!(node, Node::Dir { .. }))
    }

    /// Returns the directories that may go: all but the worker's root.
    fn own_dirs(&self) -> Vec<PathBuf> {
        self.of(|path, node| matches!(node, Node::Dir { .. }) && path.as_os_str() != self.name.as_str())
    }

    fn empty_dirs(&self) -> Vec<PathBuf> {
        let mut dirs = self.own_dirs();
        dirs.retain(|dir| self.children(dir).is_empty());
        dirs
    }

    fn movable(&self) -> Vec<PathBuf> {
        self.of(|path, _| path.as_os_str() != self.name.as_str())
    }

    fn children(&self, dir: &Path) -> BTreeSet<PathBuf> {
        self.nodes.keys().filter(|path| path.parent() == Some(dir)).cloned().collect()
    }

    fn bytes(&self, path: &Path) -> &[u8] {
        match self.nodes.get(path) {
            Some(Node::File(file)) => &self.files[file].bytes,
            _ => &[],
        }
    }

    /// Returns a name that is free, in a directory that is there.
    fn fresh(&self, rng: &mut Rng) -> Option<PathBuf> {
        let dirs: Vec<PathBuf> = self.dirs().into_iter().filter(|dir| dir.components().count() < 8).collect();
        let number = rng.below(40);
        let path = match rng.below(4) {
            0 => Path::new("shared").join(format!("{}-{number}", self.name)),
            _ => any(rng, &dirs)?.join(format!("n{number}")),
        };
        (!self.nodes.contains_key(&path)).then_some(path)
    }

    /// Takes over that `action` was done.
    pub fn apply(&mut self, action: &Action) {
        match action {
            Action::Create { path, seed, len } | Action::Replace { path, seed, len } => {
                let data = Data { bytes: pattern(*seed, *len), mode: 0o644 };
                self.files.insert(self.next_file, data);
                self.nodes.insert(path.clone(), Node::File(self.next_file));
                self.next_file += 1;
            }
            Action::Write { path, offset, seed, len } => self.change(path, |data| {
                let end = offset + len;
                let keep = data.bytes.len().max(end);
                data.bytes.resize(keep, 0);
                data.bytes[*offset..end].copy_from_slice(&pattern(*seed, *len));
            }),
            Action::Truncate { path, len } => self.change(path, |data| data.bytes.resize(*len, 0)),
            Action::Chmod { path, mode } => match self.nodes.get_mut(path) {
                Some(Node::Dir { mode: now }) => *now = *mode,
                _ => self.change(path, |data| data.mode = *mode),
            },
            Action::Mkdir { path } => {
                self.nodes.insert(path.clone(), Node::Dir { mode: 0o755 });
            }
            Action::Symlink { path, target } => {
                self.nodes.insert(path.clone(), Node::Symlink(target.clone()));
            }
            Action::Link { from, to } => {
                let node = self.nodes[from].clone();
                self.nodes.insert(to.clone(), node);
            }
            Action::Unlink { path } | Action::Rmdir { path } | Action::RemoveTree { path } => {
                self.nodes.retain(|node, _| !node.starts_with(path));
            }
            Action::Rename { from, to } => {
                let moved = self.take(from);
                self.nodes.remove(to);
                self.put(moved, from, to);
            }
            Action::Exchange { one, two } => {
                let (first, second) = (self.take(one), self.take(two));
                self.put(first, one, two);
                self.put(second, two, one);
            }
        }
        let named: BTreeSet<u64> = self
            .nodes
            .values()
            .filter_map(|node| if let Node::File(file) = node { Some(*file) } else { None })
            .collect();
        self.files.retain(|file, _| named.contains(file));
    }

    fn change(&mut self, path: &Path, change: impl FnOnce(&mut Data)) {
        if let Some(Node::File(file)) = self.nodes.get(path) {
            self.files.get_mut(file).map(change);
        }
    }

    fn take(&mut self, path: &Path) -> Vec<(PathBuf, Node)> {
        let taken: Vec<_> =
            self.nodes.iter().filter(|(node, _)| node.starts_with(path)).map(|(p, n)| (p.clone(), n.clone())).collect();
        self.nodes.retain(|node, _| !node.starts_with(path));
        taken
    }

    fn put(&mut self, nodes: Vec<(PathBuf, Node)>, from: &Path, to: &Path) {
        for (path, node) in nodes {
            let rest = path.strip_prefix(from).expect("take() gave what is below");
            let path = if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) };
            self.nodes.insert(path, node);
        }
    }

    /// Compares this world with what the mount shows, all of it.
    pub fn verify(&self, mount: &Path) -> Result<(), String> {
        self.verify_names(mount, Path::new("shared"))?;
        let mut inodes: BTreeMap<u64, (u64, &Path)> = BTreeMap::new();
        for (path, node) in &self.nodes {
            let full = mount.join(path);
            let wrong = |what: String| format!("{}: {what}; believed {}", path.display(), self.shown(node));
            let meta = fs::symlink_metadata(&full).map_err(|e| wrong(e.to_string()))?;
            let kind = meta.file_type();
            match node {
                Node::Dir { mode } => {
                    if !kind.is_dir() || meta.mode() & 0o7777 != *mode {
                        return Err(wrong(format!("is {:o}", meta.mode())));
                    }
                    self.verify_names(mount, path)?;
                }
                Node::Symlink(target) => {
                    let is = fs::read_link(&full).map_err(|e| wrong(e.to_string()))?;
                    if is != *target {
                        return Err(wrong(format!("points to {}", is.display())));
                    }
                }
                Node::File(file) => {
                    self.verify_file(&full, *file, &meta).map_err(wrong)?;
                    let first = *inodes.entry(meta.ino()).or_insert((*file, path));
                    if first.0 != *file {
                        return Err(wrong(format!("has the number {} of {}", meta.ino(), first.1.display())));
                    }
                }
            }
        }
        // Each file has one number, so that there are as many numbers as files.
        if inodes.len() != self.files.len() {
            return Err(format!("{} files have {} numbers", self.files.len(), inodes.len()));
        }
        Ok(())
    }

    fn verify_file(&self, full: &Path, file: u64, meta: &fs::Metadata) -> Result<(), String> {
        let data = &self.files[&file];
        let names = self.nodes.values().filter(|node| **node == Node::File(file)).count();
        let mode = meta.mode() & 0o7777;
        if !meta.is_file() || mode != data.mode || meta.nlink() != names as u64 {
            return Err(format!("has mode {mode:o} and {} links, not {names}", meta.nlink()));
        }
        let bytes = fs::read(full).map_err(|error| error.to_string())?;
        if bytes != data.bytes {
            let at = bytes.iter().zip(&data.bytes).position(|(is, was)| is != was);
            return Err(format!("has {} bytes that differ at {at:?}", bytes.len()));
        }
        Ok(())
    }

    /// Compares the listing of a directory; in one that others share, only the own names.
    fn verify_names(&self, mount: &Path, dir: &Path) -> Result<(), String> {
        let listing = fs::read_dir(mount.join(dir)).map_err(|e| format!("list {}: {e}", dir.display()))?;
        let mut listed = Vec::new();
        for entry in listing {
            let entry = entry.map_err(|e| format!("list {}: {e}", dir.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_own = dir != Path::new("shared") || name.starts_with(&format!("{}-", self.name));
            if is_own && !name.ends_with(UNFINISHED) {
                listed.push(dir.join(name));
            }
        }
        listed.sort();
        let believed: Vec<PathBuf> = self.children(dir).into_iter().collect();
        if listed == believed {
            return Ok(());
        }
        Err(format!("{} lists {listed:?}; believed {believed:?}", dir.display()))
    }

    fn shown(&self, node: &Node) -> String {
        match node {
            Node::File(file) => {
                let data = &self.files[file];
                format!("a file of {} bytes, {:o}", data.bytes.len(), data.mode)
            }
            other => format!("{other:?}"),
        }
    }
}

fn any(rng: &mut Rng, paths: &[PathBuf]) -> Option<PathBuf> {
    (!paths.is_empty()).then(|| rng.pick(paths).clone())
}

//! A tree through all its layers: what was at each path after each of them, and so what each of them has changed.
//!
//! It is read once, layer by layer, in time proportional to what the layers have; what any number of layers shows, and what
//! differs between two numbers of them, is then told without looking at a disk. Layers are counted from the lowest, which is
//! 1: after layer 0 there is nothing.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use smallvec::SmallVec;

use super::changes::{Change, ChangeKind, changes_of_layer};
use super::stack::{Object, Stack};
use crate::error::Result;
use crate::layer::attr::{FileKind, Timestamp};

/// A path of the tree. That of a directory is less than those of what is in it, and the root's is the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

impl NodeId {
    /// The root.
    pub const ROOT: Self = Self(0);

    /// Returns the number, by which what is known of all paths can be kept in an array.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits with set-user-id, set-group-id and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a regular file; else 0.
    pub size: u64,
    /// Last change of the contents.
    pub mtime: Timestamp,
    /// The device that a device node stands for (major, minor).
    pub rdev: (u32, u32),
    /// Where a symbolic link leads.
    pub link: Option<Box<OsStr>>,
    /// What tells a file with several names from others.
    file: Option<FileId>,
}

/// Device and inode number of a file.
type FileId = ((u32, u32), u64);

/// What a layer has made of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The layer.
    pub layer: usize,
    /// What has been there since; `None` where the layer removed it.
    pub entry: Option<Entry>,
}

#[derive(Debug)]
struct Node {
    name: Box<OsStr>,
    parent: Option<NodeId>,
    /// By name, in the order of bytes.
    children: Vec<NodeId>,
    /// Lowest layer first, one for each layer that has made something of it.
    versions: SmallVec<[Version; 1]>,
}

/// A tree through all its layers.
#[derive(Debug)]
pub struct Layered {
    nodes: Vec<Node>,
    layers: usize,
}

/// From after which layer to after which: what the second shows is compared with what the first does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The number of layers to compare with; 0 for an empty tree.
    pub since: usize,
    /// The number of layers that are shown.
    pub upto: usize,
}

/// How a path fares in a [`Span`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It is neither there before nor after.
    Absent,
    /// It is as it was.
    Same,
    /// It is new, another, or gone. A directory in which something is so is another.
    Differs(ChangeKind),
}

/// The tree over a [`Span`]: how each path fares, and what directories take.
#[derive(Debug)]
pub struct View {
    span: Span,
    states: Vec<State>,
    sizes: Vec<u64>,
}

impl Layered {
    /// Reads all layers of `stack`; `begins` is called with each layer before it is read.
    ///
    /// Errors: those of reading the layers.
    pub fn read(stack: &Stack, mut begins: impl FnMut(usize)) -> Result<Self> {
        let mut tree = Self { nodes: Vec::new(), layers: stack.depth() };
        let mut ids = HashMap::new();
        for layer in 1..=tree.layers {
            begins(layer);
            for change in changes_of_layer(stack, tree.layers - layer)? {
                tree.apply(&mut ids, stack, layer, change)?;
            }
        }
        // What a later layer adds comes after what is there.
        let mut sorted: Vec<Vec<NodeId>> = Vec::with_capacity(tree.nodes.len());
        for node in &tree.nodes {
            let mut children = node.children.clone();
            children.sort_by_key(|child| tree.name(*child));
            sorted.push(children);
        }
        for (node, children) in tree.nodes.iter_mut().zip(sorted) {
            node.children = children;
        }
        Ok(tree)
    }

    fn apply(
        &mut self,
        ids: &mut HashMap<OsString, NodeId>,
        stack: &Stack,
        layer: usize,
        change: Change,
    ) -> Result<()> {
        let Some(id) = self.place(ids, &change.path) else { return Ok(()) };
        match change.now {
            Some(object) => {
                let entry = Entry::of(stack, &object)?;
                if entry.kind != FileKind::Directory {
                    self.remove_below(id, layer);
                }
                self.note(id, layer, Some(entry));
            }
            None => {
                self.remove_below(id, layer);
                self.note(id, layer, None);
            }
        }
        Ok(())
    }

    /// Returns the node of `path`, which is made where it is new; its directory comes before it.
    fn place(&mut self, ids: &mut HashMap<OsString, NodeId>, path: &Path) -> Option<NodeId> {
        if let Some(id) = ids.get(path.as_os_str()) {
            return Some(*id);
        }
        let parent = match path.parent() {
            Some(parent) => Some(*ids.get(parent.as_os_str())?),
            None => None,
        };
        let id = NodeId(u32::try_from(self.nodes.len()).ok()?);
        let name = path.file_name().unwrap_or_default().into();
        self.nodes.push(Node { name, parent, children: Vec::new(), versions: SmallVec::new() });
        if let Some(parent) = parent.and_then(|parent| self.nodes.get_mut(parent.index())) {
            parent.children.push(id);
        }
        ids.insert(path.as_os_str().to_owned(), id);
        Some(id)
    }

    fn note(&mut self, id: NodeId, layer: usize, entry: Option<Entry>) {
        if let Some(node) = self.nodes.get_mut(id.index()) {
            node.versions.push(Version { layer, entry });
        }
    }

    /// Notes that what is below `id` is gone since `layer`.
    fn remove_below(&mut self, id: NodeId, layer: usize) {
        let mut todo = self.children(id).to_vec();
        while let Some(id) = todo.pop() {
            // What is gone already has nothing below it.
            if self.entry(id, layer).is_some() {
                todo.extend_from_slice(self.children(id));
                self.note(id, layer, None);
            }
        }
    }

    fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.index())
    }

    /// Returns how many layers there are.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Returns how many paths there are in all layers.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Returns whether there is no layer at all.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Returns the name of a path in its directory; that of the root is empty.
    pub fn name(&self, id: NodeId) -> &OsStr {
        self.node(id).map_or(OsStr::new(""), |node| &node.name)
    }

    /// Returns the directory that a path is in; `None` for the root.
    pub fn parent(&self, id: NodeId) -> Option<NodeId> {
        self.node(id)?.parent
    }

    /// Returns what any layer has in a directory, by name in the order of bytes.
    pub fn children(&self, id: NodeId) -> &[NodeId] {
        self.node(id).map_or(&[], |node| &node.children)
    }

    /// Returns the names from the root to a path.
    pub fn names(&self, id: NodeId) -> Vec<&OsStr> {
        let mut names = Vec::new();
        let mut at = self.node(id);
        while let Some(node) = at.filter(|node| node.parent.is_some()) {
            names.push(&*node.name);
            at = node.parent.and_then(|parent| self.node(parent));
        }
        names.reverse();
        names
    }

    /// Returns a path in bytes, beginning with a slash.
    pub fn path(&self, id: NodeId) -> Vec<u8> {
        let names = self.names(id);
        if names.is_empty() {
            return b"/".to_vec();
        }
        names.iter().flat_map(|name| [b"/", name.as_bytes()]).flatten().copied().collect()
    }

    /// Returns what the layers have made of a path, lowest first.
    pub fn versions(&self, id: NodeId) -> &[Version] {
        self.node(id).map_or(&[], |node| &node.versions)
    }

    /// Returns what the last layer up to `upto` that has to do with a path has made of it.
    pub fn version(&self, id: NodeId, upto: usize) -> Option<&Version> {
        self.versions(id).iter().rev().find(|version| version.layer <= upto)
    }

    /// Returns the bytes of the files that a layer has, those with several names once.
    pub fn bytes_of(&self, layer: usize) -> u64 {
        let mut counted = HashSet::new();
        let versions = self.nodes.iter().flat_map(|node| &node.versions).filter(|version| version.layer == layer);
        let entries = versions.filter_map(|version| version.entry.as_ref());
        let once = |entry: &&Entry| entry.file.is_none_or(|file| counted.insert(file));
        entries.filter(once).fold(0, |sum, entry| sum.saturating_add(entry.size))
    }

    fn entry(&self, id: NodeId, upto: usize) -> Option<&Entry> {
        self.version(id, upto)?.entry.as_ref()
    }

    /// Compares what two numbers of layers show, in time for all paths.
    pub fn view(&self, span: Span) -> View {
        let mut view = View { span, states: Vec::with_capacity(self.len()), sizes: Vec::with_capacity(self.len()) };
        let (mut counted, mut counted_gone) = (HashSet::new(), HashSet::new());
        let ids = (0..self.len()).map(|at| NodeId(at as u32)); // No more were given out.
        for id in ids.clone() {
            let (old, new) = (self.version(id, span.since), self.version(id, span.upto));
            let (was, now) = (old.and_then(|old| old.entry.as_ref()), new.and_then(|new| new.entry.as_ref()));
            view.states.push(match (was, now) {
                (None, None) => State::Absent,
                (None, Some(_)) => State::Differs(ChangeKind::Added),
                (Some(_), None) => State::Differs(ChangeKind::Deleted),
                (Some(_), Some(_)) if old.map(|old| old.layer) == new.map(|new| new.layer) => State::Same,
                (Some(_), Some(_)) => State::Differs(ChangeKind::Changed),
            });
            // A file with several names is there once.
            let seen = if now.is_some() { &mut counted } else { &mut counted_gone };
            let once = |entry: &&Entry| entry.file.is_none_or(|file| seen.insert(file));
            view.sizes.push(now.or(was).filter(once).map_or(0, |entry| entry.size));
        }
        for id in ids.rev() {
            let Some(parent) = self.parent(id) else { continue };
            // What is gone from a directory that is there takes nothing any more.
            if view.is_gone(id) == view.is_gone(parent) {
                let size = view.size(id);
                if let Some(sum) = view.sizes.get_mut(parent.index()) {
                    *sum = sum.saturating_add(size);
                }
            }
        }
        view
    }

    /// Returns what `view` shows at a path, or of one that is gone what was there.
    pub fn shown(&self, view: &View, id: NodeId) -> Option<&Entry> {
        self.entry(id, view.span.upto).or_else(|| self.entry(id, view.span.since))
    }
}

impl View {
    /// Returns which layers are compared.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Returns how a path fares.
    pub fn state(&self, id: NodeId) -> State {
        self.states.get(id.index()).copied().unwrap_or(State::Absent)
    }

    fn is_gone(&self, id: NodeId) -> bool {
        self.state(id) == State::Differs(ChangeKind::Deleted)
    }

    /// Returns the bytes of a file, or of all files in a directory; of what is gone those that it had. A file with several
    /// names counts under one of them.
    pub fn size(&self, id: NodeId) -> u64 {
        self.sizes.get(id.index()).copied().unwrap_or_default()
    }
}

impl Entry {
    fn of(stack: &Stack, object: &Object) -> Result<Self> {
        let attr = object.attr();
        let link = match object {
            Object::File(dir, name, _) if attr.kind == FileKind::Symlink => Some(stack.read_link(dir, name)?.into()),
            _ => None,
        };
        let regular = attr.kind == FileKind::Regular;
        let device = matches!(attr.kind, FileKind::Char | FileKind::Block);
        Ok(Self {
            kind: attr.kind,
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            size: if regular { attr.size } else { 0 },
            mtime: attr.mtime,
            rdev: if device { attr.rdev } else { (0, 0) },
            link,
            file: (regular && attr.nlink > 1).then_some((attr.dev, attr.ino)),
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::super::stack::Part;
    use super::super::unpack::keep::Keep;
    use super::*;

    /// Layers as directories with `.wh.` marks, lowest first.
    pub(crate) struct Fixture {
        pub(crate) stack: Stack,
        _dir: tempfile::TempDir,
    }

    /// Makes layers of what is written as `PATH` for a file with its path in it, `PATH=TEXT`, `PATH/` for a directory,
    /// `PATH->TARGET` and `PATH=>NAME` for a symbolic and a hard link.
    pub(crate) fn fixture(layers: &[&[&str]]) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let mut paths: Vec<PathBuf> = Vec::new();
        for (n, layer) in layers.iter().enumerate() {
            let root = dir.path().join(n.to_string());
            fs::create_dir(&root).unwrap();
            for item in *layer {
                let (path, what) = match item.split_once('=') {
                    Some((path, what)) => (path, Some(what)),
                    None => (*item, None),
                };
                let (path, link) = match path.split_once("->") {
                    Some((path, link)) => (path, Some(link)),
                    None => (path, None),
                };
                let path_there = root.join(path.trim_end_matches('/'));
                fs::create_dir_all(path_there.parent().unwrap()).unwrap();
                match (what, link) {
                    (_, Some(target)) => std::os::unix::fs::symlink(target, path_there).unwrap(),
                    (Some(what), None) if what.starts_with('>') => {
                        fs::hard_link(root.join(&what[1..]), path_there).unwrap();
                    }
                    (None, None) if path.ends_with('/') => fs::create_dir_all(path_there).unwrap(),
                    (what, None) => fs::write(path_there, what.unwrap_or(path)).unwrap(),
                }
            }
            paths.push(root);
        }
        let parts = paths.iter().rev().map(|path| Part { path, says_root: true });
        let stack = Stack::open(parts, Keep::here()).unwrap();
        Fixture { stack, _dir: dir }
    }

    /// What `tests/images/` and the interface look at, too: three layers with all that layers do to each other.
    pub(crate) fn several() -> Fixture {
        fixture(&[
            &[
                "d/a=aaaaa",
                "d/sub/b=bb",
                "f=ffff",
                "gone/x/y=yyy",
                "gone/z=z",
                "kept/k=kkk",
                "dir/in=inn",
                "l->f",
                "one=111",
            ],
            &["d/.wh..wh..opq", "d/new=n", ".wh.gone", "f=f2", "dir=file", "one=1111", "two=>one", "three=>one"],
            &["f/in=deep", "gone/again=8bytes..", ".wh.l", "kept/more=mm", ".wh.never"],
        ])
    }

    /// Makes a tree of so many directories with so many files each, of which a second layer changes every other.
    pub(crate) fn large(dirs: u32, files: u32) -> Layered {
        let entry = |kind| Entry {
            kind,
            mode: 0o755,
            uid: 0,
            gid: 0,
            size: u64::from(kind == FileKind::Regular),
            mtime: Timestamp::default(),
            rdev: (0, 0),
            link: None,
            file: None,
        };
        let mut tree = Layered { nodes: Vec::new(), layers: 2 };
        let mut ids = HashMap::new();
        let mut place = |path: String, kind, layers: usize| {
            let id = tree.place(&mut ids, Path::new(&path)).unwrap();
            (1..=layers).for_each(|layer| tree.note(id, layer, Some(entry(kind))));
        };
        place("/".to_owned(), FileKind::Directory, 1);
        for dir in 0..dirs {
            place(format!("/directory-{dir}"), FileKind::Directory, 2);
            (0..files).for_each(|file| {
                place(format!("/directory-{dir}/file-{file}"), FileKind::Regular, 1 + file as usize % 2)
            });
        }
        tree
    }

    /// The paths that differ in a span or, in brackets, are the same, with their sizes.
    fn told(tree: &Layered, since: usize, upto: usize) -> Vec<String> {
        let view = tree.view(Span { since, upto });
        let mut told = Vec::new();
        let mut todo = vec![NodeId::ROOT];
        while let Some(id) = todo.pop() {
            todo.extend(tree.children(id).iter().rev());
            let path = String::from_utf8(tree.path(id)).unwrap();
            match view.state(id) {
                State::Absent => {}
                State::Same => told.push(format!("({path} {})", view.size(id))),
                State::Differs(kind) => told.push(format!("{} {path} {}", kind.letter(), view.size(id))),
            }
        }
        told
    }

    #[test]
    fn each_layer_tells_what_it_adds_changes_and_removes() {
        let fixture = several();
        let mut begun = Vec::new();
        let tree = Layered::read(&fixture.stack, |layer| begun.push(layer)).unwrap();
        assert_eq!(begun, [1, 2, 3]);
        assert!(told(&tree, 0, 0).is_empty());
        let first = told(&tree, 0, 1);
        assert!(first.iter().all(|line| line.starts_with("A ")), "{first:?}");
        assert_eq!(first[0], "A / 24");
        assert_eq!(
            told(&tree, 1, 2),
            [
                "(/ 14)",
                "C /d 1",
                "D /d/a 5",
                "A /d/new 1",
                "D /d/sub 2",
                "D /d/sub/b 2",
                "C /dir 4",
                "D /dir/in 3",
                "C /f 2",
                "D /gone 4",
                "D /gone/x 3",
                "D /gone/x/y 3",
                "D /gone/z 1",
                "(/kept 3)",
                "(/kept/k 3)",
                "(/l 0)",
                "C /one 4",
                "A /three 0",
                "A /two 0",
            ]
        );
        assert_eq!(
            told(&tree, 2, 3),
            [
                "(/ 26)",
                "(/d 1)",
                "(/d/new 1)",
                "(/dir 4)",
                "C /f 4",
                "A /f/in 4",
                "A /gone 8",
                "A /gone/again 8",
                "C /kept 5",
                "(/kept/k 3)",
                "A /kept/more 2",
                "D /l 0",
                "(/one 4)",
                "(/three 0)",
                "(/two 0)",
            ]
        );
    }

    #[test]
    fn several_layers_can_be_seen_as_one_change() {
        let tree = Layered::read(&several().stack, |_| {}).unwrap();
        let all = told(&tree, 1, 3);
        for line in ["C /gone 8", "A /gone/again 8", "D /gone/x/y 3", "C /f 4", "D /l 0", "(/kept/k 3)", "C /kept 5"] {
            assert!(all.iter().any(|other| other == line), "{line}: {all:?}");
        }
        assert!(told(&tree, 3, 3).iter().all(|line| line.starts_with('(')), "{:?}", told(&tree, 3, 3));
    }

    #[test]
    fn what_a_path_was_in_each_layer_is_known() {
        let tree = Layered::read(&several().stack, |_| {}).unwrap();
        let id = |path: &str| {
            let mut at = NodeId::ROOT;
            for name in path.split('/') {
                at = *tree.children(at).iter().find(|child| tree.name(**child) == name).unwrap();
            }
            at
        };
        let versions = |path: &str| -> Vec<(usize, Option<FileKind>)> {
            tree.versions(id(path)).iter().map(|v| (v.layer, v.entry.as_ref().map(|entry| entry.kind))).collect()
        };
        let (file, dir) = (Some(FileKind::Regular), Some(FileKind::Directory));
        assert_eq!(versions("f"), [(1, file), (2, file), (3, dir)]);
        assert_eq!(versions("gone"), [(1, dir), (2, None), (3, dir)]);
        assert_eq!(versions("gone/x/y"), [(1, file), (2, None)]);
        assert_eq!(versions("d/sub/b"), [(1, file), (2, None)]);
        assert_eq!(versions("kept/k"), [(1, file)]);
        assert_eq!(tree.version(id("l"), 2).unwrap().entry.as_ref().unwrap().link.as_deref(), Some(OsStr::new("f")));
        assert_eq!(tree.version(id("l"), 0), None);
    }
}

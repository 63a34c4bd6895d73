//! The model: a tree in memory with ordinary POSIX semantics.
//!
//! An operation is two calls: one that says how it may be refused, and one that carries it out. Where several
//! reasons to refuse hold at once, any of their errnos is right: POSIX leaves the order open, and through a mount
//! the kernel checks most of them itself before the union is asked.

use std::collections::{BTreeMap, HashMap};

use rustix::io::Errno;
use unionfs_rs::union::{FileKind, RenameFlags};

use super::layers::{DEVICE, LOWER_XATTR, Plan, ROOT_MTIME, SPECIAL_MODE, Thing};

/// Names a file of the model for as long as the test runs, whatever becomes of its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(usize);

/// The root.
pub const ROOT: Id = Id(0);

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Regular(Vec<u8>),
    Directory(BTreeMap<String, Id>),
    Symlink(String),
    /// A pipe, socket or device.
    Special(FileKind, (u32, u32)),
}

/// The count of names that stat(2) is to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// This many: names that a whiteout of a lower layer hides count, as they do in the kernel's overlayfs.
    Exactly(u32),
    /// Linked in a lower layer, and the mount has no index: the lower's count until the file is copied up, and
    /// then that of its names.
    Broken { lower: u32, names: u32 },
}

/// A file of the model.
#[derive(Clone, Debug)]
pub struct Node {
    pub what: What,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// The time of the last change; none once it has changed during the test.
    pub mtime: Option<i64>,
    pub links: Links,
    /// The directory that a directory is in; none for the root and for what is removed.
    pub parent: Option<Id>,
    /// Whether the node came from a lower layer (for a directory: has lower parts).
    pub lower: bool,
    /// The number that stat(2) showed first.
    pub ino: Option<u64>,
}

impl Node {
    fn new(what: What, mode: u32, owner: (u32, u32)) -> Self {
        Self {
            what,
            mode,
            uid: owner.0,
            gid: owner.1,
            xattrs: BTreeMap::new(),
            mtime: None,
            links: Links::Exactly(1),
            parent: None,
            lower: false,
            ino: None,
        }
    }

    pub fn kind(&self) -> FileKind {
        match self.what {
            What::Regular(_) => FileKind::Regular,
            What::Directory(_) => FileKind::Directory,
            What::Symlink(_) => FileKind::Symlink,
            What::Special(kind, _) => kind,
        }
    }

    pub fn is_dir(&self) -> bool {
        matches!(self.what, What::Directory(_))
    }

    /// Whether `user.` xattrs can be set on it (xattr(7)).
    pub fn holds_user_xattrs(&self) -> bool {
        matches!(self.what, What::Directory(_) | What::Regular(_))
    }

    /// Whether the last name is gone.
    pub fn is_gone(&self) -> bool {
        matches!(self.links, Links::Exactly(0) | Links::Broken { names: 0, .. })
    }
}

/// What the mount is able to do, as far as it shows.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub read_only: bool,
    /// Whether directories with lower parts can be renamed.
    pub redirect_dir: bool,
    /// Whether files that are linked in a lower layer stay linked.
    pub keeps_links: bool,
    /// Whether others than regular files do.
    pub keeps_special_links: bool,
    /// Whether files can be linked.
    pub links: bool,
    /// Whether names can be exchanged.
    pub exchanges: bool,
}

/// Who makes a file, with which mode.
#[derive(Clone, Copy, Debug)]
pub struct Maker {
    pub mode: u32,
    pub umask: u32,
    pub uid: u32,
    pub gid: u32,
}

/// A rename, its ends resolved to directories and names.
#[derive(Clone, Copy, Debug)]
pub struct Rename<'a> {
    pub from: (Id, &'a str),
    pub to: (Id, &'a str),
    pub flags: RenameFlags,
}

/// How an operation may end.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Reasons to refuse; empty where it must succeed.
    pub errors: Vec<Errno>,
    /// Whether it may succeed all the same, because it changes nothing.
    pub may_succeed: bool,
}

impl Verdict {
    pub fn refuse_if(mut self, applies: bool, errno: Errno) -> Self {
        if applies {
            self.errors.push(errno);
        }
        self
    }
}

/// The tree.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    pub rules: Rules,
}

/// Whether the name is one that layers keep their marks under.
pub fn is_reserved(name: &str) -> bool {
    name.starts_with(".wh.")
}

impl Tree {
    /// Merges the layers, topmost first; with an upper, the root has its attributes.
    pub fn merge(plans: &[Plan], rules: Rules) -> Self {
        let mut root = Node::new(What::Directory(BTreeMap::new()), 0o755, (0, 0));
        root.mtime = Some(ROOT_MTIME);
        root.lower = true;
        let mut tree = Self { nodes: vec![root], rules };
        for plan in plans.iter().rev() {
            tree.merge_layer(plan);
        }
        tree
    }

    fn merge_layer(&mut self, plan: &Plan) {
        let mut known: HashMap<usize, Id> = HashMap::new();
        for (path, &number) in &plan.names {
            let object = &plan.objects[number];
            let (parent, name) = self.parent_of(path);
            let standing = self.child(parent, name);
            let (what, mode, owner) = match object.thing {
                Thing::Whiteout => {
                    self.entries(parent).remove(name);
                    continue;
                }
                Thing::File { len, fill, mode, owner } => (What::Regular(vec![fill; len]), mode, owner),
                Thing::Dir { mode, owner } => match standing.filter(|&id| self.node(id).is_dir()) {
                    Some(below) => (self.node(below).what.clone(), mode, owner),
                    None => (What::Directory(BTreeMap::new()), mode, owner),
                },
                Thing::OpaqueDir { mode, owner } => (What::Directory(BTreeMap::new()), mode, owner),
                Thing::Symlink(target) => (What::Symlink(target.to_owned()), 0o777, 0),
                Thing::Fifo => (What::Special(FileKind::Fifo, (0, 0)), SPECIAL_MODE, 0),
                Thing::Device => (What::Special(FileKind::Char, DEVICE), SPECIAL_MODE, 0),
            };
            let keeps = self.keeps_links(matches!(object.thing, Thing::File { .. }));
            if keeps && let Some(&id) = known.get(&number) {
                self.entries(parent).insert(name.to_owned(), id);
                continue;
            }
            let mut node = Node::new(what, mode, (owner, owner));
            node.mtime = Some(object.mtime);
            node.lower = true;
            if object.marked {
                let first = plan.names.iter().find(|(_, n)| **n == number).map(|(path, _)| path);
                let first = first.expect("an object of a plan has a name");
                node.xattrs.insert(LOWER_XATTR.to_owned(), first.as_bytes().to_vec());
            }
            node.links = match object.nlink {
                many if many > 1 && !keeps => Links::Broken { lower: many, names: 1 },
                count => Links::Exactly(count),
            };
            let id = self.add(node, parent, name);
            known.insert(number, id);
        }
    }

    /// Resolves the directory of a path whose parents are known to exist.
    fn parent_of<'a>(&self, path: &'a str) -> (Id, &'a str) {
        let mut parts: Vec<&str> = path.split('/').collect();
        let name = parts.pop().expect("split gives at least one part");
        let parent = parts.iter().fold(ROOT, |at, part| self.child(at, part).expect("parents come first in a plan"));
        (parent, name)
    }

    fn add(&mut self, mut node: Node, parent: Id, name: &str) -> Id {
        let id = Id(self.nodes.len());
        if let What::Directory(entries) = &node.what {
            node.parent = Some(parent);
            let below: Vec<Id> = entries.values().copied().collect();
            for child in below {
                if self.nodes[child.0].is_dir() {
                    self.nodes[child.0].parent = Some(id);
                }
            }
        }
        self.nodes.push(node);
        self.entries(parent).insert(name.to_owned(), id);
        id
    }

    pub fn node(&self, id: Id) -> &Node {
        &self.nodes[id.0]
    }

    pub fn node_mut(&mut self, id: Id) -> &mut Node {
        &mut self.nodes[id.0]
    }

    fn entries(&mut self, dir: Id) -> &mut BTreeMap<String, Id> {
        match &mut self.nodes[dir.0].what {
            What::Directory(entries) => entries,
            other => panic!("the model takes {other:?} for a directory"),
        }
    }

    /// The names in a directory; none for anything else.
    pub fn names(&self, dir: Id) -> Vec<(String, Id)> {
        match &self.node(dir).what {
            What::Directory(entries) => entries.iter().map(|(name, id)| (name.clone(), *id)).collect(),
            _ => Vec::new(),
        }
    }

    pub fn child(&self, dir: Id, name: &str) -> Option<Id> {
        match &self.node(dir).what {
            What::Directory(entries) => entries.get(name).copied(),
            _ => None,
        }
    }

    fn is_empty_dir(&self, id: Id) -> bool {
        matches!(&self.node(id).what, What::Directory(entries) if entries.is_empty())
    }

    /// Whether a directory was removed.
    fn is_removed(&self, dir: Id) -> bool {
        dir != ROOT && self.node(dir).is_gone()
    }

    fn is_at_or_above(&self, above: Id, dir: Id) -> bool {
        let mut at = Some(dir);
        while let Some(id) = at {
            if id == above {
                return true;
            }
            at = self.node(id).parent;
        }
        false
    }

    fn changes(&self) -> Verdict {
        Verdict::default().refuse_if(self.rules.read_only, Errno::ROFS)
    }

    fn changes_names_in(&self, dir: Id) -> Verdict {
        self.changes().refuse_if(self.is_removed(dir), Errno::NOENT)
    }

    /// Records that a name in `dir` came or went.
    fn touched(&mut self, dir: Id) {
        self.node_mut(dir).mtime = None;
    }

    pub fn judge_create(&self, dir: Id, name: &str, what: &What) -> Verdict {
        let whiteout = matches!(what, What::Special(FileKind::Char, (0, 0)));
        self.changes_names_in(dir)
            .refuse_if(is_reserved(name), Errno::INVAL)
            .refuse_if(whiteout, Errno::PERM)
            .refuse_if(self.child(dir, name).is_some(), Errno::EXIST)
    }

    /// Makes a file as open(2), mkdir(2), mknod(2) and symlink(2) do.
    pub fn create(&mut self, dir: Id, name: &str, what: What, maker: Maker) -> Id {
        let mut node = Node::new(what, maker.mode & !maker.umask, (maker.uid, maker.gid));
        if let What::Symlink(_) = node.what {
            node.mode = 0o777;
        }
        let parent = self.node(dir);
        if parent.mode & 0o2000 != 0 {
            node.gid = parent.gid;
            if node.is_dir() {
                node.mode |= 0o2000;
            }
        }
        self.touched(dir);
        self.add(node, dir, name)
    }

    pub fn judge_unlink(&self, dir: Id, name: &str) -> Verdict {
        let child = self.child(dir, name);
        self.changes()
            .refuse_if(child.is_none(), Errno::NOENT)
            .refuse_if(child.is_some_and(|id| self.node(id).is_dir()), Errno::ISDIR)
    }

    pub fn judge_rmdir(&self, dir: Id, name: &str) -> Verdict {
        let child = self.child(dir, name);
        self.changes()
            .refuse_if(child.is_none(), Errno::NOENT)
            .refuse_if(child.is_some_and(|id| !self.node(id).is_dir()), Errno::NOTDIR)
            .refuse_if(child.is_some_and(|id| self.node(id).is_dir() && !self.is_empty_dir(id)), Errno::NOTEMPTY)
    }

    /// Takes a name away: unlink(2) and rmdir(2).
    pub fn remove(&mut self, dir: Id, name: &str) {
        if let Some(id) = self.entries(dir).remove(name) {
            self.drop_name(id);
            if self.node(id).is_dir() {
                // What it still held, whiteouts perhaps, went with it.
                self.touched(id);
            }
        }
        self.touched(dir);
    }

    fn drop_name(&mut self, id: Id) {
        let node = self.node_mut(id);
        node.parent = None;
        node.links = match node.links {
            _ if node.is_dir() => Links::Exactly(0),
            Links::Exactly(count) => Links::Exactly(count - 1),
            Links::Broken { lower, names } => Links::Broken { lower, names: names - 1 },
        };
    }

    pub fn judge_link(&self, id: Id, dir: Id, name: &str) -> Verdict {
        let node = self.node(id);
        self.changes_names_in(dir)
            .refuse_if(node.is_dir() || !self.rules.links, Errno::PERM)
            .refuse_if(is_reserved(name), Errno::INVAL)
            .refuse_if(self.child(dir, name).is_some(), Errno::EXIST)
            .refuse_if(!node.is_dir() && node.is_gone(), Errno::NOENT)
    }

    pub fn link(&mut self, id: Id, dir: Id, name: &str) {
        self.entries(dir).insert(name.to_owned(), id);
        let node = self.node_mut(id);
        node.links = match node.links {
            Links::Exactly(count) => Links::Exactly(count + 1),
            Links::Broken { lower, names } => Links::Broken { lower, names: names + 1 },
        };
        self.touched(dir);
    }

    pub fn judge_rename(&self, Rename { from, to, flags }: Rename<'_>) -> Verdict {
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        let (source, target) = (self.child(from.0, from.1), self.child(to.0, to.1));
        let moved_dir = source.filter(|&id| self.node(id).is_dir());
        let target_dir = target.filter(|&id| self.node(id).is_dir());
        let same = source.is_some() && source == target;
        let stuck = |dir: Option<Id>| !self.rules.redirect_dir && dir.is_some_and(|id| self.node(id).lower);
        let mut verdict = self
            .changes_names_in(from.0)
            .refuse_if(self.is_removed(to.0), Errno::NOENT)
            .refuse_if(exchange && flags != RenameFlags::EXCHANGE, Errno::INVAL)
            .refuse_if(exchange && !self.rules.exchanges, Errno::INVAL)
            .refuse_if(is_reserved(to.1), Errno::INVAL)
            .refuse_if(source.is_none(), Errno::NOENT)
            .refuse_if(exchange && target.is_none(), Errno::NOENT)
            .refuse_if(flags.contains(RenameFlags::NOREPLACE) && target.is_some(), Errno::EXIST)
            .refuse_if(moved_dir.is_some_and(|dir| self.is_at_or_above(dir, to.0)), Errno::INVAL)
            .refuse_if(stuck(moved_dir) || exchange && stuck(target_dir), Errno::XDEV);
        let above = target_dir.is_some_and(|dir| self.is_at_or_above(dir, from.0));
        if exchange {
            verdict = verdict.refuse_if(above, Errno::INVAL);
        } else if let (Some(_), Some(target)) = (source, target.filter(|_| !same)) {
            verdict = verdict
                .refuse_if(moved_dir.is_some() && target_dir.is_none(), Errno::NOTDIR)
                .refuse_if(moved_dir.is_none() && target_dir.is_some(), Errno::ISDIR)
                .refuse_if(target_dir.is_some() && !self.is_empty_dir(target), Errno::NOTEMPTY)
                .refuse_if(above, Errno::NOTEMPTY);
        }
        // Two names of one file: nothing is done, so it hardly matters what was checked before.
        verdict.may_succeed = same;
        verdict
    }

    pub fn rename(&mut self, Rename { from, to, flags }: Rename<'_>) {
        let source = self.child(from.0, from.1).expect("a rename that was judged has a source");
        let target = self.child(to.0, to.1);
        if target == Some(source) {
            return;
        }
        self.entries(from.0).remove(from.1);
        self.entries(to.0).insert(to.1.to_owned(), source);
        if self.node(source).is_dir() {
            self.node_mut(source).parent = Some(to.0);
        }
        if let Some(target) = target {
            if flags.contains(RenameFlags::EXCHANGE) {
                self.entries(from.0).insert(from.1.to_owned(), target);
                if self.node(target).is_dir() {
                    self.node_mut(target).parent = Some(from.0);
                }
            } else {
                self.drop_name(target);
                self.touched(target);
            }
        }
        self.touched(from.0);
        self.touched(to.0);
    }

    /// Makes every file that has a name one of a lower layer, in which no file has names that are hidden.
    ///
    /// Where links are not kept, each name of a file is a file of its own from then on.
    pub fn restack(&mut self) {
        let mut names: HashMap<Id, Vec<(Id, String)>> = HashMap::new();
        let mut dirs = vec![ROOT];
        while let Some(dir) = dirs.pop() {
            for (name, child) in self.names(dir) {
                dirs.extend(self.node(child).is_dir().then_some(child));
                names.entry(child).or_default().push((dir, name));
            }
        }
        for (id, names) in names {
            let keeps = self.keeps_links(matches!(self.node(id).what, What::Regular(_)));
            let count = u32::try_from(names.len()).expect("a test makes few names");
            let node = self.node_mut(id);
            node.ino = None;
            node.lower = true;
            node.links =
                if count > 1 && !keeps { Links::Broken { lower: count, names: 1 } } else { Links::Exactly(count) };
            if count > 1 && !keeps {
                for (dir, name) in &names[1..] {
                    let copy = self.node(id).clone();
                    self.add(copy, *dir, name);
                }
            }
        }
        self.node_mut(ROOT).ino = None;
    }

    /// Whether a file with several names came from a lower layer.
    pub fn has_lower_links(&self) -> bool {
        let mut dirs = vec![ROOT];
        while let Some(dir) = dirs.pop() {
            for (_, child) in self.names(dir) {
                let node = self.node(child);
                if node.is_dir() {
                    dirs.push(child);
                } else if node.lower && node.links != Links::Exactly(1) {
                    return true;
                }
            }
        }
        false
    }

    /// Whether the names of a lower file stay linked when one of them is copied up.
    fn keeps_links(&self, regular: bool) -> bool {
        if regular { self.rules.keeps_links } else { self.rules.keeps_special_links }
    }

    /// Reading and writing data: EISDIR, and EINVAL for what has no data.
    pub fn judge_data(&self, id: Id) -> Verdict {
        let node = self.node(id);
        let regular = matches!(node.what, What::Regular(_));
        Verdict::default().refuse_if(node.is_dir(), Errno::ISDIR).refuse_if(!node.is_dir() && !regular, Errno::INVAL)
    }

    pub fn judge_data_change(&self, id: Id) -> Verdict {
        let mut verdict = self.judge_data(id);
        verdict.errors.extend(self.changes().errors);
        verdict
    }

    /// Changes the data; the set-user-id and set-group-id bits go where the caller is not privileged.
    pub fn change_data(&mut self, id: Id, unprivileged: bool, change: impl FnOnce(&mut Vec<u8>)) {
        let node = self.node_mut(id);
        let What::Regular(data) = &mut node.what else { panic!("a change of data that was judged is of a file") };
        change(data);
        node.mtime = None;
        if unprivileged {
            node.drop_privileges();
        }
    }

    pub fn judge_attributes(&self, id: Id, chmod: bool) -> Verdict {
        let symlink = matches!(self.node(id).what, What::Symlink(_));
        self.changes().refuse_if(chmod && symlink, Errno::OPNOTSUPP)
    }

    pub fn judge_set_xattr(&self, id: Id, key: &str, create: bool, replace: bool) -> Verdict {
        let node = self.node(id);
        let exists = node.xattrs.contains_key(key);
        self.changes()
            .refuse_if(!node.holds_user_xattrs() && key.starts_with("user."), Errno::PERM)
            .refuse_if(create && exists, Errno::EXIST)
            .refuse_if(replace && !exists, Errno::NODATA)
    }

    pub fn judge_remove_xattr(&self, id: Id, key: &str) -> Verdict {
        let node = self.node(id);
        self.changes()
            .refuse_if(!node.holds_user_xattrs() && key.starts_with("user."), Errno::PERM)
            .refuse_if(!node.xattrs.contains_key(key), Errno::NODATA)
    }
}

impl Node {
    /// As a write by a plain user does: set-user-id goes, and set-group-id where the group may execute.
    fn drop_privileges(&mut self) {
        self.mode &= !0o4000;
        if self.mode & 0o010 != 0 {
            self.mode &= !0o2000;
        }
    }

    /// As chown(2) has it, for root too; directories keep their bits.
    pub fn change_owner(&mut self, uid: Option<u32>, gid: Option<u32>) {
        self.uid = uid.unwrap_or(self.uid);
        self.gid = gid.unwrap_or(self.gid);
        if !self.is_dir() {
            self.drop_privileges();
        }
    }
}

//! Compares what the union shows with the model.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;

use unionfs_rs::config::{Lacking, XattrNamespace};
use unionfs_rs::union::{Attr, Entry, FileKind, Flow, Looked, NodeId, Timestamp};

use super::act::ROOT_USER;
use super::run::{Outcome, Run};
use super::tree::{Id, Links, Node, ROOT, What};

/// Entries that one answer of readdir has room for.
const ANSWER: usize = 3;

/// What a listing says about an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Listed {
    ino: u64,
    kind: FileKind,
}

impl Run {
    /// Compares the whole tree, and that no two files have one number.
    pub(super) fn check_tree(&mut self) -> Outcome {
        let root =
            self.union().getattr(NodeId::ROOT).map_err(|error| format!("getattr of the root failed: {error}"))?;
        self.check_attr(ROOT, &root).map_err(|error| format!("the root: {error}"))?;
        let mut numbers = HashMap::from([(root.ino, ROOT)]);
        self.check_dir(ROOT, ROOT, "", &mut numbers)?;
        for id in self.held.keys().copied().collect::<Vec<_>>() {
            self.check_file(id).map_err(|error| format!("a file that is held: {error}"))?;
            self.claim_number(id, &mut numbers)?;
        }
        Ok(())
    }

    fn claim_number(&self, id: Id, numbers: &mut HashMap<u64, Id>) -> Outcome {
        let ino = self.tree.node(id).ino.ok_or("a file that was seen has a number")?;
        match numbers.insert(ino, id) {
            Some(other) if other != id => Err(format!("two files have the number {ino}")),
            _ => Ok(()),
        }
    }

    /// Compares a directory and all below it; `parent` and `path` are where it was found.
    fn check_dir(&mut self, dir: Id, parent: Id, path: &str, numbers: &mut HashMap<u64, Id>) -> Outcome {
        let at =
            |error: String| if path.is_empty() { format!("the root: {error}") } else { format!("{path:?}: {error}") };
        let listed = self.list(dir, parent).map_err(at)?;
        self.check_plus(dir, &listed).map_err(at)?;
        for (name, id) in self.tree.names(dir) {
            let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            let at = |error: String| format!("{path:?}: {error}");
            let Some(entry) = self.peek(dir, &name).map_err(at)? else {
                return Err(at("is in the model alone".into()));
            };
            let seen = self.comparable(id, Listed { ino: entry.attr.ino, kind: entry.attr.kind });
            match listed.get(&name) {
                Some(item) if *item == seen => {}
                item => return Err(at(format!("is listed as {item:?} and looked up as {seen:?}"))),
            }
            self.hold(id, &entry).map_err(at)?;
            self.claim_number(id, numbers).map_err(at)?;
            let checked = self.check_file(id).map_err(at);
            let checked = checked.and_then(|()| {
                if self.tree.node(id).is_dir() { self.check_dir(id, dir, &path, numbers) } else { Ok(()) }
            });
            self.give_back(id, 1)?;
            checked?;
        }
        Ok(())
    }

    /// Lists a directory, and compares the names with the model's.
    fn list(&self, dir: Id, parent: Id) -> Outcome<BTreeMap<String, Listed>> {
        let mut listed = BTreeMap::new();
        let mut twice = None;
        let read = self.union().read_dir(self.node_of(dir)?, 0, |entry| {
            let name = entry.name.to_string_lossy().into_owned();
            if listed.insert(name.clone(), Listed { ino: entry.ino, kind: entry.kind }).is_some() {
                twice = Some(name);
            }
            Flow::More
        });
        read.map_err(|error| format!("read_dir failed: {error}"))?;
        if let Some(name) = twice {
            return Err(format!("read_dir lists {name:?} twice"));
        }
        for (dot, id) in [(".", dir), ("..", parent)] {
            let expected = self.tree.node(id).ino.map(|ino| Listed { ino, kind: FileKind::Directory });
            match listed.remove(dot) {
                shown if shown == expected => {}
                shown => return Err(format!("{dot:?} is listed as {shown:?} and should be {expected:?}")),
            }
        }
        let names: Vec<String> = self.tree.names(dir).into_iter().map(|(name, _)| name).collect();
        let shown: Vec<&String> = listed.keys().collect();
        if shown != names.iter().collect::<Vec<_>>() {
            return Err(format!("read_dir lists {shown:?} and should list {names:?}"));
        }
        let comparable = self.tree.names(dir).into_iter().filter_map(|(name, id)| {
            let item = listed.get(&name).copied()?;
            Some((name, self.comparable(id, item)))
        });
        Ok(comparable.collect())
    }

    /// Leaves out the number of a file whose number may have changed since the listing was made.
    fn comparable(&self, id: Id, item: Listed) -> Listed {
        if self.has_constant_number(id) { item } else { Listed { ino: 0, ..item } }
    }

    /// Lists a directory with attributes, a few entries at a time, and compares that with `listed`.
    fn check_plus(&mut self, dir: Id, listed: &BTreeMap<String, Listed>) -> Outcome {
        if listed.len().is_multiple_of(2) {
            // Says nothing itself: what it has read shows in what is listed after.
            self.union().prefetch(self.node_of(dir)?, || true).map_err(|error| format!("prefetch failed: {error}"))?;
        }
        let mut cookie = 0;
        let mut seen = BTreeMap::new();
        loop {
            let mut answer: Vec<(String, Listed, Entry)> = Vec::new();
            let mut room = ANSWER;
            let mut broken = None;
            let read = self.union().read_dir_plus(self.node_of(dir)?, cookie, |item, entry| {
                if room == 0 {
                    return Flow::Full;
                }
                room -= 1;
                cookie = item.cookie;
                match entry {
                    Looked::Dots => {}
                    Looked::Up(entry) => {
                        let name = item.name.to_string_lossy().into_owned();
                        answer.push((name, Listed { ino: item.ino, kind: item.kind }, *entry));
                    }
                    Looked::Broken => broken = Some(item.name.to_owned()),
                }
                Flow::More
            });
            read.map_err(|error| format!("read_dir_plus failed: {error}"))?;
            if let Some(name) = broken {
                return Err(format!("read_dir_plus cannot look {name:?} up"));
            }
            for (name, item, entry) in answer {
                let id = self.tree.child(dir, &name).ok_or_else(|| format!("read_dir_plus lists {name:?}"))?;
                let held = self.hold(id, &entry).map_err(|error| format!("{name:?} of read_dir_plus: {error}"));
                self.give_back(id, 1)?;
                held?;
                if seen.insert(name.clone(), self.comparable(id, item)).is_some() {
                    return Err(format!("read_dir_plus lists {name:?} twice"));
                }
            }
            if room > 0 {
                break;
            }
        }
        if seen == *listed { Ok(()) } else { Err(format!("read_dir lists {listed:?} and read_dir_plus {seen:?}")) }
    }

    /// Looks a name up and lets it go again; none where it rightly is not there.
    fn peek(&self, dir: Id, name: &str) -> Outcome<Option<Entry>> {
        let found = self.union().lookup(self.node_of(dir)?, super::run::name_of(name)?);
        let expected = self.tree.child(dir, name);
        match (found, expected) {
            (Ok(entry), Some(id)) => {
                self.union().forget(entry.id, 1);
                match self.held.get(&id) {
                    Some(held) if held.node != entry.id => {
                        Err(format!("is held as {:?} and was found as {:?}: one file, two inodes", held.node, entry.id))
                    }
                    _ => self.look_again(dir, name),
                }
            }
            (Ok(entry), None) => {
                self.union().forget(entry.id, 1);
                Err(format!("{name:?} is found, and should not be there: {:?}", entry.attr))
            }
            (Err(error), Some(_)) => Err(format!("lookup of {name:?} failed: {error}")),
            (Err(error), None) if error.errno() == rustix::io::Errno::NOENT => Ok(None),
            (Err(error), None) => Err(format!("lookup of {name:?}, which is not there, failed: {error}")),
        }
    }

    /// Looks a name up for the caller to hold: after a forget, so that the union finds it from nothing.
    fn look_again(&self, dir: Id, name: &str) -> Outcome<Option<Entry>> {
        let found = self.union().lookup(self.node_of(dir)?, super::run::name_of(name)?);
        found.map(Some).map_err(|error| format!("the second lookup of {name:?} failed: {error}"))
    }

    /// Compares what a name leads to with the model.
    pub(super) fn check_name(&mut self, dir: Id, name: &str) -> Outcome {
        let Some(entry) = self.peek(dir, name)? else { return Ok(()) };
        let id = self.tree.child(dir, name).ok_or("what was found is in the model")?;
        let held = self.hold(id, &entry).map_err(|error| format!("{name:?}: {error}"));
        self.give_back(id, 1)?;
        held
    }

    /// Compares the attributes of every file that is held.
    pub(super) fn check_held(&mut self) -> Outcome {
        for id in self.held.keys().copied().collect::<Vec<_>>() {
            self.check_attributes(id).map_err(|error| format!("a file that is held: {error}"))?;
        }
        Ok(())
    }

    /// Compares attributes with the model's, and notes the number of a file that is seen for the first time.
    pub(super) fn check_attr(&mut self, id: Id, attr: &Attr) -> Outcome {
        // One more than held by the caller of `hold`, which counts first.
        let constant = self.has_constant_number(id) || self.held.get(&id).is_some_and(|held| held.lookups > 1);
        let node = self.tree.node_mut(id);
        let known = node.ino;
        if known.is_none() || !constant {
            node.ino = Some(attr.ino);
        } else if known != Some(attr.ino) {
            return Err(format!("st_ino was {:?} and is {}", known.unwrap_or_default(), attr.ino));
        }
        let (rdev, size) = match &node.what {
            What::Regular(data) => ((0, 0), data.len()),
            What::Symlink(target) => ((0, 0), target.len()),
            What::Special(_, rdev) => (*rdev, 0),
            // The size of a directory is the file system's affair.
            What::Directory(_) => ((0, 0), attr.size as usize),
        };
        let expected = (node.kind(), node.mode, node.uid, node.gid, rdev, size as u64);
        let got = (attr.kind, attr.mode, attr.uid, attr.gid, attr.rdev, attr.size);
        if got != expected {
            return Err(format!(
                "kind, mode, owner, group, device and size are {got:?} and should be {expected:?} (mode {:o}, {:o})",
                got.1, expected.1
            ));
        }
        check_links(node, attr.nlink)?;
        match node.mtime {
            Some(secs) if attr.mtime != (Timestamp { secs, nanos: 5 }) => {
                Err(format!("mtime is {:?} and should be {secs} s and 5 ns", attr.mtime))
            }
            _ => Ok(()),
        }
    }

    /// Whether the number is the same for the life of the file, and not only for as long as the file is held.
    ///
    /// It is not where nothing leads from the copy to the lower file: `user.` xattrs, which say so, exist on files
    /// and directories alone; and a link that is broken by its copy-up cannot have the number that the others have.
    pub(super) fn has_constant_number(&self, id: Id) -> bool {
        let node = self.tree.node(id);
        let user = self.variant.namespace == XattrNamespace::User;
        let lacking = self.variant.lacking.contains(Lacking::XATTRS);
        let unnoted = node.lower && (user && !node.holds_user_xattrs() || lacking && !node.is_dir());
        !unnoted && !matches!(node.links, Links::Broken { .. })
    }

    fn check_attributes(&mut self, id: Id) -> Outcome {
        let attr = self.union().getattr(self.node_of(id)?).map_err(|error| format!("getattr failed: {error}"))?;
        self.check_attr(id, &attr)
    }

    /// Compares a file that is held: attributes, contents and xattrs.
    pub(super) fn check_file(&mut self, id: Id) -> Outcome {
        self.check_attributes(id)?;
        let node = self.node_of(id)?;
        match &self.tree.node(id).what {
            What::Regular(data) => {
                // One byte more, to see that there is none.
                let mut buffer = vec![0xee; data.len() + 1];
                let read = self.union().read(node, 0, &mut buffer).map_err(|error| format!("read failed: {error}"))?;
                if buffer[..read] != data[..] {
                    return Err(format!("the contents are {} and should be {}", brief(&buffer[..read]), brief(data)));
                }
            }
            What::Symlink(target) => {
                let shown = self.union().readlink(node).map_err(|error| format!("readlink failed: {error}"))?;
                if shown != OsStr::new(target) {
                    return Err(format!("the target is {shown:?} and should be {target:?}"));
                }
            }
            What::Directory(_) if id != ROOT && self.tree.node(id).is_gone() => self.check_removed(id)?,
            What::Directory(_) | What::Special(..) => {}
        }
        self.check_xattrs(id, node)
    }

    /// Checks that a removed directory shows nothing of what was below it.
    fn check_removed(&self, id: Id) -> Outcome {
        let node = self.node_of(id)?;
        let mut shown = Vec::new();
        let read = self.union().read_dir(node, 0, |entry| {
            shown.push(entry.name.to_owned());
            Flow::More
        });
        read.map_err(|error| format!("a removed directory cannot be listed: {error}"))?;
        shown.retain(|name| name != "." && name != "..");
        if !shown.is_empty() {
            return Err(format!("a removed directory lists {shown:?}"));
        }
        for name in super::strategy::NAMES {
            self.peek(id, name).map_err(|error| format!("in a removed directory: {error}"))?;
        }
        Ok(())
    }

    fn check_xattrs(&self, id: Id, node: NodeId) -> Outcome {
        let names = self.union().listxattr(node, ROOT_USER).map_err(|error| format!("listxattr failed: {error}"))?;
        let mut shown = BTreeMap::new();
        for name in names {
            let value =
                self.union().getxattr(node, &name).map_err(|error| format!("getxattr {name:?} failed: {error}"))?;
            shown.insert(name.to_string_lossy().into_owned(), value);
        }
        let expected = &self.tree.node(id).xattrs;
        if shown == *expected { Ok(()) } else { Err(format!("the xattrs are {shown:?} and should be {expected:?}")) }
    }
}

fn check_links(node: &Node, nlink: u32) -> Outcome {
    let right = match node.links {
        // That of a directory counts its subdirectories, or does not where it is merged.
        Links::Exactly(count) if node.is_dir() => count > 0 || nlink == 0,
        Links::Exactly(count) => nlink == count,
        Links::Broken { lower, names } => nlink == lower || nlink == names,
    };
    if right { Ok(()) } else { Err(format!("nlink is {nlink} and should be {:?}", node.links)) }
}

/// Describes contents by their runs of equal bytes.
fn brief(data: &[u8]) -> String {
    let runs: Vec<String> =
        data.chunk_by(|a, b| a == b).map(|run| format!("{}×{:?}", run.len(), char::from(run[0]))).collect();
    format!("{} bytes [{}]", data.len(), runs.join(" "))
}

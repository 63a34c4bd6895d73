//! Runs a sequence on the union and on the model, and compares what they say.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;

use rustix::io::Errno;
use unionfs_rs::error::Error;
use unionfs_rs::union::{Entry, Fh, Name, NodeId, Union};

use super::layers::{Layer, Plan, ROOT_MTIME};
use super::op::{At, End, Op};
use super::stage::{Stage, Theatre, Variant};
use super::tree::{Id, ROOT, Tree, Verdict};

/// What a sequence ends with: nothing, or what differed.
pub type Outcome<T = ()> = Result<T, String>;

/// A sequence with its layers, the topmost first.
#[derive(Clone, Debug)]
pub struct Script {
    pub lowers: Vec<Layer>,
    /// Whether every lookup of an operation is given back at its end, as under memory pressure.
    pub forgetful: bool,
    pub ops: Vec<Op>,
}

/// Operations between two comparisons of the whole tree.
const STRIDE: usize = 4;

/// A file that the union was asked about and has not been told to forget.
#[derive(Debug)]
pub(super) struct Held {
    pub node: NodeId,
    pub lookups: u64,
}

/// An open handle.
#[derive(Debug)]
pub(super) struct Opened {
    pub fh: Fh,
    pub id: Id,
    pub writes: bool,
}

/// A directory that is being listed.
#[derive(Debug)]
pub(super) struct Listing {
    pub dir: Id,
    pub cookie: u64,
    pub seen: Vec<String>,
    /// Names that were there all the time, with the same file.
    pub stayed: BTreeMap<String, Id>,
    /// Names that were there at some time.
    pub ever: BTreeSet<String>,
}

/// A sequence that is being run.
pub struct Run {
    /// None only while it is replaced.
    union: Option<Union>,
    pub(super) tree: Tree,
    pub(super) held: BTreeMap<Id, Held>,
    stage: Stage,
    pub(super) variant: Variant,
    pub(super) handles: Vec<Opened>,
    pub(super) listings: Vec<Listing>,
    /// Lookups that the operation made.
    borrowed: Vec<Id>,
    forgetful: bool,
    /// Operations that changed something, for the proof that sequences are worth their time.
    pub changes: usize,
}

/// Runs a sequence. Errors: what differed, after which operation. Returns how many operations changed something.
pub fn play(theatre: &Theatre, variant: Variant, script: &Script) -> Outcome<usize> {
    let plans: Vec<Plan> = script.lowers.iter().enumerate().map(|(number, layer)| layer.plan(number)).collect();
    let stage = Stage::set(theatre, variant, &plans);
    let mut run = Run {
        union: Some(stage.build()?),
        tree: Tree::merge(&plans, variant.rules()),
        held: BTreeMap::new(),
        stage,
        variant,
        handles: Vec::new(),
        listings: Vec::new(),
        borrowed: Vec::new(),
        forgetful: script.forgetful,
        changes: 0,
    };
    run.tree.rules.exchanges = run.stage.exchanges();
    run.check_tree().map_err(|error| format!("before the first operation: {error}"))?;
    for (number, op) in script.ops.iter().enumerate() {
        let done = run.step(op).and_then(|()| if number % STRIDE == STRIDE - 1 { run.check_tree() } else { Ok(()) });
        done.map_err(|error| format!("operation {number}, {op:?}: {error}"))?;
    }
    run.finish().map_err(|error| format!("after the last operation: {error}"))
}

pub(super) fn name_of(name: &str) -> Outcome<Name<'_>> {
    Name::new(OsStr::new(name)).map_err(|errno| format!("{name:?} is no name: {errno}"))
}

/// Compares how an operation ended with how it may end; returns what it gave, if it succeeded as it should.
pub(super) fn settle<T>(what: &str, got: Result<T, Error>, verdict: &Verdict) -> Outcome<Option<T>> {
    match got {
        Ok(value) if verdict.errors.is_empty() => Ok(Some(value)),
        Ok(_) if verdict.may_succeed => Ok(None),
        Ok(_) => Err(format!("{what} succeeded, and should have failed with {:?}", verdict.errors)),
        Err(error) if verdict.errors.contains(&error.errno()) => Ok(None),
        Err(error) if verdict.errors.is_empty() => Err(format!("{what} failed: {error}")),
        Err(error) => Err(format!("{what} failed with {error}, and should have with {:?}", verdict.errors)),
    }
}

impl Run {
    pub(super) fn union(&self) -> &Union {
        self.union.as_ref().expect("there is a union but while one replaces another")
    }

    fn step(&mut self, op: &Op) -> Outcome {
        self.apply(op)?;
        if self.forgetful {
            while let Some(id) = self.borrowed.pop() {
                self.give_back(id, 1)?;
            }
        }
        self.borrowed.clear();
        self.follow_listings();
        self.check_held()
    }

    fn follow_listings(&mut self) {
        for listing in &mut self.listings {
            let now: BTreeMap<String, Id> = self.tree.names(listing.dir).into_iter().collect();
            listing.stayed.retain(|name, id| now.get(name) == Some(id));
            listing.ever.extend(now.into_keys());
        }
    }

    /// Looks `name` up in a directory that is held (or the root), and holds what is found.
    pub(super) fn look_up(&mut self, dir: Id, name: &str) -> Outcome<Option<Id>> {
        let node = self.node_of(dir)?;
        let expected = self.tree.child(dir, name);
        let verdict = Verdict::default()
            .refuse_if(!self.tree.node(dir).is_dir(), Errno::NOTDIR)
            .refuse_if(self.tree.node(dir).is_dir() && expected.is_none(), Errno::NOENT);
        let found = settle(&format!("lookup of {name:?}"), self.union().lookup(node, name_of(name)?), &verdict)?;
        let (Some(entry), Some(id)) = (found, expected) else { return Ok(None) };
        self.borrow(id, &entry).map_err(|error| format!("{name:?}: {error}"))?;
        Ok(Some(id))
    }

    /// Counts a lookup that the end of the operation may give back.
    pub(super) fn borrow(&mut self, id: Id, entry: &Entry) -> Outcome {
        self.borrowed.push(id);
        self.hold(id, entry)
    }

    /// Counts a lookup, and checks that the file goes by the number that it is known by.
    pub(super) fn hold(&mut self, id: Id, entry: &Entry) -> Outcome {
        let held = self.held.entry(id).or_insert(Held { node: entry.id, lookups: 0 });
        held.lookups += 1;
        if held.node != entry.id {
            return Err(format!("is held as {:?} and was found as {:?}: one file, two inodes", held.node, entry.id));
        }
        self.check_attr(id, &entry.attr)
    }

    /// Gives lookups back.
    pub(super) fn give_back(&mut self, id: Id, lookups: u64) -> Outcome {
        let held = self.held.get_mut(&id).ok_or("the test gave back what it does not hold")?;
        held.lookups -= lookups;
        let (node, left) = (held.node, held.lookups);
        if left == 0 {
            self.held.remove(&id);
        }
        self.union().forget(node, lookups);
        Ok(())
    }

    /// Takes the lookups of the operation so far, to be given back later than at its end.
    pub(super) fn keep(&mut self, id: Id) {
        if let Some(at) = self.borrowed.iter().rposition(|borrowed| *borrowed == id) {
            self.borrowed.remove(at);
        }
    }

    pub(super) fn node_of(&self, id: Id) -> Outcome<NodeId> {
        if id == ROOT {
            return Ok(NodeId::ROOT);
        }
        self.held.get(&id).map(|held| held.node).ok_or_else(|| "the test uses what it does not hold".to_owned())
    }

    /// Resolves a path to the directory and the last name; none where the directory is not there.
    pub(super) fn parent<'a>(&mut self, path: &'a str) -> Outcome<Option<(Id, &'a str)>> {
        let mut parts: Vec<&str> = path.split('/').collect();
        let name = parts.pop().unwrap_or_default();
        let mut at = ROOT;
        for part in parts {
            match self.look_up(at, part)? {
                Some(id) => at = id,
                None => return Ok(None),
            }
        }
        if !self.tree.node(at).is_dir() {
            // Looking up in a file is an error by itself; what changes names in one is the kernel's to refuse.
            self.look_up(at, name)?;
            return Ok(None);
        }
        Ok(Some((at, name)))
    }

    /// Resolves what an operation is about; none where it is not there.
    pub(super) fn target(&mut self, at: &At) -> Outcome<Option<Id>> {
        match at {
            At::Path(path) => match self.parent(path)? {
                Some((dir, name)) => self.look_up(dir, name),
                None => Ok(None),
            },
            At::Held(index) => Ok(self.nth_held(*index)),
        }
    }

    pub(super) fn nth_held(&self, index: usize) -> Option<Id> {
        let count = self.held.len();
        self.held.keys().nth(index.checked_rem(count)?).copied()
    }

    /// Lookups of a file that no open handle or listing needs.
    pub(super) fn spare(&self, id: Id) -> u64 {
        let needed = self.handles.iter().any(|open| open.id == id) || self.listings.iter().any(|l| l.dir == id);
        let lookups = self.held.get(&id).map_or(0, |held| held.lookups);
        if needed { lookups.saturating_sub(1) } else { lookups }
    }

    pub(super) fn forget_all(&mut self) -> Outcome {
        let ids: Vec<Id> = self.held.keys().copied().collect();
        // Children and parents in the order of their numbers, which is neither top down nor bottom up.
        for id in ids {
            let lookups = self.spare(id);
            if lookups > 0 {
                self.give_back(id, lookups)?;
            }
        }
        self.borrowed.clear();
        Ok(())
    }

    /// Lets everything go and checks that nothing is left of it.
    fn let_go(&mut self) -> Outcome {
        self.listings.clear();
        for open in std::mem::take(&mut self.handles) {
            self.union().close(open.fh);
        }
        self.forget_all()?;
        let usage = self.union().usage();
        if (usage.inodes, usage.handles, usage.files) != (1, 0, 0) {
            return Err(format!("everything is forgotten, and there is left {usage:?}"));
        }
        Ok(())
    }

    pub(super) fn remount(&mut self, end: End) -> Outcome {
        if self.variant.read_only && end == End::Restack {
            return Ok(());
        }
        // The index, which knows about names that were not copied up yet, does not come along.
        let end = if end == End::Restack && self.tree.has_lower_links() { End::Clean } else { end };
        // The mark that a volatile mount leaves is there to refuse what follows a crash.
        let end = if self.variant.volatile && end == End::Crash { End::Clean } else { end };
        self.check_tree()?;
        self.let_go()?;
        if end != End::Crash {
            self.end()?;
        }
        self.replace_union(end == End::Restack)?;
        if end == End::Restack {
            self.tree.restack();
            self.tree.node_mut(ROOT).mtime = Some(ROOT_MTIME);
        }
        self.check_tree().map_err(|error| format!("after the remount: {error}"))
    }

    fn end(&mut self) -> Outcome {
        self.union().end().map_err(|error| format!("the union cannot be ended: {error}"))?;
        self.stage.check_work_is_empty()?;
        self.stage.check_lowers();
        Ok(())
    }

    /// Builds the union again. The one before has to be gone by then, because it holds the lock of the workdir.
    fn replace_union(&mut self, restack: bool) -> Outcome {
        drop(self.union.take());
        if restack {
            self.stage.restack();
        }
        self.union = Some(self.stage.build()?);
        self.tree.rules.exchanges = self.stage.exchanges();
        Ok(())
    }

    fn finish(mut self) -> Outcome<usize> {
        self.remount(End::Clean)?;
        self.let_go()?;
        self.end()?;
        Ok(self.changes)
    }
}

//! The inodes that a caller refers to, by number.
//!
//! An inode is here while the caller holds lookups on it, and as long as anything else that is here has it
//! as its parent: there is one object for one file at any time, and a parent's name is known while a child's is.

use std::collections::HashMap;
use std::sync::Arc;

use hashbrown::HashTable;

use super::inode::{Inode, NodeId};
use crate::sys::sync::RwLock;

/// How many parts the numbers are in, so that few wait for each other.
const SHARDS: usize = 32;

/// A number that is not the first one of its inode.
struct Node {
    inode: Arc<Inode>,
    lookups: u64,
}

/// The inodes of a part of the numbers.
#[derive(Default)]
struct Shard {
    /// Inodes by their first number, which they know themselves, as they do its lookups.
    first: HashTable<Arc<Inode>>,
    /// Inodes by any other: the root, and files that have parted or have an alias.
    others: HashMap<u64, Node>,
}

impl Shard {
    fn get(&self, number: u64) -> Option<&Arc<Inode>> {
        let first = self.first.find(hash(number), |inode| inode.ino.0 == number);
        first.or_else(|| self.others.get(&number).map(|node| &node.inode))
    }

    fn lookups(&self, number: u64) -> u64 {
        match self.first.find(hash(number), |inode| inode.ino.0 == number) {
            Some(inode) => inode.lookups(),
            None => self.others.get(&number).map_or(0, |node| node.lookups),
        }
    }

    /// Changes the count of `number`; returns what it is then, 0 for a number that nobody has.
    fn change_lookups(&mut self, number: u64, change: impl FnOnce(u64) -> u64) -> u64 {
        if let Some(inode) = self.first.find(hash(number), |inode| inode.ino.0 == number) {
            inode.set_lookups(change(inode.lookups()));
            inode.lookups()
        } else {
            self.others.get_mut(&number).map_or(0, |node| {
                node.lookups = change(node.lookups);
                node.lookups
            })
        }
    }

    /// Gives `number`, which nobody has, to `inode`.
    fn insert(&mut self, number: u64, inode: Arc<Inode>, lookups: u64) {
        if inode.ino.0 == number {
            inode.set_lookups(lookups);
            self.first.insert_unique(hash(number), inode, |inode| hash(inode.ino.0));
        } else {
            self.others.insert(number, Node { inode, lookups });
        }
    }

    fn remove(&mut self, number: u64) -> Option<Arc<Inode>> {
        match self.first.find_entry(hash(number), |inode| inode.ino.0 == number) {
            Ok(entry) => Some(entry.remove().0),
            Err(_) => self.others.remove(&number).map(|node| node.inode),
        }
    }

    fn remove_if(&mut self, number: u64, is_it: impl Fn(&Arc<Inode>) -> bool) -> Option<Arc<Inode>> {
        if self.get(number).is_some_and(is_it) { self.remove(number) } else { None }
    }
}

/// Spreads numbers, many of which follow each other, over all bits.
fn hash(number: u64) -> u64 {
    let mixed = (number ^ number >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 29
}

/// Inodes by number. The shards are rank 5 (leaf): no syscall and no other lock but an inode's place while held.
pub struct Table {
    shards: Box<[RwLock<Shard>]>,
}

/// What became of an attempt to give a number to an inode.
pub enum Interned {
    /// It has the number now, or the same file already had it; the lookups are counted on this id.
    Here(Arc<Inode>, NodeId),
    /// Another file has the number.
    Taken,
}

impl Table {
    /// Makes a table that holds the root for good.
    pub fn new(root: Arc<Inode>) -> Self {
        let table = Self { shards: (0..SHARDS).map(|_| RwLock::default()).collect() };
        root.enter();
        table.shard(NodeId::ROOT.0).write().insert(NodeId::ROOT.0, root, 1);
        table
    }

    fn shard(&self, number: u64) -> &RwLock<Shard> {
        // Other bits than a shard's own table goes by.
        &self.shards[(hash(number) >> 32) as usize % SHARDS]
    }

    /// Gives up the space of inodes that are not known any more.
    pub fn shrink(&self) {
        for shard in &self.shards {
            let mut shard = shard.write();
            shard.first.shrink_to_fit(|inode| hash(inode.ino.0));
            shard.others.shrink_to_fit();
        }
    }

    /// Returns the inode known by `id`.
    pub fn get(&self, id: NodeId) -> Option<Arc<Inode>> {
        self.shard(id.0).read().get(id.0).cloned()
    }

    /// Returns how many inodes are known.
    #[allow(clippy::len_without_is_empty)] // The root is always there.
    pub fn len(&self) -> usize {
        let count = |shard: &RwLock<Shard>| {
            let shard = shard.read();
            shard.first.len() + shard.others.len()
        };
        self.shards.iter().map(count).sum()
    }

    /// Gives `number` to the inode that `make` makes, unless the file is known, and adds `lookups` to its count.
    ///
    /// `same` says whether a known inode is the file that was found.
    pub fn intern(
        &self,
        number: u64,
        lookups: u64,
        same: impl Fn(&Inode) -> bool,
        make: impl FnOnce() -> Arc<Inode>,
    ) -> Interned {
        let renamed = {
            let mut shard = self.shard(number).write();
            let Some(known) = shard.get(number) else {
                let inode = make();
                inode.enter();
                shard.insert(number, inode.clone(), lookups);
                return Interned::Here(inode, NodeId(number));
            };
            if !same(known) {
                return Interned::Taken;
            }
            let (inode, id) = (known.clone(), known.id().0);
            if id == number {
                shard.change_lookups(id, |before| before + lookups);
                return Interned::Here(inode, NodeId(id));
            }
            id
        };
        // The file goes by another number since it parted from its readers.
        let mut shard = self.shard(renamed).write();
        match shard.get(renamed).filter(|inode| same(inode)).cloned() {
            Some(inode) => {
                shard.change_lookups(renamed, |before| before + lookups);
                Interned::Here(inode, NodeId(renamed))
            }
            None => Interned::Taken,
        }
    }

    /// Makes `inode` go by `id` from now on, if it still goes by `old`; whoever knows it by that goes on doing so.
    pub fn part(&self, inode: &Arc<Inode>, old: NodeId, id: NodeId) {
        let mut shard = self.shard(id.0).write();
        // Under the lock, so that whoever learns the number finds the inode.
        if shard.get(id.0).is_none() && inode.change_id(old, id) {
            shard.insert(id.0, inode.clone(), 0);
        }
    }

    /// Returns whether readers hold lookups on the first number of a file that goes by `id` since it parted.
    fn has_old_readers(&self, id: u64, number: u64) -> bool {
        if id == number {
            return false;
        }
        let shard = self.shard(number).read();
        shard.get(number).is_some_and(|first| first.id().0 == id) && shard.lookups(number) > 0
    }

    /// Lets `inode` be found by `number` besides its own, until [`Table::forget_alias`].
    pub fn alias(&self, number: u64, inode: &Arc<Inode>) {
        let mut shard = self.shard(number).write();
        if shard.get(number).is_none() {
            shard.insert(number, inode.clone(), 0);
        }
    }

    /// Ends an alias of `inode`.
    pub fn forget_alias(&self, number: u64, inode: &Inode) {
        let removed = self.shard(number).write().remove_if(number, |known| std::ptr::eq(&**known, inode));
        drop(removed);
    }

    /// Adds a lookup to the count of an inode that is known; returns the id that it is counted on.
    pub fn count(&self, inode: &Inode) -> NodeId {
        let id = inode.id();
        self.shard(id.0).write().change_lookups(id.0, |before| before + 1);
        id
    }

    /// Takes `lookups` from the count of `id`, and calls `gone` for each inode that nothing refers to any more.
    pub fn forget(&self, id: NodeId, lookups: u64, gone: impl Fn(&Inode)) {
        let mut next = Some((id.0, lookups));
        while let Some((id, lookups)) = next.take() {
            if id == NodeId::ROOT.0 {
                return;
            }
            let Some(inode) = self.get(NodeId(id)) else { return };
            let number = inode.ino.0;
            let is_other = |shard: &Shard| shard.get(id).is_none_or(|known| !Arc::ptr_eq(known, &inode));
            let mut shard = self.shard(id).write();
            // Others may have forgotten it meanwhile, and another may have the number.
            if is_other(&shard) || shard.change_lookups(id, |before| before.saturating_sub(lookups)) > 0 {
                return;
            }
            if id != number {
                drop(shard);
                // Only now: the last reader, who goes at the same moment, looks at this count after its own is zero.
                if self.has_old_readers(id, number) {
                    return;
                }
                shard = self.shard(id).write();
                if is_other(&shard) || shard.lookups(id) > 0 {
                    return;
                }
            }
            // Under the lock: who makes a file part holds a lookup on the number that it goes by.
            let current = inode.id().0;
            if current != id {
                // Readers of a file that parted are gone. Its first number stays with it, others go.
                if id != number {
                    let parted = shard.remove(id);
                    drop(shard);
                    drop(parted);
                }
                next = Some((current, 0));
                continue;
            }
            if inode.has_children() {
                return;
            }
            let removed = shard.remove(id);
            drop(shard);
            drop(removed);
            if id != number {
                let first = self.shard(number).write().remove_if(number, |first| Arc::ptr_eq(first, &inode));
                drop(first);
            }
            gone(&inode);
            // The parent stayed for this child; it goes too if nothing else needs it.
            next = inode.leave().map(|parent| (parent.id().0, 0));
        }
    }
}

/// The table under every order of its steps: run by `scripts/conformance models`.
///
/// They fail, as they should, where `forget` gives the lock up between the count and the removal, or does not look at the
/// children, the parent or the readers that a file parted from, and where `intern` returns a file that goes by another number
/// without a lookup.
#[cfg(test)]
#[cfg(loom)]
mod loom_models {
    use super::super::inode::{Dir, Ino, Parts, Place, Real};
    use super::*;
    use crate::layer::attr::FileKind;
    use crate::layer::dir::Serial;
    use crate::sys::sync::explore;

    const DIRECTORY: u64 = 10;
    const FILE: u64 = 5;
    const ALIAS: u64 = 77;
    const PARTED: u64 = 99;

    fn make(number: u64, kind: FileKind, parent: Option<Arc<Inode>>) -> Arc<Inode> {
        let place = Place {
            parent,
            name: std::ffi::OsStr::new("name").into(),
            real: Real::Upper,
            unlinked: false,
            resident: false,
        };
        let dir = (kind == FileKind::Directory).then(|| Dir::new(Box::default(), false, false));
        let parts =
            Parts { ino: Ino(number), kind, place, from_below: false, upper_ino: number, nlink_delta: None, dir };
        Inode::new(NodeId(number), parts)
    }

    /// A table, and what it said that is gone.
    struct World {
        table: Table,
        root: Arc<Inode>,
        gone: std::sync::Mutex<Vec<Serial>>,
    }

    impl World {
        fn new() -> Arc<Self> {
            let root = make(NodeId::ROOT.0, FileKind::Directory, None);
            Arc::new(Self { table: Table::new(root.clone()), root, gone: std::sync::Mutex::default() })
        }

        /// Looks the file up that has `number`; what is found stays in the table until it is forgotten.
        fn lookup_in(&self, parent: &Arc<Inode>, number: u64, kind: FileKind) -> Option<(Arc<Inode>, NodeId)> {
            match self.table.intern(number, 1, |_| true, || make(number, kind, Some(parent.clone()))) {
                Interned::Here(inode, id) => {
                    self.assert_holds(&inode, id);
                    Some((inode, id))
                }
                Interned::Taken => None,
            }
        }

        fn lookup(&self, number: u64) -> Option<(Arc<Inode>, NodeId)> {
            self.lookup_in(&self.root, number, FileKind::Regular)
        }

        fn assert_holds(&self, inode: &Arc<Inode>, id: NodeId) {
            let known = self.table.get(id);
            assert!(known.is_some_and(|known| Arc::ptr_eq(&known, inode)), "a lookup is held, and the inode not found");
            assert!(!self.is_gone(inode), "a lookup is held of an inode that was released");
        }

        fn forget(&self, id: NodeId) {
            self.table.forget(id, 1, |inode| {
                self.gone.lock().unwrap().push(inode.serial);
                self.table.forget_alias(ALIAS, inode);
            });
        }

        fn is_gone(&self, inode: &Inode) -> bool {
            self.gone.lock().unwrap().contains(&inode.serial)
        }

        /// Nothing is left but the root, and each of `inodes` was released once.
        fn assert_empty(&self, inodes: &[&Arc<Inode>]) {
            assert_eq!(self.table.len(), 1, "inodes are left that nobody holds");
            for inode in inodes {
                let times = self.gone.lock().unwrap().iter().filter(|gone| **gone == inode.serial).count();
                assert_eq!(times, 1, "an inode was released so often");
            }
        }
    }

    fn spawn<T: 'static>(world: &Arc<World>, run: impl FnOnce(&World) -> T + 'static) -> loom::thread::JoinHandle<T> {
        let world = world.clone();
        loom::thread::spawn(move || run(&world))
    }

    #[test]
    fn a_lookup_finds_what_is_forgotten_at_the_moment_or_makes_it_anew() {
        explore(|| {
            let world = World::new();
            let (old, id) = world.lookup(FILE).unwrap();
            let forget = spawn(&world, move |world| world.forget(id));
            let (found, id) = world.lookup(FILE).unwrap();
            forget.join().unwrap();
            world.assert_holds(&found, id);
            assert_eq!(found.lookups(), 1);
            assert_eq!(world.is_gone(&old), !Arc::ptr_eq(&old, &found));
            world.forget(id);
            world.assert_empty(&[&old, &found]);
        });
    }

    #[test]
    fn lookups_are_counted_exactly() {
        explore(|| {
            let world = World::new();
            let (_, id) = world.lookup(FILE).unwrap();
            let forget = spawn(&world, move |world| world.forget(id));
            let lookup = spawn(&world, |world| world.lookup(FILE).unwrap().0);
            let (found, id) = world.lookup(FILE).unwrap();
            forget.join().unwrap();
            assert!(Arc::ptr_eq(&lookup.join().unwrap(), &found), "one file has two inodes");
            assert_eq!(found.lookups(), 2);
            world.forget(id);
            world.assert_holds(&found, id);
            world.forget(id);
            world.assert_empty(&[&found]);
        });
    }

    #[test]
    fn a_directory_goes_with_the_last_of_its_children() {
        explore(|| {
            let world = World::new();
            let (parent, parent_id) = world.lookup_in(&world.root, DIRECTORY, FileKind::Directory).unwrap();
            let (child, id) = world.lookup_in(&parent, FILE, FileKind::Regular).unwrap();
            let forget = spawn(&world, move |world| world.forget(id));
            world.forget(parent_id);
            forget.join().unwrap();
            world.assert_empty(&[&child, &parent]);
        });
    }

    #[test]
    fn a_directory_is_found_while_the_last_of_its_children_goes() {
        explore(|| {
            let world = World::new();
            let (parent, parent_id) = world.lookup_in(&world.root, DIRECTORY, FileKind::Directory).unwrap();
            let (child, id) = world.lookup_in(&parent, FILE, FileKind::Regular).unwrap();
            world.forget(parent_id);
            world.assert_holds(&parent, parent_id);
            let forget = spawn(&world, move |world| world.forget(id));
            let (found, found_id) = world.lookup_in(&world.root, DIRECTORY, FileKind::Directory).unwrap();
            let (other, other_id) = world.lookup_in(&found, ALIAS, FileKind::Regular).unwrap();
            world.forget(found_id);
            forget.join().unwrap();
            world.assert_holds(&found, found_id);
            world.forget(other_id);
            world.assert_empty(&[&child, &other, &found, &parent]);
        });
    }

    /// The number of a file that goes by another one since it parted is asked for while its last reader closes it.
    #[test]
    fn a_file_parts_from_its_readers_while_it_is_looked_up() {
        explore(|| {
            let world = World::new();
            let (file, id) = world.lookup(FILE).unwrap();
            let part = spawn(&world, {
                let file = file.clone();
                move |world| {
                    world.table.part(&file, id, NodeId(PARTED));
                    world.forget(id);
                }
            });
            // None: it was parted and is being forgotten; then the caller takes another number.
            let found = world.lookup(FILE);
            part.join().unwrap();
            if let Some((found, id)) = &found {
                world.assert_holds(found, *id);
                world.forget(*id);
                world.assert_empty(&[found]);
            }
            world.assert_empty(&[&file]);
        });
    }

    #[test]
    fn a_reader_closes_a_file_while_it_parts() {
        explore(|| {
            let world = World::new();
            let (file, id) = world.lookup(FILE).unwrap();
            let (same, _) = world.lookup(FILE).unwrap();
            let close = spawn(&world, move |world| world.forget(id));
            world.table.part(&same, id, NodeId(PARTED));
            world.assert_holds(&same, id);
            world.forget(id);
            close.join().unwrap();
            world.assert_empty(&[&file]);
        });
    }

    #[test]
    fn a_file_that_parted_stays_for_its_readers() {
        explore(|| {
            let world = World::new();
            let (file, id) = world.lookup(FILE).unwrap();
            world.table.part(&file, id, NodeId(PARTED));
            let lookup = spawn(&world, |world| {
                // None: as above.
                let found = world.lookup(FILE);
                if let Some((_, id)) = found {
                    world.forget(id);
                }
            });
            world.assert_holds(&file, id);
            world.forget(id);
            lookup.join().unwrap();
            world.assert_empty(&[&file]);
        });
    }

    #[test]
    fn an_alias_goes_with_its_inode() {
        explore(|| {
            let world = World::new();
            let (file, id) = world.lookup(FILE).unwrap();
            world.table.alias(ALIAS, &file);
            let forget = spawn(&world, move |world| world.forget(id));
            // None: it leads to what is being forgotten; then the caller takes another number.
            let found = world.lookup(ALIAS);
            forget.join().unwrap();
            if let Some((found, id)) = &found {
                world.assert_holds(found, *id);
                assert_eq!(found.lookups(), 1);
                world.forget(*id);
                world.assert_empty(&[found]);
            }
            world.assert_empty(&[&file]);
        });
    }
}

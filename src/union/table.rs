//! The inodes that a caller refers to, by number.
//!
//! An inode is here while the caller holds lookups on it, and as long as anything else that is here has it
//! as its parent: there is one object for one file at any time, and a parent's name is known while a child's is.

use std::sync::Arc;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use super::inode::{Inode, NodeId};

struct Node {
    inode: Arc<Inode>,
    lookups: u64,
}

/// Inodes by number. The map's shards are rank 5 (leaf): no syscall and no other lock but an inode's place while held.
pub struct Table {
    nodes: DashMap<u64, Node>,
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
        let nodes = DashMap::new();
        root.enter();
        nodes.insert(NodeId::ROOT.0, Node { inode: root, lookups: 1 });
        Self { nodes }
    }

    /// Gives up the space of inodes that are not known any more.
    pub fn shrink(&self) {
        self.nodes.shrink_to_fit();
    }

    /// Returns the inode known by `id`.
    pub fn get(&self, id: NodeId) -> Option<Arc<Inode>> {
        self.nodes.get(&id.0).map(|node| node.inode.clone())
    }

    /// Returns how many inodes are known.
    #[allow(clippy::len_without_is_empty)] // The root is always there.
    pub fn len(&self) -> usize {
        self.nodes.len()
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
        let renamed = match self.nodes.entry(number) {
            Entry::Occupied(mut entry) => {
                let node = entry.get_mut();
                if !same(&node.inode) {
                    return Interned::Taken;
                }
                let id = node.inode.id().0;
                if id == number {
                    node.lookups += lookups;
                    return Interned::Here(node.inode.clone(), NodeId(id));
                }
                id
            }
            Entry::Vacant(entry) => {
                let inode = make();
                inode.enter();
                entry.insert(Node { inode: inode.clone(), lookups });
                return Interned::Here(inode, NodeId(number));
            }
        };
        // The file goes by another number since it parted from its readers.
        match self.nodes.get_mut(&renamed) {
            Some(mut node) if same(&node.inode) => {
                node.lookups += lookups;
                Interned::Here(node.inode.clone(), NodeId(renamed))
            }
            _ => Interned::Taken,
        }
    }

    /// Makes `inode` go by `id` from now on; whoever knows it by its present number goes on doing so.
    pub fn part(&self, inode: &Arc<Inode>, id: NodeId) {
        if let Entry::Vacant(entry) = self.nodes.entry(id.0) {
            entry.insert(Node { inode: inode.clone(), lookups: 0 });
            inode.set_id(id);
        }
    }

    /// Returns whether readers hold lookups on the first number of a file that goes by `id` since it parted.
    fn has_old_readers(&self, id: u64, number: u64) -> bool {
        id != number && self.nodes.get(&number).is_some_and(|first| first.inode.id().0 == id && first.lookups > 0)
    }

    /// Lets `inode` be found by `number` besides its own, until [`Table::forget_alias`].
    pub fn alias(&self, number: u64, inode: &Arc<Inode>) {
        if let Entry::Vacant(entry) = self.nodes.entry(number) {
            entry.insert(Node { inode: inode.clone(), lookups: 0 });
        }
    }

    /// Ends an alias of `inode`.
    pub fn forget_alias(&self, number: u64, inode: &Inode) {
        self.nodes.remove_if(&number, |_, node| std::ptr::eq(&*node.inode, inode));
    }

    /// Adds a lookup to the count of an inode that is known; returns the id that it is counted on.
    pub fn count(&self, inode: &Inode) -> NodeId {
        let id = inode.id();
        if let Some(mut node) = self.nodes.get_mut(&id.0) {
            node.lookups += 1;
        }
        id
    }

    /// Takes `lookups` from the count of `id`, and calls `gone` for each inode that nothing refers to any more.
    pub fn forget(&self, id: NodeId, lookups: u64, gone: impl Fn(&Inode)) {
        let mut next = Some((id.0, lookups));
        while let Some((id, lookups)) = next.take() {
            if id == NodeId::ROOT.0 {
                return;
            }
            let Some((current, number)) = self.nodes.get(&id).map(|node| (node.inode.id().0, node.inode.ino.0)) else {
                return;
            };
            let old_readers = self.has_old_readers(id, number);
            let Entry::Occupied(mut entry) = self.nodes.entry(id) else { return };
            let node = entry.get_mut();
            node.lookups = node.lookups.saturating_sub(lookups);
            if node.lookups > 0 {
                return;
            }
            if current != id {
                // Readers of a file that parted are gone. Its first number stays with it, others go.
                if id != number {
                    let parted = entry.remove();
                    drop(parted);
                }
                next = Some((current, 0));
                continue;
            }
            if old_readers || node.inode.has_children() {
                return;
            }
            let inode = entry.remove().inode;
            if id != number {
                self.nodes.remove_if(&number, |_, first| Arc::ptr_eq(&first.inode, &inode));
            }
            gone(&inode);
            // The parent stayed for this child; it goes too if nothing else needs it.
            next = inode.leave().map(|parent| (parent.id().0, 0));
        }
    }
}

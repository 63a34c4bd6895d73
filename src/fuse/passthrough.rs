//! Passthrough: the kernel reads and writes a layer's file itself.
//!
//! The kernel has one backing file an inode for as long as any handle of it is open. A lower file's never
//! serves a writer, nor a reader once upper has the file: then the node parts from its readers, who go on
//! reading the lower file. The one who opens is answered ESTALE, upon which the kernel looks the name up again
//! and finds the file under another node.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use super::connection::Connection;
use crate::union::NodeId;

/// Backing files that stay registered though nobody has them open: no descriptors of the process, and of the kernel's memory
/// some hundred bytes each besides the layer's inode. They go with the node of the mount.
const IDLE: NonZeroUsize = NonZeroUsize::new(16384).expect("is not zero");

/// A backing file that the kernel knows.
#[derive(Clone, Copy)]
struct Backing {
    id: u32,
    /// Whether it is upper's.
    upper: bool,
}

/// A node that is open. The kernel wants all handles that are open at one time to be served alike.
struct Open {
    /// The file that serves them, if not the server does.
    backing: Option<Backing>,
    handles: usize,
}

/// What is open, and what was.
struct Nodes {
    open: HashMap<u64, Open>,
    idle: LruCache<u64, Backing>,
    /// The threads that were told to look up the name of a node again, with the node.
    turned_away: LruCache<u32, u64>,
}

/// Whether a handle may write through a shared mapping, of which nobody is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Maps {
    Never,
    Perhaps,
}

impl Maps {
    /// Looks at the flags of open(2).
    pub(super) fn of(flags: u32) -> Self {
        if flags as i32 & libc::O_ACCMODE == libc::O_RDWR { Self::Perhaps } else { Self::Never }
    }
}

/// A handle that is to be served.
pub(super) struct Handle<'a> {
    pub(super) file: BorrowedFd<'a>,
    /// Whether the file is upper's.
    pub(super) upper: bool,
    /// Whether the server must serve it, if none of its node is open that the kernel serves.
    pub(super) apart: bool,
}

/// The backing files of nodes.
pub(super) struct Passthrough {
    connection: Arc<Connection>,
    /// A leaf but for the ioctls that register files and undo that, which wait for no request.
    nodes: Mutex<Nodes>,
}

/// How a handle is served.
pub(super) enum Way {
    /// By the kernel, from this backing file.
    Backed(u32),
    /// By the server.
    Served,
    /// Not at all: the node has readers of a lower file, which it must not share.
    Part,
}

impl Passthrough {
    /// Makes backing files known through `connection`.
    pub(super) fn new(connection: Arc<Connection>) -> Self {
        const TURNED_AWAY: NonZeroUsize = NonZeroUsize::new(64).expect("is not zero");
        let nodes = Nodes { open: HashMap::new(), idle: LruCache::new(IDLE), turned_away: LruCache::new(TURNED_AWAY) };
        Self { connection, nodes: Mutex::new(nodes) }
    }

    /// Settles how a handle of `id` is served.
    pub(super) fn open(&self, id: NodeId, handle: &Handle<'_>) -> Way {
        let mut nodes = self.nodes.lock();
        let Nodes { open, idle, .. } = &mut *nodes;
        let node = open.entry(id.0).or_insert_with(|| {
            let kept = idle.pop(&id.0).filter(|kept| {
                let fits = kept.upper == handle.upper && !handle.apart;
                if !fits {
                    self.connection.close_backing(kept.id);
                }
                fits
            });
            let register = || if handle.apart { None } else { self.register(id, handle) };
            Open { backing: kept.or_else(register), handles: 0 }
        });
        let way = match node.backing {
            Some(Backing { upper: false, .. }) if handle.upper => return Way::Part,
            // A handle of the lower file, opened just before the copy-up, takes upper's file as the others do.
            Some(Backing { id, .. }) => Way::Backed(id),
            None => Way::Served,
        };
        node.handles += 1;
        way
    }

    /// Opens `id` once more for reading from the lower file that serves it, or did; returns the backing file.
    pub(super) fn open_lower_again(&self, id: NodeId) -> Option<u32> {
        let mut nodes = self.nodes.lock();
        let Nodes { open, idle, .. } = &mut *nodes;
        let node = match open.entry(id.0) {
            Entry::Occupied(node) => node.into_mut(),
            Entry::Vacant(vacant) => {
                let kept = idle.peek(&id.0).copied().filter(|kept| !kept.upper)?;
                idle.pop(&id.0);
                vacant.insert(Open { backing: Some(kept), handles: 0 })
            }
        };
        let backing = node.backing.filter(|backing| !backing.upper)?;
        node.handles += 1;
        Some(backing.id)
    }

    fn register(&self, id: NodeId, handle: &Handle<'_>) -> Option<Backing> {
        let backing = self.connection.open_backing(handle.file);
        let id = backing.inspect_err(|errno| log::debug!("no passthrough for node {}: {errno}", id.0)).ok()?;
        Some(Backing { id, upper: handle.upper })
    }

    /// Returns whether readers of a lower file have the node open.
    pub(super) fn has_lower_readers(&self, id: NodeId) -> bool {
        let nodes = self.nodes.lock();
        nodes.open.get(&id.0).is_some_and(|open| open.backing.is_some_and(|backing| !backing.upper))
    }

    /// Records that the thread `pid`, which would read, was told to look up the name of `id` again.
    pub(super) fn turn_away(&self, id: NodeId, pid: u32) {
        // Threads that this process cannot see all have the number 0.
        if pid != 0 {
            self.nodes.lock().turned_away.put(pid, id.0);
        }
    }

    /// Takes the record of the thread `pid`, and returns whether it was of `id`: then it has come by a descriptor, for which
    /// there is no name to look up.
    pub(super) fn has_come_back(&self, id: NodeId, pid: u32) -> bool {
        self.nodes.lock().turned_away.pop(&pid) == Some(id.0)
    }

    /// Ends the use of a node by one handle.
    pub(super) fn close(&self, id: NodeId) {
        let mut nodes = self.nodes.lock();
        let Entry::Occupied(mut entry) = nodes.open.entry(id.0) else { return };
        let open = entry.get_mut();
        open.handles -= 1;
        if open.handles > 0 {
            return;
        }
        let Some(backing) = entry.remove().backing else { return };
        let evicted = nodes.idle.push(id.0, backing);
        drop(nodes);
        if let Some((_, backing)) = evicted {
            self.connection.close_backing(backing.id);
        }
    }

    /// Gives up the backing file that is kept for a node which nobody has open: the number may come to be another file's, and
    /// a file that was removed takes no space any more.
    ///
    /// To be called before the node is forgotten.
    pub(super) fn forget(&self, id: NodeId) {
        let kept = self.nodes.lock().idle.pop(&id.0);
        if let Some(backing) = kept {
            self.connection.close_backing(backing.id);
        }
    }

    /// Gives up all that is kept.
    pub(super) fn end(&self) {
        while let Some((_, backing)) = self.idle() {
            self.connection.close_backing(backing.id);
        }
    }

    fn idle(&self) -> Option<(u64, Backing)> {
        self.nodes.lock().idle.pop_lru()
    }
}

//! Passthrough: the kernel reads and writes a layer's file itself.
//!
//! The kernel has one backing file an inode for as long as any handle of it is open. A lower file's never
//! serves a writer, nor a reader once upper has the file: then the node parts from its readers, who go on
//! reading the lower file. The one who opens is answered ESTALE, upon which the kernel looks the name up again
//! and finds the file under another node.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use parking_lot::Mutex;

use super::connection::Connection;
use crate::union::NodeId;

/// A backing file that the kernel knows.
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

/// The open nodes.
pub(super) struct Passthrough {
    connection: Arc<Connection>,
    /// A leaf but for the ioctl that registers a file, which waits for nothing.
    open: Mutex<HashMap<u64, Open>>,
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
        Self { connection, open: Mutex::default() }
    }

    /// Settles how a handle of `id`, which has `file` open, is served.
    ///
    /// `upper` says whether the file is upper's, `privileged` whether it has the set-user-id or set-group-id bit, or
    /// capabilities, that the kernel would not clear when it writes by itself.
    pub(super) fn open(&self, id: NodeId, upper: bool, privileged: bool, file: BorrowedFd<'_>) -> Way {
        let mut open = self.open.lock();
        let node = open.entry(id.0).or_insert_with(|| {
            let backing = if privileged { None } else { self.register(id, file) };
            Open { backing: backing.map(|id| Backing { id, upper }), handles: 0 }
        });
        match node.backing {
            Some(Backing { upper: false, .. }) if upper => Way::Part,
            // A handle of the lower file, opened just before the copy-up, takes upper's file as the others do.
            Some(Backing { id, .. }) => {
                node.handles += 1;
                Way::Backed(id)
            }
            None => {
                node.handles += 1;
                Way::Served
            }
        }
    }

    fn register(&self, id: NodeId, file: BorrowedFd<'_>) -> Option<u32> {
        let backing = self.connection.open_backing(file);
        backing.inspect_err(|errno| log::debug!("no passthrough for node {}: {errno}", id.0)).ok()
    }

    /// Returns whether readers of a lower file have the node open.
    pub(super) fn has_lower_readers(&self, id: NodeId) -> bool {
        let open = self.open.lock();
        open.get(&id.0).is_some_and(|open| open.backing.as_ref().is_some_and(|backing| !backing.upper))
    }

    /// Ends the use of a node by one handle.
    pub(super) fn close(&self, id: NodeId) {
        let mut open = self.open.lock();
        let Entry::Occupied(mut entry) = open.entry(id.0) else { return };
        entry.get_mut().handles -= 1;
        if entry.get().handles == 0 {
            let last = entry.remove();
            drop(open);
            if let Some(backing) = last.backing {
                self.connection.close_backing(backing.id);
            }
        }
    }
}

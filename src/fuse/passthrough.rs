//! Passthrough: the kernel reads and writes a layer's file itself.
//!
//! The kernel has one backing file an inode for as long as any handle of it is open. A lower file's never
//! serves a writer, nor a reader once upper has the file: then the node parts from its readers, who go on
//! reading the lower file. The one who opens is answered ESTALE, upon which the kernel looks the name up again
//! and finds the file under another node.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use fuser::BackingId;
use parking_lot::Mutex;

use crate::union::NodeId;

/// How the handles of a node that are open at the moment are served; the kernel wants them all alike.
enum Way {
    /// From this file, which is upper's or not.
    Backed { id: Arc<BackingId>, upper: bool },
    /// By the server.
    Served,
}

struct Open {
    way: Way,
    handles: usize,
}

/// The open nodes.
#[derive(Default)]
pub(super) struct Passthrough {
    /// A leaf but for the ioctl that registers a file, which waits for nothing.
    open: Mutex<HashMap<u64, Open>>,
}

/// What an open can be answered with.
pub(super) enum Answer {
    /// This backing file.
    Backed(Arc<BackingId>),
    /// None: the file is served by the server.
    Served,
    /// The node has readers of a lower file, which this open must not share.
    Part,
}

impl Passthrough {
    /// Settles how a handle of `id` is served.
    ///
    /// `upper` says whether its file is upper's, `privileged` whether it has the set-user-id or set-group-id bit, or
    /// capabilities, that the kernel would not clear when it writes by itself; `register` makes the file known to the kernel.
    pub(super) fn open(
        &self,
        id: NodeId,
        upper: bool,
        privileged: bool,
        register: impl FnOnce() -> std::io::Result<BackingId>,
    ) -> Answer {
        let mut open = self.open.lock();
        let node = match open.entry(id.0) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let registered = if privileged { None } else { Some(register()) };
                let way = match registered {
                    Some(Ok(backing)) => Way::Backed { id: Arc::new(backing), upper },
                    Some(Err(error)) => {
                        log::debug!("no passthrough for node {}: {error}", id.0);
                        Way::Served
                    }
                    None => Way::Served,
                };
                entry.insert(Open { way, handles: 0 })
            }
        };
        match &node.way {
            Way::Backed { upper: false, .. } if upper => Answer::Part,
            // A handle of the lower file, opened just before the copy-up, takes upper's file as the others do.
            Way::Backed { id, .. } => {
                node.handles += 1;
                Answer::Backed(id.clone())
            }
            Way::Served => {
                node.handles += 1;
                Answer::Served
            }
        }
    }

    /// Returns whether readers of a lower file have the node open.
    pub(super) fn has_lower_readers(&self, id: NodeId) -> bool {
        self.open.lock().get(&id.0).is_some_and(|open| matches!(open.way, Way::Backed { upper: false, .. }))
    }

    /// Ends the use of a node by one handle.
    pub(super) fn close(&self, id: NodeId) {
        let mut open = self.open.lock();
        let Entry::Occupied(mut entry) = open.entry(id.0) else { return };
        entry.get_mut().handles -= 1;
        if entry.get().handles == 0 {
            let last = entry.remove();
            drop(open);
            // Tells the kernel, which is a system call.
            drop(last);
        }
    }
}

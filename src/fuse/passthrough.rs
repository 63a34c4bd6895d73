//! Passthrough: the kernel reads and writes a layer's file itself.
//!
//! The kernel has one backing file an inode for as long as any handle of it is open. A lower file's never
//! serves a writer, nor a reader once upper has the file: then the node parts from its readers. They keep
//! what they have, as with the kernel's overlayfs; the one who opens is answered ESTALE, upon which the kernel
//! looks the name up again and finds the file under another node.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use fuser::BackingId;
use parking_lot::Mutex;

use crate::union::{Fh, NodeId};

struct Backing {
    id: Arc<BackingId>,
    opens: usize,
    upper: bool,
}

/// The backing files of the open nodes.
#[derive(Default)]
pub(super) struct Passthrough {
    /// A leaf but for the ioctl that registers a file, which waits for nothing.
    open: Mutex<HashMap<u64, Backing>>,
}

/// What an open can be answered with.
pub(super) enum Answer {
    /// This backing file.
    Backed(Arc<BackingId>),
    /// None: the kernel refuses the file, which is then served by the server.
    Served,
    /// The node has readers of a lower file, which this open must not share.
    Part,
}

impl Passthrough {
    /// Settles how a handle of `id` is served; `upper` says whether its file is upper's, and `register` makes
    /// the backing file known to the kernel.
    pub(super) fn open(&self, id: NodeId, upper: bool, register: impl FnOnce() -> std::io::Result<BackingId>) -> Answer {
        let mut open = self.open.lock();
        match open.entry(id.0) {
            Entry::Occupied(mut entry) => {
                let backing = entry.get_mut();
                if upper && !backing.upper {
                    return Answer::Part;
                }
                // A handle of the lower file, opened just before the copy-up, takes upper's file as the others do.
                backing.opens += 1;
                Answer::Backed(backing.id.clone())
            }
            Entry::Vacant(entry) => match register() {
                Ok(backing) => {
                    let id = Arc::new(backing);
                    entry.insert(Backing { id: id.clone(), opens: 1, upper });
                    Answer::Backed(id)
                }
                Err(error) => {
                    log::debug!("no passthrough for node {}: {error}", id.0);
                    Answer::Served
                }
            },
        }
    }

    /// Returns whether readers of a lower file have the node open.
    pub(super) fn has_lower_readers(&self, id: NodeId) -> bool {
        self.open.lock().get(&id.0).is_some_and(|backing| !backing.upper)
    }

    /// Ends the use of a backing file by one handle.
    pub(super) fn close(&self, id: NodeId, _fh: Fh) {
        let mut open = self.open.lock();
        let Entry::Occupied(mut entry) = open.entry(id.0) else { return };
        entry.get_mut().opens -= 1;
        if entry.get().opens == 0 {
            let last = entry.remove();
            drop(open);
            // Tells the kernel, which is a system call.
            drop(last);
        }
    }
}

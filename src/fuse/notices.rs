//! Notices: what the kernel is told without having asked.
//!
//! Linux's FUSE keeps a link count of its own: when a removal is answered, it takes one from the count that it has.
//! Where a lookup of another name of the file has brought it the new count just before, that is one too many, and at
//! zero link(2) is refused without asking. So when a file is left with one name, the kernel is made to look that name
//! up before it uses it again, which brings the count.

use std::ffi::OsStr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use fuser::{INodeNo, Notifier};
use parking_lot::Mutex;

use super::server::Server;
use crate::layer::name::WH_PREFIX;
use crate::union::NodeId;

/// Notices that wait at most; further ones are dropped, as they only mend what is rare anyway.
const WAITING_MAX: usize = 1024;

/// A file that lost one of its names.
struct Recount {
    /// The directory of the name that was removed.
    from: NodeId,
    file: NodeId,
}

struct Sending {
    queue: SyncSender<Recount>,
    notifier: Notifier,
    thread: JoinHandle<()>,
}

/// A thread of its own that tells the kernel: a notice waits for the lock of a directory, whose holder may be waiting
/// for an answer of ours.
#[derive(Default)]
pub(super) struct Notices {
    /// A leaf: the queue alone is touched while held.
    sending: Mutex<Option<Sending>>,
}

impl Notices {
    /// Begins to send; until then, and where no thread can be had, nothing is sent.
    pub(super) fn start(&self, server: &Arc<Server>, notifier: Notifier) {
        let server = Arc::downgrade(server);
        let (queue, waiting) = sync_channel(WAITING_MAX);
        let waitless = notifier.clone();
        let thread = std::thread::Builder::new()
            .name("unionfs-notices".into())
            .spawn(move || send(&server, &notifier, &waiting));
        match thread {
            Ok(thread) => *self.sending.lock() = Some(Sending { queue, notifier: waitless, thread }),
            Err(error) => log::warn!("no thread for notices to the kernel: {error}"),
        }
    }

    /// Has the kernel learn the link count of a file anew, of which a name in `from` was removed and answered.
    pub(super) fn recount(&self, from: NodeId, file: NodeId) {
        if let Some(sending) = &*self.sending.lock() {
            // Full: dropped, see `WAITING_MAX`.
            let _ = sending.queue.try_send(Recount { from, file });
        }
    }

    /// Has the kernel ask for the attributes of `id` anew. It takes no lock for that, so this waits for nothing.
    pub(super) fn forget_attributes(&self, id: NodeId) {
        let notifier = self.sending.lock().as_ref().map(|sending| sending.notifier.clone());
        if let Some(Err(error)) = notifier.map(|notifier| notifier.inval_inode(INodeNo(id.0), -1, 0)) {
            log::debug!("notice: {error}");
        }
    }

    /// Ends the thread; the mount is gone, so that no notice waits.
    pub(super) fn end(&self) {
        let Some(Sending { queue, thread, .. }) = self.sending.lock().take() else { return };
        drop(queue);
        // It does nothing that panics, and has nothing to tell.
        let _ = thread.join();
    }
}

fn send(server: &Weak<Server>, notifier: &Notifier, waiting: &Receiver<Recount>) {
    let invalidate = |parent: NodeId, name: &OsStr| match notifier.inval_entry(INodeNo(parent.0), name) {
        // ENOENT: it is not known, or no longer.
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => log::debug!("notice: {error}"),
        _ => {}
    };
    while let Ok(Recount { from, file }) = waiting.recv() {
        // Nobody knows this name, so nothing is forgotten; but the kernel takes the directory's lock for it, which the
        // one who removed the name holds until it has counted.
        invalidate(from, OsStr::new(WH_PREFIX));
        if let Some((parent, name)) = server.upgrade().and_then(|server| server.union.only_name(file)) {
            invalidate(parent, &name);
        }
    }
}

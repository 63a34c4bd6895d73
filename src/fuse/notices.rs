//! Notices: what the kernel is told without having asked.
//!
//! Only what takes no lock in the kernel: one that waits for a directory, whose holder waits for an answer of ours, can
//! not be killed, and the mount of a daemon that was killed would hang with it.

use fuser::{INodeNo, Notifier};
use parking_lot::Mutex;

use crate::union::NodeId;

/// Tells the kernel, from when there is a session until it ends.
#[derive(Default)]
pub(super) struct Notices {
    /// A leaf: nothing is told while held.
    notifier: Mutex<Option<Notifier>>,
}

impl Notices {
    /// Begins to send; until then nothing is sent.
    pub(super) fn start(&self, notifier: Notifier) {
        *self.notifier.lock() = Some(notifier);
    }

    /// Has the kernel ask for the attributes of `id` anew.
    pub(super) fn forget_attributes(&self, id: NodeId) {
        let notifier = self.notifier.lock().clone();
        // Less than 0: the attributes alone, so that it waits for no page.
        if let Some(Err(error)) = notifier.map(|notifier| notifier.inval_inode(INodeNo(id.0), -1, 0)) {
            log::debug!("notice: {error}");
        }
    }

    /// Ends the use of the session.
    pub(super) fn end(&self) {
        *self.notifier.lock() = None;
    }
}

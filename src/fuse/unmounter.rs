//! Who can end a mount: this process, where it has made the mount, and else whoever has.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::device::Mounted;
use crate::error::{Error, Result};

/// Unmounts from any thread.
#[derive(Debug, Clone)]
pub struct Unmounter {
    mount: Arc<Made>,
}

/// Who made a mount.
#[derive(Debug)]
enum Made {
    /// This library, in [`Mount::new`](super::Mount::new).
    Here(Mounted),
    /// The caller of [`Mount::attach`](super::Mount::attach), who says that it is on this path.
    Elsewhere(PathBuf),
}

impl Unmounter {
    /// Unmounts what was mounted here.
    pub(super) fn of(mounted: Mounted) -> Self {
        Self { mount: Arc::new(Made::Here(mounted)) }
    }

    /// Stands for a mount that the caller has made on `mountpoint`, which is for messages alone.
    pub(super) fn of_callers(mountpoint: &Path) -> Self {
        let shown = if mountpoint.as_os_str().is_empty() { Path::new("the attached mount") } else { mountpoint };
        Self { mount: Arc::new(Made::Elsewhere(shown.to_owned())) }
    }

    /// Unmounts; programs that are in the tree keep what they have open until they end.
    ///
    /// Only this mount, wherever it has been moved to: where it is gone, nothing is done. Errors: [`Error::Mount`], also
    /// where another mount covers this one; [`Error::NotOurs`] for a mount that was attached.
    pub fn unmount(&self) -> Result<()> {
        match &*self.mount {
            Made::Here(mounted) => mounted.unmount(),
            Made::Elsewhere(mountpoint) => Err(Error::NotOurs { mountpoint: mountpoint.clone() }),
        }
    }

    /// Returns the number of the mount's device (major, minor), as `st_dev` and /proc/self/mountinfo have it, which no other
    /// mount has as long as this one is there; `None` for a mount that was attached.
    pub fn device(&self) -> Option<(u32, u32)> {
        match &*self.mount {
            Made::Here(mounted) => Some(mounted.device()),
            Made::Elsewhere(_) => None,
        }
    }

    /// Unmounts what cannot be served; a mount that the caller has made is left to the caller.
    pub(super) fn unmount_or_log(&self) {
        if let Made::Here(mounted) = &*self.mount
            && let Err(error) = mounted.unmount()
        {
            log::error!("{error}");
        }
    }

    /// Notes that the kernel has ended the mount.
    pub(super) fn note_gone(&self) {
        if let Made::Here(mounted) = &*self.mount {
            mounted.note_gone();
        }
    }

    /// Says what is wrong with the mount.
    pub(super) fn error(&self, reason: impl Into<String>, remedy: &str) -> Error {
        let mountpoint = match &*self.mount {
            Made::Here(mounted) => mounted.mountpoint(),
            Made::Elsewhere(mountpoint) => mountpoint,
        };
        Error::mount(mountpoint, reason, remedy)
    }
}

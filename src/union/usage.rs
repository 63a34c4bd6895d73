//! What a union holds and what it has copied, for an embedder that watches it.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Union;

/// What the union holds, for an embedder that watches its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Inodes that the caller refers to.
    pub inodes: usize,
    /// Directories kept open.
    pub directories: usize,
    /// Files kept open without a handle.
    pub files: usize,
    /// Open handles; files that are found by number have none.
    pub handles: usize,
}

/// What has been brought from lower layers to upper since the union was built.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CopyUps {
    /// Files, directories and whatever else there is, each counted when it was in upper.
    pub objects: u64,
    /// Bytes of data that were read and written; holes, and what the file systems share (FICLONE), are none. It includes
    /// copies that failed later on.
    pub bytes: u64,
}

/// Counts copy-ups.
#[derive(Debug, Default)]
pub(super) struct CopyUpCounts {
    objects: AtomicU64,
    bytes: AtomicU64,
}

impl CopyUpCounts {
    /// Counts one more object in upper.
    pub(super) fn object(&self) {
        self.objects.fetch_add(1, Ordering::Relaxed); // Relaxed: a count alone.
    }

    /// Counts data that was copied.
    pub(super) fn data(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed); // Relaxed: a count alone.
    }
}

impl Union {
    /// Returns what is held at the moment; the figures are of no single one, since nothing is stopped for them.
    pub fn usage(&self) -> Usage {
        Usage {
            inodes: self.table.len(),
            directories: self.dirs.len() + self.lowers.open_directories(),
            files: self.files.len(),
            handles: self.handles.len(),
        }
    }

    /// Returns what has been copied up so far.
    pub fn copy_ups(&self) -> CopyUps {
        // Relaxed: counts alone, which need not agree.
        let [objects, bytes] = [&self.copied.objects, &self.copied.bytes].map(|count| count.load(Ordering::Relaxed));
        CopyUps { objects, bytes }
    }
}

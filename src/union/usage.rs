//! What a union holds and what it has copied, for an embedder that watches it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Union;
use crate::layer::fds::Hits;

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
    /// The most directories and files that are kept open.
    pub kept_at_most: usize,
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
    /// The time that it took, waiting for the disk included; what is copied at the same time counts each for itself.
    pub time: Duration,
}

/// How often the union had at hand what it needed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Caches {
    /// Open directories of upper.
    pub upper_directories: Hits,
    /// Open directories of lower layers.
    pub lower_directories: Hits,
    /// Open files, for what has no handle.
    pub files: Hits,
    /// Names that the index of a directory was asked for: a hit is in one of the layers, and a miss, which costs no system
    /// call, in none.
    pub names: Hits,
}

/// Counts what the indexes of names have answered.
#[derive(Debug, Default)]
pub(super) struct NameCounts {
    known: AtomicU64,
    unknown: AtomicU64,
}

impl NameCounts {
    /// Counts an answer.
    pub(super) fn count(&self, known: bool) {
        let count = if known { &self.known } else { &self.unknown };
        count.fetch_add(1, Ordering::Relaxed); // Relaxed: a count alone.
    }

    fn read(&self) -> Hits {
        // Relaxed: counts alone, which need not agree.
        let [hits, misses] = [&self.known, &self.unknown].map(|count| count.load(Ordering::Relaxed));
        Hits { hits, misses }
    }
}

/// Counts copy-ups.
#[derive(Debug, Default)]
pub(super) struct CopyUpCounts {
    objects: AtomicU64,
    bytes: AtomicU64,
    nanoseconds: AtomicU64,
}

impl CopyUpCounts {
    /// Counts one more object in upper.
    pub(super) fn object(&self) {
        self.objects.fetch_add(1, Ordering::Relaxed); // Relaxed: a count alone.
    }

    /// Counts the time that an attempt has taken, which began at `begun`.
    pub(super) fn took(&self, begun: Instant) {
        let nanoseconds = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed); // Relaxed: a count alone.
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
            kept_at_most: self.kept_at_most,
        }
    }

    /// Returns what has been copied up so far.
    pub fn copy_ups(&self) -> CopyUps {
        // Relaxed: counts alone, which need not agree.
        let counts = [&self.copied.objects, &self.copied.bytes, &self.copied.nanoseconds];
        let [objects, bytes, nanoseconds] = counts.map(|count| count.load(Ordering::Relaxed));
        CopyUps { objects, bytes, time: Duration::from_nanos(nanoseconds) }
    }

    /// Returns how often what was needed was at hand so far.
    pub fn caches(&self) -> Caches {
        Caches {
            upper_directories: self.dirs.asked(),
            lower_directories: self.lowers.asked_for_open(),
            files: self.files.asked(),
            names: self.names.read(),
        }
    }
}

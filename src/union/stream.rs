//! Listings of directories that one lower layer alone has, in the order in which its file system tells of them: what was
//! read is shown while the rest is still being read.
//!
//! Such a directory does not change, so a place in it is one for all time, also after the listing was evicted, and after the
//! directory has come to upper, for whoever began before.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::{Mutex, MutexGuard};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::inode::{Dir, Inode};
use super::listing::hash;
use super::merge::Kind;
use crate::layer::dir::LayerDir;
use crate::layer::name::WH_PREFIX;
use crate::sys::dents::Batches;

/// So many entries are read at once where there are more: about what one answer takes.
const EAGER: u64 = 2048;

/// In cookies of this order; those of names do not have it.
const BY_PLACE: u64 = 1 << 62;

/// Returns how many entries come before the place that `cookie` stands for; `None` where it is one of another order.
pub(super) fn place(cookie: u64) -> Option<u64> {
    (cookie & BY_PLACE != 0).then_some(cookie & !BY_PLACE)
}

/// An entry, as the lower layer's file system tells of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a OsStr,
    pub(super) kind: FileType,
    pub(super) ino: u64,
    /// How many come before it.
    pub(super) at: u64,
    /// Where reading goes on after it.
    pub(super) cookie: u64,
}

#[derive(Debug)]
struct Item {
    ino: u64,
    start: u32,
    len: u8,
    kind: Kind,
}

/// Entries that were read together.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    /// How many come before.
    first: u64,
    names: Vec<u8>,
    items: Vec<Item>,
}

impl Chunk {
    fn end(&self) -> u64 {
        self.first + self.items.len() as u64
    }

    /// Makes one of plain files with these names, from the beginning of a directory.
    #[cfg(test)]
    pub(super) fn of(all: impl IntoIterator<Item = String>) -> Self {
        let mut chunk = Self { first: 0, names: Vec::new(), items: Vec::new() };
        for name in all {
            let (start, len) = (chunk.names.len() as u32, name.len() as u8);
            chunk.names.extend_from_slice(name.as_bytes());
            chunk.items.push(Item { ino: 1, start, len, kind: Kind::of(FileType::RegularFile) });
        }
        chunk
    }

    /// Returns how many there are.
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// Returns the entries from the place `at` on.
    pub(super) fn from(&self, at: u64) -> impl Iterator<Item = Entry<'_>> {
        let at = at.max(self.first);
        let rest = self.items.get((at - self.first) as usize..).unwrap_or_default();
        rest.iter().zip(at..).map(|(item, at)| Entry {
            name: self.name(item),
            kind: item.kind.file_type(),
            ino: item.ino,
            at,
            cookie: BY_PLACE | (at + 1),
        })
    }

    fn name(&self, item: &Item) -> &OsStr {
        let start = item.start as usize;
        OsStr::from_bytes(self.names.get(start..start + usize::from(item.len)).unwrap_or_default())
    }
}

/// In order.
#[derive(Debug, Default)]
struct Known {
    chunks: Vec<Arc<Chunk>>,
}

impl Known {
    fn len(&self) -> u64 {
        self.chunks.last().map_or(0, |chunk| chunk.end())
    }

    fn chunk(&self, at: u64) -> Option<Arc<Chunk>> {
        let after = self.chunks.partition_point(|chunk| chunk.first <= at);
        self.chunks.get(after.checked_sub(1)?).filter(|chunk| at < chunk.end()).cloned()
    }
}

/// What is read, and what was found there besides entries.
#[derive(Debug)]
struct Source {
    dir: Arc<OwnedFd>,
    marks: bool,
}

/// A listing that grows.
#[derive(Debug)]
pub(super) struct Stream {
    /// Of the directory of the lower layer.
    pub(super) part: Arc<LayerDir>,
    /// The directory's count of changes before it was read.
    pub(super) version: u64,
    /// Held by who reads on, with no other lock but `known`. `None` when everything is read.
    source: Mutex<Option<Source>>,
    /// A leaf. No system call while held.
    known: Mutex<Known>,
    /// How many entries are known.
    len: AtomicUsize,
    /// Whether these are all.
    whole: AtomicBool,
    /// Whether somebody has the rest to read.
    ahead: AtomicBool,
}

impl Stream {
    /// Makes a listing of what `listing`, opened for it, holds: the directory `part`.
    pub(super) fn new(part: Arc<LayerDir>, listing: Arc<OwnedFd>, version: u64) -> Self {
        let source = Source { dir: listing, marks: false };
        let (source, known) = (Mutex::new(Some(source)), Mutex::default());
        let (whole, ahead) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { part, version, source, known, len: AtomicUsize::new(0), whole, ahead }
    }

    /// Returns how many entries have been read.
    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed) // Relaxed: it may grow at any time.
    }

    /// Returns whether more entries may be read.
    pub(super) fn grows(&self) -> bool {
        !self.whole.load(Ordering::Acquire)
    }

    /// Returns the entries around the place `at`, read now unless they are known; `None` at the end.
    pub(super) fn chunk(&self, at: u64) -> Result<Option<Arc<Chunk>>, Errno> {
        loop {
            let known = self.known.lock();
            let chunk = known.chunk(at);
            if chunk.is_some() || !self.grows() {
                return Ok(chunk);
            }
            drop(known);
            let mut source = self.source.lock();
            // Whoever had it may have come so far.
            if self.known.lock().len() <= at {
                self.read_on(&mut source)?;
            }
        }
    }

    /// Records which names `dir`, whose listing this is, has, when everything is read.
    pub(super) fn note_names(&self, dir: &Dir) {
        if self.grows() {
            return;
        }
        dir.note_names(|| {
            let chunks = self.known.lock().chunks.clone();
            let all = chunks.iter().flat_map(|chunk| chunk.items.iter().map(|item| chunk.name(item)));
            all.map(|name| (hash(name.as_bytes()), 0)).collect()
        });
    }

    /// Reads some more of what is left; returns whether there may be more.
    fn read_some(&self) -> Result<bool, Errno> {
        let mut source = self.source.lock();
        self.read_on(&mut source)?;
        let more = source.is_some();
        // Who waits for what was read takes its turn.
        MutexGuard::unlock_fair(source);
        Ok(more)
    }

    /// Reads some more entries, if there are any.
    fn read_on(&self, source: &mut Option<Source>) -> Result<(), Errno> {
        let Some(Source { dir, marks }) = source else { return Ok(()) };
        let mut batches = Batches::new(dir.as_fd());
        let mut chunk = Chunk { first: self.known.lock().len(), names: Vec::new(), items: Vec::new() };
        let mut more = Ok(true);
        while more == Ok(true) && (chunk.items.len() as u64) < EAGER {
            more = batches.next(|name, kind, ino| {
                // Marks hide what is below, and there is nothing below.
                if name.starts_with(WH_PREFIX.as_bytes()) {
                    *marks = true;
                } else if let (Ok(start), Ok(len)) = (u32::try_from(chunk.names.len()), u8::try_from(name.len())) {
                    chunk.names.extend_from_slice(name);
                    chunk.items.push(Item { ino, start, len, kind: Kind::of(kind) });
                }
            });
        }
        let whole = more == Ok(false);
        if whole {
            self.part.dotwh.record(*marks);
            *source = None;
        }
        let mut known = self.known.lock();
        // Also where reading on has failed: what was read is not told again.
        if !chunk.items.is_empty() {
            self.len.fetch_add(chunk.items.len(), Ordering::Relaxed);
            known.chunks.push(Arc::new(chunk));
        }
        // Whoever sees it, holding `known`, sees all entries.
        self.whole.store(whole, Ordering::Release);
        drop(known);
        more.map(drop)
    }
}

/// The rest of a directory, which can be read before anybody asks for it. Its layer's directory is open until it is read, by
/// this or by readers, or its listing is given up.
pub struct ReadAhead {
    inode: Arc<Inode>,
    stream: Arc<Stream>,
}

impl ReadAhead {
    /// Returns the rest of `stream`, a listing of `inode`, where there is one and nobody has it yet.
    pub(super) fn of(inode: &Arc<Inode>, stream: &Arc<Stream>) -> Option<Self> {
        // Relaxed: it is of no concern who comes first.
        let rest = stream.grows() && !stream.ahead.swap(true, Ordering::Relaxed);
        rest.then(|| Self { inode: inode.clone(), stream: stream.clone() })
    }

    /// Reads it, for as long as `goes_on` says so and the listing is kept or read.
    pub fn run(self, goes_on: impl Fn() -> bool) {
        while Arc::strong_count(&self.stream) > 1 && goes_on() {
            match self.stream.read_some() {
                Ok(true) => {}
                Ok(false) => break,
                Err(errno) => {
                    // Whoever comes to it is told.
                    log::debug!("read ahead in a directory: {errno}");
                    break;
                }
            }
        }
        if let Some(dir) = self.inode.dir() {
            self.stream.note_names(dir);
        }
    }
}

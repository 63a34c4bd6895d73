//! What is read of a directory before anybody lists it: its names, and the attributes of the files in it.
//!
//! Who walks a tree lists one directory after the other; while one answer is taken in, a processor may be free to find what
//! the next will say. Only of directories that upper does not have: those do not change. What was read is used once and
//! soon, or not at all, so that a layer that is changed against all advice does not show as it was long ago.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::FileType;

use super::inode::NodeId;
use super::listing::Kept;
use super::stream::{Chunk, Entry, Stream};
use super::{Union, dir_of};
use crate::error::Result;
use crate::layer::attr::{Attr, FileKind};
use crate::layer::dir::Serial;

/// With so many entries known ahead, of all directories, no further one is read.
const ENOUGH: usize = 4096;

/// How long what was read ahead may be used.
const LIFE: Duration = Duration::from_millis(100);

/// The first entries of a directory, and the attributes of each as far as they have been read.
#[derive(Debug)]
pub(super) struct Known {
    since: Instant,
    chunk: Arc<Chunk>,
    attrs: Box<[OnceLock<Attr>]>,
}

impl Known {
    fn new(chunk: Arc<Chunk>) -> Self {
        let attrs = (0..chunk.len()).map(|_| OnceLock::new()).collect();
        Self { since: Instant::now(), chunk, attrs }
    }

    /// Returns the attributes of `entry`.
    pub(super) fn attr(&self, entry: &Entry<'_>) -> Option<&Attr> {
        let attr = self.attrs.get(usize::try_from(entry.at).ok()?)?.get()?;
        // Another one, where a layer was changed and listed anew.
        let same = self.chunk.from(entry.at).next().is_some_and(|known| known.name == entry.name);
        same.then_some(attr)
    }
}

/// What is known of directories that nobody has listed yet, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// A leaf. No system call while held.
    known: Mutex<VecDeque<(Serial, Arc<Known>)>>,
    /// How many entries these are of. Written with `known` held.
    entries: AtomicUsize,
}

impl Ahead {
    /// Returns whether enough is known; what is too old is forgotten.
    fn is_enough(&self) -> bool {
        let is_enough = || self.entries.load(Ordering::Relaxed) >= ENOUGH; // Relaxed: a hint.
        if is_enough() {
            self.change(|known| known.retain(|(_, known)| known.since.elapsed() < LIFE));
        }
        is_enough()
    }

    fn change<T>(&self, change: impl FnOnce(&mut VecDeque<(Serial, Arc<Known>)>) -> T) -> T {
        let mut known = self.known.lock();
        let result = change(&mut known);
        let entries = known.iter().map(|(_, known)| known.attrs.len()).sum();
        self.entries.store(entries, Ordering::Relaxed); // Relaxed: a hint.
        result
    }

    /// Makes room for the attributes of what is in a directory; `None` where they are being read.
    fn begin(&self, serial: Serial, chunk: Arc<Chunk>) -> Option<Arc<Known>> {
        self.change(|known| {
            let is_new = known.iter().all(|(other, _)| *other != serial);
            is_new.then(|| {
                let new = Arc::new(Known::new(chunk));
                known.push_back((serial, new.clone()));
                new
            })
        })
    }

    /// Returns what is known of the entries of a directory from the place `at` on, where it may still be used. What lies
    /// behind the reader is forgotten.
    pub(super) fn get(&self, serial: Serial, at: u64) -> Option<Arc<Known>> {
        // Relaxed: a hint.
        if self.entries.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.change(|known| {
            let index = known.iter().position(|(other, _)| *other == serial)?;
            let found = known.get(index).map(|(_, found)| found.clone())?;
            let usable = found.since.elapsed() < LIFE && at < found.attrs.len() as u64;
            if !usable {
                known.remove(index);
            }
            usable.then_some(found)
        })
    }
}

impl Union {
    /// Returns whether enough was read by [`Union::read_ahead`] that nobody has come to yet.
    pub fn has_read_enough(&self) -> bool {
        self.ahead.is_enough()
    }

    /// Reads the names in the directory `id`, and the attributes of the files there, for who is likely to list it soon: what
    /// [`Union::read_dir_plus`] says is the same, and sooner. Nothing is read of a directory that upper has.
    ///
    /// Errors: as those of listing it; there is no need to tell anybody.
    pub fn read_ahead(&self, id: NodeId) -> Result<()> {
        let inode = self.directory(id)?;
        if !inode.is_below() || !dir_of(&inode)?.lower.iter().all(|part| self.lowers.layer(part).local) {
            return Ok(());
        }
        let Kept::Stream(stream) = self.listing(&inode, 0)? else { return Ok(()) };
        let Ok(Some(chunk)) = stream.chunk(0) else { return Ok(()) };
        if let Some(known) = self.ahead.begin(inode.serial, chunk) {
            self.examine_ahead(&stream, &known);
        }
        Ok(())
    }

    fn examine_ahead(&self, stream: &Stream, known: &Known) {
        // Directories are left out: what they consist of is more than their attributes.
        for (entry, place) in
            known.chunk.from(0).zip(&known.attrs).filter(|(entry, _)| entry.kind != FileType::Directory)
        {
            // Where it cannot be read, whoever looks the name up is told.
            if let Ok(attr) = self.lowers.stat(&stream.part, entry.name)
                && is_told_by_attributes(&attr, stream.part.xwhiteouts)
            {
                let _ = place.set(attr);
            }
        }
    }
}

/// Returns whether what has `attr` is a file that shows, whatever else is known of it; `xwhiteouts` says whether empty files
/// beside it may be whiteouts.
fn is_told_by_attributes(attr: &Attr, xwhiteouts: bool) -> bool {
    let may_be_whiteout = xwhiteouts && attr.kind == FileKind::Regular && attr.size == 0;
    !(attr.is_dir() || attr.is_char_whiteout() || may_be_whiteout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_entries_are_known_for_so_long() {
        let ahead = Ahead::default();
        let [first, second] = [(); 2].map(|()| Serial::next());
        let chunk = |len| Arc::new(Chunk::of((0..len).map(|i| format!("f{i}"))));
        assert!(ahead.begin(first, chunk(ENOUGH - 1)).is_some() && !ahead.is_enough());
        assert!(ahead.begin(first, chunk(1)).is_none(), "somebody reads it");
        assert!(ahead.begin(second, chunk(2)).is_some() && ahead.is_enough());
        assert!(ahead.get(first, ENOUGH as u64 - 2).is_some());
        assert!(ahead.get(first, ENOUGH as u64 - 1).is_none(), "the reader is past it");
        assert!(ahead.get(first, 0).is_none() && !ahead.is_enough());
        assert!(ahead.begin(first, chunk(ENOUGH)).is_some() && ahead.is_enough());
        std::thread::sleep(LIFE);
        assert!(ahead.get(second, 0).is_none(), "it is too old");
        assert!(!ahead.is_enough(), "what is too old does not count");
    }

    #[test]
    fn attributes_are_those_of_the_name_that_was_read() {
        let known = Known::new(Arc::new(Chunk::of(["a", "b"].map(String::from))));
        let other = Chunk::of(["b", "b"].map(String::from));
        let [first, second]: [Entry<'_>; 2] = other.from(0).collect::<Vec<_>>().try_into().unwrap();
        assert_eq!(known.attr(&second), None, "nothing was read yet");
        let attr = Attr::from(
            &rustix::fs::statx(rustix::fs::CWD, "/", rustix::fs::AtFlags::empty(), rustix::fs::StatxFlags::BASIC_STATS)
                .unwrap(),
        );
        known.attrs.iter().for_each(|place| place.set(attr).unwrap());
        assert_eq!((known.attr(&first), known.attr(&second)), (None, Some(&attr)));
    }
}

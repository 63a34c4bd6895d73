//! What is read of a directory before anybody lists it: its names, and the attributes of the files in it.
//!
//! Who walks a tree lists one directory after the other; while one answer is taken in, a processor may be free to find what
//! the next will say. Only of directories that upper does not have, and attributes of those that one lower layer alone has:
//! they do not change. Attributes are used soon or not at all, so that a layer that is changed against all advice does not show
//! as it was long ago; a listing is kept as any other.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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

/// With so many names known no further directory is read, and of one directory not more attributes than so many.
const ENOUGH: usize = 4096;

/// How long attributes that were read may be used.
const LIFE: Duration = Duration::from_millis(100);

/// How many directories to be ahead of who lists: at first and at least, and at most.
const LEADS: [usize; 2] = [4, 256];

/// The first entries of a directory, and the attributes of each as far as they have been read.
#[derive(Debug)]
pub(super) struct Known {
    since: Instant,
    chunk: Arc<Chunk>,
    /// How many names are in the listing.
    names: usize,
    attrs: Box<[OnceLock<Attr>]>,
    /// Whether nobody will ask for it any more.
    over: AtomicBool,
}

impl Known {
    fn new(chunk: Arc<Chunk>, names: usize, wanted: usize) -> Self {
        let attrs = (0..chunk.len().min(wanted)).map(|_| OnceLock::new()).collect();
        Self { since: Instant::now(), chunk, names, attrs, over: AtomicBool::new(false) }
    }

    /// Returns the attributes of `entry`.
    pub(super) fn attr(&self, entry: &Entry<'_>) -> Option<&Attr> {
        let attr = self.attrs.get(usize::try_from(entry.at).ok()?)?.get()?;
        // Another one, where a layer was changed and listed anew.
        let same = self.chunk.from(entry.at).next().is_some_and(|known| known.name == entry.name);
        same.then_some(attr)
    }
}

/// What is known of directories, the oldest first.
#[derive(Debug)]
struct Queue {
    known: VecDeque<(Serial, Arc<Known>)>,
    /// How many directories to be ahead of who lists: more while they are come to in time, and less where they are not.
    lead: usize,
    /// How many entries of a directory to read the attributes of: as many as were asked for of the last one.
    wanted: usize,
    /// What was taken out, to be dropped without the lock.
    taken: Vec<Arc<Known>>,
}

impl Queue {
    fn take(&mut self, index: usize) {
        if let Some((_, known)) = self.known.remove(index) {
            // Relaxed: a hint.
            known.over.store(true, Ordering::Relaxed);
            self.taken.push(known);
        }
    }

    fn position(&self, serial: Serial) -> Option<usize> {
        self.known.iter().position(|(other, _)| *other == serial)
    }

    /// Drops what nobody came to in time.
    fn expire(&mut self, life: Duration) {
        while self.known.front().is_some_and(|(_, known)| known.since.elapsed() >= life) {
            self.take(0);
            self.lead = (self.lead / 2).max(LEADS[0]);
        }
    }

    fn names(&self) -> usize {
        self.known.iter().map(|(_, known)| known.names).sum()
    }
}

/// What was read before anybody asked.
#[derive(Debug)]
pub(super) struct Prefetch {
    life: Duration,
    /// A leaf. No system call while held.
    queue: Mutex<Queue>,
    /// Of how many directories something is known. Written with `queue` held.
    directories: AtomicUsize,
}

impl Default for Prefetch {
    fn default() -> Self {
        Self::new(LIFE)
    }
}

impl Prefetch {
    fn new(life: Duration) -> Self {
        let queue = Queue { known: VecDeque::new(), lead: LEADS[0], wanted: ENOUGH, taken: Vec::new() };
        Self { life, queue: Mutex::new(queue), directories: AtomicUsize::new(0) }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> T {
        let mut queue = self.queue.lock();
        let result = change(&mut queue);
        self.directories.store(queue.known.len(), Ordering::Relaxed); // Relaxed: a hint.
        let taken = std::mem::take(&mut queue.taken);
        drop(queue);
        drop(taken);
        result
    }

    /// Returns whether so much is known, in `share`s of what is enough, that no more need be read.
    fn is_enough(&self, share: usize) -> bool {
        self.change(|queue| {
            queue.expire(self.life);
            queue.known.len() * share >= queue.lead || queue.names() * share >= ENOUGH
        })
    }

    /// Makes room for the attributes of what is in `chunk`, of a directory with so many `names`; `None` where it is known.
    fn begin(&self, serial: Serial, chunk: Arc<Chunk>, names: usize) -> Option<Arc<Known>> {
        self.change(|queue| {
            queue.expire(self.life);
            queue.position(serial).is_none().then(|| {
                let new = Arc::new(Known::new(chunk, names, queue.wanted));
                queue.known.push_back((serial, new.clone()));
                new
            })
        })
    }

    /// Returns what is known of the entries of a directory from the place `at` on, for who lists it with attributes.
    pub(super) fn get(&self, serial: Serial, at: u64) -> Option<Arc<Known>> {
        // Relaxed: a hint.
        if self.directories.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.change(|queue| {
            queue.expire(self.life);
            let index = queue.position(serial)?;
            let (_, known) = queue.known.get(index)?;
            // Who is come to late is far enough ahead.
            if at == 0 && known.since.elapsed() < self.life / 2 {
                queue.lead = (queue.lead * 2).min(LEADS[1]);
            }
            if at < known.attrs.len() as u64 {
                return Some(known.clone());
            }
            // Whoever reads on has come past all that is known, and might have used more.
            if known.attrs.len() < known.chunk.len() {
                queue.wanted = ENOUGH;
            }
            queue.take(index);
            None
        })
    }

    /// Drops what is known of a directory: it is gone, or whoever lists it has come to the place `at` and asks for no
    /// attributes any more.
    pub(super) fn drop_known(&self, serial: Serial, at: Option<u64>) {
        // Relaxed: a hint.
        if self.directories.load(Ordering::Relaxed) > 0 {
            self.change(|queue| {
                let Some(index) = queue.position(serial) else { return };
                let read = queue.known.get(index).map_or(0, |(_, known)| known.attrs.len());
                if let Some(at) = at.and_then(|at| usize::try_from(at).ok()).filter(|&at| at < read) {
                    queue.wanted = at.clamp(1, ENOUGH);
                }
                queue.take(index);
            });
        }
    }
}

impl Union {
    /// Returns whether so much was read by [`Union::prefetch`] that nobody has come to yet that there is no need for more.
    pub fn has_prefetched_enough(&self) -> bool {
        self.prefetch.is_enough(1)
    }

    /// Returns whether it is so little that somebody should begin to read more.
    pub fn should_prefetch(&self) -> bool {
        !self.prefetch.is_enough(2)
    }

    /// Reads the names in the directory `id`, and where one lower layer alone has it, the attributes of the files there, for who
    /// is likely to list it soon, as long as `goes_on` says so: what [`Union::read_dir_plus`] says is the same, and sooner.
    /// Returns whether anything was read: nothing is of directories that upper has, or that are not on local file systems.
    ///
    /// Errors: as those of listing it; there is no need to tell anybody.
    pub fn prefetch(&self, id: NodeId, goes_on: impl Fn() -> bool) -> Result<bool> {
        let inode = self.directory(id)?;
        if !inode.is_below() || !dir_of(&inode)?.lower.iter().all(|part| self.lowers.layer(part).local) {
            return Ok(false);
        }
        let known = match self.listing(&inode, 0)? {
            // What its files are is looked up part by part.
            Kept::Listing(listing) => self.prefetch.begin(inode.serial, Arc::default(), listing.len()),
            Kept::Stream(stream) => {
                let chunk = stream.chunk(0).ok().flatten().unwrap_or_default();
                let names = chunk.len();
                let known = self.prefetch.begin(inode.serial, chunk, names);
                known.inspect(|known| self.examine(&stream, known, goes_on))
            }
        };
        // It may have been forgotten meanwhile.
        if !self.directory(id).is_ok_and(|now| Arc::ptr_eq(&now, &inode)) {
            self.forget_listings(inode.serial);
        }
        Ok(known.is_some())
    }

    fn examine(&self, stream: &Stream, known: &Known, goes_on: impl Fn() -> bool) {
        // Directories are left out: what they consist of is more than their attributes.
        let files = known.chunk.from(0).zip(&known.attrs).filter(|(entry, _)| entry.kind != FileType::Directory);
        for (entry, place) in files {
            // Relaxed: a hint.
            if known.over.load(Ordering::Relaxed) || (entry.at % 64 == 0 && !goes_on()) {
                return;
            }
            // Where it cannot be read, whoever looks the name up is told.
            if let Ok(attr) = self.lowers.stat(&stream.part, entry.name)
                && is_told_by_attributes(&attr, stream.part.xwhiteouts)
            {
                // Set by nobody else.
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
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

    use super::*;

    fn chunk(len: usize) -> Arc<Chunk> {
        Arc::new(Chunk::of((0..len).map(|i| format!("f{i}"))))
    }

    #[test]
    fn no_more_is_read_than_somebody_comes_to() {
        let prefetch = Prefetch::new(Duration::MAX);
        let directories: Vec<_> = (0..10).map(|_| Serial::next()).collect();
        let read = |of: &[Serial]| of.iter().all(|&serial| prefetch.begin(serial, chunk(2), 2).is_some());
        assert!(read(&directories[..2]) && prefetch.is_enough(2) && !prefetch.is_enough(1));
        assert!(!read(&directories[..1]), "it is known");
        assert!(read(&directories[2..LEADS[0]]) && prefetch.is_enough(1));
        // Coming to the first lets the lead grow, and being through with it makes room.
        assert!(prefetch.get(directories[0], 0).is_some() && !prefetch.is_enough(1));
        assert!(prefetch.get(directories[0], 1).is_some() && prefetch.get(directories[0], 2).is_none());
        assert!(read(&directories[..1]), "it is not known any more");
        // Many names are enough, too.
        assert!(
            prefetch
                .begin(directories[9], chunk(2 * ENOUGH), 2 * ENOUGH)
                .is_some_and(|known| known.attrs.len() == ENOUGH)
        );
        assert!(prefetch.is_enough(1));
    }

    #[test]
    fn what_nobody_comes_to_in_time_is_dropped_and_less_is_read() {
        let prefetch = Prefetch::new(Duration::ZERO);
        prefetch.change(|queue| queue.lead = LEADS[1]);
        let serial = Serial::next();
        let known = prefetch.begin(serial, chunk(1), 1).unwrap();
        assert!(prefetch.get(serial, 0).is_none() && known.over.load(Ordering::Relaxed));
        assert_eq!(prefetch.change(|queue| queue.lead), LEADS[1] / 2);
        assert!(prefetch.begin(serial, chunk(1), 1).is_some(), "it can be read again");
    }

    #[test]
    fn attributes_are_read_of_as_many_entries_as_are_asked_for() {
        let prefetch = Prefetch::new(Duration::MAX);
        let [first, second, third] = [(); 3].map(|()| Serial::next());
        let known = |serial| prefetch.begin(serial, chunk(1000), 1000).unwrap();
        assert_eq!(known(first).attrs.len(), 1000);
        prefetch.drop_known(first, Some(200));
        assert_eq!(known(second).attrs.len(), 200);
        assert!(prefetch.get(second, 200).is_none(), "more was asked for");
        let third_known = known(third);
        assert_eq!(third_known.attrs.len(), 1000);
        prefetch.drop_known(third, None);
        assert!(third_known.over.load(Ordering::Relaxed) && prefetch.get(third, 0).is_none());
    }

    #[test]
    fn attributes_are_those_of_the_name_that_was_read() {
        let known = Known::new(Arc::new(Chunk::of(["a", "b"].map(String::from))), 2, 2);
        let other = Chunk::of(["b", "b"].map(String::from));
        let [first, second]: [Entry<'_>; 2] = other.from(0).collect::<Vec<_>>().try_into().unwrap();
        assert_eq!(known.attr(&second), None, "nothing was read yet");
        let attr = Attr::from(&statx(CWD, "/", AtFlags::empty(), StatxFlags::BASIC_STATS).unwrap());
        known.attrs.iter().for_each(|place| place.set(attr).unwrap());
        assert_eq!((known.attr(&first), known.attr(&second)), (None, Some(&attr)));
    }
}

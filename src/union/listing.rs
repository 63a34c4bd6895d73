//! Listings of merged directories, kept for a while so that reading one goes on where it was.
//!
//! An entry's cookie is made from its name, so it is the same in every listing of the directory: a reader
//! without a handle can go on after the listing was evicted, or while entries come and go.

use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use super::stream::Stream;
use crate::layer::attr::FileKind;
use crate::layer::dir::Serial;

/// Entries of all listings that are kept at most.
const ENTRIES_MAX: usize = 1 << 17;

/// The first cookie of a name; those below are for `.` and `..`.
const FIRST: u64 = 3;

/// One name in a listing.
#[derive(Debug, Clone, Copy)]
pub struct Item {
    /// Where reading goes on after this entry.
    pub cookie: u64,
    /// The inode number that stat(2) shows.
    pub ino: u64,
    /// What it is.
    pub kind: FileKind,
    start: u32,
    len: u8,
}

/// The names in a directory at one time, in the order of their cookies.
#[derive(Debug, Default)]
pub struct Listing {
    names: Vec<u8>,
    items: Vec<Item>,
    /// The directory's count of changes when it was listed.
    pub version: u64,
}

/// FNV-1a with a final mix: fixed for all time, because cookies outlive a listing.
pub(super) fn hash(name: &[u8]) -> u64 {
    let hash = name.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let mixed = (hash ^ hash >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 29
}

/// Positive as a signed offset, and below the cookies of [`Stream`]s, however many clashing names follow each other.
fn cookie(hash: u64) -> u64 {
    (hash >> 3).max(FIRST)
}

impl Listing {
    /// Makes an empty listing of a directory at `version`.
    pub fn new(version: u64) -> Self {
        Self { version, ..Self::default() }
    }

    /// Adds an entry; the order is settled by [`Listing::finish`].
    pub fn add(&mut self, name: &OsStr, ino: u64, kind: FileKind) {
        let name = name.as_bytes();
        let (Ok(start), Ok(len)) = (u32::try_from(self.names.len()), u8::try_from(name.len())) else { return };
        self.names.extend_from_slice(name);
        self.items.push(Item { cookie: cookie(hash(name)), ino, kind, start, len });
    }

    /// Makes a listing of entries among `names` that are in order: each with its hash, where its name begins, and how long
    /// that is.
    pub fn sorted(
        version: u64,
        names: Vec<u8>,
        entries: impl Iterator<Item = (u64, u32, usize, u64, FileKind)>,
    ) -> Self {
        let items = entries.map(|(hash, start, len, ino, kind)| Item {
            cookie: cookie(hash),
            ino,
            kind,
            start,
            len: len as u8,
        });
        Self { names, items: items.collect(), version }.tell_apart()
    }

    /// Sorts the entries and tells those with one hash apart.
    pub fn finish(mut self) -> Self {
        let names = &self.names;
        let name = |item: &Item| &names[item.start as usize..item.start as usize + usize::from(item.len)];
        self.items.sort_unstable_by(|a, b| a.cookie.cmp(&b.cookie).then_with(|| name(a).cmp(name(b))));
        self.tell_apart()
    }

    fn tell_apart(mut self) -> Self {
        let mut last = 0;
        for item in &mut self.items {
            item.cookie = item.cookie.max(last + 1);
            last = item.cookie;
        }
        self
    }

    /// Returns how many entries there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Returns whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Returns the name of an entry.
    pub fn name(&self, item: &Item) -> &OsStr {
        let start = item.start as usize;
        OsStr::from_bytes(self.names.get(start..start + usize::from(item.len)).unwrap_or_default())
    }

    /// Returns the entries that come after `cookie`.
    pub fn after(&self, cookie: u64) -> &[Item] {
        let from = self.items.partition_point(|item| item.cookie <= cookie);
        self.items.get(from..).unwrap_or_default()
    }
}

/// A listing of either kind.
#[derive(Debug, Clone)]
pub enum Kept {
    /// In the order of the names' cookies.
    Listing(Arc<Listing>),
    /// In the order of the one lower layer that has the directory.
    Stream(Arc<Stream>),
}

/// The order of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Order {
    /// That of the names' cookies.
    Name,
    /// That of the one lower layer that has the directory.
    Place,
}

impl Kept {
    fn order(&self) -> Order {
        match self {
            Self::Listing(_) => Order::Name,
            Self::Stream(_) => Order::Place,
        }
    }

    /// Returns the directory's count of changes when it was listed.
    pub fn version(&self) -> u64 {
        match self {
            Self::Listing(listing) => listing.version,
            Self::Stream(stream) => stream.version,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Listing(listing) => listing.len(),
            Self::Stream(stream) => stream.len(),
        }
    }
}

/// The listings that are kept, the least recently used going first.
pub struct Listings {
    /// Rank 5 (leaf). No syscall while held.
    lru: Mutex<Lru>,
}

struct Lru {
    /// Each with how many entries it counts as.
    kept: LruCache<(Serial, Order), (Kept, usize)>,
    /// Of all.
    entries: usize,
    /// Of which directories there is a stream that had not come to its end when it was last counted.
    growing: Vec<Serial>,
}

impl Lru {
    fn pop(&mut self, key: &(Serial, Order)) -> Option<Kept> {
        let (old, counted) = self.kept.pop(key)?;
        self.entries -= counted;
        Some(old)
    }

    /// Counts what has grown.
    fn recount(&mut self) {
        let Self { kept, entries, growing } = self;
        growing.retain(|&serial| match kept.peek_mut(&(serial, Order::Place)) {
            Some((Kept::Stream(stream), counted)) => {
                let grows = stream.grows();
                let len = stream.len();
                *entries = *entries - *counted + len;
                *counted = len;
                grows
            }
            _ => false,
        });
    }

    /// Takes out what is too much.
    fn evict(&mut self) -> Vec<Kept> {
        self.recount();
        let mut evicted = Vec::new();
        while self.entries > ENTRIES_MAX && self.kept.len() > 1 {
            let Some((_, (old, counted))) = self.kept.pop_lru() else { break };
            self.entries -= counted;
            evicted.push(old);
        }
        evicted
    }
}

impl Listings {
    /// Makes an empty collection.
    pub fn new() -> Self {
        const MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("is not zero");
        Self { lru: Mutex::new(Lru { kept: LruCache::new(MAX), entries: 0, growing: Vec::new() }) }
    }

    /// Returns the listing of a directory in this order, however old.
    pub fn get(&self, serial: Serial, order: Order) -> Option<Kept> {
        self.lru.lock().kept.get(&(serial, order)).map(|(kept, _)| kept.clone())
    }

    /// Keeps a listing in place of an older one.
    pub fn insert(&self, serial: Serial, new: Kept) {
        let key = (serial, new.order());
        let mut lru = self.lru.lock();
        if lru.kept.peek(&key).is_some_and(|(newer, _)| newer.version() > new.version()) {
            // Two readers listed at one time: who began later must not go on in what is older.
            return;
        }
        if key.1 == Order::Place {
            lru.growing.push(serial);
        }
        let len = new.len();
        lru.entries += len;
        // The older one, or where there is none, one that there is no place for.
        let pushed_out = lru.kept.push(key, (new, len));
        if let Some((_, (_, counted))) = &pushed_out {
            lru.entries -= counted;
        }
        let evicted = lru.evict();
        drop(lru);
        drop((pushed_out, evicted));
    }

    /// Forgets the listings of a directory.
    pub fn remove(&self, serial: Serial) {
        let mut lru = self.lru.lock();
        let old = [Order::Name, Order::Place].map(|order| lru.pop(&(serial, order)));
        drop(lru);
        drop(old);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(names: impl Iterator<Item = String>) -> Listing {
        let mut listing = Listing::new(0);
        for name in names {
            listing.add(OsStr::new(&name), 1, FileKind::Regular);
        }
        listing.finish()
    }

    #[test]
    fn cookies_are_unique_positive_and_depend_on_the_name_alone() {
        let all = listing((0..10_000).map(|i| format!("f{i}")));
        let half = listing((0..10_000).step_by(2).map(|i| format!("f{i}")));
        let cookie = |listing: &Listing, name: &str| {
            listing.after(0).iter().find(|item| listing.name(item) == name).map(|item| item.cookie)
        };
        assert!(all.after(0).windows(2).all(|pair| pair[0].cookie < pair[1].cookie));
        assert!(all.after(0).iter().all(|item| item.cookie >= FIRST && i64::try_from(item.cookie).is_ok()));
        for name in ["f0", "f2", "f9998"] {
            assert_eq!(cookie(&all, name), cookie(&half, name));
        }
    }

    #[test]
    fn reading_goes_on_after_a_cookie_whose_entry_is_gone() {
        let all = listing((0..100).map(|i| format!("f{i}")));
        let seen: Vec<_> = all.after(0)[..50].iter().map(|item| all.name(item).to_owned()).collect();
        let last = all.after(0)[49];
        let gone = all.name(&last).to_owned();
        let rest = listing((0..100).map(|i| format!("f{i}")).filter(|name| **name != *gone));
        let more: Vec<_> = rest.after(last.cookie).iter().map(|item| rest.name(item).to_owned()).collect();
        assert_eq!(seen.len() + more.len(), 100);
        assert!(more.iter().all(|name| !seen.contains(name)));
    }
}

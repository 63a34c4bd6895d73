//! A bounded cache of open descriptors.
//!
//! RLIMIT_NOFILE is small and often cannot be raised, so no inode keeps a descriptor of its own: what is
//! needed again soon is found here, the rest is opened anew.

use std::hash::{BuildHasher, Hash, RandomState};
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use lru::LruCache;

use crate::sys::sync::Mutex;

/// One for a model: a run of it can be repeated only if the keys are in the same shards again.
const SHARDS: usize = if cfg!(loom) { 1 } else { 16 };

/// How often a cache had what was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hits {
    /// It had it.
    pub hits: u64,
    /// It had not.
    pub misses: u64,
}

struct Shard<K> {
    kept: LruCache<K, Arc<OwnedFd>>,
    /// Counted here, under the lock that is held anyhow.
    asked: Hits,
}

/// Descriptors by key, the least recently used of a shard closed first.
pub struct FdCache<K> {
    hasher: RandomState,
    /// Rank 5 (leaf). Guards one shard. No syscall while held: what falls out is closed after.
    shards: Box<[Mutex<Shard<K>>]>,
}

impl<K> std::fmt::Debug for FdCache<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FdCache").finish_non_exhaustive()
    }
}

impl<K: Hash + Eq> FdCache<K> {
    /// Makes a cache of about `capacity` descriptors.
    pub fn new(capacity: usize) -> Self {
        let each = NonZeroUsize::new(capacity / SHARDS).unwrap_or(NonZeroUsize::MIN);
        let shard = || Shard { kept: LruCache::new(each), asked: Hits::default() };
        let shards = (0..SHARDS).map(|_| Mutex::new(shard())).collect();
        Self { hasher: RandomState::new(), shards }
    }

    fn shard(&self, key: &K) -> &Mutex<Shard<K>> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    /// Returns the descriptor of `key`.
    pub fn get(&self, key: &K) -> Option<Arc<OwnedFd>> {
        let mut shard = self.shard(key).lock();
        let found = shard.kept.get(key).cloned();
        let asked = &mut shard.asked;
        let count = if found.is_some() { &mut asked.hits } else { &mut asked.misses };
        *count += 1;
        found
    }

    /// Keeps `fd` for `key`.
    pub fn insert(&self, key: K, fd: Arc<OwnedFd>) {
        let evicted = self.shard(&key).lock().kept.push(key, fd);
        drop(evicted);
    }

    /// Keeps `fd` for `key` if `current` says so, and returns that. Whoever removes the descriptor of `key` after it is not
    /// current any more leaves none that was kept before, and finds that none is kept after.
    pub fn insert_if(&self, key: K, fd: Arc<OwnedFd>, current: impl FnOnce() -> bool) -> bool {
        let mut shard = self.shard(&key).lock();
        let is_current = current();
        let evicted = if is_current { shard.kept.push(key, fd) } else { None };
        drop(shard);
        drop(evicted);
        is_current
    }

    /// Forgets the descriptor of `key`; it is closed when nobody uses it any more.
    pub fn remove(&self, key: &K) {
        let removed = self.shard(key).lock().kept.pop(key);
        drop(removed);
    }

    /// Forgets all descriptors.
    pub fn clear(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            let empty = LruCache::new(shard.kept.cap());
            let kept = std::mem::replace(&mut shard.kept, empty);
            drop((shard, kept));
        }
    }

    /// Returns how many descriptors are kept.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().kept.len()).sum()
    }

    /// Returns how often what was asked for was kept.
    pub fn asked(&self) -> Hits {
        self.shards.iter().fold(Hits::default(), |sum, shard| {
            let Hits { hits, misses } = shard.lock().asked;
            Hits { hits: sum.hits + hits, misses: sum.misses + misses }
        })
    }

    /// Returns whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_stays_within_its_capacity() {
        let cache = FdCache::new(32);
        let fd = Arc::new(OwnedFd::from(std::fs::File::open("/").unwrap()));
        for key in 0..1000u64 {
            cache.insert(key, fd.clone());
        }
        assert!(cache.len() <= 32, "{}", cache.len());
        cache.insert(5000, fd);
        assert!(cache.get(&5000).is_some());
        cache.remove(&5000);
        assert!(cache.get(&5000).is_none());
        assert_eq!(cache.asked(), Hits { hits: 1, misses: 1 });
        cache.clear();
        assert!(cache.is_empty());
    }
}

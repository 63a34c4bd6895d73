//! Which users and groups the mount shows for those that the layers store.

use std::fmt;

/// The user and group of what belongs to nobody that can be named: the kernel's overflow ids (user_namespaces(7)).
pub const NOBODY: u32 = 65534;

/// Consecutive ids that the layers store, and what the mount shows for them.
///
/// Container runtimes write it `STORED:SHOWN:COUNT`, where the layers store the ids of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// The first id in the layers.
    pub stored: u32,
    /// The first id that the mount shows.
    pub shown: u32,
    /// How many there are.
    pub count: u32,
}

/// Ranges that no map can be made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdMapError {
    /// A range of no ids.
    #[error("the range {0} is empty; give it a count of 1 or more")]
    Empty(IdRange),
    /// A range that goes on after the last id there is, 4294967294.
    #[error("the range {0} goes past 4294967294, the last id there is; make it shorter")]
    Overflow(IdRange),
    /// Two ranges that store, or show, the same id.
    #[error("the ranges {0} and {1} overlap; each id may be in one alone, stored and shown")]
    Overlap(IdRange, IdRange),
}

/// A map between the ids that the layers store and those that the mount shows: one to one, where it maps at all.
///
/// ```
/// use unionfs_rs::config::{IdMap, IdRange};
///
/// let map = IdMap::new(vec![IdRange { stored: 0, shown: 1000, count: 5000 }])?;
/// assert_eq!(map.shown(7), Some(1007));
/// assert_eq!(map.stored(1007), Some(7));
/// assert_eq!(map.stored(0), None);
/// assert_eq!(IdMap::default().shown(7), Some(7));
/// # Ok::<(), unionfs_rs::config::IdMapError>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMap {
    /// None at all means that each id is itself.
    ranges: Vec<IdRange>,
}

impl fmt::Display for IdRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.stored, self.shown, self.count)
    }
}

impl IdRange {
    fn overlaps(&self, other: &Self) -> bool {
        let touch = |a: u32, b: u32| a < b.saturating_add(other.count) && b < a.saturating_add(self.count);
        touch(self.stored, other.stored) || touch(self.shown, other.shown)
    }
}

impl IdMap {
    /// Makes a map of ranges; without any, each id is itself.
    ///
    /// Errors: ranges that are empty, overlap, or go past the last id.
    pub fn new(ranges: Vec<IdRange>) -> Result<Self, IdMapError> {
        for (at, range) in ranges.iter().enumerate() {
            if range.count == 0 {
                return Err(IdMapError::Empty(*range));
            }
            // The highest number of all means "none" to chown(2).
            if range.stored.max(range.shown).checked_add(range.count).is_none() {
                return Err(IdMapError::Overflow(*range));
            }
            if let Some(other) = ranges.iter().take(at).find(|other| range.overlaps(other)) {
                return Err(IdMapError::Overlap(*other, *range));
            }
        }
        Ok(Self { ranges })
    }

    /// Returns whether each id is itself.
    pub fn is_identity(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Returns what the mount shows for the id `stored`; `None` where the map has no place for it.
    pub fn shown(&self, stored: u32) -> Option<u32> {
        self.find(stored, |range| (range.stored, range.shown))
    }

    /// Returns what the layers store for the id `shown`; `None` where the map has no place for it.
    pub fn stored(&self, shown: u32) -> Option<u32> {
        self.find(shown, |range| (range.shown, range.stored))
    }

    fn find(&self, id: u32, ends: impl Fn(&IdRange) -> (u32, u32)) -> Option<u32> {
        if self.is_identity() {
            return Some(id);
        }
        self.ranges.iter().find_map(|range| {
            let (from, to) = ends(range);
            id.checked_sub(from).filter(|offset| *offset < range.count).map(|offset| to + offset)
        })
    }
}

/// The users and groups that the mount shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owners {
    /// How user ids are mapped.
    pub uids: IdMap,
    /// How group ids are mapped.
    pub gids: IdMap,
    /// The user that everything is shown to belong to, whatever is stored.
    pub squash_uid: Option<u32>,
    /// The group that everything is shown to belong to, whatever is stored.
    pub squash_gid: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(stored: u32, shown: u32, count: u32) -> IdRange {
        IdRange { stored, shown, count }
    }

    #[test]
    fn ids_are_mapped_both_ways_and_others_not_at_all() {
        let map = IdMap::new(vec![range(0, 1000, 1), range(1, 110_000, 65_536)]).expect("they are apart");
        for (stored, shown) in [(0, 1000), (1, 110_000), (65_536, 175_535)] {
            assert_eq!(map.shown(stored), Some(shown));
            assert_eq!(map.stored(shown), Some(stored));
        }
        assert_eq!(map.shown(65_537), None);
        for shown in [0, 999, 1001, 109_999, 175_536] {
            assert_eq!(map.stored(shown), None, "{shown}");
        }
    }

    #[test]
    fn the_last_id_can_be_mapped_and_the_one_that_means_none_cannot() {
        let last = range(0, u32::MAX - 1, 1);
        assert_eq!(IdMap::new(vec![last]).map(|map| map.shown(0)), Ok(Some(u32::MAX - 1)));
        assert_eq!(IdMap::new(vec![range(0, u32::MAX - 1, 2)]), Err(IdMapError::Overflow(range(0, u32::MAX - 1, 2))));
        assert_eq!(IdMap::new(vec![range(7, 0, u32::MAX)]), Err(IdMapError::Overflow(range(7, 0, u32::MAX))));
    }

    #[test]
    fn ranges_that_are_empty_or_overlap_are_refused() {
        assert_eq!(IdMap::new(vec![range(1, 2, 0)]), Err(IdMapError::Empty(range(1, 2, 0))));
        for (a, b) in [
            (range(0, 1000, 10), range(9, 2000, 5)),
            (range(0, 1000, 10), range(100, 1009, 5)),
            (range(0, 1000, 10), range(100, 990, 11)),
            (range(5, 1000, 1), range(5, 2000, 1)),
        ] {
            assert_eq!(IdMap::new(vec![a, b]), Err(IdMapError::Overlap(a, b)));
            assert_eq!(IdMap::new(vec![b, a]), Err(IdMapError::Overlap(b, a)));
        }
        assert!(IdMap::new(vec![range(0, 1000, 10), range(10, 1010, 10)]).is_ok(), "they touch and do not overlap");
    }
}

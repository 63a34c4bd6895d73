//! Which directories will be listed next: who lists one of those that another listing has just told of is walking the tree,
//! and will come to the others, most likely in the order in which they were told.
//!
//! Those are prefetched while the walk is taken up with what it has. Who only lists a directory, or knows where to go, has
//! nothing read for it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::union::NodeId;

/// So many of the next directories are prefetched at most: who does it may lose its processor for a while, in which a walk
/// comes to many small ones.
const AHEAD: usize = 256;

/// So many directories of a listing a walk may pass over.
const NEAR: usize = 16;

/// So many directories that were told of are remembered of one listing, and so many listings.
const REMEMBERED: usize = 1024;
const DEPTH: usize = 64;

/// How long who prefetches looks for more, before it must be woken for it.
const LINGER: Duration = Duration::from_micros(200);

/// After so many vain attempts in a row the next is made no later: when somebody could have begun for the 64th time.
const BARREN_MAX: u32 = 6;

/// A directory that a listing told of, and whether it was prefetched.
#[derive(Debug, Clone, Copy)]
struct Told {
    id: NodeId,
    read: bool,
}

/// The directories that a listing told of and that the walk has not come to, in order.
#[derive(Debug)]
struct Level {
    of: NodeId,
    told: VecDeque<Told>,
}

#[derive(Debug, Default)]
struct State {
    /// The deepest last.
    levels: Vec<Level>,
    /// Whether somebody prefetches.
    busy: bool,
    /// How often in a row whoever did has found nothing to read, as in a tree that upper has.
    barren: u32,
    /// How often somebody could have begun since.
    let_pass: u32,
}

impl State {
    /// Notes that `id` is being listed; returns whether a walk has come to it.
    fn come_to(&mut self, id: NodeId) -> bool {
        // What was passed over is not come back to.
        let place = self.levels.iter().enumerate().rev().find_map(|(depth, level)| {
            let at = level.told.iter().take(NEAR).position(|told| told.id == id)?;
            Some((depth, at))
        });
        let Some((depth, at)) = place else { return false };
        self.levels.truncate(depth + 1);
        if let Some(level) = self.levels.last_mut() {
            level.told.drain(..=at);
        }
        true
    }

    /// Notes that the listing of `of`, from its beginning or not, told of `directories`.
    fn tell(&mut self, of: NodeId, begins: bool, directories: &[NodeId]) {
        let known = self.levels.iter().rposition(|level| level.of == of);
        if let Some(level) = known.filter(|_| begins).and_then(|depth| self.levels.get_mut(depth)) {
            level.told.clear();
        }
        if directories.is_empty() {
            return;
        }
        let depth = known.unwrap_or_else(|| {
            self.levels.retain(|level| !level.told.is_empty());
            if self.levels.len() == DEPTH {
                self.levels.remove(0);
            }
            self.levels.push(Level { of, told: VecDeque::new() });
            self.levels.len() - 1
        });
        if let Some(Level { told, .. }) = self.levels.get_mut(depth) {
            let room = REMEMBERED.saturating_sub(told.len());
            told.extend(directories.iter().take(room).map(|&id| Told { id, read: false }));
        }
    }

    /// Returns the next directory to be prefetched.
    fn next(&mut self) -> Option<NodeId> {
        let mut next = self.levels.iter_mut().rev().flat_map(|level| level.told.iter_mut()).take(AHEAD);
        let told = next.find(|told| !told.read)?;
        told.read = true;
        Some(told.id)
    }

    /// Returns whether there is something to prefetch, and somebody should begin.
    fn is_worth(&mut self) -> bool {
        let mut next = self.levels.iter().rev().flat_map(|level| level.told.iter()).take(AHEAD);
        if self.busy || next.all(|told| told.read) {
            return false;
        }
        self.let_pass += 1;
        self.let_pass >= 1 << self.barren
    }

    /// Notes whether whoever has prefetched has found anything to read.
    fn end(&mut self, fruitful: bool) {
        self.barren = if fruitful { 0 } else { (self.barren + 1).min(BARREN_MAX) };
        (self.busy, self.let_pass) = (false, 0);
    }
}

/// A walk through the tree. Several at a time disturb each other in what is prefetched, and in nothing else.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// A leaf. No system call while held.
    state: Mutex<State>,
}

impl Walk {
    /// Notes that the directory `of` is listed, from its beginning or not, and that it told of `directories`. Returns whether a
    /// walk has come to it, which nobody prefetches for.
    pub(super) fn note(&self, of: NodeId, begins: bool, directories: &[NodeId]) -> bool {
        let mut state = self.state.lock();
        let walks = begins && state.come_to(of);
        state.tell(of, begins, directories);
        walks && state.is_worth()
    }

    /// Returns whether the caller is to prefetch, and nobody else does.
    pub(super) fn begin(&self) -> bool {
        !std::mem::replace(&mut self.state.lock().busy, true)
    }

    /// Has `prefetch` read what the walk comes to next, which returns whether there was anything to read, until `is_enough` or
    /// the walk does not go on. To be called after [`Walk::begin`].
    pub(super) fn follow(&self, mut prefetch: impl FnMut(NodeId) -> bool, is_enough: impl Fn() -> bool) {
        let mut busy = Busy { walk: self, fruitful: false };
        let mut last = None;
        while !is_enough() {
            let next = self.state.lock().next();
            match next {
                Some(id) if prefetch(id) => {
                    busy.fruitful = true;
                    last = Some(Instant::now());
                }
                Some(_) => {}
                None if last.is_some_and(|last| last.elapsed() < LINGER) => std::thread::yield_now(),
                None => return,
            }
        }
    }
}

/// Who prefetches, until this is dropped, also by a panic.
struct Busy<'a> {
    walk: &'a Walk,
    fruitful: bool,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.walk.state.lock().end(self.fruitful);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: impl IntoIterator<Item = u64>) -> Vec<NodeId> {
        ids.into_iter().map(NodeId).collect()
    }

    #[test]
    fn nothing_is_read_for_who_only_lists() {
        let walk = Walk::default();
        assert!(!walk.note(NodeId(1), true, &ids(2..10)));
        assert!(!walk.note(NodeId(99), true, &[]), "nobody has told of it");
        assert!(!walk.note(NodeId(2), false, &[]), "its listing has not begun");
        assert!(walk.note(NodeId(2), true, &[]));
        assert!(walk.begin() && !walk.begin());
        assert!(!walk.note(NodeId(3), true, &[]), "somebody reads already");
    }

    #[test]
    fn what_the_walk_comes_to_next_is_read_first_and_not_too_much() {
        let mut state = State::default();
        state.tell(NodeId(1), true, &ids(10..13));
        // The rest of a long listing.
        state.tell(NodeId(1), false, &ids(13..1000));
        assert!(state.come_to(NodeId(10)));
        state.tell(NodeId(10), true, &ids([5001, 5002]));
        let read: Vec<_> = std::iter::from_fn(|| state.next()).collect();
        let last = 11 + AHEAD as u64 - 2;
        assert_eq!(read, ids([5001, 5002].into_iter().chain(11..last)));
        assert!(state.come_to(NodeId(5001)));
        assert_eq!((state.next(), state.next()), (Some(NodeId(last)), None));
        // 5002 is passed over, and 11 as well.
        assert!(state.come_to(NodeId(12)) && !state.come_to(NodeId(5002)) && !state.come_to(NodeId(11)));
        assert!(!state.come_to(NodeId(13 + NEAR as u64)), "it is too far");
        // Whoever lists it again is told of the same again.
        state.tell(NodeId(1), true, &ids(10..13));
        assert!(state.levels.last().is_some_and(|level| level.told.len() == 3));
    }

    #[test]
    fn little_is_remembered() {
        let mut state = State::default();
        for of in 0..1000 {
            state.tell(NodeId(of), true, &ids(0..10_000));
        }
        assert_eq!(state.levels.len(), DEPTH);
        assert!(state.levels.iter().all(|level| level.told.len() == REMEMBERED));
    }

    #[test]
    fn reading_ends_with_the_walk_and_begins_again() {
        let walk = Walk::default();
        walk.note(NodeId(1), true, &ids(2..5));
        assert!(walk.note(NodeId(2), true, &[]) && walk.begin());
        walk.follow(|_| unreachable!("it is enough"), || true);
        walk.state.lock().barren = 0;
        assert!(walk.note(NodeId(3), true, &ids([30, 31])) && walk.begin());
        let mut read = Vec::new();
        let mut prefetch = |id| {
            read.push(id);
            true
        };
        walk.follow(&mut prefetch, || false);
        assert_eq!(read, ids([30, 31, 4]));
        assert!(!walk.note(NodeId(31), true, &[]), "all of it was read");
        assert!(walk.note(NodeId(4), true, &ids([40])) && walk.begin());
        let panics = || walk.follow(|_| panic!("a panic that is expected"), || false);
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
        assert!(walk.begin(), "nobody reads any more");
    }

    #[test]
    fn where_there_is_nothing_to_read_it_is_tried_less_and_less_often() {
        let walk = Walk::default();
        let mut tries = 0;
        // Each is the only one in the one before.
        for id in 1..1000 {
            if walk.note(NodeId(id), true, &ids([id + 1])) {
                tries += 1;
                assert!(walk.begin());
                walk.follow(|_| false, || false);
            }
        }
        assert!((BARREN_MAX..2 * BARREN_MAX + 1000 / (1 << BARREN_MAX)).contains(&tries), "{tries}");
    }
}

//! The account of what upper holds, where it may not hold more than so much.
//!
//! For each inode of upper it has the bytes that are allocated for it, as stat(2) last said; the sum is what is used. After a
//! change whoever made it has the inode looked at again ([`Quota::settle`]), so that nothing is estimated for good, names of
//! one file count once, and what a file system allocates late is corrected the next time. Before a change the most that it can
//! take is reserved, under the same lock, so that whoever changes upper at the same time stays within the limit together.
//!
//! Without a quota there is none of this: no lock, and no system call.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, StatxFlags};
use rustix::io::{Errno, Result};

use super::inode::{Inode, Real};
use super::search::{Hit, Top};
use super::{StatFs, Union};
use crate::config::QuotaLimits;
use crate::layer::dir::dotwh_name;
use crate::sys::{dents, fiemap};

/// Bytes and inodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// Bytes that are allocated.
    pub bytes: u64,
    /// Inodes, each once.
    pub inodes: u64,
}

/// What is used of a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuotaUsage {
    /// What upper holds.
    pub used: Amount,
    /// What it may hold.
    pub limits: QuotaLimits,
}

#[derive(Debug, Default)]
struct State {
    /// The bytes of each inode of upper.
    known: HashMap<u64, u64>,
    used: Amount,
    reserved: Amount,
    /// Inodes that have lost their last name, and whose last user is not known to be gone.
    leaving: HashSet<u64>,
}

/// What stat(2) says of an inode.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    ino: u64,
    bytes: u64,
    /// Whether it has a name.
    named: bool,
}

impl State {
    /// Records an inode; not one that nobody knows and that has no name, which somebody has just removed.
    fn note(&mut self, seen: Seen) {
        if seen.named || self.known.contains_key(&seen.ino) {
            self.record(seen.ino, seen.bytes);
        }
    }

    fn record(&mut self, ino: u64, bytes: u64) {
        let before = match self.known.insert(ino, bytes) {
            Some(before) => before,
            None => {
                self.used.inodes += 1;
                0
            }
        };
        self.used.bytes = self.used.bytes.saturating_sub(before).saturating_add(bytes);
    }
}

/// The account of one upper.
#[derive(Debug)]
pub struct Quota {
    limits: QuotaLimits,
    /// The unit in which the file system allocates, in bytes.
    block: u64,
    /// Rank 5 (leaf). Held over the call that looks at an inode, since what it says must be recorded before what a later one
    /// says; with it go places and caches of descriptors, under which nobody comes here.
    state: Mutex<State>,
}

/// Room that was reserved; what is not settled goes back when it is dropped.
#[derive(Debug)]
pub struct Reservation<'a> {
    quota: &'a Quota,
    amount: Amount,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.quota.state.lock().give_back(self.amount);
    }
}

impl Reservation<'_> {
    /// Records what the inode that was changed takes now in place of what was reserved.
    pub fn settle(mut self, look: impl FnOnce() -> Option<Seen>) {
        let mut state = self.quota.state.lock();
        if let Some(seen) = look() {
            state.note(seen);
        }
        state.give_back(std::mem::take(&mut self.amount));
    }
}

impl State {
    fn give_back(&mut self, amount: Amount) {
        self.reserved.bytes = self.reserved.bytes.saturating_sub(amount.bytes);
        self.reserved.inodes = self.reserved.inodes.saturating_sub(amount.inodes);
    }
}

impl Quota {
    /// Counts what `upper` holds, which takes a stat of each file, and what of it is in `index` alone: files one of whose lower
    /// names still leads there.
    pub fn count(upper: BorrowedFd<'_>, index: Option<BorrowedFd<'_>>, limits: QuotaLimits) -> Result<Self> {
        let block = rustix::fs::fstatfs(upper).map_or(4096, |fs| u64::try_from(fs.f_bsize).unwrap_or(4096)).max(512);
        let quota = Self { limits, block, state: Mutex::default() };
        let mut record = |ino, bytes| quota.state.lock().record(ino, bytes);
        walk(upper, &mut record)?;
        if let Some(index) = index {
            walk(index, &mut record)?;
            // The directory itself is the workdir's.
            if let Some(seen) = look(index) {
                quota.remove(seen.ino);
            }
        }
        Ok(quota)
    }

    /// Returns what is used.
    pub fn usage(&self) -> QuotaUsage {
        QuotaUsage { used: self.state.lock().used, limits: self.limits }
    }

    /// Returns `bytes` as whole blocks.
    pub fn whole(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.block).saturating_mul(self.block)
    }

    /// The bytes of so many blocks.
    pub fn blocks(&self, count: u64) -> u64 {
        count.saturating_mul(self.block)
    }

    /// Reserves room. Errors: ENOSPC.
    ///
    /// That a removed file has no user any more is told here a moment after it was removed, by a request of its own. So where
    /// there are such files a refusal waits for that moment, as file systems do that free space in the background.
    pub fn reserve(&self, bytes: u64, inodes: u64) -> Result<Reservation<'_>> {
        /// Milliseconds.
        const MOMENT: u32 = 10;
        for _ in 0..MOMENT {
            match self.reserve_now(bytes, inodes) {
                Err(Errno::NOSPC) if !self.state.lock().leaving.is_empty() => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                done => return done,
            }
        }
        self.reserve_now(bytes, inodes)
    }

    fn reserve_now(&self, bytes: u64, inodes: u64) -> Result<Reservation<'_>> {
        let mut state = self.state.lock();
        let fits = |limit: Option<u64>, used: u64, reserved: u64, wanted: u64| {
            wanted == 0 || limit.is_none_or(|limit| used.saturating_add(reserved).saturating_add(wanted) <= limit)
        };
        let (used, reserved) = (state.used, state.reserved);
        if !fits(self.limits.bytes, used.bytes, reserved.bytes, bytes)
            || !fits(self.limits.inodes, used.inodes, reserved.inodes, inodes)
        {
            return Err(Errno::NOSPC);
        }
        state.reserved =
            Amount { bytes: reserved.bytes.saturating_add(bytes), inodes: reserved.inodes.saturating_add(inodes) };
        Ok(Reservation { quota: self, amount: Amount { bytes, inodes } })
    }

    /// Reserves room for what is missing in `range` of `file`, or in as much of its beginning as there is room for; returns
    /// where that ends. Errors: ENOSPC where there is none.
    pub fn reserve_range(&self, file: BorrowedFd<'_>, range: Range<u64>) -> Result<(Reservation<'_>, u64)> {
        let start = range.start / self.block * self.block;
        if let Ok(room) = self.reserve_now(self.whole(range.end) - start, 0) {
            return Ok((room, range.end));
        }
        loop {
            let left = {
                let state = self.state.lock();
                let taken = state.used.bytes.saturating_add(state.reserved.bytes);
                self.limits.bytes.map_or(u64::MAX, |limit| limit.saturating_sub(taken))
            };
            let (end, missing) = self.fitting(file, range.clone(), left)?;
            if end <= range.start {
                // A block, and what waits for it.
                drop(self.reserve(self.block, 0)?);
                continue;
            }
            // Another may have been faster; then there is less room.
            if let Ok(room) = self.reserve_now(missing, 0) {
                return Ok((room, end));
            }
        }
    }

    /// Returns how far from the beginning of `range` what is not allocated takes no more than `left`, and how much it takes.
    fn fitting(&self, file: BorrowedFd<'_>, range: Range<u64>, left: u64) -> Result<(u64, u64)> {
        let start = range.start / self.block * self.block;
        let (mut at, mut missing) = (start, 0);
        let whole = start..self.whole(range.end);
        for part in allocated_parts(file, whole.clone())?.into_iter().chain(std::iter::once(whole.end..whole.end)) {
            let begin = self.whole(part.start.min(whole.end)).max(at);
            let hole = begin - at;
            if hole > left - missing {
                let fits = (left - missing) / self.block * self.block;
                return Ok(((at + fits).min(range.end), missing + fits));
            }
            missing += hole;
            at = self.whole(part.end.min(whole.end)).max(begin);
        }
        Ok((range.end, missing))
    }

    /// Records what an inode takes, which `look` finds out while nobody else records any. It must not wait for anybody.
    pub fn settle(&self, look: impl FnOnce() -> Option<Seen>) {
        let mut state = self.state.lock();
        if let Some(seen) = look() {
            state.note(seen);
        }
    }

    /// Records an inode that came without a name, for as long as it is used.
    pub fn adopt(&self, fd: BorrowedFd<'_>) {
        let mut state = self.state.lock();
        if let Some(seen) = look(fd) {
            state.record(seen.ino, seen.bytes);
            state.leaving.insert(seen.ino);
        }
    }

    /// Records that the inode `ino` is gone.
    pub fn remove(&self, ino: u64) {
        let mut state = self.state.lock();
        state.leaving.remove(&ino);
        if let Some(bytes) = state.known.remove(&ino) {
            state.used.bytes = state.used.bytes.saturating_sub(bytes);
            state.used.inodes = state.used.inodes.saturating_sub(1);
        }
    }

    /// Records that the inode `ino` has lost its last name, and is gone with its last user.
    pub fn leave(&self, ino: u64) {
        let mut state = self.state.lock();
        if state.known.contains_key(&ino) {
            state.leaving.insert(ino);
        }
    }

    /// Makes the figures of a file system those of the quota, where that is smaller.
    pub fn limit(&self, figures: &mut StatFs) {
        let used = self.usage().used;
        if let Some(limit) = self.limits.bytes {
            let unit = figures.fragment_size.max(1);
            let room = limit.saturating_sub(used.bytes) / unit;
            figures.blocks = figures.blocks.min(limit / unit);
            figures.free = figures.free.min(room);
            figures.available = figures.available.min(room);
        }
        if let Some(limit) = self.limits.inodes {
            let room = limit.saturating_sub(used.inodes);
            figures.files = figures.files.min(limit);
            figures.files_free = figures.files_free.min(room);
        }
    }
}

impl Union {
    /// Looks again at what upper's objects of `inodes` take, where that is limited. None of them may be about to move by the
    /// caller's doing.
    pub(super) fn charge(&self, inodes: &[&Arc<Inode>]) {
        let Some(quota) = &self.quota else { return };
        for inode in inodes.iter().filter(|inode| inode.is_upper()) {
            // Without the lock: an inode that is being moved is waited for.
            if let Ok(pinned) = self.pin(inode) {
                quota.settle(|| look(pinned.as_fd()));
            }
        }
    }

    /// The same for the whiteout that may stand under `name` in `parent`, or beside it.
    pub(super) fn charge_whiteout(&self, parent: &Arc<Inode>, name: &OsStr) {
        let Some(quota) = &self.quota else { return };
        let (Ok(upper), Ok(dir)) = (self.writable(), self.upper_dir(parent)) else { return };
        let beside = dotwh_name(name);
        for name in [Some(name), beside.as_deref()].into_iter().flatten() {
            quota.settle(|| {
                // Where each is an inode of its own nobody is told when it goes.
                let attr = upper.layer.stat_file(dir.as_fd(), name).ok().filter(|attr| attr.nlink > 1)?;
                Some(Seen { ino: attr.ino, bytes: attr.blocks.saturating_mul(512), named: true })
            });
        }
    }

    /// Opens upper's object of `hit`, which is about to lose its name, so that no other gets its number before it is given
    /// back.
    pub(super) fn hold_for_credit(&self, parent: &Arc<Inode>, name: &OsStr, hit: &Hit) -> Option<OwnedFd> {
        if self.quota.is_none() || !matches!(hit.top, Top::Upper) {
            return None;
        }
        let dir = self.upper_dir(parent).ok()?;
        self.writable().ok()?.layer.open(dir.as_fd(), name, OFlags::PATH).ok()
    }

    /// Gives back what upper's object of `hit` took, whose last name is gone, unless somebody goes on using it.
    pub(super) fn credit_removed(&self, hit: &Hit, used: bool) {
        let last = hit.attr.is_dir() || hit.attr.nlink == 1;
        match &self.quota {
            Some(quota) if last && matches!(hit.top, Top::Upper) => {
                if used {
                    quota.leave(hit.attr.ino)
                } else {
                    quota.remove(hit.attr.ino)
                }
            }
            _ => {}
        }
    }

    /// Gives back what `inode` took, which nobody uses any more, if its last name is gone.
    pub(super) fn credit(&self, inode: &Inode) {
        if let Some(quota) = &self.quota
            && let Real::Detached(fd) = inode.place().0.real
            && let Ok(stat) = rustix::fs::fstat(&fd)
            && stat.st_nlink == 0
        {
            quota.remove(stat.st_ino);
        }
    }
}

/// Returns the parts of `range` that `file` has space for, in order.
fn allocated_parts(file: BorrowedFd<'_>, range: Range<u64>) -> Result<Vec<Range<u64>>> {
    match fiemap::allocated(file, range.clone()) {
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL) => {}
        parts => return parts,
    }
    // What was allocated and never written is taken for a hole here.
    let (mut parts, mut at) = (Vec::new(), range.start);
    while at < range.end {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno),
        };
        at = rustix::fs::seek(file, SeekFrom::Hole(data))?;
        parts.push(data..at);
    }
    Ok(parts)
}

/// Returns the bytes that are allocated.
pub fn allocated(stat: &rustix::fs::Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or_default().saturating_mul(512)
}

/// Looks at what is open as `fd`.
pub fn look(fd: BorrowedFd<'_>) -> Option<Seen> {
    let stat = rustix::fs::fstat(fd).ok()?;
    Some(Seen { ino: stat.st_ino, bytes: allocated(&stat), named: stat.st_nlink > 0 })
}

/// Calls `each` with the number and the bytes of whatever is in the directory `root`, itself included.
fn walk(root: BorrowedFd<'_>, each: &mut impl FnMut(u64, u64)) -> Result<()> {
    let open = |dir: BorrowedFd<'_>, name: &OsStr| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(dir, name, flags, Mode::empty())
    };
    // A directory is open as long as one in it has not been read.
    let mut left: Vec<(Option<Arc<OwnedFd>>, OsString)> = vec![(None, ".".into())];
    while let Some((parent, name)) = left.pop() {
        let dir = open(parent.as_ref().map_or(root, |fd| fd.as_fd()), &name)?;
        if let Some(seen) = look(dir.as_fd()) {
            each(seen.ino, seen.bytes);
        }
        let dir = Arc::new(dir);
        let mut names = Vec::new();
        dents::each(dir.as_fd(), |name, kind, _| {
            names.push((OsStr::from_bytes(name).to_owned(), kind));
        })?;
        for (name, kind) in names {
            if kind == FileType::Directory {
                left.push((Some(dir.clone()), name));
                continue;
            }
            let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
            let seen = rustix::fs::statx(&dir, &name, flags, StatxFlags::INO | StatxFlags::BLOCKS)?;
            each(seen.stx_ino, seen.stx_blocks.saturating_mul(512));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::*;

    fn quota(bytes: Option<u64>, inodes: Option<u64>) -> Quota {
        Quota { limits: QuotaLimits { bytes, inodes }, block: 4096, state: Mutex::default() }
    }

    fn seen(ino: u64, bytes: u64) -> Option<Seen> {
        Some(Seen { ino, bytes, named: true })
    }

    #[test]
    fn what_was_removed_meanwhile_does_not_come_back() {
        let quota = quota(None, None);
        let gone = Seen { ino: 7, bytes: 4096, named: false };
        quota.settle(|| Some(gone));
        assert_eq!(quota.usage().used, Amount::default());
        quota.settle(|| seen(7, 0));
        // Its last user goes on writing.
        quota.settle(|| Some(gone));
        assert_eq!(quota.usage().used, Amount { bytes: 4096, inodes: 1 });
    }

    #[test]
    fn what_is_reserved_is_given_back_or_settled() {
        let quota = quota(Some(10_000), Some(2));
        let first = quota.reserve(6000, 1).unwrap();
        assert_eq!(quota.reserve(6000, 0).unwrap_err(), Errno::NOSPC);
        drop(first);
        quota.reserve(6000, 1).unwrap().settle(|| seen(7, 4096));
        assert_eq!(quota.usage().used, Amount { bytes: 4096, inodes: 1 });
        // The same file again.
        quota.settle(|| seen(7, 8192));
        assert_eq!(quota.usage().used, Amount { bytes: 8192, inodes: 1 });
        assert!(quota.reserve(1808, 1).is_ok() && quota.reserve(1809, 1).is_err() && quota.reserve(0, 2).is_err());
        quota.remove(7);
        quota.remove(7);
        assert_eq!(quota.usage().used, Amount::default());
    }

    #[test]
    fn what_takes_nothing_is_never_refused() {
        let quota = quota(Some(1), Some(1));
        quota.settle(|| seen(1, 4096));
        quota.settle(|| seen(2, 4096));
        assert!(quota.reserve(0, 0).is_ok());
    }

    #[test]
    fn as_much_of_a_range_is_given_as_there_is_room_for() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[7; 8192], 8192).unwrap();
        let quota = quota(Some(12_288), None);
        // 8192 are missing before the data, and the rest after it.
        let (room, end) = quota.reserve_range(file.as_fd(), 0..1 << 20).unwrap();
        assert_eq!(end, 16384 + 4096);
        assert_eq!(quota.reserve_range(file.as_fd(), 0..100).unwrap_err(), Errno::NOSPC);
        // What is there already can be written.
        assert_eq!(quota.reserve_range(file.as_fd(), 9000..16384).unwrap().1, 16384);
        drop(room);
    }

    #[test]
    fn space_that_was_allocated_before_needs_no_more() {
        let file: File = tempfile::tempfile().unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 1 << 16).unwrap();
        assert_eq!(quota(Some(0), None).reserve_range(file.as_fd(), 0..1 << 16).unwrap().1, 1 << 16);
    }

    proptest! {
        #[test]
        fn the_sum_is_that_of_the_inodes(acts in prop::collection::vec((0..20u64, 0..100_000u64, 0..4u8), 0..200)) {
            let quota = quota(Some(500_000), None);
            let mut model = HashMap::new();
            for (ino, bytes, act) in acts {
                match act {
                    0 => {
                        quota.remove(ino);
                        model.remove(&ino);
                    }
                    1 => drop(quota.reserve(bytes, 1)),
                    _ => if let Ok(room) = quota.reserve(bytes, 0) {
                        room.settle(|| seen(ino, bytes));
                        model.insert(ino, bytes);
                    }
                }
                let sum = Amount { bytes: model.values().sum(), inodes: model.len() as u64 };
                prop_assert_eq!(quota.usage().used, sum);
                prop_assert!(sum.bytes <= 500_000);
                prop_assert_eq!(quota.state.lock().reserved, Amount::default());
            }
        }
    }
}

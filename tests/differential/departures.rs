//! Where ours may differ from the kernel's overlayfs: each difference that is accepted, with its
//! reason. What is not in here fails a run.
//!
//! What no comparison looks at in the first place, because no program can rely on it: st_nlink and
//! st_size of directories (the kernel says 1 for a merged directory and its upper's for others),
//! st_dev, st_blocks, ctime, and the order of a listing.
//!
//! What the generator does not draw, because the answer is known and ends the comparison:
//! RENAME_WHITEOUT (EINVAL from the kernel's overlayfs), O_TMPFILE and the fallocate modes that
//! FUSE has no requests for, names that begin with `.wh.`.

use super::generate::Step;
use super::op::Op;

/// An accepted difference between the results of one operation.
pub struct Departure {
    /// What differs, and why that is right.
    pub why: &'static str,
    /// Tells whether these results (kernel's, ours) differ in just that.
    pub is_it: fn(&Op, &str, &str) -> bool,
}

/// The accepted differences. After one of them the descriptor that the operation used is closed on
/// both sides, so that what follows is compared again.
pub const DEPARTURES: &[Departure] = &[Departure {
    why: "the kernel lists the whiteouts of a directory that it does not merge, and lookup says \
              ENOENT to them; listing and lookup agree in ours",
    is_it: |op, kernel, ours| {
        matches!(op, Op::List { .. }) && without(kernel, ours, ":CharacterDevice")
            || matches!(op, Op::ListAndUnlink { .. }) && without(kernel, ours, ":ENOENT")
    },
}];

/// Tells whether `ours` is what the kernel says but for words that end so.
fn without(kernel: &str, ours: &str, ending: &str) -> bool {
    let ours: Vec<&str> = ours.split(' ').collect();
    let more = |word: &&str| ours.contains(word) || !word.ends_with(ending);
    kernel.split(' ').filter(more).eq(ours.iter().copied())
}

/// Returns the departure that explains these two results (kernel's, ours) of `step`.
pub fn explain(step: &Step, kernel: &str, ours: &str) -> Option<&'static Departure> {
    let Step::Do(_, op) = step else { return None };
    DEPARTURES.iter().find(|departure| (departure.is_it)(op, kernel, ours))
}

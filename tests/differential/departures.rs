//! Where ours may differ from the kernel's overlayfs: each difference that is accepted, with its
//! reason. What is not in here fails a run.
//!
//! What no comparison looks at in the first place, because no program can rely on it: st_nlink and
//! st_size of directories (the kernel says 1 for a merged directory and its upper's for others),
//! st_dev, st_blocks, ctime, the order of a listing, the d_ino of `..`, and the number of the mount's root.
//! Nor the times of a directory from which a rename failed with ENOTEMPTY: the kernel has touched it.
//! Nor the mtime of a file that truncate(2) gave the size that it had: it depends on the file system of upper.
//!
//! What the generator does not draw, because the answer is known and ends the comparison:
//! RENAME_WHITEOUT (EINVAL from the kernel's overlayfs), O_TMPFILE and the fallocate modes that
//! FUSE has no requests for, names that begin with `.wh.`.

use super::op::Op;

/// What is done after an accepted difference, so that what follows is compared again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Both are in the same state.
    GoOn,
    /// The descriptor that the operation used is closed on both sides.
    CloseSlot,
}

/// An accepted difference between the results of one operation.
pub struct Departure {
    /// What differs, and why that is right.
    pub why: &'static str,
    pub then: Then,
    /// Tells whether these results (kernel's, ours) differ in just that.
    is_it: fn(&Op, &str, &str) -> bool,
}

/// The accepted differences.
const DEPARTURES: &[Departure] = &[
    Departure {
        why: "the kernel lists the whiteouts of a directory that it does not merge, and lookup says \
              ENOENT to them; listing and lookup agree in ours",
        then: Then::GoOn,
        is_it: |op, kernel, ours| match op {
            Op::List { .. } => without(kernel, ours, ":CharacterDevice") || without(kernel, ours, ":RegularFile"),
            Op::ListAndUnlink { .. } => without(kernel, ours, ":ENOENT"),
            _ => false,
        },
    },
    Departure {
        why: "a descriptor of a lower file that was removed has st_nlink 1 in the kernel, which asks \
              the lower; the file has no name left, and ours says 0",
        then: Then::GoOn,
        is_it: |op, kernel, ours| op.slot().is_some() && kernel.replace("nlink=1", "nlink=0") == ours,
    },
    Departure {
        why: "the kernel cannot copy up what was removed of a lower, and says EIO, EEXIST, ENOTDIR or ENOENT (as \
              what is in its place) to what would change it through a descriptor; ours does it",
        then: Then::CloseSlot,
        is_it: |op, kernel, ours| {
            let held = op.slot().is_some() && !matches!(op, Op::Open { .. } | Op::SameInode { .. });
            held && matches!(kernel, "EIO" | "EEXIST" | "ENOTDIR" | "ENOENT") && kernel != ours
        },
    },
    Departure {
        why: "the kernel says EEXIST to what would change a removed file of a lower layer through a descriptor, \
              probably because its whiteout stands where the copy is to go; ours does it",
        then: Then::CloseSlot,
        is_it: |op, kernel, ours| match op {
            Op::Fchmod { .. }
            | Op::Fchown { .. }
            | Op::Futimens { .. }
            | Op::FsetXattr { .. }
            | Op::FremoveXattr { .. } => kernel == "EEXIST" && ours != "EEXIST",
            _ => false,
        },
    },
    Departure {
        why: "a directory that is not empty cannot be replaced: the kernel says what upper's file system says, \
              which is EEXIST on xfs; ours says ENOTEMPTY on all",
        then: Then::GoOn,
        is_it: |op, kernel, ours| match op {
            Op::Rename { flags, .. } => flags.is_empty() && (kernel, ours) == ("EEXIST", "ENOTEMPTY"),
            _ => false,
        },
    },
    Departure {
        why: "the kernel says ENODATA where an ACL that is not there is removed from a lower file, and \
              nothing once the file is in the upper; ours says nothing, as ext4 does, either time",
        then: Then::GoOn,
        is_it: |op, kernel, ours| {
            let acl = |name: &str| name.starts_with("system.posix_acl_");
            match op {
                Op::RemoveXattr { name, .. } | Op::FremoveXattr { name, .. } => {
                    acl(name) && (kernel, ours) == ("ENODATA", "")
                }
                _ => false,
            }
        },
    },
];

/// Tells whether `ours` is what the kernel says but for words that end so.
fn without(kernel: &str, ours: &str, ending: &str) -> bool {
    let ours: Vec<&str> = ours.split(' ').collect();
    let more = |word: &&str| ours.contains(word) || !word.ends_with(ending);
    kernel.split(' ').filter(more).eq(ours.iter().copied())
}

/// Returns the departure that explains these two results (kernel's, ours) of `op`.
pub fn explain(op: &Op, kernel: &str, ours: &str) -> Option<&'static Departure> {
    DEPARTURES.iter().find(|departure| (departure.is_it)(op, kernel, ours))
}

/// Returns `facts` without the mtime of a regular file.
///
/// With metacopy=on the kernel copies the data of a file into the upper when it is opened for writing,
/// and leaves the mtime of that copy; ours keeps the file's. Both are compared where metacopy is off.
pub fn without_mtime(facts: &str) -> String {
    if !facts.contains("RegularFile") {
        return facts.to_owned();
    }
    let words = facts.split(' ').filter(|word| !word.starts_with("mtime="));
    words.collect::<Vec<_>>().join(" ")
}

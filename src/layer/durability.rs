//! What a copy waits for before it has its name, so that power that is lost at any moment leaves the lower file or the
//! whole copy.
//!
//! fsync(2) brings that about on every file system, and does more than is needed: it waits until the journal and the
//! cache of the disk are written, which is most of the time that copying a small file up takes. It is enough that whatever
//! brings the name to the disk brings the data there before. A journal of metadata does so once the data was written: by
//! then what leads to it (the blocks, the size, and that they are written) is in a transaction that is under way, the
//! name comes into the same or a later one, and before each is valid the cache of the disk is flushed.
//!
//! - **ext4** with a journal of its own, `data=ordered` and `barrier`: the writeback of a page ends after its extent is
//!   known as written.
//! - **xfs** without a real-time device: the same, for extents and size, and the log is in order.
//!
//! Others get fsync(2). btrfs for one logs a directory that is synced with the names in it, and not what is in the
//! files; an ext4 without a journal keeps no order. `tests/power_cut.rs` cuts the power, and finds damage where nothing
//! is waited for.
//!
//! An ext4 with the feature `fast_commit` cannot be told from one without, but by kernels that are made for debugging. What
//! that writes of a file comes after its data, too, but it could not be tried: with Linux 6.18 it did not recover the disks
//! of that test, however much was synced.

use std::os::fd::BorrowedFd;

use rustix::io::{Errno, Result};

use super::workdir::Workdir;
use super::{EXT4, XFS};
use crate::config::Fsync;
use crate::sys::ext4::Ext4;
use crate::sys::{mountinfo, writeback};

/// What is waited for before something has its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Nothing.
    None,
    /// The data of a copied file to be written, where the file system keeps the order.
    Ordered,
    /// fsync(2) of a copied file that has data.
    Synced,
    /// fsync(2) of each file and directory that is copied.
    Strict,
}

/// What of a file is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// Its data, and what belongs to its inode.
    Data,
    /// What belongs to its inode alone.
    Metadata,
}

impl Durability {
    /// Returns what `fsync` asks for in an upper that has its workdir in `work`.
    pub(super) fn of(fsync: Fsync, work: &Workdir) -> Self {
        match fsync {
            Fsync::Volatile | Fsync::Never => Self::None,
            Fsync::Strict => Self::Strict,
            Fsync::Auto if keeps_order(work.fd()) => {
                log::info!("{}: its journal keeps data before names, so copies are not synced", work.path().display());
                Self::Ordered
            }
            Fsync::Auto => Self::Synced,
        }
    }

    /// Returns whether anything is waited for at all, which makes copying long work, and fsync(2) is done.
    pub fn waits(self) -> bool {
        self != Self::None
    }

    /// Returns whether directories are synced, too.
    pub fn is_strict(self) -> bool {
        self == Self::Strict
    }

    /// Waits until `file` may have its name, as far as the disk goes. Errors: those of fsync(2), with the call.
    pub fn wait_for(self, file: BorrowedFd<'_>, holds: Holds) -> std::result::Result<(), (&'static str, Errno)> {
        let sync = || rustix::fs::fsync(file).map_err(|errno| ("fsync", errno));
        match (self, holds) {
            (Self::None, _) | (Self::Ordered | Self::Synced, Holds::Metadata) => Ok(()),
            (Self::Ordered, Holds::Data) => match writeback::write_out(file) {
                // A filter of system calls may not know it.
                Err(Errno::NOSYS | Errno::PERM) => sync(),
                written => written.map_err(|errno| ("sync_file_range", errno)),
            },
            (Self::Synced, Holds::Data) | (Self::Strict, _) => sync(),
        }
    }
}

/// Finds out whether the file system of `dir` is known to bring data that was written to the disk before names that were
/// given later. Where it cannot be told it is not.
fn keeps_order(dir: BorrowedFd<'_>) -> bool {
    let known = || -> Result<_> { Ok((rustix::fs::fstatfs(dir)?.f_type, rustix::fs::fstat(dir)?.st_dev)) };
    let Ok((kind, device)) = known() else { return false };
    let device = (rustix::fs::major(device), rustix::fs::minor(device));
    match kind {
        EXT4 => Ext4::on(device).is_ok_and(|ext4| ext4_keeps_order(&ext4)),
        XFS => mountinfo::read().is_ok_and(|mounts| xfs_keeps_order(device, &mounts)),
        _ => false,
    }
}

fn ext4_keeps_order(ext4: &Ext4) -> bool {
    // Shown for the feature fast_commit, whoever has turned it on.
    let commits_parts = ext4.has("fc_debug_force");
    // A commit flushes the disk that the journal is on.
    ext4.has_own_journal && ext4.has("data=ordered") && ext4.has("barrier") && !commits_parts
}

/// Looks for the mounts of `device`: data on a real-time device is flushed by no commit of the log.
fn xfs_keeps_order(device: (u32, u32), mounts: &[mountinfo::Line]) -> bool {
    let known = mounts.iter().find(|line| line.device == device && line.kind == "xfs");
    known.is_some_and(|line| line.options.to_str().is_some_and(|options| !options.contains("rtdev=")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ext4_keeps_order_by_an_ordered_journal_of_its_own() {
        let ordered = ["rw", "barrier", "data=ordered"];
        let keeps = |options: &[&str], has_own_journal| ext4_keeps_order(&Ext4::with(options, has_own_journal));
        assert!(keeps(&ordered, true));
        assert!(!keeps(&ordered, false), "a journal elsewhere");
        assert!(!keeps(&["rw", "nobarrier", "data=ordered"], true));
        assert!(!keeps(&["rw", "barrier", "data=writeback"], true));
        assert!(!keeps(&["rw", "barrier", "data=ordered", "fc_debug_force"], true));
    }

    #[test]
    fn an_xfs_keeps_order_without_a_real_time_device() {
        let line = |device, kind: &str, options: &str| mountinfo::Line {
            id: 1,
            device,
            path: "/m".into(),
            idmapped: false,
            kind: kind.into(),
            options: options.into(),
        };
        let plain = line((8, 1), "xfs", "rw,attr2,noquota");
        let real_time = line((8, 2), "xfs", "rw,attr2,rtdev=/dev/sdc1,noquota");
        let mounts = [line((8, 1), "btrfs", "rw"), plain, real_time];
        assert!(xfs_keeps_order((8, 1), &mounts));
        assert!(!xfs_keeps_order((8, 2), &mounts));
        assert!(!xfs_keeps_order((8, 3), &mounts), "not seen from here");
    }
}

//! What a copy waits for before it has its name, so that power that is lost at any moment leaves the lower file or the
//! whole copy.
//!
//! fsync(2) brings that about on every file system, and does more than is needed: it waits until the journal and the
//! cache of the disk are written, which is most of the time that copying a small file up takes. It is enough that whatever
//! brings the name to the disk brings the data there before. A journal of metadata does so once the data was written: by
//! then what leads to it (the blocks, the size, and that they are written) is in a transaction that is under way, the
//! name comes into the same or a later one, and each is preceded by a flush of the disk's cache.
//!
//! - **ext4** with its journal on the same disk and `data=ordered`: the writeback of a page ends after its extent is
//!   known as written.
//! - **xfs** without a real-time device: the same, for extents and size, and the log is in order.
//!
//! Others get fsync(2). btrfs for one logs a directory that is synced with the names in it, and not what is in the
//! files; ext4 without a journal keeps no order; and with the feature `fast_commit` it writes parts of transactions, which
//! nobody has tried here: with Linux 6.18 the disks of `tests/power_cut.rs` could not be recovered with it, however much was
//! synced. `tests/power_cut.rs` cuts the power on these file systems, and finds the
//! damage where nothing is waited for.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use rustix::fs::FsWord;
use rustix::io::{Errno, Result};

use super::workdir::Workdir;
use crate::config::Fsync;
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

/// What a file is synced for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// Data.
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

    /// Waits for what must be on the disk, or be going there, before what `file` is of has its name. Errors: those of
    /// fsync(2).
    pub fn settle(self, file: BorrowedFd<'_>, holds: Holds) -> Result<()> {
        match (self, holds) {
            (Self::None, _) | (Self::Ordered | Self::Synced, Holds::Metadata) => Ok(()),
            (Self::Ordered, Holds::Data) => match writeback::write_out(file) {
                // A filter of system calls may not know it.
                Err(Errno::NOSYS | Errno::PERM) => rustix::fs::fsync(file),
                written => written,
            },
            (Self::Synced, Holds::Data) | (Self::Strict, _) => rustix::fs::fsync(file),
        }
    }
}

/// Finds out whether the file system of `dir` is known to bring data that was written to the disk before names that were
/// given later. Where it cannot be told it is not.
fn keeps_order(dir: BorrowedFd<'_>) -> bool {
    /// statfs(2); ext2 and ext3 have the same, and no journal or another entry in /proc.
    const EXT4: FsWord = 0xef53;
    const XFS: FsWord = 0x5846_5342;
    let (Ok(fs), Ok(stat)) = (rustix::fs::fstatfs(dir), rustix::fs::fstat(dir)) else { return false };
    let device = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    match fs.f_type {
        EXT4 => ext4_keeps_order(device, Path::new("/proc/fs"), Path::new("/sys/dev/block")),
        XFS => mountinfo::read().is_ok_and(|mounts| xfs_keeps_order(device, &mounts)),
        _ => false,
    }
}

/// Looks for what `/proc/fs/ext4` says about the file system of `device`, and for a journal of its own in `/proc/fs/jbd2`.
fn ext4_keeps_order((major, minor): (u32, u32), proc_fs: &Path, devices: &Path) -> bool {
    // The kernel calls a file system by its device.
    let Ok(link) = std::fs::read_link(devices.join(format!("{major}:{minor}"))) else { return false };
    let Some(name) = link.file_name().and_then(|name| name.to_str()) else { return false };
    let path: PathBuf = [proc_fs, Path::new("ext4"), Path::new(name), Path::new("options")].iter().collect();
    let Ok(options) = std::fs::read_to_string(path) else { return false };
    let has = |option: &str| options.lines().any(|line| line == option);
    // A journal in the file system itself has the number of its inode after the name of the device.
    let own = format!("{name}-");
    let is_own = |journal: &str| journal.strip_prefix(&own).is_some_and(|inode| inode.parse::<u64>().is_ok());
    let journals = std::fs::read_dir(proc_fs.join("jbd2")).into_iter().flatten().flatten();
    // What is shown of the feature `fast_commit`, whoever has turned it on.
    let commits_parts = has("fc_debug_force");
    has("data=ordered")
        && !commits_parts
        && journals.into_iter().any(|journal| journal.file_name().to_str().is_some_and(is_own))
}

/// Looks for the mounts of `device`: data on a real-time device is flushed by no commit of the log.
fn xfs_keeps_order(device: (u32, u32), mounts: &[mountinfo::Line]) -> bool {
    let known = mounts.iter().find(|line| line.device == device && line.kind == "xfs");
    known.is_some_and(|line| line.options.to_str().is_some_and(|options| !options.contains("rtdev=")))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn an_ext4_keeps_order_by_an_ordered_journal_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (proc_fs, devices) = (dir.path().join("fs"), dir.path().join("block"));
        fs::create_dir_all(&devices).unwrap();
        std::os::unix::fs::symlink("../../devices/virtual/block/dm-3", devices.join("253:3")).unwrap();
        let asked = || ext4_keeps_order((253, 3), &proc_fs, &devices);
        let say = |options: &str| fs::write(proc_fs.join("ext4/dm-3/options"), options).unwrap();
        assert!(!asked(), "no /proc");
        for name in ["ext4/dm-3", "jbd2/dm-30-8", "jbd2/dm-4", "jbd2/dm-3"] {
            fs::create_dir_all(proc_fs.join(name)).unwrap();
        }
        say("rw\nbarrier\ndata=ordered\n");
        assert!(!asked(), "a journal elsewhere");
        fs::create_dir(proc_fs.join("jbd2/dm-3-8")).unwrap();
        assert!(asked());
        for options in ["rw\n", "rw\ndata=writeback\n", "rw\nfc_debug_force\ndata=ordered\n", ""] {
            say(options);
            assert!(!asked(), "{options:?}");
        }
        assert!(!ext4_keeps_order((253, 4), &proc_fs, &devices), "a device that nothing is known of");
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

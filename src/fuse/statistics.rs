//! How much a mount has done: requests by operation, and how often it had at hand what it needed.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::union::{Caches, CopyUps, QuotaUsage, Usage};

/// What a mount holds and has done since it was made.
///
/// Each figure is right by itself, but they are of no single moment: nothing is stopped while they are read, so that it
/// costs the requests nothing.
///
/// ```no_run
/// # fn shown(mount: unionfs_rs::fuse::MountHandle) {
/// let statistics = mount.statistics();
/// println!("{} objects copied up, {} bytes", statistics.copy_ups.objects, statistics.copy_ups.bytes);
/// for (operation, count) in statistics.requests.iter().filter(|(_, count)| *count > 0) {
///     println!("{:<16} {count}", operation.name());
/// }
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statistics {
    /// What the union holds.
    pub usage: Usage,
    /// What has been brought from lower layers to upper.
    pub copy_ups: CopyUps,
    /// How often the union had at hand what it needed.
    pub caches: Caches,
    /// What upper holds and may hold, where that is limited.
    pub quota: Option<QuotaUsage>,
    /// How often a name was not there, which the kernel was told to remember.
    pub absences: u64,
    /// The requests of the kernel, by operation.
    pub requests: Requests,
}

/// How many requests there were of each operation; one is counted when it comes, not when it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requests([u64; Operation::ALL.len()]);

impl Requests {
    /// Returns how many requests of `operation` there were.
    pub fn of(&self, operation: Operation) -> u64 {
        self.0.get(operation as usize).copied().unwrap_or_default()
    }

    /// Returns every operation with its count, also those of 0.
    pub fn iter(&self) -> impl Iterator<Item = (Operation, u64)> {
        Operation::ALL.into_iter().zip(self.0)
    }

    /// Returns how many requests there were in all.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// Lists the operations once, for the type, its members and their names.
macro_rules! operations {
    ($($variant:ident = $name:literal,)+) => {
        /// A request of the FUSE protocol, as the kernel's `fuse_opcode` has it.
        ///
        /// What the kernel need not ask does not come: it tries OPEN once, say, and learns that it is not needed. FORGET counts
        /// inodes, of which one message can bring many.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[allow(missing_docs)] // Each is what it is called.
        pub enum Operation {
            $($variant,)+
        }

        impl Operation {
            /// Every operation.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$variant),+];

            /// Returns its name, in lower case.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

operations! {
    Lookup = "lookup",
    Forget = "forget",
    Getattr = "getattr",
    Setattr = "setattr",
    Readlink = "readlink",
    Mknod = "mknod",
    Mkdir = "mkdir",
    Symlink = "symlink",
    Unlink = "unlink",
    Rmdir = "rmdir",
    Rename = "rename",
    Link = "link",
    Open = "open",
    Read = "read",
    Write = "write",
    Flush = "flush",
    Release = "release",
    Fsync = "fsync",
    Opendir = "opendir",
    Readdir = "readdir",
    Readdirplus = "readdirplus",
    Fsyncdir = "fsyncdir",
    Statfs = "statfs",
    Setxattr = "setxattr",
    Getxattr = "getxattr",
    Listxattr = "listxattr",
    Removexattr = "removexattr",
    Create = "create",
    Ioctl = "ioctl",
    Fallocate = "fallocate",
    Lseek = "lseek",
    CopyFileRange = "copy_file_range",
}

/// Counts requests.
#[derive(Debug, Default)]
pub(super) struct Counts([AtomicU64; Operation::ALL.len()]);

impl Counts {
    /// Counts one more request of `operation`.
    pub(super) fn add(&self, operation: Operation) {
        if let Some(count) = self.0.get(operation as usize) {
            count.fetch_add(1, Ordering::Relaxed); // Relaxed: a count alone.
        }
    }

    /// Returns the counts.
    pub(super) fn read(&self) -> Requests {
        Requests(std::array::from_fn(|at| {
            self.0.get(at).map_or(0, |count| count.load(Ordering::Relaxed)) // Relaxed: as above.
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operation_is_counted_under_its_own_name() {
        let counts = Counts::default();
        for (times, operation) in Operation::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| counts.add(operation));
        }
        let read = counts.read();
        assert_eq!(read.of(Operation::Lookup), 0);
        assert_eq!(read.of(Operation::CopyFileRange), 31);
        assert!(read.iter().map(|(_, count)| count).eq(0..32));
        assert_eq!(read.total(), 31 * 32 / 2);
        assert_eq!(Operation::Readdirplus.name(), "readdirplus");
    }
}

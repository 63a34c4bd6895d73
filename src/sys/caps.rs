//! What this process may do.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use rustix::thread::{CapabilitySet, capabilities};

/// Returns whether this thread has `capability` in effect, in its own user namespace.
pub fn effective(capability: CapabilitySet) -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(capability))
}

/// Returns whether this process is in the initial user namespace; without /proc the answer is no.
///
/// Told by the number that the kernel has for it alone (PROC_USER_INIT_INO in linux/proc_ns.h, part of the ABI): an
/// identity map of all ids another namespace can have too.
pub fn in_initial_user_namespace() -> bool {
    const INITIAL: u64 = 0xEFFF_FFFD;
    std::fs::metadata("/proc/self/ns/user").is_ok_and(|namespace| namespace.ino() == INITIAL)
}

/// Returns how many user ids this user namespace has (/proc/self/uid_map, user_namespaces(7)); none without /proc.
pub fn mapped_ids() -> u64 {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let counts = map.lines().filter_map(|line| line.split_ascii_whitespace().nth(2)?.parse::<u64>().ok());
    counts.fold(0, u64::saturating_add)
}

/// Returns whether `trusted.` xattrs can be read and written: CAP_SYS_ADMIN in the initial user namespace.
pub fn trusted_xattrs() -> bool {
    effective(CapabilitySet::SYS_ADMIN) && in_initial_user_namespace()
}

/// What another process may do, as /proc/PID/status has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its supplementary groups.
    pub groups: Vec<u32>,
    /// Its effective capabilities, in its own user namespace.
    pub effective: CapabilitySet,
}

/// Returns what `pid` may do; `None` when it is gone or cannot be seen.
pub fn standing(pid: u32) -> Option<Standing> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let groups = line("Groups:")?.split_ascii_whitespace().filter_map(|group| group.parse().ok()).collect();
    let effective = CapabilitySet::from_bits_retain(u64::from_str_radix(line("CapEff:")?, 16).ok()?);
    Some(Standing { groups, effective })
}

/// Returns how many descriptors this process may have open, and how many of these have higher numbers than `fd`: they are
/// given from below.
pub fn open_files_above(fd: BorrowedFd<'_>) -> (u64, u64) {
    use rustix::process::{Resource, getrlimit};
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    (limit, limit.saturating_sub(u64::from(fd.as_raw_fd().unsigned_abs())))
}

/// Raises the soft limit on open files to the hard one and returns it.
pub fn raise_open_files() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.or(limit.current).unwrap_or(1 << 20);
    match setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        Ok(()) => hard,
        // What is left is what there was; the caches are sized by it.
        Err(_) => limit.current.unwrap_or(hard),
    }
}

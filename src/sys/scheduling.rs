//! How the scheduler treats a thread.
#![allow(unsafe_code)]

use std::time::Duration;

use rustix::io::{Errno, Result};

/// Asks for turns of `slice` for this thread, which otherwise is scheduled as before.
///
/// A thread with short turns gets them soon after it was woken, and none more of them (sched_setattr(2); Linux 6.12, older ones
/// take no notice). Errors: those of the call, as EPERM under a filter of system calls.
pub fn set_slice(slice: Duration) -> Result<()> {
    let size = size_of::<libc::sched_attr>() as u32;
    let mut attr = libc::sched_attr {
        size,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the structure is as large as it says, and the kernel writes no more than that.
    done(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, size, 0) })?;
    attr.sched_runtime = u64::try_from(slice.as_nanos()).unwrap_or(u64::MAX);
    // SAFETY: as above; the kernel reads it.
    done(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) })
}

fn done(answer: libc::c_long) -> Result<()> {
    if answer == 0 {
        return Ok(());
    }
    Err(std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
}

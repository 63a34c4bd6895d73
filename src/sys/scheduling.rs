//! How the scheduler treats a thread.
#![allow(unsafe_code)]

use std::time::Duration;

use rustix::io::{Errno, Result};

/// Asks for turns as long as the scheduler gives them by itself.
pub const DEFAULT_SLICE: Duration = Duration::ZERO;

/// Asks for turns of `slice` for this thread, 0.1 to 100 ms; its policy and its priority stay.
///
/// A thread with short turns is run soon after it was woken, and for no longer (sched_setattr(2); Linux 6.12, older ones take
/// no notice). Threads that it starts inherit it. Errors: those of the call, as EPERM under a filter of system calls.
pub fn set_slice(slice: Duration) -> Result<()> {
    let mut attr = attributes()?;
    attr.sched_runtime = u64::try_from(slice.as_nanos()).unwrap_or(u64::MAX);
    // SAFETY: the structure is as large as it says; the kernel reads it.
    done(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) })
}

/// Returns how long the turns of this thread are; nothing before Linux 6.12.
#[cfg(test)]
pub fn slice() -> Result<Duration> {
    attributes().map(|attr| Duration::from_nanos(attr.sched_runtime))
}

/// Reads how this thread is scheduled.
fn attributes() -> Result<libc::sched_attr> {
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
    Ok(attr)
}

fn done(answer: libc::c_long) -> Result<()> {
    if answer == 0 {
        return Ok(());
    }
    Err(std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_set_and_nothing_else() {
        let before = attributes().unwrap();
        set_slice(Duration::from_micros(100)).unwrap();
        let after = attributes().unwrap();
        let rest =
            |attr: &libc::sched_attr| (attr.sched_policy, attr.sched_nice, attr.sched_flags, attr.sched_priority);
        assert_eq!(rest(&after), rest(&before));
        // Before Linux 6.12 there are none.
        if before.sched_runtime > 0 {
            assert_eq!(slice().unwrap(), Duration::from_micros(100));
        }
        set_slice(DEFAULT_SLICE).unwrap();
        assert_eq!(slice().unwrap(), Duration::from_nanos(before.sched_runtime));
    }
}

//! Which threads a signal may interrupt.

// rustix has no call for the mask of a thread.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;

/// Keeps `signal` from this thread, and from those that it starts from now on.
///
/// A call that is interrupted is not always one that is made again: fallocate(2) on tmpfs gives up. See
/// pthread_sigmask(3).
pub fn block(signal: c_int) -> io::Result<()> {
    mask(libc::SIG_BLOCK, signal)
}

/// Lets `signal` come to this thread.
pub fn unblock(signal: c_int) -> io::Result<()> {
    mask(libc::SIG_UNBLOCK, signal)
}

fn mask(how: c_int, signal: c_int) -> io::Result<()> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `set` is valid for writes, and this makes a whole set of it.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: the call above has initialised it.
    let mut set = unsafe { set.assume_init() };
    // SAFETY: `set` is a set.
    if unsafe { libc::sigaddset(&raw mut set, signal) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `set` is a set, and the old one is not asked for.
    match unsafe { libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

//! Who is at the other end of a socket.

// rustix gives the process as a number that is never 0, which it is for one of another namespace of processes.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Returns the user that has connected to, or listens at, the other end of the unix socket `socket`, as this user namespace
/// has it: SO_PEERCRED in unix(7).
pub fn uid(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    let into = (&raw mut peer).cast();
    // SAFETY: `into` and `len` are valid for writes, and `len` says how many bytes there are at `into`.
    let done = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, into, &raw mut len) };
    if done == 0 { Ok(peer.uid) } else { Err(io::Error::last_os_error()) }
}

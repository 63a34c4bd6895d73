//! What a process does to become a daemon: fork, and let go of what its starter left it.
//!
//! rustix has neither fork nor a close by number, since both can break what a Rust program believes
//! about itself; each is wrapped here together with the check that makes it sound.

// The calls below have no safe wrapper; each states why it is sound.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::Pid;

/// Which of the two processes this is after a [`fork`].
#[derive(Debug)]
pub enum Forked {
    /// The one that was there before; the other's id.
    Parent(Pid),
    /// The new one.
    Child,
}

/// Splits this process in two.
///
/// Fails with EDEADLK if the process has other threads: the child would have their locks for ever held
/// and them not. Needs /proc to count them.
///
/// See fork(2).
pub fn fork() -> io::Result<Forked> {
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::from_raw_os_error(libc::EDEADLK));
    }
    // SAFETY: this is the only thread, so the child has everything that the parent's code relies on.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid).map_or(Forked::Child, Forked::Parent)),
    }
}

/// The descriptors beyond 0, 1 and 2 that this process was started with.
#[derive(Debug)]
pub struct Inherited(Vec<OwnedFd>);

impl Inherited {
    /// Takes the descriptors over from whoever started this process; dropping the value closes them.
    ///
    /// To be called once, by `main`, before the program opens anything: whatever is open then came
    /// over exec(2), and nothing in the program knows of it.
    pub fn take() -> io::Result<Self> {
        let listing = fs::read_dir("/proc/self/fd")?;
        let mut numbers: Vec<RawFd> = Vec::new();
        for entry in listing {
            // The names are numbers, by proc(5).
            numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()));
        }
        // The listing has listed its own descriptor, which is closed by now: only that one is gone.
        numbers.retain(|&number| number > 2 && fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok());
        // SAFETY: the numbers are open and not of the program's making, so it has no other owner for them.
        Ok(Self(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect()))
    }

    /// Takes the descriptor with this number out, to be kept; `None` where it was not inherited.
    pub fn keep(&mut self, number: u32) -> Option<OwnedFd> {
        let place = self.0.iter().position(|fd| RawFd::try_from(number) == Ok(fd.as_raw_fd()))?;
        Some(self.0.swap_remove(place))
    }

    /// Closes them.
    pub fn close(self) {
        drop(self.0);
    }
}

/// Points standard input, output and error at /dev/null.
///
/// The three stay open numbers, so that nothing opened later becomes somebody's standard output.
pub fn silence_stdio() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    for standard in 0..=2 {
        // SAFETY: both are plain numbers to dup2; what is replaced are 0, 1 and 2, which std only borrows.
        let replaced = unsafe { libc::dup2(null.as_raw_fd(), standard) };
        if replaced == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

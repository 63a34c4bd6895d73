//! Namespaces that a process makes for itself.

// The call below has no safe wrapper.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsFd;

use rustix::process::{DumpableBehavior, Pid, PidfdFlags};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags};

/// Which namespaces are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespaces {
    /// One of mounts, which begins as a copy.
    Mounts,
    /// One of users, in which no id is mapped yet, and one of mounts that belongs to it.
    UsersAndMounts,
}

/// Enters new namespaces.
///
/// Errors: EDEADLK if the process has other threads, which would stay where they are; EPERM; ENOSPC past the limit of
/// /proc/sys/user/max_user_namespaces. Needs /proc. See unshare(2).
pub fn unshare(namespaces: Namespaces) -> io::Result<()> {
    be_alone()?;
    let flags = match namespaces {
        Namespaces::Mounts => UnshareFlags::NEWNS,
        Namespaces::UsersAndMounts => UnshareFlags::NEWNS | UnshareFlags::NEWUSER,
    };
    // SAFETY: descriptors stay shared, which is all that the call could break.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// Enters the namespaces of users and mounts that `pid` is in, but for those that this process is in already.
///
/// Errors: EDEADLK if the process has other threads; EPERM; ESRCH. Needs /proc. See setns(2).
pub fn join(pid: Pid) -> io::Result<()> {
    be_alone()?;
    let mut others = ThreadNameSpaceType::empty();
    for (name, kind) in [("user", ThreadNameSpaceType::USER), ("mnt", ThreadNameSpaceType::MOUNT)] {
        let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/{name}"));
        if of("self")? != of(&pid.as_raw_nonzero().to_string())? {
            others |= kind;
        }
    }
    if others.is_empty() {
        return Ok(());
    }
    let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    Ok(rustix::thread::move_into_thread_name_spaces(process.as_fd(), others)?)
}

/// Returns when a process was started, in ticks since the machine was: with its number it is no other process. See proc(5).
pub fn start_time(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in brackets may have anything in it.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let field = fields.split_whitespace().nth(19).and_then(|field| field.parse().ok());
    field.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Lets processes of the same user see this one's namespaces again, which gaining privileges has ended.
pub fn be_seen() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)?)
}

/// Errors: EDEADLK if the process has other threads.
fn be_alone() -> io::Result<()> {
    match std::fs::read_dir("/proc/self/task")?.count() {
        1 => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EDEADLK)),
    }
}

//! From a command to a daemon, and word back to the command that it serves.
//!
//! The command forks before anything is opened and before there is a second thread. The child does
//! all the work; the parent waits at a pipe, and ends with what the child reports: that the mount
//! answers, or why it does not. Whoever started the command may read its standard error to the end
//! (podman does), so the child has let go of it, and of everything else it inherited, before it
//! reports.
//!
//! The report is one byte, an exit code, and for a failure the message. No report at all means that
//! the child died.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use rustix::fs::Mode;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, WaitStatus, setsid, umask, waitpid};

use super::exit::{Exit, Failure};
use crate::sys::daemon::{Forked, Inherited, fork, silence_stdio};

/// Which side of the fork this is.
#[derive(Debug)]
pub enum Side {
    /// The command, which waits for the report.
    Command(Waiter),
    /// The daemon, which owes it.
    Daemon(Reporter),
}

/// Splits off a daemon in a session of its own.
pub fn split(inherited: Inherited) -> Result<Side, Failure> {
    let failed =
        |error: io::Error| Failure::new(Exit::Failed, format!("cannot start a daemon: {error}; use --foreground"));
    let (reading, writing) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?;
    match fork().map_err(failed)? {
        Forked::Parent(daemon) => Ok(Side::Command(Waiter { daemon, pipe: reading })),
        Forked::Child => {
            drop(reading);
            inherited.close();
            let _ = setsid(); // It only refuses the leader of a process group, which a new child never is.
            Ok(Side::Daemon(Reporter { pipe: writing }))
        }
    }
}

/// Takes the creation mask away: the modes of files in the upper are decided by the callers' masks.
pub fn clear_umask() {
    umask(Mode::empty());
}

/// The command's end of the pipe.
#[derive(Debug)]
pub struct Waiter {
    daemon: Pid,
    pipe: OwnedFd,
}

impl Waiter {
    /// Returns once the daemon has reported that it serves, or with what it reported instead.
    pub fn wait(self) -> Result<(), Failure> {
        let mut report = Vec::new();
        let read = File::from(self.pipe).read_to_end(&mut report);
        match (read, report.split_first()) {
            (Ok(_), Some((0, _))) => Ok(()),
            (Ok(_), Some((&code, message))) => {
                let exit = Exit::from_code(code).unwrap_or(Exit::Failed);
                Err(Failure::new(exit, String::from_utf8_lossy(message)))
            }
            (Ok(_), None) => Err(died(&ending(self.daemon))),
            (Err(error), _) => Err(died(&error.to_string())),
        }
    }
}

fn died(how: &str) -> Failure {
    Failure::new(
        Exit::Failed,
        format!("the daemon died before the mount answered: {how}; run it with --foreground to see why"),
    )
}

/// Tells how the daemon ended; the pipe says that it has.
fn ending(daemon: Pid) -> String {
    match waitpid(Some(daemon), WaitOptions::empty()) {
        Ok(Some((_, status))) => describe(status),
        Ok(None) => "no status".to_owned(),
        Err(errno) => format!("waitpid: {errno}"),
    }
}

fn describe(status: WaitStatus) -> String {
    match (status.terminating_signal(), status.exit_status()) {
        (Some(signal), _) => match signal_hook::low_level::signal_name(signal) {
            Some(name) => format!("killed by {name}"),
            None => format!("killed by signal {signal}"),
        },
        (None, Some(code)) => format!("exit code {code}"),
        (None, None) => format!("wait status {:#x}", status.as_raw()),
    }
}

/// The daemon's end of the pipe.
#[derive(Debug)]
pub struct Reporter {
    pipe: OwnedFd,
}

impl Reporter {
    /// Lets go of what the command has open, and reports that the mount answers.
    ///
    /// Fails if nobody is there to hear it: the command was interrupted, and its caller believes that
    /// nothing is mounted.
    pub fn ready(self) -> io::Result<()> {
        std::env::set_current_dir("/")?;
        silence_stdio()?;
        File::from(self.pipe).write_all(&[Exit::Done.code()])
    }

    /// Reports why there is no mount.
    pub fn failed(self, failure: &Failure) -> io::Result<()> {
        let mut report = vec![failure.exit.code()];
        report.extend_from_slice(failure.message.as_bytes());
        File::from(self.pipe).write_all(&report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns what the command ends with when the daemon's side does `report`.
    ///
    /// The pipe is real and the fork is not: a test has other threads. This process has no children,
    /// so that asking for the daemon's ending has an answer too.
    fn hears(report: impl FnOnce(Reporter)) -> Result<(), Failure> {
        let (reading, writing) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        report(Reporter { pipe: writing });
        Waiter { daemon: rustix::process::getpid(), pipe: reading }.wait()
    }

    #[test]
    fn a_reported_failure_keeps_its_code_and_message() {
        let failure = Failure::new(Exit::Setup, "/lower: not there; make it");
        assert_eq!(hears(|reporter| reporter.failed(&failure).expect("the pipe is open")), Err(failure));
    }

    #[test]
    fn a_daemon_that_dies_silently_is_a_failure() {
        let failure = hears(drop).expect_err("nothing was reported");
        assert_eq!(failure.exit, Exit::Failed);
        assert!(failure.message.contains("died before the mount answered"), "{failure}");
    }

    #[test]
    fn fork_refuses_a_process_with_threads() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || stopped.recv().is_err());
        let refused = fork().expect_err("there are two threads");
        drop(stop);
        other.join().expect("the thread only waits");
        assert_eq!(refused.raw_os_error(), Some(libc::EDEADLK));
    }
}

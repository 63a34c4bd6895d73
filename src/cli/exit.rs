//! How a command ends: exit codes as a type, and the failure that carries one.

use std::fmt;
use std::process::ExitCode;

use crate::error::{Error, ErrorKind};

/// What the exit code of the command says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It was done.
    Done,
    /// It was tried and failed.
    Failed,
    /// The command line cannot be understood.
    Usage,
    /// A directory that was named cannot be used for what it was named for.
    Setup,
    /// The machine lacks something, or does not permit it.
    Machine,
    /// As the program ended that was run, or as others say that none was; and as fsck(8) ends.
    Other(u8),
}

impl Exit {
    /// Every way a command of ours ends, in the order of the codes.
    pub const ALL: [Self; 5] = [Self::Done, Self::Failed, Self::Usage, Self::Setup, Self::Machine];

    /// Returns the number that the shell sees.
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Setup => 3,
            Self::Machine => 4,
            Self::Other(code) => code,
        }
    }

    /// Returns the line of the help for this code.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done; for mount: the mount answers",
            Self::Failed => "it was tried and failed",
            Self::Usage => "the command line is wrong: an unknown option, an invalid value",
            Self::Setup => "a layer, the work directory or the mount point cannot be used",
            Self::Machine => "the machine lacks something or does not permit it (see unionfs-rs doctor)",
            Self::Other(_) => "for run: that of the program; for fsck: that of fsck(8)",
        }
    }

    /// Returns the exit that has `code`, if one has.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|exit| exit.code() == code)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// A command that could not be done: what to tell the person, and the exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What happened, to which path, and what to do about it.
    pub message: String,
}

impl Failure {
    /// Makes a failure of `exit` that says `message`.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }

    /// Says what larger thing it is about.
    pub fn within(self, whole: impl fmt::Display) -> Self {
        Self { message: format!("{whole}: {}", self.message), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let exit = match &error {
            Error::Setup { .. } => Exit::Setup,
            Error::Image { .. } if error.kind() == ErrorKind::Machine => Exit::Machine,
            Error::Image { .. } => Exit::Failed,
            // The library checks every path before it mounts, so what is left is the machine's no.
            Error::Mount { .. } => Exit::Machine,
            Error::Call { .. }
            | Error::Refused(_)
            | Error::Corrupt { .. }
            | Error::NotFollowed { .. }
            | Error::NotOurs { .. } => Exit::Failed,
        };
        Self::new(exit, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_finds_its_exit_again() {
        for exit in Exit::ALL {
            assert_eq!(Exit::from_code(exit.code()), Some(exit));
        }
        assert_eq!(Exit::from_code(101), None);
    }

    #[test]
    fn a_refused_layer_exits_with_3_and_names_the_path() {
        let failure = Failure::from(Error::setup("/lower", "not a directory", "name a directory"));
        assert_eq!(failure, Failure::new(Exit::Setup, "/lower: not a directory; name a directory"));
    }
}

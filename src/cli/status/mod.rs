//! `unionfs-rs status`: what a mount is made of, which options are in force and why, what it holds and what it has done.
//!
//! The daemon writes the text itself; the command asks for it by the [control socket](super::control). SIGUSR1 has it
//! logged.

mod json;
mod prometheus;
mod text;

use std::path::{Path, PathBuf};

use super::control;
use super::exit::{Exit, Failure};
use crate::fuse::{Mount, Observer, Status};

/// The form of a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Text,
    /// For programs: docs/RELIABILITY.md says what stays.
    Json,
    /// The text format of Prometheus.
    Prometheus,
}

impl Form {
    const ALL: [Self; 3] = [Self::Text, Self::Json, Self::Prometheus];

    /// Returns its name on the control socket.
    pub fn word(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
            Self::Prometheus => "prometheus",
        }
    }

    /// Returns the form with this name.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|form| form.word() == word)
    }

    /// Writes `shown`.
    pub fn write(self, shown: &Shown) -> String {
        match self {
            Self::Text => text::write(shown),
            Self::Json => json::write(shown),
            Self::Prometheus => prometheus::write(shown),
        }
    }
}

/// A mount that is looked at.
#[derive(Debug, Clone)]
pub struct Subject {
    observer: Observer,
    mountpoint: PathBuf,
    device: Option<(u32, u32)>,
}

/// What was seen of a mount.
#[derive(Debug)]
pub struct Shown {
    status: Status,
    /// Where it was mounted.
    mountpoint: PathBuf,
    /// The number of its device, where it is known.
    device: Option<(u32, u32)>,
}

impl Subject {
    /// Looks at `mount`, which was made on `mountpoint`.
    pub fn new(mount: &Mount, mountpoint: &Path) -> Self {
        let (observer, device) = (mount.observer(), mount.unmounter().device());
        Self { observer, mountpoint: mountpoint.to_owned(), device }
    }

    /// Returns the number of the mount's device, where it is known.
    pub fn device(&self) -> Option<(u32, u32)> {
        self.device
    }

    /// Returns what is to be seen; `None` once the mount has ended.
    pub fn look(&self) -> Option<Shown> {
        let status = self.observer.status()?;
        Some(Shown { status, mountpoint: self.mountpoint.clone(), device: self.device })
    }

    /// Logs the status, at the level that is logged unless somebody said otherwise.
    pub fn log(&self) {
        if let Some(shown) = self.look() {
            log::warn!("status\n{}", Form::Text.write(&shown));
        }
    }
}

impl Shown {
    /// Returns the device as /proc/self/mountinfo has it, empty where it is not known.
    fn device(&self) -> String {
        self.device.map_or_else(String::new, |(major, minor)| format!("{major}:{minor}"))
    }
}

/// Prints the status of the union on `mountpoint`.
pub fn run(mountpoint: &Path, form: Form) -> Result<Exit, Failure> {
    super::print(control::ask(mountpoint, form)?.as_bytes())
}

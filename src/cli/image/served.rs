//! A container's tree, mounted by this process for itself and its children.

use std::fs;
use std::path::{Path, PathBuf};

use super::containers::{self, Held, Top};
use crate::cli::exit::{Exit, Failure};
use crate::cli::settings::Settings;
use crate::config::{Access, Fsync};
use crate::fuse::{Mount, MountHandle};
use crate::image::store::{Container, Store};
use crate::union::Union;

/// The container's tree, mounted.
pub struct Served {
    mount: MountHandle,
    held: Held,
    at: PathBuf,
}

impl Served {
    /// Mounts `container` at `at`, which is made. Errors: those of mounting; for a container that somebody else has mounted.
    pub fn start(store: &Store, container: &Container, at: &Path) -> Result<Self, Failure> {
        let mut settings = Settings::new(at);
        // The container's users are others than its root.
        settings.mount.access = Access::All;
        if container.config.ephemeral {
            settings.union.fsync = Fsync::Volatile;
        }
        settings.take_layers(containers::layers(store, container, Top::Writable)?)?;
        let held = Held::take(container)?;
        fs::create_dir_all(at).map_err(|error| Failure::new(Exit::Failed, format!("{}: {error}", at.display())))?;
        let union = Union::from_config(&settings.union)?;
        Ok(Self { mount: Mount::new(union, &settings.mount)?.spawn()?, held, at: at.to_owned() })
    }

    /// Lets others find it.
    pub fn note(&mut self) -> Result<(), Failure> {
        self.held.note(&self.at)
    }

    /// Unmounts; a container that is ephemeral is gone then.
    pub fn end(self) -> Result<(), Failure> {
        let ended = self.mount.unmount_and_join();
        if let Err(error) = fs::remove_dir(&self.at) {
            log::warn!("{}: {error}", self.at.display());
        }
        self.held.end();
        Ok(ended?)
    }
}

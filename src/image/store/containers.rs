//! Writable layers over images, and the read-only mounts of images that hold their layers.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{CWD, FlockOperation, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::super::manifest::Image;
use super::super::stack::{Part, Stack};
use super::layers::Tree;
use super::{Store, open_lock, remove, remove_or_log, replace};
use crate::error::{Error, ErrorKind, Result};
use crate::layer::attr::FileKind;

/// The file with what is known of a container.
const CONFIG: &str = "config.json";

/// The file that who has a container mounted locks, alone.
const MOUNT_LOCK: &str = "lock";

/// The file that those who read a container lock together, mounted or not, and who takes something away from it alone.
const READ_LOCK: &str = "readers";

/// The directories of a container that a mount needs.
const LAYERS: [&str; 2] = ["upper", "work"];

/// How long a mount that was just unmounted is waited for, as a union waits for its upper; and who reads something short.
const PATIENCE: Duration = Duration::from_secs(2);

/// The longest that making a mount takes, in seconds.
const MOUNT_TAKES: u64 = 600;

/// How many digits the name of a container has, as those of other tools.
const ID_BYTES: usize = 6;

/// What is known of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerConfig {
    /// Twelve hexadecimal digits.
    pub id: String,
    /// The digest of the image's manifest.
    pub image: String,
    /// What the image was called.
    pub image_name: Option<String>,
    /// The names of its trees in `layers`, lowest first.
    pub layers: Vec<String>,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// Where it is mounted, if others are to find it there.
    pub mountpoint: Option<PathBuf>,
    /// Whether it is gone when it is unmounted.
    pub ephemeral: bool,
    /// The process that has it mounted there.
    #[serde(default)]
    pub server: Option<Server>,
}

/// A process, told from a later one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Its number, as it sees itself.
    pub pid: u32,
    /// When it was started, in ticks since the machine was.
    pub started: u64,
}

/// A writable layer over an image.
#[derive(Debug, Clone)]
pub struct Container {
    /// What is known of it.
    pub config: ContainerConfig,
    /// Its directory, with `upper` and `work`.
    pub path: PathBuf,
}

/// What holds a container while it is in use.
#[derive(Debug)]
pub struct InUse {
    /// They are let go of when they are closed.
    locks: Vec<File>,
}

impl Container {
    /// Returns its writable layer.
    pub fn upper(&self) -> PathBuf {
        self.path.join("upper")
    }

    /// Returns its workdir.
    pub fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    /// Returns where it is mounted and run, if that is nobody else's concern.
    pub fn bundle(&self) -> PathBuf {
        self.path.join("bundle")
    }

    /// Takes the container for this process and those that it starts; `None` where somebody else has it.
    ///
    /// Errors: [`ErrorKind::Absent`] for one that was removed.
    pub fn hold(&self) -> Result<Option<InUse>> {
        let locked = self.lock(MOUNT_LOCK, FlockOperation::NonBlockingLockExclusive)?;
        Ok(locked.map(|lock| InUse { locks: vec![lock] }))
    }

    /// Returns whether somebody has the container. Errors: as [`Container::hold`].
    pub fn is_held(&self) -> Result<bool> {
        // Shared: who asks as well is not taken for somebody who has it.
        Ok(self.lock(MOUNT_LOCK, FlockOperation::NonBlockingLockShared)?.is_none())
    }

    /// Takes the container, as [`Container::hold`]; waits for a mount of it that was just unmounted, and is being ended.
    ///
    /// Errors: [`ErrorKind::InUse`], [`ErrorKind::Absent`].
    pub fn held(&self) -> Result<InUse> {
        let at = self.config.mountpoint.as_ref().map_or_else(String::new, |at| format!(" at {}", at.display()));
        let lock = self.lock_soon(MOUNT_LOCK, FlockOperation::NonBlockingLockExclusive)?;
        let lock = lock.ok_or_else(|| self.in_use(format!("is mounted{at}; unmount it first")))?;
        Ok(InUse { locks: vec![lock] })
    }

    /// Takes the container from mounts, as [`Container::held`], and from those who read it: to take something away from it.
    ///
    /// Errors: [`ErrorKind::InUse`], [`ErrorKind::Absent`].
    pub(in super::super) fn alone(&self) -> Result<InUse> {
        self.without_readers(self.held()?)
    }

    /// Takes the container, which is `held`, from those who read it. Errors: [`ErrorKind::InUse`].
    fn without_readers(&self, mut held: InUse) -> Result<InUse> {
        let lock = self.lock_soon(READ_LOCK, FlockOperation::NonBlockingLockExclusive)?;
        let reason = "is being read by another process (commit, export, cp, explore); wait for that to end";
        held.locks.push(lock.ok_or_else(|| self.in_use(reason.into()))?);
        Ok(held)
    }

    /// As [`Container::alone`], without waiting; `None` where somebody else has it or reads it.
    fn alone_now(&self) -> Result<Option<InUse>> {
        let Some(mut held) = self.hold()? else { return Ok(None) };
        let lock = self.lock(READ_LOCK, FlockOperation::NonBlockingLockExclusive)?;
        Ok(lock.map(|lock| {
            held.locks.push(lock);
            held
        }))
    }

    /// Keeps what was written to the container from being taken away.
    ///
    /// Errors: [`ErrorKind::InUse`] while something is; [`ErrorKind::Absent`] if that was the container.
    fn read(&self) -> Result<File> {
        let lock = self.lock_soon(READ_LOCK, FlockOperation::NonBlockingLockShared)?;
        lock.ok_or_else(|| self.in_use("is being removed, or changes in it taken back; try again".into()))
    }

    fn in_use(&self, reason: String) -> Error {
        Error::image(&self.config.id, reason).of_kind(ErrorKind::InUse)
    }

    /// Locks the file `name`; `None` where somebody else has it. Errors: [`ErrorKind::Absent`] for a container that was removed.
    fn lock(&self, name: &str, how: FlockOperation) -> Result<Option<File>> {
        let failed = |error: io::Error| Error::image_io(self.path.display(), &error);
        let removed = || Error::image(&self.config.id, "was removed meanwhile").of_kind(ErrorKind::Absent);
        // It was made with the container: one that is being removed gets no new one. One that was copied may lack it.
        let lock = match File::options().read(true).write(true).open(self.path.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !self.path.join(CONFIG).exists() {
                    return Err(removed());
                }
                open_lock(&self.path.join(name))?
            }
            opened => opened.map_err(failed)?,
        };
        match rustix::fs::flock(&lock, how) {
            // Who had it before may have removed the container, which begins with its configuration.
            Ok(()) if !self.path.join(CONFIG).exists() => Err(removed()),
            Ok(()) => Ok(Some(lock)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(failed(errno.into())),
        }
    }

    /// Locks the file `name`, if need be a little later.
    fn lock_soon(&self, name: &str, how: FlockOperation) -> Result<Option<File>> {
        let begin = Instant::now();
        loop {
            let lock = self.lock(name, how)?;
            if lock.is_some() || begin.elapsed() > PATIENCE {
                return Ok(lock);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Removes the container with all that was written to it. Errors: [`ErrorKind::InUse`], [`ErrorKind::Absent`].
    pub fn remove(&self) -> Result<()> {
        self.remove_held(self.held()?)
    }

    /// As [`Container::remove`], for who has it: nobody else gets it in between.
    pub fn remove_held(&self, held: InUse) -> Result<()> {
        self.remove_alone(&self.without_readers(held)?)
    }

    fn remove_alone(&self, _alone: &InUse) -> Result<()> {
        let failed = |error: io::Error| Error::image_io(self.path.display(), &error);
        // Without this it is no container any more, whatever is left of it: the next one that is alone takes that away.
        fs::remove_file(self.path.join(CONFIG)).map_err(failed)?;
        match remove(&self.path) {
            // Whoever was alone in the store has found what was left of it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(failed),
        }
    }

    /// Notes what has changed about it.
    pub fn save(&self) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(&self.config);
        let written = bytes.map_err(io::Error::from).and_then(|bytes| replace(&self.path.join(CONFIG), &bytes));
        written.map_err(|error| Error::image_io(self.path.display(), &error))
    }
}

impl Store {
    /// Makes a container of `image`, whose trees are `trees`, lowest first.
    pub fn create_container(
        &self,
        image: &Image,
        name: Option<String>,
        trees: &[Tree],
        ephemeral: bool,
    ) -> Result<Container> {
        let id = new_id().map_err(|error| self.error("containers", &error))?;
        let of_tree = |tree: &Tree| {
            let name = tree.path.parent().and_then(|dir| dir.file_name());
            name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
        };
        let config = ContainerConfig {
            id: id.clone(),
            image: image.descriptor.digest().to_string(),
            image_name: name,
            layers: trees.iter().map(of_tree).collect(),
            created: now(),
            mountpoint: None,
            ephemeral,
            server: None,
        };
        let work = self.workspace()?;
        self.make_layers(trees, work.path())?;
        let made = || -> io::Result<()> {
            // Now: to remove it must be possible where there is no room for any more.
            for name in [MOUNT_LOCK, READ_LOCK] {
                File::create_new(work.path().join(name))?;
            }
            replace(&work.path().join(CONFIG), &serde_json::to_vec_pretty(&config)?)?;
            fs::rename(work.path(), self.path("containers").join(&id))
        };
        made().map_err(|error| self.error("containers", &error))?;
        // It has moved away from where it would be removed.
        let _moved = work.keep();
        self.sync_dir("containers")?;
        Ok(Container { config, path: self.path("containers").join(id) })
    }

    /// Makes the writable layer and the workdir of a container in `dir`.
    fn make_layers(&self, trees: &[Tree], dir: &Path) -> Result<()> {
        let root = match trees {
            [] => None,
            trees => Some(Stack::open(trees.iter().rev().map(Tree::part), self.keep())?.root_member(0)?),
        };
        let made = || -> io::Result<()> {
            for name in LAYERS {
                fs::create_dir(dir.join(name))?;
            }
            // The topmost layer may not say what the root is, and upper's is what shows.
            if let Some(root) = &root {
                let upper = File::open(dir.join("upper"))?;
                self.keep().dress(upper.as_fd(), OsStr::new(""), FileKind::Directory, root)?;
            }
            Ok(())
        };
        made().map_err(|error| self.error("containers", &error))
    }

    /// Takes back all that was changed in a container. Errors: [`ErrorKind::InUse`].
    pub fn discard_all(&self, container: &Container) -> Result<()> {
        let _held = container.alone()?;
        let trees = self.trees_of(container)?;
        let make = || -> Result<TempDir> {
            let new = self.workspace()?;
            self.make_layers(&trees, new.path())?;
            Ok(new)
        };
        let new = match make() {
            Err(error) if error.kind() == ErrorKind::Machine && self.give_spare() => make()?,
            done => done?,
        };
        for name in LAYERS {
            let (old, new) = (container.path.join(name), new.path().join(name));
            let exchanged = rustix::fs::renameat_with(CWD, old, CWD, new, RenameFlags::EXCHANGE);
            exchanged.map_err(|errno| Error::image_io(&container.config.id, &errno.into()))?;
        }
        // It may have directories that only `remove` can empty.
        remove(&new.keep()).map_err(|error| self.error("tmp", &error))
    }

    /// Returns the trees of a container, lowest first. Errors: [`ErrorKind::Absent`] where one is gone.
    pub fn trees_of(&self, container: &Container) -> Result<Vec<Tree>> {
        let mut trees = Vec::new();
        for name in &container.config.layers {
            let absent =
                || Error::image(name, "is a layer that is not in the store any more").of_kind(ErrorKind::Absent);
            let tree = self.tree_named(name)?.ok_or_else(absent);
            trees.push(tree.map_err(|error| error.within(&container.config.id))?);
        }
        Ok(trees)
    }

    /// Opens what a container shows, and what its image does. While the first is open nobody removes the container or takes
    /// back what was changed in it.
    pub fn stacks_of(&self, container: &Container) -> Result<(Stack, Stack)> {
        let lock = container.read()?;
        let (now, was) = self.open_stacks(container)?;
        Ok((now.holding(lock), was))
    }

    /// As [`Store::stacks_of`], for who has the container alone.
    pub(in super::super) fn open_stacks(&self, container: &Container) -> Result<(Stack, Stack)> {
        let trees = self.trees_of(container)?;
        let upper = container.upper();
        let lowers = || trees.iter().rev().map(Tree::part);
        let now = Stack::open([Part { path: &upper, says_root: true }].into_iter().chain(lowers()), self.keep())?;
        Ok((now, Stack::open(lowers(), self.keep())?))
    }

    /// Returns the containers of the store, oldest first; one of which nothing can be known is left out.
    pub fn containers(&self) -> Result<Vec<Container>> {
        let mut containers = Vec::new();
        for id in self.entries("containers")? {
            match self.read_container(&id) {
                Ok(container) => containers.extend(container),
                Err(error) => log::warn!("{error}"),
            }
        }
        containers.sort_by(|a, b| (a.config.created, &a.config.id).cmp(&(b.config.created, &b.config.id)));
        Ok(containers)
    }

    /// As [`Store::containers`]. Errors: also those of reading one.
    pub(super) fn whole_containers(&self) -> Result<Vec<Container>> {
        let mut containers = Vec::new();
        for id in self.entries("containers")? {
            containers.extend(self.read_container(&id)?);
        }
        Ok(containers)
    }

    /// Reads what is known of a container; `None` for one that is being removed.
    fn read_container(&self, id: &str) -> Result<Option<Container>> {
        let path = self.path("containers").join(id);
        let bytes = match fs::read(path.join(CONFIG)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::image_io(path.display(), &error)),
        };
        let config: ContainerConfig = serde_json::from_slice(&bytes).map_err(|error| {
            Error::image(path.display(), format!("its {CONFIG} cannot be read: {error}; remove the directory"))
        })?;
        // They are parts of paths.
        let leads_away = |name: &&String| name.contains('/') || name.starts_with('.');
        if let Some(name) = config.layers.iter().chain([&config.id]).find(leads_away) {
            return Err(Error::image(path.display(), format!("its {CONFIG} names {name:?}; remove the directory")));
        }
        Ok(Some(Container { config, path }))
    }

    /// Removes what is left of containers that were being removed, and those of mounts that are gone with their server. The
    /// store must be locked alone. What cannot be removed is left, and said in the log.
    pub(super) fn remove_dead_containers(&self) {
        let log = |error: &Error| log::warn!("{error}");
        let ids = self.entries("containers").inspect_err(log).unwrap_or_default();
        for path in ids.iter().map(|id| self.path("containers").join(id)) {
            if !path.join(CONFIG).exists() {
                remove_or_log(&path);
            }
        }
        let containers = self.containers().inspect_err(log).unwrap_or_default();
        for container in containers.iter().filter(|container| container.config.ephemeral) {
            // One that was just made is not held yet.
            let old = now().saturating_sub(container.config.created) > MOUNT_TAKES;
            if (old || container.config.mountpoint.is_some())
                && let Ok(Some(alone)) = container.alone_now()
            {
                let _ = container.remove_alone(&alone).inspect_err(log); // The next one tries again.
            }
        }
    }

    /// Finds the container whose id begins with `text`. Errors: [`ErrorKind::Absent`] for none, or several.
    pub fn container(&self, text: &str) -> Result<Container> {
        let mut found = self.containers()?.into_iter().filter(|container| container.config.id.starts_with(text));
        match (found.next(), found.next()) {
            (Some(container), None) if !text.is_empty() => Ok(container),
            (Some(_), Some(_)) => {
                Err(Error::image(text, "several containers begin so; write more of the id").of_kind(ErrorKind::Absent))
            }
            _ => {
                Err(Error::image(text, "there is no such container; unionfs-rs ps lists them")
                    .of_kind(ErrorKind::Absent))
            }
        }
    }
}

/// Returns the time, in seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Draws the name of a container.
fn new_id() -> io::Result<String> {
    let mut bytes = [0_u8; ID_BYTES];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

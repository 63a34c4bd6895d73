//! Containers: writable layers over images, and what a mount needs of them.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::progress::Bars;
use super::{image_arg, open_store, output, store_arg, word, words};
use crate::cli::exit::{Exit, Failure};
use crate::error::ErrorKind;
use crate::image::manifest::Image;
use crate::image::store::{Container, InUse, Server, Store};
use crate::sys::namespace::start_time;

pub fn commands() -> Vec<Command> {
    vec![
        Command::new("create")
            .about("Makes a writable layer over an image, and prints its id")
            .after_help("Example:\n  unionfs-rs mount --container $(unionfs-rs create debian) /mnt")
            .arg(image_arg("IMAGE"))
            .arg(store_arg()),
        Command::new("ps").about("Lists the writable layers over images").arg(store_arg()),
        Command::new("rm")
            .about("Removes writable layers, with all that was written to them")
            .arg(
                Arg::new("CONTAINER")
                    .required(true)
                    .action(ArgAction::Append)
                    .num_args(1..)
                    .help("The first digits of its id"),
            )
            .arg(store_arg()),
    ]
}

/// Returns the options of `mount` that are about images.
pub fn mount_args() -> Vec<Arg> {
    vec![
        Arg::new("image")
            .long("image")
            .value_name("IMAGE")
            .conflicts_with("container")
            .help("Mount an image of the store, under a new writable layer or, with --ro, without one"),
        Arg::new("container").long("container").value_name("ID").help("Mount a container of the store"),
        store_arg(),
    ]
}

/// What `mount` was told of images.
#[derive(Debug, Clone)]
pub enum Wanted {
    /// An image.
    Image(String),
    /// A container.
    Container(String),
}

/// The layers of a container, for a mount.
#[derive(Debug)]
pub struct Layers {
    /// Read-only, topmost first.
    pub lowers: Vec<PathBuf>,
    /// The container that they are of.
    pub container: Container,
    /// The same, where it was made for this mount.
    pub made: Option<Container>,
    /// Whether owners and modes are in xattrs.
    pub owners_apart: bool,
}

/// Returns what `mount` was told of images.
pub fn wanted(matches: &ArgMatches) -> Option<Wanted> {
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    text("image").map(Wanted::Image).or_else(|| text("container").map(Wanted::Container))
}

/// Finds the layers that `mount` was told of, and makes a container for an image.
pub fn layers_of(matches: &ArgMatches, wanted: Wanted, read_only: bool) -> Result<Layers, Failure> {
    let store = open_store(matches)?;
    let (container, made) = match wanted {
        Wanted::Image(text) => {
            let container = make(&store, &text, read_only)?;
            (container.clone(), Some(container))
        }
        Wanted::Container(text) => (store.container(&text)?, None),
    };
    let top = if read_only { Top::Readable } else { Top::Writable };
    Ok(Layers { made, ..layers(&store, &container, top)? })
}

/// What is done with the container's own layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Top {
    /// It is written.
    Writable,
    /// It is shown as the others are.
    Readable,
}

/// Finds the layers of a container.
pub fn layers(store: &Store, container: &Container, top: Top) -> Result<Layers, Failure> {
    let mut lowers: Vec<PathBuf> = Vec::new();
    for tree in store.trees_of(container)?.into_iter().rev() {
        // A layer that stands twice shows nothing below that it does not show above.
        if !lowers.contains(&tree.path) {
            lowers.push(tree.path);
        }
    }
    if top == Top::Readable && !lowers.is_empty() {
        lowers.insert(0, container.upper());
    }
    Ok(Layers { lowers, container: container.clone(), made: None, owners_apart: store.keep().store.is_some() })
}

/// A container that this process has in use.
#[derive(Debug)]
pub struct Held {
    container: Container,
    in_use: InUse,
}

impl Held {
    /// Takes `container` for a mount.
    pub fn take(container: &Container) -> Result<Self, Failure> {
        let in_use = container.held().map_err(|error| Failure::new(Exit::Setup, error.to_string()))?;
        Ok(Self { container: container.clone(), in_use })
    }

    /// Lets others find the container at `mountpoint`, where this process has mounted it.
    pub fn note(&mut self, mountpoint: &Path) -> Result<(), Failure> {
        let pid = std::process::id();
        let started = start_time(pid).map(|started| Server { pid, started });
        self.container.config.mountpoint = Some(mountpoint.to_owned());
        self.container.config.server = started.ok();
        Ok(self.container.save()?)
    }

    /// Gives the container back, when it is unmounted; one that was made for that mount alone is removed.
    pub fn end(self) {
        let Self { mut container, in_use } = self;
        (container.config.mountpoint, container.config.server) = (None, None);
        if !container.config.ephemeral
            && let Err(error) = container.save()
        {
            log::warn!("{error}");
        }
        if container.config.ephemeral
            && let Err(error) = container.remove_held(in_use)
        {
            log::error!("{error}");
        }
    }
}

/// Returns the image of a container. Errors: where it was removed by force, of which the layers are left alone.
pub fn image_of(store: &Store, container: &Container) -> Result<Image, Failure> {
    let config = &container.config;
    match store.find(&config.image) {
        Ok(found) => Ok(found.image),
        Err(error) if error.kind() == ErrorKind::Absent => {
            let name = config.image_name.as_ref().unwrap_or(&config.image);
            let remedy = "pull or load it again; mount, diff, cp, apply and export without --oci need it not";
            Err(Failure::new(Exit::Failed, format!("{}: its image {name} is gone; {remedy}", config.id)))
        }
        Err(error) => Err(error.into()),
    }
}

pub fn make(store: &Store, text: &str, ephemeral: bool) -> Result<Container, Failure> {
    let found = store.find(text)?;
    let trees = store.trees(&found.image, &Bars::new("unpacking")).map_err(|error| error.within(text))?;
    Ok(store.create_container(&found.image, found.name.map(|name| name.to_string()), &trees, ephemeral)?)
}

pub fn create(matches: &ArgMatches) -> Result<Exit, Failure> {
    let store = open_store(matches)?;
    let container = make(&store, word(matches, "IMAGE"), false)?;
    output::print(format!("{}\n", container.config.id).as_bytes())
}

pub fn ps(matches: &ArgMatches) -> Result<Exit, Failure> {
    let store = open_store(matches)?;
    let mut rows = vec![["CONTAINER ID", "IMAGE", "CREATED", "STATUS"].map(str::to_owned).to_vec()];
    for container in store.containers()? {
        let mounted = match container.is_held() {
            Ok(held) => held,
            // Since they were listed.
            Err(error) if error.kind() == ErrorKind::Absent => continue,
            Err(error) => return Err(error.into()),
        };
        let config = container.config;
        let status = match config.mountpoint.filter(|_| mounted) {
            Some(at) => format!("mounted at {}", at.display()),
            None if mounted => "mounted".into(),
            None => "not mounted".into(),
        };
        let created = output::ago(i64::try_from(config.created).unwrap_or(i64::MAX));
        rows.push(vec![config.id, config.image_name.unwrap_or(config.image), created, status]);
    }
    output::table(&rows)
}

pub fn rm(matches: &ArgMatches) -> Result<Exit, Failure> {
    let store = open_store(matches)?;
    for text in words(matches, "CONTAINER") {
        let container = store.container(text)?;
        container.remove()?;
        output::print(format!("{}\n", container.config.id).as_bytes())?;
    }
    Ok(Exit::Done)
}

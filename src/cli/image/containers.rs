//! Containers: writable layers over images, what was changed in them, and new images made of that.

use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::json;

use super::{image_arg, open_store, output, store_arg, word, words};
use crate::cli::exit::{Exit, Failure};
use crate::image::changes::{Change, ChangeKind, Compare, changes};
use crate::image::commit::Message;
use crate::image::manifest::Image;
use crate::image::media::Compression;
use crate::image::reference::ImageName;
use crate::image::stack::Stack;
use crate::image::store::{Container, InUse, Store, Tree};
use crate::layer::attr::FileKind;

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
            .arg(Arg::new("CONTAINER").required(true).action(ArgAction::Append).num_args(1..).help("The first digits of its id"))
            .arg(store_arg()),
        Command::new("diff")
            .about("Shows what was changed in a container, or what differs between two images")
            .long_about(
                "Shows what was changed in a container (A: added, C: changed, D: deleted; a directory in which something was \
                 changed is C), as `docker diff` does, or what differs between two images and which layer brought it. Takes \
                 time for what was changed, not for what is there.",
            )
            .arg(Arg::new("FROM").required(true).help("A container, or the image to compare with"))
            .arg(Arg::new("TO").help("Another image"))
            .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON"))
            .arg(Arg::new("stat").long("stat").action(ArgAction::SetTrue).help("Count files and bytes instead"))
            .arg(store_arg()),
        Command::new("commit")
            .about("Makes an image of what was changed in a container")
            .long_about(
                "Makes an image of what was changed in a container. The same changes give the same image, byte for byte: it is \
                 as old as the last of them, or as SOURCE_DATE_EPOCH says.",
            )
            .arg(Arg::new("CONTAINER").required(true).help("The first digits of its id"))
            .arg(Arg::new("NAME").help("What the image is to be called"))
            .arg(Arg::new("message").short('m').long("message").value_name("TEXT").help("Why, for the history"))
            .arg(Arg::new("author").short('a').long("author").value_name("NAME").help("Who, for the history"))
            .arg(Arg::new("created-by").long("created-by").value_name("COMMAND").help("How, for the history"))
            .arg(
                Arg::new("compress")
                    .long("compress")
                    .value_name("HOW")
                    .value_parser(PossibleValuesParser::new(["gzip", "zstd", "none"]))
                    .default_value("gzip")
                    .help("How the layer is packed"),
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
    /// Takes `container` for a mount at `mountpoint`.
    pub fn take(container: &Container, mountpoint: &Path) -> Result<Self, Failure> {
        let mut container = container.clone();
        let id = &container.config.id;
        let Some(in_use) = container.hold()? else {
            return Err(Failure::new(Exit::Setup, format!("{id}: the container is mounted already; unmount it first")));
        };
        container.config.mountpoint = Some(mountpoint.to_owned());
        container.save()?;
        Ok(Self { container, in_use })
    }

    /// Gives the container back, when it is unmounted; one that was made for that mount alone is removed.
    pub fn end(self) {
        let Self { container, in_use } = self;
        drop(in_use);
        if container.config.ephemeral
            && let Err(error) = container.remove()
        {
            log::error!("{error}");
        }
    }
}

pub fn make(store: &Store, text: &str, ephemeral: bool) -> Result<Container, Failure> {
    let found = store.find(text)?;
    let trees = store.trees(&found.image, &super::progress::Bars::new("unpacking"))?;
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
        let mounted = container.hold()?.is_none();
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

pub fn diff(matches: &ArgMatches) -> Result<Exit, Failure> {
    let store = open_store(matches)?;
    let from = word(matches, "FROM");
    let list = match matches.get_one::<String>("TO") {
        None => {
            let (now, was) = store.stacks_of(&store.container(from)?)?;
            changes(&now, &was, Compare::Presence)?
        }
        Some(to) => {
            let (was, now) = (image_tree(&store, from)?, image_tree(&store, to)?);
            changes(&now.1, &was.1, Compare::Contents)?
        }
    };
    let mut list: Vec<Change> = list;
    list.sort_by(|a, b| a.path.cmp(&b.path));
    if matches.get_flag("stat") {
        return stat(&list);
    }
    if matches.get_flag("json") {
        let path = |change: &Change| change.path.to_string_lossy().into_owned();
        let of = |kind| list.iter().filter(|change| change.kind == kind).map(path).collect::<Vec<_>>();
        return output::json(&json!({
            "changed": of(ChangeKind::Changed),
            "added": of(ChangeKind::Added),
            "deleted": of(ChangeKind::Deleted),
        }));
    }
    let mut text = Vec::new();
    for change in &list {
        use std::os::unix::ffi::OsStrExt;
        text.extend_from_slice(format!("{} ", change.kind.letter()).as_bytes());
        text.extend_from_slice(change.path.as_os_str().as_bytes());
        text.push(b'\n');
    }
    output::print(&text)
}

/// Opens the tree of an image.
fn image_tree(store: &Store, text: &str) -> Result<(Image, Stack), Failure> {
    let image = store.find(text)?.image;
    let trees = store.trees(&image, &super::progress::Bars::new("unpacking"))?;
    let stack = Stack::open(trees.iter().rev().map(Tree::part), store.keep())?;
    Ok((image, stack))
}

fn stat(list: &[Change]) -> Result<Exit, Failure> {
    let mut text = String::new();
    for (kind, word) in
        [(ChangeKind::Added, "added"), (ChangeKind::Changed, "changed"), (ChangeKind::Deleted, "deleted")]
    {
        let of = || list.iter().filter(|change| change.kind == kind && change.itself);
        let bytes = of().filter_map(|change| change.now.as_ref().or(change.was.as_ref()));
        let bytes = bytes.map(|object| object.attr()).filter(|attr| attr.kind == FileKind::Regular);
        let bytes = bytes.fold(0_u64, |sum, attr| sum.saturating_add(attr.size));
        text.push_str(&format!("{} {word}, {}\n", of().count(), output::size(bytes, 3)));
    }
    output::print(text.as_bytes())
}

pub fn commit(matches: &ArgMatches) -> Result<Exit, Failure> {
    let store = open_store(matches)?;
    let container = store.container(word(matches, "CONTAINER"))?;
    let base = store.find(&container.config.image)?.image;
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let compression = match word(matches, "compress") {
        "zstd" => Compression::Zstd,
        "none" => Compression::None,
        _ => Compression::Gzip,
    };
    let name = text("NAME").map(|name| ImageName::local(&name).and_then(ImageName::tagged)).transpose()?;
    let message = Message {
        created_by: text("created-by").unwrap_or_else(|| "unionfs-rs commit".into()),
        author: text("author"),
        comment: text("message"),
        created: source_date_epoch()?,
    };
    let (now, was) = store.stacks_of(&container)?;
    let layer = store.put_layer(&now, &was, compression)?;
    let image = store.put_image(&base, &layer, &message)?;
    store.trees(&image, &super::progress::Bars::new("unpacking"))?;
    store.tag(&image.descriptor, name.as_ref())?;
    output::print(format!("{}\n", image.id().digest()).as_bytes())
}

/// Returns when whoever builds reproducibly wants everything to have happened: reproducible-builds.org/specs/source-date-epoch.
fn source_date_epoch() -> Result<Option<i64>, Failure> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH") else { return Ok(None) };
    let seconds = text.to_str().and_then(|text| text.parse().ok());
    match seconds {
        Some(seconds) => Ok(Some(seconds)),
        None => Err(Failure::new(Exit::Usage, format!("SOURCE_DATE_EPOCH {text:?}: not a whole number of seconds"))),
    }
}

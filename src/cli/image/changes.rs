//! What was changed in a container or differs between images; kept as an image, taken over elsewhere, or taken back.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint, value_parser};
use rustix::fs::{Mode, OFlags};
use rustix::thread::CapabilitySet;
use serde_json::{Value, json};

use super::containers::image_of;
use super::progress::Bars;
use super::subject::{Subject, stack_of};
use super::transfer::to_path;
use super::{image_arg, open_store, os_word, output, path_arg, store_arg, word, words};
use crate::cli::exit::{Exit, Failure};
use crate::cli::options;
use crate::error::Error;
use crate::image::apply::apply as apply_changes;
use crate::image::changes::{Change, ChangeKind, Compare, changes};
use crate::image::commit::Message;
use crate::image::digest;
use crate::image::export::write_tree;
use crate::image::extract::{Conflict, Extract, Owners};
use crate::image::instruction::Instruction;
use crate::image::manifest::Image;
use crate::image::media::Compression;
use crate::image::reference::ImageName;
use crate::image::save::{self, Saved};
use crate::image::stack::{Object, Part, Says, Stack};
use crate::image::store::{Container, Counted, Store, Work};
use crate::image::unpack::keep::Keep;
use crate::layer::attr::FileKind;
use crate::sys::caps;

pub fn commands() -> Vec<Command> {
    vec![
        Command::new("diff")
            .about("Shows what was changed in a container, or what differs between two images")
            .long_about(
                "Shows what was changed in a container (A: added, C: changed, D: deleted; a directory in which something was \
                 changed is C), as `docker diff` does; with --lower, in the upper of any other mount. Of two images it shows \
                 what differs, and after a tab the number and digest of the layer that brought it. Takes time for what was changed, not \
                 for what is there.",
            )
            .arg(path_arg("FROM").help("A container, the upper of a mount, or the image to compare with"))
            .arg(Arg::new("TO").help("Another image"))
            .arg(
                Arg::new("lower")
                    .long("lower")
                    .value_name("DIR[:DIR...]")
                    .value_parser(value_parser!(OsString))
                    .conflicts_with("TO")
                    .help("What is below the upper, topmost first"),
            )
            .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON"))
            .arg(Arg::new("stat").long("stat").action(ArgAction::SetTrue).help("Count files and bytes instead"))
            .arg(store_arg()),
        Command::new("commit")
            .about("Makes an image of what was changed in a container")
            .long_about(
                "Makes an image of what was changed in a container. The same changes give the same image, byte for byte: it is \
                 as old as the last of them, or as SOURCE_DATE_EPOCH says.",
            )
            .arg(container_arg())
            .arg(Arg::new("NAME").help("What the image is to be called"))
            .arg(Arg::new("message").short('m').long("message").value_name("TEXT").help("Why, for the history"))
            .arg(Arg::new("author").short('a').long("author").value_name("NAME").help("Who, for the history"))
            .arg(Arg::new("created-by").long("created-by").value_name("COMMAND").help("How, for the history"))
            .arg(
                Arg::new("change")
                    .long("change")
                    .short('c')
                    .value_name("INSTRUCTION")
                    .action(ArgAction::Append)
                    .help("Change how the image is run, as a Dockerfile does: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, USER, ..."),
            )
            .arg(
                Arg::new("compress")
                    .long("compress")
                    .value_name("HOW")
                    .value_parser(PossibleValuesParser::new(["gzip", "zstd", "none"]))
                    .default_value("gzip")
                    .help("How the layer is packed"),
            )
            .arg(store_arg()),
        Command::new("apply")
            .about("Makes what was changed in a container in a directory of the host")
            .long_about(
                "Makes what was changed in a container in a directory of the host: what was added or changed is copied, what \
                 was deleted is removed there. As root with owners and xattrs; a plain user owns the copies. Nothing is written \
                 through a link.",
            )
            .arg(container_arg())
            .arg(Arg::new("DIR").required(true).value_parser(value_parser!(PathBuf)).value_hint(ValueHint::DirPath).help("The directory"))
            .arg(paths_arg("The paths in the container whose changes are made; all, if none is named"))
            .arg(store_arg()),
        Command::new("discard")
            .about("Takes back what was changed in a container")
            .long_about("Takes back what was changed in a container at some paths and in them, or all: then the image's files show again.")
            .arg(container_arg())
            .arg(paths_arg("The paths in the container").required_unless_present("all"))
            .arg(Arg::new("all").long("all").action(ArgAction::SetTrue).conflicts_with("PATH").help("Take back all changes"))
            .arg(store_arg()),
        Command::new("export")
            .about("Writes what a container or an image shows as a tar, or as an image archive")
            .long_about(
                "Writes what a container or an image shows as one tar of files, as `docker export` does; or with --oci as an OCI \
                 archive, in which a container's changes are one more layer.",
            )
            .arg(image_arg("NAME").help("A container or an image"))
            .arg(Arg::new("oci").long("oci").action(ArgAction::SetTrue).help("Write an OCI archive"))
            .arg(
                Arg::new("name")
                    .long("name")
                    .value_name("NAME")
                    .requires("oci")
                    .help("What the image in the archive is called"),
            )
            .arg(
                Arg::new("output")
                    .long("output")
                    .short('o')
                    .value_name("FILE")
                    .value_parser(value_parser!(PathBuf))
                    .value_hint(ValueHint::FilePath)
                    .help("The file [default: standard output]"),
            )
            .arg(store_arg()),
    ]
}

fn container_arg() -> Arg {
    Arg::new("CONTAINER").required(true).help("The first digits of its id")
}

fn paths_arg(help: &'static str) -> Arg {
    Arg::new("PATH").action(ArgAction::Append).num_args(1..).value_parser(value_parser!(PathBuf)).help(help)
}

pub fn diff(matches: &ArgMatches) -> Result<Exit, Failure> {
    let store = open_store(matches)?;
    let from = os_word(matches, "FROM");
    // Whatever is no UTF-8 is no name of an image or a container.
    let name = || from.to_string_lossy();
    if let Some(to) = matches.get_one::<String>("TO") {
        let ((_, was), (image, now)) = (image_tree(&store, &name())?, image_tree(&store, to)?);
        let differ = changes(&now, &was, Compare::Contents);
        let list = sorted(differ.map_err(|error| error.within(format!("{} and {to}", name())))?);
        return if matches.get_flag("stat") {
            stat(&list)
        } else {
            by_layers(&list, &image, &now, matches.get_flag("json"))
        };
    }
    let (now, was) = match matches.get_one::<OsString>("lower") {
        Some(lowers) => upper_of(Path::new(from), lowers)?,
        None => store.stacks_of(&store.container(&name())?)?,
    };
    let list = sorted(changes(&now, &was, Compare::Presence).map_err(|error| error.within(name()))?);
    if matches.get_flag("stat") {
        return stat(&list);
    }
    if matches.get_flag("json") {
        let path = |change: &Change| output::name(change.path.as_os_str().as_bytes());
        let of = |kind| list.iter().filter(|change| change.kind == kind).map(path).collect::<Vec<_>>();
        return output::json(&json!({
            "changed": of(ChangeKind::Changed),
            "added": of(ChangeKind::Added),
            "deleted": of(ChangeKind::Deleted),
        }));
    }
    let mut text = Vec::new();
    for change in &list {
        text.extend_from_slice(format!("{} ", change.kind.letter()).as_bytes());
        text.extend_from_slice(change.path.as_os_str().as_bytes());
        text.push(b'\n');
    }
    output::print(&text)
}

fn sorted(mut list: Vec<Change>) -> Vec<Change> {
    list.sort_by(|a, b| a.path.cmp(&b.path));
    list
}

/// Opens an upper over its lowers, and these alone.
fn upper_of(upper: &Path, lowers: &OsStr) -> Result<(Stack, Stack), Failure> {
    let wrong = |error| Failure::new(Exit::Usage, format!("--lower {}: {error}", lowers.display()));
    let lowers = options::split_lowers(lowers).map_err(wrong)?;
    let parts = || lowers.iter().map(|path| Part { path, says_root: true });
    let (upper, keep) = (Part { path: upper, says_root: true }, Keep::here());
    Ok((Stack::open([upper].into_iter().chain(parts()), keep)?, Stack::open(parts(), keep)?))
}

/// Prints what differs in an image, and the layer that brought it.
fn by_layers(list: &[Change], image: &Image, now: &Stack, json: bool) -> Result<Exit, Failure> {
    let (mut text, mut objects) = (Vec::new(), Vec::new());
    for change in list {
        // What differs only by what is in it is told of there.
        let at = if change.itself { brought_by(change, now)? } else { None };
        let at = at.and_then(|from_top| image.layers.len().checked_sub(from_top + 1));
        let layer = at.and_then(|at| Some((at + 1, image.layers.get(at)?.blob.digest())));
        let letter = change.kind.letter();
        if json {
            let (number, digest) = layer.map(|(number, digest)| (number, digest.to_string())).unzip();
            objects.push(json!({"kind": letter.to_string(), "path": output::name(change.path.as_os_str().as_bytes()), "layer": number, "digest": digest}));
            continue;
        }
        let layer = layer.map_or_else(String::new, |(number, of)| format!("\t{number} {}", digest::short(of)));
        text.extend_from_slice(format!("{letter} ").as_bytes());
        text.extend_from_slice(change.path.as_os_str().as_bytes());
        text.extend_from_slice(format!("{layer}\n").as_bytes());
    }
    if json { output::json(&json!({"changes": Value::Array(objects)})) } else { output::print(&text) }
}

/// Returns which layer of the tree `now` brought a change, counted from the topmost.
fn brought_by(change: &Change, now: &Stack) -> Result<Option<usize>, Failure> {
    let of = |layer: u16| usize::from(layer).checked_sub(1);
    Ok(match &change.now {
        Some(Object::File(dir, ..)) => of(dir.layer.0),
        Some(Object::Dir(merged, _)) => merged.parts().first().and_then(|top| of(top.layer.0)),
        None => {
            let names: Vec<_> = change.path.iter().skip(1).collect();
            now.says(&names)?.iter().position(|says| *says == Says::Removes)
        }
    })
}

/// Opens the tree of an image.
fn image_tree(store: &Store, text: &str) -> Result<(Image, Stack), Failure> {
    let image = store.find(text)?.image;
    let stack = stack_of(store, &image, text)?;
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
    let base = image_of(&store, &container)?;
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
        config: words(matches, "change").map(Instruction::parse).collect::<Result<_, _>>()?,
    };
    let image = put_image(&store, &container, &base, &message, compression)?;
    let named = |error: Error| error.within(&container.config.id);
    store.trees(&image, &Bars::new("unpacking")).map_err(named)?;
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

/// Puts the image that has a container's changes as one more layer into the store; it has no name yet.
fn put_image(
    store: &Store,
    container: &Container,
    base: &Image,
    message: &Message,
    compression: Compression,
) -> Result<Image, Failure> {
    let (now, was) = store.stacks_of(container)?;
    let layer = store
        .put_layer(&now, &was, compression, &Bars::new("writing"))
        .map_err(|error| error.within(&container.config.id))?;
    Ok(store.put_image(base, &layer, message)?)
}

pub fn apply(matches: &ArgMatches) -> Result<Exit, Failure> {
    let store = open_store(matches)?;
    let container = store.container(word(matches, "CONTAINER"))?;
    let within = |error: Error| Failure::from(error.within(&container.config.id));
    let (now, was) = store.stacks_of(&container)?;
    // clap lets no command line without it through.
    let dir = matches.get_one::<PathBuf>("DIR").map_or(Path::new("."), PathBuf::as_path);
    let opened = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let opened = opened.map_err(|errno| Failure::new(Exit::Setup, format!("{}: {errno}", dir.display())))?;
    let gives = caps::effective(CapabilitySet::CHOWN) && caps::in_initial_user_namespace();
    let how = Extract { owners: if gives { Owners::Kept } else { Owners::Mine }, conflict: Conflict::Removed };
    let list = changes(&now, &was, Compare::Presence).map_err(within)?;
    let chosen = chosen(matches)?;
    for path in &chosen {
        if !list.iter().any(|change| change.path.starts_with(path)) {
            return Err(Failure::new(Exit::Failed, format!("{}: nothing was changed there", path.display())));
        }
    }
    let chosen: Vec<&Path> = chosen.iter().map(PathBuf::as_path).collect();
    let count = apply_changes(&now, &list, &chosen, &opened, how).map_err(within)?;
    output::print(format!("{count} changes made in {}\n", dir.display()).as_bytes())
}

/// Returns the paths that were named, from the root.
fn chosen(matches: &ArgMatches) -> Result<Vec<PathBuf>, Failure> {
    let paths = matches.get_many::<PathBuf>("PATH").into_iter().flatten();
    paths
        .map(|path| {
            if path.components().any(|part| part == Component::ParentDir) {
                let reason = "has .. in it, which leads elsewhere where there are links; write the path without";
                return Err(Failure::new(Exit::Usage, format!("{}: {reason}", path.display())));
            }
            Ok(Path::new("/").join(path).components().collect())
        })
        .collect()
}

pub fn discard(matches: &ArgMatches) -> Result<Exit, Failure> {
    let store = open_store(matches)?;
    let container = store.container(word(matches, "CONTAINER"))?;
    if matches.get_flag("all") {
        store.discard_all(&container)?;
        return Ok(Exit::Done);
    }
    for path in chosen(matches)? {
        if path == Path::new("/") {
            return Err(Failure::new(Exit::Usage, "/: all that was changed is taken back with --all"));
        }
        store.discard(&container, &path)?;
    }
    Ok(Exit::Done)
}

pub fn export(matches: &ArgMatches) -> Result<Exit, Failure> {
    let store = open_store(matches)?;
    let text = word(matches, "NAME");
    let subject = Subject::find(&store, text)?;
    let path = matches.get_one::<PathBuf>("output").map(PathBuf::as_path);
    if matches.get_flag("oci") {
        let image = match &subject {
            Subject::Container(container) => {
                let base = image_of(&store, container)?;
                let message = Message {
                    created_by: "unionfs-rs export".into(),
                    created: source_date_epoch()?,
                    ..Message::default()
                };
                put_image(&store, container, &base, &message, Compression::Gzip)?
            }
            Subject::Image(image) => image.as_ref().clone(),
        };
        let name = matches.get_one::<String>("name");
        let name = name.map(|name| ImageName::local(name).and_then(ImageName::tagged)).transpose()?;
        let saved = [Saved { image, names: name.into_iter().collect() }];
        let bars = Bars::new("saving");
        to_path(path, |out| save::oci_archive(&store, &saved, out, &bars).map_err(|error| error.within(text).into()))?;
        return Ok(Exit::Done);
    }
    let stack = subject.stack(&store, text)?;
    let root = stack.root()?;
    let bars = Bars::new("writing");
    to_path(path, |out| {
        let out = Counted::new(out, Work { name: text.into(), bytes: None }, &bars);
        write_tree(&stack, &root, b"", out).map_err(|error| error.within(text).into())
    })?;
    Ok(Exit::Done)
}

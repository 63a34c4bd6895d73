//! `load` and `save`: images out of files and into them.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint, value_parser};

use super::progress::Bars;
use super::{image_arg, open_store, output, platform, platform_arg, store_arg, words};
use crate::cli::exit::{Exit, Failure};
use crate::error::Error;
use crate::image::load::{self, Loaded};
use crate::image::save::{self, Saved};
use crate::image::source::Watch;

pub fn commands() -> Vec<Command> {
    vec![
        Command::new("load")
            .about("Loads images from a docker-archive, an oci-archive or an OCI layout")
            .after_help("Example:\n  podman save localhost/app | unionfs-rs load")
            .arg(
                Arg::new("PATH")
                    .value_parser(value_parser!(PathBuf))
                    .value_hint(ValueHint::AnyPath)
                    .help("The archive, packed or not, or the directory [default: standard input]"),
            )
            .arg(platform_arg())
            .arg(store_arg()),
        Command::new("save")
            .about("Saves images to an archive, or to an OCI layout")
            .after_help("Example:\n  unionfs-rs save localhost/app | podman load")
            .arg(image_arg("IMAGE").action(ArgAction::Append).num_args(1..))
            .arg(
                Arg::new("output")
                    .short('o')
                    .long("output")
                    .value_name("PATH")
                    .value_parser(value_parser!(PathBuf))
                    .value_hint(ValueHint::AnyPath)
                    .help("Where it goes [default: standard output]"),
            )
            .arg(
                Arg::new("format")
                    .long("format")
                    .value_name("FORMAT")
                    .value_parser(PossibleValuesParser::new(["docker-archive", "oci-archive", "oci"]))
                    .default_value("oci-archive")
                    .help("What is written; oci is a layout in a directory"),
            )
            .arg(store_arg()),
    ]
}

pub fn load(matches: &ArgMatches) -> Result<Exit, Failure> {
    let platform = platform(matches)?;
    let store = open_store(matches)?;
    let reading = Bars::new("reading");
    let watch = Watch { fetching: &reading, unpacking: &reading.beside("unpacking") };
    let loaded = match matches.get_one::<PathBuf>("PATH") {
        Some(path) => load::load(&store, path, &platform, watch)?,
        None if io::stdin().is_terminal() => {
            return Err(Failure::new(
                Exit::Usage,
                "nothing is given to load; name a file, or give an archive as standard input",
            ));
        }
        None => load::load_stream(&store, io::stdin().lock(), &platform, watch)?,
    };
    let mut text = String::new();
    for Loaded { image, names } in &loaded {
        let shown: Vec<String> = names.iter().map(ToString::to_string).collect();
        let shown = if shown.is_empty() { image.id().to_string() } else { shown.join(",") };
        text.push_str(&format!("Loaded image: {shown}\n"));
    }
    output::print(text.as_bytes())
}

pub fn save(matches: &ArgMatches) -> Result<Exit, Failure> {
    let store = open_store(matches)?;
    let mut images: Vec<Saved> = Vec::new();
    for text in words(matches, "IMAGE") {
        let found = store.find(text)?;
        // By id it has no name; by one of its names, that one.
        match images.iter_mut().find(|saved| saved.image.descriptor.digest() == found.image.descriptor.digest()) {
            Some(saved) => saved.names.extend(found.name.filter(|name| !saved.names.contains(name))),
            None => images.push(Saved { names: found.name.into_iter().collect(), image: found.image }),
        }
    }
    let path = matches.get_one::<PathBuf>("output").map(PathBuf::as_path);
    let all = words(matches, "IMAGE").collect::<Vec<_>>().join(", ");
    let within = |error: Error| Failure::from(error.within(&all));
    let bars = Bars::new("saving");
    match (super::word(matches, "format"), path) {
        ("oci", Some(path)) => save::oci_layout_dir(&store, &images, path, &bars).map_err(within)?,
        ("oci", None) => {
            return Err(Failure::new(Exit::Usage, "a layout is a directory; name it with -o DIR"));
        }
        ("docker-archive", path) => {
            to_path(path, |out| save::docker_archive(&store, &images, out, &bars).map_err(within))?;
        }
        (_, path) => to_path(path, |out| save::oci_archive(&store, &images, out, &bars).map_err(within))?,
    }
    Ok(Exit::Done)
}

/// Writes an archive to a file, or to standard output.
pub fn to_path(path: Option<&Path>, write: impl FnOnce(&mut dyn Write) -> Result<(), Failure>) -> Result<(), Failure> {
    match path {
        Some(path) => to_file(path, write),
        None if io::stdout().is_terminal() => {
            Err(Failure::new(Exit::Usage, "an archive is not written to a terminal; name a file with -o"))
        }
        None => write(&mut io::stdout().lock()),
    }
}

/// Writes an archive to a file, which appears when it is whole; to what is no regular file as it comes.
fn to_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<(), Failure>) -> Result<(), Failure> {
    let failed = |error: &io::Error| Failure::new(Exit::Failed, format!("{}: {error}", path.display()));
    if path.exists() && !path.is_file() {
        let mut out = File::options().write(true).open(path).map_err(|error| failed(&error))?;
        return write(&mut out);
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::NamedTempFile::new_in(dir).map_err(|error| failed(&error))?;
    let mut out = io::BufWriter::with_capacity(256 * 1024, &file);
    write(&mut out)?;
    out.flush().map_err(|error| failed(&error))?;
    drop(out);
    save::publish(file, path).map_err(|error| failed(&error))
}

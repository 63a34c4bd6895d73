//! `gc`, `verify`, `df`: that the store holds what it should, and no more.

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::progress::Bars;
use super::{open_store, output, store_arg};
use crate::cli::exit::{Exit, Failure};
use crate::image::digest;
use crate::image::store::{Trees, Verdict};

pub fn commands() -> Vec<Command> {
    vec![
        Command::new("gc").about("Takes from the disk what no image and no container needs").arg(store_arg()),
        Command::new("verify")
            .about("Reads everything in the store again and compares it with its digests")
            .after_help("Exits with 1 where something is not what it should be.")
            .arg(
                Arg::new("trees")
                    .long("trees")
                    .action(ArgAction::SetTrue)
                    .help("Compare unpacked layers, too; takes room for one of them at a time"),
            )
            .arg(store_arg()),
        Command::new("df")
            .about("Shows how much of the disk each image takes, and how much of that it shares")
            .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON, sizes in bytes"))
            .arg(store_arg()),
    ]
}

pub fn gc(matches: &ArgMatches) -> Result<Exit, Failure> {
    let store = open_store(matches)?;
    let removed = match store.try_gc()? {
        Some(removed) => removed,
        None => {
            crate::cli::complain(&format!("{}: waiting for others that use the store\n", crate::cli::args::NAME));
            store.gc()?
        }
    };
    let text =
        format!("Removed {} blobs and {} layers, {}\n", removed.blobs, removed.layers, output::size(removed.bytes, 3));
    output::print(text.as_bytes())
}

pub fn verify(matches: &ArgMatches) -> Result<Exit, Failure> {
    let store = open_store(matches)?;
    let bars = Bars::new("comparing");
    let trees = if matches.get_flag("trees") { Trees::Compared } else { Trees::Left };
    let Verdict { blobs, problems } = store.verify(trees, &bars, &bars.beside("unpacking"))?;
    let images = store.images()?.len();
    let mut text = String::new();
    for problem in &problems {
        text.push_str(&format!("{}: {}\n", problem.subject, problem.reason));
    }
    text.push_str(&format!("{blobs} blobs, {images} images: {} problems\n", problems.len()));
    output::print(text.as_bytes())?;
    Ok(if problems.is_empty() { Exit::Done } else { Exit::Failed })
}

pub fn df(matches: &ArgMatches) -> Result<Exit, Failure> {
    let store = open_store(matches)?;
    let usage = store.usage()?;
    let total = store.disk_usage()?;
    let images = store.distinct_images()?;
    if matches.get_flag("json") {
        let list: Vec<_> = usage
            .iter()
            .map(|one| serde_json::json!({"manifest": one.manifest, "shared": one.shared, "unique": one.unique}))
            .collect();
        return output::json(&serde_json::json!({"images": list, "total": total}));
    }
    let mut rows = vec![["IMAGE ID", "NAME", "SHARED", "UNIQUE"].map(str::to_owned).to_vec()];
    for (one, image) in usage.iter().zip(&images) {
        let names: Vec<String> = store.names_of(image.descriptor.digest())?.iter().map(ToString::to_string).collect();
        let name = if names.is_empty() { "<none>".to_owned() } else { names.join(",") };
        rows.push(vec![
            digest::short(image.id()).to_owned(),
            name,
            output::size(one.shared, 3),
            output::size(one.unique, 3),
        ]);
    }
    output::table(&rows)?;
    output::print(format!("The store takes {} of the disk\n", output::size(total, 3)).as_bytes())
}

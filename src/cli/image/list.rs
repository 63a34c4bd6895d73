//! `images`: which there are.

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{open_store, output, store_arg};
use crate::cli::exit::{Exit, Failure};
use crate::image::digest;
use crate::image::manifest::Image;

pub fn commands() -> Vec<Command> {
    vec![
        Command::new("images")
            .about("Lists the images of the store, as podman does")
            .arg(Arg::new("digests").long("digests").action(ArgAction::SetTrue).help("Show the digests of manifests"))
            .arg(Arg::new("quiet").short('q').long("quiet").action(ArgAction::SetTrue).help("Show ids alone"))
            .arg(Arg::new("no-trunc").long("no-trunc").action(ArgAction::SetTrue).help("Show whole ids"))
            .arg(store_arg()),
    ]
}

pub fn images(matches: &ArgMatches) -> Result<Exit, Failure> {
    let store = open_store(matches)?;
    let mut list = Vec::new();
    for named in store.images()? {
        let image = match Image::read(&store, &named.manifest) {
            Ok(image) => image,
            Err(error) => {
                let name = named.name.map_or_else(|| named.manifest.digest().to_string(), |name| name.to_string());
                crate::cli::complain(&format!(
                    "{}: {name}: {error}; bring it again or remove it\n",
                    crate::cli::args::NAME
                ));
                continue;
            }
        };
        let size = store.unpacked_size(&image)?;
        let created = image.config.created.as_deref().and_then(output::seconds);
        list.push((created, named.name, image, size));
    }
    // The newest first, as podman has them; those of one time in the order in which they came.
    list.sort_by_key(|(created, ..)| std::cmp::Reverse(*created));
    let whole = matches.get_flag("no-trunc");
    let id = |image: &Image| if whole { image.id().to_string() } else { digest::short(image.id()).to_owned() };
    if matches.get_flag("quiet") {
        let mut text = String::new();
        for (_, _, image, _) in &list {
            text.push_str(&format!("{}\n", id(image)));
        }
        return output::print(text.as_bytes());
    }
    let digests = matches.get_flag("digests");
    let row = |words: [String; 6]| {
        let [repository, tag, digest, id, created, size] = words;
        let mut row = vec![repository, tag];
        row.extend(digests.then_some(digest));
        row.extend([id, created, size]);
        row
    };
    let mut rows = vec![row(["REPOSITORY", "TAG", "DIGEST", "IMAGE ID", "CREATED", "SIZE"].map(str::to_owned))];
    for (created, name, image, size) in &list {
        let none = || "<none>".to_owned();
        let tag = name.as_ref().and_then(|name| name.tag()).map_or_else(none, str::to_owned);
        rows.push(row([
            name.as_ref().map_or_else(none, |name| name.base()),
            tag,
            image.descriptor.digest().to_string(),
            id(image),
            created.map_or_else(|| "N/A".to_owned(), output::ago),
            output::size(*size, 3),
        ]));
    }
    output::table(&rows)
}

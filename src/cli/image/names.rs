//! `tag` and `rmi`: what images are called, and which stay.

use clap::{Arg, ArgAction, ArgMatches, Command};
use oci_spec::image::Descriptor;

use super::{image_arg, open_store, output, store_arg, word, words};
use crate::cli::exit::{Exit, Failure};
use crate::image::manifest::Image;
use crate::image::query::Located;
use crate::image::reference::ImageName;
use crate::image::store::Store;

pub fn commands() -> Vec<Command> {
    vec![
        Command::new("tag")
            .about("Gives an image one more name")
            .arg(image_arg("IMAGE"))
            .arg(Arg::new("NAME").required(true).help("The name, which is taken from any other image"))
            .arg(store_arg()),
        Command::new("rmi")
            .about("Removes images: by name the name, and with the last name the image")
            .long_about(
                "Removes images. By a name, the image loses that name, and goes when it has no other; by id or digest it goes \
                 with all its names. What other images do not need is taken from the disk.",
            )
            .arg(image_arg("IMAGE").action(ArgAction::Append).num_args(1..))
            .arg(Arg::new("force").short('f').long("force").action(ArgAction::SetTrue).help("Also one that a container was made of"))
            .arg(store_arg()),
    ]
}

pub fn tag(matches: &ArgMatches) -> Result<Exit, Failure> {
    let store = open_store(matches)?;
    let name = ImageName::local(word(matches, "NAME"))?.tagged()?;
    let found = store.find(word(matches, "IMAGE"))?;
    store.tag(&found.image.descriptor, Some(&name))?;
    Ok(Exit::Done)
}

pub fn rmi(matches: &ArgMatches) -> Result<Exit, Failure> {
    let store = open_store(matches)?;
    let mut located = Vec::new();
    for query in words(matches, "IMAGE") {
        located.push((query, store.locate(query)?));
    }
    for (query, images) in located {
        for Located { manifest, name } in images {
            remove(&store, matches, query, &manifest, name)?;
        }
    }
    if store.try_gc()?.is_none() {
        let text = "others use the store: what is needed no more goes from the disk with the next rmi or gc\n";
        crate::cli::complain(&format!("{}: {text}", crate::cli::args::NAME));
    }
    Ok(Exit::Done)
}

/// Takes a name from an image, or the image from the store.
fn remove(
    store: &Store,
    matches: &ArgMatches,
    query: &str,
    manifest: &Descriptor,
    name: Option<ImageName>,
) -> Result<(), Failure> {
    let digest = manifest.digest();
    let names = store.names_of(digest)?;
    if let Some(name) = name.filter(|name| names.len() > 1 && names.contains(name)) {
        store.untag(&name)?;
        return output::print(format!("Untagged: {name}\n").as_bytes()).map(drop);
    }
    let user = store.containers()?.into_iter().find(|container| container.config.image == digest.to_string());
    if let Some(user) = user.filter(|_| !matches.get_flag("force")) {
        let id = user.config.id;
        let reason = format!(
            "{query}: the container {id} was made of it; remove that first (unionfs-rs rm {id}), or use --force"
        );
        return Err(Failure::new(Exit::Failed, reason));
    }
    // Of one that cannot be read only the manifest is known.
    let id = Image::read(store, manifest)
        .map_or_else(|_| digest.digest().to_owned(), |image| image.id().digest().to_owned());
    store.forget(digest)?;
    let mut text: String = names.iter().map(|name| format!("Untagged: {name}\n")).collect();
    text.push_str(&format!("Deleted: {id}\n"));
    output::print(text.as_bytes()).map(drop)
}

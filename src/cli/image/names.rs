//! `tag` and `rmi`: what images are called, and which stay.

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{image_arg, open_store, output, store_arg, word, words};
use crate::cli::exit::{Exit, Failure};
use crate::image::reference::ImageName;

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
    let name = ImageName::parse(word(matches, "NAME"))?;
    if name.tag().is_none() {
        return Err(Failure::new(Exit::Usage, format!("{name}: a name that is given has a tag, and no digest")));
    }
    let found = store.find(word(matches, "IMAGE"))?;
    store.tag(&found.image.descriptor, Some(&name))?;
    Ok(Exit::Done)
}

pub fn rmi(matches: &ArgMatches) -> Result<Exit, Failure> {
    let store = open_store(matches)?;
    let mut text = String::new();
    for query in words(matches, "IMAGE") {
        let found = store.find(query)?;
        let digest = found.image.descriptor.digest();
        let names = store.names_of(digest)?;
        if let Some(name) = found.name.as_ref().filter(|name| names.len() > 1 && names.contains(name)) {
            store.untag(name)?;
            text.push_str(&format!("Untagged: {name}\n"));
            continue;
        }
        let user = store.containers()?.into_iter().find(|container| container.config.image == digest.to_string());
        if let Some(user) = user.filter(|_| !matches.get_flag("force")) {
            let id = user.config.id;
            let reason = format!(
                "{query}: the container {id} was made of it; remove that first (unionfs-rs rm {id}), or use --force"
            );
            return Err(Failure::new(Exit::Failed, reason));
        }
        store.forget(digest)?;
        for name in &names {
            text.push_str(&format!("Untagged: {name}\n"));
        }
        text.push_str(&format!("Deleted: {}\n", found.image.id().digest()));
    }
    output::print(text.as_bytes())?;
    store.gc()?;
    Ok(Exit::Done)
}

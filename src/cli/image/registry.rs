//! `pull` and `push`: images from and to registries.

use std::sync::Arc;

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::progress::Bars;
use super::{image_arg, open_store, output, platform, platform_arg, store_arg, word, words};
use crate::cli::exit::{Exit, Failure};
use crate::error::Error;
use crate::image::reference::{ImageName, LOCAL};
use crate::image::registry::Registry;
use crate::image::source::{Watch, fetch};

pub fn commands() -> Vec<Command> {
    vec![
        Command::new("pull")
            .about("Brings an image from a registry, with those of its layers that are not there yet")
            .after_help(
                "Credentials are those of `podman login` and `docker login`. What was broken off is gone on with.",
            )
            .arg(
                Arg::new("NAME")
                    .required(true)
                    .help("The name, as quay.io/team/app:1; without a host it is docker.io's"),
            )
            .arg(platform_arg())
            .arg(plain_http_arg())
            .arg(store_arg()),
        Command::new("push")
            .about("Puts an image into a registry, with those of its layers that are not there yet")
            .arg(image_arg("IMAGE"))
            .arg(Arg::new("NAME").help("What it is to be called there [default: its name here]"))
            .arg(plain_http_arg())
            .arg(store_arg()),
    ]
}

fn plain_http_arg() -> Arg {
    Arg::new("plain-http")
        .long("plain-http")
        .value_name("HOST[:PORT]")
        .action(ArgAction::Append)
        .help("Speak to this registry without TLS; may be repeated")
}

fn registry(name: &ImageName, matches: &ArgMatches) -> Result<Registry, Error> {
    let plain: Vec<String> = words(matches, "plain-http").map(str::to_owned).collect();
    Registry::new(name, &plain)
}

pub fn pull(matches: &ArgMatches) -> Result<Exit, Failure> {
    let platform = platform(matches)?;
    let name = ImageName::parse(word(matches, "NAME"))?;
    let store = open_store(matches)?;
    let registry = registry(&name, matches)?;
    let fetching = Bars::new("fetching");
    let unpacking = fetching.beside("unpacking");
    let descriptor = registry.resolve(&store)?;
    let watch = Watch { fetching: &fetching, unpacking: &unpacking };
    let image = fetch(&store, &registry, &descriptor, &platform, watch).map_err(|error| error.within(&name))?;
    store.tag(&image.descriptor, Some(&name))?;
    output::print(format!("{}\n", image.id().digest()).as_bytes())
}

pub fn push(matches: &ArgMatches) -> Result<Exit, Failure> {
    let store = open_store(matches)?;
    let found = store.find(word(matches, "IMAGE"))?;
    let name = match matches.get_one::<String>("NAME") {
        Some(text) => ImageName::parse(text)?,
        None => {
            let unnamed = |what: &str| {
                let remedy = "say what it is to be called at the registry: push IMAGE NAME";
                Failure::new(Exit::Usage, format!("{what}; {remedy}"))
            };
            let own = found.name.clone().ok_or_else(|| unnamed("the image was named by its id"))?;
            if own.registry() == LOCAL && !words(matches, "plain-http").any(|host| host == LOCAL) {
                return Err(unnamed(&format!("{own} is a name of this store alone")));
            }
            own
        }
    };
    let registry = registry(&name, matches)?;
    let digest = registry.push(&store, &found.image, Arc::new(Bars::new("sending")))?;
    output::print(format!("{digest}\n").as_bytes())
}

//! `inspect` and `history`: what an image is made of.

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Value, json};

use super::{image_arg, open_store, output, store_arg, word, words};
use crate::cli::exit::{Exit, Failure};
use crate::error::Error;
use crate::image::digest;
use crate::image::history;
use crate::image::manifest::Image;
use crate::image::store::Store;

pub fn commands() -> Vec<Command> {
    vec![
        Command::new("inspect")
            .about("Shows what images are made of, as JSON")
            .after_help("Example:\n  unionfs-rs inspect debian | jq -r '.[0].Layers[].ChainId'")
            .arg(image_arg("IMAGE").action(ArgAction::Append).num_args(1..))
            .arg(store_arg()),
        Command::new("history")
            .about("Shows how an image came to be, the newest first, as podman does")
            .arg(image_arg("IMAGE"))
            .arg(Arg::new("no-trunc").long("no-trunc").action(ArgAction::SetTrue).help("Show whole commands and ids"))
            .arg(
                Arg::new("human")
                    .short('H')
                    .long("human")
                    .value_name("BOOL")
                    .default_value("true")
                    .value_parser(clap::value_parser!(bool))
                    .help("Sizes and times for people"),
            )
            .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON, sizes in bytes"))
            .arg(store_arg()),
    ]
}

pub fn inspect(matches: &ArgMatches) -> Result<Exit, Failure> {
    let store = open_store(matches)?;
    let mut list = Vec::new();
    for text in words(matches, "IMAGE") {
        let found = store.find(text)?;
        list.push(describe(&store, &found.image)?);
    }
    output::json(&Value::Array(list))
}

/// Describes an image in the words of `podman inspect`, and its layers one by one besides.
fn describe(store: &Store, image: &Image) -> Result<Value, Failure> {
    let unreadable = |error: serde_json::Error| Error::image("configuration", format!("cannot be read: {error}"));
    let config: Value = serde_json::from_slice(&image.config_bytes).map_err(unreadable)?;
    let field = |name: &str| config.get(name).cloned().unwrap_or(Value::Null);
    let digest = image.descriptor.digest();
    let names = store.names_of(digest)?;
    let tags: Vec<String> = names.iter().filter(|name| name.tag().is_some()).map(ToString::to_string).collect();
    let mut digests: Vec<String> = names.iter().map(|name| format!("{}@{digest}", name.base())).collect();
    digests.sort();
    digests.dedup();
    let mut layers = Vec::new();
    for layer in &image.layers {
        let facts = store.tree(layer)?.map(|tree| tree.facts);
        layers.push(json!({
            "Digest": layer.blob.digest().to_string(),
            "MediaType": layer.blob.media_type().to_string(),
            "Size": layer.blob.size(),
            "DiffId": layer.diff_id.to_string(),
            "ChainId": layer.chain_id.to_string(),
            "UnpackedSize": facts.as_ref().map(|facts| facts.tar_bytes),
            "Members": facts.as_ref().map(|facts| facts.members),
        }));
    }
    let inner = field("config");
    let of_config = |name: &str| inner.get(name).cloned().unwrap_or(Value::Null);
    Ok(json!({
        "Id": image.id().digest(),
        "Digest": digest.to_string(),
        "RepoTags": tags,
        "RepoDigests": digests,
        "Comment": history::entries(image).last().and_then(|entry| entry.comment.clone()).unwrap_or_default(),
        "Created": field("created"),
        "Config": inner,
        "Author": config.get("author").cloned().unwrap_or(json!("")),
        "Architecture": field("architecture"),
        "Os": field("os"),
        "Variant": config.get("variant").cloned().unwrap_or(json!("")),
        "Size": store.unpacked_size(image)?,
        "PackedSize": image.packed_size(),
        "RootFS": {
            "Type": "layers",
            "Layers": image.layers.iter().map(|layer| layer.diff_id.to_string()).collect::<Vec<_>>(),
        },
        "Labels": of_config("Labels"),
        "Annotations": image.manifest.annotations().clone().unwrap_or_default(),
        "ManifestType": image.descriptor.media_type().to_string(),
        "User": inner.get("User").cloned().unwrap_or(json!("")),
        "History": config.get("history").cloned().unwrap_or(json!([])),
        "Layers": layers,
    }))
}

pub fn history(matches: &ArgMatches) -> Result<Exit, Failure> {
    let store = open_store(matches)?;
    let found = store.find(word(matches, "IMAGE"))?;
    let image = &found.image;
    let (whole, human) = (matches.get_flag("no-trunc"), matches.get_one::<bool>("human") != Some(&false));
    let entries = history::entries(image);
    let mut sizes = Vec::new();
    for entry in &entries {
        let size = match entry.layer.and_then(|at| image.layers.get(at)) {
            Some(layer) => store.tree(layer)?.map_or(layer.blob.size(), |tree| tree.facts.tar_bytes),
            None => 0,
        };
        sizes.push(size);
    }
    if matches.get_flag("json") {
        let list: Vec<Value> = entries
            .iter()
            .zip(&sizes)
            .map(|(entry, size)| {
                let layer = entry.layer.and_then(|at| image.layers.get(at));
                json!({
                    "created": entry.created,
                    "createdBy": entry.created_by,
                    "author": entry.author,
                    "comment": entry.comment,
                    "emptyLayer": layer.is_none(),
                    "size": size,
                    "diffId": layer.map(|layer| layer.diff_id.to_string()),
                })
            })
            .collect();
        return output::json(&Value::Array(list));
    }
    let mut rows = vec![["ID", "CREATED", "CREATED BY", "SIZE", "COMMENT"].map(str::to_owned).to_vec()];
    let known = store.distinct_images()?;
    for (at, (entry, size)) in entries.iter().zip(&sizes).enumerate() {
        // The image that ends with this layer, if the store has one.
        let chain = |image: &Image| image.layers.last().map(|layer| layer.chain_id.clone());
        let here = entry.layer.and_then(|at| image.layers.get(at)).map(|layer| layer.chain_id.clone());
        let of = if at == 0 { Some(image) } else { known.iter().find(|other| here.is_some() && chain(other) == here) };
        let id = match of {
            Some(of) if whole => of.id().digest().to_owned(),
            Some(of) => digest::short(of.id()).to_owned(),
            None => "<missing>".to_owned(),
        };
        let created = entry.created.as_deref().unwrap_or_default();
        let created = match output::seconds(created) {
            Some(time) if human => output::ago(time),
            _ => created.to_owned(),
        };
        let by = entry.created_by.as_deref().unwrap_or_default();
        rows.push(vec![
            id,
            created,
            if whole { by.to_owned() } else { output::shortened(by) },
            if human { output::size(*size, 3) } else { size.to_string() },
            entry.comment.clone().unwrap_or_default(),
        ]);
    }
    output::table(&rows)
}

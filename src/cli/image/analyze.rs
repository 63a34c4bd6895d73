//! `analyze` and `which`: what layers are for, and which of them a file is from.

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde_json::json;

use super::subject::{commands as commands_of, stack_of};
use super::{image_arg, open_store, os_word, output, path_arg, store_arg, word};
use crate::cli::exit::{Exit, Failure};
use crate::image::analyze::{Analysis, Limits, analyze};
use crate::image::manifest::Image;
use crate::image::stack::Says;

/// How many paths are shown that several layers have.
const SHOWN: usize = 10;

pub fn commands() -> Vec<Command> {
    let limit = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    vec![
        Command::new("analyze")
            .about("Shows how much of an image's layers is for nothing, as dive measures it")
            .long_about(
                "Shows how much of an image's layers is for nothing: what later layers replace or remove. The efficiency is \
                 dive's: the least that each path takes, by what it takes in all layers. Bytes that are hidden are those of \
                 files that the final tree does not show. Exits with 1 where a limit is not kept.",
            )
            .arg(image_arg("IMAGE"))
            .arg(limit("lowest-efficiency", "RATIO", "The lowest efficiency, 0 to 1").value_parser(value_parser!(f64)))
            .arg(limit("highest-wasted-bytes", "BYTES", "The most that may be wasted").value_parser(value_parser!(u64)))
            .arg(
                limit("highest-user-wasted-percent", "RATIO", "The most that may be wasted of what is above the first layer, 0 to 1")
                    .value_parser(value_parser!(f64)),
            )
            .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON, sizes in bytes"))
            .arg(store_arg()),
        Command::new("which")
            .about("Shows which layers of an image have a path, and which of them shows")
            .arg(image_arg("IMAGE"))
            .arg(path_arg("PATH").help("The path, from the root; links are not followed"))
            .arg(store_arg()),
    ]
}

pub fn run(matches: &ArgMatches) -> Result<Exit, Failure> {
    let store = open_store(matches)?;
    let name = word(matches, "IMAGE");
    let image = store.find(name)?.image;
    let analysis = analyze(&store, &image).map_err(|error| error.within(name))?;
    if matches.get_flag("json") {
        print_json(&image, &analysis)?
    } else {
        print(&image, &analysis)?
    };
    let limits = Limits {
        lowest_efficiency: matches.get_one("lowest-efficiency").copied(),
        highest_wasted_bytes: matches.get_one("highest-wasted-bytes").copied(),
        highest_user_wasted_percent: matches.get_one("highest-user-wasted-percent").copied(),
    };
    analysis.check(limits)?;
    Ok(Exit::Done)
}

fn print(image: &Image, analysis: &Analysis) -> Result<Exit, Failure> {
    let mut rows = vec![["LAYER", "ADDED", "REPLACED", "REMOVED", "SIZE", "CREATED BY"].map(str::to_owned).to_vec()];
    for (at, layer) in analysis.layers.iter().enumerate() {
        rows.push(vec![
            (at + 1).to_string(),
            layer.added.to_string(),
            layer.replaced.to_string(),
            layer.removed.to_string(),
            output::size(layer.bytes, 3),
            created_by(image, at),
        ]);
    }
    output::table(&rows)?;
    let mut text = format!(
        "efficiency {:.4}, {} wasted ({:.2} % of what is above the first layer), {} hidden\n",
        analysis.efficiency,
        output::size(analysis.wasted_bytes, 3),
        analysis.wasted_user_percent * 100.0,
        output::size(analysis.hidden_bytes, 3)
    );
    for path in analysis.repeated.iter().filter(|path| path.bytes > 0).take(SHOWN) {
        let shown = output::name(&path.path);
        text.push_str(&format!("{:>10}  {} layers  /{shown}\n", output::size(path.bytes, 3), path.layers));
    }
    output::print(text.as_bytes())
}

fn print_json(image: &Image, analysis: &Analysis) -> Result<Exit, Failure> {
    let layers: Vec<_> = analysis
        .layers
        .iter()
        .zip(&image.layers)
        .map(|(sum, layer)| {
            json!({
                "digest": layer.blob.digest().to_string(),
                "added": sum.added, "replaced": sum.replaced, "removed": sum.removed, "bytes": sum.bytes,
            })
        })
        .collect();
    let repeated: Vec<_> = analysis
        .repeated
        .iter()
        .map(|path| json!({"path": format!("/{}", output::name(&path.path)), "layers": path.layers, "bytes": path.bytes}))
        .collect();
    output::json(&json!({
        "layers": layers,
        "efficiency": analysis.efficiency,
        "wastedBytes": analysis.wasted_bytes,
        "wastedUserPercent": analysis.wasted_user_percent,
        "hiddenBytes": analysis.hidden_bytes,
        "repeated": repeated,
    }))
}

/// Returns the beginning of the command that has made the layer `at`, counted from the lowest.
fn created_by(image: &Image, at: usize) -> String {
    output::shortened(commands_of(image).get(at).map_or("", String::as_str))
}

pub fn which(matches: &ArgMatches) -> Result<Exit, Failure> {
    let store = open_store(matches)?;
    let name = word(matches, "IMAGE");
    let image = &store.find(name)?.image;
    let path = os_word(matches, "PATH");
    let stack = stack_of(&store, image, name)?;
    let says = stack.says(&super::tree::names(path)?).map_err(|error| error.within(name))?;
    let mut rows = vec![["LAYER", "DIGEST", "WHAT", "CREATED BY"].map(str::to_owned).to_vec()];
    for (from_top, says) in says.iter().enumerate() {
        let at = image.layers.len() - 1 - from_top; // One answer for each layer.
        let what = match says {
            Says::Nothing => continue,
            Says::Shown => "shown",
            Says::Merged => "shown, with what is above",
            Says::Hidden => "hidden",
            Says::Removes => "removes it",
        };
        let digest = image.layers.get(at).map_or("", |layer| crate::image::digest::short(layer.blob.digest()));
        rows.push(vec![(at + 1).to_string(), digest.to_owned(), what.to_owned(), created_by(image, at)]);
    }
    if rows.len() == 1 {
        return Err(Failure::new(Exit::Failed, format!("{}: no layer of the image has it", path.display())));
    }
    output::table(&rows)
}

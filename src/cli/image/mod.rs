//! The subcommands about images and containers: one file for those that belong together.

mod analyze;
mod changes;
mod containers;
mod copy;
#[cfg(feature = "explore")]
mod explore;
mod list;
mod listing;
mod mountpoints;
mod names;
mod namespaces;
mod output;
mod progress;
#[cfg(feature = "registry")]
mod registry;
mod run;
mod served;
mod show;
mod subject;
mod transfer;
mod tree;
mod upkeep;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command, ValueHint, value_parser};

use super::exit::{Exit, Failure};
use crate::image::manifest::Platform;
use crate::image::store::Store;

pub use output::{json, name, printable};

pub use containers::{Held, Layers, layers_of, mount_args, wanted};

const STORE: &str = "store";
const PLATFORM: &str = "platform";

/// Returns the subcommands.
pub fn commands() -> impl Iterator<Item = Command> {
    let all = [
        #[cfg(feature = "registry")]
        registry::commands(),
        transfer::commands(),
        list::commands(),
        show::commands(),
        names::commands(),
        containers::commands(),
        run::commands(),
        changes::commands(),
        copy::commands(),
        upkeep::commands(),
        analyze::commands(),
        vec![tree::command()],
        #[cfg(feature = "explore")]
        vec![explore::command()],
    ];
    all.into_iter().flatten()
}

/// Runs the subcommand `name`, if it is one of these.
pub fn run(name: &str, matches: &ArgMatches) -> Option<Result<Exit, Failure>> {
    let call: fn(&ArgMatches) -> Result<Exit, Failure> = match name {
        #[cfg(feature = "registry")]
        "pull" => registry::pull,
        #[cfg(feature = "registry")]
        "push" => registry::push,
        "load" => transfer::load,
        "save" => transfer::save,
        "images" => list::images,
        "inspect" => show::inspect,
        "history" => show::history,
        "tag" => names::tag,
        "rmi" => names::rmi,
        "create" => containers::create,
        "run" => run::run,
        "ps" => containers::ps,
        "rm" => containers::rm,
        "diff" => changes::diff,
        "commit" => changes::commit,
        "apply" => changes::apply,
        "discard" => changes::discard,
        "export" => changes::export,
        "cp" => copy::cp,
        "analyze" => analyze::run,
        "which" => analyze::which,
        "tree" => tree::run,
        #[cfg(feature = "explore")]
        "explore" => explore::run,
        "gc" => upkeep::gc,
        "verify" => upkeep::verify,
        "df" => upkeep::df,
        _ => return None,
    };
    // Trees are read and made with many directories open.
    crate::sys::caps::raise_open_files();
    Some(crate::cli::logging::start(None, None).and_then(|()| call(matches)))
}

/// Returns the option that names a store.
pub fn store_arg() -> Arg {
    Arg::new(STORE)
        .long("store")
        .value_name("DIR")
        .value_parser(value_parser!(PathBuf))
        .value_hint(ValueHint::DirPath)
        .env("UNIONFS_RS_STORE")
        .help(
            "The store of images [default: /var/lib/unionfs-rs as root, else unionfs-rs in the user's data directory]",
        )
}

/// Returns the option that names a platform.
fn platform_arg() -> Arg {
    Arg::new(PLATFORM)
        .long("platform")
        .value_name("OS/ARCH[/VARIANT]")
        .help("Which image of an index to take [default: that for this machine]")
}

fn image_arg(name: &'static str) -> Arg {
    Arg::new(name).required(true).help("An image: its name, or the first digits of its id or digest")
}

/// Returns a required word of the command line.
fn word<'a>(matches: &'a ArgMatches, name: &str) -> &'a str {
    // clap lets no command line without it through.
    matches.get_one::<String>(name).map_or("", String::as_str)
}

/// Returns a required argument that is a path, or holds one: any bytes.
fn path_arg(name: &'static str) -> Arg {
    Arg::new(name).required(true).value_parser(value_parser!(OsString)).value_hint(ValueHint::AnyPath)
}

/// Returns the word of a [`path_arg`].
fn os_word<'a>(matches: &'a ArgMatches, name: &str) -> &'a OsStr {
    matches.get_one::<OsString>(name).map_or(OsStr::new(""), OsString::as_os_str)
}

fn words<'a>(matches: &'a ArgMatches, name: &str) -> impl Iterator<Item = &'a str> {
    matches.get_many::<String>(name).into_iter().flatten().map(String::as_str)
}

/// Opens the store that the command line names, or this user's.
pub fn open_store(matches: &ArgMatches) -> Result<Store, Failure> {
    let path = match matches.get_one::<PathBuf>(STORE) {
        Some(path) => path.clone(),
        None => default_store()?,
    };
    Ok(Store::open(&path)?)
}

fn default_store() -> Result<PathBuf, Failure> {
    if rustix::process::geteuid().is_root() && crate::sys::caps::in_initial_user_namespace() {
        return Ok("/var/lib/unionfs-rs".into());
    }
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")));
    data.map(|data| data.join("unionfs-rs")).ok_or_else(|| {
        Failure::new(Exit::Usage, "neither XDG_DATA_HOME nor HOME says where the store is; name one with --store DIR")
    })
}

fn platform(matches: &ArgMatches) -> Result<Platform, Failure> {
    match matches.get_one::<String>(PLATFORM) {
        Some(text) => Platform::parse(text).map_err(|error| Failure::new(Exit::Usage, error.to_string())),
        None => Ok(Platform::here()),
    }
}

//! `unionfs-rs completions`: what clap_complete writes, and what it gets wrong put right.
//!
//! Each correction changes nothing in a script that does not need it, so that it may stay when clap_complete
//! has learnt better. `tests/cli/completions.rs` asks the shells themselves.

use clap::{Arg, ValueEnum};
use clap_complete::Shell;

use super::args;

/// What the value of `--lower` is called in the scripts: its name in the help has a colon, by which zsh parts
/// an option's description from what completes it.
const DIRS: &str = "DIRS";

/// Returns the script by which `shell` completes the command.
pub fn script(shell: Shell) -> String {
    let mut command = args::command().mut_subcommand("mount", |mount| mount.mut_args(without_colon));
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, args::NAME, &mut script);
    let script = String::from_utf8_lossy(&script);
    match shell {
        // The script enters a state by one spelling of a name with a dash and looks it up by another, and so
        // completes nothing behind a subcommand (https://github.com/clap-rs/clap/issues/6421).
        Shell::Bash => script.replace(&args::NAME.replace('-', "__subcmd__"), &args::NAME.replace('-', "__")),
        // clap knows one directory, and zsh a list of them with colons between.
        Shell::Zsh => script.replace(&format!(":{DIRS}:_files -/"), &format!(":{DIRS}:_dir_list")),
        // Words that stand for themselves, and not for an option, are left out for fish.
        Shell::Fish => format!("{script}{}", shells_for_fish()),
        _ => script.into_owned(),
    }
}

/// Returns the line by which fish completes `completions`.
fn shells_for_fish() -> String {
    let shells: Vec<String> = Shell::value_variants().iter().map(Shell::to_string).collect();
    format!("complete -c {} -n '__fish_seen_subcommand_from completions' -f -a '{}'\n", args::NAME, shells.join(" "))
}

fn without_colon(arg: Arg) -> Arg {
    let colon = arg.get_value_names().is_some_and(|names| names.iter().any(|name| name.contains(':')));
    if colon { arg.value_name(DIRS) } else { arg }
}

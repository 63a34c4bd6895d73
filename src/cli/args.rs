//! The command line as clap sees it, and the way from its matches to [`Settings`].
//!
//! The flags of `mount` are made from [`super::table`], and are read back in the order in which they
//! were written, `-o` among them.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, ValueParser};
use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint, value_parser};
use clap_complete::Shell;

use super::exit::{Exit, Failure};
use super::options;
use super::settings::{Settings, Spec, Spelling, Takes, all};
use super::status::Form;
use super::table::GROUPS;
use super::{fsck, image};

/// The name of the command, which begins each of its messages.
pub const NAME: &str = "unionfs-rs";

const MOUNTPOINT: &str = "MOUNTPOINT";
const OPTIONS: &str = "options";

const EXAMPLES: &str = "\
Examples:
  unionfs-rs mount --lower /usr/share/base --upper ~/changes /mnt/merged
      Show base as a writable tree; what is changed goes to ~/changes.
  unionfs-rs mount --lower /layers/app:/layers/lib:/layers/os /mnt/image
      Show three layers, app on top, read-only.
  unionfs-rs mount -o lowerdir=/os,upperdir=/up,workdir=/work,noatime /mnt/merged
      The same options in the words of the kernel's overlayfs.
  unionfs-rs umount /mnt/merged
      Unmount; everything written is then in the upper.
  unionfs-rs fsck --lower /usr/share/base --upper ~/changes
      Check what is in the upper against what is below it.
  unionfs-rs status /mnt/merged
      Show what it is made of, how it is served and why so, and what it has done.
  unionfs-rs doctor
      Show what this machine offers and what it lacks.";

const MOUNT_ABOUT: &str = "\
Shows the layers as one tree on MOUNTPOINT, and returns once it answers.

The lower layers are never changed; changes go to the upper. The mount is served by a process in the \
background, which ends with `unionfs-rs umount`, fusermount3 -u, umount(8), or SIGTERM.

Every option can also be written in -o, with underscores for dashes: `--redirect-dir on` is \
`-o redirect_dir=on`, and --lower, --upper, --work and --foreground are lowerdir=, upperdir=, workdir= \
and foreground; --uid-mapping, --gid-mapping, --squash-uid, --squash-gid, --no-acl, --no-xattrs and --ino32 have the \
words of fuse-overlayfs: uidmapping=, gidmapping=, squash_to_uid=, squash_to_gid=, noacl, noxattrs and ino32_t. \
In -o alone there are lowerdir+=, one layer in whose name a colon is a colon; userxattr, which is \
xattr_namespace=user; squash_to_root; and private, shared and slave, which are propagation= that. \
Where options contradict each other the last one holds, flag or -o; lower layers add up. \
In -o a backslash takes the meaning from a comma or a backslash, and a value with commas can stand in \
double quotes. The options of mount(8) that are for mount(8) alone, as defaults, noauto and x-*, are \
accepted and do nothing.

Without `mount`, `unionfs-rs -o OPTION,... [SOURCE] MOUNTPOINT` is understood as fuse-overlayfs would be, and so is \
every command line under that name: options that are unknown are warnings there.";

/// Returns the whole command line.
pub fn command() -> Command {
    Command::new(NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .about("A union filesystem in user space: read-only layers under a writable one, as one tree")
        .after_help(format!("{EXAMPLES}\n\n{}", exit_codes()))
        .arg_required_else_help(true)
        .subcommand_required(true)
        .disable_help_subcommand(true)
        .subcommand(mount_command())
        .subcommand(umount_command())
        .subcommand(fsck::command())
        .subcommand(status_command())
        .subcommands(image::commands())
        .subcommand(
            Command::new("doctor")
                .about("Shows what this machine offers, what is missing, and how to get it")
                .after_help("Exits with 0 if this user can mount here, else with 4."),
        )
        .subcommand(
            Command::new("completions")
                .about("Prints the completions for a shell")
                .after_help("Example:\n  unionfs-rs completions bash > /etc/bash_completion.d/unionfs-rs")
                .arg(Arg::new("SHELL").required(true).value_parser(value_parser!(Shell)).help("The shell")),
        )
        .subcommand(
            Command::new("man")
                .about("Prints the manual page, in roff")
                .after_help("Example:\n  unionfs-rs man | man -l -"),
        )
}

fn mount_command() -> Command {
    let mut mount = Command::new("mount")
        .about("Mounts a union of layers")
        .long_about(MOUNT_ABOUT)
        .after_help(format!("{EXAMPLES}\n\n{}", exit_codes()))
        .arg(
            Arg::new(MOUNTPOINT)
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .value_hint(ValueHint::DirPath)
                .help("The directory to mount on"),
        )
        .arg(
            Arg::new(OPTIONS)
                .short('o')
                .value_name("OPTION[=VALUE],...")
                .action(ArgAction::Append)
                .value_parser(ValueParser::os_string())
                .help("Options in the form of mount(8); may be repeated"),
        )
        .next_help_heading("Images")
        .args(image::mount_args());
    for group in GROUPS {
        mount = mount.next_help_heading(group.heading).args(group.specs.iter().map(flag));
    }
    // Every flag may be given again: the last one holds.
    mount.args_override_self(true)
}

/// Makes the flag of one option.
fn flag(spec: &'static Spec) -> Arg {
    let arg = Arg::new(spec.name).long(spec.flag).help(spec.help);
    let arg = if spec.name == "foreground" { arg.short('f') } else { arg };
    let valued = |name: &'static str| {
        arg.clone().action(ArgAction::Append).value_name(name).value_parser(ValueParser::os_string())
    };
    match spec.takes {
        Takes::Nothing(_) | Takes::Switch(_) => arg.action(ArgAction::SetTrue),
        Takes::Word(words) => {
            let words = PossibleValuesParser::new(words.iter().map(|(word, _)| *word));
            valued("WORD").value_parser(words)
        }
        Takes::Count(_) => valued("N").allow_negative_numbers(true),
        Takes::Seconds(_) => valued("SECONDS").allow_negative_numbers(true),
        Takes::Dir(_) => valued("DIR").value_hint(ValueHint::DirPath),
        Takes::Dirs(_) => valued("DIR[:DIR]...").value_hint(ValueHint::DirPath),
        Takes::File(_) => valued("FILE").value_hint(ValueHint::FilePath),
        Takes::Label(_) => valued("NAME"),
        Takes::Id(_) => valued("ID").allow_negative_numbers(true),
        Takes::IdMap(_) => valued("MAP"),
        Takes::Bytes(_) => valued("BYTES").allow_negative_numbers(true),
        Takes::Size(_) => valued("N[K|M|G|T]").allow_negative_numbers(true),
        Takes::Context(_) => valued("CONTEXT"),
    }
}

fn umount_command() -> Command {
    Command::new("umount")
        .about("Unmounts a union")
        .arg(
            Arg::new(MOUNTPOINT)
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .value_hint(ValueHint::DirPath)
                .help("The directory it is mounted on"),
        )
        .arg(
            Arg::new("lazy")
                .short('z')
                .long("lazy")
                .action(ArgAction::SetTrue)
                .help("Detach a mount that is in use; it ends with its last user"),
        )
        .after_help(exit_codes())
}

fn status_command() -> Command {
    let form = |name: &'static str, help: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    Command::new("status")
        .about("Shows what a union is made of, which options are in force and why, and what it has done")
        .arg(
            Arg::new(MOUNTPOINT)
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .value_hint(ValueHint::DirPath)
                .help("The directory it is mounted on"),
        )
        .arg(form("json", "As JSON"))
        .arg(form("prometheus", "In the text format of Prometheus").conflicts_with("json"))
        .after_help(format!(
            "Only the user who mounted it, and root, can ask. SIGUSR1 has the daemon log the same, as a warning: to standard \
             error in the foreground, else to the log file.\n\n{}",
            exit_codes()
        ))
}

/// Returns the form that `status` was asked for.
pub fn form(matches: &ArgMatches) -> Form {
    match (matches.get_flag("json"), matches.get_flag("prometheus")) {
        (true, _) => Form::Json,
        (false, true) => Form::Prometheus,
        (false, false) => Form::Text,
    }
}

/// Returns the section of the help about exit codes.
fn exit_codes() -> String {
    let mut text = "Exit codes:".to_owned();
    for exit in Exit::ALL {
        text.push_str(&format!("\n  {}  {}", exit.code(), exit.meaning()));
    }
    text
}

/// Returns the MOUNTPOINT that `mount`, `umount` and `status` require.
pub fn mountpoint(matches: &ArgMatches) -> PathBuf {
    // clap does not let a command line without it through.
    matches.get_one::<PathBuf>(MOUNTPOINT).cloned().unwrap_or_default()
}

/// Reads the options of `mount` in the order in which they were written.
pub fn settings(matches: &ArgMatches) -> Result<Settings, Failure> {
    let mut settings = Settings::new(mountpoint(matches));
    let mut written: Vec<(usize, Option<&'static Spec>, Option<OsString>)> = Vec::new();
    for spec in all() {
        match spec.takes {
            Takes::Nothing(_) | Takes::Switch(_) if matches.get_flag(spec.name) => {
                written.extend(matches.index_of(spec.name).map(|index| (index, Some(spec), None)));
            }
            Takes::Nothing(_) | Takes::Switch(_) => {}
            _ => written.extend(values(matches, spec.name).map(|(index, value)| (index, Some(spec), Some(value)))),
        }
    }
    written.extend(values(matches, OPTIONS).map(|(index, text)| (index, None, Some(text))));
    written.sort_by_key(|(index, _, _)| *index);
    for (_, spec, value) in written {
        match (spec, value) {
            (Some(spec), value) => settings.set(spec, Spelling::Flag, value.as_deref()).map_err(usage)?,
            (None, Some(text)) => set_all(&mut settings, &text)?,
            (None, None) => {}
        }
    }
    Ok(settings)
}

/// Takes over every option of one `-o`.
fn set_all(settings: &mut Settings, text: &OsString) -> Result<(), Failure> {
    let items = options::split_options(text).map_err(|error| usage(format!("-o {}: {error}", text.display())))?;
    for item in items {
        settings.set_text(&item.name, item.value.as_deref()).map_err(usage)?;
    }
    Ok(())
}

/// Returns the places and the values of an option that takes one.
fn values(matches: &ArgMatches, id: &str) -> impl Iterator<Item = (usize, OsString)> {
    let places = matches.indices_of(id).into_iter().flatten();
    places.zip(matches.get_raw(id).into_iter().flatten().map(OsString::from))
}

fn usage(error: impl ToString) -> Failure {
    Failure::new(Exit::Usage, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Access, IoMode, RedirectDir, Source, XattrNamespace, Xino};
    use std::time::Duration;

    fn parse(words: &[&str]) -> Result<Settings, Failure> {
        let line = [NAME, "mount"].iter().chain(words).chain(&["/mnt"]);
        let matches = command().try_get_matches_from(line).map_err(usage)?;
        settings(matches.subcommand_matches("mount").expect("the command is mount"))
    }

    fn parsed(words: &[&str]) -> Settings {
        parse(words).unwrap_or_else(|failure| panic!("{words:?}: {failure}"))
    }

    fn refused(words: &[&str]) -> String {
        match parse(words) {
            Ok(settings) => panic!("{words:?} gave {settings:?}"),
            Err(failure) => failure.message,
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    /// Returns a value that `takes` reads.
    fn sample(takes: Takes) -> Option<&'static str> {
        match takes {
            Takes::Nothing(_) | Takes::Switch(_) => None,
            Takes::Word(words) => words.last().map(|(word, _)| *word),
            Takes::Count(_) => Some("3"),
            Takes::Seconds(_) => Some("1.5"),
            Takes::Dir(_) | Takes::File(_) | Takes::Label(_) => Some("some"),
            Takes::Dirs(_) => Some("x:y"),
            Takes::Id(_) => Some("7"),
            Takes::IdMap(_) => Some(":0:1000:1:1:110000:65536"),
            Takes::Bytes(_) => Some("65536"),
            Takes::Size(_) => Some("3G"),
            Takes::Context(_) => Some("u:r:t:s0"),
        }
    }

    #[test]
    fn every_option_says_the_same_as_a_flag_and_in_o() {
        for spec in all() {
            let flag = format!("--{}", spec.flag);
            let (by_flag, by_text) = match sample(spec.takes) {
                Some(value) => (parsed(&[&flag, value]), parsed(&["-o", &format!("{}={value}", spec.name)])),
                None => (parsed(&[&flag]), parsed(&["-o", spec.name])),
            };
            assert_eq!(format!("{by_flag:?}"), format!("{by_text:?}"), "{}", spec.name);
        }
    }

    #[test]
    fn values_reach_their_places() {
        let settings = parsed(&[
            "--lower",
            r"a\:b:c",
            "--upper",
            "u",
            "--redirect-dir",
            "off",
            "--index",
            "off",
            "--xino",
            "on",
            "--io",
            "passthrough",
            "--attr-timeout",
            "0.25",
            "--threads",
            "3",
            "--allow-root",
            "--noexec",
            "--fsname",
            "x",
        ]);
        assert_eq!(settings.union.lowers, ["a:b", "c"].map(Source::from));
        assert_eq!(settings.union.upper, Some("u".into()));
        assert_eq!(settings.union.redirect_dir, RedirectDir::Follow);
        assert_eq!(settings.union.index, Some(false));
        assert_eq!(settings.union.xino, Xino::On);
        assert_eq!(settings.mount.io, IoMode::Passthrough);
        assert_eq!(settings.mount.attr_timeout, Duration::from_millis(250));
        assert_eq!(settings.mount.threads.map(std::num::NonZeroUsize::get), Some(3));
        assert_eq!(settings.mount.access, Access::Root);
        assert!(!settings.mount.exec);
        assert_eq!(settings.mount.fsname, "x");
    }

    #[test]
    fn the_last_of_two_contradicting_options_holds_in_whichever_spelling() {
        assert!(!parsed(&["-o", "ro", "--rw"]).mount.read_only);
        assert!(parsed(&["--rw", "-o", "ro"]).mount.read_only);
        assert!(parsed(&["--ro", "--rw", "--ro"]).mount.read_only);
        assert!(parsed(&["-o", "nosuid", "-o", "noexec,suid"]).mount.suid);
        assert_eq!(parsed(&["--allow-root", "--no-allow-other"]).mount.access, Access::Owner);
        assert_eq!(parsed(&["--xino", "off", "-o", "xino=on"]).union.xino, Xino::On);
    }

    #[test]
    fn lower_layers_add_up_in_the_order_in_which_they_are_written() {
        let settings = parsed(&["--lower", "a:b", "-o", "ro,lowerdir=c,lowerdir+=d:e", "--lower", "f"]);
        assert_eq!(settings.union.lowers, ["a", "b", "c", "d:e", "f"].map(Source::from));
    }

    #[test]
    fn a_backslash_in_o_and_quotes_keep_commas_in_paths() {
        let settings = parsed(&["-o", r#"upperdir=a\,b,lowerdir="c,d:e",userxattr"#]);
        assert_eq!(settings.union.upper, Some("a,b".into()));
        assert_eq!(settings.union.lowers, ["c,d", "e"].map(Source::from));
        assert_eq!(settings.union.xattr_namespace, XattrNamespace::User);
        assert_eq!(parsed(&["--upper", r"a\,b"]).union.upper, Some(r"a\,b".into()));
    }

    #[test]
    fn options_that_are_for_mount8_alone_do_nothing() {
        let plain = format!("{:?}", parsed(&[]));
        assert_eq!(format!("{:?}", parsed(&["-o", "defaults,,noauto,_netdev,x-systemd.automount,comment=x,"])), plain);
    }

    #[test]
    fn unknown_options_are_named_with_the_nearest() {
        assert_eq!(refused(&["-o", "ro,redirectdir=on"]), "-o redirectdir: unknown option; did you mean redirect_dir?");
        assert_eq!(refused(&["-o", "lower=a"]), "-o lower: unknown option; did you mean lowerdir?");
        assert_eq!(refused(&["-o", "allow-other"]), "-o allow-other: unknown option; did you mean allow_other?");
        assert_eq!(refused(&["-o", "bananas"]), "-o bananas: unknown option; unionfs-rs mount --help lists them");
        assert!(refused(&["--redirectdir", "on"]).contains("--redirect-dir"));
    }

    #[test]
    fn values_that_cannot_be_read_are_refused_with_what_would_be_right() {
        assert_eq!(refused(&["--threads", "0"]), "--threads 0: not a whole number of threads; give one from 1 to 1024");
        assert_eq!(
            refused(&["-o", "threads=x"]),
            "-o threads=x: not a whole number of threads; give one from 1 to 1024"
        );
        assert_eq!(
            refused(&["-o", "io=fast"]),
            "-o io=fast: no such value; give one of auto, cached, writeback, passthrough"
        );
        assert_eq!(refused(&["-o", "upperdir"]), "-o upperdir: the value is missing; write -o upperdir=VALUE");
        assert_eq!(refused(&["-o", "ro=1"]), "-o ro=1: it takes no value; write -o ro");
        assert_eq!(refused(&["-o", "upperdir="]), "-o upperdir=: the path is empty; give one");
        assert!(refused(&["--lower", "a::b"]).starts_with("--lower a::b: an element of the list is empty; "));
        assert!(refused(&["--entry-timeout", "-1"]).contains("--entry-timeout"));
        assert!(refused(&["-o", r#"context="a,b"#]).contains("has no end"));
    }
}

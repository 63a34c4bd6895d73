//! `unionfs-rs fsck`: checks an upper against its lower layers, and repairs it.
//!
//! It ends as fsck(8) does, because who calls a program of that name looks at those codes: a sum of bits, and not the
//! codes of the other commands.

use std::fmt::Write;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, ValueParser};
use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint, value_parser};
use serde_json::{Value, json};

use super::exit::{Exit, Failure};
use super::settings::PATIENCE;
use super::{image, options};
use crate::config::{Permissions, UnionConfig, XattrNamespace};
use crate::fsck::{Finding, Fsck};

/// The name of the command.
pub const NAME: &str = "fsck";

/// Something was found, and all of it was repaired.
const REPAIRED: u8 = 1;
/// Something that was found is still there.
const LEFT: u8 = 4;
/// It could not be checked.
const NOT_CHECKED: u8 = 8;
/// The command line is wrong.
const USAGE: u8 = 16;

const ABOUT: &str = "\
Checks an upper, and its work directory, against the lower layers that it belongs to.

Name the layers as they are mounted, in the same order: what is found is true over those. Nothing is changed without \
--repair, and the lower layers never are. The upper must not be mounted. docs/RELIABILITY.md says of each kind of \
finding what it means.";

const AFTER: &str = "\
Exit codes, as of fsck(8):
  0   nothing was found
  1   something was found, and all of it repaired
  4   something that was found is left
  8   it could not be checked: a layer cannot be used, or is mounted
  16  the command line is wrong

Example:
  unionfs-rs fsck --lower app:base --upper upper --repair";

/// Returns the subcommand.
pub fn command() -> Command {
    let dir = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).value_hint(ValueHint::DirPath).help(help)
    };
    Command::new(NAME)
        .about("Checks an upper against its lower layers, and repairs it")
        .long_about(ABOUT)
        .after_help(AFTER)
        .arg(
            dir("lower", "DIR[:DIR]...", "The read-only layers, topmost first; may be repeated")
                .required(true)
                .action(ArgAction::Append)
                .value_parser(ValueParser::os_string()),
        )
        .arg(dir("upper", "DIR", "The layer to check").required(true).value_parser(value_parser!(PathBuf)))
        .arg(
            dir("work", "DIR", "Its work directory [default: .NAME.work beside an upper NAME, if it is there]")
                .value_parser(value_parser!(PathBuf)),
        )
        .arg(
            Arg::new("xattr-namespace")
                .long("xattr-namespace")
                .value_name("WORD")
                .value_parser(PossibleValuesParser::new(["auto", "trusted", "user"]))
                .help("Where the upper keeps its notes [default: auto, by privilege]"),
        )
        .arg(
            Arg::new("xattr-permissions")
                .long("xattr-permissions")
                .value_name("WORD")
                .value_parser(PossibleValuesParser::new(["off", "security", "user"]))
                .help("Where the upper keeps owners and modes, as it is mounted [default: off]"),
        )
        .arg(Arg::new("repair").long("repair").action(ArgAction::SetTrue).help("Say what will be changed, and do it"))
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON"))
}

/// Returns how a command line of this command ends that would have ended with `exit` for a failure.
pub fn exit_of_failure(exit: Exit) -> Exit {
    match exit {
        Exit::Usage => Exit::Other(USAGE),
        Exit::Failed | Exit::Setup | Exit::Machine => Exit::Other(NOT_CHECKED),
        Exit::Done | Exit::Other(_) => exit,
    }
}

/// What became of one finding.
enum Outcome {
    /// Nobody asked for a repair.
    Unasked,
    /// It was repaired.
    Repaired,
    /// There is no repair.
    Left,
    /// The repair failed.
    Failed(String),
}

impl Outcome {
    fn word(&self) -> &'static str {
        match self {
            Self::Unasked => "found",
            Self::Repaired => "repaired",
            Self::Left => "left",
            Self::Failed(_) => "failed",
        }
    }
}

/// Checks, reports, and repairs where that is asked for.
pub fn run(matches: &ArgMatches) -> Result<Exit, Failure> {
    super::logging::start(None, None)?;
    let (repair, in_json) = (matches.get_flag("repair"), matches.get_flag("json"));
    let fsck = Fsck::open(&config(matches)?)?;
    if !fsck.has_workdir() {
        log::warn!("there is no work directory: the index of hard links is not checked; name it with --work");
    }
    let mut findings = Vec::new();
    fsck.check(&mut |finding| findings.push(finding))?;
    findings.sort_by(|a, b| (a.side, &a.path, a.problem.class()).cmp(&(b.side, &b.path, b.problem.class())));
    if !in_json {
        // What will be done is said before any of it is.
        super::print(lines(&findings).as_bytes())?;
    }
    let mut outcomes = Vec::with_capacity(findings.len());
    for finding in &findings {
        let outcome = if repair { attempt(&fsck, finding) } else { Outcome::Unasked };
        if let (false, Outcome::Repaired | Outcome::Failed(_)) = (in_json, &outcome) {
            super::print(line_of(finding, &outcome).as_bytes())?;
        }
        outcomes.push(outcome);
    }
    if outcomes.iter().any(|outcome| matches!(outcome, Outcome::Repaired)) {
        fsck.sync()?;
    }
    let left = outcomes.iter().filter(|outcome| !matches!(outcome, Outcome::Repaired)).count();
    if in_json {
        image::json(&document(&findings, &outcomes))?;
    } else {
        super::print(summary(&findings, &outcomes).as_bytes())?;
    }
    Ok(match (findings.len(), left) {
        (0, _) => Exit::Done,
        (_, 0) => Exit::Other(REPAIRED),
        _ => Exit::Other(LEFT),
    })
}

fn attempt(fsck: &Fsck, finding: &Finding) -> Outcome {
    match fsck.repair(finding) {
        Ok(true) => Outcome::Repaired,
        Ok(false) => Outcome::Left,
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

fn config(matches: &ArgMatches) -> Result<UnionConfig, Failure> {
    let mut config = UnionConfig { patience: PATIENCE, ..UnionConfig::default() };
    for list in matches.get_many::<std::ffi::OsString>("lower").into_iter().flatten() {
        let dirs = options::split_lowers(list)
            .map_err(|error| Failure::new(Exit::Usage, format!("--lower {}: {error}", list.display())))?;
        config.lowers.extend(dirs.into_iter().map(Into::into));
    }
    let path = |name: &str| matches.get_one::<PathBuf>(name).map(|path| path.clone().into());
    (config.upper, config.work) = (path("upper"), path("work"));
    let word = |name: &str| matches.get_one::<String>(name).map(String::as_str);
    config.xattr_namespace = match word("xattr-namespace") {
        Some("trusted") => XattrNamespace::Trusted,
        Some("user") => XattrNamespace::User,
        _ => XattrNamespace::Auto,
    };
    config.permissions = match word("xattr-permissions") {
        Some("security") => Permissions::Security,
        Some("user") => Permissions::User,
        _ => Permissions::Inode,
    };
    Ok(config)
}

fn lines(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{finding}");
    }
    text
}

/// Says what became of a finding.
fn line_of(finding: &Finding, outcome: &Outcome) -> String {
    let (location, word, class) = (finding.location(), outcome.word(), finding.problem.class());
    match outcome {
        Outcome::Failed(error) => format!("{word}: {location}: {class}: {error}\n"),
        Outcome::Unasked | Outcome::Repaired | Outcome::Left => format!("{word}: {location}: {class}\n"),
    }
}

fn count(outcomes: &[Outcome], word: &str) -> usize {
    outcomes.iter().filter(|outcome| outcome.word() == word).count()
}

fn summary(findings: &[Finding], outcomes: &[Outcome]) -> String {
    if findings.is_empty() {
        return "fsck: nothing found\n".to_owned();
    }
    let possible = findings.iter().filter(|finding| finding.repair().is_possible()).count();
    let mut text = format!("fsck: {} found", findings.len());
    // Writing to a String cannot fail.
    let _ = if count(outcomes, "found") > 0 {
        writeln!(text, ", {possible} of them can be repaired (--repair)")
    } else {
        let [repaired, failed, left] = ["repaired", "failed", "left"].map(|word| count(outcomes, word));
        writeln!(text, ", {repaired} repaired, {failed} could not be repaired, {left} without a repair")
    };
    text
}

fn document(findings: &[Finding], outcomes: &[Outcome]) -> Value {
    let list: Vec<Value> = findings
        .iter()
        .zip(outcomes)
        .map(|(finding, outcome)| {
            let repair = finding.repair();
            json!({
                "layer": finding.side.label(),
                "path": image::name(finding.path.as_os_str().as_encoded_bytes()),
                "class": finding.problem.class(),
                "weight": finding.problem.weight().word(),
                "reason": finding.problem.to_string(),
                "repairable": repair.is_possible(),
                "repair": repair.to_string(),
                "outcome": outcome.word(),
                "error": match outcome {
                    Outcome::Failed(error) => Some(error),
                    Outcome::Unasked | Outcome::Repaired | Outcome::Left => None,
                },
            })
        })
        .collect();
    json!({
        "findings": list,
        "found": findings.len(),
        "repaired": count(outcomes, "repaired"),
        "left": findings.len() - count(outcomes, "repaired"),
    })
}

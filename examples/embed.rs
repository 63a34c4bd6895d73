//! A small runtime: runs a command in a union as its root, in a user and mount namespace of its own, and prints what it
//! has changed, as `podman diff` does.
//!
//! ```text
//! cargo run --example embed -- --lower LOWER[:LOWER...] --upper UPPER -- COMMAND [ARGUMENT...]
//! ```
//!
//! The lowers are named topmost first. The union is built from open directories, mounted on a temporary one, and
//! unmounted when the command has ended, and with it every process that it started. On the standard output are the
//! command's own output and the changes, sorted by path: `A` added, `C` changed, `D` deleted with all below it. The figures
//! of the mount go to the standard error. The exit code is that of the command.
//!
//! For root, and for a plain user where fusermount3 is installed and user namespaces are allowed.

#[path = "embed/changes.rs"]
mod changes;

use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use unionfs_rs::config::{MountConfig, Source};
use unionfs_rs::fuse::{Mount, Statistics};
use unionfs_rs::union::Union;

const USAGE: &str = "usage: embed --lower LOWER[:LOWER...] --upper UPPER -- COMMAND [ARGUMENT...]";

/// What shells answer for a command that could not be run at all.
const NOT_RUN: u8 = 126;

/// What is to be run, and in what.
struct Plan {
    lowers: Vec<Source>,
    upper: Source,
    command: Vec<OsString>,
}

fn main() -> ExitCode {
    match plan(std::env::args_os().skip(1)).and_then(|plan| run(&plan)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("embed: {error}");
            ExitCode::from(NOT_RUN)
        }
    }
}

/// Reads the command line and opens what it names.
fn plan(mut words: impl Iterator<Item = OsString>) -> Result<Plan, Box<dyn Error>> {
    let (mut lowers, mut upper) = (Vec::new(), None);
    while let Some(word) = words.next().filter(|word| word != "--") {
        let value = words.next().ok_or(USAGE)?;
        match word.to_str() {
            Some("--lower") => {
                for path in std::env::split_paths(&value) {
                    lowers.push(open(&path)?);
                }
            }
            Some("--upper") => upper = Some(open(value.as_ref())?),
            _ => return Err(USAGE.into()),
        }
    }
    let command: Vec<OsString> = words.collect();
    match upper {
        Some(upper) if !command.is_empty() => Ok(Plan { lowers, upper, command }),
        _ => Err(USAGE.into()),
    }
}

/// Opens a layer: from here on it does not matter what becomes of its path.
fn open(path: &Path) -> Result<Source, Box<dyn Error>> {
    let directory = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(directory.into())
}

fn run(plan: &Plan) -> Result<u8, Box<dyn Error>> {
    let union = Union::builder().lowers(plan.lowers.iter().cloned()).upper(plan.upper.clone()).build()?;
    let mountpoint = tempfile::tempdir()?;
    let mount = Mount::new(union, &MountConfig::new(mountpoint.path()))?.spawn()?;
    let status = within(mountpoint.path(), &plan.command).status();
    let statistics = mount.statistics();
    // Whatever became of the command. An error here says that something may not have reached upper.
    mount.unmount_and_join()?;
    mountpoint.close()?;
    print_statistics(&statistics);
    print_changes(plan)?;
    let status = status.map_err(|error| format!("unshare (package util-linux) cannot be run: {error}"))?;
    // A command that a signal ended has no code.
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(NOT_RUN))
}

/// Returns what runs `command` with `root` as its root, in namespaces of its own.
///
/// By a helper, since between fork and exec a process with threads, as one that serves mounts is, can do next to nothing.
/// The process namespace is what ends daemons that the command leaves, which would keep the mount busy.
fn within(root: &Path, command: &[OsString]) -> Command {
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "--root"]);
    unshare.arg(root).arg("--").args(command);
    unshare
}

/// Prints the figures that are not zero.
fn print_statistics(statistics: &Statistics) {
    eprintln!("copied up: {} objects, {} bytes", statistics.copy_ups.objects, statistics.copy_ups.bytes);
    let asked = statistics.requests.iter().filter(|(_, count)| *count > 0);
    let requests: Vec<String> = asked.map(|(operation, count)| format!("{} {count}", operation.name())).collect();
    eprintln!("requests: {}", requests.join(", "));
}

fn print_changes(plan: &Plan) -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    for (path, change) in changes::find(&plan.lowers, &plan.upper)? {
        write!(out, "{} ", change.letter())?;
        // A name may be no text.
        out.write_all(OsStr::as_bytes(path.as_os_str()))?;
        writeln!(out)?;
    }
    Ok(())
}

//! A union that this process mounts, while a command runs in it.
//!
//! ```text
//! cargo run --example mount -- LOWER[:LOWER...] UPPER MOUNTPOINT COMMAND [ARGUMENT...]
//! ```
//!
//! The lowers are named topmost first. The command runs with MOUNTPOINT as its working directory; its exit code is
//! that of the example. When it has ended the union is unmounted, and everything it wrote is in UPPER.

use std::error::Error;
use std::ffi::OsString;
use std::process::{Command, ExitCode};

use unionfs_rs::config::MountConfig;
use unionfs_rs::fuse::Mount;
use unionfs_rs::union::Union;

const USAGE: &str = "usage: mount LOWER[:LOWER...] UPPER MOUNTPOINT COMMAND [ARGUMENT...]";

/// What shells answer for a command that could not be run at all.
const NOT_RUN: u8 = 126;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match run(&arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("mount: {error}");
            ExitCode::from(NOT_RUN)
        }
    }
}

fn run(arguments: &[OsString]) -> Result<u8, Box<dyn Error>> {
    let [lowers, upper, mountpoint, command, rest @ ..] = arguments else { return Err(USAGE.into()) };
    let union = Union::builder().lowers(std::env::split_paths(lowers)).upper(upper).build()?;
    // `new` has shaken hands with the kernel when it returns; `spawn` serves on threads of this process.
    let mount = Mount::new(union, &MountConfig::new(mountpoint))?.spawn()?;
    let status = Command::new(command).args(rest).current_dir(mountpoint).status();
    // Whatever became of the command. Errors here say that something may not have reached upper.
    mount.unmount_and_join()?;
    let status = status.map_err(|error| format!("{} cannot be run: {error}", command.display()))?;
    // A command that a signal ended has no code.
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(NOT_RUN))
}

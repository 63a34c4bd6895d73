//! The command: one file a subcommand, and the only code of the crate that prints.
//!
//! [`main`] parses, runs one subcommand, and turns what became of it into an exit code. How options
//! are written is known to `options`, what they mean to `settings` and `table`, which flags there
//! are to `args`, and how fuse-overlayfs is told them to `compat`.

mod args;
mod compat;
mod completions;
mod control;
mod daemon;
mod doctor;
mod exit;
mod fsck;
mod image;
mod logging;
mod man;
mod mount;
mod options;
mod settings;
mod stats;
mod status;
mod table;
mod umount;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::ArgMatches;
use clap_complete::Shell;

use compat::Request;
use exit::{Exit, Failure};
use umount::Busy;

/// Runs the command with the arguments of this process.
///
/// Must be called before the process opens anything and before it starts a thread: `mount` forks, and
/// closes what was inherited.
pub fn main() -> ExitCode {
    let argv: Vec<OsString> = std::env::args_os().collect();
    let done = match compat::read(&argv) {
        Some(request) => request.and_then(answer),
        None => match args::command().try_get_matches_from(&argv) {
            Ok(matches) => dispatch(&matches),
            Err(error) => return as_told(&argv, refuse(&error)).into(),
        },
    };
    match done {
        Ok(exit) => exit.into(),
        Err(failure) => {
            complain(&format!("{}: {failure}\n", args::NAME));
            as_told(&argv, failure.exit).into()
        }
    }
}

/// Returns how the command line `argv` ends that has failed with `exit`: one command has codes of its own.
fn as_told(argv: &[OsString], exit: Exit) -> Exit {
    if argv.get(1).is_some_and(|word| word == fsck::NAME) { fsck::exit_of_failure(exit) } else { exit }
}

/// Prints what clap has to say: an error, or the help or version that was asked for.
fn refuse(error: &clap::Error) -> Exit {
    if !error.use_stderr() {
        // Nobody is left to be told that standard output is gone.
        return if error.print().is_ok() { Exit::Done } else { Exit::Failed };
    }
    let text = error.render().to_string();
    match text.strip_prefix("error: ") {
        Some(text) => complain(&format!("{}: {text}", args::NAME)),
        None => complain(&text),
    }
    Exit::Usage
}

/// Writes `text` to standard error. It may name what is in an image, which must not reach a terminal as more than text.
fn complain(text: &str) {
    let plain = image::printable(text.as_bytes());
    let _ = io::stderr().write_all(plain.as_bytes()); // Where nobody reads it, the exit code says it alone.
}

/// Does what the argument form of fuse-overlayfs asks for.
fn answer(request: Request) -> Result<Exit, Failure> {
    match request {
        Request::Print(text) => print(text.as_bytes()),
        Request::Mount { settings, warnings, fake } => {
            for warning in warnings {
                complain(&format!("{}: warning: {warning}\n", args::NAME));
            }
            if fake { Ok(Exit::Done) } else { mount::run(*settings) }
        }
    }
}

fn dispatch(matches: &ArgMatches) -> Result<Exit, Failure> {
    match matches.subcommand() {
        Some(("mount", matches)) => {
            let mut settings = args::settings(matches)?;
            let Some(wanted) = image::wanted(matches) else { return mount::run(settings) };
            settings.refuse_layers()?;
            let layers = image::layers_of(matches, wanted, settings.mount.read_only)?;
            let made = layers.made.clone();
            let mounted = settings.take_layers(layers).and_then(|()| mount::run(settings));
            if let Some(container) = made.filter(|_| mounted.is_err()) {
                // Nobody was told of it. That it goes on being there is said by ps.
                let _ = container.remove();
            }
            mounted
        }
        Some(("umount", matches)) => {
            let busy = if matches.get_flag("lazy") { Busy::Detach } else { Busy::Refuse };
            umount::run(&args::mountpoint(matches), busy)
        }
        Some((fsck::NAME, matches)) => fsck::run(matches),
        Some(("status", matches)) => status::run(&args::mountpoint(matches), args::form(matches)),
        Some(("doctor", _)) => {
            let report = doctor::examine();
            print(report.to_string().as_bytes())?;
            Ok(report.exit())
        }
        Some(("completions", matches)) => {
            // clap requires the shell.
            let script = matches.get_one::<Shell>("SHELL").map(|shell| completions::script(*shell));
            print(script.unwrap_or_default().as_bytes())
        }
        Some(("man", _)) => {
            let mut page = Vec::new();
            man::render(args::command(), &mut page).map_err(|error| no_output(&error))?;
            print(&page)
        }
        Some((name, matches)) => image::run(name, matches).unwrap_or_else(|| Err(no_command())),
        // clap requires one of the subcommands that it was given.
        None => Err(no_command()),
    }
}

fn no_command() -> Failure {
    Failure::new(Exit::Usage, "no command is given; see --help")
}

/// Writes `text` to standard output; a reader that has seen enough (`| head`) is no failure.
fn print(text: &[u8]) -> Result<Exit, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(no_output(&error)),
        _ => Ok(Exit::Done),
    }
}

fn no_output(error: &io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("standard output: {error}; write to something else"))
}

/// Reads the words of a command line, as [`main`] would; for the fuzzer, which asks that no words end it.
#[doc(hidden)]
pub fn read_words(words: Vec<OsString>) {
    if compat::read(&words).is_none()
        && let Ok(matches) = args::command().try_get_matches_from(words)
        && let Some(mount) = matches.subcommand_matches("mount")
    {
        let _ = args::settings(mount); // That it returns is all that is asked.
    }
}

//! Where the log goes, and how much of it.
//!
//! To standard error, which a detached daemon points at /dev/null once it serves; or to a file.

use std::fs::File;
use std::path::Path;

use env_logger::{Builder, Env, Target};
use log::LevelFilter;

use super::exit::{Exit, Failure};

/// Starts logging: `level` if it is given, else what RUST_LOG says, else warnings.
///
/// But for what the error says anyhow that a certificate causes.
pub fn start(file: Option<&Path>, level: Option<LevelFilter>) -> Result<(), Failure> {
    let mut builder = match level {
        Some(level) => {
            let mut builder = Builder::new();
            builder.filter_level(level);
            builder
        }
        None => Builder::from_env(Env::default().default_filter_or("warn,rustls_platform_verifier=off")),
    };
    if let Some(path) = file {
        builder.target(Target::Pipe(Box::new(open(path)?)));
    }
    builder.try_init().map_err(|error| {
        Failure::new(Exit::Failed, format!("the log cannot be started: {error}; report this as a bug"))
    })
}

/// Opens a log file to append to it, and makes it where there is none.
pub fn open(path: &Path) -> Result<File, Failure> {
    File::options().append(true).create(true).open(path).map_err(|error| {
        Failure::new(Exit::Setup, format!("{}: cannot be opened as log file: {error}; name another", path.display()))
    })
}

//! The unionfs-rs command.

use std::process::ExitCode;

fn main() -> ExitCode {
    unionfs_rs::cli::main()
}

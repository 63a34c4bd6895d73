//! Setups that no union can be made of: each is refused with a message that names the path, the reason
//! and what to do; the exit code is not zero, nothing is mounted, and nothing has changed on disk.
//!
//! How the command line is parsed is tested beside the parser, what it prints in `cli/`, what a corrupt layer does
//! in `traps.rs`.

mod support;

mod bad_input {
    pub mod attempt;

    pub mod lowers;
    pub mod machine;
    pub mod mountpoints;
    pub mod options;
    pub mod uppers;
    pub mod workdirs;
}

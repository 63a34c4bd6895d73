//! The command line as a person or a program meets it: what it prints, and what it exits with.
//!
//! How options are parsed is tested beside the parser. Here the binary itself runs; the mount is
//! looked at through processes with a deadline, so that a mount that hangs fails its test and no more.

mod support;

mod cli {
    mod completions;
    mod doctor;
    mod mounting;
    mod signals;
    mod texts;
    mod usage;
}

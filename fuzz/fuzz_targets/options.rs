//! Any words of a command line are read or refused: `cargo fuzz run options`.
#![no_main]

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use libfuzzer_sys::fuzz_target;

// The first byte chooses the form, and the words are parted by zero bytes, as in /proc/PID/cmdline.
fuzz_target!(|bytes: &[u8]| {
    let Some((form, words)) = bytes.split_first() else { return };
    let begin: &[&str] = match form % 4 {
        0 => &["fuse-overlayfs", "-o"],
        1 => &["mount.fuse.unionfs-rs", "none", "/mnt"],
        2 => &["unionfs-rs"],
        _ => &["unionfs-rs", "mount", "/mnt", "-o"],
    };
    let words = words.split(|byte| *byte == 0).map(|word| OsStr::from_bytes(word).to_owned());
    unionfs_rs::cli::read_words(begin.iter().map(OsString::from).chain(words).collect());
});

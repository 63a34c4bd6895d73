//! What the command says about itself: help, version, manual page.

use std::process::Command;

use crate::support::{binary, finish, unionfs};

#[test]
fn version_names_the_program_and_the_version() {
    let ran = unionfs(["--version"]);
    assert_eq!((ran.code, ran.out), (Some(0), format!("unionfs-rs {}\n", env!("CARGO_PKG_VERSION"))));
}

/// Every flag that `mount` promises.
const FLAGS: &str = "--lower --upper --work --ro --rw --volatile --fsync --redirect-dir --index --metacopy --xino \
    --xattr-namespace --whiteout --allow-other --allow-root --no-allow-other --default-permissions \
    --uid-mapping --gid-mapping --squash-uid --squash-gid --xattr-permissions --no-acl --no-xattrs --static-nlink --ino32 \
    --context --propagation --max-write --no-default-permissions --suid --nosuid --dev --nodev --exec --noexec --atime --relatime --strictatime \
    --noatime --io --entry-timeout --attr-timeout --negative-timeout --threads --foreground --fsname --log-file \
    --log-level --stats --quota-size --quota-inodes -o -f";

#[test]
fn help_of_mount_shows_every_option_and_the_exit_codes() {
    let ran = unionfs(["mount", "--help"]);
    assert_eq!(ran.code, Some(0));
    let words: Vec<&str> = ran.out.split([' ', ',', '\n']).collect();
    for flag in FLAGS.split_ascii_whitespace() {
        assert!(words.contains(&flag), "{flag} is not in\n{}", ran.out);
    }
    assert!(ran.out.contains("Exit codes:") && ran.out.contains("Examples:"), "{}", ran.out);
}

#[test]
fn help_names_every_command() {
    let ran = unionfs(["--help"]);
    assert_eq!(ran.code, Some(0));
    for command in ["mount", "umount", "fsck", "status", "doctor", "completions", "man"] {
        assert!(ran.out.contains(&format!("\n  {command} ")), "{command} is not in\n{}", ran.out);
    }
}

#[test]
fn man_page_holds_every_command_and_option() {
    let ran = unionfs(["man"]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    for heading in [
        ".TH unionfs-rs 8",
        ".SH \"MOUNT\"",
        ".SH \"UMOUNT\"",
        ".SH \"FSCK\"",
        ".SH \"STATUS\"",
        ".SH \"DOCTOR\"",
        "Exit codes:",
    ] {
        assert!(ran.out.contains(heading), "{heading} is not in\n{}", ran.out);
    }
    // In roff a dash of a flag is escaped.
    let plain = ran.out.replace('\\', "");
    for flag in FLAGS.split_ascii_whitespace() {
        assert!(plain.contains(&format!("fB{flag}fR")), "{flag} is not in\n{plain}");
    }
}

#[test]
fn output_that_nobody_reads_is_no_failure() {
    let pipeline = "\"$1\" man | head -c 1 >/dev/null; echo ${PIPESTATUS[0]}";
    let ran = finish(Command::new("bash").args(["-c", pipeline, "bash"]).arg(binary()));
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("0\n", ""));
}

//! Command lines and directories that are refused.

use std::fs;
use std::process::Command;

use crate::support::{Cleared, Layers, Placement, binary, eventually, finish, mounted, processes_with, unionfs};

#[test]
fn usage_errors_exit_with_2_and_name_the_option() {
    let table: &[(&[&str], &str)] = &[
        (&["mount", "/mnt"], "--lower DIR"),
        (&["mount", "--lower", "/"], "MOUNTPOINT"),
        (&["mount", "--lower", "/", "--frobnicate", "/mnt"], "--frobnicate"),
        (&["mount", "--lower", "/", "-o", "redirectdir=on", "/mnt"], "did you mean redirect_dir?"),
        (&["mount", "--lower", "/", "--threads", "many", "/mnt"], "--threads many"),
        (&["mount", "--lower", "/", "--attr-timeout", "-1", "/mnt"], "--attr-timeout -1"),
        (&["mount", "--lower", "/", "-o", "io=fast", "/mnt"], "give one of auto, cached, writeback, passthrough"),
        (&["mount", "--lower", "/", "--io", "fast", "/mnt"], "auto, cached, writeback, passthrough"),
        (&["mount", "--lower", "/a::/b", "/mnt"], "--lower /a::/b: an element of the list is empty"),
        (&["unmount", "/mnt"], "unmount"),
        (&["umount"], "MOUNTPOINT"),
    ];
    for (args, named) in table {
        let ran = unionfs(*args);
        assert_eq!(ran.code, Some(2), "{args:?}: {ran:?}");
        assert!(ran.err.starts_with("unionfs-rs: ") && ran.err.contains(named), "{args:?}: {}", ran.err);
        assert_eq!(ran.out, "", "{args:?}");
    }
    assert_eq!(unionfs::<&str>([]).code, Some(2), "no command at all");
}

#[test]
fn a_lower_that_cannot_be_used_exits_with_3_names_it_and_leaves_nothing() {
    let layers = Layers::new(1, Placement::OneFs);
    let mnt = layers.mnt();
    let _cleared = Cleared(mnt.clone());
    fs::write(layers.path("file"), "").expect("it is ours");
    for lower in ["absent", "file"] {
        for more in [&[] as &[&str], &["--foreground"]] {
            let ran =
                finish(Command::new(binary()).arg("mount").arg("--lower").arg(layers.path(lower)).args(more).arg(&mnt));
            assert_eq!(ran.code, Some(3), "{ran:?}");
            let begin = format!("unionfs-rs: {}: ", layers.path(lower).display());
            assert!(ran.err.starts_with(&begin) && ran.err.contains("; "), "{}", ran.err);
            assert_eq!(ran.err.lines().count(), 1, "said once: {}", ran.err);
            assert_eq!(mounted(&mnt), None);
            eventually("the daemon is gone", || processes_with(&mnt).is_empty());
        }
    }
}

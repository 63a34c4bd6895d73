//! `unionfs-rs doctor`: what is there and what is missing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use crate::skip;
use crate::support::{Layers, Placement, Privilege, binary, finish, privilege, unionfs};

#[test]
fn doctor_exits_with_4_exactly_if_something_is_missing() {
    let ran = unionfs(["doctor"]);
    for name in ["/dev/fuse", "fusermount3", "user namespaces", "--io passthrough", "io_uring", "open files"] {
        assert!(ran.out.contains(name), "{name} is not in\n{}", ran.out);
    }
    let expected = if ran.out.contains("MISSING") { 4 } else { 0 };
    assert_eq!(ran.code, Some(expected), "{}", ran.out);
}

#[test]
fn doctor_tells_a_plain_user_without_fusermount3_how_to_get_it() {
    if privilege() != Privilege::Root {
        skip!("needs root, to become another user");
    }
    let layers = Layers::new(0, Placement::OneFs);
    let copy = copy_for_others(&layers);
    let ran = finish(Command::new(copy).arg("doctor").env("PATH", "/nonexistent").uid(NOBODY).gid(NOBODY));
    assert_eq!(ran.code, Some(4), "{}", ran.out);
    assert!(ran.out.contains("MISSING  fusermount3"), "{}", ran.out);
    assert!(ran.out.contains("install the package fuse3"), "{}", ran.out);
}

/// The user that owns nothing.
const NOBODY: u32 = 65534;

/// Copies the binary to where every user can run it.
fn copy_for_others(layers: &Layers) -> PathBuf {
    let copy = layers.path("unionfs-rs");
    fs::copy(binary(), &copy).expect("the test directory can be written");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("it is ours");
    copy
}

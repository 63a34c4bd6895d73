//! What cannot be a lower layer.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::attempt::{give_to_user, is_ours, layers, mount, mount_over, text};
use crate::support::{Privilege, privilege, record_skip, test_name};

#[test]
fn no_lower_is_refused() {
    if !is_ours() {
        return;
    }
    let layers = layers();
    let at = layers.mnt();
    mount([OsStr::new("--upper"), layers.path("upper").as_os_str(), at.as_os_str()]).is_refused(&layers, &["lower"]);
    mount([at.as_os_str()]).is_refused(&layers, &["lower"]);
}

#[test]
fn a_lower_that_is_not_there_is_refused() {
    if !is_ours() {
        return;
    }
    let layers = layers();
    let missing = layers.path("missing");
    mount_over(&layers, &missing).is_refused(&layers, &[&text(&missing), "o such"]);
    symlink("nowhere", layers.path("dangling")).expect("a link can be made");
    let dangling = layers.path("dangling");
    mount_over(&layers, &dangling).is_refused(&layers, &[&text(&dangling), "o such"]);
    // One of several.
    let both = format!("{}:{}", text(&layers.lowers()[0]), text(&missing));
    mount_over(&layers, Path::new(&both)).is_refused(&layers, &[&text(&missing), "o such"]);
}

#[test]
fn a_lower_that_is_no_directory_is_refused() {
    if !is_ours() {
        return;
    }
    let layers = layers();
    let file = layers.lower(0).path("f");
    mount_over(&layers, &file).is_refused(&layers, &[&text(&file), "irectory"]);
}

#[test]
fn a_lower_that_can_not_be_read_is_refused() {
    if !is_ours() {
        return;
    }
    let layers = layers();
    give_to_user(&layers);
    let lower = layers.lowers()[0].clone();
    let close = |mode| fs::set_permissions(&lower, fs::Permissions::from_mode(mode)).expect("an own directory");
    if privilege() == Privilege::UserNamespace {
        record_skip(&test_name(), "root of a user namespace reads everything it owns");
        return;
    }
    close(0o000);
    mount_over(&layers, &lower).by_a_user(&layers).is_refused_when(
        &layers,
        &[&text(&lower), "denied"],
        || close(0o755),
        || close(0),
    );
    close(0o755);
}

#[test]
fn a_lower_inside_another_lower_is_refused_as_the_kernel_does() {
    if !is_ours() {
        return;
    }
    let layers = layers();
    let (lower, inside) = (text(&layers.lowers()[0]), text(&layers.lower(0).path("sub")));
    for both in [format!("{lower}:{inside}"), format!("{inside}:{lower}")] {
        mount_over(&layers, Path::new(&both)).is_refused(&layers, &[&inside, &lower]);
    }
}

//! Where nothing can be mounted.

use std::os::unix::fs::chown;

use super::attempt::{USER, give_to_user, is_ours, layers, mount, text};
use crate::support::{Privilege, privilege, record_skip, test_name};

#[test]
fn a_mountpoint_that_is_not_there_or_no_directory_is_refused() {
    if !is_ours() {
        return;
    }
    let layers = layers();
    layers.upper().file("file", "");
    for (at, reason) in [(layers.path("missing"), "o such"), (layers.path("upper/file"), "irectory")] {
        let words = ["--lower", &text(&layers.lowers()[0]), &text(&at)];
        mount(words).is_refused(&layers, &[&text(&at), reason]);
    }
}

#[test]
fn a_mountpoint_inside_a_layer_is_refused_where_layers_can_not_be_cloned_privately() {
    if !is_ours() {
        return;
    }
    if privilege() == Privilege::UserNamespace {
        record_skip(&test_name(), "root of a user namespace clones layers privately");
        return;
    }
    let layers = layers();
    give_to_user(&layers);
    layers.upper().dir("sub");
    let lower = layers.lowers()[0].clone();
    if privilege() == Privilege::Root {
        for dir in [layers.lower(0).path("sub"), layers.upper().path("sub")] {
            chown(dir, Some(USER), Some(USER)).expect("root may chown");
        }
    }
    for at in [lower.clone(), lower.join("sub"), layers.path("upper"), layers.path("upper/sub")] {
        let words =
            ["--lower", &text(&lower), "--upper", &text(&layers.path("upper")), "--work", &text(&layers.path("work"))];
        mount(words).and([&at]).by_a_user(&layers).is_refused(&layers, &[&text(&at)]);
    }
}

//! Whiteouts that hide nothing, in each form.

use super::damage::{Damaged, key};
use crate::support::Layers;

fn below(layers: &Layers) {
    layers.lower(1).file("here", "here").file("d/here", "here");
    layers.upper().dir("d");
}

#[test]
fn a_device_that_hides_nothing_is_removed() {
    let damaged = Damaged::new(below);
    damaged.layers.upper().whiteout("stale").whiteout("here").whiteout("d/stale").whiteout("pure/stale");
    let class = "whiteout-of-nothing";
    let stale = ["upper:d/stale", "upper:pure/stale", "upper:stale"];
    damaged.mends(&stale.map(|place| (place, class)), &stale, |merged| {
        assert_eq!((merged.names("."), merged.names("d")), (vec!["d".into(), "pure".into()], vec!["here".into()]));
    });
}

#[test]
fn what_a_lower_layer_hides_itself_needs_no_whiteout() {
    let damaged = Damaged::new(below);
    damaged.layers.lower(0).whiteout("here").file("d/.wh.here", "");
    damaged.layers.upper().whiteout("here").whiteout("d/here");
    let class = "whiteout-of-nothing";
    let stale = ["upper:d/here", "upper:here"];
    damaged.mends(&stale.map(|place| (place, class)), &stale, |merged| assert!(merged.names("d").is_empty()));
}

#[test]
fn an_xattr_whiteout_that_hides_nothing_is_removed() {
    let damaged = Damaged::new(below);
    damaged.layers.upper().overlay_xattr("d", "opaque", "x").file("d/stale", "").file("d/here", "");
    damaged.layers.upper().overlay_xattr("d/stale", "whiteout", "y").overlay_xattr("d/here", "whiteout", "y");
    damaged.mends(&[("upper:d/stale", "whiteout-of-nothing")], &["upper:d/stale"], |merged| {
        assert!(merged.names("d").is_empty());
    });
}

#[test]
fn an_xattr_whiteout_in_a_directory_that_has_none_is_told() {
    let damaged = Damaged::new(below);
    damaged.layers.upper().file("d/here", "").overlay_xattr("d/here", "whiteout", "y");
    damaged.stays(&[("upper:d/here", "whiteout-unseen")]);
    let ran = damaged.fsck(&[]);
    assert!(ran.out.contains(&key("whiteout")) && ran.out.contains("no repair: "), "{}", ran.out);
}

#[test]
fn a_wh_name_that_hides_nothing_is_removed() {
    let damaged = Damaged::new(below);
    damaged
        .layers
        .upper()
        .file(".wh.here", "")
        .file(".wh.stale", "")
        .file("d/.wh.stale", "")
        .file("p/.wh..wh..opq", "");
    let class = "whiteout-of-nothing";
    let stale = ["upper:.wh.stale", "upper:d/.wh.stale"];
    damaged.mends(&stale.map(|place| (place, class)), &stale, |merged| {
        assert_eq!((merged.names("."), merged.names("d")), (vec!["d".into(), "p".into()], vec!["here".into()]));
    });
}

#[test]
fn a_wh_name_beside_what_covers_by_itself_is_removed_and_one_that_is_needed_stays() {
    let damaged = Damaged::new(|layers| {
        layers.lower(1).file("file", "").file("opaque/x", "").file("merged/x", "");
    });
    let upper = damaged.layers.upper();
    upper.file("file", "upper").file(".wh.file", "").opaque("opaque").file(".wh.opaque", "");
    upper.dir("merged").file(".wh.merged", "");
    let class = "whiteout-beside";
    let stale = ["upper:.wh.file", "upper:.wh.opaque"];
    damaged.mends(&stale.map(|place| (place, class)), &stale, |merged| {
        assert_eq!(merged.read("file"), b"upper");
        assert!(merged.names("opaque").is_empty() && merged.names("merged").is_empty());
    });
}

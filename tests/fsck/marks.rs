//! Opaque marks, redirects, origins and metacopies.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustix::io::Errno;

use super::damage::{Damaged, key};
use crate::support::{Layers, LowersUnchanged, Tree};

fn below(layers: &Layers) {
    layers.lower(1).file("d/here", "here").file("d/sub/x", "x").file("other/y", "y").file("file", "data");
}

fn names(tree: &Tree, name: &str) -> Vec<String> {
    tree.names(name)
}

#[test]
fn an_opaque_directory_over_nothing_is_no_finding() {
    let damaged = Damaged::new(below);
    damaged.layers.upper().opaque("new").opaque("new/inner");
    damaged.is_clean();
}

#[test]
fn an_opaque_mark_that_nobody_knows_is_removed() {
    let damaged = Damaged::new(below);
    damaged.layers.upper().dir("d").overlay_xattr("d", "opaque", "yes");
    damaged.mends(&[("upper:d", "opaque-unknown")], &["upper:d"], |merged| {
        assert_eq!(names(merged, "d"), ["here", "sub"]);
    });
}

#[test]
fn marks_that_say_nothing_where_they_are_are_removed() {
    let damaged = Damaged::new(below);
    let upper = damaged.layers.upper();
    upper.file("opaque", "x").overlay_xattr("opaque", "opaque", "y").symlink("link", "x");
    upper.overlay_xattr("link", "redirect", "/d").fifo("fifo").overlay_xattr("fifo", "metacopy", "");
    upper.file("full", "x").overlay_xattr("full", "whiteout", "y");
    let places = ["upper:fifo", "upper:full", "upper:link", "upper:opaque"];
    damaged.mends(&places.map(|place| (place, "mark-misplaced")), &places, |merged| {
        assert_eq!(merged.read("full"), b"x");
    });
}

#[test]
fn redirects_that_are_no_path_are_closed_off() {
    for bad in ["/d/../other", "a/b", "/", "..", "", "/d//sub"] {
        let damaged = Damaged::new(below);
        damaged.layers.upper().file("moved/own", "own").overlay_xattr("moved", "redirect", bad);
        damaged.shows(|merged| {
            let errno = fs::metadata(merged.path("moved")).expect_err("EIO").raw_os_error();
            assert_eq!(errno, Some(Errno::IO.raw_os_error()), "{bad:?}");
        });
        damaged.mends(&[("upper:moved", "redirect-invalid")], &["upper:moved"], |merged| {
            assert_eq!(names(merged, "moved"), ["own"]);
        });
        assert!(damaged.layers.upper().is_opaque("moved"));
    }
}

#[test]
fn a_redirect_to_nothing_is_closed_off_and_what_has_its_name_below_does_not_show() {
    let damaged = Damaged::new(|layers| {
        below(layers);
        layers.lower(0).whiteout("other");
    });
    let upper = damaged.layers.upper();
    upper.file("d/own", "own").overlay_xattr("d", "redirect", "/nowhere");
    upper.dir("a").overlay_xattr("a", "redirect", "file").dir("b").overlay_xattr("b", "redirect", "/other");
    let places = ["upper:a", "upper:b", "upper:d"];
    damaged.mends(&places.map(|place| (place, "redirect-to-nothing")), &places, |merged| {
        assert_eq!(names(merged, "d"), ["own"]);
    });
}

#[test]
fn a_redirect_under_an_opaque_mark_is_removed() {
    let damaged = Damaged::new(below);
    damaged.layers.upper().opaque("moved").overlay_xattr("moved", "redirect", "/d");
    damaged.mends(&[("upper:moved", "redirect-unused")], &["upper:moved"], |merged| {
        assert!(names(merged, "moved").is_empty());
    });
}

#[test]
fn a_directory_that_shows_under_its_old_name_too_is_hidden_there() {
    let damaged = Damaged::new(below).mounted(
        |spec| spec,
        |merged| {
            fs::rename(merged.path("d"), merged.path("moved")).unwrap();
            fs::rename(merged.path("moved/sub"), merged.path("sub")).unwrap();
        },
    );
    damaged.is_clean();
    fs::remove_file(damaged.layers.path("upper/d")).expect("the whiteout");
    fs::remove_file(damaged.layers.path("upper/moved/sub")).expect("the whiteout of what was moved on");
    let expected = [("upper:moved", "shown-twice"), ("upper:sub", "shown-twice")];
    damaged.mends(&expected, &["upper:d", "upper:moved/sub"], |merged| {
        assert_eq!(
            (names(merged, "."), names(merged, "moved")),
            (["file", "moved", "other", "sub"].map(String::from).into(), vec!["here".into()],)
        );
    });
}

#[test]
fn two_directories_that_lead_to_one_are_told() {
    let damaged = Damaged::new(below);
    let upper = damaged.layers.upper();
    upper
        .whiteout("d")
        .dir("one")
        .overlay_xattr("one", "redirect", "d")
        .dir("two")
        .overlay_xattr("two", "redirect", "/d");
    damaged.stays(&[("upper:two", "shown-twice")]);
}

#[test]
fn marks_of_the_namespace_that_is_not_mounted_are_told() {
    let damaged = Damaged::new(below);
    let upper = damaged.layers.upper();
    upper.dir("moved").xattr("moved", "user.overlay.redirect", "/d").whiteout("moved/unknown");
    upper.file("file", "").xattr("file", "user.overlay.metacopy", "");
    damaged.stays(&[("upper:file", "mark-foreign"), ("upper:moved", "mark-foreign")]);
    fs::remove_file(upper.path("moved/unknown")).unwrap();
    upper.whiteout("d");
    damaged.args(&["--xattr-namespace", "user"]).is_clean();
}

#[test]
fn a_metacopy_without_data_is_told_and_kept() {
    let damaged = Damaged::new(below).mounted(
        |spec| spec.feature("metacopy", "on"),
        |merged| {
            fs::set_permissions(merged.path("file"), fs::Permissions::from_mode(0o600)).unwrap();
            fs::rename(merged.path("file"), merged.path("other/file")).unwrap();
        },
    );
    assert!(damaged.layers.upper().get_overlay_xattr("other/file", "metacopy").is_some());
    damaged.is_clean();
    damaged.layers.upper().overlay_xattr("other/file", "redirect", "/nowhere");
    damaged.stays(&[("upper:other/file", "metacopy-without-data")]);
    damaged.layers.upper().overlay_xattr("other/file", "redirect", "/d");
    damaged.stays(&[("upper:other/file", "metacopy-without-data")]);
}

/// An upper with the copied-up file `d/here`.
fn copied_up() -> Damaged {
    Damaged::new(below).mounted(
        |spec| spec,
        |merged| fs::set_permissions(merged.path("d/here"), fs::Permissions::from_mode(0o600)).unwrap(),
    )
}

#[test]
fn an_origin_that_cannot_be_read_is_removed() {
    let damaged = copied_up();
    damaged.layers.upper().overlay_xattr("d/here", "origin", b"\0\xfbgarbage");
    damaged.mends(&[("upper:d/here", "origin-invalid")], &["upper:d/here"], |merged| {
        assert_eq!(merged.read("d/here"), b"here");
    });
}

#[test]
fn an_origin_that_is_gone_is_removed() {
    let damaged = copied_up();
    let before = damaged.layers.lower(1).stat("d/here").ino();
    // As when the lower layers were copied to elsewhere.
    fs::rename(damaged.layers.lower(1).path("d/here"), damaged.layers.path("kept")).unwrap();
    damaged.layers.lower(1).file("d/here", "here");
    fs::remove_file(damaged.layers.path("kept")).unwrap();
    damaged.mends(&[("upper:d/here", "origin-gone")], &["upper:d/here"], |merged| {
        assert_eq!(merged.read("d/here"), b"here");
        assert_ne!(merged.stat("d/here").ino(), before);
    });
}

#[test]
fn an_origin_of_another_kind_of_file_is_removed() {
    let damaged = copied_up();
    let of_directory = damaged.layers.upper().get_overlay_xattr("d", "origin").expect("an origin");
    damaged.layers.upper().overlay_xattr("d/here", "origin", of_directory);
    damaged.mends(&[("upper:d/here", "origin-gone")], &["upper:d/here"], |_| {});
}

#[test]
fn an_upper_of_another_topmost_layer_is_told_and_adopted() {
    let damaged = copied_up();
    let of_directory = damaged.layers.upper().get_overlay_xattr("d", "origin").expect("an origin");
    damaged.layers.upper().overlay_xattr(".", "origin", of_directory);
    damaged.mends(&[("upper:", "origin-of-root")], &["upper:"], |_| {});
}

#[test]
fn a_directory_that_does_not_say_that_it_has_copied_up_files_is_marked() {
    let damaged = Damaged::new(below).mounted(
        |spec| spec,
        |merged| {
            merged.dir("new");
            fs::rename(merged.path("file"), merged.path("new/file")).unwrap();
        },
    );
    let number = damaged.layers.lower(1).stat("file").ino();
    rustix::fs::removexattr(damaged.layers.path("upper/new"), key("impure")).expect("it is marked");
    damaged.mends(&[("upper:new", "impure-missing")], &["upper:new"], |merged| {
        assert_eq!(merged.stat("new/file").ino(), number);
    });
}

#[test]
fn an_owner_that_cannot_be_read_is_told() {
    let damaged = Damaged::new(below).args(&["--xattr-permissions", "security"]).mounted(
        |spec| spec.args(["--xattr-permissions", "security"]),
        |merged| {
            merged.file("new", "new");
        },
    );
    damaged.layers.upper().xattr("new", "security.fuseoverlayfs.override_stat", "nonsense");
    damaged.stays(&[("upper:new", "owner-invalid")]);
}

#[test]
fn a_link_that_leads_out_of_upper_is_not_followed() {
    let damaged = Damaged::new(below);
    let lowers = LowersUnchanged::new(damaged.layers.lowers());
    damaged.layers.lower(1).whiteout("stale");
    damaged.layers.upper().symlink("out", damaged.layers.lower(1).root()).symlink("loop", ".");
    damaged.is_clean();
    drop(lowers);
}

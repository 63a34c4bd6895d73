//! Hard links and the index.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::damage::{Damaged, key};
use crate::support::{Layers, Tree};

fn below(layers: &Layers) {
    layers.lower(1).file("a", "linked").link("a", "b").link("a", "d/c").file("other", "other");
}

/// An upper in which `a` was written.
fn written() -> Damaged {
    Damaged::new(below).mounted(|spec| spec, |merged| fs::write(merged.path("a"), "written").unwrap())
}

/// Returns the path of the one entry of the index, below the workdir.
fn entry(damaged: &Damaged) -> PathBuf {
    let names = damaged.layers.work().names("index");
    assert_eq!(names.len(), 1, "{names:?}");
    PathBuf::from("index").join(&names[0])
}

fn named(path: &std::path::Path) -> String {
    format!("work:{}", path.display())
}

fn is_linked(merged: &Tree, names: &[&str], links: u64) {
    for name in names {
        assert_eq!((merged.read(name), merged.stat(name).nlink()), (b"written".to_vec(), links), "{name}");
    }
}

#[test]
fn a_copy_whose_names_are_all_in_the_lower_layers_is_no_finding() {
    let damaged = written().mounted(|spec| spec, |merged| fs::remove_file(merged.path("a")).unwrap());
    damaged.is_clean();
    assert_eq!(damaged.layers.work().stat(entry(&damaged)).nlink(), 1);
}

#[test]
fn link_counts_that_are_relative_to_the_lower_file_are_no_finding_and_are_understood() {
    let damaged = written();
    // As the kernel's overlayfs leaves them between two steps.
    damaged.layers.upper().overlay_xattr("a", "nlink", "L+0");
    damaged.is_clean();
    damaged.shows(|merged| is_linked(merged, &["a", "b", "d/c"], 3));
}

#[test]
fn link_counts_that_cannot_be_are_written_anew() {
    for wrong in ["U-5", "U+9", "L+7", "U", "nonsense", "U99999999999"] {
        let damaged = written();
        let entry = entry(&damaged);
        damaged.layers.upper().overlay_xattr("a", "nlink", wrong);
        damaged.mends(&[(&named(&entry), "link-count")], &["upper:a", &named(&entry)], |merged| {
            is_linked(merged, &["a", "b", "d/c"], 3);
        });
        assert_eq!(damaged.layers.upper().get_overlay_xattr("a", "nlink").as_deref(), Some(&b"U+1"[..]), "{wrong}");
    }
}

#[test]
fn a_link_count_that_is_missing_is_written() {
    let damaged = written().mounted(|spec| spec, |merged| fs::remove_file(merged.path("d/c")).unwrap());
    let entry = entry(&damaged);
    rustix::fs::removexattr(damaged.layers.path("upper/a"), key("nlink")).expect("it has one");
    damaged.mends(&[(&named(&entry), "link-count")], &["upper:a", &named(&entry)], |merged| {
        is_linked(merged, &["a", "b"], 2);
    });
}

#[test]
fn an_entry_that_no_name_leads_to_is_removed() {
    let damaged = written();
    let entry = entry(&damaged);
    fs::remove_file(damaged.layers.path("upper/a")).unwrap();
    damaged.layers.upper().whiteout("a").whiteout("b").whiteout("d/c");
    damaged.mends(&[(&named(&entry), "index-unused")], &[&named(&entry)], |merged| {
        assert_eq!(merged.names("."), ["d", "other"]);
    });
}

#[test]
fn an_entry_that_a_lost_directory_may_lead_to_is_kept_until_that_is_repaired() {
    let damaged = written();
    let entry = entry(&damaged);
    fs::remove_file(damaged.layers.path("upper/a")).unwrap();
    damaged.layers.upper().whiteout("a").whiteout("b").whiteout("d").dir("m").overlay_xattr("m", "redirect", "/x");
    let (code, said) = damaged.said(&["--repair"]);
    let expected = [
        ("upper:m".to_owned(), "redirect-to-nothing".to_owned(), "repaired".to_owned()),
        (named(&entry), "unreadable".to_owned(), "left".to_owned()),
    ];
    assert_eq!((code, &said[..]), (4, &expected[..]));
    assert_eq!(damaged.said(&["--repair"]), (1, vec![(named(&entry), "index-unused".into(), "repaired".into())]));
    damaged.is_clean();
}

#[test]
fn an_entry_for_a_file_that_is_gone_is_removed_with_the_origin_of_its_names() {
    let damaged = written();
    let entry = entry(&damaged);
    for name in ["a", "b", "d/c"] {
        fs::remove_file(damaged.layers.lower(1).path(name)).unwrap();
    }
    let expected = [("upper:a", "origin-gone"), (&*named(&entry), "index-gone")];
    damaged.mends(&expected, &["upper:a", &named(&entry)], |merged| is_linked(merged, &["a"], 1));
}

#[test]
fn names_that_are_no_handle_are_removed_where_nothing_is_lost() {
    let damaged = written();
    damaged.layers.upper().file("plain", "plain");
    fs::hard_link(damaged.layers.path("upper/plain"), damaged.layers.path("work/index/00fb")).unwrap();
    let changed = ["upper:plain", "work:index/00fb"];
    damaged
        .mends(&[("work:index/00fb", "index-invalid")], &changed, |merged| assert_eq!(merged.read("plain"), b"plain"));
    damaged.layers.work().file("index/00fb", "the only one");
    damaged.stays(&[("work:index/00fb", "index-invalid")]);
}

#[test]
fn an_entry_whose_file_has_another_origin_gets_its_own() {
    let damaged = written();
    let entry = entry(&damaged);
    let own = damaged.layers.upper().get_overlay_xattr("a", "origin");
    damaged.layers.upper().overlay_xattr("a", "origin", "garbage");
    damaged.mends(&[(&named(&entry), "index-origin")], &["upper:a", &named(&entry)], |merged| {
        is_linked(merged, &["a", "b", "d/c"], 3);
    });
    assert_eq!(damaged.layers.upper().get_overlay_xattr("a", "origin"), own);
}

#[test]
fn a_copied_up_link_that_is_not_in_the_index_is_put_there() {
    let damaged = written();
    let entry = entry(&damaged);
    fs::remove_file(damaged.layers.path("work").join(&entry)).unwrap();
    damaged.shows(|merged| assert_eq!(merged.read("b"), b"linked"));
    damaged.mends(&[("upper:a", "not-indexed")], &["upper:a", "work:index", &named(&entry)], |merged| {
        is_linked(merged, &["a", "b", "d/c"], 3);
    });
}

#[test]
fn without_the_workdir_a_link_that_is_not_in_the_index_is_told() {
    let damaged = written();
    fs::rename(damaged.layers.path("work"), damaged.layers.path("elsewhere")).unwrap();
    let ran = damaged.fsck(&["--repair"]);
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert!(ran.out.contains("--work") && ran.err.contains("--work"), "{ran:?}");
}

#[test]
fn a_name_in_the_index_that_another_file_has_is_left() {
    let damaged = written();
    let entry = damaged.layers.path("work").join(entry(&damaged));
    fs::remove_file(&entry).unwrap();
    fs::copy(damaged.layers.path("upper/a"), &entry).unwrap();
    let origin = damaged.layers.upper().get_overlay_xattr("a", "origin").expect("it has one");
    rustix::fs::setxattr(&entry, key("origin"), &origin, rustix::fs::XattrFlags::empty()).unwrap();
    rustix::fs::setxattr(&entry, key("nlink"), b"U+1", rustix::fs::XattrFlags::empty()).unwrap();
    damaged.stays(&[("upper:a", "not-indexed")]);
}

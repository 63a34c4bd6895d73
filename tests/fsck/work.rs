//! What is left in a workdir, and the marks that forbid a mount.

use std::fs;

use super::damage::Damaged;
use crate::support::Layers;

fn below(layers: &Layers) {
    layers.lower(1).file("file", "data");
}

#[test]
fn what_is_left_unfinished_is_removed() {
    let damaged = Damaged::new(below);
    damaged.layers.work().file("work/#1", "half").file("work/#2/deep/er", "half").whiteout("work/#3");
    let expected = [("work:work/#1", "leftover"), ("work:work/#2", "leftover")];
    let gone = ["work:work/#1", "work:work/#2", "work:work/#2/deep", "work:work/#2/deep/er"];
    // The times of the workdir are nobody's.
    let changed = [&gone[..], &["work:work"]].concat();
    damaged.mends(&expected, &changed, |merged| assert_eq!(merged.read("file"), b"data"));
}

#[test]
fn what_the_kernel_leaves_unfinished_in_the_index_is_removed_but_for_its_whiteout() {
    let damaged = Damaged::new(below);
    damaged.layers.work().file("index/#1", "half").file("index/#2/half", "half").whiteout("index/#3");
    let expected = [("work:index/#1", "leftover"), ("work:index/#2", "leftover")];
    let gone = ["work:index", "work:index/#1", "work:index/#2", "work:index/#2/half"];
    damaged.mends(&expected, &gone, |merged| assert_eq!(merged.read("file"), b"data"));
}

#[test]
fn the_mark_of_a_volatile_mount_is_settled() {
    let damaged = Damaged::new(below).mounted(
        |spec| spec.args(["--volatile"]),
        |merged| {
            merged.file("new", "new");
        },
    );
    let gone = ["work:work", "work:work/incompat", "work:work/incompat/volatile", "work:work/incompat/volatile/dirty"];
    damaged.mends(&[("work:work/incompat/volatile", "volatile-now")], &gone, |merged| {
        assert_eq!(merged.read("new"), b"new");
    });
}

#[test]
fn marks_that_forbid_a_mount_are_told_with_the_way_out() {
    let damaged = Damaged::new(below);
    damaged.layers.work().file("work/incompat/volatile/dirty", "00000000-0000-0000-0000-000000000000\n");
    damaged.layers.work().dir("work/incompat/novel");
    let marks = [("work:work/incompat/novel", "feature-unknown"), ("work:work/incompat/volatile", "volatile-before")];
    damaged.stays(&marks);
    let ran = damaged.fsck(&[]);
    assert!(ran.out.contains("fresh upper") && ran.out.contains("remove this directory"), "{}", ran.out);
}

#[test]
fn what_is_no_part_of_a_workdir_is_told() {
    let damaged = Damaged::new(below);
    damaged.layers.work().file("mine", "mine");
    damaged.stays(&[("work:mine", "not-of-workdir")]);
}

#[test]
fn the_workdir_beside_upper_is_found_and_none_is_made() {
    let damaged = Damaged::new(below);
    fs::remove_dir(damaged.layers.path("work")).unwrap();
    let beside = damaged.layers.path(".upper.work");
    let ran = damaged.fsck(&[]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "fsck: nothing found\n"), "{ran:?}");
    assert!(!beside.exists());
    fs::create_dir_all(beside.join("work/#1")).unwrap();
    assert_eq!(damaged.said(&[]).1, [("work:work/#1".into(), "leftover".into(), "found".into())]);
}

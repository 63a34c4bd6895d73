//! Sequences that once showed a bug, as they shrank.

use rustix::io::Errno;
use unionfs_rs::config::{Lacking, RedirectDir, WhiteoutFormat, XattrNamespace};
use unionfs_rs::union::{Caller, OpenFile, Union};

use super::layers::{Layer, Marks, Space, Thing};
use super::op::{At, End, Make, Op, Set, Who};
use super::run::{Script, play};
use super::stage::{Theatre, Variant};
use crate::support::{Tree, require_root};

const FILE: Thing = Thing::File { len: 10, fill: b'l', mode: 0o644, owner: 0 };
const DIR: Thing = Thing::Dir { mode: 0o755, owner: 0 };

fn lower(things: &[(&str, Thing)], links: &[(&str, &str)]) -> Layer {
    Layer {
        marks: Marks::Char(Space::Trusted),
        things: things.iter().map(|(path, thing)| (path.to_string(), *thing)).collect(),
        links: links.iter().map(|(from, to)| (from.to_string(), to.to_string())).collect(),
    }
}

/// Plays the operations on one lower, with lookups kept and with lookups given back at once.
fn holds(variant: Variant, lower: Layer, ops: &[Op]) {
    if !require_root("the layers hold devices, owners and trusted xattrs, and are on a tmpfs") {
        return;
    }
    let theatre = Theatre::open();
    for forgetful in [false, true] {
        let script = Script { lowers: vec![lower.clone()], forgetful, ops: ops.to_vec() };
        play(&theatre, variant, &script).unwrap_or_else(|error| panic!("forgetful {forgetful}: {error}"));
    }
}

fn path(path: &str) -> At {
    At::Path(path.to_owned())
}

fn rename(from: &str, to: &str, flags: u32) -> Op {
    Op::Rename { from: from.to_owned(), to: to.to_owned(), flags }
}

fn create(path: &str, make: Make) -> Op {
    Op::Create { path: path.to_owned(), make, mode: 0o755, umask: 0, who: Who::Root }
}

fn chown(of: &str) -> Op {
    Op::Chown { at: path(of), uid: Some(77), gid: None }
}

#[test]
fn regression_rename_to_the_same_name_of_what_nobody_holds() {
    holds(Variant::DEFAULT, lower(&[("d/f", FILE), ("f", FILE)], &[]), &[rename("d", "d", 0), rename("f", "f", 0)]);
}

#[test]
fn regression_a_copied_up_file_becomes_a_second_inode_where_upper_has_no_xattrs() {
    let variant = Variant { lacking: Lacking::XATTRS, ..Variant::DEFAULT };
    holds(variant, lower(&[("a", FILE)], &[]), &[Op::Hold("a".to_owned()), Op::Utimes { at: path("a"), secs: 1 }]);
}

#[test]
fn regression_rename_of_one_hard_link_to_another_that_nobody_holds() {
    let ops = [
        rename("a", "b", 0),
        create("n", Make::Regular),
        Op::Link { of: path("n"), to: "m".into() },
        rename("n", "m", 0),
    ];
    holds(Variant::DEFAULT, lower(&[("a", FILE)], &[("a", "b")]), &ops);
}

#[test]
fn regression_rename_leaves_a_whiteout_by_xattr_that_shows() {
    let variant = Variant { whiteouts: WhiteoutFormat::Xattr, ..Variant::DEFAULT };
    holds(variant, lower(&[("d/f", FILE), ("e/g", FILE)], &[]), &[rename("d/f", "c", 0), rename("e", "d/e", 0)]);
}

#[test]
fn regression_rename_flag_leaves_a_whiteout_by_xattr_that_shows() {
    let variant = Variant { whiteouts: WhiteoutFormat::Xattr, ..Variant::DEFAULT };
    let ops = [
        create("d/n", Make::Directory),
        create("d/n/m", Make::Regular),
        rename("d/n/m", "d/m", 4),
        rename("d/m", "d/n/m", 4),
    ];
    holds(variant, lower(&[("d/f", FILE)], &[]), &ops);
}

#[test]
fn regression_rename_brings_a_whiteout_by_xattr_to_a_directory_without_any() {
    let variant = Variant { whiteouts: WhiteoutFormat::Xattr, ..Variant::DEFAULT };
    let ops = [Op::Unlink("d/f".into()), rename("e/g", "d/f", 0), Op::Remount(End::Clean)];
    holds(variant, lower(&[("d/f", FILE), ("e/g", FILE)], &[]), &ops);
}

#[test]
fn regression_lookup_in_a_removed_directory_finds_what_lies_below() {
    let ops = [Op::Hold("d".into()), Op::Rmdir("d/a".into()), Op::Rmdir("d".into())];
    holds(Variant::DEFAULT, lower(&[("d/a", DIR)], &[]), &ops);
}

#[test]
fn regression_a_change_of_a_removed_lower_directory_leaves_its_copy_in_the_workdir() {
    let ops = [
        Op::Hold("d".into()),
        Op::Rmdir("d".into()),
        Op::Chmod { at: At::Held(0), mode: 0o700 },
        Op::SetXattr { at: At::Held(0), key: "user.k", len: 3, how: Set::Any },
    ];
    holds(Variant::DEFAULT, lower(&[("d", DIR)], &[]), &ops);
}

#[test]
fn regression_a_removed_lower_file_gets_a_name_again() {
    let ops = [Op::Hold("f".into()), Op::Unlink("f".into()), Op::Link { of: At::Held(0), to: "g".into() }];
    holds(Variant::DEFAULT, lower(&[("f", FILE)], &[]), &ops);
}

#[test]
fn regression_a_broken_link_becomes_a_second_inode_when_it_is_copied_up() {
    let variant = Variant { index: false, ..Variant::DEFAULT };
    let ops = [Op::Hold("a".into()), chown("a"), Op::Hold("b".into()), chown("b"), Op::Remount(End::Clean)];
    holds(variant, lower(&[("a", FILE)], &[("a", "b")]), &ops);
}

#[test]
fn regression_a_symlink_becomes_a_second_inode_when_it_is_copied_up_with_user_xattrs() {
    let variant = Variant { namespace: XattrNamespace::User, ..Variant::DEFAULT };
    holds(
        variant,
        lower(&[("s", Thing::Symlink("t"))], &[]),
        &[Op::Hold("s".into()), chown("s"), Op::Hold("s".into())],
    );
}

#[test]
fn regression_a_linked_symlink_is_copied_up_with_user_xattrs() {
    let variant = Variant { namespace: XattrNamespace::User, ..Variant::DEFAULT };
    holds(variant, lower(&[("s", Thing::Symlink("t"))], &[("s", "u")]), &[chown("s"), Op::Unlink("u".into())]);
}

#[test]
fn regression_a_metacopy_of_a_metacopy_that_was_renamed_in_a_lower_layer_finds_its_data() {
    let variant = Variant { metacopy: true, ..Variant::DEFAULT };
    let ops =
        [rename("d/f", "f", 0), Op::Remount(End::Restack), chown("f"), rename("f", "g", 0), Op::Remount(End::Clean)];
    holds(variant, lower(&[("d/f", FILE)], &[]), &ops);
}

#[test]
fn rename_of_a_directory_with_lower_parts_is_exdev_without_redirects() {
    let variant = Variant { redirect_dir: RedirectDir::Follow, ..Variant::DEFAULT };
    let ops = [rename("d", "e", 0), create("n", Make::Directory), rename("n", "d", 2), rename("n", "e", 0)];
    holds(variant, lower(&[("d/f", FILE)], &[]), &ops);
}

#[test]
fn regression_a_directory_below_one_that_was_renamed_in_a_lower_layer_is_renamed() {
    let ops = [rename("c", "d/c", 0), Op::Remount(End::Restack), rename("d/c/e", "e", 0), Op::Remount(End::Clean)];
    holds(Variant::DEFAULT, lower(&[("c/e/f", FILE), ("d/g", FILE)], &[]), &ops);
}

#[test]
fn regression_a_metacopy_below_a_directory_that_was_renamed_in_a_lower_layer_is_renamed() {
    let variant = Variant { metacopy: true, ..Variant::DEFAULT };
    let ops = [
        rename("c", "d/c", 0),
        Op::Remount(End::Restack),
        chown("d/c/f"),
        rename("d/c/f", "f", 0),
        Op::Remount(End::Clean),
    ];
    holds(variant, lower(&[("c/f", FILE), ("d/g", FILE)], &[]), &ops);
}

#[test]
fn the_root_cannot_be_forgotten() {
    let dir = tempfile::tempdir().expect("the test directory can be written");
    let union = Union::builder().lower(dir.path()).build().expect("a union of one empty lower can be built");
    let root = union.lookup_path("/".as_ref()).expect("the root can be looked up");
    union.forget(root.id, 1);
    union.forget(root.id, 1);
    assert_eq!(union.getattr(root.id).map_err(|error| error.errno()), Ok(root.attr));
    assert_eq!(union.usage().inodes, 1);
}

#[test]
fn only_a_regular_file_is_opened() {
    let dir = tempfile::tempdir().expect("the test directory can be written");
    let (lower, upper) = (Tree::at(dir.path().join("lower")), dir.path().join("upper"));
    std::fs::create_dir(&upper).expect("an own directory can be written");
    lower.file("f", "f").dir("d").fifo("p").symlink("s", "f");
    let union = Union::builder().lower(lower.root()).upper(&upper).build().expect("a union can be built");
    let open = |name: &str, how| {
        let entry = union.lookup_path(name.as_ref()).expect("it is there");
        union.open(entry.id, how).map(|fh| union.close(fh)).map_err(|error| error.errno())
    };
    for how in [OpenFile::Read, OpenFile::Write, OpenFile::Truncate(Caller::current())] {
        assert_eq!(open("/", how), Err(Errno::ISDIR), "{how:?}");
        assert_eq!(open("d", how), Err(Errno::ISDIR), "{how:?}");
        assert_eq!(open("p", how), Err(Errno::NXIO), "{how:?}");
        assert_eq!(open("s", how), Err(Errno::LOOP), "{how:?}");
    }
    assert_eq!(Tree::at(&upper).names(""), [""; 0], "nothing was copied up");
    assert_eq!(open("f", OpenFile::Read), Ok(()));
}

#[test]
fn regression_a_path_with_two_redirects_in_one_layer_leads_below() {
    let ops = [
        rename("p/c", "p/k", 0),
        rename("p", "q/p", 0),
        Op::Remount(End::Restack),
        rename("q/p/k/e", "e", 0),
        Op::Remount(End::Clean),
    ];
    holds(Variant::DEFAULT, lower(&[("p/c/e/f", FILE), ("q/g", FILE)], &[]), &ops);
}

#[test]
fn regression_a_metacopy_that_is_found_by_another_name_of_its_lower_file_is_linked() {
    let variant = Variant { metacopy: true, ..Variant::DEFAULT };
    let ops = [chown("f"), Op::ForgetAll, Op::Hold("d/g".into()), Op::Link { of: path("d/g"), to: "h".into() }];
    holds(variant, lower(&[("f", FILE)], &[("f", "d/g")]), &ops);
}

#[test]
fn regression_a_file_that_was_copied_up_without_its_number_is_removed_while_it_is_held() {
    let variant = Variant { index: false, ..Variant::DEFAULT };
    let ops = [
        Op::Hold("d/a".into()),
        chown("d/a"),
        Op::Unlink("d/a".into()),
        Op::Write { at: At::Held(0), offset: 0, len: 1, fill: b'w', who: Who::Root },
    ];
    holds(variant, lower(&[("d/a", FILE)], &[("d/a", "b")]), &ops);
}

#[test]
fn regression_a_file_that_was_copied_up_without_its_number_is_renamed() {
    let variant = Variant { namespace: XattrNamespace::User, ..Variant::DEFAULT };
    let ops = [Op::Hold("s".into()), chown("s"), rename("s", "d/f", 0)];
    holds(variant, lower(&[("s", Thing::Symlink("t")), ("d/f", FILE)], &[]), &ops);
}

#[test]
fn regression_rename_of_one_hard_link_to_another_in_another_directory() {
    for whiteouts in [WhiteoutFormat::Char, WhiteoutFormat::Xattr, WhiteoutFormat::DotWh] {
        let variant = Variant { whiteouts, ..Variant::DEFAULT };
        holds(variant, lower(&[("b", FILE)], &[("b", "d/b")]), &[rename("d/b", "b", 0), Op::Remount(End::Clean)]);
    }
}

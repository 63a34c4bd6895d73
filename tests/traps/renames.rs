//! Renames of what lies below, with every flag.

use std::fs;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::union::{Union, errno, is_ours, trap};
use crate::support::Layers;

fn rename(union: &Union, from: &str, to: &str, flags: RenameFlags) -> Result<(), Errno> {
    renameat_with(CWD, union.at(from), CWD, union.at(to), flags)
}

fn layers(layers: &Layers) {
    let (top, bottom) = (layers.lower(0), layers.lower(1));
    bottom.file("a", "a").file("b", "b").file("d/in-d", "d").file("e/in-e", "e").file("e/sub/deep", "deep");
    top.file("d/top", "top").dir("e");
}

#[test]
fn two_lower_files_are_exchanged() {
    trap(2, layers).run(|union| {
        let inos = ["a", "b"].map(|name| union.merged().stat(name).ino());
        rename(union, "a", "b", RenameFlags::EXCHANGE).expect("lower files can be exchanged");
        union.live_and_after_remount(|union| {
            for tree in [union.merged(), union.upper()] {
                assert_eq!((tree.read("a"), tree.read("b")), (b"b".to_vec(), b"a".to_vec()));
            }
            let now = ["b", "a"].map(|name| union.merged().stat(name).ino());
            assert_eq!(now, inos);
        });
        rename(union, "a", "d/in-d", RenameFlags::EXCHANGE).expect("files of two directories can be exchanged");
        union.live_and_after_remount(|union| {
            assert_eq!((union.merged().read("a"), union.merged().read("d/in-d")), (b"d".to_vec(), b"b".to_vec()));
        });
    });
}

#[test]
fn a_lower_file_and_a_merged_directory_are_exchanged() {
    trap(2, layers).run(|union| {
        rename(union, "a", "d", RenameFlags::EXCHANGE).expect("a file and a directory can be exchanged");
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names("a"), ["in-d", "top"]);
            assert_eq!(union.merged().read("a/in-d"), b"d");
            assert_eq!(union.merged().read("d"), b"a");
        });
        rename(union, "a", "e", RenameFlags::EXCHANGE).expect("directories can be exchanged");
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names("e"), ["in-d", "top"]);
            assert_eq!(union.merged().names("a"), ["in-e", "sub"]);
            assert_eq!(union.merged().read("a/sub/deep"), b"deep");
        });
    });
}

#[test]
fn exchange_with_nothing_is_enoent_and_changes_nothing() {
    trap(2, layers).run(|union| {
        assert_eq!(rename(union, "a", "none", RenameFlags::EXCHANGE), Err(Errno::NOENT));
        assert_eq!(rename(union, "none", "a", RenameFlags::EXCHANGE), Err(Errno::NOENT));
        fs::remove_file(union.at("b")).expect("a file can be removed");
        assert_eq!(rename(union, "a", "b", RenameFlags::EXCHANGE), Err(Errno::NOENT), "with a whiteout");
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names(""), ["a", "d", "e"]);
            assert!(!union.upper().exists("a"));
        });
    });
}

#[test]
fn noreplace_refuses_what_exists_in_any_layer_and_takes_a_removed_name() {
    trap(2, layers).run(|union| {
        fs::write(union.at("new"), "new").expect("a file can be made");
        for (from, to) in [("new", "a"), ("a", "b"), ("a", "d"), ("d", "e")] {
            assert_eq!(rename(union, from, to, RenameFlags::NOREPLACE), Err(Errno::EXIST), "{from} to {to}");
        }
        fs::remove_file(union.at("b")).expect("a file can be removed");
        rename(union, "a", "b", RenameFlags::NOREPLACE).expect("a removed name is free");
        rename(union, "d", "moved", RenameFlags::NOREPLACE).expect("a new name is free");
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names(""), ["b", "e", "moved", "new"]);
            assert_eq!(union.merged().read("b"), b"a");
            assert_eq!(union.merged().names("moved"), ["in-d", "top"]);
            assert!(union.upper().is_whiteout("a") && union.upper().is_whiteout("d"));
        });
    });
}

#[test]
fn rename_that_leaves_a_whiteout_hides_the_old_name() {
    if !is_ours("its overlayfs answers EINVAL to RENAME_WHITEOUT") {
        return;
    }
    trap(2, layers).run(|union| {
        fs::write(union.at("new"), "new").expect("a file can be made");
        rename(union, "a", "moved", RenameFlags::WHITEOUT).expect("a lower file can be moved");
        rename(union, "new", "newer", RenameFlags::WHITEOUT).expect("an upper file can be moved");
        rename(union, "d/in-d", "b", RenameFlags::WHITEOUT).expect("a file can be replaced");
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names(""), ["b", "d", "e", "moved", "newer"]);
            for (name, content) in [("moved", "a"), ("newer", "new"), ("b", "d")] {
                assert_eq!(union.merged().read(name), content.as_bytes(), "{name}");
            }
            for name in ["a", "new", "d/in-d"] {
                assert!(!union.merged().exists(name), "{name}");
            }
            assert!(union.upper().is_whiteout("a") && union.upper().is_whiteout("d/in-d"));
        });
        let flags = RenameFlags::WHITEOUT | RenameFlags::NOREPLACE;
        assert_eq!(rename(union, "moved", "b", flags), Err(Errno::EXIST));
        // renameat2(2): a whiteout is left or the two are exchanged, not both.
        let flags = RenameFlags::WHITEOUT | RenameFlags::EXCHANGE;
        assert_eq!(rename(union, "moved", "b", flags), Err(Errno::INVAL));
    });
}

#[test]
fn unknown_rename_flags_are_einval() {
    trap(2, layers).run(|union| {
        let flags = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE;
        assert_eq!(rename(union, "a", "b", flags), Err(Errno::INVAL));
        assert_eq!(rename(union, "a", "b", RenameFlags::from_bits_retain(1 << 10)), Err(Errno::INVAL));
        assert_eq!(union.upper().names(""), Vec::<String>::new());
    });
}

#[test]
fn a_merged_directory_takes_its_whole_content_along() {
    trap(2, layers).run(|union| {
        fs::write(union.at("e/new"), "new").expect("a file can be made");
        fs::remove_file(union.at("e/in-e")).expect("a file can be removed");
        fs::rename(union.at("e"), union.at("d/e")).expect("a merged directory can be moved");
        fs::rename(union.at("d"), union.at("moved")).expect("a merged directory can be moved");
        let expected = |union: &Union| {
            assert_eq!(union.merged().names(""), ["a", "b", "moved"]);
            assert_eq!(union.merged().names("moved"), ["e", "in-d", "top"]);
            assert_eq!(union.merged().names("moved/e"), ["new", "sub"]);
            assert_eq!(union.merged().read("moved/e/sub/deep"), b"deep");
            assert!(union.upper().is_whiteout("d") && union.upper().is_whiteout("e"));
        };
        union.live_and_after_remount(expected);
        // The names that it had are free for others.
        fs::create_dir(union.at("d")).expect("a directory can be made");
        fs::create_dir(union.at("e")).expect("a directory can be made");
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names("d"), Vec::<String>::new());
            assert_eq!(union.merged().names("e"), Vec::<String>::new());
            assert_eq!(union.merged().names("moved/e"), ["new", "sub"]);
        });
        fs::write(union.at("moved/e/sub/deep"), "changed").expect("a file is copied up");
        union.live_and_after_remount(|union| assert_eq!(union.merged().read("moved/e/sub/deep"), b"changed"));
        fs::remove_dir_all(union.at("moved")).expect("a moved directory can be removed");
        union.live_and_after_remount(|union| assert_eq!(union.merged().names(""), ["a", "b", "d", "e"]));
    });
}

#[test]
fn a_lower_directory_is_exdev_where_redirects_are_off_and_files_still_move() {
    trap(2, layers).mounted(|spec| spec.feature("redirect_dir", "off")).run(|union| {
        assert_eq!(errno(fs::rename(union.at("d"), union.at("moved"))), Errno::XDEV);
        assert_eq!(rename(union, "d", "e", RenameFlags::EXCHANGE), Err(Errno::XDEV));
        fs::rename(union.at("a"), union.at("d/a")).expect("a lower file can be moved");
        fs::create_dir(union.at("new")).expect("a directory can be made");
        fs::rename(union.at("new"), union.at("newer")).expect("an upper directory can be moved");
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names(""), ["b", "d", "e", "newer"]);
            assert_eq!(union.merged().read("d/a"), b"a");
        });
    });
}

#[test]
fn a_rename_over_a_lower_file_or_an_empty_merged_directory_replaces_it() {
    trap(2, |built| {
        layers(built);
        built.lower(0).dir("empty");
        built.lower(1).dir("empty");
    })
    .run(|union| {
        fs::rename(union.at("a"), union.at("b")).expect("a lower file is replaced");
        fs::rename(union.at("e"), union.at("empty")).expect("an empty directory is replaced");
        assert_eq!(errno(fs::rename(union.at("b"), union.at("d"))), Errno::ISDIR);
        assert_eq!(errno(fs::rename(union.at("d"), union.at("b"))), Errno::NOTDIR);
        assert_eq!(errno(fs::rename(union.at("d"), union.at("d/in"))), Errno::INVAL);
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names(""), ["b", "d", "empty"]);
            assert_eq!(union.merged().read("b"), b"a");
            assert_eq!(union.merged().names("empty"), ["in-e", "sub"]);
            assert!(union.upper().is_whiteout("a") && union.upper().is_whiteout("e"));
        });
    });
}

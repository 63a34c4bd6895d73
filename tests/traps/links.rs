//! One file with several names is one file, and has one number, for as long as the union exists.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode};
use rustix::io::Errno;

use super::union::{Union, errno, is_ours, trap};
use crate::support::{
    Io, Layers, Mounted, Placement, Privilege, Tree, Watchdog, on_kernel, privilege, record_skip, require_root,
    test_name,
};

const NAMES: [&str; 3] = ["a", "b", "d/c"];

/// A lower file with three names.
fn linked(layers: &Layers) {
    layers.lower(0).file("a", "lower").link("a", "b").link("a", "d/c");
}

/// Asserts that the names are one file with `nlink` links and this content.
fn assert_one_file(tree: &Tree, names: &[&str], nlink: u64, content: &str) {
    let first = tree.stat(names[0]);
    for name in names {
        let stat = tree.stat(name);
        assert_eq!((stat.ino(), stat.nlink(), stat.len()), (first.ino(), nlink, content.len() as u64), "{name}");
        assert_eq!(tree.read(name), content.as_bytes(), "{name}");
    }
}

fn orders() -> [[&'static str; 3]; 3] {
    [["a", "b", "d/c"], ["d/c", "a", "b"], ["b", "d/c", "a"]]
}

#[test]
fn the_names_of_a_lower_file_are_one_file_in_any_order_of_access() {
    trap(1, linked).run(|union| {
        for order in orders() {
            eprintln!("--- {order:?}");
            assert_one_file(&union.merged(), &order, 3, "lower");
            union.remount();
        }
        assert_eq!(union.upper().names(""), Vec::<String>::new());
    });
}

#[test]
fn a_write_through_one_name_is_seen_through_all_also_after_a_remount() {
    for order in orders() {
        trap(1, linked).run(|union| {
            eprintln!("--- {order:?}");
            let ino = union.merged().stat(order[1]).ino();
            fs::write(union.at(order[0]), "changed").expect("a file is copied up");
            union.live_and_after_remount(|union| {
                assert_one_file(&union.merged(), &order, 3, "changed");
                assert_eq!(union.merged().stat(order[2]).ino(), ino);
            });
            // The second one is still only below where it was not looked at.
            let mut file = OpenOptions::new().append(true).open(union.at(order[1])).expect("the file is there");
            file.write_all(b" twice").expect("the file can be written");
            drop(file);
            union.live_and_after_remount(|union| {
                let reversed = [order[2], order[1], order[0]];
                assert_one_file(&union.merged(), &reversed, 3, "changed twice");
                assert_eq!(union.merged().stat(order[2]).ino(), ino);
            });
        });
    }
}

/// Takes the uuid of the lower file system from what an unmounted upper says of `names` and from the index: so it was
/// written by a mount that did not know the uuid.
fn forget_uuid(union: &Union, names: &[&str]) {
    // `struct ovl_fb`: five bytes, and then the uuid.
    for name in names {
        let mut origin = union.upper().get_overlay_xattr(name, "origin").expect("it was copied up");
        origin[5..21].fill(0);
        union.upper().overlay_xattr(name, "origin", origin);
    }
    let entries = union.work.names("index");
    assert_eq!(entries.len(), 1, "one file with several names was copied up");
    for entry in entries {
        let without = format!("{}{}{}", &entry[..10], "0".repeat(32), &entry[42..]);
        fs::rename(union.work.path("index").join(entry), union.work.path("index").join(without)).expect("an own file");
    }
}

#[test]
fn numbers_and_links_stay_where_the_uuid_of_the_only_lower_file_system_was_not_known() {
    if !is_ours("its numbers change and its links part") {
        return;
    }
    trap(1, |layers| {
        linked(layers);
        layers.lower(0).file("single", "lower").file("kept", "lower").link("kept", "kept too");
    })
    .run(|union| {
        let numbers = |union: &Union, names: &[&str]| -> Vec<u64> {
            names.iter().map(|name| union.merged().stat(name).ino()).collect()
        };
        let names = ["a", "b", "d/c", "single", "kept"];
        let before = numbers(union, &names);
        for name in ["a", "single"] {
            fs::write(union.at(name), "changed").expect("a file is copied up");
        }
        union.mount.unmount().expect("the union can be unmounted");
        forget_uuid(union, &["a", "single"]);
        union.mount.mount_again().expect("the union can be mounted again");
        union.live_and_after_remount(|union| {
            assert_one_file(&union.merged(), &["d/c", "a", "b"], 3, "changed");
            assert_eq!(numbers(union, &names), before);
        });
        // What is copied up now says the uuid.
        let mut file = OpenOptions::new().append(true).open(union.at("d/c")).expect("the file is there");
        file.write_all(b" twice").expect("the file can be written");
        drop(file);
        fs::write(union.at("kept"), "changed").expect("a file is copied up");
        fs::remove_file(union.at("a")).expect("a name can be removed");
        union.live_and_after_remount(|union| {
            assert_one_file(&union.merged(), &["b", "d/c"], 2, "changed twice");
            assert_one_file(&union.merged(), &["kept too", "kept"], 2, "changed");
            assert_eq!(numbers(union, &names[1..]), before[1..]);
        });
    });
}

#[test]
fn a_change_of_attributes_through_one_name_is_seen_through_all() {
    trap(1, linked).run(|union| {
        let stale = fs::File::open(union.at("b")).expect("the file is there");
        union.merged().xattr("d/c", "user.key", "value");
        fs::set_permissions(union.at("a"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("chmod");
        assert_eq!(stale.metadata().expect("fstat").mode() & 0o7777, 0o600);
        drop(stale);
        union.live_and_after_remount(|union| {
            for name in NAMES {
                assert_eq!(union.merged().mode(name), 0o600, "{name}");
                assert_eq!(union.merged().get_xattr(name, "user.key").as_deref(), Some(&b"value"[..]), "{name}");
            }
        });
    });
}

#[test]
fn the_link_count_falls_with_each_name_that_is_removed() {
    for order in orders() {
        trap(1, linked).run(|union| {
            eprintln!("--- {order:?}");
            let held = fs::File::open(union.at(order[0])).expect("the file is there");
            let count = |union: &Union, names: &[&str]| {
                for name in names {
                    assert_eq!(union.merged().stat(name).nlink(), names.len() as u64, "{name}");
                }
            };
            fs::remove_file(union.at(order[0])).expect("a name can be removed");
            count(union, &order[1..]);
            assert_eq!(held.metadata().expect("fstat").nlink(), 2);
            drop(held);
            union.remount();
            count(union, &order[1..]);
            fs::write(union.at(order[2]), "changed").expect("a file is copied up");
            union.live_and_after_remount(|union| {
                count(union, &order[1..]);
                assert_one_file(&union.merged(), &order[1..], 2, "changed");
            });
            fs::remove_file(union.at(order[1])).expect("a name can be removed");
            union.live_and_after_remount(|union| assert_one_file(&union.merged(), &order[2..], 1, "changed"));
            let held = fs::File::open(union.at(order[2])).expect("the file is there");
            fs::remove_file(union.at(order[2])).expect("a name can be removed");
            assert_eq!(held.metadata().expect("fstat").nlink(), 0);
            drop(held);
            union.live_and_after_remount(|union| {
                assert!(NAMES.iter().all(|name| !union.merged().exists(name)));
            });
        });
    }
}

#[test]
fn a_new_link_of_a_lower_file_counts_and_shares_its_content() {
    trap(1, |layers| {
        linked(layers);
        layers.lower(0).file("single", "lower");
    })
    .run(|union| {
        let ino = union.merged().stat("single").ino();
        fs::hard_link(union.at("single"), union.at("second")).expect("a lower file can be linked");
        fs::hard_link(union.at("b"), union.at("d/fourth")).expect("a lower file can be linked");
        fs::write(union.at("second"), "changed").expect("the file can be written");
        union.live_and_after_remount(|union| {
            assert_one_file(&union.merged(), &["single", "second"], 2, "changed");
            assert_eq!(union.merged().stat("second").ino(), ino);
            assert_one_file(&union.merged(), &["d/fourth", "a", "b", "d/c"], 4, "lower");
        });
        fs::write(union.at("d/c"), "changed").expect("the file can be written");
        union.live_and_after_remount(|union| {
            assert_one_file(&union.merged(), &["a", "b", "d/c", "d/fourth"], 4, "changed");
        });
    });
}

#[test]
fn renaming_one_name_of_a_file_over_another_changes_nothing() {
    trap(1, linked).run(|union| {
        // rename(2): where both are links of one file, it does nothing and succeeds.
        fs::rename(union.at("a"), union.at("b")).expect("it succeeds");
        union.live_and_after_remount(|union| assert_one_file(&union.merged(), &NAMES, 3, "lower"));
        fs::rename(union.at("a"), union.at("moved")).expect("a name can be moved");
        union.live_and_after_remount(|union| assert_one_file(&union.merged(), &["moved", "b", "d/c"], 3, "lower"));
    });
}

/// Asserts that a file held open goes on working once no name leads to it.
fn assert_usable_without_a_name(mut held: fs::File, ino: u64, content: &str) {
    let watched = held.try_clone().expect("a descriptor can be duplicated");
    let stat = || rustix::fs::fstat(&watched).expect("fstat");
    assert_eq!((stat().st_ino, stat().st_nlink, stat().st_size), (ino, 0, content.len() as i64));
    held.set_len(3).expect("ftruncate");
    assert_eq!(stat().st_size, 3);
    rustix::fs::fchmod(&held, Mode::from(0o640)).expect("fchmod");
    assert_eq!(stat().st_mode & 0o7777, 0o640);
    rustix::fs::fsetxattr(&held, "user.key", b"value", rustix::fs::XattrFlags::empty()).expect("fsetxattr");
    held.seek(SeekFrom::Start(3)).expect("seek");
    held.write_all(b"+more").expect("write");
    held.sync_all().expect("fsync");
    // The kernel opens the same inode again, by its number alone.
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
    let mut again = String::new();
    fs::File::open(&link).expect("open once more").read_to_string(&mut again).expect("read");
    assert_eq!(again, format!("{}+more", &content[..3]));
    assert_eq!((stat().st_ino, stat().st_nlink), (ino, 0));
}

#[test]
fn an_open_file_is_usable_after_unlink_and_after_being_renamed_over() {
    trap(2, |layers| {
        for name in ["lower-unlinked", "lower-replaced", "d/lower-unlinked"] {
            layers.lower(1).file(name, "content");
        }
        layers.lower(0).dir("d");
    })
    .run(|union| {
        for name in ["upper-unlinked", "upper-replaced"] {
            fs::write(union.at(name), "content").expect("a file can be made");
        }
        let names = ["lower-unlinked", "lower-replaced", "d/lower-unlinked", "upper-unlinked", "upper-replaced"];
        for name in names {
            let held = OpenOptions::new().read(true).write(true).open(union.at(name)).expect("the file is there");
            let ino = held.metadata().expect("fstat").ino();
            if name.ends_with("replaced") {
                fs::write(union.at("new"), "new").expect("a file can be made");
                fs::rename(union.at("new"), union.at(name)).expect("a file can be replaced");
            } else {
                fs::remove_file(union.at(name)).expect("a file can be removed");
            }
            eprintln!("--- {name}");
            assert_usable_without_a_name(held, ino, "content");
        }
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names(""), ["d", "lower-replaced", "upper-replaced"]);
            assert_eq!(union.merged().names("d"), Vec::<String>::new());
            assert_eq!(union.merged().read("lower-replaced"), b"new");
            assert_eq!(union.merged().read("upper-replaced"), b"new");
        });
    });
}

#[test]
fn a_lower_file_open_for_reading_alone_is_readable_after_unlink_and_rename_over() {
    trap(1, |layers| {
        layers.lower(0).file("unlinked", "lower").file("replaced", "lower").dir("d");
    })
    .run(|union| {
        let mut held = ["unlinked", "replaced"].map(|name| fs::File::open(union.at(name)).expect("the file is there"));
        let inos = held.each_ref().map(|file| file.metadata().expect("fstat").ino());
        fs::remove_file(union.at("unlinked")).expect("a file can be removed");
        fs::write(union.at("new"), "new").expect("a file can be made");
        fs::rename(union.at("new"), union.at("replaced")).expect("a file can be replaced");
        for (file, ino) in held.iter_mut().zip(inos) {
            let stat = file.metadata().expect("fstat");
            // The kernel's overlayfs forgets to count for a lower file that was replaced.
            if !on_kernel() {
                assert_eq!(stat.nlink(), 0);
            }
            assert_eq!((stat.ino(), stat.len()), (ino, 5));
            let mut content = String::new();
            file.read_to_string(&mut content).expect("the file can be read");
            assert_eq!(content, "lower");
        }
        // There is no name left to link from (linkat(2)).
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held[0]));
        let linked = rustix::fs::linkat(CWD, &link, CWD, union.at("revived"), AtFlags::SYMLINK_FOLLOW);
        assert_eq!(linked, Err(Errno::NOENT));
        drop(held);
        union.live_and_after_remount(|union| assert_eq!(union.merged().names(""), ["d", "replaced"]));
    });
}

#[test]
fn a_link_over_a_name_that_exists_is_eexist_and_of_a_directory_eperm() {
    trap(1, |layers| {
        layers.lower(0).file("a", "lower").file("b", "lower").dir("d");
    })
    .run(|union| {
        assert_eq!(errno(fs::hard_link(union.at("a"), union.at("b"))), Errno::EXIST);
        assert_eq!(errno(fs::hard_link(union.at("d"), union.at("e"))), Errno::PERM);
        assert!(!union.upper().exists("b") && !union.upper().exists("e"));
    });
}

/// Returns every number below `name`, checking that listing and stat agree.
fn numbers(tree: &Tree, name: &Path, into: &mut BTreeMap<String, u64>) {
    for entry in fs::read_dir(tree.path(name)).expect("a directory can be listed") {
        let entry = entry.expect("a directory can be listed");
        let path = name.join(entry.file_name());
        let stat = tree.stat(&path);
        assert_eq!(entry.ino(), stat.ino(), "readdir and stat of {}", path.display());
        into.insert(path.to_string_lossy().into_owned(), stat.ino());
        if stat.is_dir() {
            numbers(tree, &path, into);
        }
    }
}

fn all_numbers(union: &Union) -> BTreeMap<String, u64> {
    let mut into = BTreeMap::new();
    numbers(&union.merged(), Path::new(""), &mut into);
    into
}

#[test]
fn numbers_are_unique_and_constant_over_copy_up_link_rename_and_remount() {
    const SPECIAL: [&str; 2] = ["link", "fifo"];
    // Without root the origin is a `user.` xattr, which only files and directories can have (xattr(7)).
    let special_too = privilege() == Privilege::Root;
    trap(3, |layers| {
        for (index, name) in ["zero", "one", "two"].iter().enumerate() {
            let lower = layers.lower(index);
            lower.file(format!("file-{name}"), "lower").file(format!("merged/in-{name}"), "lower");
            lower.file(format!("dir-{name}/sub/file"), "lower").symlink(format!("link-{name}"), "target");
            lower.fifo(format!("fifo-{name}")).file(format!("moved-{name}"), "lower");
        }
    })
    .run(|union| {
        fs::write(union.at("new"), "new").expect("a file can be made");
        fs::create_dir(union.at("new-dir")).expect("a directory can be made");
        let before = all_numbers(union);
        let distinct: std::collections::BTreeSet<&u64> = before.values().collect();
        assert_eq!(distinct.len(), before.len(), "each number is given once: {before:?}");
        union.live_and_after_remount(|union| assert_eq!(all_numbers(union), before));

        for name in ["zero", "one", "two"] {
            fs::write(union.at(format!("file-{name}")), "changed").expect("a file is copied up");
            fs::write(union.at(format!("dir-{name}/sub/file")), "changed").expect("a file is copied up");
            for other in SPECIAL.iter().filter(|_| special_too) {
                union.merged().times(format!("{other}-{name}"), 1_000_000_000);
            }
            fs::write(union.at(format!("merged/in-{name}")), "changed").expect("a file is copied up");
        }
        union.live_and_after_remount(|union| assert_eq!(all_numbers(union), before, "after copy-up"));

        let mut expected = before;
        let moved = ["file-zero", "moved-one", "moved-two", "dir-one", "dir-two", "link-two", "fifo-one", "merged"];
        for name in moved.into_iter().filter(|name| special_too || !SPECIAL.contains(&&name[..4])) {
            let to = format!("{name}-to");
            fs::rename(union.at(name), union.at(&to)).unwrap_or_else(|error| panic!("rename {name}: {error}"));
            let moved: Vec<String> = expected
                .keys()
                .filter(|path| *path == name || path.starts_with(&format!("{name}/")))
                .cloned()
                .collect();
            for path in moved {
                let ino = expected.remove(&path).expect("it was listed");
                expected.insert(path.replacen(name, &to, 1), ino);
            }
        }
        for name in ["moved-zero", "file-one"] {
            let link = format!("{name}-link");
            fs::hard_link(union.at(name), union.at(&link)).expect("a file can be linked");
            expected.insert(link, expected[name]);
        }
        union.live_and_after_remount(|union| assert_eq!(all_numbers(union), expected, "after rename and link"));
    });
}

#[test]
fn a_special_file_can_be_linked_and_stays_one_inode() {
    trap(1, |layers| {
        layers.lower(0).fifo("fifo").symlink("symlink", "target").link("symlink", "second");
    })
    .run(|union| {
        fs::hard_link(union.at("fifo"), union.at("fifo2")).expect("a fifo can be linked");
        union.merged().times("second", 1_000_000_000);
        union.live_and_after_remount(|union| {
            let tree = union.merged();
            assert_eq!(tree.stat("fifo").ino(), tree.stat("fifo2").ino());
            assert_eq!(FileType::from_raw_mode(tree.stat("fifo2").mode()), FileType::Fifo);
            assert_eq!(tree.stat("fifo").nlink(), 2);
            assert_eq!(tree.stat("second").mtime(), 1_000_000_000);
            // Without root the index has no xattr to note the link in, as in the test above.
            if privilege() == Privilege::Root {
                assert_eq!(tree.stat("symlink").ino(), tree.stat("second").ino());
                assert_eq!(tree.stat("symlink").mtime(), 1_000_000_000);
                assert_eq!(tree.stat("symlink").nlink(), 2);
            }
        });
    });
}

#[test]
fn removing_one_name_of_a_lower_file_copies_no_data_where_metadata_is_enough() {
    if !require_root("metacopy") {
        return;
    }
    trap(1, |layers| _ = layers.lower(0).file("a", vec![1; 1 << 20]).link("a", "b"))
        .mounted(|spec| spec.feature("metacopy", "on"))
        .run(|union| {
            fs::remove_file(union.at("b")).expect("the name is there");
            union.live_and_after_remount(|union| assert_one_file(&union.merged(), &["a"], 1, &"\u{1}".repeat(1 << 20)));
            let copied = fs::read_dir(union.work.path("index")).expect("there is an index");
            for entry in copied {
                let meta = entry.and_then(|entry| entry.metadata()).expect("it can be looked at");
                assert!(meta.is_dir() || meta.blocks() * 512 < 1 << 20, "the data was copied");
            }
        });
}

/// Writes through a descriptor of a lower file that is copied up by that, and reads by name in between.
fn is_one_file_through_copy_up(mnt: &Path, name: &str) {
    let path = mnt.join(name);
    let file = fs::OpenOptions::new().read(true).write(true).open(&path).expect("a lower file can be opened");
    file.write_all_at(b"one", 0).expect("it is copied up");
    for entry in fs::read_dir(mnt).expect("the root can be listed") {
        entry.expect("the root can be listed").metadata().expect("it is there");
    }
    assert_eq!(&fs::read(&path).expect("it is there")[..3], b"one");
    file.write_all_at(b"two", 0).expect("it is in upper");
    assert_eq!(&fs::read(&path).expect("it is there")[..3], b"two");
    let (open, named) = (file.metadata().expect("it is open"), fs::metadata(&path).expect("it is there"));
    assert_eq!(open.ino(), named.ino());
    fs::write(mnt.join("target"), "new").expect("the union can be written");
    fs::rename(&path, mnt.join("target")).expect("it can be renamed");
    assert_eq!(fs::metadata(mnt.join("target")).expect("it has the name").ino(), open.ino());
    assert_eq!(&fs::read(mnt.join("target")).expect("it has the name")[..3], b"two");
}

#[test]
fn regression_a_copy_whose_origin_found_no_room_is_the_same_file_while_mounted() {
    trap(1, |layers| {
        layers.lower(0).file("a", "AAAAAA");
        // So much that ext4 has no room for one more.
        for (key, len) in [("user.large", 3800), ("user.medium", 200), ("user.small", 60)] {
            layers.lower(0).xattr("a", key, vec![b'x'; len]);
        }
    })
    .run(|union| is_one_file_through_copy_up(&union.at(""), "a"));
}

#[test]
fn regression_files_of_a_fuse_lower_are_told_apart_over_copy_up_and_remounts() {
    if !is_ours("a lower that is a mount of ours") {
        return;
    }
    if privilege() == Privilege::Plain {
        record_skip(&test_name(), "a mountpoint inside a test's directory is no layer without a private clone");
        return;
    }
    let _watchdog = Watchdog::start();
    let (below, layers) = (Layers::new(1, Placement::OneFs), Layers::new(0, Placement::OneFs));
    below.lower(0).file("a", "AAAAAA").file("f1", "FFFF").link("f1", "f2").file("g1", "GGGG").link("g1", "g2");
    let mut server = below.spec(Io::Cached).mount_ours();
    let mut spec = layers.spec(Io::Cached);
    spec.lowers = vec![below.mnt()];
    let mut mount = spec.mount_ours();
    is_one_file_through_copy_up(&layers.mnt(), "a");
    fs::write(layers.mnt().join("f1"), "changed").expect("a lower file can be written");
    fs::read(layers.mnt().join("g1")).expect("it is there");
    mount.unmount().expect("the union can be unmounted");
    // The server of the lower starts anew, and gives the numbers of its handles to other files.
    server.unmount().expect("the lower can be unmounted");
    let mut server = below.spec(Io::Cached).mount_ours();
    let mut mount = spec.mount_ours();
    for (name, content) in [("g1", "GGGG"), ("g2", "GGGG"), ("f1", "changed")] {
        assert_eq!(fs::read(layers.mnt().join(name)).expect("it is there"), content.as_bytes(), "{name}");
    }
    mount.unmount().expect("the union can be unmounted");
    server.unmount().expect("the lower can be unmounted");
}

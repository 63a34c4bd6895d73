//! Layers that are made to take all memory or all time: each of these ends, and the process stays small.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;

use rustix::io::Errno;

use super::stage::most_memory;
use crate::support::{
    Io, Layers, LowersUnchanged, Mounted, OurMount, Placement, Watchdog, modes, record_skip, test_name,
};
use crate::union::{errno, is_ours, trap};

/// What a process with an empty union uses at most, in KiB, and then some for the allocator.
const SMALL: u64 = 64 << 10;

/// Asserts that the process of `mount` has used no more than `most` KiB above what is always used.
fn is_small(mount: &OurMount, most: u64) {
    let used = most_memory(mount.pid().expect("it is mounted"));
    assert!(used < SMALL + most, "{used} KiB were used");
}

#[test]
fn a_hundred_thousand_whiteouts_in_one_directory_are_passed_over() {
    if !is_ours("the process is ours") {
        return;
    }
    const MANY: usize = 100_000;
    let _watchdog = Watchdog::start();
    let layers = Layers::new(2, Placement::OneFs);
    layers.lower(0).whiteout("d/w0").file("d/above", "above");
    let template = layers.lower(0).path("d/w0");
    for n in 1..MANY {
        // A file system may allow fewer links than that.
        let path = layers.lower(0).path(format!("d/w{n}"));
        if fs::hard_link(&template, &path).is_err() {
            layers.lower(0).whiteout(format!("d/w{n}"));
        }
    }
    for n in (0..MANY).step_by(1000) {
        layers.lower(1).file(format!("d/w{n}"), "hidden");
    }
    layers.lower(1).file("d/below", "below");
    let mut mount = layers.spec(Io::Cached).mount_ours();
    for _ in 0..2 {
        assert_eq!(mount.tree().names("d"), ["above", "below"]);
        for n in (0..MANY).step_by(500) {
            assert!(!mount.tree().exists(format!("d/w{n}")));
        }
        assert_eq!(errno(fs::remove_dir(layers.mnt().join("d"))), Errno::NOTEMPTY);
        is_small(&mount, 128 << 10);
        mount.remount();
    }
    fs::remove_dir_all(layers.mnt().join("d")).expect("it can be removed");
    assert_eq!(mount.tree().names(""), [""; 0]);
    mount.unmount().expect("the union can be unmounted");
    assert_eq!(layers.lower(0).names("d").len(), MANY + 1);
}

#[test]
fn links_that_go_in_circles_are_the_callers_to_give_up_on() {
    trap(1, |layers| {
        let tree = layers.lower(0);
        tree.symlink("self", "self").symlink("a", "b").symlink("b", "a").symlink("up", "up/up").symlink("dir", ".");
        tree.symlink("long", "x/".repeat(2000)).symlink("root", "/").file("f", "f");
        for n in 0..45 {
            tree.symlink(format!("chain{n}"), format!("chain{}", n + 1));
        }
    })
    .run(|union| {
        union.live_and_after_remount(|union| {
            for name in ["self", "a", "b", "up", "self/x", "chain0"] {
                assert_eq!(errno(fs::metadata(union.at(name))), Errno::LOOP, "{name}");
            }
            assert_eq!(fs::read(union.at("dir/dir/dir/f")).expect("a link to a directory works"), b"f");
            assert_eq!(fs::read_link(union.at("long")).expect("it is a link").as_os_str().len(), 4000);
            assert_eq!(union.merged().names("").len(), 53);
        });
        fs::rename(union.at("self"), union.at("moved")).expect("a link can be moved");
        symlink("moved", union.at("self")).expect("a link can be made");
        union.live_and_after_remount(|union| {
            assert_eq!(errno(fs::metadata(union.at("moved"))), Errno::LOOP);
        });
    });
}

#[test]
fn xattrs_as_many_and_as_long_as_there_can_be_are_read_and_copied_up() {
    trap(1, |layers| {
        layers.lower(0).file("many", "x").file("long", "x").file("both/f", "x").dir("dir");
    })
    .run(|union| {
        for (name, count, length) in [("many", 250, 8), ("long", 1, 3000), ("dir", 20, 100)] {
            for n in 0..count {
                let key = format!("user.{}{n:04}", "k".repeat(200));
                let value = vec![b'v'; length];
                let set = rustix::fs::lsetxattr(union.at(name), &*key, &value, rustix::fs::XattrFlags::empty());
                match set {
                    Ok(()) => assert_eq!(union.merged().get_xattr(name, &key), Some(value)),
                    // The file system of upper, or the list of names, has no room for more.
                    Err(errno) => {
                        let full = matches!(errno, Errno::NOSPC | Errno::TOOBIG | Errno::RANGE | Errno::DQUOT);
                        assert!(full, "{name}: {errno}");
                        break;
                    }
                }
            }
            let names = union.merged().xattr_names(name);
            assert!(!names.is_empty());
        }
        union.live_and_after_remount(|union| {
            assert_eq!(
                union.merged().get_xattr("long", &format!("user.{}0000", "k".repeat(200))).map(|v| v.len()),
                Some(3000)
            );
        });
    });
}

#[test]
fn a_lower_file_with_64_kib_of_xattrs_is_read_changed_and_removed() {
    if !is_ours("the process is ours") {
        return;
    }
    for mode in modes() {
        let _watchdog = Watchdog::start();
        let layers = Layers::new(2, mode.placement);
        // Both on a tmpfs, which takes values and lists as long as the kernel does.
        let Ok(_disk) = crate::support::Tmpfs::mount(&layers.path("disk"), "mode=755") else {
            record_skip(&test_name(), "values of 64 KiB need a tmpfs, which cannot be mounted");
            return;
        };
        let tree = crate::support::Tree::at(layers.path("disk"));
        tree.dir("lower")
            .dir("upper")
            .dir("work")
            .file("lower/d/f", "data")
            .file("lower/value", "data")
            .dir("lower/names");
        let mut spec = layers.spec(mode.io);
        (spec.lowers, spec.upper, spec.work) =
            (vec![tree.path("lower")], Some(tree.path("upper")), Some(tree.path("work")));
        let set = |name: &str, key: &str, value: &[u8]| {
            rustix::fs::lsetxattr(tree.path(name), key, value, rustix::fs::XattrFlags::empty())
        };
        let long = vec![7; 1 << 16];
        if set("lower/value", "user.long", &long).is_err() {
            record_skip(&test_name(), "this tmpfs has no user xattrs (Linux 6.6)");
            return;
        }
        // The names of the list are 64 KiB in all, or as near as it gets.
        for name in ["lower/names", "lower/d/f"] {
            for n in 0..260 {
                let _full = set(name, &format!("user.{}{n:04}", "k".repeat(240)), b"v");
            }
        }
        let key = "trusted.overlay.redirect";
        let garbage = set("lower/d", key, &long);
        let lowers = LowersUnchanged::new(&spec.lowers);
        let mut mount = spec.mount_ours();
        let merged = mount.tree();
        assert_eq!(merged.get_xattr("value", "user.long").map(|value| value.len()), Some(1 << 16));
        merged.file("value", "changed");
        assert_eq!(merged.get_xattr("value", "user.long"), Some(long.clone()));
        if garbage.is_ok() {
            // It leads nowhere, in the lowest layer as in any other.
            assert_eq!(errno(fs::metadata(merged.path("d"))), Errno::IO);
        } else {
            assert!(merged.xattr_names("d/f").len() > 200);
            merged.file("d/f", "changed");
        }
        fs::remove_dir(merged.path("names")).expect("it can be removed");
        is_small(&mount, 64 << 10);
        mount.unmount().expect("the union can be unmounted");
        lowers.check();
    }
}

#[test]
fn deep_chains_of_redirects_and_opaque_directories_end() {
    const LAYERS: usize = 40;
    const DEEP: usize = 60;
    trap(LAYERS, |layers| {
        for n in 0..LAYERS - 1 {
            let tree = layers.lower(n);
            // Each layer leads the one below to another name, and every third ends the way.
            tree.dir("at0").overlay_xattr("at0", "redirect", format!("/at{}", n + 1));
            tree.dir(format!("at{n}")).file(format!("at{n}/own{n:02}"), "");
            if n > 0 {
                tree.overlay_xattr(format!("at{n}"), "redirect", format!("/at{}", n + 1));
            }
            let deep: PathBuf = (0..DEEP).map(|_| "d").collect();
            tree.file(deep.join(format!("f{n:02}")), "");
            if n == 20 {
                tree.opaque(deep.parent().expect("it is deep"));
            }
            // A directory of every level that is said to be its own parent.
            tree.dir("loop/in").overlay_xattr("loop/in", "redirect", "/loop");
        }
        layers.lower(LAYERS - 1).file(format!("at{}/last", LAYERS - 1), "").file("loop/f", "");
    })
    .run(|union| {
        union.live_and_after_remount(|union| {
            let names = union.merged().names("at0");
            assert!(names.contains(&"own00".to_owned()), "{names:?}");
            let deep: PathBuf = (0..DEEP).map(|_| "d").collect();
            let names = union.merged().names(&deep);
            assert_eq!((names.len(), names[0].as_str(), names[20].as_str()), (21, "f00", "f20"));
            // As many levels as there are layers, and then no more.
            let mut at = union.at("loop");
            let mut levels = 0;
            while fs::symlink_metadata(at.join("in")).is_ok() {
                at.push("in");
                levels += 1;
            }
            assert!((1..LAYERS).contains(&levels), "{levels}");
            assert!(fs::metadata(at.join("f")).is_ok_and(|file| file.size() == 0), "the lowest layer shows");
        });
    });
}

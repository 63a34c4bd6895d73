//! What is removed stays away, and what comes in its place shows nothing of it.

use std::collections::BTreeSet;
use std::fs;
use std::mem::MaybeUninit;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::union::{Union, errno, is_ours, trap};
use crate::support::{Layers, LowersUnchanged, Tree, Watchdog, modes, on_kernel, require_root};

/// An image with /d/a and /d/sub/b, over two layers that both know the directory.
fn image(layers: &Layers) {
    layers.lower(0).file("d/a", "a");
    layers.lower(1).file("d/sub/b", "b").file("other", "other");
}

#[test]
fn a_directory_removed_and_made_again_holds_what_is_new_alone() {
    trap(2, image).run(|union| {
        fs::remove_dir_all(union.at("d")).expect("rm -rf /d");
        fs::create_dir(union.at("d")).expect("mkdir /d");
        fs::write(union.at("d/new"), "new\n").expect("echo >/d/new");
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names("d"), ["new"]);
            assert!(!union.merged().exists("d/a") && !union.merged().exists("d/sub"));
            assert_eq!(union.upper().names("d"), ["new"]);
            assert!(union.upper().is_opaque("d"));
        });
        // Made again below as well, it must not find what was there.
        fs::create_dir(union.at("d/sub")).expect("mkdir /d/sub");
        fs::remove_file(union.at("d/new")).expect("rm /d/new");
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names("d"), ["sub"]);
            assert_eq!(union.merged().names("d/sub"), Vec::<String>::new());
        });
    });
}

#[test]
fn a_container_run_from_the_committed_layer_sees_what_is_new_alone() {
    trap(2, image).run(|union| {
        fs::remove_dir_all(union.at("d")).expect("rm -rf /d");
        fs::create_dir(union.at("d")).expect("mkdir /d");
        fs::write(union.at("d/new"), "new\n").expect("echo >/d/new");
        // The upper is committed as a layer of the next image.
        union.mount.unmount().expect("the union can be unmounted");
        let mut spec = union.layers.spec(union.io);
        spec.lowers.insert(0, union.layers.path("upper"));
        for (path, name) in [(&mut spec.upper, "upper2"), (&mut spec.work, "work2")] {
            let dir = union.layers.path(name);
            fs::create_dir(&dir).expect("the test directory can be written");
            *path = Some(dir);
        }
        let mut next = spec.mount();
        assert_eq!(next.tree().names("d"), ["new"]);
        assert_eq!(next.tree().names(""), ["d", "other"]);
        fs::remove_dir_all(next.path().join("d")).expect("rm -rf /d");
        fs::create_dir(next.path().join("d")).expect("mkdir /d");
        next.remount();
        assert_eq!(next.tree().names("d"), Vec::<String>::new());
        next.unmount().expect("the union can be unmounted");
    });
}

#[test]
fn a_removed_directory_stays_away_whatever_takes_its_place() {
    trap(2, image).run(|union| {
        fs::remove_dir_all(union.at("d")).expect("rm -rf /d");
        union.live_and_after_remount(|union| {
            assert!(!union.merged().exists("d"));
            assert!(union.upper().is_whiteout("d"));
        });
        fs::write(union.at("d"), "file").expect("a file takes the place");
        union.live_and_after_remount(|union| assert_eq!(union.merged().read("d"), b"file"));
        fs::remove_file(union.at("d")).expect("the file can be removed");
        fs::create_dir(union.at("made")).expect("a directory can be made");
        fs::write(union.at("made/x"), "x").expect("a file can be made");
        fs::rename(union.at("made"), union.at("d")).expect("a directory takes the place");
        union.live_and_after_remount(|union| assert_eq!(union.merged().names("d"), ["x"]));
    });
}

#[test]
fn a_directory_of_whiteouts_alone_is_empty_and_one_with_a_lower_entry_is_not() {
    trap(2, image).run(|union| {
        assert_eq!(errno(fs::remove_dir(union.at("d"))), Errno::NOTEMPTY);
        fs::remove_file(union.at("d/a")).expect("a file can be removed");
        assert_eq!(errno(fs::remove_dir(union.at("d"))), Errno::NOTEMPTY);
        assert_eq!(errno(fs::remove_dir(union.at("d/sub"))), Errno::NOTEMPTY);
        fs::create_dir(union.at("e")).expect("a directory can be made");
        assert_eq!(errno(fs::rename(union.at("e"), union.at("d"))), Errno::NOTEMPTY);
        fs::remove_file(union.at("d/sub/b")).expect("a file can be removed");
        fs::remove_dir(union.at("d/sub")).expect("it is empty");
        // What replaces it must not show what its whiteouts hid.
        fs::rename(union.at("e"), union.at("d")).expect("it is empty");
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names("d"), Vec::<String>::new());
            assert!(!union.merged().exists("d/a") && !union.merged().exists("d/sub"));
        });
        fs::remove_dir(union.at("d")).expect("it is empty");
        union.live_and_after_remount(|union| assert_eq!(union.merged().names(""), ["other"]));
    });
}

#[test]
fn a_file_made_and_removed_in_the_upper_alone_leaves_no_whiteout() {
    trap(1, |layers| {
        layers.lower(0).file("d/lower", "lower");
    })
    .run(|union| {
        for name in ["new", "d/new"] {
            fs::write(union.at(name), "new").expect("a file can be made");
            fs::remove_file(union.at(name)).expect("a file can be removed");
        }
        fs::create_dir_all(union.at("made/sub")).expect("directories can be made");
        fs::remove_dir_all(union.at("made")).expect("directories can be removed");
        assert_eq!(union.upper().names(""), ["d"]);
        assert_eq!(union.upper().names("d"), Vec::<String>::new());
    });
}

#[test]
fn mknod_of_a_whiteout_is_refused() {
    trap(1, |layers| {
        layers.lower(0).file("d/lower", "lower");
    })
    .run(|union| {
        for name in ["new", "d/new"] {
            let made = rustix::fs::mknodat(CWD, union.at(name), FileType::CharacterDevice, Mode::from(0o644), 0);
            assert!(matches!(made, Err(Errno::PERM | Errno::INVAL)), "mknod {name}: {made:?}");
            assert_eq!(errno(fs::symlink_metadata(union.at(name))), Errno::NOENT);
            assert!(!union.upper().exists(name));
        }
    });
}

/// Lists a directory with a small buffer and calls `act` on each name as it comes.
fn list_slowly(path: &Path, mut act: impl FnMut(&str)) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(path, flags, Mode::empty()).expect("a directory can be opened");
    let mut buffer = [MaybeUninit::uninit(); 512];
    let mut entries = RawDir::new(&dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry.expect("a directory can be listed");
        let name = entry.file_name().to_str().expect("the test's names are text").to_owned();
        if name != "." && name != ".." {
            act(&name);
        }
    }
}

fn many(tree: &Tree, prefix: &str, count: usize) -> BTreeSet<String> {
    let names: BTreeSet<String> = (0..count).map(|number| format!("{prefix}-{number:04}")).collect();
    for name in &names {
        tree.file(Path::new("d").join(name), "");
    }
    names
}

#[test]
fn entries_removed_while_a_directory_is_read_are_each_seen_once() {
    trap(2, |layers| {
        many(&layers.lower(0), "shared", 100);
        many(&layers.lower(1), "shared", 100);
        many(&layers.lower(1), "lower", 300);
        many(&layers.upper(), "upper", 300);
    })
    .run(|union| {
        assert_eq!(union.merged().names("d").len(), 700);
        let mut seen = BTreeSet::new();
        list_slowly(&union.at("d"), |name| {
            assert!(seen.insert(name.to_owned()), "{name} comes twice");
            fs::remove_file(union.at("d").join(name)).unwrap_or_else(|error| panic!("rm {name}: {error}"));
        });
        assert_eq!(seen.len(), 700);
        union.live_and_after_remount(|union| assert_eq!(union.merged().names("d"), Vec::<String>::new()));
        fs::remove_dir(union.at("d")).expect("the directory is empty");
        union.live_and_after_remount(|union| assert_eq!(union.merged().names(""), Vec::<String>::new()));
    });
}

#[test]
fn entries_that_stay_are_seen_once_while_others_come_and_go() {
    let stay = |union: &Union| -> BTreeSet<String> {
        union.merged().names("d").into_iter().filter(|name| name.starts_with("stay")).collect()
    };
    trap(2, |layers| {
        many(&layers.lower(1), "stay-lower", 200);
        many(&layers.upper(), "stay-upper", 200);
        many(&layers.lower(0), "go", 200);
    })
    .run(|union| {
        let expected = stay(union);
        let (mut seen, mut count) = (BTreeSet::new(), 0);
        list_slowly(&union.at("d"), |name| {
            if name.starts_with("stay") {
                assert!(seen.insert(name.to_owned()), "{name} comes twice");
            }
            if count < 200 {
                fs::remove_file(union.at(format!("d/go-{count:04}"))).expect("a file can be removed");
                fs::write(union.at(format!("d/come-{count:04}")), "").expect("a file can be made");
                // Moved, and so copied up, while it may or may not have been listed.
                let moved = format!("d/come-{count:04}");
                fs::rename(union.at(&moved), union.at(format!("{moved}-moved"))).expect("a file can be moved");
            }
            count += 1;
        });
        assert_eq!(seen, expected);
        union.live_and_after_remount(|union| {
            assert_eq!(stay(union), expected);
            let (gone, come): (Vec<_>, Vec<_>) = union
                .merged()
                .names("d")
                .into_iter()
                .filter(|name| !name.starts_with("stay"))
                .partition(|name| name.starts_with("go"));
            assert_eq!((gone.len(), come.len()), (0, 200));
        });
    });
}

#[test]
fn a_removed_directory_that_is_still_open_is_empty_and_takes_nothing() {
    trap(2, image).run(|union| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(union.at("d"), flags, Mode::empty()).expect("a directory can be opened");
        let before = rustix::fs::fstat(&dir).expect("fstat");
        fs::remove_dir_all(union.at("d")).expect("a tree can be removed");
        let stat = rustix::fs::fstat(&dir).expect("fstat after rmdir");
        // The kernel's overlayfs goes on giving a merged directory its usual 1.
        let nlink = if on_kernel() { 1 } else { 0 };
        assert_eq!((stat.st_ino, stat.st_nlink), (before.st_ino, nlink));
        let made =
            rustix::fs::openat(&dir, "new", OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC, Mode::from(0o644));
        assert_eq!(made.expect_err("a removed directory takes nothing"), Errno::NOENT);
        assert_eq!(rustix::fs::mkdirat(&dir, "new", Mode::from(0o755)), Err(Errno::NOENT));
        assert_eq!(rustix::fs::statat(&dir, "a", AtFlags::empty()).map(|_| ()), Err(Errno::NOENT));
        // Its successor is another directory.
        fs::create_dir(union.at("d")).expect("a directory can be made");
        fs::write(union.at("d/new"), "new").expect("a file can be made");
        assert_eq!(rustix::fs::statat(&dir, "new", AtFlags::empty()).map(|_| ()), Err(Errno::NOENT));
        drop(dir);
        union.live_and_after_remount(|union| assert_eq!(union.merged().names("d"), ["new"]));
    });
}

#[test]
fn an_upper_without_xattrs_keeps_removed_entries_away_too() {
    if !is_ours("it hides nothing behind a directory made again without its opaque xattr") || !require_root("a ramfs") {
        return;
    }
    for mode in modes() {
        eprintln!("--- {mode:?}");
        let _watchdog = Watchdog::start();
        let layers = Layers::new(2, mode.placement);
        image(&layers);
        let lowers = LowersUnchanged::new(layers.lowers());
        // The one file system of Linux that is always there and has no xattrs. Dropped after the mount.
        let disk = Ramfs::mount(layers.path("ramfs"));
        let mut spec = layers.spec(mode.io);
        (spec.upper, spec.work) = (Some(disk.dir("upper")), Some(disk.dir("work")));
        let mut mount = spec.mount();
        fs::remove_dir_all(mount.path().join("d")).expect("a directory can be removed");
        fs::create_dir(mount.path().join("d")).expect("a directory can be made");
        fs::rename(mount.path().join("other"), mount.path().join("d/moved")).expect("a file can be moved");
        for _ in 0..2 {
            assert_eq!(mount.tree().names(""), ["d"]);
            assert_eq!(mount.tree().names("d"), ["moved"]);
            assert_eq!(mount.tree().read("d/moved"), b"other");
            mount.remount();
        }
        mount.unmount().expect("the union can be unmounted");
        lowers.check();
    }
}

/// A ramfs that is unmounted when it goes.
struct Ramfs(PathBuf);

impl Ramfs {
    fn mount(at: PathBuf) -> Self {
        fs::create_dir(&at).expect("the test directory can be written");
        rustix::mount::mount("ramfs", &at, "ramfs", MountFlags::empty(), None).expect("root may mount a ramfs");
        Self(at)
    }

    fn dir(&self, name: &str) -> PathBuf {
        fs::create_dir(self.0.join(name)).expect("a new disk has space");
        self.0.join(name)
    }
}

impl Drop for Ramfs {
    fn drop(&mut self) {
        if let Err(errno) = rustix::mount::unmount(&self.0, UnmountFlags::DETACH) {
            eprintln!("cannot unmount the ramfs {}: {errno}", self.0.display());
        }
    }
}

#[test]
fn a_directory_whose_mode_keeps_its_owner_out_is_removed_and_replaced() {
    trap(1, |layers| _ = layers.lower(0).dir("below").dir("emptied").file("whiteout/gone", "").dir("target")).run(
        |union| {
            fs::create_dir(union.at("new")).expect("a directory can be made");
            fs::remove_file(union.at("whiteout/gone")).expect("a file can be removed");
            for name in ["new", "below", "emptied", "whiteout", "target"] {
                let mode = if name == "emptied" { 0o555 } else { 0 };
                fs::set_permissions(union.at(name), fs::Permissions::from_mode(mode)).expect("the owner may");
            }
            for name in ["new", "below", "emptied"] {
                fs::remove_dir(union.at(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
            }
            for name in ["whiteout", "target"] {
                fs::create_dir(union.at("source")).expect("a directory can be made");
                fs::rename(union.at("source"), union.at(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
            }
            union.live_and_after_remount(|union| {
                assert_eq!(union.merged().names(""), ["target", "whiteout"]);
                assert_eq!(union.merged().names("whiteout"), Vec::<String>::new());
            });
        },
    );
}

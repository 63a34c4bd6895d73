//! Origins and entries of the index that name what they are not copies of.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use unionfs_rs::layer::origin::Origin;
use unionfs_rs::sys::fhandle;

use super::stage::{CANARY, Outside, is_from_outside, number};
use crate::support::{Layers, LowersUnchanged, Mounted, Watchdog, modes};
use crate::union::is_ours;

/// Returns what an origin of `path` is, as the kernel and a union write it.
fn origin_of(path: &Path) -> Option<Origin> {
    let parent = rustix::fs::open(path.parent()?, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).ok()?;
    let uuid = fhandle::filesystem_uuid(parent.as_fd()).unwrap_or_default();
    Some(Origin { uuid, handle: fhandle::name_to_handle(parent.as_fd(), path.file_name()?).ok()? })
}

/// What somebody puts under the name of an entry of the index.
#[derive(Debug, Clone, Copy)]
enum Put {
    Link,
    HardLink,
    Pipe,
    Directory,
    File,
}

#[test]
fn an_entry_of_the_index_that_is_no_copy_is_left_aside() {
    if !is_ours("it checks its index at the mount") {
        return;
    }
    for mode in modes() {
        for put in [Put::Link, Put::HardLink, Put::Pipe, Put::Directory, Put::File] {
            eprintln!("--- {mode:?}, {put:?}");
            let _watchdog = Watchdog::start();
            let layers = Layers::new(1, mode.placement);
            let outside = Outside::new(&layers);
            layers.lower(0).file("a", "linked").link("a", "b").file("other", "other");
            let Some(entry) = origin_of(&layers.lower(0).path("a")).and_then(|origin| origin.index_name()) else {
                crate::skip!("the file system of the lower has no handles");
            };
            layers.work().dir("index");
            let at = layers.work().path("index").join(&entry);
            match put {
                Put::Link => symlink(outside.path("secret"), &at).expect("the workdir is ours"),
                // It has another time of change by that, as any link has.
                Put::HardLink => fs::hard_link(outside.path("secret"), &at).expect("the workdir is ours"),
                Put::Pipe => {
                    rustix::fs::mknodat(CWD, &at, FileType::Fifo, Mode::from(0o666), 0).expect("the workdir is ours");
                }
                Put::Directory => fs::create_dir(&at).expect("the workdir is ours"),
                Put::File => fs::write(&at, CANARY).expect("the workdir is ours"),
            }
            let secret = fs::metadata(outside.path("secret")).expect("it is there");
            let lowers = LowersUnchanged::new(layers.lowers());
            let mut mount = layers.spec(mode.io).mount_ours();
            let merged = mount.tree();
            for name in ["a", "b"] {
                // All of it where an entry that nothing leads to was replaced by the copy.
                let read = merged.read(name);
                assert!(read == b"linked" || read == b"linked and changed", "{name}: {read:?}");
                assert!(merged.stat(name).is_file());
                // A change may be refused while the entry is in the way; it never goes where the entry leads.
                let written = fs::OpenOptions::new().append(true).open(merged.path(name)).and_then(|mut file| {
                    std::io::Write::write_all(&mut file, b" and changed")?;
                    file.sync_all()
                });
                eprintln!("writing {name}: {written:?}");
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o606);
                eprintln!("chmod of {name}: {:?}", fs::set_permissions(merged.path(name), mode));
                let read = merged.read(name);
                assert!(read.starts_with(b"linked") && !is_from_outside(&read), "{name}");
            }
            assert_eq!(merged.read("other"), b"other");
            let log = mount.log();
            assert!(log.contains("is no copy of the lower file"), "{log}");
            mount.unmount().expect("the union can be unmounted");
            let now = fs::metadata(outside.path("secret")).expect("it is there");
            assert_eq!(fs::read(outside.path("secret")).expect("it is there"), CANARY.as_bytes());
            assert_eq!((now.mode(), now.mtime_nsec()), (secret.mode(), secret.mtime_nsec()));
            lowers.check();
            if !matches!(put, Put::HardLink) {
                outside.check();
            }
        }
    }
}

#[test]
fn an_origin_that_names_a_file_outside_shows_nothing_of_it() {
    for mode in modes() {
        let _watchdog = Watchdog::start();
        let layers = Layers::new(1, mode.placement);
        let outside = Outside::new(&layers);
        layers.lower(0).file("below", "below").file("hard", "hard").link("hard", "link");
        for (name, of) in [("f", "outside/secret"), ("g", "outside/dir"), ("h", "outside/pipe")] {
            layers.upper().file(name, "upper").overlay_xattr("", "impure", "y");
            let Some(value) = origin_of(&layers.path(of)).and_then(|origin| origin.encode()) else {
                crate::skip!("the file system of the test directory has no handles");
            };
            for (mark, value) in [("origin", &value[..]), ("nlink", b"L+3")] {
                layers.upper().overlay_xattr(name, mark, value);
            }
        }
        // And one that takes the number of another file of the layers.
        let own = origin_of(&layers.lower(0).path("hard")).and_then(|origin| origin.encode()).unwrap_or_default();
        layers.upper().file("thief", "upper").overlay_xattr("thief", "origin", &own);
        let lowers = LowersUnchanged::new(layers.lowers());
        let mut mount = layers.spec(mode.io).mount();
        let merged = mount.tree();
        for name in ["f", "g", "h", "thief"] {
            assert_eq!(merged.read(name), b"upper", "{name}");
            assert!(merged.stat(name).is_file(), "{name}");
            merged.file(name, "changed");
            fs::remove_file(merged.path(name)).expect("it can be removed");
        }
        for name in ["hard", "link"] {
            assert_eq!(merged.read(name), b"hard", "{name}");
        }
        assert_eq!(merged.read("below"), b"below");
        mount.unmount().expect("the union can be unmounted");
        lowers.check();
        outside.check();
    }
}

#[test]
fn a_file_keeps_its_place_in_the_index_where_nobody_has_forged_it() {
    for mode in modes() {
        let _watchdog = Watchdog::start();
        let layers = Layers::new(1, mode.placement);
        layers.lower(0).file("a", "linked").link("a", "b").link("a", "d/c");
        let lowers = LowersUnchanged::new(layers.lowers());
        let mut mount = layers.spec(mode.io).mount();
        mount.tree().file("a", "changed");
        for _ in 0..2 {
            for name in ["a", "b", "d/c"] {
                assert_eq!(mount.tree().read(name), b"changed", "{name}");
                assert_eq!(mount.tree().stat(name).nlink(), 3, "{name}");
                assert_eq!(number(&mount.path().join(name)), number(&mount.path().join("a")));
            }
            mount.remount();
        }
        mount.unmount().expect("the union can be unmounted");
        lowers.check();
        assert!(!layers.work().names(OsStr::new("index")).is_empty());
    }
}

//! Names of every shape: `.wh.` names, names of every byte, and what the log makes of them.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, RenameFlags};
use rustix::io::Errno;

use crate::support::{Layers, LowersUnchanged, Mounted, Placement, Tree, Watchdog, modes};
use crate::union::{Union, errno, is_ours, trap};

/// `.wh.` names that hide nothing, or something that cannot be.
fn odd() -> Vec<String> {
    let long = |length: usize| format!(".wh.{}", "n".repeat(length - 4));
    [".wh.", ".wh..", ".wh...", ".wh..wh.", ".wh..wh..opq2", ".wh..wh.x", ".wh..wh.plnk", ".wh..wh..wh..opq", ".wh. "]
        .into_iter()
        .map(str::to_owned)
        .chain([long(251), long(254), long(255)])
        .collect()
}

fn fill_below(tree: &Tree) {
    tree.file("d/kept", "kept").file("d/gone", "gone").file("wh", "wh").file(".wh", ".wh").file(".w", ".w");
    tree.file("d/.wha", "kept")
        .file("n".repeat(247), "gone")
        .file("n".repeat(251), "gone")
        .file("n".repeat(252), "kept");
}

/// Asserts that no `.wh.` name shows or can be used, anywhere.
fn none_shows(union: &Union) {
    for dir in ["", "d"] {
        let names = union.merged().names(dir);
        assert!(names.iter().all(|name| !name.starts_with(".wh.")), "{names:?}");
        for name in odd() {
            assert_eq!(errno(fs::symlink_metadata(union.at(dir).join(&name))), Errno::NOENT, "{name}");
        }
    }
}

#[test]
fn dot_wh_names_of_every_shape_hide_what_they_name_and_never_show() {
    if !is_ours("to it they are plain files") {
        return;
    }
    for place in ["lower", "upper"] {
        for directories in [false, true] {
            eprintln!("--- in the {place}, as directories: {directories}");
            trap(2, |layers| {
                fill_below(&layers.lower(1));
                let tree = if place == "lower" { layers.lower(0) } else { layers.upper() };
                tree.dir("d").file("d/.wh.gone", "");
                for (dir, name) in odd().iter().flat_map(|name| ["", "d"].map(|dir| (dir, name))) {
                    let path = Path::new(dir).join(name);
                    if directories {
                        tree.file(path.join("inside"), "inside");
                    } else {
                        tree.file(path, "what a mark holds means nothing");
                    }
                }
            })
            .run(|union| {
                union.live_and_after_remount(|union| {
                    none_shows(union);
                    assert_eq!(union.merged().names("d"), [".wha", "kept"]);
                    assert_eq!(union.merged().read("d/kept"), b"kept");
                    let kept = "n".repeat(252);
                    assert_eq!(union.merged().names(""), [".w", ".wh", "d", kept.as_str(), "wh"]);
                    assert_eq!(errno(fs::read(union.at("d/.wh.gone"))), Errno::NOENT);
                });
                fs::remove_dir_all(union.at("d")).expect("what does not show is in nobody's way");
                fs::create_dir(union.at("d")).expect("the name is free");
                union.live_and_after_remount(|union| assert_eq!(union.merged().names("d"), [""; 0]));
            });
        }
    }
}

#[test]
fn regression_what_takes_a_name_that_a_directory_hides_shows_at_once() {
    if !is_ours("to it they are plain files") {
        return;
    }
    trap(1, |layers| {
        for name in ["made", "dir", "linked", "moved", "over"] {
            layers.lower(0).file(name, "hidden");
            layers.upper().file(format!(".wh.{name}/in/side"), "");
        }
        layers.lower(0).file("f", "lower");
    })
    .run(|union| {
        // A listing is kept from here on.
        assert_eq!(union.merged().names(""), ["f"]);
        fs::write(union.at("made"), "made").expect("the name is free");
        fs::create_dir(union.at("dir")).expect("the name is free");
        symlink("made", union.at("over")).expect("the name is free");
        fs::hard_link(union.at("made"), union.at("linked")).expect("the name is free");
        fs::rename(union.at("f"), union.at("moved")).expect("the name is free");
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names(""), ["dir", "linked", "made", "moved", "over"]);
            assert_eq!(union.merged().read("moved"), b"lower");
            assert_eq!(union.merged().names("dir"), [""; 0]);
        });
    });
}

#[test]
fn a_dot_wh_opq_of_any_kind_makes_its_directory_opaque_and_a_link_of_that_name_is_not_followed() {
    if !is_ours("to it they are plain files") {
        return;
    }
    for kind in ["file", "directory", "link", "pipe", "device"] {
        eprintln!("--- {kind}");
        trap(2, |layers| {
            let name = "d/.wh..wh..opq";
            layers.lower(1).file("d/below", "below");
            let tree = layers.lower(0);
            tree.file("d/above", "above");
            match kind {
                "file" => tree.file(name, ""),
                "directory" => tree.dir(name),
                "link" => tree.symlink(name, "/nowhere"),
                "pipe" => tree.fifo(name),
                _ => tree.whiteout(name),
            };
        })
        .run(|union| union.live_and_after_remount(|union| assert_eq!(union.merged().names("d"), ["above"])));
    }
}

#[test]
fn no_dot_wh_name_can_be_made_by_any_call() {
    if !is_ours("to it they are plain files") {
        return;
    }
    trap(1, |layers| {
        layers.lower(0).file("f", "lower").file("d/x", "x");
    })
    .run(|union| {
        let names = odd().into_iter().chain([".wh.f".into(), ".wh.d".into(), ".wh..wh..opq".into()]);
        for name in names {
            for dir in ["", "d"] {
                let path = union.at(dir).join(&name);
                assert_eq!(errno(fs::write(&path, "")), Errno::INVAL, "{name}");
                assert_eq!(errno(fs::create_dir(&path)), Errno::INVAL, "{name}");
                assert_eq!(errno(symlink("f", &path)), Errno::INVAL, "{name}");
                assert_eq!(errno(fs::hard_link(union.at("f"), &path)), Errno::INVAL, "{name}");
                assert_eq!(errno(fs::rename(union.at("f"), &path)), Errno::INVAL, "{name}");
                assert_eq!(errno(fs::rename(union.at("d"), &path)), Errno::INVAL, "{name}");
                let pipe = rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from(0o644), 0);
                assert_eq!(pipe, Err(Errno::INVAL), "{name}");
                let exchange = rustix::fs::renameat_with(CWD, union.at("f"), CWD, &path, RenameFlags::EXCHANGE);
                assert!(matches!(exchange, Err(Errno::INVAL | Errno::NOENT)), "{name}: {exchange:?}");
                assert_eq!(errno(fs::remove_file(&path)), Errno::NOENT, "{name}");
                assert_eq!(errno(fs::remove_dir(&path)), Errno::NOENT, "{name}");
            }
        }
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names(""), ["d", "f"]);
            assert_eq!(union.merged().names("d"), ["x"]);
        });
        assert!(union.upper().names("").iter().all(|name| !name.starts_with(".wh.")));
    });
}

/// A name with each byte that a name can have, and some that are hard to show.
fn strange() -> Vec<OsString> {
    let bytes = (1..=255_u8).filter(|byte| *byte != b'/');
    let single = bytes.clone().filter(|byte| *byte != b'.').map(|byte| vec![byte]);
    let inside = bytes.clone().filter(|byte| !byte.is_ascii_alphanumeric()).map(|byte| vec![b'a', byte, b'b']);
    let all: Vec<u8> = bytes.collect();
    let long = all.iter().copied().cycle().take(255).collect();
    let more = [
        all[..127].to_vec(),
        all[127..].to_vec(),
        long,
        b"\xff\xfe".to_vec(),
        b"\xc0\xaf".to_vec(),
        b"\xed\xa0\x80".to_vec(),
        b"...".to_vec(),
        b"..a".to_vec(),
        b"\x1b]0;title\x07".to_vec(),
        b"line\nINFO forged line".to_vec(),
        b" ".to_vec(),
        b"-rf".to_vec(),
    ];
    let mut names: Vec<OsString> = single.chain(inside).chain(more).map(OsString::from_vec).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn listed(dir: &Path) -> Vec<OsString> {
    let entries = fs::read_dir(dir).expect("it can be listed");
    let mut names: Vec<OsString> = entries.map(|entry| entry.expect("it can be listed").file_name()).collect();
    names.sort_unstable();
    names
}

#[test]
fn names_of_every_byte_are_read_changed_made_moved_and_removed() {
    trap(2, |layers| {
        for name in strange() {
            layers.lower(1).file(Path::new("files").join(&name), name.as_bytes());
            layers.lower(0).file(Path::new("dirs").join(&name).join(&name), name.as_bytes());
            layers.upper().symlink(Path::new("links").join(&name), &name);
        }
        layers.lower(0).dir("new").dir("moved");
    })
    .run(|union| {
        let names = strange();
        for dir in ["files", "dirs", "links"] {
            assert!(listed(&union.at(dir)) == names, "{dir}");
        }
        for name in &names {
            let at = |dir: &str| union.at(dir).join(name);
            assert_eq!(fs::read(at("files")).expect("it is there"), name.as_bytes());
            assert_eq!(fs::read(at("dirs").join(name)).expect("it is there"), name.as_bytes());
            assert_eq!(fs::read_link(at("links")).expect("it is a link").as_os_str(), name);
            fs::write(at("files"), "changed").expect("a file is copied up");
            fs::write(at("new"), "new").expect("a file can be made");
            fs::rename(at("dirs"), at("moved")).expect("a directory can be moved");
            fs::remove_file(at("links")).expect("a link can be removed");
        }
        union.live_and_after_remount(|union| {
            assert!(listed(&union.at("files")) == names && listed(&union.at("new")) == names);
            assert!(listed(&union.at("moved")) == names);
            assert!(listed(&union.at("dirs")).is_empty() && listed(&union.at("links")).is_empty());
            for name in &names {
                assert_eq!(fs::read(union.at("files").join(name)).expect("it is there"), b"changed");
                assert_eq!(fs::read(union.at("moved").join(name).join(name)).expect("it is there"), name.as_bytes());
                assert_eq!(union.upper().read(Path::new("new").join(name)), b"new");
            }
        });
        for name in &names {
            fs::remove_file(union.at("files").join(name)).expect("a file can be removed");
        }
        union.live_and_after_remount(|union| assert!(listed(&union.at("files")).is_empty()));
    });
}

#[test]
fn a_line_of_the_log_is_one_line_and_has_no_character_that_a_terminal_obeys() {
    if !is_ours("it logs nothing of the kind") {
        return;
    }
    let names =
        [&b"\x1b[2J\x1b]0;title\x07"[..], b"a\nERROR forged", b"a\rb", b"\x9b31m", b"\xc2\x9b31m", b"\x7f\x08\x08"];
    for mode in modes() {
        let _watchdog = Watchdog::start();
        let layers = Layers::new(2, Placement::OneFs);
        for (n, name) in names.iter().map(|name| OsStr::from_bytes(name)).enumerate() {
            // A redirect that is garbage, in a directory of a strange name, and a metacopy that is not followed.
            let dir = Path::new(name).join(name);
            layers.lower(0).dir(&dir).overlay_xattr(&dir, "redirect", "\x1b[31m/../x\n");
            let file = Path::new(name).join(format!("metacopy-{n}\x1b[1m"));
            layers.lower(0).sparse(&file, 4).overlay_xattr(&file, "metacopy", "");
        }
        let lowers = LowersUnchanged::new(layers.lowers());
        let mut mount = layers.spec(mode.io).mount_ours();
        for (n, name) in names.iter().map(|name| OsStr::from_bytes(name)).enumerate() {
            assert_eq!(errno(fs::metadata(mount.path().join(name).join(name))), Errno::IO);
            let file = mount.path().join(name).join(format!("metacopy-{n}\x1b[1m"));
            assert_eq!(errno(fs::read(file)), Errno::IO);
        }
        mount.unmount().expect("the union can be unmounted");
        let log = fs::read(layers.path("daemon.log")).expect("the daemon has written it");
        let text = String::from_utf8(log).expect("it is text whatever the names are");
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        assert!(!text.lines().any(|line| line.starts_with("ERROR forged")), "{text}");
        assert!(text.contains("redirect") && text.contains("metacopy"), "{text}");
        lowers.check();
    }
}

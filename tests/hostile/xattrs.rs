//! Overlay xattrs that were forged: through the mount, and in a layer by whoever owns it.

use std::fs;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::stage::{Outside, is_from_outside};
use crate::support::{Io, Layers, LowersUnchanged, Mounted, Placement, Privilege, Watchdog, modes, privilege};
use crate::union::{errno, is_ours, trap};

/// The prefixes under which a mount of anybody's reads marks.
fn prefixes() -> Vec<&'static str> {
    let root = (privilege() == Privilege::Root).then_some("trusted.overlay.");
    ["user.overlay.", "user.fuseoverlayfs."].into_iter().chain(root).collect()
}

/// What a mark is escaped to.
fn escaped(prefix: &str, mark: &str) -> String {
    format!("{prefix}overlay.{mark}")
}

const MARKS: [&str; 9] =
    ["opaque", "redirect", "origin", "impure", "nlink", "metacopy", "whiteout", "overlay.opaque", "unheard.of"];

#[test]
fn every_mark_that_is_set_through_the_mount_is_stored_escaped_and_read_back() {
    if !is_ours("it escapes those of its own namespace alone") {
        return;
    }
    trap(2, |layers| {
        layers.lower(0).file("d/a", "a").file("f", "lower");
        layers.lower(1).file("d/b", "b").file("other/secret", "secret").file("f", "below");
    })
    .run(|union| {
        for prefix in prefixes() {
            for (name, mark) in ["d", "f", ""].into_iter().flat_map(|name| MARKS.map(|mark| (name, mark))) {
                let key = format!("{prefix}{mark}");
                // Values that would mean something, and bytes of every kind.
                for value in [&b"y"[..], b"/other", b"", b"\0\xff\n\x1b[2J"] {
                    union.merged().xattr(name, &key, value);
                    assert_eq!(union.merged().get_xattr(name, &key).as_deref(), Some(value), "{key} of {name:?}");
                }
                union.merged().xattr(name, &key, "y");
                assert_eq!(union.upper().get_xattr(name, &escaped(prefix, mark)).as_deref(), Some(&b"y"[..]), "{key}");
            }
        }
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names("d"), ["a", "b"]);
            assert_eq!(union.merged().read("f"), b"lower");
            for prefix in prefixes() {
                for mark in MARKS {
                    let key = format!("{prefix}{mark}");
                    assert!(union.merged().xattr_names("f").contains(&key), "{key} is listed");
                    assert_eq!(union.merged().get_xattr("f", &key).as_deref(), Some(&b"y"[..]));
                }
            }
        });
    });
}

#[test]
fn a_mark_can_be_escaped_as_often_as_unions_are_nested() {
    if !is_ours("it escapes those of its own namespace alone") {
        return;
    }
    trap(1, |layers| {
        layers.lower(0).file("f", "lower");
    })
    .run(|union| {
        let mut key = "user.overlay.redirect".to_owned();
        for depth in 0..5 {
            union.merged().xattr("f", &key, depth.to_string());
            key = key.replacen("user.overlay.", "user.overlay.overlay.", 1);
        }
        union.live_and_after_remount(|union| {
            let mut key = "user.overlay.redirect".to_owned();
            for depth in 0..5 {
                assert_eq!(union.merged().get_xattr("f", &key), Some(depth.to_string().into_bytes()));
                key = key.replacen("user.overlay.", "user.overlay.overlay.", 1);
            }
        });
    });
}

/// Mounts with a mark of `lower`'s owner, and returns what using `name` answers, and the log.
fn with_mark(io: Io, key: &str, value: &str, name: &str, args: &[&str]) -> (Result<Vec<String>, Errno>, String) {
    let _watchdog = Watchdog::start();
    let layers = Layers::new(2, Placement::OneFs);
    let outside = Outside::new(&layers);
    layers.lower(1).file("other/secret", "in the layer").file("secret", "in the layer").file("f", "data").dir("d");
    layers.lower(0).dir("d").sparse("f", 4).file("good", "good");
    layers.lower(0).xattr(name, key, value);
    let lowers = LowersUnchanged::new(layers.lowers());
    let mut mount = layers.spec(io).args(args.iter().copied()).mount_ours();
    let path = layers.mnt().join(name);
    let seen = match fs::metadata(&path) {
        Err(error) => Err(errno::<()>(Err(error))),
        Ok(meta) if meta.is_dir() => Ok(mount.tree().names(name)),
        Ok(_) => match fs::read(&path) {
            Ok(data) => {
                assert!(!is_from_outside(&data));
                Ok(vec![String::from_utf8_lossy(&data).into_owned()])
            }
            Err(error) => Err(errno::<()>(Err(error))),
        },
    };
    assert_eq!(mount.tree().read("good"), b"good", "the rest works");
    let log = mount.log();
    mount.unmount().expect("the union can be unmounted");
    lowers.check();
    outside.check();
    (seen, log)
}

#[test]
fn what_a_user_forges_in_a_layer_leads_nowhere_and_the_log_names_the_option() {
    if !is_ours("it ignores the other namespaces") {
        return;
    }
    if privilege() != Privilege::Root {
        crate::skip!("a mount that reads trusted.* needs root");
    }
    for mode in modes() {
        for prefix in ["user.overlay.", "user.fuseoverlayfs."] {
            let key = |mark: &str| format!("{prefix}{mark}");
            for (mark, value, name) in [
                ("redirect", "/other", "d"),
                ("redirect", "../outside", "d"),
                ("metacopy", "", "f"),
                ("redirect", "/secret", "f"),
            ] {
                eprintln!("--- {mode:?}: {prefix}{mark}={value} of {name}");
                let (seen, log) = with_mark(mode.io, &key(mark), value, name, &["--metacopy", "on"]);
                assert_eq!(seen, Err(Errno::IO));
                let line = log.lines().find(|line| line.contains(&format!("{name:?}")));
                assert!(line.is_some_and(|line| line.contains("--xattr-namespace")), "{log}");
            }
            // What can only hide is believed, and what says nothing that a reader could be led by is not looked at.
            let (seen, _) = with_mark(mode.io, &key("opaque"), "y", "d", &[]);
            assert_eq!(seen, Ok(vec![]));
            for (mark, value) in [("origin", "garbage"), ("nlink", "U+9"), ("impure", "y")] {
                let (seen, _) = with_mark(mode.io, &key(mark), value, "f", &[]);
                assert_eq!(seen, Ok(vec!["\0".repeat(4)]), "{mark}");
            }
        }
    }
}

#[test]
fn a_redirect_of_the_mounts_own_namespace_stays_in_the_layers_or_is_eio() {
    if !is_ours("it answers otherwise") {
        return;
    }
    let key = if privilege() == Privilege::Root { "trusted.overlay.redirect" } else { "user.overlay.redirect" };
    for (value, expected) in [
        ("/other", Ok(vec!["secret".to_owned()])),
        ("other", Ok(vec!["secret".to_owned()])),
        // There is no such name in the layer below, whatever there is on the machine.
        ("/etc", Ok(vec![])),
        ("/proc", Ok(vec![])),
        ("../outside/dir", Err(Errno::IO)),
        ("/../outside/dir", Err(Errno::IO)),
        ("/other/../../outside/dir", Err(Errno::IO)),
        ("//etc", Err(Errno::IO)),
        (".", Err(Errno::IO)),
    ] {
        eprintln!("--- {value}");
        assert_eq!(with_mark(Io::Cached, key, value, "d", &[]).0, expected);
    }
    let (seen, log) = with_mark(Io::Cached, key, "/other", "d", &["--redirect-dir", "nofollow"]);
    assert_eq!(seen, Err(Errno::IO));
    assert!(log.contains("--redirect-dir follow"), "{log}");
}

#[test]
fn removing_what_is_hidden_or_escaped_takes_no_mark_away() {
    trap(2, |layers| {
        layers.lower(0).opaque("d").file("d/a", "a");
        layers.lower(1).file("d/hidden", "hidden");
    })
    .run(|union| {
        for prefix in prefixes() {
            for mark in ["opaque", "overlay.opaque"] {
                let removed = rustix::fs::lremovexattr(union.at("d"), format!("{prefix}{mark}"));
                assert_eq!(removed, Err(Errno::NODATA), "{prefix}{mark}");
            }
            let replaced = rustix::fs::lsetxattr(union.at("d"), format!("{prefix}opaque"), b"n", XattrFlags::REPLACE);
            assert_eq!(replaced, Err(Errno::NODATA), "{prefix}");
        }
        union.live_and_after_remount(|union| assert_eq!(union.merged().names("d"), ["a"]));
    });
}

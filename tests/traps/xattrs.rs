//! The overlay's own xattrs are nobody else's: unseen, and not to be forged through the mount.

use std::fs;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::union::{Union, is_ours, trap};
use crate::support::{Layers, Privilege, Tree, privilege, require_root};

/// The namespaces in which a layer is read.
const NAMESPACES: [&str; 3] = ["trusted.overlay.", "user.overlay.", "user.fuseoverlayfs."];

/// Those that this process may write at all.
fn writable_namespaces() -> &'static [&'static str] {
    if privilege() == Privilege::Root { &NAMESPACES } else { &NAMESPACES[1..] }
}

fn layers(layers: &Layers) {
    layers.lower(0).file("d/a", "a").file("f", "lower").dir("other");
    layers.lower(1).file("d/b", "b").file("other/secret", "secret").file("secret", "secret");
}

fn set(tree: &Tree, name: &str, key: &str, value: &str) -> Result<(), Errno> {
    rustix::fs::lsetxattr(tree.path(name), key, value.as_bytes(), XattrFlags::empty())
}

/// Whether a name that was set is what is seen, or refused.
fn seen_or_refused(union: &Union, name: &str, key: &str, value: &str) {
    let seen = union.merged().get_xattr(name, key);
    match set(&union.merged(), name, key, value) {
        Ok(()) => {
            assert_eq!(union.merged().get_xattr(name, key).as_deref(), Some(value.as_bytes()), "{key} of {name}");
            assert!(union.merged().xattr_names(name).contains(&key.to_owned()), "{key} of {name} is listed");
        }
        Err(errno) => {
            assert!(matches!(errno, Errno::PERM | Errno::OPNOTSUPP | Errno::ACCESS), "{key} of {name}: {errno}");
            assert_eq!(union.merged().get_xattr(name, key), seen, "{key} of {name}");
        }
    }
}

#[test]
fn overlay_xattrs_set_through_the_mount_mean_nothing_to_it() {
    if !is_ours("it reads its own namespace alone and refuses to escape what it cannot") {
        return;
    }
    trap(2, layers).run(|union| {
        for prefix in writable_namespaces() {
            eprintln!("--- {prefix}");
            let key = |name: &str| format!("{prefix}{name}");
            seen_or_refused(union, "d", &key("opaque"), "y");
            seen_or_refused(union, "d", &key("redirect"), "/other");
            seen_or_refused(union, "d", &key("origin"), "garbage");
            seen_or_refused(union, "f", &key("metacopy"), "");
            seen_or_refused(union, "f", &key("redirect"), "/secret");
            seen_or_refused(union, "f", &key("nlink"), "U+7");
            seen_or_refused(union, "f", &key("origin"), "garbage");
            fs::write(union.at(format!("empty-{prefix}")), "").expect("a file can be made");
            seen_or_refused(union, &format!("empty-{prefix}"), &key("whiteout"), "y");
        }
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names("d"), ["a", "b"]);
            assert_eq!(union.merged().read("f"), b"lower");
            assert_eq!(union.merged().stat("f").len(), 5);
            for prefix in writable_namespaces() {
                assert_eq!(union.merged().read(format!("empty-{prefix}")), b"");
            }
            assert!(!union.upper().is_opaque("d"));
        });
        // What was set comes off again.
        for prefix in writable_namespaces() {
            let key = format!("{prefix}opaque");
            if union.merged().get_xattr("d", &key).is_some() {
                rustix::fs::lremovexattr(union.at("d"), &*key).expect("a set xattr can be removed");
                assert_eq!(union.merged().get_xattr("d", &key), None);
            }
        }
        union.live_and_after_remount(|union| assert_eq!(union.merged().names("d"), ["a", "b"]));
    });
}

#[test]
fn an_overlay_xattr_set_through_the_mount_is_stored_escaped() {
    if !require_root("trusted xattrs") {
        return;
    }
    trap(2, layers).run(|union| {
        for (name, value) in [("d", "y"), ("f", "/secret")] {
            union.merged().xattr(name, "trusted.overlay.test", value);
            union.live_and_after_remount(|union| {
                let escaped = union.upper().get_xattr(name, "trusted.overlay.overlay.test");
                assert_eq!(escaped.as_deref(), Some(value.as_bytes()));
                assert_eq!(union.upper().get_xattr(name, "trusted.overlay.test"), None);
                let seen = union.merged().get_xattr(name, "trusted.overlay.test");
                assert_eq!(seen.as_deref(), Some(value.as_bytes()));
                assert_eq!(union.merged().xattr_names(name), ["trusted.overlay.test"]);
            });
        }
    });
}

/// Changes that make the mount write every kind of mark.
fn make_marks(union: &Union) {
    fs::write(union.at("f"), "changed").expect("a file is copied up");
    fs::rename(union.at("other"), union.at("moved")).expect("a directory can be moved");
    fs::remove_dir_all(union.at("d")).expect("a directory can be removed");
    fs::create_dir(union.at("d")).expect("a directory can be made");
    fs::hard_link(union.at("secret"), union.at("link")).expect("a file can be linked");
}

#[test]
fn the_marks_of_the_overlay_are_not_seen_through_the_mount() {
    trap(2, layers).run(|union| {
        make_marks(union);
        union.live_and_after_remount(|union| {
            // That there is something to be hidden.
            assert!(union.upper().is_opaque("d"));
            assert!(!union.upper().xattr_names("moved").is_empty());
            for name in ["", "d", "f", "moved", "secret", "link"] {
                assert_eq!(union.merged().xattr_names(name), Vec::<String>::new(), "of {name:?}");
                for (prefix, key) in
                    writable_namespaces().iter().flat_map(|p| ["opaque", "redirect", "origin"].map(|k| (p, k)))
                {
                    assert_eq!(
                        union.merged().get_xattr(name, &format!("{prefix}{key}")),
                        None,
                        "{prefix}{key} of {name:?}"
                    );
                }
            }
        });
    });
}

#[test]
fn removing_a_mark_through_the_mount_removes_nothing() {
    trap(2, layers).run(|union| {
        make_marks(union);
        for (name, prefix, key) in [("d", "opaque"), ("moved", "redirect")]
            .iter()
            .flat_map(|(n, k)| writable_namespaces().iter().map(move |p| (n, p, k)))
        {
            let removed = rustix::fs::lremovexattr(union.at(name), format!("{prefix}{key}"));
            assert_eq!(removed, Err(Errno::NODATA), "{prefix}{key} of {name}");
        }
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names("d"), Vec::<String>::new());
            assert_eq!(union.merged().names("moved"), ["secret"]);
        });
    });
}

#[test]
fn xattrs_of_a_lower_file_are_replaced_and_removed_in_the_upper() {
    trap(1, |layers| {
        layers.lower(0).file("f", "lower").xattr("f", "user.kept", "lower").xattr("f", "user.gone", "lower");
        layers.lower(0).dir("d").xattr("d", "user.kept", "lower");
    })
    .run(|union| {
        rustix::fs::lremovexattr(union.at("f"), "user.gone").expect("an xattr can be removed");
        union.merged().xattr("f", "user.new", "upper").xattr("d", "user.kept", "upper");
        assert_eq!(rustix::fs::lremovexattr(union.at("f"), "user.none"), Err(Errno::NODATA));
        let create = rustix::fs::lsetxattr(union.at("f"), "user.kept", b"", XattrFlags::CREATE);
        assert_eq!(create, Err(Errno::EXIST));
        let replace = rustix::fs::lsetxattr(union.at("f"), "user.none", b"", XattrFlags::REPLACE);
        assert_eq!(replace, Err(Errno::NODATA));
        let mut small = [0; 2];
        assert_eq!(rustix::fs::lgetxattr(union.at("f"), "user.kept", &mut small), Err(Errno::RANGE));
        union.live_and_after_remount(|union| {
            let merged = union.merged();
            assert_eq!(merged.xattr_names("f"), ["user.kept", "user.new"]);
            assert_eq!(merged.get_xattr("f", "user.kept").as_deref(), Some(&b"lower"[..]));
            assert_eq!(merged.get_xattr("d", "user.kept").as_deref(), Some(&b"upper"[..]));
            assert_eq!(union.upper().get_xattr("f", "user.gone"), None);
        });
    });
}

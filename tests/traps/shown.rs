//! What options show otherwise than it is stored: maps and squashes of owners, counts of names, numbers of inodes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

use super::acl::{ACCESS, DEFAULT, acl};
use super::owners::{STORES, can_run, owner, text};
use super::union::{as_user, errno, is_ours, shell, trap};
use crate::support::Layers;

const MAPPED: [&str; 4] = ["--uid-mapping", "0:1000:5000", "--gid-mapping", "0:2000:5000"];

#[test]
fn a_map_shows_the_hosts_ids_and_stores_the_containers() {
    if !can_run() {
        return;
    }
    trap(1, |layers| {
        layers
            .lower(0)
            .file("root", "x")
            .file("user", "x")
            .owner("user", 7, 8)
            .file("far", "x")
            .owner("far", 6000, 6000);
        layers.lower(0).dir_mode("tmp", 0o1777);
    })
    .mounted(|spec| spec.args(MAPPED))
    .run(|union| {
        let merged = union.merged();
        assert_eq!(owner(&merged, "root"), (1000, 2000));
        assert_eq!(owner(&merged, "user"), (1007, 2008));
        assert_eq!(owner(&merged, "far"), (65534, 65534));
        chown(union.at("root"), Some(1003), Some(2004)).expect("root may chown");
        for (uid, gid) in [(Some(999), None), (None, Some(1999)), (Some(6000), Some(2001))] {
            assert_eq!(errno(chown(union.at("user"), uid, gid)), rustix::io::Errno::INVAL);
        }
        fs::set_permissions(union.at("user"), fs::Permissions::from_mode(0o600)).expect("root may chmod");
        as_user(1009, || {
            fs::write(union.at("tmp/made"), "x").expect("everybody may");
            fs::create_dir(union.at("tmp/dir")).expect("everybody may");
            symlink("made", union.at("tmp/link")).expect("everybody may");
        });
        // Not in the sticky directory, where fs.protected_regular keeps root from opening what is not its own.
        fs::write(union.at("of-the-runtime"), "x").expect("root may");
        fs::rename(union.at("tmp/dir"), union.at("tmp/moved")).expect("root may");
        union.live_and_after_remount(|union| {
            let (merged, upper) = (union.merged(), union.upper());
            for (name, shown, stored) in [
                ("root", (1003, 2004), (3, 4)),
                ("user", (1007, 2008), (7, 8)),
                // Group 1009 has no place in the map.
                ("tmp/made", (1009, 65534), (9, 65534)),
                ("tmp/moved", (1009, 65534), (9, 65534)),
                ("tmp/link", (1009, 65534), (9, 65534)),
                ("of-the-runtime", (65534, 65534), (65534, 65534)),
            ] {
                assert_eq!((owner(&merged, name), owner(&upper, name)), (shown, stored), "{name}");
            }
            assert_eq!(owner(&upper, "tmp"), (0, 0));
            // The kernel goes by what is shown.
            assert_eq!(as_user(1007, || fs::read(union.at("user"))).expect("their own"), b"x");
            assert_eq!(errno(as_user(7, || fs::read(union.at("user")))), rustix::io::Errno::ACCESS);
        });
    });
}

#[test]
fn acls_name_the_users_that_the_map_shows() {
    if !can_run() {
        return;
    }
    trap(1, |layers| {
        layers.lower(0).file("f", "x").xattr("f", ACCESS, acl(6, (7, 4), 4, 4, 0));
        layers.lower(0).file("far", "x").xattr("far", ACCESS, acl(6, (70_000, 6), 4, 6, 0));
        layers.lower(0).dir("d").xattr("d", DEFAULT, acl(7, (9, 7), 5, 7, 0));
    })
    .mounted(|spec| spec.args(MAPPED))
    .run(|union| {
        assert_eq!(union.merged().get_xattr("f", ACCESS), Some(acl(6, (1007, 4), 4, 4, 0)));
        assert_eq!(as_user(1007, || fs::read(union.at("f"))).expect("the ACL lets them in"), b"x");
        union.merged().xattr("f", ACCESS, acl(6, (1005, 6), 4, 6, 0));
        fs::write(union.at("d/new"), "x").expect("root may");
        // Somebody that the map has no place for is shown as nobody, and without rights.
        assert_eq!(union.merged().get_xattr("far", ACCESS), Some(acl(6, (65534, 0), 4, 6, 0)));
        assert_eq!(errno(as_user(65534, || fs::read(union.at("far")))), rustix::io::Errno::ACCESS);
        let unmapped = acl(6, (5, 6), 4, 6, 0);
        let refused = rustix::fs::setxattr(union.at("f"), ACCESS, &unmapped, rustix::fs::XattrFlags::empty());
        assert_eq!(refused, Err(rustix::io::Errno::INVAL), "the map has no place for user 5");
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().get_xattr("f", ACCESS), Some(acl(6, (1005, 6), 4, 6, 0)));
            assert_eq!(union.upper().get_xattr("f", ACCESS), Some(acl(6, (5, 6), 4, 6, 0)));
            assert_eq!(union.merged().get_xattr("d/new", ACCESS), Some(acl(6, (1009, 7), 5, 6, 0)));
            assert_eq!(union.upper().get_xattr("d/new", ACCESS), Some(acl(6, (9, 7), 5, 6, 0)));
            assert_eq!(union.merged().get_xattr("d", DEFAULT), Some(acl(7, (1009, 7), 5, 7, 0)));
        });
    });
}

#[test]
fn a_map_and_xattr_permissions_go_together() {
    if !can_run() {
        return;
    }
    trap(1, |layers| {
        layers.lower(0).file("f", "x").owner("f", 7, 8);
    })
    .mounted(|spec| spec.args(MAPPED).args(["--xattr-permissions", "user"]))
    .run(|union| {
        fs::write(union.at("f"), "changed").expect("root may");
        union.merged().file("g", "x").owner("g", 1001, 2002);
        union.merged().xattr("g", ACCESS, acl(6, (1005, 6), 4, 6, 0));
        union.live_and_after_remount(|union| {
            let xattr = |name| text(union.upper().get_xattr(name, STORES[1].1));
            assert_eq!((owner(&union.merged(), "f"), xattr("f")), ((1007, 2008), Some("7:8:0644".into())));
            assert_eq!((owner(&union.merged(), "g"), xattr("g")), ((1001, 2002), Some("1:2:0660".into())));
            assert_eq!(union.merged().get_xattr("g", ACCESS), Some(acl(6, (1005, 6), 4, 6, 0)));
        });
    });
}

#[test]
fn a_squash_shows_one_owner_and_stores_what_is_set() {
    if !can_run() {
        return;
    }
    for (options, shown) in [
        (&["-o", "squash_to_root"][..], (Some(0), Some(0))),
        (&["--squash-uid", "42"], (Some(42), None)),
        (&["-o", "squash_to_root,squash_to_gid=43"], (Some(0), Some(43))),
    ] {
        trap(1, |layers| {
            layers.lower(0).file("f", "x").owner("f", 7, 8).dir_mode("tmp", 0o777).owner("tmp", 9, 10);
        })
        .mounted(|spec| spec.args(options.iter().copied()))
        .run(|union| {
            as_user(1001, || fs::write(union.at("tmp/made"), "x")).expect("everybody may");
            chown(union.at("f"), Some(70), Some(80)).expect("root may chown");
            union.live_and_after_remount(|union| {
                for (name, stored) in [("f", (70, 80)), ("tmp", (9, 10)), ("tmp/made", (1001, 1001))] {
                    let expected = (shown.0.unwrap_or(stored.0), shown.1.unwrap_or(stored.1));
                    assert_eq!(
                        (owner(&union.merged(), name), owner(&union.upper(), name)),
                        (expected, stored),
                        "{name}"
                    );
                }
            });
        });
    }
}

// ---- what else runtimes switch -------------------------------------------------------------------

#[test]
fn static_nlink_is_one_for_every_directory() {
    if !is_ours("no option of the kernel's overlayfs") {
        return;
    }
    trap(1, |layers| {
        layers.lower(0).dir("d/sub").file("f", "x").link("f", "g");
    })
    .mounted(|spec| spec.args(["--static-nlink"]))
    .run(|union| {
        for name in ["", "d", "d/sub"] {
            assert_eq!(union.merged().stat(name).nlink(), 1, "{name:?}");
        }
        assert_eq!(union.merged().stat("f").nlink(), 2, "files keep theirs");
    });
}

#[test]
fn inode_numbers_of_32_bits_stay_unique_and_listed() {
    if !is_ours("no option of the kernel's overlayfs") {
        return;
    }
    trap(2, |layers| {
        for number in 0..200 {
            layers.lower(number % 2).file(format!("f{number}"), "x");
        }
    })
    .mounted(|spec| spec.args(["--ino32"]))
    .run(|union| {
        union.live_and_after_remount(|union| {
            let mut seen = std::collections::HashSet::new();
            for entry in fs::read_dir(union.at("")).expect("the root can be listed") {
                let entry = entry.expect("the root can be listed");
                let ino = entry.metadata().expect("it is there").ino();
                assert!(u32::try_from(ino).is_ok() && seen.insert(ino), "{ino}");
                assert_eq!(std::os::unix::fs::DirEntryExt::ino(&entry), ino);
            }
            assert_eq!(seen.len(), 200);
        });
    });
}

#[test]
fn acls_and_xattrs_can_be_switched_off() {
    if !can_run() {
        return;
    }
    let fill = |layers: &Layers| {
        layers.lower(0).file("f", "x").xattr("f", ACCESS, acl(6, (7, 4), 4, 4, 0)).xattr("f", "user.k", "v");
        layers.lower(0).dir("d").xattr("d", DEFAULT, acl(7, (9, 7), 5, 7, 7));
    };
    for (option, keeps_others) in [("--no-acl", true), ("--no-xattrs", false)] {
        trap(1, fill).mounted(|spec| spec.args([option])).run(|union| {
            let mut value = [0; 64];
            let mut get = |name: &str| rustix::fs::getxattr(union.at("f"), name, &mut value);
            assert_eq!(get(ACCESS), Err(rustix::io::Errno::OPNOTSUPP), "{option}");
            assert_eq!(get("user.k").is_ok(), keeps_others, "{option}");
            assert_eq!(errno(as_user(8, || fs::write(union.at("f"), "x"))), rustix::io::Errno::ACCESS);
            shell(&union.at("d"), "umask 027; : >new");
            assert_eq!(union.merged().mode("d/new"), 0o640, "{option}");
            assert_eq!(union.upper().get_xattr("d/new", ACCESS), None, "nothing is inherited unseen");
            fs::write(union.at("f"), "changed").expect("root may");
            assert_eq!(union.upper().get_xattr("f", "user.k"), Some(b"v".to_vec()), "copy-up loses nothing");
            assert_eq!(union.upper().get_xattr("f", ACCESS), Some(acl(6, (7, 4), 4, 4, 0)), "copy-up loses nothing");
        });
    }
}

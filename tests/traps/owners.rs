//! Owners and modes that are kept in xattrs.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode as Bits};

use super::acl::{ACCESS, DEFAULT, acl};
use super::union::{Union, as_user, errno, is_ours, shell, trap};
use crate::support::{Layers, Mounted, OurMount, Tree, require_root};

/// The two xattrs, by the word of the option.
pub const STORES: [(&str, &str); 2] =
    [("security", "security.fuseoverlayfs.override_stat"), ("user", "user.containers.override_stat")];

/// Whether the test can run: maps and xattr permissions are no options of the kernel's overlayfs.
pub fn can_run() -> bool {
    require_root("files of several owners") && is_ours("it shows what is stored")
}

pub fn owner(tree: &Tree, name: &str) -> (u32, u32) {
    let stat = tree.stat(name);
    (stat.uid(), stat.gid())
}

fn mknod(at: &Path, kind: FileType, device: (u32, u32)) {
    let device = rustix::fs::makedev(device.0, device.1);
    rustix::fs::mknodat(CWD, at, kind, Bits::from_raw_mode(0o640), device).expect("root may make nodes");
}

pub fn text(value: Option<Vec<u8>>) -> Option<String> {
    value.map(|value| String::from_utf8(value).expect("it is text"))
}

/// Mounts with both xattrs in turn.
fn kept_in_xattrs(fill: impl Fn(&Layers), test: impl Fn(&mut Union, &str)) {
    if !can_run() {
        return;
    }
    for (word, xattr) in STORES {
        eprintln!("--- {word}");
        trap(1, &fill).mounted(|spec| spec.args(["--xattr-permissions", word])).run(|union| test(union, xattr));
    }
}

#[test]
fn chown_and_chmod_read_back_and_the_file_itself_stays_the_servers() {
    kept_in_xattrs(
        |layers| {
            layers.lower(0).file_mode("lower", "x", 0o640).owner("lower", 3, 4).dir_mode("d", 0o750).owner("d", 5, 6);
        },
        |union, xattr| {
            fs::write(union.at("new"), "x").expect("a file can be made");
            fs::create_dir(union.at("dir")).expect("a directory can be made");
            for name in ["new", "dir", "lower", "d"] {
                chown(union.at(name), Some(7), Some(8)).expect("root may chown");
                fs::set_permissions(union.at(name), fs::Permissions::from_mode(0o4755)).expect("root may chmod");
            }
            union.live_and_after_remount(|union| {
                for name in ["new", "dir", "lower", "d"] {
                    assert_eq!((owner(&union.merged(), name), union.merged().mode(name)), ((7, 8), 0o4755), "{name}");
                    assert_eq!(text(union.upper().get_xattr(name, xattr)), Some("7:8:04755".into()), "{name}");
                    assert_eq!(owner(&union.upper(), name), (0, 0), "{name}");
                    assert_eq!(union.upper().mode(name) & 0o6700 | 0o100, 0o700, "{name}");
                    assert_eq!(union.merged().get_xattr(name, xattr), None, "the mount's own xattr does not show");
                    assert!(!union.merged().xattr_names(name).iter().any(|known| known == xattr), "{name}");
                }
            });
            chown(union.at("new"), Some(9), None).expect("root may chown");
            assert_eq!(owner(&union.merged(), "new"), (9, 8));
            assert_eq!(union.merged().mode("new"), 0o755, "a new owner takes set-user-id");
            assert_eq!(union.merged().mode("dir"), 0o4755);
        },
    );
}

#[test]
fn copy_up_keeps_the_owner_and_mode_of_a_lower_file() {
    kept_in_xattrs(
        |layers| {
            layers.lower(0).dir_mode("d", 0o2751).owner("d", 5, 6).file_mode("d/f", "x", 0o4711);
            layers.lower(0).owner("d/f", 3, 4).symlink("d/l", "f").fifo("d/p");
            lchown(layers.lower(0).path("d/l"), Some(10), Some(11)).expect("root may chown");
            fs::set_permissions(layers.lower(0).path("d/f"), fs::Permissions::from_mode(0o4711)).expect("an own file");
        },
        |union, xattr| {
            shell(&union.at("d"), "touch -a f p; touch -h l");
            union.live_and_after_remount(|union| {
                assert_eq!((owner(&union.merged(), "d"), union.merged().mode("d")), ((5, 6), 0o2751));
                assert_eq!((owner(&union.merged(), "d/f"), union.merged().mode("d/f")), ((3, 4), 0o4711));
                assert_eq!(owner(&union.merged(), "d/l"), (10, 11));
                assert_eq!(fs::read_link(union.at("d/l")).expect("a link"), Path::new("f"));
                assert!(union.merged().stat("d/p").file_type().is_fifo());
                assert_eq!(text(union.upper().get_xattr("d/f", xattr)), Some("3:4:04711".into()));
                assert!(union.upper().stat("d/p").is_file(), "a plain file stands for the pipe");
            });
        },
    );
}

#[test]
fn devices_pipes_sockets_and_links_are_plain_files_in_upper_and_work_as_what_they_are() {
    kept_in_xattrs(
        |_| {},
        |union, xattr| {
            mknod(&union.at("null"), FileType::CharacterDevice, (1, 3));
            mknod(&union.at("disk"), FileType::BlockDevice, (259, 70_000));
            mknod(&union.at("pipe"), FileType::Fifo, (0, 0));
            drop(std::os::unix::net::UnixListener::bind(union.at("socket")).expect("a socket can be made"));
            symlink("null", union.at("link")).expect("a link can be made");
            lchown(union.at("link"), Some(12), Some(13)).expect("root may chown");
            chown(union.at("null"), Some(14), Some(15)).expect("root may chown");
            fs::hard_link(union.at("null"), union.at("zero")).expect("a device can be linked");
            fs::rename(union.at("zero"), union.at("other")).expect("it can be renamed");
            union.live_and_after_remount(|union| {
                let merged = union.merged();
                let (null, disk) = (merged.stat("null"), merged.stat("disk"));
                assert!(null.file_type().is_char_device() && disk.file_type().is_block_device());
                assert_eq!(null.rdev(), rustix::fs::makedev(1, 3));
                assert_eq!(disk.rdev(), rustix::fs::makedev(259, 70_000));
                assert_eq!((null.nlink(), null.ino()), (2, merged.stat("other").ino()));
                assert_eq!((owner(&merged, "null"), merged.mode("null")), ((14, 15), 0o640));
                assert!(merged.stat("pipe").file_type().is_fifo() && merged.stat("socket").file_type().is_socket());
                assert_eq!(owner(&merged, "link"), (12, 13));
                assert_eq!(fs::read_link(union.at("link")).expect("a link"), Path::new("null"));
                assert_eq!(merged.stat("link").size(), 4);
                fs::write(union.at("link"), "to the device").expect("it is /dev/null");
                for entry in fs::read_dir(union.at("")).expect("the root can be listed") {
                    let entry = entry.expect("the root can be listed");
                    let kind = fs::symlink_metadata(entry.path()).expect("it is there").file_type();
                    assert_eq!(entry.file_type().expect("it is listed"), kind, "{:?}", entry.file_name());
                }
                for name in ["null", "disk", "pipe", "socket"] {
                    assert!(union.upper().stat(name).is_file(), "{name}");
                }
                assert_eq!(union.upper().stat("link").is_file(), xattr.starts_with("user."));
                assert_eq!(text(union.upper().get_xattr("null", xattr)), Some("14:15:0640:char-1-3".into()));
            });
            let of_link = rustix::fs::chmodat(CWD, union.at("link"), Bits::RWXU, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
            assert_eq!(of_link, Err(rustix::io::Errno::OPNOTSUPP));
        },
    );
}

#[test]
fn acls_and_modes_say_the_same() {
    kept_in_xattrs(
        |_| {},
        |union, _| {
            fs::write(union.at("f"), "x").expect("a file can be made");
            // The owner may do nothing, and the server still reads.
            union.merged().xattr("f", ACCESS, acl(0, (7, 7), 5, 7, 1));
            assert_eq!(union.merged().mode("f"), 0o071);
            union.live_and_after_remount(|union| {
                assert_eq!(union.merged().get_xattr("f", ACCESS), Some(acl(0, (7, 7), 5, 7, 1)));
                assert_eq!(as_user(7, || fs::read(union.at("f"))).expect("the ACL lets user 7 in"), b"x");
            });
            fs::set_permissions(union.at("f"), fs::Permissions::from_mode(0o640)).expect("root may chmod");
            union.live_and_after_remount(|union| {
                // chmod sets the mask, not the owning group.
                assert_eq!(union.merged().get_xattr("f", ACCESS), Some(acl(6, (7, 7), 5, 4, 0)));
            });
            assert_eq!(errno(as_user(8, || fs::read(union.at("f")))), rustix::io::Errno::ACCESS);
            union.merged().dir("d").xattr("d", DEFAULT, acl(7, (7, 6), 5, 7, 0));
            shell(&union.at("d"), "umask 077; mkdir sub; : >new");
            union.live_and_after_remount(|union| {
                assert_eq!(union.merged().get_xattr("d/new", ACCESS), Some(acl(6, (7, 6), 5, 6, 0)));
                assert_eq!(union.merged().mode("d/new"), 0o660);
                assert_eq!(union.merged().get_xattr("d/sub", DEFAULT), Some(acl(7, (7, 6), 5, 7, 0)));
                assert_eq!(union.merged().mode("d/sub"), 0o770);
            });
        },
    );
}

#[test]
fn set_user_id_goes_with_a_users_write() {
    kept_in_xattrs(
        |_| {},
        |union, _| {
            union.merged().file_mode("f", "x", 0o666).owner("f", 7, 7);
            fs::set_permissions(union.at("f"), fs::Permissions::from_mode(0o6777)).expect("root may chmod");
            as_user(9, || fs::write(union.at("f"), "changed")).expect("everybody may write");
            union.live_and_after_remount(|union| assert_eq!(union.merged().mode("f"), 0o777));
        },
    );
}

#[test]
fn capabilities_are_kept_with_the_owner_and_go_with_any_write() {
    // `cap_net_raw+ep`, as setcap(8) writes it.
    let value: Vec<u8> = [0x0200_0001_u32, 1 << 13, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    let (capability, apart) = ("security.capability", "user.containers.override_security.capability");
    kept_in_xattrs(
        |layers| {
            layers
                .lower(0)
                .file_mode("ping", "x", 0o755)
                .file_mode("pong", "x", 0o755)
                .xattr("ping", capability, &value);
            layers.lower(0).xattr("pong", capability, &value);
        },
        |union, xattr| {
            chown(union.at("pong"), Some(7), Some(7)).expect("root may chown");
            fs::set_permissions(union.at("ping"), fs::Permissions::from_mode(0o711)).expect("root may chmod");
            union.merged().file("new", "x").xattr("new", capability, &value);
            union.live_and_after_remount(|union| {
                for name in ["ping", "new"] {
                    assert_eq!(union.merged().get_xattr(name, capability).as_ref(), Some(&value), "{name}");
                    assert_eq!(union.merged().xattr_names(name), [capability], "{name}");
                    let in_user = union.upper().get_xattr(name, apart);
                    assert_eq!(in_user.is_some(), xattr.starts_with("user."), "{name}");
                    assert_eq!(union.upper().get_xattr(name, capability).is_none(), in_user.is_some(), "{name}");
                }
                assert_eq!(union.merged().get_xattr("pong", capability), None, "a new owner takes them");
            });
            // They cannot be given by writing the other name.
            let forged = rustix::fs::setxattr(union.at("pong"), apart, &value, rustix::fs::XattrFlags::empty());
            assert_eq!(forged, Ok(()));
            assert_eq!(union.merged().get_xattr("pong", capability), None);
            assert_eq!(union.merged().get_xattr("pong", apart).as_ref(), Some(&value), "it is an xattr like any other");
            shell(&union.at(""), "printf y >>ping; truncate -s 0 new");
            union.live_and_after_remount(|union| {
                for name in ["ping", "new"] {
                    assert_eq!(union.merged().get_xattr(name, capability), None, "{name}");
                }
            });
        },
    );
}

#[test]
fn what_is_written_with_xattr_permissions_is_read_by_later_mounts_that_may_believe_it() {
    kept_in_xattrs(
        |_| {},
        |union, xattr| {
            union.merged().file("f", "x").owner("f", 7, 8).dir("d").owner("d", 9, 10);
            mknod(&union.at("d/null"), FileType::CharacterDevice, (1, 3));
            union.mount.unmount().expect("the union can be unmounted");
            let layers = Layers::new(0, crate::support::Placement::OneFs);
            let mut spec = layers.spec(union.io);
            spec.lowers = vec![union.upper().root().to_owned()];
            let believed = xattr.starts_with("security.");
            {
                // Under a plain upper, without the option: what is copied up is what it stood for.
                let mut plain = spec.mount();
                let merged = plain.tree();
                let (file, dir) = if believed { ((7, 8), (9, 10)) } else { ((0, 0), (0, 0)) };
                assert_eq!((owner(&merged, "f"), owner(&merged, "d")), (file, dir));
                assert_eq!(merged.stat("d/null").file_type().is_char_device(), believed);
                if believed {
                    assert_eq!(merged.stat("d/null").rdev(), rustix::fs::makedev(1, 3));
                    chown(merged.path("d/null"), Some(1), Some(2)).expect("root may chown");
                    assert!(layers.upper().stat("d/null").file_type().is_char_device());
                    assert_eq!((owner(&layers.upper(), "d/null"), owner(&layers.upper(), "d")), ((1, 2), (9, 10)));
                }
                plain.unmount().expect("the union can be unmounted");
            }
            if !believed {
                let mut told = spec.read_only().args(["--xattr-permissions", "user"]).mount();
                let merged = told.tree();
                assert_eq!((owner(&merged, "f"), owner(&merged, "d")), ((7, 8), (9, 10)));
                assert_eq!(merged.stat("d/null").rdev(), rustix::fs::makedev(1, 3));
                told.unmount().expect("the union can be unmounted");
            }
            // As an upper, without the option.
            match OurMount::start(union.layers.spec(union.io)) {
                Ok(mut again) => {
                    assert!(believed, "anybody who owns a file may have written its xattr");
                    again.tree().owner("f", 70, 80);
                    assert_eq!(text(union.upper().get_xattr("f", xattr)), Some("70:80:0644".into()));
                    again.unmount().expect("the union can be unmounted");
                }
                Err(refused) => assert!(!believed && refused.stderr.contains("xattr_permissions=2"), "{refused}"),
            }
            union.mount.mount_again().expect("the union can be mounted again");
        },
    );
}

#[test]
fn a_user_who_owns_a_lower_gives_nobody_rights() {
    if !can_run() {
        return;
    }
    trap(1, |layers| {
        let lower = layers.lower(0);
        lower.file_mode("program", "x", 0o755).file("disk", "").owner("", 1000, 1000);
        for name in ["program", "disk"] {
            lower.owner(name, 1000, 1000);
        }
        let lower = layers.lower(0).root().to_owned();
        as_user(1000, || {
            let set = |name: &str, xattr: &str, value: &[u8]| {
                rustix::fs::setxattr(lower.join(name), xattr, value, rustix::fs::XattrFlags::empty())
                    .expect("their own");
            };
            for (_, xattr) in &STORES[1..] {
                set("", xattr, b"0:0:0755");
                set("program", xattr, b"0:0:04755");
                set("disk", xattr, b"0:0:0666:block-8-0");
            }
            set("program", "user.containers.override_security.capability", b"any");
        });
    })
    .run(|union| {
        shell(&union.at(""), "touch program disk");
        union.live_and_after_remount(|union| {
            for tree in [union.merged(), union.upper()] {
                assert_eq!((owner(&tree, "program"), tree.mode("program")), ((1000, 1000), 0o755));
                assert!(tree.stat("disk").is_file());
                assert_eq!(tree.get_xattr("program", "security.capability"), None);
            }
        });
    });
}

#[test]
fn nobody_else_may_write_what_keeps_its_mode_in_an_xattr() {
    kept_in_xattrs(
        |layers| {
            layers.lower(0).dir_mode("tmp", 0o1777).file_mode("open", "x", 0o666);
            layers.lower(0).xattr("open", ACCESS, acl(6, (1000, 7), 7, 7, 6));
        },
        |union, _| {
            symlink("anywhere", union.at("link")).expect("a link can be made");
            fs::write(union.at("tmp/f"), "x").expect("root may");
            fs::write(union.at("open"), "secret").expect("root may");
            fs::set_permissions(union.at("tmp/f"), fs::Permissions::from_mode(0o666)).expect("root may chmod");
            union.merged().xattr("tmp/f", ACCESS, acl(6, (1000, 7), 7, 7, 6));
            let upper = union.upper();
            for name in ["link", "tmp", "tmp/f", "open"] {
                let stat = upper.stat(name);
                assert!(stat.file_type().is_symlink() || stat.mode() & 0o077 == 0, "{name}: {:o}", stat.mode());
            }
            assert_eq!(errno(as_user(1000, || fs::read(upper.path("open")))), rustix::io::Errno::ACCESS);
            // Through the mount the modes and ACLs hold.
            as_user(1000, || {
                fs::write(union.at("tmp/g"), "mine").expect("everybody may");
                fs::write(union.at("tmp/f"), "changed").expect("the ACL lets them");
                assert_eq!(errno(fs::remove_file(union.at("tmp/f"))), rustix::io::Errno::PERM, "sticky");
            });
        },
    );
}

#[test]
fn an_upper_that_holds_files_keeps_owners_as_it_did() {
    if !can_run() {
        return;
    }
    trap(1, |layers| {
        layers.upper().file_mode("program", "x", 0o755);
        fs::set_permissions(layers.upper().path("program"), fs::Permissions::from_mode(0o4755)).expect("an own file");
    })
    .mounted(|spec| spec.args(["--xattr-permissions", "user"]))
    .run(|union| {
        fs::set_permissions(union.at("program"), fs::Permissions::from_mode(0o700)).expect("root may chmod");
        chown(union.at("program"), Some(1000), Some(1000)).expect("root may chown");
        assert_eq!((owner(&union.upper(), "program"), union.upper().mode("program")), ((1000, 1000), 0o700));
        assert_eq!(union.upper().get_xattr("", STORES[1].1), None);
    });
}

#[test]
fn the_xattr_cannot_be_forged_through_a_mount() {
    let names = || STORES.iter().map(|(_, name)| *name).chain(["user.fuseoverlayfs.override_stat"]);
    kept_in_xattrs(
        |_| {},
        |union, kept| {
            union.merged().file("f", "x").owner("f", 7, 8);
            let before = union.upper().get_xattr("f", kept);
            for name in names() {
                union.merged().xattr("f", name, "0:0:04755");
                assert_eq!(text(union.merged().get_xattr("f", name)), Some("0:0:04755".into()));
            }
            union.live_and_after_remount(|union| {
                assert_eq!(union.upper().get_xattr("f", kept), before);
                assert_eq!((owner(&union.merged(), "f"), union.merged().mode("f")), ((7, 8), 0o644));
            });
        },
    );
    if !can_run() {
        return;
    }
    trap(1, |_| {}).run(|union| {
        for xattr in names() {
            union.merged().file("f", "x").xattr("f", xattr, "0:0:04755").xattr("", xattr, "0:0:0777");
            union.live_and_after_remount(|union| {
                assert_eq!(text(union.merged().get_xattr("f", xattr)), Some("0:0:04755".into()));
                assert!(union.merged().xattr_names("f").iter().any(|name| name == xattr));
                assert_eq!(union.upper().get_xattr("f", xattr), None);
                assert_eq!(union.upper().get_xattr("", xattr), None);
                assert_eq!(union.merged().mode("f"), 0o644);
            });
        }
    });
}

#[test]
fn a_garbled_xattr_is_an_error_for_its_file_alone() {
    if !can_run() {
        return;
    }
    trap(1, |layers| {
        let (_, xattr) = STORES[1];
        layers.lower(0).xattr("", xattr, "0:0:0755").file("good", "x").xattr("good", xattr, "7:8:0640");
        layers.lower(0).file("bad", "x").xattr("bad", xattr, "7:8:rwx").file("none", "x");
    })
    .mounted(|spec| spec.read_only().args(["--xattr-permissions", "user"]))
    .run(|union| {
        assert_eq!(errno(fs::symlink_metadata(union.at("bad"))), rustix::io::Errno::IO);
        assert_eq!((owner(&union.merged(), "good"), union.merged().mode("good")), ((7, 8), 0o640));
        assert_eq!(owner(&union.merged(), "none"), (0, 0));
        assert!(union.merged().names("").contains(&"bad".to_owned()), "nobody misses it");
    });
}

//! Who gets which mode, owner and time: umask, inheritance, and privileges that a change takes away.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, Timespec, Timestamps};
use rustix::io::Errno;

use super::acl::{ACCESS, DEFAULT, acl};
use super::union::{STRANGER, USER, Union, as_user, errno, shell, trap, xfs_io};
use crate::support::{Atime, Layers, LowersUnchanged, Privilege, Tree, on_kernel, privilege, require_root};

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("an own file's mode can be set");
}

/// Whatever can be made, by a caller with this umask.
fn make_all(union: &Union, dir: &str, umask: &str) {
    shell(&union.at(dir), &format!("umask {umask}; mkdir dir; : >file; mkfifo fifo; ln -s target link"));
}

#[test]
fn the_umask_of_the_caller_applies_whatever_that_of_the_server() {
    for server in [0o000, 0o077] {
        trap(1, |layers| {
            layers.lower(0).dir("d");
        })
        .mounted(|spec| spec.umask(server))
        .run(|union| {
            make_all(union, "d", "027");
            union.live_and_after_remount(|union| {
                for tree in [union.merged(), union.upper()] {
                    assert_eq!(tree.mode("d/dir"), 0o750);
                    assert_eq!(tree.mode("d/file"), 0o640);
                    assert_eq!(tree.mode("d/fifo"), 0o640);
                    assert_eq!(tree.mode("d/link"), 0o777);
                }
            });
        });
    }
}

/// Returns a user whom an ACL may name: in a user namespace there is root alone.
fn named() -> u32 {
    if privilege() == Privilege::UserNamespace { 0 } else { USER }
}

/// The default ACL of the tests: a named user may write, others may look.
fn default_acl() -> Vec<u8> {
    acl(7, (named(), 7), 5, 7, 5)
}

#[test]
fn a_default_acl_is_inherited_and_takes_the_place_of_the_umask() {
    trap(2, |layers| {
        layers.lower(1).dir("lower").xattr("lower", DEFAULT, default_acl());
        layers.lower(0).dir("merged");
        layers.lower(1).dir("merged").xattr("merged", DEFAULT, acl(7, (named(), 0), 0, 0, 0));
        layers.lower(0).xattr("merged", DEFAULT, default_acl());
    })
    .run(|union| {
        fs::create_dir(union.at("upper")).expect("a directory can be made");
        union.merged().xattr("upper", DEFAULT, default_acl());
        for dir in ["lower", "merged", "upper"] {
            eprintln!("--- {dir}");
            make_all(union, dir, "077");
            union.live_and_after_remount(|union| {
                for tree in [union.merged(), union.upper()] {
                    let at = |name: &str| Path::new(dir).join(name);
                    assert_eq!(tree.mode(at("dir")), 0o775);
                    // The mask is the group's class, cut down to what was asked for.
                    assert_eq!(tree.mode(at("file")), 0o664);
                    assert_eq!(tree.mode(at("fifo")), 0o664);
                    assert_eq!(tree.get_xattr(at("file"), ACCESS), Some(acl(6, (named(), 7), 5, 6, 4)));
                    assert_eq!(tree.get_xattr(at("dir"), ACCESS), Some(default_acl()));
                    assert_eq!(tree.get_xattr(at("dir"), DEFAULT), Some(default_acl()));
                    assert_eq!(tree.get_xattr(at("file"), DEFAULT), None);
                }
            });
        }
    });
}

#[test]
fn an_acl_is_enforced_and_changed_by_chmod() {
    if !require_root("users other than the owner") {
        return;
    }
    trap(1, |layers| {
        layers.lower(0).file_mode("f", "secret", 0o600).xattr("f", ACCESS, acl(6, (USER, 4), 0, 4, 0));
    })
    .run(|union| {
        let read = |uid| as_user(uid, || fs::read(union.at("f")));
        assert_eq!(read(USER).expect("the ACL lets them read"), b"secret");
        assert_eq!(errno(read(STRANGER)), Errno::ACCESS);
        let write = |uid| as_user(uid, || OpenOptions::new().append(true).open(union.at("f")).map(drop));
        assert_eq!(errno(write(USER)), Errno::ACCESS);
        // The group's bits are the mask of the ACL.
        set_mode(&union.at("f"), 0o600);
        assert_eq!(errno(read(USER)), Errno::ACCESS);
        set_mode(&union.at("f"), 0o660);
        assert_eq!(union.merged().get_xattr("f", ACCESS), Some(acl(6, (USER, 4), 0, 6, 0)));
        assert_eq!(union.upper().get_xattr("f", ACCESS), Some(acl(6, (USER, 4), 0, 6, 0)));
        union.merged().xattr("f", ACCESS, acl(6, (USER, 6), 0, 6, 0));
        write(USER).expect("the ACL lets them write");
        assert_eq!(errno(write(STRANGER)), Errno::ACCESS);
    });
    trap(1, |layers| {
        layers.lower(0).file("f", "lower");
    })
    .run(|union| {
        // An ACL that says no more than a mode is the mode.
        shell(&union.at(""), "setfacl -m u:1000:rw f; setfacl -b f");
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().get_xattr("f", ACCESS), None);
            assert_eq!(union.merged().mode("f"), 0o644);
        });
    });
}

#[test]
fn a_setgid_directory_passes_on_its_group_and_to_directories_its_bit() {
    if !require_root("groups and users other than its own") {
        return;
    }
    const GROUP: u32 = 4321;
    let in_group = |layers: &Layers, name: &str| {
        layers.lower(0).dir(name).owner(name, 0, GROUP);
        set_mode(&layers.lower(0).path(name), 0o2777);
    };
    trap(1, |layers| in_group(layers, "d")).run(|union| {
        make_all(union, "d", "022");
        fs::create_dir(union.at("d/user")).expect("a directory can be made");
        set_mode(&union.at("d/user"), 0o2777);
        as_user(USER, || {
            fs::create_dir(union.at("d/user/dir")).expect("a directory can be made");
            fs::write(union.at("d/user/file"), "").expect("a file can be made");
        });
        union.live_and_after_remount(|union| {
            for tree in [union.merged(), union.upper()] {
                for name in ["d/dir", "d/file", "d/fifo", "d/link", "d/user", "d/user/dir", "d/user/file"] {
                    let stat = tree.stat(name);
                    assert_eq!(stat.gid(), GROUP, "{name}");
                    assert_eq!(stat.mode() & 0o2000 != 0, stat.is_dir(), "{name}");
                }
                assert_eq!(tree.stat("d/user/file").uid(), USER);
            }
        });
    });
}

/// A file capability, cap_net_raw+ep, in the form of its xattr (capability.h, revision 2).
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const CAPABILITY_XATTR: &str = "security.capability";

/// Files with everything that gives rights: suid and sgid, and capabilities.
fn privileged(tree: &Tree) {
    for name in
        ["write", "append", "truncate", "ftruncate", "open-trunc", "fallocate", "copy-range", "chown", "root-write"]
    {
        tree.file(name, "content").xattr(name, CAPABILITY_XATTR, CAPABILITY);
        set_mode(&tree.path(name), 0o6777);
    }
}

/// Changes the files' content and owner in every way there is.
fn take_privileges(union: &Union) {
    let open = |name: &str| OpenOptions::new().write(true).open(union.at(name)).expect("everybody may write it");
    as_user(USER, || {
        open("write").write_all(b"w").expect("write");
        let mut file = OpenOptions::new().append(true).open(union.at("append")).expect("everybody may write it");
        file.write_all(b"a").expect("append");
        rustix::fs::ftruncate(open("ftruncate"), 3).expect("ftruncate");
        let truncated = OpenOptions::new().write(true).truncate(true).open(union.at("open-trunc"));
        drop(truncated.expect("everybody may write it"));
        let flags = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(open("fallocate"), flags, 0, 4096).expect("fallocate");
        let source = fs::File::open(union.at("source")).expect("everybody may read it");
        rustix::fs::copy_file_range(source, None, open("copy-range"), None, 4).expect("copy_file_range");
    });
    // truncate(2) itself, and no open file.
    shell(
        &union.at(""),
        "setpriv --reuid 1000 --regid 1000 --clear-groups perl -e 'truncate($ARGV[0], 2) or die $!' truncate",
    );
    chown(union.at("chown"), Some(USER), None).expect("root may chown");
    open("root-write").write_all(b"w").expect("write");
}

fn assert_privileges_taken(tree: &Tree) {
    let changed = ["write", "append", "truncate", "ftruncate", "open-trunc", "fallocate", "copy-range", "chown"];
    let kept: Vec<&str> = changed.into_iter().filter(|name| tree.mode(name) != 0o777).collect();
    assert_eq!(kept, Vec::<&str>::new(), "kept suid or sgid");
    // Root keeps the bits (CAP_FSETID), but not the capabilities of what may be another program now.
    assert_eq!(tree.mode("root-write"), 0o6777);
    let able =
        changed.into_iter().chain(["root-write"]).filter(|name| tree.get_xattr(name, CAPABILITY_XATTR).is_some());
    assert_eq!(able.collect::<Vec<_>>(), Vec::<&str>::new(), "kept capabilities");
}

#[test]
fn a_change_of_a_lower_file_drops_suid_sgid_and_capabilities() {
    if !require_root("other users and file capabilities") {
        return;
    }
    trap(1, |layers| privileged(&layers.lower(0))).run(|union| {
        union.merged().file("source", "source");
        take_privileges(union);
        union.live_and_after_remount(|union| {
            assert_privileges_taken(&union.merged());
            assert_privileges_taken(&union.upper());
        });
    });
}

#[test]
fn a_change_of_an_upper_file_drops_suid_sgid_and_capabilities() {
    if !require_root("other users and file capabilities") {
        return;
    }
    trap(1, |_| {}).run(|union| {
        privileged(&union.merged());
        union.merged().file("source", "source");
        assert_eq!(union.merged().mode("write"), 0o6777);
        assert_eq!(union.merged().get_xattr("write", CAPABILITY_XATTR).as_deref(), Some(&CAPABILITY[..]));
        take_privileges(union);
        union.live_and_after_remount(|union| {
            assert_privileges_taken(&union.merged());
            assert_privileges_taken(&union.upper());
        });
    });
}

#[test]
fn a_lower_file_keeps_suid_and_capabilities_when_it_is_copied_up_unchanged() {
    if !require_root("file capabilities") {
        return;
    }
    trap(1, |layers| privileged(&layers.lower(0))).run(|union| {
        union.merged().times("write", 1_000_000_000);
        fs::rename(union.at("append"), union.at("moved")).expect("a file can be moved");
        union.live_and_after_remount(|union| {
            for name in ["write", "moved"] {
                assert_eq!(union.upper().mode(name), 0o6777, "{name}");
                let capability = union.upper().get_xattr(name, CAPABILITY_XATTR);
                assert_eq!(capability.as_deref(), Some(&CAPABILITY[..]), "{name}");
            }
        });
    });
}

#[test]
fn a_metacopy_keeps_suid_and_capabilities_when_its_data_is_copied_and_nothing_is_written() {
    let is_root = privilege() == Privilege::Root;
    trap(1, |layers| {
        layers.lower(0).file_mode("f", vec![b'l'; 100_000], 0o4755);
        if is_root {
            layers.lower(0).xattr("f", CAPABILITY_XATTR, CAPABILITY);
        }
    })
    .mounted(|spec| spec.feature("metacopy", "on"))
    .run(|union| {
        union.merged().times("f", 1_000_000_000);
        drop(OpenOptions::new().write(true).open(union.at("f")).expect("the file is there"));
        union.live_and_after_remount(|union| {
            for tree in [union.merged(), union.upper()] {
                assert_eq!(tree.mode("f"), 0o4755);
                let capability = tree.get_xattr("f", CAPABILITY_XATTR);
                assert_eq!(capability.as_deref(), is_root.then_some(&CAPABILITY[..]));
            }
            assert!(union.merged().read("f") == vec![b'l'; 100_000]);
        });
    });
}

#[test]
fn only_the_owner_may_change_attributes_and_a_sticky_directory_protects_names() {
    if !require_root("several users") {
        return;
    }
    trap(1, |layers| {
        let lower = layers.lower(0);
        lower.dir_mode("tmp", 0o1777).file_mode("tmp/theirs", "lower", 0o666).owner("tmp/theirs", USER, USER);
        lower.file_mode("private", "lower", 0o600);
    })
    .run(|union| {
        as_user(STRANGER, || {
            let theirs = union.at("tmp/theirs");
            let mode = fs::Permissions::from_mode(0o777);
            assert_eq!(errno(fs::set_permissions(&theirs, mode)), Errno::PERM);
            assert_eq!(errno(chown(&theirs, Some(STRANGER), None)), Errno::PERM);
            assert_eq!(errno(fs::remove_file(&theirs)), Errno::PERM);
            assert_eq!(errno(fs::rename(&theirs, union.at("tmp/mine"))), Errno::PERM);
            assert_eq!(errno(fs::read(union.at("private"))), Errno::ACCESS);
            assert_eq!(errno(fs::write(union.at("new"), "")), Errno::ACCESS);
            fs::write(union.at("tmp/mine"), "mine").expect("everybody may make files there");
        });
        assert_eq!(union.upper().names(""), ["tmp"]);
        assert_eq!(union.upper().names("tmp"), ["mine"]);
        assert_eq!(union.upper().stat("tmp/mine").uid(), STRANGER);
    });
}

fn set_old_times(path: &Path) {
    let old = Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
    let times = Timestamps { last_access: old, last_modification: old };
    rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::empty()).expect("an own file's times can be set");
}

#[test]
fn a_write_through_a_mapping_updates_mtime_and_ctime() {
    trap(1, |layers| {
        layers.lower(0).file("lower", vec![b'l'; 8192]).times("lower", 1_000_000_000);
    })
    .run(|union| {
        fs::write(union.at("upper"), vec![b'u'; 8192]).expect("a file can be made");
        set_old_times(&union.at("upper"));
        for name in ["lower", "upper"] {
            let before = union.merged().stat(name);
            assert_eq!(before.mtime(), 1_000_000_000);
            // Past the granularity of the kernel's clock.
            std::thread::sleep(std::time::Duration::from_millis(20));
            xfs_io(&[], &["mmap -rw 0 8192", "mwrite -S 0x58 4096 4", "msync -s 0 8192", "munmap"], &union.at(name));
            union.live_and_after_remount(|union| {
                for tree in [union.merged(), union.upper()] {
                    let after = tree.stat(name);
                    assert!(after.mtime() > before.mtime(), "mtime of {name}: {}", after.mtime());
                    let ctime = |stat: &fs::Metadata| (stat.ctime(), stat.ctime_nsec());
                    assert!(ctime(&after) > ctime(&before), "ctime of {name}");
                    assert_eq!(&tree.read(name)[4094..4102], if name == "lower" { b"llXXXXll" } else { b"uuXXXXuu" });
                }
            });
        }
    });
}

#[test]
fn running_and_reading_a_lower_file_leaves_its_access_time_alone() {
    trap(1, |layers| {
        let lower = layers.lower(0);
        fs::copy("/bin/true", lower.path("true")).expect("every system has /bin/true");
        // So old that relatime would update it.
        lower.times("true", 1_000_000_000).file("data", "data").times("data", 1_000_000_000);
    })
    .run(|union| {
        let lowers = LowersUnchanged::with(union.layers.lowers(), Atime::Compare);
        let status = Command::new(union.at("true")).status().expect("a program in the union can be run");
        assert!(status.success());
        assert_eq!(union.merged().read("data"), b"data");
        if !on_kernel() {
            lowers.check();
            union.live_and_after_remount(|union| {
                for name in ["true", "data"] {
                    assert_eq!(union.merged().stat(name).atime(), 1_000_000_000, "{name}");
                }
            });
        }
    });
}

#[test]
fn running_an_upper_file_leaves_its_access_time_alone() {
    trap(1, |_| {}).run(|union| {
        fs::copy("/bin/true", union.at("true")).expect("a file can be made");
        set_old_times(&union.at("true"));
        union.remount();
        let status = Command::new(union.at("true")).status().expect("a program in the union can be run");
        assert!(status.success());
        if !on_kernel() {
            assert_eq!(union.merged().stat("true").atime(), 1_000_000_000);
            assert_eq!(union.upper().stat("true").atime(), 1_000_000_000);
        }
    });
}

#[test]
fn times_are_set_to_the_nanosecond_and_beyond_2038() {
    trap(1, |layers| {
        layers.lower(0).file("f", "lower").dir("d").symlink("l", "target");
    })
    .run(|union| {
        let access = Timespec { tv_sec: 5_000_000_000, tv_nsec: 123_456_789 };
        let modification = Timespec { tv_sec: -1_000, tv_nsec: 987_654_321 };
        for name in ["f", "d", "l"] {
            let times = Timestamps { last_access: access, last_modification: modification };
            rustix::fs::utimensat(CWD, union.at(name), &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).expect("utimens");
        }
        union.live_and_after_remount(|union| {
            for (tree, name) in [union.merged(), union.upper()].iter().flat_map(|t| ["f", "d", "l"].map(|n| (t, n))) {
                let stat = tree.stat(name);
                assert_eq!((stat.atime(), stat.atime_nsec()), (5_000_000_000, 123_456_789), "{name}");
                assert_eq!((stat.mtime(), stat.mtime_nsec()), (-1_000, 987_654_321), "{name}");
            }
        });
    });
}

#[test]
fn an_acl_that_an_outsider_of_the_group_removes_takes_the_set_group_id_bit_along() {
    if !require_root("becoming another user") {
        return;
    }
    trap(1, |layers| {
        for name in ["lower", "kept"] {
            layers.lower(0).file_mode(name, "", 0o2775).owner(name, USER, STRANGER);
            // The owner takes the bit away (chown(2)), and an ACL that is set by root does not.
            fs::set_permissions(layers.lower(0).path(name), fs::Permissions::from_mode(0o2775))
                .expect("root may chmod");
            layers.lower(0).xattr(name, ACCESS, acl(7, (STRANGER, 7), 7, 7, 5));
        }
    })
    .run(|union| {
        let remove = |name: &str| rustix::fs::removexattr(union.at(name), ACCESS).map_err(std::io::Error::from);
        as_user(USER, || remove("lower")).expect("the owner may");
        remove("kept").expect("root may");
        union.live_and_after_remount(|union| {
            assert_eq!(["lower", "kept"].map(|name| union.merged().mode(name)), [0o775, 0o2775]);
            assert_eq!(union.merged().get_xattr("lower", ACCESS), None);
        });
    });
}

#[test]
fn a_file_that_was_just_written_is_changed_whatever_becomes_of_its_name() {
    trap(1, |layers| {
        layers.lower(0).file("lower", "lower").file("taken", "taken").dir("d");
    })
    .run(|union| {
        let change = |file: &fs::File, mode: u32, seconds: i64| {
            rustix::fs::fchmod(file, rustix::fs::Mode::from_raw_mode(mode)).expect("an own file's mode can be set");
            let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::futimens(file, &times).expect("an own file's times can be set");
            let stat = file.metadata().expect("an open file can be looked at");
            assert_eq!((stat.mode() & 0o7777, stat.mtime()), (mode, seconds));
        };
        for name in ["new", "lower"] {
            let mut file = OpenOptions::new().append(true).create(true).open(union.at(name)).expect("it can be opened");
            file.write_all(b"more").expect("it can be written");
            change(&file, 0o600, 1000);
            fs::rename(union.at(name), union.at("d/moved")).expect("it can be moved");
            // Another file by the name that it had.
            fs::copy(union.at("taken"), union.at(name)).expect("the name is free");
            set_mode(&union.at(name), 0o644);
            change(&file, 0o640, 2000);
            assert_eq!(["d/moved", name].map(|name| union.merged().mode(name)), [0o640, 0o644]);
            fs::rename(union.at(name), union.at("d/moved")).expect("it can be replaced");
            change(&file, 0o604, 3000);
            fs::remove_file(union.at("d/moved")).expect("it can be removed");
            change(&file, 0o620, 4000);
        }
    });
}

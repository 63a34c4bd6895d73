//! A file that is changed moves into the upper whole, or not at all.

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;

use super::acl::{ACCESS, acl};
use super::union::{errno, trap};
use crate::support::{Io, Privilege, Tree, on_kernel, privilege, record_skip, require_root, test_name};

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("an own file's mode can be set");
}

#[test]
fn directories_copied_up_keep_their_mode_whatever_the_umask_of_the_server() {
    trap(1, |layers| {
        layers.lower(0).dir_mode("tmp", 0o1777).dir_mode("tmp/open", 0o2777).file_mode("tmp/open/f", "lower", 0o666);
    })
    .mounted(|spec| spec.umask(0o077))
    .run(|union| {
        fs::write(union.at("tmp/open/f"), "new").expect("a file is copied up");
        fs::create_dir(union.at("tmp/made")).expect("a directory can be made");
        set_mode(&union.at("tmp/made"), 0o777);
        union.live_and_after_remount(|union| {
            for tree in [union.merged(), union.upper()] {
                assert_eq!(tree.mode("tmp"), 0o1777);
                assert_eq!(tree.mode("tmp/open"), 0o2777);
                assert_eq!(tree.mode("tmp/open/f"), 0o666);
                assert_eq!(tree.mode("tmp/made"), 0o777);
            }
        });
    });
}

#[test]
fn a_copied_up_tree_keeps_owners_times_and_xattrs() {
    if !require_root("files of other owners") {
        return;
    }
    const TIME: i64 = 1_000_000_000;
    let guard = acl(6, (1000, 4), 4, 6, 0);
    trap(1, |layers| {
        let lower = layers.lower(0);
        lower.file_mode("d/sub/f", "lower", 0o4640).owner("d/sub/f", 1000, 1001).xattr("d/sub/f", "user.key", "value");
        lower.xattr("d/sub/f", ACCESS, &guard).xattr("d/sub/f", "trusted.key", "value").xattr("d", "user.key", "value");
        // chown took it.
        set_mode(&lower.path("d/sub/f"), 0o4660);
        for (name, owner) in [("d/sub/f", 1000), ("d/sub", 1002), ("d", 1003)] {
            lower.owner(name, owner, owner + 10);
        }
        set_mode(&lower.path("d/sub/f"), 0o4660);
        for name in ["d/sub/f", "d/sub", "d"] {
            lower.times(name, TIME);
        }
    })
    .run(|union| {
        set_mode(&union.at("d/sub/f"), 0o4661);
        union.live_and_after_remount(|union| {
            for tree in [union.merged(), union.upper()] {
                assert_eq!(tree.mode("d/sub/f"), 0o4661);
                assert_eq!(tree.get_xattr("d/sub/f", "user.key").as_deref(), Some(&b"value"[..]));
                assert_eq!(tree.get_xattr("d/sub/f", "trusted.key").as_deref(), Some(&b"value"[..]));
                assert_eq!(tree.get_xattr("d", "user.key").as_deref(), Some(&b"value"[..]));
                // chmod changed the entry for others, and no other.
                assert_eq!(tree.get_xattr("d/sub/f", ACCESS), Some(acl(6, (1000, 4), 4, 6, 1)));
                for (name, owner) in [("d/sub/f", 1000), ("d/sub", 1002), ("d", 1003)] {
                    let stat = tree.stat(name);
                    assert_eq!((stat.uid(), stat.gid()), (owner, owner + 10), "{name}");
                    assert_eq!((stat.mtime(), stat.mtime_nsec()), (TIME, 123_456_789), "{name}");
                }
            }
            assert_eq!(union.merged().read("d/sub/f"), b"lower");
        });
    });
}

#[test]
fn a_directory_copied_up_for_a_change_inside_an_entry_keeps_its_times() {
    const TIME: i64 = 1_000_000_000;
    trap(2, |layers| {
        layers.lower(1).file("d/sub/f", "lower").times("d/sub", TIME).times("d", TIME);
        layers.lower(0).dir("d").times("d", TIME + 1);
    })
    .run(|union| {
        fs::write(union.at("d/sub/f"), "new").expect("a file is copied up");
        union.live_and_after_remount(|union| {
            for tree in [union.merged(), union.upper()] {
                assert_eq!(tree.stat("d/sub").mtime(), TIME);
                assert_eq!(tree.stat("d").mtime(), TIME + 1);
            }
        });
    });
}

#[test]
fn symlinks_fifos_and_devices_are_copied_up_as_what_they_are() {
    if !require_root("device nodes and other owners") {
        return;
    }
    trap(1, |layers| {
        let lower = layers.lower(0);
        lower.symlink("link", "no/such/target").fifo("fifo");
        let null = rustix::fs::makedev(1, 3);
        mknod(&lower, "null", FileType::CharacterDevice, null);
        mknod(&lower, "disk", FileType::BlockDevice, rustix::fs::makedev(7, 200));
        mknod(&lower, "socket", FileType::Socket, 0);
    })
    .run(|union| {
        let names = ["link", "fifo", "null", "disk", "socket"];
        let before = names.map(|name| union.merged().stat(name));
        for name in names {
            union.merged().owner(name, 1000, 1001);
        }
        union.live_and_after_remount(|union| {
            for (name, before) in names.iter().zip(&before) {
                for tree in [union.merged(), union.upper()] {
                    let after = tree.stat(name);
                    assert_eq!((after.uid(), after.gid()), (1000, 1001), "{name}");
                    assert_eq!(after.mode(), before.mode(), "{name}");
                    assert_eq!(after.rdev(), before.rdev(), "{name}");
                    assert_eq!(after.mtime(), before.mtime(), "{name}");
                }
            }
            let target = fs::read_link(union.at("link")).expect("a symlink can be read");
            assert_eq!(target, Path::new("no/such/target"));
        });
    });
}

fn mknod(tree: &Tree, name: &str, kind: FileType, device: u64) {
    rustix::fs::mknodat(CWD, tree.path(name), kind, Mode::from(0o640), device).expect("root may make nodes");
}

#[test]
fn holes_survive_copy_up_and_seek_finds_data_and_holes() {
    const SIZE: u64 = 64 << 20;
    const DATA: u64 = 8 << 20;
    const LENGTH: usize = 64 << 10;
    trap(1, |layers| {
        layers.lower(0).sparse("f", SIZE);
        let file = OpenOptions::new().write(true).open(layers.lower(0).path("f")).expect("just made");
        file.write_all_at(&[7; LENGTH], DATA).expect("a file can be written");
    })
    .run(|union| {
        let extents = |path: &Path| {
            let file = fs::File::open(path).expect("the file is there");
            let seek = |from| rustix::fs::seek(&file, from).expect("seek");
            let data = seek(rustix::fs::SeekFrom::Data(0));
            let hole = seek(rustix::fs::SeekFrom::Hole(data));
            let end = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(hole));
            (data, hole, end)
        };
        // What is written may be in the kernel alone, so that all is data to who asks there.
        let told = if union.io == Io::Writeback { 0..SIZE } else { DATA..DATA + LENGTH as u64 };
        let expected = (told.start, told.end, Err(Errno::NXIO));
        assert_eq!(extents(&union.at("f")), expected, "of the lower file");
        set_mode(&union.at("f"), 0o600);
        assert!(union.upper().exists("f"));
        union.live_and_after_remount(|union| {
            let (data, hole, end) = extents(&union.at("f"));
            assert_eq!((data, end), (expected.0, expected.2), "after copy-up");
            // The kernel's overlayfs copies a megabyte at a time.
            let slack = if on_kernel() { 1 << 20 } else { 0 };
            assert!((expected.1..=expected.1 + slack).contains(&hole), "the data after copy-up ends at {hole}");
            for tree in [union.merged(), union.upper()] {
                let stat = tree.stat("f");
                assert_eq!(stat.len(), SIZE);
                assert!(stat.blocks() * 512 < 2 << 20, "{} blocks are used", stat.blocks());
            }
        });
    });
}

#[test]
fn open_with_o_trunc_and_truncate_of_a_lower_file_keep_what_they_should() {
    trap(1, |layers| {
        for name in ["empty", "short", "same", "long"] {
            layers.lower(0).file(name, "lower");
        }
    })
    .run(|union| {
        fs::File::create(union.at("empty")).expect("a file can be emptied");
        for (name, length) in [("short", 2), ("same", 5), ("long", 7)] {
            let file = OpenOptions::new().write(true).open(union.at(name)).expect("the file is there");
            file.set_len(length).expect("a file can be truncated");
        }
        union.live_and_after_remount(|union| {
            for tree in [union.merged(), union.upper()] {
                assert_eq!(tree.read("empty"), b"");
                assert_eq!(tree.read("short"), b"lo");
                assert_eq!(tree.read("same"), b"lower");
                assert_eq!(tree.read("long"), b"lower\0\0");
            }
        });
    });
}

#[test]
fn a_lower_file_open_for_reading_and_then_written_by_another_is_seen_changed_by_later_readers() {
    trap(1, |layers| {
        layers.lower(0).file("f", "lower".repeat(2000));
    })
    .run(|union| {
        let mut early = fs::File::open(union.at("f")).expect("the file is there");
        let mut first = [0; 5];
        early.read_exact(&mut first).expect("the file can be read");
        assert_eq!(&first, b"lower");
        let mut writer = OpenOptions::new().read(true).write(true).open(union.at("f")).expect("the file is there");
        writer.write_all(b"UPPER").expect("the file can be written");
        let expected = "UPPER".to_owned() + &"lower".repeat(1999);
        assert_eq!(union.merged().read("f"), expected.as_bytes(), "while both are open");
        assert_eq!(union.upper().stat("f").len(), 10_000);
        writer.seek(SeekFrom::Start(0)).expect("seek");
        let mut own = String::new();
        writer.read_to_string(&mut own).expect("the file can be read");
        assert_eq!(own, expected, "through the writer");
        // The early reader may have either, since the kernel's overlayfs gives it the old; but whole.
        early.seek(SeekFrom::Start(0)).expect("seek");
        let mut seen = String::new();
        early.read_to_string(&mut seen).expect("the file can be read");
        assert!(seen == expected || seen == "lower".repeat(2000), "the early reader sees {:?}…", &seen[..20]);
        drop((early, writer));
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().read("f"), expected.as_bytes());
            assert_eq!(union.upper().read("f"), expected.as_bytes());
        });
    });
}

#[test]
fn what_is_left_in_the_workdir_is_removed_at_mount_and_never_ends_up_in_a_file() {
    let litter = |work: &Tree| {
        for number in 0..64 {
            work.file(format!("work/#{number:x}"), "LEFTOVER");
        }
        work.file("work/#dir/file", "LEFTOVER").dir_mode("work/#locked", 0o000).symlink("work/#link", "/etc/passwd");
        // The kernel's overlayfs empties directories in there, but no deeper ones.
        if !on_kernel() {
            work.file("work/#dir/sub/sub/file", "LEFTOVER");
        }
    };
    trap(1, |layers| {
        for name in ["a", "b", "c"] {
            layers.lower(0).file(name, format!("lower {name}"));
        }
        litter(&layers.work());
    })
    .run(|union| {
        assert_eq!(union.unfinished().len(), 0, "after the first mount");
        set_mode(&union.at("a"), 0o600);
        union.mount.unmount().expect("the union can be unmounted");
        litter(&union.layers.work());
        union.mount.mount_again().expect("a leftover is no obstacle");
        assert_eq!(union.unfinished().len(), 0, "after the second mount");
        set_mode(&union.at("b"), 0o600);
        fs::write(union.at("d"), "new d").expect("a file can be made");
        fs::remove_file(union.at("c")).expect("a file can be removed");
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names(""), ["a", "b", "d"]);
            for (name, content) in [("a", "lower a"), ("b", "lower b"), ("d", "new d")] {
                assert_eq!(union.merged().read(name), content.as_bytes());
                assert_eq!(union.upper().read(name), content.as_bytes());
            }
        });
    });
}

#[test]
fn what_appears_in_the_workdir_while_mounted_never_ends_up_in_a_file() {
    let names: Vec<String> = (0..20).map(|number| format!("f{number}")).collect();
    trap(1, |layers| {
        for name in &names {
            layers.lower(0).file(name, "lower");
        }
    })
    .run(|union| {
        for number in 0..256 {
            let name = format!("work/#{number:x}");
            // A name that the mount uses just now is its own.
            if !union.layers.work().exists(&name) {
                union.layers.work().file(name, "FOREIGN");
            }
        }
        for name in &names {
            // Refusing is as good as not being disturbed.
            let changed = fs::set_permissions(union.at(name), fs::Permissions::from_mode(0o600)).is_ok();
            assert_eq!(union.merged().read(name), b"lower");
            assert_eq!(union.merged().mode(name), if changed { 0o600 } else { 0o644 });
        }
        union.live_and_after_remount(|union| {
            for name in &names {
                assert_eq!(union.merged().read(name), b"lower");
            }
        });
    });
}

/// Says why a small disk cannot be had, where it cannot.
pub fn has_small_disk() -> bool {
    if privilege() == Privilege::Plain {
        record_skip(&test_name(), "a small disk needs the privilege to mount a tmpfs");
    }
    privilege() != Privilege::Plain
}

fn free_blocks(tree: &Tree) -> u64 {
    rustix::fs::statvfs(tree.root()).expect("statvfs").f_bfree
}

/// Fills a file with data that is no hole.
fn fill(tree: &Tree, name: &str, size: usize) {
    tree.file(name, vec![7; size]);
}

#[test]
fn enospc_in_copy_up_leaves_no_residue_and_no_half_file() {
    if !has_small_disk() {
        return;
    }
    const SIZE: usize = 16 << 20;
    trap(1, |layers| {
        fill(&layers.lower(0), "big", SIZE);
        layers.lower(0).file("small", "lower");
    })
    .on_a_disk_of("4m")
    .run(|union| {
        // What the mount keeps in the workdir comes with the first change.
        set_mode(&union.at("small"), 0o600);
        let free = free_blocks(&union.upper());
        // Where writes are kept it comes with what sends them.
        let append = |mut file: fs::File| file.write_all(b"x").and_then(|()| file.sync_all());
        assert_eq!(errno(OpenOptions::new().append(true).open(union.at("big")).and_then(append)), Errno::NOSPC);
        assert_eq!(errno(fs::set_permissions(union.at("big"), fs::Permissions::from_mode(0o600))), Errno::NOSPC);
        assert_eq!(errno(fs::hard_link(union.at("big"), union.at("link"))), Errno::NOSPC);
        assert_eq!(errno(fs::rename(union.at("big"), union.at("moved"))), Errno::NOSPC);
        if union.io == Io::Writeback {
            // The kernel shows what it could not write until it forgets it.
            union.remount();
        }
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names(""), ["big", "small"]);
            assert_eq!(union.merged().mode("big"), 0o644);
            assert!(union.merged().read("big") == vec![7; SIZE], "the content of the file that could not be copied");
            assert_eq!(union.upper().names(""), ["small"]);
            assert_eq!(union.unfinished().len(), 0);
            assert!(
                free_blocks(&union.upper()) + 4 >= free,
                "{} of {free} blocks are left",
                free_blocks(&union.upper())
            );
        });
        fs::write(union.at("small"), "still works").expect("a small file can be written");
        assert_eq!(union.upper().read("small"), b"still works");
        if !on_kernel() {
            let log = fs::read_to_string(union.layers.path("daemon.log")).expect("the daemon has one");
            assert!(log.contains("WARN") && log.contains("No space left"), "{log}");
        }
    });
}

#[test]
fn unlink_rename_over_and_truncation_to_nothing_copy_no_data_of_a_lower_file() {
    if !has_small_disk() {
        return;
    }
    const SIZE: usize = 16 << 20;
    trap(1, |layers| {
        for name in ["unlinked", "replaced", "opened", "d/removed"] {
            fill(&layers.lower(0), name, SIZE);
        }
    })
    .on_a_disk_of("4m")
    .run(|union| {
        fs::remove_file(union.at("unlinked")).expect("no data is copied");
        fs::write(union.at("new"), "new").expect("a file can be made");
        fs::rename(union.at("new"), union.at("replaced")).expect("no data is copied");
        fs::File::create(union.at("opened")).expect("no data is copied");
        fs::remove_dir_all(union.at("d")).expect("no data is copied");
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names(""), ["opened", "replaced"]);
            assert_eq!(union.merged().read("replaced"), b"new");
            assert_eq!(union.merged().read("opened"), b"");
            for name in ["unlinked", "d"] {
                assert!(union.upper().is_whiteout(name), "{name}");
            }
        });
    });
}

#[test]
fn removing_a_sparse_lower_file_of_a_terabyte_takes_no_time_and_no_space() {
    trap(1, |layers| {
        layers.lower(0).sparse("huge", 1 << 40).dir("d");
    })
    .run(|union| {
        let began = std::time::Instant::now();
        fs::rename(union.at("d"), union.at("e")).expect("a directory can be renamed");
        fs::remove_file(union.at("huge")).expect("a huge file can be removed");
        assert!(began.elapsed().as_secs() < 5, "it took {:?}", began.elapsed());
        union.live_and_after_remount(|union| {
            assert!(!union.merged().exists("huge"));
            assert!(union.upper().is_whiteout("huge"));
        });
    });
}

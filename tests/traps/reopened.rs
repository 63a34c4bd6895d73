//! Files that are opened again: what the daemon or the kernel keeps of one after it was closed is never in the way.

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::union::{Union, trap, xfs_io};
use crate::support::{
    Io, Layers, Mode, Mounted, Placement, Watchdog, eventually, record_skip, require_root, test_name,
};

/// Opens and reads a file more often than once, as a file is that something is kept of.
fn read_often(path: &Path) -> Vec<u8> {
    let read = || fs::read(path).unwrap_or_else(|error| panic!("read {path:?}: {error}"));
    let first = read();
    assert_eq!(read(), first, "{path:?}");
    first
}

#[test]
fn what_was_written_without_privileges_is_read_with_them_and_after_them() {
    trap(1, |layers| {
        layers.lower(0).file_mode("lower", "first", 0o4755);
    })
    .run(|union| {
        union.merged().file_mode("upper", "first", 0o4755);
        for name in ["lower", "upper"] {
            let path = union.at(name);
            let mode = |mode| fs::set_permissions(&path, Permissions::from_mode(mode)).expect("chmod");
            // With such a bit a file is read through the page cache of the mount, and without one perhaps not.
            for (round, content) in ["first", "secnd", "third"].iter().enumerate() {
                assert_eq!(read_often(&path), content.as_bytes(), "{name}, round {round}");
                mode(0o755);
                assert_eq!(read_often(&path), content.as_bytes(), "{name}, round {round}");
                let next = ["secnd", "third", "forth"][round];
                let mut file = File::options().write(true).open(&path).expect("the file can be written");
                file.write_all(next.as_bytes()).expect("write");
                drop(file);
                mode(0o4755);
            }
            assert_eq!(read_often(&path), b"forth", "{name}");
        }
    });
}

#[test]
fn a_lower_file_that_was_read_is_read_anew_once_it_changed() {
    trap(1, |layers| {
        for name in ["written", "moded", "replaced", "swapped"] {
            layers.lower(0).file(name, "lower");
        }
    })
    .run(|union| {
        for name in ["written", "moded", "replaced", "swapped"] {
            assert_eq!(read_often(&union.at(name)), b"lower");
        }
        union.merged().file("new", "upper");
        assert_eq!(read_often(&union.at("new")), b"upper");
        fs::write(union.at("written"), "upper").expect("a lower file can be written");
        fs::set_permissions(union.at("moded"), Permissions::from_mode(0o600)).expect("chmod");
        assert_eq!(read_often(&union.at("moded")), b"lower");
        fs::write(union.at("moded"), "upper").expect("a copied up file can be written");
        fs::rename(union.at("new"), union.at("replaced")).expect("rename");
        fs::remove_file(union.at("swapped")).expect("unlink");
        fs::write(union.at("swapped"), "upper").expect("and made anew");
        for name in ["written", "moded", "replaced", "swapped"] {
            assert_eq!(read_often(&union.at(name)), b"upper", "{name}");
        }
    });
}

#[test]
fn a_removed_file_that_was_read_gives_its_space_back() {
    if !require_root("a small tmpfs") {
        return;
    }
    trap(1, |_| {}).on_a_disk_of("8m").run(|union| {
        let free = |union: &Union| rustix::fs::statvfs(union.mount.path()).expect("statvfs").f_bfree;
        let before = free(union);
        let remove = |name: &str| fs::remove_file(union.at(name)).expect("unlink");
        let replace = |name: &str| {
            fs::write(union.at("small"), "small").expect("there is space");
            fs::rename(union.at("small"), union.at(name)).expect("rename");
            remove(name);
        };
        for give_back in [&remove as &dyn Fn(&str), &replace] {
            fs::write(union.at("large"), vec![b'x'; 4 << 20]).expect("there is space");
            assert_eq!(read_often(&union.at("large")).len(), 4 << 20);
            assert!(free(union) < before);
            let mut open = File::open(union.at("large")).expect("open");
            give_back("large");
            assert_eq!(open.read(&mut [0; 4]).expect("a removed file can be read while it is open"), 4);
            drop(open);
            eventually("the space is free again", || free(union) == before);
        }
    });
}

#[test]
fn writers_and_readers_that_meet_at_a_lower_file_are_all_served() {
    const FILES: usize = 8;
    trap(1, |layers| {
        for file in 0..FILES {
            layers.lower(0).file(format!("f{file}"), vec![b'l'; 4 << 20]);
        }
    })
    .run(|union| {
        for file in 0..FILES {
            let path = union.at(format!("f{file}"));
            let cuts = file % 2 == 0;
            let early = File::open(&path).expect("a lower file can be read");
            std::thread::scope(|scope| {
                for writer in 0..4 {
                    let path = &path;
                    scope.spawn(move || {
                        // While the first of them copies up, the others come.
                        for _ in 0..20 {
                            if writer == 0 {
                                let how =
                                    if cuts { File::create(path) } else { File::options().append(true).open(path) };
                                how.and_then(|mut file| file.write_all(b"w")).expect("it can be written");
                            } else {
                                File::open(path).and_then(|mut file| file.read(&mut [0; 4])).expect("and read");
                            }
                        }
                    });
                }
            });
            drop(early);
            assert_eq!(read_often(&path).len(), if cuts { 1 } else { (4 << 20) + 20 });
        }
    });
}

#[test]
fn a_descriptor_of_a_lower_file_can_be_read_and_run_anew_after_the_file_was_copied_up() {
    trap(1, |layers| {
        layers.lower(0).file("f", "content");
        fs::copy("/bin/true", layers.lower(0).path("true")).expect("every system has /bin/true");
    })
    .run(|union| {
        let (file, program) = (union.at("f"), union.at("true"));
        let early = [&file, &program].map(|path| File::open(path).expect("a lower file can be read"));
        for path in [&file, &program] {
            let mode = fs::metadata(path).expect("stat").permissions().mode() ^ 0o1;
            fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod copies it up");
        }
        let again = early.each_ref().map(|file| format!("/proc/self/fd/{}", file.as_raw_fd()));
        assert_eq!(fs::read(&again[0]).expect("it can be opened by its descriptor"), b"content");
        let ran = Command::new(&again[1]).status().expect("a program can be run by its descriptor");
        assert!(ran.success());
        assert_eq!(read_often(&file), b"content");
    });
}

#[test]
fn what_is_written_through_a_mapping_is_seen_in_the_times() {
    trap(1, |layers| {
        layers.lower(0).file("lower", vec![b'l'; 4096]);
    })
    .run(|union| {
        union.merged().file("upper", vec![b'u'; 4096]);
        for name in ["lower", "upper", "new"] {
            let path = union.at(name);
            let time = || fs::metadata(&path).and_then(|meta| meta.modified()).expect("stat");
            if name != "new" {
                // Known to the kernel from before.
                time();
            }
            let mut process =
                Command::new("xfs_io").arg("-f").arg(&path).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
            let process = process.as_mut().expect("xfs_io (package xfsprogs) is installed");
            let mut asked = process.stdin.take().expect("it is piped");
            // The mapping stays when the file is closed.
            writeln!(asked, "truncate 4096\nmmap -rw 0 4096\nclose").expect("xfs_io listens");
            eventually("it is mapped", || {
                let maps = fs::read_to_string(format!("/proc/{}/maps", process.id())).unwrap_or_default();
                maps.lines().any(|line| line.contains("rw-s") && line.ends_with(&format!("/{name}")))
            });
            eventually("it is closed", || {
                let links = fs::read_dir(format!("/proc/{}/fd", process.id())).expect("it runs");
                links.flatten().all(|link| fs::read_link(link.path()).is_ok_and(|to| to != path))
            });
            let before = time();
            // Longer than a tick, by which the kernel's own times differ.
            thread::sleep(Duration::from_millis(20));
            writeln!(asked, "mwrite -S 0x58 0 4\nmsync -s 0 4096").expect("xfs_io listens");
            eventually("the time is that of the write", || time() > before);
            drop(asked);
            assert!(process.wait().expect("an own child can be waited for").success());
            assert_eq!(&read_often(&path)[..4], b"XXXX");
        }
    });
}

#[test]
fn who_asks_for_the_times_while_a_mapping_is_written_back_does_not_make_old_ones_stay() {
    trap(1, |_| {}).run(|union| {
        let (path, below) = (union.merged().file("f", vec![b'f'; 4096]).path("f"), union.upper().path("f"));
        let time = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).expect("stat");
        let writes = ["mwrite 0 4", "msync -s 0 4096"].repeat(50);
        // Times that are the kernel's own come with the file's sync.
        let commands = ["mmap -rw 0 4096"].into_iter().chain(writes).chain(["fsync"]).collect::<Vec<_>>();
        thread::scope(|scope| {
            let rounds = scope.spawn(|| {
                for _ in 0..30 {
                    xfs_io(&[], &commands, &path);
                    eventually("the time is that of the last write", || time(&path) == time(&below));
                }
            });
            while !rounds.is_finished() {
                time(&path);
            }
        });
    });
}

#[test]
fn locks_of_an_empty_lower_file_hold_against_who_opens_it_once_it_is_in_upper() {
    trap(1, |layers| {
        layers.lower(0).file("lock", "");
    })
    .run(|union| {
        let path = union.at("lock");
        let holder = File::open(&path).expect("a lower file can be read");
        flock(&holder, FlockOperation::LockExclusive).expect("nobody has it");
        let lock = |file: std::io::Result<File>| {
            flock(file.expect("it can be opened"), FlockOperation::NonBlockingLockExclusive)
        };
        for round in 0..2 {
            assert_eq!(lock(File::options().append(true).open(&path)), Err(Errno::WOULDBLOCK), "round {round}");
            assert_eq!(lock(File::open(&path)), Err(Errno::WOULDBLOCK), "round {round}");
            fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("chmod");
        }
        drop(holder);
        // A process that another test has just forked may hold the descriptor until it runs its program.
        eventually("the lock is free", || lock(File::open(&path)) == Ok(()));
    });
}

#[test]
fn files_are_passed_through_by_default_where_that_is_possible_and_by_nobody_elses_file_system() {
    let placement = Placement::OneFs;
    if let Some(reason) = (Mode { io: Io::Passthrough, placement }).obstacle() {
        record_skip(&test_name(), &reason);
        return;
    }
    let _watchdog = Watchdog::start();
    let layers = Layers::new(1, placement);
    layers.lower(0).file("f", "content");
    let debug = ["--log-level", "debug"];
    let passes = |log: &str| log.lines().any(|line| line.contains("features in use") && line.contains("PASSTHROUGH"));
    let union = layers.spec(Io::Auto).args(debug).mount_ours();
    assert_eq!(fs::read(union.path().join("f")).expect("read"), b"content");
    assert!(passes(&union.log()), "{}", union.log());
    // A union on it: its layers are on FUSE, whose files the kernel does not take.
    let above = Layers::new(0, placement);
    let mut spec = above.spec(Io::Auto).args(debug);
    spec.lowers = vec![union.path().to_owned()];
    let above = spec.mount_ours();
    assert_eq!(fs::read(above.path().join("f")).expect("read"), b"content");
    assert!(above.log().contains("features in use") && !passes(&above.log()), "{}", above.log());
}

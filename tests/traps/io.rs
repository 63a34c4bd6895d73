//! Reading and writing in every way, on lower files, upper files and files in between.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{FallocateFlags, FlockOperation, IFlags, OFlags};
use rustix::io::Errno;

use super::union::{errno, trap, xfs_io};
use crate::support::{Io, on_kernel, require_root};

fn read_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap_or_else(|error| panic!("open {path:?}: {error}"))
}

#[test]
fn appending_writers_of_a_lower_file_lose_nothing() {
    trap(1, |layers| {
        layers.lower(0).file("log", "lower\n");
    })
    .run(|union| {
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let path = union.at("log");
                scope.spawn(move || {
                    for line in 0..50 {
                        let mut file = OpenOptions::new().append(true).open(&path).expect("the file is there");
                        file.write_all(format!("{writer} {line}\n").as_bytes()).expect("the file can be written");
                    }
                });
            }
        });
        union.live_and_after_remount(|union| {
            let content = String::from_utf8(union.merged().read("log")).expect("text was written");
            let mut lines: Vec<&str> = content.lines().collect();
            assert_eq!((lines[0], lines.len()), ("lower", 201));
            lines.sort_unstable();
            lines.dedup();
            assert_eq!(lines.len(), 201, "each line is there once");
            assert_eq!(union.upper().read("log"), content.as_bytes());
        });
    });
}

#[test]
fn o_append_set_later_and_positioned_writes_go_where_they_should() {
    trap(1, |layers| {
        layers.lower(0).file("f", "0123456789");
    })
    .run(|union| {
        let file = read_write(&union.at("f"));
        file.write_all_at(b"ab", 4).expect("pwrite");
        rustix::fs::fcntl_setfl(&file, OFlags::APPEND).expect("O_APPEND can be set later");
        rustix::io::write(&file, b"end").expect("write");
        rustix::fs::fcntl_setfl(&file, OFlags::empty()).expect("and taken back");
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).expect("seek");
        rustix::io::write(&file, b"X").expect("write");
        let mut tail = [0; 4];
        assert_eq!(file.read_at(&mut tail, 11).expect("pread"), 2);
        assert_eq!(file.read_at(&mut tail, 100).expect("pread behind the end"), 0);
        drop(file);
        union.live_and_after_remount(|union| {
            for tree in [union.merged(), union.upper()] {
                assert_eq!(tree.read("f"), b"X123ab6789end");
            }
        });
    });
}

/// Memory that O_DIRECT takes.
#[repr(align(4096))]
struct Page([u8; 4096]);

#[test]
fn o_direct_reads_and_writes_lower_and_upper_files() {
    trap(1, |layers| {
        layers.lower(0).file("lower", vec![b'l'; 8192]);
    })
    .run(|union| {
        fs::write(union.at("upper"), vec![b'u'; 8192]).expect("a file can be made");
        for (name, old) in [("lower", b'l'), ("upper", b'u')] {
            let open = |write: bool| {
                let direct = i32::try_from(OFlags::DIRECT.bits()).expect("an open flag");
                OpenOptions::new().read(true).write(write).custom_flags(direct).open(union.at(name)).expect("O_DIRECT")
            };
            let mut page = Page([0; 4096]);
            open(false).read_exact_at(&mut page.0, 4096).expect("a page can be read");
            assert!(page.0 == [old; 4096], "{name} read with O_DIRECT");
            open(true).write_all_at(&Page([b'x'; 4096]).0, 4096).expect("a page can be written");
            let expected = [vec![old; 4096], vec![b'x'; 4096]].concat();
            assert!(union.merged().read(name) == expected, "{name} after a write with O_DIRECT");
            // A buffered write is seen by the next direct read, and the other way round.
            read_write(&union.at(name)).write_all_at(b"buffered", 0).expect("write");
            open(false).read_exact_at(&mut page.0, 0).expect("a page can be read");
            assert_eq!(&page.0[..8], b"buffered");
        }
        union.live_and_after_remount(|union| {
            for name in ["lower", "upper"] {
                let content = union.merged().read(name);
                assert_eq!((&content[..8], content[8191], content.len()), (&b"buffered"[..], b'x', 8192), "{name}");
                assert!(union.upper().read(name) == content);
            }
        });
    });
}

#[test]
fn fallocate_extends_keeps_punches_and_zeroes() {
    const PAGE: u64 = 4096;
    trap(1, |layers| {
        layers.lower(0).file("f", vec![b'l'; 4 * PAGE as usize]).file("g", "short");
    })
    .run(|union| {
        let file = read_write(&union.at("f"));
        let zero = rustix::fs::fallocate(&file, FallocateFlags::ZERO_RANGE, PAGE / 2, 100);
        // tmpfs, where the upper may be, has no zeroing.
        assert!(matches!(zero, Ok(()) | Err(Errno::OPNOTSUPP)), "{zero:?}");
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, punch, 2 * PAGE, PAGE).expect("a hole can be punched");
        rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 4 * PAGE, PAGE).expect("space can be kept");
        assert_eq!(file.metadata().expect("fstat").len(), 4 * PAGE);
        let grown = read_write(&union.at("g"));
        rustix::fs::fallocate(&grown, FallocateFlags::empty(), 0, PAGE).expect("a file can be extended");
        assert_eq!(grown.metadata().expect("fstat").len(), PAGE);
        let collapse = rustix::fs::fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, PAGE);
        // FUSE knows no such request.
        assert!(on_kernel() || collapse == Err(Errno::OPNOTSUPP), "{collapse:?}");
        drop((file, grown));
        union.live_and_after_remount(|union| {
            for tree in [union.merged(), union.upper()] {
                let content = tree.read("f");
                let begin = content.len() - 2 * PAGE as usize;
                let (hole, rest) = content[begin..].split_at(PAGE as usize);
                assert!(hole.iter().all(|byte| *byte == 0), "the hole reads as zeros");
                assert!(rest.iter().all(|byte| *byte == b'l'), "what is behind it stays");
                let zeroed = &content[PAGE as usize / 2..][..100];
                assert!(on_kernel() || zero.is_err() || zeroed.iter().all(|byte| *byte == 0));
                assert_eq!(tree.read("g").len() as u64, PAGE);
                assert_eq!(&tree.read("g")[..6], b"short\0");
            }
        });
    });
}

#[test]
fn copy_file_range_copies_between_lower_and_upper_files() {
    trap(2, |layers| {
        layers.lower(0).file("source", "0123456789".repeat(10_000));
        layers.lower(1).file("target", "lower target");
    })
    .run(|union| {
        if on_kernel() && union.layers.lowers()[0].starts_with(union.layers.path("fs2")) {
            // The kernel's overlayfs does not fall back where the layers' file systems differ.
            return;
        }
        let source = File::open(union.at("source")).expect("the file is there");
        fs::write(union.at("new"), "").expect("a file can be made");
        for name in ["new", "target"] {
            let (mut from, mut to) = (10, 5);
            let file = read_write(&union.at(name));
            let mut left = 50_000;
            while left > 0 {
                let copied = rustix::fs::copy_file_range(&source, Some(&mut from), &file, Some(&mut to), left);
                left -= copied.expect("a range can be copied");
            }
            assert_eq!((from, to), (50_010, 50_005));
        }
        drop(source);
        union.live_and_after_remount(|union| {
            let copied = "0123456789".repeat(5_000);
            assert!(union.merged().read("new") == format!("\0\0\0\0\0{copied}").as_bytes());
            assert!(union.merged().read("target") == format!("lower{copied}").as_bytes());
            assert!(union.upper().read("target") == union.merged().read("target"));
            assert!(!union.upper().exists("source"));
        });
    });
}

#[test]
fn inode_flags_and_versions_are_read_and_flags_are_set() {
    if !require_root("the immutable flag") {
        return;
    }
    trap(1, |layers| {
        layers.lower(0).file("f", "lower");
    })
    .run(|union| {
        let lower = File::open(union.layers.lower(0).path("f")).expect("the file is there");
        let file = File::open(union.at("f")).expect("the file is there");
        let flags = |file: &File| rustix::fs::ioctl_getflags(file).map(|flags| flags & IFlags::IMMUTABLE);
        assert_eq!(flags(&file), flags(&lower));
        assert_eq!(flags(&file), Ok(IFlags::empty()));
        drop((file, lower));
        fs::write(union.at("f"), "changed").expect("a file is copied up");
        // FS_IOC_GETVERSION, for which rustix has no call; not every file system answers it.
        let version = |path: &Path| {
            let output =
                Command::new("lsattr").arg("-v").arg(path).output().expect("lsattr (package e2fsprogs) is installed");
            (output.status.success(), output.stdout.split(|byte| *byte == b' ').next().map(<[u8]>::to_vec))
        };
        if !on_kernel() {
            assert_eq!(version(&union.at("f")), version(&union.upper().path("f")));
        }
        let file = File::open(union.at("f")).expect("the file is there");
        let set =
            |flags| rustix::fs::ioctl_setflags(&file, rustix::fs::ioctl_getflags(&file)? & !IFlags::IMMUTABLE | flags);
        match set(IFlags::IMMUTABLE) {
            // The kernel's overlayfs cannot where the lower's file system is another.
            Err(Errno::OPNOTSUPP) if on_kernel() => return,
            done => done.expect("root may set flags"),
        }
        // A kernel that opens without asking learns it from the write, or where that is kept from what sends it.
        let append = |mut file: File| file.write_all(b"+").and_then(|()| file.sync_all());
        let appended = OpenOptions::new().append(true).open(union.at("f")).and_then(append);
        let changes = [appended, fs::remove_file(union.at("f")), fs::rename(union.at("f"), union.at("g"))];
        // Before anything is asserted: an immutable file would outlive the test.
        set(IFlags::empty()).expect("root may clear flags");
        assert_eq!(changes.map(errno), [Errno::PERM; 3]);
        drop(file);
        if union.io == Io::Writeback {
            // The kernel shows what it could not write until it forgets it.
            union.remount();
        }
        assert_eq!(union.merged().read("f"), b"changed");
        fs::remove_file(union.at("f")).expect("a file can be removed");
    });
}

/// Whether another process gets the lock: `flock` or `fcntl`, without waiting.
fn another_gets(kind: &str, path: &Path) -> bool {
    let script = match kind {
        "flock" => "use Fcntl ':flock'; open(F, '+<', $ARGV[0]) or die $!; exit(flock(F, LOCK_EX|LOCK_NB) ? 0 : 9)",
        _ => {
            "use Fcntl; open(F, '+<', $ARGV[0]) or die $!; \
             my $lock = pack('s s x![q] q q i x4', F_WRLCK, 0, 0, 0, 0); exit(fcntl(F, F_SETLK, $lock) ? 0 : 9)"
        }
    };
    let mut command = Command::new("perl");
    let status = command.args(["-e", script]).arg(path).status().expect("perl (package perl-base) is installed");
    match status.code() {
        Some(0) => true,
        Some(9) => false,
        _ => panic!("perl ended with {status}"),
    }
}

#[test]
fn locks_of_both_kinds_hold_between_processes_and_across_copy_up() {
    trap(1, |layers| {
        layers.lower(0).file("f", "lower");
    })
    .run(|union| {
        let path = union.at("f");
        let file = read_write(&path);
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).expect("nobody has the lock");
        assert!(!another_gets("flock", &path));
        assert!(another_gets("fcntl", &path), "the two kinds do not know each other");
        rustix::fs::flock(&file, FlockOperation::Unlock).expect("unlock");
        assert!(another_gets("flock", &path));

        rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).expect("nobody has the lock");
        assert!(!another_gets("fcntl", &path));
        assert!(another_gets("flock", &path));
        drop(file);
        assert!(another_gets("fcntl", &path), "closing gives the lock back");
    });
}

#[test]
fn a_shared_mapping_writes_the_union_and_the_private_one_of_a_program_does_not() {
    trap(1, |layers| {
        layers.lower(0).file("shared", vec![b'l'; 8192]);
        fs::copy("/bin/true", layers.lower(0).path("true")).expect("every system has /bin/true");
    })
    .run(|union| {
        xfs_io(&["-r"], &["mmap -r 0 8192", "mread 4096 16"], &union.at("shared"));
        assert!(!union.upper().exists("shared"), "reading copies nothing up");
        let commands = ["mmap -rw 0 8192", "mwrite -S 0x58 4096 4", "msync -s 0 8192"];
        xfs_io(&[], &commands, &union.at("shared"));
        // The loader relocates the program's data, in private pages.
        assert!(Command::new(union.at("true")).status().expect("a program can be run").success());
        union.live_and_after_remount(|union| {
            for tree in [union.merged(), union.upper()] {
                assert_eq!(&tree.read("shared")[4094..4102], b"llXXXXll");
            }
            assert!(!union.upper().exists("true"));
        });
    });
}

/// A process that has a file mapped for reading and shows its bytes when asked.
struct Mapping {
    process: std::process::Child,
    asked: std::process::ChildStdin,
    shown: BufReader<std::process::ChildStdout>,
}

impl Mapping {
    fn new(path: &Path, length: usize) -> Self {
        let mut command = Command::new("stdbuf");
        command.args(["-oL", "xfs_io", "-r"]).arg(path);
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("xfs_io (package xfsprogs) is installed");
        let mut asked = process.stdin.take().expect("it is piped");
        writeln!(asked, "mmap -r 0 {length}").expect("xfs_io listens");
        let shown = BufReader::new(process.stdout.take().expect("it is piped"));
        Self { process, asked, shown }
    }

    /// Returns the four bytes at `offset`, as text.
    fn show(&mut self, offset: usize) -> String {
        writeln!(self.asked, "mread -v {offset} 4").expect("xfs_io listens");
        loop {
            let mut line = String::new();
            assert_ne!(self.shown.read_line(&mut line).expect("xfs_io answers"), 0, "xfs_io has ended");
            if let Some((_, bytes)) = line.split_once(&format!("{offset:08x}:  ")) {
                return bytes.split_whitespace().last().unwrap_or_default().to_owned();
            }
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.process.kill().expect("an own child can be killed");
        self.process.wait().expect("an own child can be waited for");
    }
}

#[test]
fn a_reader_that_mapped_a_lower_file_before_it_was_written_sees_old_or_new_and_later_ones_see_new() {
    const SIZE: usize = 64 << 10;
    trap(1, |layers| {
        layers.lower(0).file("f", vec![b'l'; SIZE]);
    })
    .run(|union| {
        let mut early = Mapping::new(&union.at("f"), SIZE);
        assert_eq!(early.show(0), "llll");
        read_write(&union.at("f")).write_all_at(&vec![b'U'; SIZE], 0).expect("write");
        // The first page was there before the write, the last one comes after it.
        let seen = (early.show(0), early.show(SIZE - 4));
        assert!(seen.0 == seen.1 && ["llll", "UUUU"].contains(&&*seen.0), "the mapping is a mixture: {seen:?}");
        let mut late = Mapping::new(&union.at("f"), SIZE);
        assert_eq!((late.show(0), late.show(SIZE - 4)), ("UUUU".to_owned(), "UUUU".to_owned()));
        assert!(union.merged().read("f") == vec![b'U'; SIZE], "a later reader sees the write");
        drop((early, late));
        union.remount();
        assert!(union.merged().read("f") == vec![b'U'; SIZE]);
    });
}

#[test]
fn a_descriptor_from_before_the_copy_up_shows_the_attributes_of_after_it_and_reads_either_contents() {
    trap(1, |layers| {
        layers.lower(0).file("f", "lower");
    })
    .run(|union| {
        let early = File::open(union.at("f")).expect("the file is there");
        let facts = || early.metadata().map(|meta| (meta.len(), meta.mode() & 0o777, meta.nlink())).expect("fstat");
        let ino = early.metadata().expect("fstat").ino();
        assert_eq!((facts().0, facts().2), (5, 1));
        fs::write(union.at("f"), "what is in upper").expect("a file can be written");
        fs::set_permissions(union.at("f"), std::os::unix::fs::PermissionsExt::from_mode(0o640)).expect("chmod");
        assert_eq!(facts(), (16, 0o640, 1));
        let mut content = [0; 20];
        let len = early.read_at(&mut content, 0).expect("read");
        let expected: &[u8] = if union.io == Io::Passthrough && !on_kernel() { b"lower" } else { b"what is in upper" };
        assert_eq!(&content[..len], expected);
        File::options().append(true).open(union.at("f")).and_then(|mut f| f.write_all(b"!")).expect("append");
        fs::rename(union.at("f"), union.at("g")).expect("rename");
        assert_eq!(facts(), (17, 0o640, 1));
        fs::remove_file(union.at("g")).expect("unlink");
        assert_eq!(facts(), (17, 0o640, 0));
        assert_eq!(early.metadata().expect("fstat").ino(), ino);
    });
}

#[test]
fn two_descriptors_of_one_file_see_each_others_writes_and_truncations() {
    trap(1, |layers| {
        layers.lower(0).file("f", "0123456789");
    })
    .run(|union| {
        let (mut one, mut two) = (read_write(&union.at("f")), read_write(&union.at("f")));
        one.write_all(b"one").expect("write");
        let mut seen = String::new();
        two.read_to_string(&mut seen).expect("read");
        assert_eq!(seen, "one3456789");
        two.set_len(5).expect("ftruncate");
        assert_eq!(one.metadata().expect("fstat").len(), 5);
        one.seek(SeekFrom::End(0)).expect("seek");
        one.write_all(b"two").expect("write");
        seen.clear();
        two.seek(SeekFrom::Start(0)).expect("seek");
        two.read_to_string(&mut seen).expect("read");
        assert_eq!(seen, "one34two");
        File::create(union.at("f")).expect("a file can be emptied");
        assert_eq!((one.metadata().expect("fstat").len(), two.metadata().expect("fstat").len()), (0, 0));
        one.write_all_at(b"x", 3).expect("write");
        drop((one, two));
        union.live_and_after_remount(|union| assert_eq!(union.merged().read("f"), b"\0\0\0x"));
    });
}

#[test]
fn offsets_beyond_four_gigabytes_are_read_and_written() {
    const FAR: u64 = 5 << 30;
    trap(1, |layers| {
        layers.lower(0).sparse("f", FAR);
        read_write(&layers.lower(0).path("f")).write_all_at(b"lower", FAR).expect("a file can be written");
    })
    .run(|union| {
        read_write(&union.at("f")).write_all_at(b"upper", FAR + 5).expect("a file can be written");
        union.live_and_after_remount(|union| {
            let mut seen = [0; 10];
            File::open(union.at("f")).expect("the file is there").read_exact_at(&mut seen, FAR).expect("read");
            assert_eq!(&seen, b"lowerupper");
            assert!(union.upper().stat("f").blocks() * 512 < 16 << 20);
        });
    });
}

#[test]
fn syncing_works_on_files_directories_and_the_whole() {
    trap(1, |layers| {
        layers.lower(0).file("d/f", "lower");
    })
    .run(|union| {
        let file = read_write(&union.at("d/f"));
        file.write_all_at(b"upper", 0).expect("write");
        file.sync_data().expect("fdatasync");
        file.sync_all().expect("fsync");
        rustix::fs::syncfs(&file).expect("syncfs");
        drop(file);
        for (name, what) in [("d", "an upper directory"), ("", "the root")] {
            File::open(union.at(name)).and_then(|dir| dir.sync_all()).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        File::open(union.at("d/f")).and_then(|file| file.sync_all()).expect("a file open for reading");
    });
}

#[test]
fn what_is_no_file_for_reading_says_so() {
    trap(1, |layers| {
        layers.lower(0).file("f", "lower").dir("d").symlink("loop", "loop").symlink("l", "f");
    })
    .run(|union| {
        assert_eq!(errno(OpenOptions::new().write(true).open(union.at("d"))), Errno::ISDIR);
        assert_eq!(errno(fs::read(union.at("loop"))), Errno::LOOP);
        assert_eq!(errno(fs::read_dir(union.at("f"))), Errno::NOTDIR);
        assert_eq!(errno(fs::read(union.at("f/x"))), Errno::NOTDIR);
        let nofollow = i32::try_from(OFlags::NOFOLLOW.bits()).expect("an open flag");
        assert_eq!(errno(OpenOptions::new().read(true).custom_flags(nofollow).open(union.at("l"))), Errno::LOOP);
        let exclusive = OpenOptions::new().write(true).create_new(true).open(union.at("f"));
        assert_eq!(errno(exclusive), Errno::EXIST);
        assert_eq!(union.upper().names(""), Vec::<String>::new());
    });
}

#[test]
fn a_read_only_union_is_erofs_for_every_change_and_reads_everything() {
    trap(2, |layers| {
        layers.lower(0).file("d/f", "lower").dir("empty");
        layers.lower(1).file("d/g", "lower").symlink("l", "d/f");
    })
    .mounted(|spec| spec.read_only())
    .run(|union| {
        assert_eq!(union.merged().names("d"), ["f", "g"]);
        assert_eq!(union.merged().read("l"), b"lower");
        let file = union.at("d/f");
        let refusals = [
            ("write", errno(fs::write(&file, ""))),
            ("append", errno(OpenOptions::new().append(true).open(&file))),
            ("create", errno(fs::write(union.at("new"), ""))),
            ("mkdir", errno(fs::create_dir(union.at("new")))),
            ("symlink", errno(std::os::unix::fs::symlink("x", union.at("new")))),
            ("link", errno(fs::hard_link(&file, union.at("new")))),
            ("rename", errno(fs::rename(&file, union.at("new")))),
            ("unlink", errno(fs::remove_file(&file))),
            ("rmdir", errno(fs::remove_dir(union.at("empty")))),
            ("chmod", errno(fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)))),
            ("chown", errno(std::os::unix::fs::chown(&file, Some(0), Some(0)))),
        ];
        for (call, errno) in refusals {
            assert_eq!(errno, Errno::ROFS, "{call}");
        }
        let set = rustix::fs::lsetxattr(&file, "user.key", b"value", rustix::fs::XattrFlags::empty());
        assert_eq!(set, Err(Errno::ROFS));
        assert_eq!(union.upper().names(""), Vec::<String>::new());
    });
}

#[test]
fn an_append_only_file_is_appended_to_and_read() {
    if !require_root("setting the flags of files") {
        return;
    }
    trap(1, |layers| _ = layers.lower(0).file("f", "lower,")).run(|union| {
        OpenOptions::new()
            .append(true)
            .open(union.at("f"))
            .and_then(|mut f| f.write_all(b"upper,"))
            .expect("it is copied up");
        let upper = fs::File::open(union.upper().path("f")).expect("it is in upper");
        let flags = rustix::fs::ioctl_getflags(&upper).expect("the file system has flags");
        union.remount();
        rustix::fs::ioctl_setflags(&upper, flags | IFlags::APPEND).expect("root may set flags");
        OpenOptions::new()
            .append(true)
            .open(union.at("f"))
            .and_then(|mut f| f.write_all(b"more").and_then(|()| f.sync_all()))
            .expect("it takes more");
        assert_eq!(fs::read_to_string(union.at("f")).expect("it can be read"), "lower,upper,more");
        // The kernel's overlayfs refuses the open; without asking for it, the kernel's FUSE does not know until it has written.
        let write = |file: File| file.write_at(b"X", 0).and_then(|_| file.sync_all());
        let written = OpenOptions::new().write(true).open(union.at("f")).and_then(write);
        assert_eq!(errno(written), Errno::PERM);
        rustix::fs::ioctl_setflags(&upper, flags).expect("root may set flags");
        assert_eq!(union.upper().read("f"), b"lower,upper,more");
    });
}

//! Names and paths of every length that Linux allows, and the names that mean something in a layer.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::union::{errno, is_ours, trap};

/// The longest path that a system call takes, its terminating zero left out (path_resolution(7)).
const PATH_MAX: usize = 4095;

fn long(length: usize) -> String {
    "n".repeat(length)
}

#[test]
fn a_name_of_255_bytes_is_read_deleted_and_made_again() {
    let name = long(255);
    trap(2, |layers| {
        layers.lower(1).file(&name, "lower");
    })
    .run(|union| {
        assert_eq!(union.merged().read(&name), b"lower");
        fs::remove_file(union.at(&name)).expect("a long name can be removed");
        union.live_and_after_remount(|union| {
            assert!(!union.merged().exists(&name));
            assert_eq!(union.merged().names(""), Vec::<String>::new());
            assert!(union.upper().is_whiteout(&name));
        });
        fs::write(union.at(&name), "new").expect("a long name can be made again");
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().read(&name), b"new");
            assert_eq!(union.upper().read(&name), b"new");
        });
        fs::remove_file(union.at(&name)).expect("a long name can be removed twice");
        union.live_and_after_remount(|union| assert!(!union.merged().exists(&name)));
    });
}

#[test]
fn a_directory_name_of_255_bytes_is_removed_and_made_again_empty() {
    let name = long(255);
    trap(1, |layers| {
        layers.lower(0).file(PathBuf::from(&name).join(&name), "lower");
    })
    .run(|union| {
        fs::remove_dir_all(union.at(&name)).expect("a long name can be removed");
        union.live_and_after_remount(|union| assert!(!union.merged().exists(&name)));
        fs::create_dir(union.at(&name)).expect("a long name can be made again");
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names(&name), Vec::<String>::new());
            assert!(union.upper().is_opaque(&name));
        });
    });
}

#[test]
fn a_name_of_256_bytes_is_enametoolong_for_every_call() {
    let name = long(256);
    trap(1, |layers| {
        layers.lower(0).file("file", "lower").dir("dir");
    })
    .run(|union| {
        let path = union.at(&name);
        assert_eq!(errno(fs::symlink_metadata(&path)), Errno::NAMETOOLONG);
        assert_eq!(errno(fs::read(&path)), Errno::NAMETOOLONG);
        assert_eq!(errno(fs::write(&path, "")), Errno::NAMETOOLONG);
        assert_eq!(errno(fs::create_dir(&path)), Errno::NAMETOOLONG);
        assert_eq!(errno(symlink("target", &path)), Errno::NAMETOOLONG);
        assert_eq!(errno(fs::hard_link(union.at("file"), &path)), Errno::NAMETOOLONG);
        assert_eq!(errno(fs::rename(union.at("file"), &path)), Errno::NAMETOOLONG);
        assert_eq!(errno(fs::rename(union.at("dir"), &path)), Errno::NAMETOOLONG);
        assert_eq!(errno(fs::remove_file(&path)), Errno::NAMETOOLONG);
        assert_eq!(errno(fs::remove_dir(&path)), Errno::NAMETOOLONG);
        assert_eq!(union.upper().names(""), Vec::<String>::new());
    });
}

#[test]
fn statfs_says_that_names_have_255_bytes_and_counts_the_upper() {
    trap(1, |_| {}).run(|union| {
        let merged = rustix::fs::statvfs(union.at("")).expect("statvfs");
        let upper = rustix::fs::statvfs(union.upper().root()).expect("statvfs");
        assert_eq!(merged.f_namemax, 255);
        assert_eq!(merged.f_blocks * merged.f_frsize, upper.f_blocks * upper.f_frsize);
        assert!(merged.f_bavail > 0 && merged.f_bavail <= merged.f_blocks);
    });
}

#[test]
fn a_path_of_path_max_is_read_written_and_removed() {
    trap(1, |layers| {
        // Short enough to exist in the lower as well, whose own path is longer than the mountpoint's.
        let mut deep = PathBuf::from("top");
        while layers.lower(0).path(&deep).as_os_str().len() < PATH_MAX - 2 * 100 {
            deep.push(long(99));
        }
        layers.lower(0).file(deep.join("lower"), "lower");
    })
    .run(|union| {
        let mut deep = union.at("top");
        while deep.join(long(99)).as_os_str().len() <= PATH_MAX - 2 && deep.join(long(99)).exists() {
            deep.push(long(99));
        }
        fs::write(deep.join("lower"), "changed").expect("a deep file is copied up");
        while deep.as_os_str().len() < PATH_MAX - 110 {
            deep.push(long(99));
            fs::create_dir(&deep).expect("a deep directory can be made");
        }
        let left = PATH_MAX - deep.as_os_str().len() - 1;
        let longest = deep.join(long(left));
        assert_eq!(longest.as_os_str().len(), PATH_MAX);
        fs::write(&longest, "deep").expect("the longest path can be written");
        assert_eq!(errno(fs::write(deep.join(long(left + 1)), "")), Errno::NAMETOOLONG);
        union
            .live_and_after_remount(|_| assert_eq!(fs::read(&longest).expect("the longest path can be read"), b"deep"));
        fs::remove_file(&longest).expect("the longest path can be removed");
        fs::remove_dir_all(union.at("top")).expect("a deep tree can be removed");
        union.live_and_after_remount(|union| {
            assert!(!union.merged().exists("top"));
            assert!(union.upper().is_whiteout("top"));
        });
    });
}

fn open_dir(parent: impl AsFd, name: &str) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty()).unwrap_or_else(|errno| panic!("open {name}: {errno}"))
}

#[test]
fn a_tree_deeper_than_path_max_is_built_copied_up_moved_and_emptied() {
    const DEPTH: usize = 60;
    let step = long(120);
    let descend = |root: OwnedFd| (0..DEPTH).fold(root, |dir, _| open_dir(&dir, &step));
    let write = |dir: &OwnedFd, name: &str, content: &[u8]| {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, name, flags, Mode::from(0o644)).expect("a file can be made");
        rustix::io::write(&file, content).expect("a file can be written");
    };
    let read = |dir: &OwnedFd, name: &str| {
        let file = rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).expect("it is there");
        let mut content = [0; 16];
        let length = rustix::io::read(&file, &mut content).expect("a file can be read");
        content[..length].to_vec()
    };
    trap(1, |layers| {
        // Beside the checked tree: the check walks by path, which this is too deep for.
        layers.lower(0).dir("top");
    })
    .run(|union| {
        let mut dir = open_dir(CWD, union.at("top").to_str().expect("the test's paths are text"));
        for _ in 0..DEPTH {
            rustix::fs::mkdirat(&dir, &*step, Mode::from(0o755)).expect("a deep directory can be made");
            dir = open_dir(&dir, &step);
        }
        write(&dir, "file", b"deep");
        drop(dir);
        union.remount();
        fs::rename(union.at("top"), union.at("moved")).expect("a deep tree can be moved");
        let top = |path: PathBuf| open_dir(CWD, path.to_str().expect("the test's paths are text"));
        let dir = descend(top(union.at("moved")));
        assert_eq!(read(&dir, "file"), b"deep");
        write(&dir, "file", b"new");
        drop(dir);
        union.remount();
        let dir = descend(top(union.at("moved")));
        assert_eq!(read(&dir, "file"), b"new");
        rustix::fs::unlinkat(&dir, "file", AtFlags::empty()).expect("a deep file can be removed");
        drop(dir);
        fs::remove_dir_all(union.at("moved")).expect("a deep tree can be removed");
        union.live_and_after_remount(|union| assert_eq!(union.merged().names(""), Vec::<String>::new()));
    });
}

#[test]
fn every_byte_but_slash_and_zero_may_stand_in_a_name() {
    let name = OsString::from_vec((1..=255).filter(|byte| *byte != b'/').take(200).collect());
    let odd =
        [name.as_os_str(), OsStr::from_bytes(b"\xff\xfe"), OsStr::new("a:b\\:c"), OsStr::new("#0"), OsStr::new("...")];
    trap(2, |layers| {
        for name in odd {
            layers.lower(1).file(name, "lower");
            layers.lower(0).file(PathBuf::from("d").join(name), "lower");
        }
    })
    .run(|union| {
        let count = |union: &super::union::Union, dir: &str| union.merged().names(dir).len();
        assert_eq!(count(union, "d"), odd.len());
        for name in odd {
            fs::write(union.at(name), "new").expect("an odd name can be written");
            fs::remove_file(union.at("d").join(name)).expect("an odd name can be removed");
        }
        union.live_and_after_remount(|union| {
            for name in odd {
                assert_eq!(union.merged().read(name), b"new");
                assert_eq!(union.upper().read(name), b"new");
            }
            assert_eq!(count(union, "d"), 0);
        });
    });
}

#[test]
fn a_name_that_is_a_whiteout_in_a_layer_can_not_be_made() {
    if !is_ours("to the kernel `.wh.x` is a name like others") {
        return;
    }
    trap(1, |layers| {
        layers.lower(0).file("x", "lower").file("file", "lower").dir("dir");
    })
    .run(|union| {
        for name in [".wh.x", ".wh.", ".wh..wh..opq"] {
            let path = union.at(name);
            let node = rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from(0o644), 0);
            let refusals = [
                ("create", errno(fs::write(&path, ""))),
                ("mkdir", errno(fs::create_dir(&path))),
                ("symlink", errno(symlink("target", &path))),
                ("link", errno(fs::hard_link(union.at("file"), &path))),
                ("rename", errno(fs::rename(union.at("file"), &path))),
                ("rename of a directory", errno(fs::rename(union.at("dir"), &path))),
                ("mknod", node.expect_err("the name is refused")),
            ];
            for (call, errno) in refusals {
                assert!(matches!(errno, Errno::INVAL | Errno::PERM), "{call} {name}: {errno:?}");
            }
            assert_eq!(errno(fs::symlink_metadata(&path)), Errno::NOENT, "{name}");
        }
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names(""), ["dir", "file", "x"]);
            assert_eq!(union.merged().read("x"), b"lower");
            assert_eq!(union.upper().names(""), Vec::<String>::new());
        });
    });
}

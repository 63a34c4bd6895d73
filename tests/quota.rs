//! `--quota-size` and `--quota-inodes`: what would exceed them fails by ENOSPC and leaves nothing half done, and what is said to
//! be used is what upper holds.

mod support;

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
use support::{
    Io, Layers, LowersUnchanged, Mounted, OurMount, Placement, Privilege, Rng, binary, finish, no_mounts, on_kernel,
    privilege,
};

/// Bytes and inodes of a tree, each inode once.
fn held(root: &Path) -> (u64, u64) {
    held_with(root, None)
}

/// The same of an upper, with what it holds in the index alone, and with what has lost its last name and is open in `process`: its
/// space is not free either.
fn held_with(root: &Path, process: Option<u32>) -> (u64, u64) {
    let (mut seen, mut bytes, mut left) = (HashSet::new(), 0, vec![root.to_owned()]);
    let index = fs::read_dir(root.with_file_name("work").join("index")).into_iter().flatten();
    left.extend(index.map(|entry| entry.expect("a listing").path()));
    let device = fs::metadata(root).expect("the tree can be read").dev();
    for entry in process.into_iter().flat_map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs")) {
        // Descriptors come and go.
        let Ok(metadata) = entry.and_then(|entry| fs::metadata(entry.path())) else { continue };
        if metadata.dev() == device && metadata.nlink() == 0 && seen.insert(metadata.ino()) {
            bytes += metadata.blocks() * 512;
        }
    }
    while let Some(path) = left.pop() {
        let metadata = fs::symlink_metadata(&path).expect("the tree can be read");
        if seen.insert(metadata.ino()) {
            bytes += metadata.blocks() * 512;
        }
        if metadata.is_dir() {
            left.extend(
                fs::read_dir(&path).expect("the tree can be read").map(|entry| entry.expect("a listing").path()),
            );
        }
    }
    (bytes, seen.len() as u64)
}

/// The bytes and inodes that a mount says are used.
fn used(at: &Path) -> (u64, u64) {
    let ran = finish(Command::new(binary()).args(["status", "--json"]).arg(at));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let status: Value = serde_json::from_str(&ran.out).expect("it is JSON");
    let figure = |of: &str| status["quota"][of]["used"].as_u64().unwrap_or_else(|| panic!("{of}: {status:#}"));
    (figure("bytes"), figure("inodes"))
}

/// Whether such mounts can be made; else the test is skipped.
fn possible() -> bool {
    let obstacle = on_kernel().then(|| "the kernel's overlayfs has no quota".to_owned());
    match obstacle.or_else(no_mounts) {
        Some(reason) => support::record_skip(&support::test_name(), &reason),
        None => return true,
    }
    false
}

/// The I/O modes in which this user can mount.
fn modes() -> Vec<Io> {
    let all = [Io::Auto, Io::Cached, Io::Passthrough, Io::Writeback];
    all.into_iter().filter(|io| privilege() == Privilege::Root || matches!(io, Io::Auto | Io::Cached)).collect()
}

/// Mounts with room for so much more than upper holds.
fn mount(layers: &Layers, io: Io, bytes: u64, inodes: u64) -> OurMount {
    let (held_bytes, held_inodes) = held(&layers.path("upper"));
    let size = (held_bytes + bytes).to_string();
    let inodes = (held_inodes + inodes).to_string();
    layers.spec(io).args(["--quota-size", &size, "--quota-inodes", &inodes]).mount_ours()
}

fn is_full<T: std::fmt::Debug>(done: &io::Result<T>) -> bool {
    done.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::StorageFull)
}

const MIB: u64 = 1 << 20;

#[test]
fn writing_fails_exactly_when_du_says_so_and_goes_on_when_room_is_made() {
    if !possible() {
        return;
    }
    for io in modes() {
        let layers = Layers::new(1, Placement::OneFs);
        let mount = mount(&layers, io, MIB, 100);
        let limit = held(&layers.path("upper")).0 + MIB;
        let first = File::create(mount.path().join("first")).expect("there is room");
        let mut written = 0;
        // In writeback the kernel takes what fits into memory, and says so when it is written.
        let full = loop {
            let done = first.write_at(&[7; 4096], written).and_then(|n| first.sync_all().map(|()| n));
            match done {
                Ok(n) => written += n as u64,
                done => break done,
            }
            assert!(written <= 2 * MIB, "{io:?}");
        };
        assert!(is_full(&full), "{io:?}: {full:?}");
        let now = held(&layers.path("upper")).0;
        assert!(now <= limit && limit - now < 3 * 4096, "{io:?}: {now} of {limit}");
        if io != Io::Writeback {
            assert_eq!(used(mount.path()), held(&layers.path("upper")), "{io:?}");
            assert_eq!(fs::metadata(layers.path("upper/first")).expect("it was made").len(), written, "{io:?}");
        }
        // What is allocated already can be written again.
        first.write_all_at(&[8; 4096], 0).and_then(|()| first.sync_all()).unwrap_or_else(|e| panic!("{io:?}: {e}"));
        drop(first);
        fs::remove_file(mount.path().join("first")).expect("removing is not refused");
        let second = File::create(mount.path().join("second"))
            .and_then(|mut f| f.write_all(&[7; 500_000]).and_then(|()| f.sync_all()));
        second.unwrap_or_else(|error| panic!("{io:?}: {error}"));
    }
}

#[test]
fn a_write_that_fits_in_part_is_cut_short() {
    if !possible() {
        return;
    }
    let layers = Layers::new(1, Placement::OneFs);
    let mount = mount(&layers, Io::Cached, 100 * 1024, 100);
    let file = File::create(mount.path().join("file")).expect("there is room");
    let written = file.write_at(&vec![7; 500_000], 0).expect("some of it fits");
    assert!((80 * 1024..=100 * 1024).contains(&written), "{written}");
    assert!(is_full(&file.write_at(&[7; 8192], written as u64)));
    assert_eq!(file.metadata().expect("it is open").len(), written as u64);
    assert_eq!(fs::read(layers.path("upper/file")).expect("upper has it"), vec![7; written]);
}

#[test]
fn a_copy_up_that_does_not_fit_leaves_the_lower_file_and_nothing_else() {
    if !possible() {
        return;
    }
    for io in modes() {
        let layers = Layers::new(1, Placement::OneFs);
        layers.lower(0).file("d/big", vec![7; MIB as usize]).file("d/small", "small");
        let lowers = LowersUnchanged::new(layers.lowers());
        let mount = mount(&layers, io, MIB / 2, 100);
        fs::create_dir(mount.path().join("d/new")).expect("there is room");
        let before = used(mount.path());
        let appended = File::options()
            .append(true)
            .open(mount.path().join("d/big"))
            .and_then(|mut f| f.write_all(b"x").and_then(|()| f.sync_all()));
        assert!(is_full(&appended), "{io:?}: {appended:?}");
        assert_eq!(used(mount.path()), before, "{io:?}");
        assert!(!layers.path("upper/d/big").exists(), "{io:?}");
        assert_eq!(layers.work().names("work"), Vec::<String>::new(), "{io:?}");
        // In writeback the page cache goes on showing what could not be written, as on every file system.
        let shown = fs::read(mount.path().join("d/big")).expect("it shows");
        assert!(io == Io::Writeback || shown == vec![7; MIB as usize], "{io:?}");
        // What is cut off is not copied, and what is small fits.
        fs::write(mount.path().join("d/big"), "short")
            .and_then(|()| fs::write(mount.path().join("d/small"), "new"))
            .expect("there is room");
        lowers.check();
    }
}

#[test]
fn inodes_are_limited_and_removing_gives_one_back() {
    if !possible() {
        return;
    }
    let layers = Layers::new(1, Placement::OneFs);
    layers.lower(0).file("lower", "lower").file("other", "other");
    let mount = mount(&layers, Io::Auto, 10 * MIB, 5);
    let at = |name: &str| mount.path().join(name);
    fs::create_dir(at("dir")).expect("1");
    std::os::unix::fs::symlink("target", at("dir/link")).expect("2");
    File::create(at("file")).expect("3");
    // A hard link is no inode.
    fs::hard_link(at("file"), at("dir/same")).expect("none");
    fs::write(at("lower"), "changed").expect("4: copied up");
    File::create(at("last")).expect("5");
    assert!(is_full(&File::create(at("more"))) && is_full(&fs::create_dir(at("more"))));
    assert!(is_full(&fs::write(at("other"), "changed")));
    assert_eq!(fs::read(at("other")).expect("it shows"), b"other");
    assert_eq!(used(mount.path()), held(&layers.path("upper")));
    fs::remove_file(at("file")).expect("may be removed");
    assert!(is_full(&File::create(at("more"))), "its other name is there");
    fs::remove_file(at("dir/same")).expect("may be removed");
    File::create(at("more")).expect("there is room again");
}

#[test]
fn a_file_without_a_name_keeps_its_bytes_until_it_is_closed() {
    if !possible() {
        return;
    }
    for io in [Io::Auto, Io::Cached] {
        let layers = Layers::new(1, Placement::OneFs);
        let mount = mount(&layers, io, MIB, 100);
        let path = mount.path().join("file");
        let mut file = File::create(&path).expect("there is room");
        file.write_all(&[7; 800_000]).expect("there is room");
        fs::remove_file(&path).expect("may be removed");
        assert!(used(mount.path()).0 >= 800_000, "{io:?}");
        let other = fs::write(mount.path().join("other"), [7; 800_000]);
        assert!(is_full(&other), "{io:?}: {other:?}");
        drop(file);
        support::eventually("the kernel has forgotten it", || used(mount.path()).0 < 400_000);
        fs::write(mount.path().join("other"), [7; 800_000]).unwrap_or_else(|error| panic!("{io:?}: {error}"));
    }
}

#[test]
fn statfs_has_the_figures_of_the_quota() {
    if !possible() {
        return;
    }
    let layers = Layers::new(1, Placement::OneFs);
    layers.upper().file("old", vec![7; 100_000]);
    let mount = layers.spec(Io::Auto).args(["-o", "quota_size=3M,quota_inodes=10"]).mount_ours();
    let seen = rustix::fs::statvfs(mount.path()).expect("the mount answers");
    let (bytes, inodes) = held(&layers.path("upper"));
    assert_eq!(seen.f_blocks * seen.f_frsize, 3 * MIB);
    assert_eq!(seen.f_bfree, (3 * MIB - bytes) / seen.f_frsize);
    assert_eq!((seen.f_bavail, seen.f_files, seen.f_ffree), (seen.f_bfree, 10, 10 - inodes));
    // And nothing is passed through, which nobody would count.
    for io in modes() {
        let layers = Layers::new(1, Placement::OneFs);
        let mount = layers.spec(io).args(["--quota-inodes", "1K"]).mount_ours();
        let ran = finish(Command::new(binary()).args(["status", "--json"]).arg(mount.path()));
        let status: Value = serde_json::from_str(&ran.out).expect("it is JSON");
        let in_force = &status["options"]["io"];
        let expected = if io == Io::Writeback { "writeback" } else { "cached" };
        assert_eq!(in_force["value"], expected, "{io:?}: {in_force}");
        let passed = matches!(io, Io::Auto | Io::Passthrough) && privilege() == Privilege::Root;
        assert!(!passed || in_force["why"] == "a quota must see what is written", "{io:?}: {in_force}");
    }
    // A quota larger than the file system changes nothing.
    let layers = Layers::new(1, Placement::OneFs);
    let mount = layers.spec(Io::Auto).args(["--quota-size", "9000000T"]).mount_ours();
    let (seen, real) = (rustix::fs::statvfs(mount.path()), rustix::fs::statvfs(layers.path("upper")));
    assert_eq!(seen.map(|s| (s.f_blocks, s.f_files)), real.map(|s| (s.f_blocks, s.f_files)));
}

#[test]
fn parallel_writers_stay_within_the_limit_together() {
    if !possible() {
        return;
    }
    for io in [Io::Cached, Io::Auto] {
        let layers = Layers::new(1, Placement::OneFs);
        let mount = mount(&layers, io, 2 * MIB, 100);
        let limit = held(&layers.path("upper")).0 + 2 * MIB;
        let total = AtomicU64::new(0);
        let create = |writer| File::create(mount.path().join(format!("file{writer}"))).expect("there is room");
        // Before anybody fills upper.
        let files: Vec<File> = (0..4).map(create).collect();
        std::thread::scope(|scope| {
            for file in files {
                let total = &total;
                scope.spawn(move || {
                    let mut at = 0;
                    while let Ok(n) = file.write_at(&[7; 12_288], at) {
                        at += n as u64;
                    }
                    total.fetch_add(at, Ordering::Relaxed); // Read when all are joined.
                });
            }
        });
        let (now, _) = held(&layers.path("upper"));
        assert!(now <= limit, "{io:?}: {now} of {limit}");
        assert!(total.load(Ordering::Relaxed) > MIB, "{io:?}");
        assert_eq!(used(mount.path()), held(&layers.path("upper")), "{io:?}");
    }
}

#[test]
fn space_that_was_allocated_can_be_written_though_upper_is_full() {
    if !possible() {
        return;
    }
    let layers = Layers::new(1, Placement::OneFs);
    let mount = mount(&layers, Io::Cached, MIB, 100);
    let file = File::create(mount.path().join("file")).expect("there is room");
    let refused = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 2 * MIB);
    assert_eq!(refused, Err(rustix::io::Errno::NOSPC));
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 1000 * 1024).expect("there is room");
    assert_eq!(used(mount.path()), held(&layers.path("upper")));
    let filled = fs::write(mount.path().join("other"), vec![7; MIB as usize]);
    assert!(filled.is_err());
    if rustix::fs::statfs(layers.path("upper")).expect("it is there").f_type == 0x0102_1994 {
        skip!("tmpfs does not tell what was allocated and not written");
    }
    file.write_all_at(&vec![7; 1000 * 1024], 0).expect("it was allocated");
    // What is punched out can be used for something else.
    let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, punch, 0, 500 * 1024).expect("takes nothing");
    fs::write(mount.path().join("third"), vec![7; 400 * 1024]).expect("there is room");
    assert_eq!(used(mount.path()), held(&layers.path("upper")));
}

#[test]
fn the_account_is_right_after_many_at_once() {
    if !possible() {
        return;
    }
    for (round, io) in [Io::Cached, Io::Auto].into_iter().enumerate() {
        let layers = Layers::new(1, Placement::OneFs);
        layers.lower(0).file("d/a", vec![7; 50_000]).file("d/sub/b", "b").file("e/c", vec![7; 9000]);
        let mount = mount(&layers, io, MIB, 60);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let root = mount.path();
                scope.spawn(move || {
                    let mut rng = Rng::new((round * 4 + thread) as u64);
                    for _ in 0..1500 {
                        let _ = act(&mut rng, root); // Much of it cannot be done.
                    }
                });
            }
        });
        let agrees = || {
            let ((bytes, inodes), (real, count)) = (used(mount.path()), held_with(&layers.path("upper"), mount.pid()));
            bytes == real && (inodes == count || inodes == count + 1)
        };
        let upper = layers.path("upper");
        support::eventually(
            &format!("{io:?}: {:?} is {:?}", used(mount.path()), held_with(&upper, mount.pid())),
            agrees,
        );
    }
}

/// Does something by chance; what fails, fails.
fn act(rng: &mut Rng, root: &Path) -> io::Result<()> {
    let name = |rng: &mut Rng| {
        let dir = ["", "d/", "e/", "d/sub/"][rng.below(4)];
        root.join(format!("{dir}{}", ["a", "b", "c", "sub", "new"][rng.below(5)]))
    };
    let (one, two) = (name(rng), name(rng));
    match rng.below(12) {
        0 => fs::create_dir(one),
        1 => fs::remove_file(one),
        2 => fs::remove_dir(one).or_else(|_| fs::remove_dir_all(two)),
        3 => fs::rename(one, two),
        4 => fs::hard_link(one, two),
        5 => std::os::unix::fs::symlink("x".repeat(rng.below(200) + 1), one),
        6 => File::options().write(true).open(one)?.set_len(rng.below(200_000) as u64),
        7 => File::options()
            .write(true)
            .open(one)?
            .write_at(&vec![7; rng.below(60_000)], rng.below(300_000) as u64)
            .map(drop),
        8 => {
            let file = File::options().write(true).open(one)?;
            let flags = [
                rustix::fs::FallocateFlags::empty(),
                rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE,
            ];
            Ok(rustix::fs::fallocate(
                &file,
                flags[rng.below(2)],
                rng.below(100_000) as u64,
                rng.below(100_000) as u64 + 1,
            )?)
        }
        9 => Ok(rustix::fs::setxattr(&one, "user.key", &vec![7; rng.below(3000)], rustix::fs::XattrFlags::empty())?),
        _ => fs::write(one, vec![7; rng.below(60_000)]),
    }
}

#[test]
fn what_is_said_to_be_used_is_what_upper_holds_after_anything() {
    if !possible() {
        return;
    }
    for (seed, io) in modes().into_iter().cycle().take(support::number("UNIONFS_QUOTA_ROUNDS", 12) as usize).enumerate()
    {
        let layers = Layers::new(2, Placement::OneFs);
        layers.lower(1).file("d/a", vec![7; 50_000]).file("d/sub/b", "b").file("e/c", vec![7; 9000]).file("a", "a");
        layers.lower(0).file("d/c", vec![7; 20_000]).symlink("e/b", "a");
        fs::hard_link(layers.lower(1).path("a"), layers.lower(1).path("e/a")).expect("it is ours");
        let lowers = LowersUnchanged::new(layers.lowers());
        let mut mount = mount(&layers, io, MIB, 60);
        let limit = held(&layers.path("upper")).0 + MIB;
        let mut rng = Rng::new(seed as u64);
        for _ in 0..400 {
            let _ = act(&mut rng, mount.path()); // Much of it cannot be done.
        }
        // What the kernel keeps comes to upper. A file without a name is given back with FORGET, which comes when the kernel
        // needs the memory where it takes the file for one that has a name; until then the server has it open.
        rustix::fs::syncfs(File::open(mount.path()).expect("the root is there")).expect("it can be synced");
        // The template of whiteouts may have no name in upper any more.
        let agrees = || {
            let ((bytes, inodes), (real, count)) = (used(mount.path()), held_with(&layers.path("upper"), mount.pid()));
            bytes == real && (inodes == count || inodes == count + 1)
        };
        support::eventually(
            &format!("seed {seed}, {io:?}: {:?} is {:?}", used(mount.path()), held(&layers.path("upper"))),
            agrees,
        );
        let now = held(&layers.path("upper"));
        assert!(now.0 <= limit + 8192, "seed {seed}, {io:?}: {} of {limit}", now.0);
        mount.remount();
        assert_eq!(used(mount.path()), held(&layers.path("upper")), "seed {seed}, {io:?}, mounted again");
        lowers.check();
    }
}

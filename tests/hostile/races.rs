//! Layers that change while they are read: what a name has become is seen, refused or missed, but never followed outside, never
//! waited for, and never given what was meant for something else.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, AtFlags, CWD, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use unionfs_rs::union::{Caller, Name, NodeId, SetAttr, Union};

use super::stage::{Outside, is_from_outside};
use crate::support::{Io, Layers, LowersUnchanged, Mounted, Placement, Privilege, Tree, Watchdog, modes, privilege};
use crate::union::{errno, is_ours};

/// How long the walkers race in each setting.
const LENGTH: Duration = Duration::from_millis(2500);

/// How many names of each kind are swapped: more than the server keeps open.
const NAMES: usize = 40;

/// What a name is, and what is put in its place by turns.
const SWAPS: [&str; 6] =
    ["file-link", "file-pipe", "file-device", "file-directory", "directory-link", "directory-pipe"];

/// Fills `tree` with pairs of names: one that is as it should be, and beside it what is put in its place.
fn fill(tree: &Tree, outside: &Outside) {
    for (kind, n) in SWAPS.iter().flat_map(|kind| (0..NAMES).map(move |n| (kind, n))) {
        let (name, other) = (format!("{kind}/{n}"), format!("{kind}/.other-{n}"));
        let (first, second) = kind.split_once('-').expect("two words");
        for (what, name) in [(first, &name), (second, &other)] {
            match what {
                "file" => tree.file_mode(name, "inside", 0o644),
                "directory" => {
                    tree.file(Path::new(name).join("f"), "inside").file(Path::new(name).join("sub/f"), "inside")
                }
                "link" if first == "file" => tree.symlink(name, outside.path("secret")),
                "link" => tree.symlink(name, outside.path("dir")),
                "device" => device(tree, name),
                _ => tree.fifo(name),
            };
        }
    }
}

/// Makes a device, or a pipe where none can be made.
fn device<'a>(tree: &'a Tree, name: &str) -> &'a Tree {
    tree.dir(Path::new(name).parent().expect("it is in a directory"));
    let null = rustix::fs::makedev(1, 3);
    match rustix::fs::mknodat(CWD, tree.path(name), FileType::CharacterDevice, Mode::from(0o666), null) {
        Ok(()) => tree,
        Err(_) => tree.fifo(name),
    }
}

/// Exchanges the pairs, over and over, and leaves each as it was.
fn swap(tree: &Tree, stop: &AtomicBool) -> u64 {
    let mut swaps = 0;
    while !stop.load(Ordering::Relaxed) {
        for (kind, n) in SWAPS.iter().flat_map(|kind| (0..NAMES).map(move |n| (kind, n))) {
            let (name, other) = (tree.path(format!("{kind}/{n}")), tree.path(format!("{kind}/.other-{n}")));
            for _ in 0..2 {
                match rustix::fs::renameat_with(CWD, &name, CWD, &other, RenameFlags::EXCHANGE) {
                    Ok(()) => swaps += 1,
                    // Something that the union has done to it.
                    Err(Errno::NOENT) => break,
                    Err(errno) => panic!("exchange {}: {errno}", name.display()),
                }
            }
        }
    }
    swaps
}

/// Goes through what the mount shows, link by link refused, until `stop`; returns how many files were read.
fn walk(root: &Path, stop: &AtomicBool, change: bool) -> u64 {
    let mut read = 0;
    while !stop.load(Ordering::Relaxed) {
        let root = rustix::fs::open(root, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        walk_dir(&root.expect("the mount answers"), 0, change, stop, &mut read);
    }
    read
}

fn walk_dir(dir: &OwnedFd, depth: usize, change: bool, stop: &AtomicBool, read: &mut u64) {
    let Ok(entries) = rustix::fs::Dir::read_from(dir) else { return };
    for entry in entries {
        let Ok(entry) = entry else { return };
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." || stop.load(Ordering::Relaxed) {
            continue;
        }
        assert!(!matches!(name.as_bytes(), b"secret" | b"pipe"), "an entry of a directory outside is listed");
        // What is asked of a name that is swapped under way may fail in many ways; it must not hang, and not lie.
        let _stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        if let Ok(file) = rustix::fs::openat(dir, name, flags, Mode::empty()) {
            let kind = rustix::fs::fstat(&file).map(|stat| FileType::from_raw_mode(stat.st_mode));
            match kind {
                Ok(FileType::Directory) if depth < 4 => walk_dir(&file, depth + 1, change, stop, read),
                Ok(FileType::RegularFile) => {
                    let mut data = [0; 256];
                    if let Ok(len) = rustix::io::pread(&file, &mut data, 0) {
                        assert!(!is_from_outside(&data[..len]), "a file outside was read as {name:?}");
                        *read += 1;
                    }
                    // So that the next one asks the server again.
                    let _dropped = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
                }
                _ => {}
            }
            let _names = rustix::fs::flistxattr(&file, &mut [0; 256][..]);
        }
        if change && depth > 0 {
            // By a descriptor, or this process itself would follow the links that the mount shows.
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            if let Ok(pinned) = rustix::fs::openat(dir, name, flags, Mode::empty()) {
                let _mode = rustix::fs::chmod(unionfs_rs::sys::proc_path(&pinned), Mode::from(0o747));
            }
            let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            if let Ok(file) = rustix::fs::openat(dir, name, flags, Mode::empty()) {
                let _written = rustix::io::pwrite(&file, b"written", 0);
            }
        }
    }
}

/// Mounts so that the kernel keeps nothing, and the server little, and races walkers against one who swaps.
fn race(io: Io, in_upper: bool, change: bool) {
    eprintln!("--- {io:?}, swapped in the {}, changed: {change}", if in_upper { "upper" } else { "lower" });
    let _watchdog = Watchdog::start();
    let layers = Layers::new(2, Placement::OneFs);
    let outside = Outside::new(&layers);
    let tree = if in_upper { layers.upper() } else { layers.lower(0) };
    fill(&tree, &outside);
    layers.lower(1).file("file-link/below", "inside").file("directory-link/0/below", "inside");
    let lowers = LowersUnchanged::but_for_times(layers.lowers());
    let kept = ["--entry-timeout", "0", "--attr-timeout", "0", "--negative-timeout", "0"];
    let mut spec = layers.spec(io).args(kept);
    spec.wrapper = ["prlimit", "--nofile=100:100"].map(Into::into).to_vec();
    let mut mount = spec.mount_ours();
    let (stop, stopped) = (AtomicBool::new(false), AtomicU64::new(0));
    let at = layers.mnt();
    std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            stopped.fetch_add(swap(&tree, &stop), Ordering::Relaxed);
        });
        let walkers: Vec<_> = (0..3)
            .map(|n| {
                let (at, stop) = (&at, &stop);
                scope.spawn(move || assert!(walk(at, stop, change && n == 0) > 0))
            })
            .collect();
        let begin = Instant::now();
        while begin.elapsed() < LENGTH && walkers.iter().all(|walker| !walker.is_finished()) {
            std::thread::sleep(Duration::from_millis(20));
        }
        stop.store(true, Ordering::Relaxed);
        for thread in walkers.into_iter().chain([swapper]) {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
    assert!(stopped.load(Ordering::Relaxed) > 1000, "hardly anything was swapped");
    // The union goes on: what is there now is read, and something new is made.
    mount.tree().file("after", "after");
    assert_eq!(mount.tree().read("after"), b"after");
    assert!(!mount.log().contains("panicked"), "{}", mount.log());
    mount.unmount().expect("the union can be unmounted");
    if !in_upper {
        lowers.check();
    }
    outside.check();
}

/// The ways of reading that differ in who opens files, and when.
fn ways() -> Vec<Io> {
    modes()
        .into_iter()
        .filter(|mode| mode.placement == Placement::OneFs && mode.io != Io::Writeback)
        .map(|mode| mode.io)
        .collect()
}

#[test]
fn what_is_swapped_in_a_lower_under_way_never_leads_outside_and_nothing_hangs() {
    if !is_ours("it opens what it has looked up") {
        return;
    }
    for io in ways() {
        race(io, false, false);
    }
}

#[test]
fn what_is_swapped_in_a_lower_while_it_is_copied_up_never_leads_outside() {
    if !is_ours("it opens what it has looked up") {
        return;
    }
    for io in ways() {
        race(io, false, true);
    }
}

#[test]
fn what_is_swapped_in_the_upper_under_way_is_neither_read_nor_changed_outside() {
    if !is_ours("it opens what it has looked up") {
        return;
    }
    for io in ways() {
        race(io, true, true);
    }
}

/// A union without a mount, in which `name` was looked up before `swap` puts something else in its place.
fn looked_up(layers: &Layers, name: &str, swap: impl Fn(&Path)) -> (Union, NodeId) {
    let union = Union::builder().lowers(layers.lowers()).upper(layers.path("upper")).work(layers.path("work")).build();
    let union = union.unwrap_or_else(|error| panic!("{error}"));
    let entry = union.lookup(NodeId::ROOT, Name::new(OsStr::new(name)).expect("a name")).expect("it is there");
    let at: PathBuf = layers.lower(0).path(name);
    fs::remove_file(&at).expect("it can be removed");
    swap(&at);
    (union, entry.id)
}

#[test]
fn what_became_something_else_since_it_was_looked_up_is_not_opened_and_not_waited_for() {
    let _watchdog = Watchdog::start();
    for kind in ["pipe", "device", "link", "directory", "socket"] {
        eprintln!("--- {kind}");
        let layers = Layers::new(1, Placement::OneFs);
        let outside = Outside::new(&layers);
        layers.lower(0).file("f", "data");
        let tree = layers.lower(0);
        let (union, id) = looked_up(&layers, "f", |at| match kind {
            "pipe" => drop(tree.fifo("f")),
            "device" => drop(device(&tree, "f")),
            "link" => drop(tree.symlink("f", outside.path("secret"))),
            "directory" => drop(tree.dir("f")),
            _ => drop(std::os::unix::net::UnixListener::bind(at).expect("a socket can be made")),
        });
        let caller = Caller::current();
        let mut data = [0; 64];
        for _ in 0..2 {
            assert!(union.read(id, 0, &mut data).is_err(), "{kind}");
            assert!(union.open(id, unionfs_rs::union::OpenFile::Read).is_err(), "{kind}");
            assert!(union.open_lower(id).is_err(), "{kind}");
            assert!(union.write(id, 0, b"x", None).is_err(), "{kind}");
            let cut = SetAttr { size: Some(0), ..SetAttr::default() };
            assert!(union.setattr(id, cut, None, caller).is_err(), "{kind}");
            let mode = SetAttr { mode: Some(0o777), ..SetAttr::default() };
            assert!(union.setattr(id, mode, None, caller).is_err(), "{kind}");
        }
        assert_eq!(layers.upper().names(""), [""; 0], "{kind}");
        union.end().expect("it can end");
        outside.check();
    }
}

#[test]
fn what_took_the_name_of_a_program_with_rights_does_not_get_them() {
    if privilege() != Privilege::Root {
        crate::skip!("a file of root's with set-user-id needs root");
    }
    let _watchdog = Watchdog::start();
    let layers = Layers::new(1, Placement::OneFs);
    layers.lower(0).file("program", "root's own").file("other", "somebody's").owner("other", 1000, 1000);
    let program = layers.lower(0).path("program");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).expect("root may chmod");
    fs::set_permissions(layers.lower(0).path("other"), fs::Permissions::from_mode(0o755)).expect("root may chmod");
    let union = Union::builder().lowers(layers.lowers()).upper(layers.path("upper")).work(layers.path("work"));
    let union = union.build().unwrap_or_else(|error| panic!("{error}"));
    let entry = union.lookup(NodeId::ROOT, Name::new(OsStr::new("program")).expect("a name")).expect("it is there");
    let mut data = [0; 64];
    // The descriptor that is kept from here on is of the program.
    assert_eq!(union.read(entry.id, 0, &mut data).ok(), Some(10));
    let other = layers.lower(0).path("other");
    rustix::fs::renameat_with(CWD, &program, CWD, &other, RenameFlags::EXCHANGE).expect("the file system exchanges");
    let changed = union.write(entry.id, 0, b"X", None);
    eprintln!("{changed:?}");
    let copy = layers.upper().path("program");
    if let Ok(meta) = fs::symlink_metadata(&copy) {
        let data = fs::read(&copy).expect("root may");
        assert!(meta.permissions().mode() & 0o4000 == 0 || data.ends_with(b"own"), "{data:?}");
    }
    union.end().expect("it can end");
}

#[test]
fn a_directory_that_became_a_link_says_nothing_of_where_it_leads() {
    if !is_ours("it opens what it has looked up") {
        return;
    }
    let _watchdog = Watchdog::start();
    let layers = Layers::new(2, Placement::OneFs);
    let outside = Outside::new(&layers);
    layers.lower(0).file("d/f", "inside").file("d/sub/f", "inside");
    layers.lower(1).file("d/below", "inside");
    let spec = layers.spec(Io::Cached).args(["--entry-timeout", "0", "--attr-timeout", "0"]);
    let mut mount = spec.mount_ours();
    assert_eq!(mount.tree().names("d"), ["below", "f", "sub"]);
    let d = layers.lower(0).path("d");
    fs::rename(&d, layers.path("away")).expect("it can be moved");
    std::os::unix::fs::symlink(outside.path("dir"), &d).expect("a link can be made");
    let inside = |name: &str| fs::symlink_metadata(layers.mnt().join("d").join(name)).map(drop);
    // A link is shown as one, and who follows it goes there by their own rights; the union does not.
    let seen = fs::symlink_metadata(layers.mnt().join("d")).map(|meta| meta.is_symlink());
    assert!(seen.as_ref().is_ok_and(|link| *link) || seen.is_err(), "{seen:?}");
    mount.remount();
    assert!(fs::symlink_metadata(layers.mnt().join("d")).is_ok_and(|meta| meta.is_symlink()));
    eprintln!("{:?}", inside("f"));
    assert_eq!(errno(fs::read_dir(layers.mnt().join("d/pipe"))), Errno::NOTDIR);
    mount.unmount().expect("the union can be unmounted");
    outside.check();
}

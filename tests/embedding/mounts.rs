//! Several mounts in one process, what they count, and what is left of them.

use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use unionfs_rs::config::MountConfig;
use unionfs_rs::fuse::{Mount, MountHandle, Operation};
use unionfs_rs::union::{Caller, Name, New, NodeId, Union};

use crate::support::{Layers, Placement, Tree, Watchdog};

/// A mount that is taken down also when the test fails.
struct Served {
    handle: Option<MountHandle>,
}

impl Served {
    fn new(layers: &Layers, upper: &str, at: &Path) -> Self {
        let work = format!("{upper}-work");
        fs::create_dir_all(layers.path(&work)).expect("the test directory can be written");
        let builder = Union::builder().lowers(layers.lowers()).upper(layers.path(upper)).work(layers.path(work));
        let union =
            builder.descriptors(NonZeroUsize::new(300).expect("not zero")).build().expect("the layers are good");
        let mount = Mount::new(union, &MountConfig::new(at)).expect("this user can mount");
        Self { handle: Some(mount.spawn().expect("a thread can be started")) }
    }

    fn handle(&self) -> &MountHandle {
        self.handle.as_ref().expect("it is served")
    }

    fn end(mut self) {
        let handle = self.handle.take().expect("it is served");
        handle.unmount_and_join().unwrap_or_else(|error| panic!("{error}"));
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            let _ = handle.unmounter().unmount(); // The test has failed already.
        }
    }
}

fn layers() -> Layers {
    let layers = Layers::new(1, Placement::OneFs);
    layers.lower(0).file("f", "lower").file("large", vec![b'x'; 200_000]).dir("d").file("d/g", "g");
    for name in ["second", "mnt2"] {
        fs::create_dir(layers.path(name)).expect("the test directory can be written");
    }
    layers
}

#[test]
fn two_mounts_in_one_process_do_not_know_of_each_other() {
    let _watchdog = Watchdog::start();
    let layers = layers();
    let (one, two) = (layers.mnt(), layers.path("mnt2"));
    let first = Served::new(&layers, "upper", &one);
    let second = Served::new(&layers, "second", &two);
    let both = [Tree::at(&one), Tree::at(&two)];
    std::thread::scope(|scope| {
        for (number, tree) in both.iter().enumerate() {
            scope.spawn(move || {
                for round in 0..200 {
                    tree.file(format!("d/{number}-{round}"), format!("{round}"));
                    assert_eq!(tree.read("f"), b"lower");
                }
                tree.file("f", format!("of {number}"));
            });
        }
    });
    assert_eq!((both[0].read("f"), both[1].read("f")), (b"of 0".to_vec(), b"of 1".to_vec()));
    assert_eq!((both[0].names("d").len(), both[1].names("d").len()), (201, 201));
    first.end();
    assert_eq!(both[0].names("."), [""; 0], "something is mounted still");
    both[1].file("d/g", "while the other is gone");
    assert_eq!(second.handle().statistics().usage.handles, 0);
    second.end();
    assert_eq!(Tree::at(layers.path("second")).read("d/g"), b"while the other is gone");
    assert_eq!(layers.upper().read("f"), b"of 0");
}

#[test]
fn an_upper_can_be_mounted_again_as_soon_as_its_mount_has_ended() {
    let _watchdog = Watchdog::start();
    let layers = layers();
    for round in 0..20 {
        let served = Served::new(&layers, "upper", &layers.mnt());
        Tree::at(layers.mnt()).file("f", format!("round {round}"));
        let again = Union::builder().lowers(layers.lowers()).upper(layers.path("upper")).build();
        assert!(again.is_err_and(|error| error.to_string().contains("in use")), "it was taken twice");
        served.end();
        assert_eq!(layers.upper().read("f"), format!("round {round}").as_bytes());
    }
}

/// How many descriptors and threads this process has, which is this test's own: cargo-nextest starts one for each.
fn held() -> (usize, usize) {
    let count = |path| fs::read_dir(path).expect("/proc is mounted").count();
    (count("/proc/self/fd"), count("/proc/self/task"))
}

#[test]
fn a_mount_that_has_ended_leaves_no_descriptor_and_no_thread() {
    let _watchdog = Watchdog::start();
    let layers = layers();
    let round = || {
        let served = Served::new(&layers, "upper", &layers.mnt());
        let tree = Tree::at(layers.mnt());
        tree.file("new", "new").file("f", "changed");
        fs::File::open(layers.mnt().join("new")).and_then(|file| file.sync_all()).expect("it reaches the disk");
        fs::remove_file(layers.mnt().join("new")).expect("it was made");
        served.end();
    };
    // What is opened once and for all is opened now.
    round();
    let before = held();
    (0..5).for_each(|_| round());
    // A thread that was joined may be in the table for a moment yet.
    let deadline = Instant::now() + Duration::from_secs(5);
    while held() != before && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(held(), before, "descriptors and threads");
}

#[test]
fn a_handle_that_is_dropped_leaves_the_mount_to_whoever_unmounts_it() {
    let _watchdog = Watchdog::start();
    let layers = layers();
    let mut served = Served::new(&layers, "upper", &layers.mnt());
    let handle = served.handle.take().expect("it is served");
    let unmounter = handle.unmounter();
    drop(handle);
    let tree = Tree::at(layers.mnt());
    let written = std::panic::catch_unwind(|| tree.file("f", "still served"));
    unmounter.unmount().expect("nobody is in it");
    assert!(written.is_ok());
    assert_eq!(layers.upper().read("f"), b"still served");
}

#[test]
fn statistics_tell_requests_and_copy_ups() {
    let _watchdog = Watchdog::start();
    let layers = layers();
    let served = Served::new(&layers, "upper", &layers.mnt());
    let before = served.handle().statistics();
    assert_eq!((before.copy_ups.objects, before.copy_ups.bytes), (0, 0));
    let tree = Tree::at(layers.mnt());
    fs::create_dir(tree.path("made")).expect("it can be made");
    fs::OpenOptions::new()
        .append(true)
        .open(tree.path("large"))
        .and_then(|mut file| std::io::Write::write_all(&mut file, b"more"))
        .expect("it can be written");
    tree.file("d/g", "changed");
    let now = served.handle().statistics();
    // `large`, `d` and `d/g`, which was cut off first.
    assert_eq!(now.copy_ups.objects, 3);
    assert!([0, 200_000].contains(&now.copy_ups.bytes), "{:?}", now.copy_ups);
    assert_eq!(now.requests.of(Operation::Mkdir), 1);
    assert!(now.requests.of(Operation::Lookup) > 0 && now.requests.of(Operation::Getattr) > 0);
    assert!(now.usage.inodes > 3 && now.requests.total() > before.requests.total());
    served.end();
}

#[test]
fn the_umask_of_the_process_plays_no_part() {
    let layers = layers();
    let builder = Union::builder().lowers(layers.lowers()).upper(layers.path("upper")).work(layers.path("work"));
    let name = |name: &'static str| Name::new(name.as_ref()).expect("a good name");
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o777));
    let union = builder.build().unwrap_or_else(|error| panic!("{error}"));
    for (new, named, mode) in [(New::Regular, "new", 0o666), (New::Directory, "dir", 0o755)] {
        union.create(NodeId::ROOT, name(named), new, mode, 0o002, Caller::current()).expect("it can be made");
    }
    let large = union.lookup(NodeId::ROOT, name("large")).expect("a lower has it");
    union.write(large.id, 0, b"changed", None).expect("it is copied up");
    union.unlink(NodeId::ROOT, name("f")).expect("it can be hidden");
    union.end().expect("nothing is left unfinished");
    rustix::process::umask(before);
    let mode = |tree: Tree, name: &str| tree.stat(name).permissions().mode() & 0o7777;
    assert_eq!((mode(layers.upper(), "new"), mode(layers.upper(), "dir")), (0o664, 0o755));
    assert_eq!(mode(layers.upper(), "large"), mode(layers.lower(0), "large"));
    assert!(layers.upper().is_whiteout("f"));
}

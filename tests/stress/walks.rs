//! Walks through trees, whose next directories the server prefetches.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::skip;
use crate::support::{Io, Layers, LowersUnchanged, Mounted, Placement, Watchdog, eventually, on_kernel};

const DIRECTORIES: usize = 300;
const FILES: usize = 10;
const WALKERS: usize = 3;

fn layers() -> Layers {
    let layers = Layers::new(1, Placement::OneFs);
    for d in 0..DIRECTORIES {
        for f in 0..FILES {
            layers.lower(0).file(format!("tree/d{d}/f{f}"), "");
        }
    }
    layers
}

/// Lists `tree` and each directory in it, in the order in which they are told, and calls `each` with every file and its size.
fn walk(tree: &Path, mut each: impl FnMut(&Path, u64)) {
    let listed = |path: &Path| -> Vec<_> {
        let entries = fs::read_dir(path).expect("it can be listed");
        entries.map(|entry| entry.expect("it can be read").path()).collect()
    };
    for directory in listed(tree) {
        for file in listed(&directory) {
            each(&file, fs::symlink_metadata(&file).expect("it is there").size());
        }
    }
}

#[test]
fn who_walks_has_something_prefetched_and_who_lists_has_not() {
    if on_kernel() {
        skip!("the kernel's overlayfs has no threads to prefetch with");
    }
    if std::thread::available_parallelism().is_ok_and(|processors| processors.get() == 1) {
        skip!("with one processor nothing is prefetched");
    }
    let _watchdog = Watchdog::start();
    let layers = layers();
    let mut mount = layers.spec(Io::Cached).mount_ours();
    let process = mount.pid().expect("it is mounted");
    // It is started when there is something to do that no request waits for.
    let prefetches = || {
        let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("the daemon runs");
        tasks
            .filter_map(Result::ok)
            .any(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("unionfs-long")))
    };
    let tree = mount.tree();
    assert_eq!(fs::read_dir(tree.path("tree")).expect("it can be listed").count(), DIRECTORIES);
    assert!(!prefetches(), "for who only lists");
    walk(&tree.path("tree"), |_, _| ());
    eventually("the walk is noticed", prefetches);
    mount.unmount().expect("the union can be unmounted");
}

#[test]
fn whoever_walks_sees_what_was_written_before() {
    let _watchdog = Watchdog::start();
    let layers = layers();
    let unchanged = LowersUnchanged::new(layers.lowers());
    let mut mount = layers.spec(Io::Cached).mount_ours();
    let tree = mount.tree();
    let written = AtomicUsize::new(0);
    let walks = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..WALKERS {
            scope.spawn(|| {
                loop {
                    let before = written.load(Ordering::SeqCst);
                    let mut files = 0;
                    walk(&tree.path("tree"), |file, size| {
                        files += 1;
                        let directory = file.parent().and_then(|parent| parent.file_name()).expect("it has a parent");
                        let number: usize =
                            directory.to_str().expect("it is ASCII")[1..].parse().expect("it is a number");
                        if number < before && file.ends_with("f0") {
                            assert_eq!(size, 5, "{}: {before} were written before", file.display());
                        }
                    });
                    assert_eq!(files, DIRECTORIES * FILES);
                    walks.fetch_add(1, Ordering::SeqCst);
                    if before == DIRECTORIES {
                        break;
                    }
                }
            });
        }
        for d in 0..DIRECTORIES {
            let mut file =
                fs::File::options().append(true).open(tree.path(format!("tree/d{d}/f0"))).expect("it is there");
            file.write_all(b"12345").expect("it can be written");
            drop(file);
            written.fetch_add(1, Ordering::SeqCst);
        }
    });
    assert!(walks.load(Ordering::SeqCst) >= WALKERS);
    mount.unmount().expect("the union can be unmounted");
    unchanged.check();
}

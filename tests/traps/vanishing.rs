//! Lower layers that go away, or stop answering, under a mounted union: an errno for what is gone, the rest works, and what
//! was written is in the upper.

use std::fs;
use std::io;
use std::path::Path;

use rustix::io::Errno;

use super::union::is_ours;
use crate::support::{
    Io, Layers, Mounted, Placement, Privilege, Tmpfs, Watchdog, is_of_dead_server, modes, privilege, record_skip,
    test_name,
};

/// What works whatever became of the lower: the upper, new things, and the end of the mount.
fn the_upper_goes_on(layers: &Layers, mount: &mut dyn Mounted) {
    let mnt = layers.mnt();
    assert_eq!(fs::read(mnt.join("d/own")).expect("it is in upper"), b"own");
    fs::write(mnt.join("d/own"), "again").expect("it is in upper");
    fs::create_dir_all(mnt.join("own/deeper")).expect("it is new");
    fs::write(mnt.join("own/deeper/f"), "new").expect("it is new");
    fs::rename(mnt.join("own/deeper"), mnt.join("own/moved")).expect("it is in upper alone");
    mount.unmount().expect("the union can be unmounted");
    assert_eq!(layers.upper().read("d/own"), b"again");
    assert_eq!(layers.upper().read("own/moved/f"), b"new");
}

fn fill(layers: &Layers) {
    layers.lower(0).file("d/seen", "seen").file("d/unseen", "unseen").file("d/sub/f", "f").file("other/f", "f");
}

/// Uses some of what is in the lower, and makes something of its own.
fn use_some(mnt: &Path) {
    assert_eq!(fs::read(mnt.join("d/seen")).expect("it is in the lower"), b"seen");
    fs::write(mnt.join("d/own"), "own").expect("the union can be written");
    assert_eq!(fs::read_dir(mnt.join("d/sub")).expect("it is in the lower").count(), 1);
    fs::create_dir(mnt.join("own")).expect("the union can be written");
}

/// Asserts that a call gives an answer: the file as it was, or an error that says that it is gone.
#[track_caller]
fn is_old_or_gone<T>(result: io::Result<T>) {
    if let Err(error) = result {
        let errno = Errno::from_io_error(&error);
        assert!(matches!(errno, Some(Errno::NOENT | Errno::STALE)), "{error}");
    }
}

#[test]
fn files_that_are_removed_from_a_lower_are_gone_and_nothing_else_is() {
    if !is_ours("what becomes of a changed lower is not defined there") {
        return;
    }
    for mode in modes() {
        eprintln!("--- {mode:?}");
        let _watchdog = Watchdog::start();
        let layers = Layers::new(1, mode.placement);
        fill(&layers);
        let mut mount = layers.spec(mode.io).mount_ours();
        let mnt = layers.mnt();
        use_some(&mnt);
        for name in ["d", "other"] {
            fs::remove_dir_all(layers.lower(0).path(name)).expect("an own directory");
        }
        is_old_or_gone(fs::read(mnt.join("d/seen")));
        is_old_or_gone(fs::read(mnt.join("d/unseen")));
        is_old_or_gone(fs::read(mnt.join("other/f")));
        is_old_or_gone(fs::read_dir(mnt.join("other")).map(Iterator::count));
        is_old_or_gone(fs::read_dir(mnt.join("d/sub")).map(Iterator::count));
        // A copy-up of what is gone must not make an empty file of it.
        is_old_or_gone(fs::OpenOptions::new().append(true).open(mnt.join("d/unseen")).map(drop));
        is_old_or_gone(fs::OpenOptions::new().write(true).open(mnt.join("d/seen")).and_then(|file| file.set_len(2)));
        for name in ["d/seen", "d/unseen"] {
            assert!(!layers.upper().exists(name), "{name}");
        }
        is_old_or_gone(fs::remove_file(mnt.join("d/sub/f")));
        the_upper_goes_on(&layers, &mut mount);
    }
}

#[test]
fn a_lower_whose_file_system_is_unmounted_stays_readable_where_it_was_cloned() {
    if !is_ours("it holds its lowers as well") {
        return;
    }
    if privilege() == Privilege::Plain {
        record_skip(&test_name(), "mounting a tmpfs needs root, also of a user namespace");
        return;
    }
    let _watchdog = Watchdog::start();
    let layers = Layers::new(1, Placement::OneFs);
    let disk = Tmpfs::mount(&layers.lowers()[0], "mode=755").expect("root may mount a tmpfs");
    fill(&layers);
    let mut mount = layers.spec(Io::Cached).mount_ours();
    use_some(&layers.mnt());
    drop(disk);
    assert_eq!(fs::read(layers.mnt().join("d/unseen")).expect("the union still has it"), b"unseen");
    assert_eq!(fs::read_dir(layers.mnt().join("other")).expect("the union still has it").count(), 1);
    the_upper_goes_on(&layers, &mut mount);
}

/// Asserts that a call has failed since a server is dead.
fn assert_dead<T: std::fmt::Debug>(result: io::Result<T>) {
    let error = result.expect_err("the server is dead");
    assert!(Errno::from_io_error(&error).is_some_and(is_of_dead_server), "{error}");
}

#[test]
fn a_lower_whose_server_dies_answers_errors_and_never_hangs() {
    if !is_ours("a lower that is a mount of ours") {
        return;
    }
    if privilege() == Privilege::Plain {
        record_skip(&test_name(), "a mountpoint inside a test's directory is no layer without a private clone");
        return;
    }
    for mode in modes() {
        eprintln!("--- {mode:?}");
        let _watchdog = Watchdog::start();
        let (below, layers) = (Layers::new(1, Placement::OneFs), Layers::new(0, mode.placement));
        fill(&below);
        let mut server = below.spec(Io::Cached).mount_ours();
        let mut spec = layers.spec(mode.io);
        spec.lowers = vec![below.mnt()];
        let mut mount = spec.mount_ours();
        let mnt = layers.mnt();
        use_some(&mnt);
        server.kill();
        for path in ["d/unseen", "other/f", "nowhere"] {
            assert_dead(fs::read(mnt.join(path)));
        }
        assert_dead(fs::read_dir(mnt.join("other")));
        assert_dead(fs::OpenOptions::new().append(true).open(mnt.join("d/unseen")));
        assert!(!layers.upper().exists("d/unseen"));
        the_upper_goes_on(&layers, &mut mount);
    }
}

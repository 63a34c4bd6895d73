//! An operation that fails changes nothing, live or after a remount.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use rustix::io::Errno;

use super::union::{Trap, Union, errno, trap};
use crate::support::{Layers, on_kernel, require_root};

/// The forms of whiteouts, as `--whiteout` has them; what the kernel's overlayfs writes is not to be chosen.
fn formats() -> &'static [&'static str] {
    if on_kernel() { &["char"] } else { &["char", "xattr", "dotwh"] }
}

fn in_every_format(fill: fn(&Layers), test: fn(&mut Union)) {
    if !require_root("setting the flags of files") {
        return;
    }
    for format in formats() {
        eprintln!("--- {format}");
        let set = |trap: Trap<'static>| {
            if on_kernel() { trap } else { trap.mounted(|spec| spec.feature("whiteout", format)) }
        };
        set(trap(1, fill)).run(test);
    }
}

/// A file or directory of upper that can be neither moved nor removed, until this is dropped.
struct Held(File, IFlags);

impl Held {
    fn new(path: &Path, held: IFlags) -> Self {
        let file = File::open(path).expect("it is in upper");
        let flags = ioctl_getflags(&file).expect("the file system has flags");
        ioctl_setflags(&file, flags | held).expect("root may set flags");
        Self(file, held)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let flags = ioctl_getflags(&self.0).expect("the file system has flags");
        ioctl_setflags(&self.0, flags - self.1).expect("root may set flags");
    }
}

#[test]
fn a_rename_of_what_cannot_be_moved_keeps_what_it_would_have_replaced() {
    let fill = |layers: &Layers| _ = layers.lower(0).file("a", "a").file("b", "b").file("c", "c");
    in_every_format(fill, |union| {
        for name in ["a", "b"] {
            union.merged().times(name, 1_000_000_000);
        }
        let held = Held::new(&union.upper().path("a"), IFlags::APPEND);
        for target in ["b", "c", "new"] {
            assert_eq!(errno(fs::rename(union.at("a"), union.at(target))), Errno::PERM, "{target}");
        }
        drop(held);
        union.live_and_after_remount(|union| {
            let tree = union.merged();
            assert_eq!(tree.names(""), ["a", "b", "c"]);
            assert_eq!(["a", "b", "c"].map(|name| tree.read(name)), [b"a", b"b", b"c"]);
            assert!(
                union.upper().names("").iter().all(|name| name == "a" || name == "b"),
                "{:?}",
                union.upper().names("")
            );
        });
    });
}

#[test]
fn a_rename_of_a_merged_directory_that_cannot_be_moved_keeps_its_content() {
    let fill = |layers: &Layers| _ = layers.lower(0).file("p/d/inner", "inner").file("p/first", "").dir("q");
    in_every_format(fill, |union| {
        union.merged().file("p/d/upper", "upper");
        // So that the directory is marked as one that things were moved to.
        fs::rename(union.at("p/first"), union.at("q/first")).expect("a file can be moved");
        let held = Held::new(&union.upper().path("q"), IFlags::IMMUTABLE);
        assert_eq!(errno(fs::rename(union.at("p/d"), union.at("q/e"))), Errno::PERM);
        drop(held);
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names("p/d"), ["inner", "upper"]);
            assert_eq!(
                (union.merged().names("p"), union.merged().names("q")),
                (vec!["d".into()], vec!["first".into()])
            );
        });
    });
}

#[test]
fn a_directory_that_could_not_be_replaced_is_used_as_before() {
    let fill = |layers: &Layers| _ = layers.lower(0).file("target/gone", "").dir("source");
    in_every_format(fill, |union| {
        fs::remove_file(union.at("target/gone")).expect("a lower file can be removed");
        let ino = union.merged().stat("target").ino();
        // Opaque already, so that nothing of it need be changed before it is moved.
        fs::remove_dir(union.at("source")).expect("it is empty");
        union.merged().file("source/f", "f");
        let held = Held::new(&union.upper().path("source"), IFlags::APPEND);
        assert_eq!(errno(fs::rename(union.at("source"), union.at("target"))), Errno::PERM);
        drop(held);
        assert_eq!(union.merged().names("target"), Vec::<String>::new());
        union.merged().file("target/new", "new").dir("target/dir");
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names("target"), ["dir", "new"]);
            assert_eq!(union.merged().names("source"), ["f"]);
            // The kernel's overlayfs has an opaque one by now, of which it does not know where it came from.
            assert!(on_kernel() || union.merged().stat("target").ino() == ino);
        });
    });
}

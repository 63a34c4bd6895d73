//! The operations of the matrix, what comes before each, and the layers that they are done on.

use rustix::fs::{CWD, XattrFlags};
use unionfs_rs::config::UnionConfig;
use unionfs_rs::union::{FileKind, RenameFlags, SetAttr, SetTime, Timestamp};

use super::look::OLD;
use super::subject::Subject;
use crate::support::{Layers, Placement};

type Act = fn(Subject<'_>) -> Result<(), String>;

/// An operation.
pub struct Case {
    pub name: &'static str,
    /// What comes before, in a mount of its own.
    pub before: Act,
    pub act: Act,
    /// Whether metadata is copied up alone.
    pub metacopy: bool,
}

const fn case(name: &'static str, before: Act, act: Act) -> Case {
    Case { name, before, act, metacopy: false }
}

const fn metacopy(name: &'static str, before: Act, act: Act) -> Case {
    Case { name, before, act, metacopy: true }
}

const NONE: SetAttr = SetAttr { mode: None, uid: None, gid: None, size: None, atime: None, mtime: None };
const CHMOD: SetAttr = SetAttr { mode: Some(0o600), ..NONE };
const CHOWN: SetAttr = SetAttr { uid: Some(12), gid: Some(34), ..NONE };
const LATER: SetTime = SetTime::To(Timestamp { secs: OLD + 1000, nanos: 0 });
const UTIMES: SetAttr = SetAttr { atime: Some(LATER), mtime: Some(LATER), ..NONE };
const CUT: SetAttr = SetAttr { size: Some(3), ..NONE };

/// An ACL of another user, as the kernel stores it (posix_acl_xattr.h).
const ACL: &[u8] = b"\x02\0\0\0\
    \x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\x07\0\0\0\x04\0\x04\0\xff\xff\xff\xff\
    \x10\0\x04\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";

fn nothing(_: Subject<'_>) -> Result<(), String> {
    Ok(())
}

fn write_f(it: Subject<'_>) -> Result<(), String> {
    it.write("f", "upper f")
}

fn remove_f(it: Subject<'_>) -> Result<(), String> {
    it.unlink("f")
}

fn empty_d(it: Subject<'_>) -> Result<(), String> {
    it.unlink("d/x")?;
    it.unlink("d/y")
}

fn remove_d(it: Subject<'_>) -> Result<(), String> {
    empty_d(it)?;
    it.rmdir("d")
}

fn make_new(it: Subject<'_>) -> Result<(), String> {
    it.mkdir("new")?;
    it.touch("new/in")?;
    it.write("new/in", "new")
}

fn chmod_big(it: Subject<'_>) -> Result<(), String> {
    it.set("big", CHMOD)
}

fn chmod_one(it: Subject<'_>) -> Result<(), String> {
    it.set("one", CHMOD)
}

/// Copies the linked file up, under one of its names.
fn write_one(it: Subject<'_>) -> Result<(), String> {
    it.write("one", "upper")
}

pub const CASES: &[Case] = &[
    case("copy-up of a small file", nothing, write_f),
    case("copy-up of a large file", nothing, |it| it.write("big", "start")),
    case("copy-up of a sparse file", nothing, |it| it.write("sparse", "start")),
    case("copy-up of an empty file", nothing, |it| it.set("empty", CHMOD)),
    case("copy-up of a file with xattrs and an ACL", nothing, |it| it.write("rich", "start")),
    case("copy-up in a chain of directories", nothing, |it| it.write("chain/of/many/file", "start")),
    case("copy-up of a directory", nothing, |it| it.set("chain/of", CHMOD)),
    case("copy-up of a symbolic link", nothing, |it| it.set("symlink", CHOWN)),
    case("copy-up of a pipe", nothing, |it| it.set("pipe", CHMOD)),
    case("chmod of a lower file", nothing, |it| it.set("f", CHMOD)),
    case("chown of a lower file", nothing, |it| it.set("f", CHOWN)),
    case("utimens of a lower file", nothing, |it| it.set("f", UTIMES)),
    case("truncate of a lower file", nothing, |it| it.set("big", CUT)),
    case("truncate of an upper file", write_f, |it| it.set("f", CUT)),
    case("setxattr of a lower file", nothing, |it| it.setxattr("f", "user.new", b"new")),
    case("removexattr of a lower file", nothing, |it| it.removexattr("rich", "user.lower")),
    case("an ACL for a lower file", nothing, |it| it.setxattr("f", "system.posix_acl_access", ACL)),
    case("create", nothing, |it| it.touch("made")),
    case("create in a lower directory", nothing, |it| it.touch("chain/of/made")),
    case("create onto a removed file", remove_f, |it| it.touch("f")),
    case("create with an inherited ACL", nothing, |it| it.touch("inherits/made")),
    case("mkdir", nothing, |it| it.mkdir("made")),
    case("mkdir onto a removed file", remove_f, |it| it.mkdir("f")),
    case("mkdir onto a removed directory", remove_d, |it| it.mkdir("d")),
    case("symlink", nothing, |it| it.symlink("f", "made")),
    case("symlink onto a removed file", remove_f, |it| it.symlink("g", "f")),
    case("mknod of a pipe", nothing, |it| it.mknod("made", FileKind::Fifo, (0, 0))),
    case("mknod of a device onto a removed file", remove_f, |it| it.mknod("f", FileKind::Char, (1, 3))),
    case("unlink of a lower file", nothing, remove_f),
    case("unlink of a copied file", write_f, remove_f),
    case("unlink of a new file", make_new, |it| it.unlink("new/in")),
    case("unlink in a lower directory", nothing, |it| it.unlink("chain/of/many/file")),
    case("rmdir of a lower directory", |it| it.unlink("e/sub/y"), |it| it.rmdir("e/sub")),
    case("rmdir of a merged directory", empty_d, |it| it.rmdir("d")),
    case("rmdir of a new directory", |it| it.mkdir("made"), |it| it.rmdir("made")),
    case("rename of a lower file", nothing, |it| it.rename("f", "moved")),
    case("rename of a new file", make_new, |it| it.rename("new/in", "moved")),
    case("rename of a lower file over another", nothing, |it| it.rename("f", "g")),
    case("rename of a new file over a lower one", make_new, |it| it.rename("new/in", "g")),
    case("rename of a file onto a removed one", remove_f, |it| it.rename("g", "f")),
    case("rename of a file into a lower directory", nothing, |it| it.rename("f", "chain/of/f")),
    case("rename of a lower directory", nothing, |it| it.rename("chain", "moved")),
    case("rename of a merged directory", nothing, |it| it.rename("e", "moved")),
    case("rename of a merged directory into another", nothing, |it| it.rename("e", "chain/e")),
    case("rename of a merged directory onto a removed one", remove_d, |it| it.rename("e", "d")),
    case("rename of a merged directory over an empty one", empty_d, |it| it.rename("e", "d")),
    case(
        "rename of a new directory over one that is empty",
        |it| empty_d(it).and_then(|()| make_new(it)),
        |it| it.rename("new", "d"),
    ),
    case(
        "rename of a directory that took the place of a removed one",
        |it| remove_d(it).and_then(|()| it.mkdir("d")).and_then(|()| it.touch("d/in")),
        |it| it.rename("d", "moved"),
    ),
    case("exchange of a lower file and a lower directory", nothing, |it| {
        it.rename_with("f", "e", RenameFlags::EXCHANGE)
    }),
    case("rename without replacing", nothing, |it| it.rename_with("f", "moved", RenameFlags::NOREPLACE)),
    case("rename that leaves a whiteout", make_new, |it| it.rename_with("new/in", "moved", RenameFlags::WHITEOUT)),
    case("link of a lower file", nothing, |it| it.link("f", "linked")),
    case("link of a new file", make_new, |it| it.link("new/in", "linked")),
    case("link onto a removed file", remove_f, |it| it.link("g", "f")),
    case("copy-up of a file with several names", nothing, write_one),
    case("another name of an indexed file copied up", write_one, |it| it.set("links/two", CHMOD)),
    case("link of a file with several names", nothing, |it| it.link("one", "linked")),
    case("link of an indexed file", write_one, |it| it.link("links/two", "linked")),
    case("unlink of one of several names", nothing, |it| it.unlink("one")),
    case("unlink of a name of an indexed file", write_one, |it| it.unlink("links/two")),
    case(
        "unlink of the last name of an indexed file",
        |it| write_one(it).and_then(|()| it.unlink("links/two")),
        |it| it.unlink("one"),
    ),
    case("rename of one of several names", nothing, |it| it.rename("one", "moved")),
    case("rename over one of several names", nothing, |it| it.rename("f", "one")),
    metacopy("metacopy", nothing, chmod_big),
    metacopy("metacopy with xattrs and an ACL", nothing, |it| it.set("rich", CHMOD)),
    metacopy("the data of a metacopy", chmod_big, |it| it.write("big", "start")),
    metacopy("the data of a sparse metacopy", |it| it.set("sparse", CHMOD), |it| it.write("sparse", "start")),
    metacopy("truncate of a metacopy", chmod_big, |it| it.set("big", CUT)),
    metacopy("truncate of a sparse metacopy", |it| it.set("sparse", CHMOD), |it| it.set("sparse", CUT)),
    metacopy("rename of a metacopy", chmod_big, |it| it.rename("big", "chain/of/moved")),
    metacopy("link of a metacopy", chmod_big, |it| it.link("big", "chain/of/linked")),
    metacopy("metacopy of a file with several names", nothing, chmod_one),
    metacopy("the data of an indexed metacopy", chmod_one, |it| it.write("links/two", "start")),
    metacopy("another name of an indexed metacopy copied up", chmod_one, |it| it.set("links/two", CHOWN)),
    metacopy("unlink of a name of an indexed metacopy", chmod_one, |it| it.unlink("one")),
    metacopy("rename of one name of an indexed metacopy", chmod_one, |it| it.rename("one", "chain/of/moved")),
];

/// Makes the lower layers.
pub fn fill() -> Layers {
    let layers = Layers::new(2, Placement::OneFs);
    let (top, bottom) = (layers.lower(0), layers.lower(1));
    let big: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).take(300_000).collect();
    bottom.file("f", "lower f").file("g", "lower g").file("big", big).file("empty", "").symlink("symlink", "f");
    bottom.sparse("sparse", 700_000).fifo("pipe").file("rich", "rich").file("chain/of/many/file", "at the end");
    bottom.xattr("rich", "user.lower", "value").xattr("rich", "user.other", "other");
    bottom.file("d/x", "x").file("e/z", "z").file("e/sub/y", "y").file("one", "several names").link("one", "links/two");
    bottom.dir("inherits");
    top.file("d/y", "y").file("e/top", "top");
    let acl = |name, to| {
        let set = rustix::fs::setxattr(bottom.path(to), name, ACL, XattrFlags::empty());
        set.expect("the test directory has ACLs");
    };
    acl("system.posix_acl_access", "rich");
    acl("system.posix_acl_default", "inherits");
    for tree in [&top, &bottom] {
        age(tree.root());
    }
    layers
}

/// Has everything below `dir` written long ago.
fn age(dir: &std::path::Path) {
    use rustix::fs::{AtFlags, Timespec, Timestamps};
    for entry in std::fs::read_dir(dir).expect("a lower can be listed") {
        let path = entry.expect("a lower can be listed").path();
        if path.is_dir() && !path.is_symlink() {
            age(&path);
        }
        let old = Timespec { tv_sec: OLD, tv_nsec: 0 };
        let times = Timestamps { last_access: old, last_modification: old };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("an own file");
    }
}

/// How the union of a case is configured.
pub fn config(case: &Case, layers: impl Fn(&str) -> std::path::PathBuf) -> UnionConfig {
    UnionConfig {
        lowers: vec![layers("lower0").into(), layers("lower1").into()],
        upper: Some(layers("upper").into()),
        work: Some(layers("work").into()),
        metacopy: case.metacopy,
        redirect_dir: unionfs_rs::config::RedirectDir::On,
        index: Some(true),
        // A process that was killed may not have let go yet.
        patience: std::time::Duration::from_secs(10),
        ..UnionConfig::default()
    }
}

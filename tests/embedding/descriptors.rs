//! Layers that come as open directories, also of mounts that no path leads to.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::OpenTreeFlags;
use unionfs_rs::config::Source;
use unionfs_rs::error::Error;
use unionfs_rs::union::{Caller, Name, New, NodeId, Union, UnionBuilder};

use crate::support::{Layers, LowersUnchanged, Placement, require_root};

/// Opens a directory with O_PATH.
fn open(dir: impl AsFd, name: impl rustix::path::Arg) -> OwnedFd {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty()).expect("the directory is there")
}

/// A clone of the mount that `path` is in, which is mounted nowhere.
fn detached(path: &Path) -> OwnedFd {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, path, flags).expect("root may clone mounts")
}

fn layers() -> Layers {
    let layers = Layers::new(2, Placement::OneFs);
    layers.lower(0).file("top", "top").dir("sub");
    layers.lower(1).file("bottom", "bottom").file("top", "hidden");
    layers
}

/// Uses everything that a union does with its layers.
fn works(builder: UnionBuilder, layers: &Layers) {
    let lowers = LowersUnchanged::new(layers.lowers());
    let union = builder.build().unwrap_or_else(|error| panic!("{error}"));
    let name = |name: &'static str| Name::new(name.as_ref()).expect("a good name");
    let mut read = [0; 16];
    let top = union.lookup(NodeId::ROOT, name("top")).expect("a lower has it");
    assert_eq!(union.read(top.id, 0, &mut read).expect("it can be read"), 3);
    union.write(top.id, 3, b" and more", None).expect("it is copied up");
    union.unlink(NodeId::ROOT, name("bottom")).expect("it can be hidden");
    union.create(NodeId::ROOT, name("new"), New::Directory, 0o755, 0, Caller::current()).expect("it can be made");
    union.end().expect("nothing is left unfinished");
    let upper = layers.upper();
    assert_eq!(upper.read("top"), b"top and more");
    assert!(upper.is_whiteout("bottom") && upper.stat("new").is_dir());
    lowers.check();
}

#[test]
fn layers_can_be_open_directories() {
    let layers = layers();
    let file = |path: &Path| File::open(path).expect("an own directory");
    let lowers = [Source::from(file(&layers.lowers()[0])), Source::from(open(CWD, &layers.lowers()[1]))];
    let builder =
        Union::builder().lowers(lowers).upper(file(&layers.path("upper"))).work(open(CWD, layers.path("work")));
    works(builder, &layers);
}

#[test]
fn an_open_upper_has_its_workdir_beside_it_where_a_path_leads_there() {
    let layers = layers();
    works(Union::builder().lowers(layers.lowers()).upper(open(CWD, layers.path("upper"))), &layers);
    assert!(layers.path(".upper.work").is_dir());
}

#[test]
fn layers_can_be_in_mounts_that_no_path_leads_to() {
    if !require_root("cloning mounts") {
        return;
    }
    let layers = layers();
    let tree = detached(&layers.path("."));
    let lowers = layers.lowers().iter().map(|path| detached(path));
    works(Union::builder().lowers(lowers).upper(open(&tree, "upper")).work(open(&tree, "work")), &layers);
}

fn refused(builder: UnionBuilder) -> (String, String) {
    match builder.build() {
        Err(error @ Error::Setup { .. }) => {
            let Error::Setup { path, .. } = &error else { unreachable!() };
            (path.display().to_string(), error.to_string())
        }
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("a union was made of it"),
    }
}

#[test]
fn an_upper_of_a_detached_mount_must_come_with_a_workdir() {
    if !require_root("cloning mounts") {
        return;
    }
    let layers = layers();
    let (path, error) = refused(Union::builder().lowers(layers.lowers()).upper(detached(&layers.path("upper"))));
    assert!(path.starts_with("descriptor ") && error.ends_with("name a workdir (--work)"), "{error}");
}

#[test]
fn descriptors_are_checked_as_paths_are() {
    let layers = layers();
    let (lower, upper, inside) = (layers.lowers()[0].clone(), layers.path("upper"), layers.lower(0).path("sub"));
    let at = |path: &Path| open(CWD, path);
    for (builder, named, reason) in [
        (Union::builder().lower(&lower).lower(at(&lower)), &lower, "lower layer too"),
        (Union::builder().lower(&lower).lower(at(&inside)), &inside, "lower layer too"),
        (Union::builder().lower(at(&inside)).lower(at(&lower)), &inside, "lower layer too"),
        (Union::builder().lower(&lower).upper(at(&lower)), &lower, "both upper and lower"),
        (Union::builder().lower(&lower).upper(at(&inside)), &inside, "is inside the lower layer"),
        (Union::builder().lower(at(&inside)).upper(&lower), &inside, "is inside upper"),
        (Union::builder().lower(&lower).upper(&upper).work(at(&inside)), &inside, "is inside the lower layer"),
        (Union::builder().lower(&lower).upper(&upper).work(at(&upper)), &upper, "is upper itself"),
        (
            Union::builder().lower(File::open(layers.lower(0).path("top")).expect("an own file")),
            &layers.lower(0).path("top"),
            "not a directory",
        ),
    ] {
        let (path, error) = refused(builder);
        assert_eq!(path, named.display().to_string(), "{error}");
        assert!(error.contains(reason), "{error}");
    }
}

//! What was changed in a container: as `docker diff` shows it, and as a layer that brings it about again.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use unionfs_rs::image::changes::{Compare, changes};
use unionfs_rs::image::media::Compression;
use unionfs_rs::image::store::Container;

use crate::archive::{Layer, Shop, lines, show};
use crate::support::{Ran, binary, finish, on_kernel, run};

/// An image, and a container of it that is mounted while `change` changes it.
pub fn changed(shop: &Shop, layers: Vec<Layer>, change: impl FnOnce(&Path)) -> Option<Container> {
    let container = shop.container(layers);
    let mountpoint = shop.dir.path().join("merged");
    fs::create_dir_all(&mountpoint).expect("there is room");
    let store = shop.dir.path().join("store");
    let mounted = finish(
        Command::new(binary())
            .args(["mount", "--container", &container.config.id])
            .arg("--store")
            .arg(&store)
            .arg(&mountpoint),
    );
    assert_eq!(mounted.code, Some(0), "{}", mounted.err);
    assert_eq!(mounted.out.trim(), container.config.id);
    // The guard comes first: what fails in between must not leave the mount.
    let guard = Unmount(&mountpoint);
    change(&mountpoint);
    drop(guard);
    Some(container)
}

struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let Ran { code, err, .. } = finish(Command::new(binary()).arg("umount").arg(self.0));
        if !std::thread::panicking() {
            assert_eq!(code, Some(0), "{err}");
        }
    }
}

pub fn base() -> Layer {
    Layer::new()
        .dir("./", 0o755)
        .file("d/a", "a")
        .file("d/sub/b", "b")
        .file("plain", "plain")
        .file("removed", "x")
        .file("moved/deep/file", "deep")
        .file("file-to-dir", "f")
        .file("dir-to-file/in", "f")
        .symlink("link", "plain")
        .dir("chmod", 0o755)
        .file("chmod/untouched", "x")
}

pub fn change(root: &Path) {
    let at = |path: &str| root.join(path);
    fs::remove_dir_all(at("d")).unwrap();
    fs::create_dir(at("d")).unwrap();
    fs::write(at("d/new"), "new").unwrap();
    fs::write(at("plain"), "changed").unwrap();
    fs::remove_file(at("removed")).unwrap();
    fs::rename(at("moved"), at("elsewhere")).unwrap();
    fs::remove_file(at("file-to-dir")).unwrap();
    fs::create_dir(at("file-to-dir")).unwrap();
    fs::write(at("file-to-dir/in"), "in").unwrap();
    fs::remove_dir_all(at("dir-to-file")).unwrap();
    fs::write(at("dir-to-file"), "file").unwrap();
    fs::set_permissions(at("chmod"), fs::Permissions::from_mode(0o711)).unwrap();
    fs::hard_link(at("d/new"), at("d/other")).unwrap();
    symlink("nowhere", at("d/dangling")).unwrap();
    run("mkfifo", &[at("d/pipe").to_str().unwrap()]);
    fs::write(at("comes"), "goes").unwrap();
    fs::remove_file(at("comes")).unwrap();
}

pub fn listed(shop: &Shop, container: &Container) -> Vec<String> {
    let (now, was) = shop.store.stacks_of(container).unwrap();
    let mut list: Vec<String> = changes(&now, &was, Compare::Presence)
        .unwrap()
        .iter()
        .map(|c| format!("{} {}", c.kind.letter(), c.path.display()))
        .collect();
    list.sort_by(|a, b| a[2..].cmp(&b[2..]));
    list
}

#[test]
fn changes_are_told_as_docker_diff_tells_them() {
    if on_kernel() {
        crate::skip!("what our own mount leaves in upper is looked at");
    }
    let shop = Shop::new();
    let container = changed(&shop, vec![base()], change).unwrap();
    let expected = [
        "C /chmod",
        "C /d",
        "D /d/a",
        "A /d/dangling",
        "A /d/new",
        "A /d/other",
        "A /d/pipe",
        "D /d/sub",
        "C /dir-to-file",
        "A /elsewhere",
        "A /elsewhere/deep",
        "A /elsewhere/deep/file",
        "C /file-to-dir",
        "A /file-to-dir/in",
        "D /moved",
        "C /plain",
        "D /removed",
    ];
    assert_eq!(listed(&shop, &container), expected);
    // Nothing was changed: nothing is told.
    let shop = Shop::new();
    let container = changed(&shop, vec![base()], |root| drop(fs::read(root.join("plain")).unwrap())).unwrap();
    assert_eq!(listed(&shop, &container), [""; 0]);
}

#[test]
fn a_commit_shows_what_the_container_showed_and_is_the_same_twice() {
    if on_kernel() {
        crate::skip!("what our own mount leaves in upper is looked at");
    }
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let shop = Shop::new();
        let mut seen = BTreeMap::new();
        let container =
            changed(&shop, vec![base(), Layer::new().file("d/over", "over").file(".wh.nothing", "")], |root| {
                change(root);
                fs::set_permissions(root, fs::Permissions::from_mode(0o1755)).unwrap();
                seen = on_disk(root);
            })
            .unwrap();
        let image = shop.store.find(&container.config.image).unwrap().image;
        let commit = || {
            let (now, was) = shop.store.stacks_of(&container).unwrap();
            let layer = shop.store.put_layer(&now, &was, compression, &()).unwrap();
            shop.store.put_image(&image, &layer, &Default::default()).unwrap()
        };
        let (one, two) = (commit(), commit());
        assert_eq!(one.descriptor.digest(), two.descriptor.digest(), "{compression:?}");
        assert_eq!(one.layers.len(), 3);
        let stack = shop.stack(&one);
        let (now, _) = shop.store.stacks_of(&container).unwrap();
        assert_eq!(show(&stack), show(&now), "{compression:?}");
        assert_eq!(stack.root().unwrap().attr().mode, 0o1755);
        // And by another reader of tar.
        let archive = shop.dir.path().join("layer");
        fs::copy(shop.store.blob_path(one.layers[2].blob.digest()), &archive).unwrap();
        let names = lines("tar", &["-tf", archive.to_str().unwrap()]);
        let expected = [
            "./",
            ".wh.moved",
            ".wh.removed",
            "chmod/",
            "d/",
            "d/.wh.a",
            "d/.wh.over",
            "d/.wh.sub",
            "d/dangling",
            "d/new",
            "d/other",
            "d/pipe",
            "dir-to-file",
            "elsewhere/",
            "elsewhere/deep/",
            "elsewhere/deep/file",
            "file-to-dir/",
            "file-to-dir/in",
            "plain",
        ];
        assert_eq!(names, expected, "{compression:?}");
        assert!(seen.contains_key("d/new") && !seen.contains_key("moved"));
    }
}

/// The names below a directory.
fn on_disk(root: &Path) -> BTreeMap<String, bool> {
    let names = lines("find", &[root.to_str().unwrap(), "-mindepth", "1", "-printf", "%P\\n"]);
    names.into_iter().map(|name| (name, true)).collect()
}

#[test]
fn an_image_with_one_layer_twice_is_mounted_and_committed() {
    let shop = Shop::new();
    let empty = || Layer::new().dir("d", 0o755).file("d/.wh.gone", "");
    let mut seen = BTreeMap::new();
    let container = changed(
        &shop,
        vec![base().file("d/gone", "x"), empty(), Layer::new().file("d/gone", "again"), empty()],
        |root| {
            seen = on_disk(root);
        },
    );
    assert!(container.is_some() && seen.contains_key("d/a") && !seen.contains_key("d/gone"), "{seen:?}");
}

#[test]
fn names_of_a_lower_file_part_when_one_is_written_in_the_container_and_in_the_commit() {
    if on_kernel() {
        crate::skip!("what our own mount leaves in upper is looked at");
    }
    let shop = Shop::new();
    let mut seen = String::new();
    let container = changed(&shop, vec![Layer::new().file("a", "one").hard_link("b", "a")], |root| {
        fs::write(root.join("a"), "two").unwrap();
        seen = fs::read_to_string(root.join("b")).unwrap();
    })
    .unwrap();
    assert_eq!(seen, "one");
    assert_eq!(listed(&shop, &container), ["C /a"]);
}

#[test]
fn what_no_layer_can_have_is_left_out_of_a_commit() {
    let shop = Shop::new();
    let container = changed(&shop, vec![base()], |root| {
        fs::remove_file(root.join("plain")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.join("plain")).unwrap();
        fs::create_dir(root.join("made")).unwrap();
        let set = |name: &str, value: &[u8]| {
            rustix::fs::setxattr(root.join("made"), name, value, rustix::fs::XattrFlags::empty()).unwrap();
        };
        set("user.overlay.redirect", b"/etc");
        set("user.containers.override_stat", b"0:0:04755");
        set("user.a=b", b"v");
        set("user.kept", b"v");
    })
    .unwrap();
    let (now, was) = shop.store.stacks_of(&container).unwrap();
    let layer = shop.store.put_layer(&now, &was, Compression::None, &()).unwrap();
    let image = shop.store.find(&container.config.image).unwrap().image;
    let image = shop.store.put_image(&image, &layer, &Default::default()).unwrap();
    let tar = fs::read(shop.store.blob_path(layer.blob.digest())).unwrap();
    let text = String::from_utf8_lossy(&tar);
    assert!(text.contains("SCHILY.xattr.user.kept=v") && !text.contains("redirect") && !text.contains("override_stat"));
    let stack = shop.stack(&image);
    let shown = show(&stack);
    assert!(!shown.contains_key("/plain"), "a file that a socket has replaced is gone");
    let made = stack.at(&["made".as_ref()]).unwrap().unwrap();
    assert_eq!(stack.xattrs_of(&made).unwrap(), [("user.kept".into(), b"v".to_vec())]);
}

#[test]
fn a_commit_that_could_not_be_unpacked_leaves_nothing() {
    let shop = Shop::new();
    let name = |letter: char| letter.to_string().repeat(255);
    // A file of this path is in the image, which the mark of it could not be in.
    let deep: Vec<String> = "abcdefghijklmno".chars().map(name).chain(["pp".into()]).collect();
    let path = format!("{}/{}", deep.join("/"), "f".repeat(250));
    assert_eq!(path.len(), 4093);
    let container = shop.container(vec![Layer::new().pax(&[("path", path.as_bytes())]).file("x", "x")]);
    let mut dir: std::os::fd::OwnedFd = fs::File::open(container.upper()).unwrap().into();
    for name in &deep {
        use rustix::fs::{Mode, OFlags, mkdirat, openat};
        mkdirat(&dir, name, Mode::from_raw_mode(0o755)).unwrap();
        dir = openat(&dir, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    let device = rustix::fs::makedev(0, 0);
    let whiteout = rustix::fs::mknodat(
        &dir,
        "f".repeat(250),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::empty(),
        device,
    );
    whiteout.unwrap();
    let blobs = || {
        let count = |dir: &str| fs::read_dir(shop.dir.path().join("store").join(dir)).unwrap().count();
        (count("blobs/sha256"), count("tmp"))
    };
    let before = blobs();
    let (now, was) = shop.store.stacks_of(&container).unwrap();
    let error = shop.store.put_layer(&now, &was, Compression::None, &()).unwrap_err().to_string();
    assert!(error.contains("cannot be marked as removed"), "{error}");
    assert_eq!(blobs(), before);
}

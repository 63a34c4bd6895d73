//! A store is whole, whatever comes and whenever whoever writes it dies.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use oci_spec::image::{Descriptor, Digest};
use rustix::process::{Pid, Signal};
use unionfs_rs::error::Error;
use unionfs_rs::image::digest;
use unionfs_rs::image::manifest::Platform;
use unionfs_rs::image::source::{Source, Watch, fetch};
use unionfs_rs::image::store::{Progress, Store, Trees, Work};

use crate::archive::{Layer, Shop, docker_archive, docker_archive_with, lines, show};
use crate::support::{Rng, Tmpfs, binary, finish, number, on_kernel, require_root};

/// An image with enough in it for a death to come in the middle.
fn large_image() -> Vec<u8> {
    let layer = |n: usize| {
        let mut layer = Layer::new().dir("./", 0o755);
        for file in 0..300 {
            layer = layer.file(&format!("d{}/l{n}-{file}", file % 20), &"x".repeat(file * 37));
        }
        layer.file(&format!("d{n}/.wh.gone"), "").tar()
    };
    docker_archive("localhost/large:1", &(0..4).map(layer).collect::<Vec<_>>())
}

fn command(store: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments).arg("--store").arg(store);
    command
}

/// Ends a process that may be done already, as it would be killed or, every other time, told to end at a terminal. Returns
/// whether it was not done.
fn end(mut child: Child, round: u64) -> bool {
    let under_way = child.try_wait().unwrap().is_none();
    if !under_way {
        return false;
    }
    let signal = if round.is_multiple_of(2) { Signal::KILL } else { Signal::INT };
    // It is ours to wait for, so that its number is nobody else's.
    rustix::process::kill_process(Pid::from_child(&child), signal).unwrap();
    child.wait().unwrap();
    true
}

/// What `verify` says.
fn assert_whole(store: &Path, when: &str) {
    let ran = finish(&mut command(store, &["verify", "--trees"]));
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{when}: {}", ran.out);
}

#[test]
fn a_layer_that_is_another_than_its_digest_says_is_never_seen() {
    let shop = Shop::new();
    let (right, wrong) = (Layer::new().file("a", "a").tar(), Layer::new().file("a", "b").tar());
    let diff_id = digest::of(&right).unwrap().to_string();
    let error = shop
        .load(&docker_archive_with("localhost/x:1", &[wrong], std::slice::from_ref(&diff_id)))
        .unwrap_err()
        .to_string();
    assert!(error.contains("layer sha256:") && error.contains(&diff_id), "{error}");
    assert!(shop.trees().is_empty() && shop.store.images().unwrap().is_empty());
    let error = shop
        .load(&docker_archive_with("localhost/x:1", &[right], &[diff_id.clone(), diff_id]))
        .unwrap_err()
        .to_string();
    assert!(error.contains("has 1 layers, and its configuration 2"), "{error}");
}

#[test]
fn a_blob_of_a_layout_that_was_damaged_is_refused_and_one_of_the_store_is_found() {
    let shop = Shop::new();
    let image = shop.image(vec![Layer::new().file("a", &"a".repeat(5000))]).unwrap();
    let (store, layout) = (shop.dir.path().join("store"), shop.dir.path().join("layout"));
    let saved =
        finish(&mut command(&store, &["save", "--format", "oci", "-o", layout.to_str().unwrap(), "localhost/test:1"]));
    assert_eq!(saved.code, Some(0), "{}", saved.err);
    let digest = image.layers[0].blob.digest();
    let flip = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        bytes[600] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    for damage in [
        |bytes: &mut Vec<u8>| bytes[600] ^= 1,
        |bytes: &mut Vec<u8>| bytes.push(0),
        |bytes: &mut Vec<u8>| bytes.truncate(900),
    ] {
        let path = layout.join("blobs/sha256").join(digest.digest());
        let whole = fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        damage(&mut bytes);
        fs::write(&path, bytes).unwrap();
        let other = shop.dir.path().join("other");
        let ran = finish(&mut command(&other, &["load", layout.to_str().unwrap()]));
        assert_eq!(ran.code, Some(1), "{}", ran.out);
        assert!(ran.err.contains(&format!("layer {digest}")), "{}", ran.err);
        assert!(!other.join("blobs/sha256").join(digest.digest()).exists());
        assert_eq!(fs::read_dir(other.join("layers")).unwrap().count(), 0);
        assert_eq!(finish(&mut command(&other, &["images", "-q"])).out, "");
        fs::write(&path, whole).unwrap();
        // And with the right bytes the same store takes it.
        let ran = finish(&mut command(&other, &["load", layout.to_str().unwrap()]));
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        fs::remove_dir_all(other).unwrap();
    }
    flip(&store.join("blobs/sha256").join(digest.digest()));
    let ran = finish(&mut command(&store, &["verify"]));
    assert_eq!(ran.code, Some(1));
    assert!(ran.out.contains(&format!("blob {digest}")), "{}", ran.out);
    let ran = finish(&mut command(&store, &["save", "localhost/test:1", "-o", "/dev/null"]));
    assert!(ran.code == Some(1) && ran.err.contains(&digest.to_string()), "{}", ran.err);
}

#[test]
fn layers_are_shared_and_gc_takes_what_nobody_needs() {
    let shop = Shop::new();
    let base = || Layer::new().file("base", "base");
    let one =
        shop.load(&docker_archive("localhost/one:1", &[base().tar(), Layer::new().file("1", "1").tar()])).unwrap();
    let two =
        shop.load(&docker_archive("localhost/two:1", &[base().tar(), Layer::new().file("2", "2").tar()])).unwrap();
    assert_eq!(shop.trees().len(), 3);
    let usage = shop.store.usage().unwrap();
    assert!(usage.iter().all(|one| one.shared > 0 && one.unique > 0), "{usage:?}");
    assert_eq!(shop.store.gc().unwrap().layers, 0);
    let trees = shop.store.trees(&one, &()).unwrap();
    let container = shop.store.create_container(&one, None, &trees, false).unwrap();
    shop.store.forget(one.descriptor.digest()).unwrap();
    // A container keeps the layers of its image, and they can be read.
    shop.store.gc().unwrap();
    assert_eq!(shop.trees().len(), 3);
    assert_eq!(show(&shop.store.stacks_of(&container).unwrap().1).len(), 2);
    container.remove().unwrap();
    let removed = shop.store.gc().unwrap();
    assert_eq!((removed.layers, shop.trees().len()), (1, 2));
    assert_eq!(show(&shop.stack(&two)).len(), 2);
    assert!(shop.store.verify(Trees::Compared, &(), &()).unwrap().problems.is_empty());
}

#[test]
fn two_processes_may_load_the_same_and_gc_between_them() {
    let shop = Shop::new();
    let (store, archive) = (shop.dir.path().join("shared"), shop.dir.path().join("image.tar"));
    fs::write(&archive, large_image()).unwrap();
    let mut children = Vec::new();
    for n in 0..6 {
        let mut one =
            if n % 3 == 2 { command(&store, &["gc"]) } else { command(&store, &["load", archive.to_str().unwrap()]) };
        children.push(one.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
    }
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_whole(&store, "after six at once");
    let store = Store::open(&store).unwrap();
    let image = store.find("localhost/large:1").unwrap().image;
    assert_eq!(store.trees(&image, &()).unwrap().len(), 4);
}

#[test]
fn what_was_done_to_a_tree_is_found() {
    let shop = Shop::new();
    let lower = Layer::new().dir("./", 0o755).file("d/a", "aaaa").file("d/b", "b").file("gone", "x").symlink("l", "d");
    // A link to a file of below has a tree with a copy of that.
    let upper = Layer::new().file("d/.wh.b", "").file("d/c", "c").hard_link("linked", "d/a");
    let image = shop.image(vec![lower, upper]).unwrap();
    let trees = shop.store.trees(&image, &()).unwrap();
    let problems = || {
        let found = shop.store.verify(Trees::Compared, &(), &()).unwrap().problems;
        found.into_iter().map(|problem| problem.reason).collect::<Vec<_>>()
    };
    assert_eq!(problems(), [""; 0]);
    let (lower, upper) = (&trees[0].path, &trees[1].path);
    let times = |path: &Path| {
        let time = rustix::fs::Timespec { tv_sec: 1_700_000_000, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    };
    // As a disk that has lost something: with the times as they were.
    fs::write(lower.join("d/a"), "aaab").unwrap();
    times(&lower.join("d/a"));
    // And the copy of it is not what is copied now.
    assert_eq!(problems(), ["/d/a has other contents", "/linked has other contents"]);
    assert!(shop.store.verify(Trees::Left, &(), &()).unwrap().problems.is_empty());
    fs::write(lower.join("d/a"), "aaaa").unwrap();
    times(&lower.join("d/a"));
    fs::remove_file(upper.join("d/b")).unwrap();
    fs::write(upper.join("new"), "").unwrap();
    let found = problems();
    for expected in ["/d/b is missing", "/new should not be there"] {
        assert!(found.contains(&expected.to_owned()), "{found:?}");
    }
    let key = "user.note";
    rustix::fs::setxattr(lower.join("gone"), key, b"v", rustix::fs::XattrFlags::empty()).unwrap();
    fs::remove_file(lower.join("l")).unwrap();
    std::os::unix::fs::symlink("e", lower.join("l")).unwrap();
    times(&lower.join("l"));
    let found = problems();
    for expected in ["/gone has other xattrs", "/l leads elsewhere"] {
        assert!(found.contains(&expected.to_owned()), "{found:?}");
    }
}

/// Kills whoever loads, commits and takes away, at any moment: `UNIONFS_IMAGE_KILLS`, `UNIONFS_IMAGE_SEED`.
#[test]
fn a_process_that_is_killed_leaves_a_store_that_works() {
    let (kills, seed) = (number("UNIONFS_IMAGE_KILLS", 24), number("UNIONFS_IMAGE_SEED", 1));
    let mut rng = Rng::new(seed);
    let shop = Shop::new();
    let (store, archive) = (shop.dir.path().join("killed"), shop.dir.path().join("image.tar"));
    fs::write(&archive, large_image()).unwrap();
    let load = ["load", archive.to_str().unwrap()];
    let (mut died, mut died_removing) = (0, 0);
    for round in 0..kills {
        let removes = round % 4 >= 2;
        if removes {
            // All that is there is for nobody, as after a power cut before the name was written.
            let filled = finish(&mut command(&store, &load));
            assert_eq!(filled.code, Some(0), "{}", filled.err);
            fs::write(store.join("index.json"), r#"{"schemaVersion":2,"manifests":[]}"#).unwrap();
        }
        let other: &[&str] = if removes { &["gc"] } else { &load };
        let child = command(&store, other).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let longest = if removes { 60 } else { 200 };
        std::thread::sleep(Duration::from_micros(500 * rng.below(longest) as u64));
        let count = if removes { &mut died_removing } else { &mut died };
        *count += usize::from(end(child, round));
        let when = format!("seed {seed}, round {round}, {other:?}");
        assert_whole(&store, &when);
        // What a dead one was making is gone as soon as somebody comes.
        assert_eq!(fs::read_dir(store.join("tmp")).unwrap().count(), 0, "{when}");
        let ran = finish(&mut command(&store, &load));
        assert_eq!(ran.code, Some(0), "{when}: {}", ran.err);
        // What is under a final name is whole: each tree is the one that a new store has.
        let open = Store::open(&store).unwrap();
        let image = open.find("localhost/large:1").unwrap().image;
        for tree in open.trees(&image, &()).unwrap() {
            let files = lines("find", &[tree.path.to_str().unwrap(), "-type", "f"]);
            assert_eq!(files.len(), 300, "{when}");
        }
        drop(open);
        if round % 2 == 1 {
            assert_eq!(finish(&mut command(&store, &["rmi", "localhost/large:1"])).code, Some(0), "{when}");
        }
    }
    assert!(died > 0 && died_removing > 0, "{died} and {died_removing} were ended in time");
}

#[test]
fn a_commit_that_is_killed_leaves_a_store_that_works() {
    if on_kernel() {
        crate::skip!("the containers of a store are not the kernel's");
    }
    let (kills, seed) = (number("UNIONFS_IMAGE_KILLS", 24) / 2, number("UNIONFS_IMAGE_SEED", 1));
    let mut rng = Rng::new(seed);
    let shop = Shop::new();
    let (store, source) = (shop.dir.path().join("killed"), shop.dir.path().join("source"));
    let archive = shop.dir.path().join("image.tar");
    fs::write(&archive, large_image()).unwrap();
    fs::create_dir(&source).unwrap();
    for n in 0..100_u64 {
        let bytes: Vec<u8> = (0..20_000_u64).map(|at| (at.wrapping_mul(n + 7) >> 3) as u8).collect();
        fs::write(source.join(n.to_string()), bytes).unwrap();
    }
    let done = |arguments: &[&str]| {
        let ran = finish(&mut command(&store, arguments));
        assert_eq!(ran.code, Some(0), "{arguments:?}: {}", ran.err);
        ran.out.trim().to_owned()
    };
    done(&["load", archive.to_str().unwrap()]);
    let id = done(&["create", "localhost/large:1"]);
    done(&["cp", source.to_str().unwrap(), &format!("{id}:/new")]);
    let commit = ["commit", &id, "committed"];
    let image = done(&commit);
    let mut died = 0;
    for round in 0..kills {
        done(&["rmi", "committed"]);
        let child = command(&store, &commit).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(500 * rng.below(300) as u64));
        died += usize::from(end(child, round));
        let when = format!("seed {seed}, round {round}");
        assert_whole(&store, &when);
        assert_eq!(done(&["diff", "--stat", &id]).lines().next(), Some("101 added, 2 MB"), "{when}");
        assert_eq!(done(&commit), image, "{when}");
    }
    assert!(died > 0, "nobody was killed in time");
}

#[test]
fn a_full_disk_loses_nothing_and_says_so() {
    if !require_root("mounting a small tmpfs") {
        return;
    }
    let shop = Shop::new();
    let archive = shop.dir.path().join("image.tar");
    fs::write(&archive, large_image()).unwrap();
    let small = shop.dir.path().join("small");
    let _mounted = Tmpfs::mount(&small, "size=4m").unwrap();
    let store = small.join("store");
    let ran = finish(&mut command(&store, &["load", archive.to_str().unwrap()]));
    assert!(ran.code == Some(4) && ran.err.contains("No space left on device"), "{:?} {}", ran.code, ran.err);
    assert_eq!(finish(&mut command(&store, &["images", "-q"])).out, "");
    assert_eq!(finish(&mut command(&store, &["gc"])).code, Some(0));
    for part in ["blobs/sha256", "layers", "tmp"] {
        assert_eq!(fs::read_dir(store.join(part)).unwrap().count(), 0, "{part}");
    }
    let tiny = shop.dir.path().join("tiny.tar");
    fs::write(&tiny, docker_archive("localhost/tiny:1", &[Layer::new().file("a", "a").tar()])).unwrap();
    assert_eq!(finish(&mut command(&store, &["load", tiny.to_str().unwrap()])).code, Some(0));
    assert_whole(&store, "after the disk was full");
}

#[test]
fn an_image_cannot_claim_a_tree_that_is_not_its_own() {
    let shop = Shop::new();
    let (secret, evil) = (Layer::new().file("secret", "secret").tar(), Layer::new().file("evil", "evil").tar());
    shop.load(&docker_archive("localhost/a:1", std::slice::from_ref(&secret))).unwrap();
    let diff_id = digest::of(&secret).unwrap().to_string();
    for diff_id in [diff_id.clone(), diff_id.replace("sha256:", "other:")] {
        let error =
            shop.load(&docker_archive_with("localhost/b:1", std::slice::from_ref(&evil), &[diff_id])).unwrap_err();
        assert!(error.to_string().contains("diff_id") || error.to_string().contains("digest"), "{error}");
    }
    let twice = docker_archive_with("localhost/b:1", &[secret.clone(), evil], &[diff_id.clone(), diff_id.clone()]);
    assert!(shop.load(&twice).unwrap_err().to_string().contains("has the digest"));
    // Packed otherwise it is the same tar, and is compared once.
    let packed = docker_archive_with("localhost/c:1", &[crate::archive::gzip(&secret)], &[diff_id]);
    let image = shop.load(&packed).unwrap();
    assert_eq!(shop.store.trees(&image, &()).unwrap()[0].facts.blobs.len(), 2);
}

#[test]
fn a_name_with_a_digest_is_not_an_archives_to_give() {
    let shop = Shop::new();
    let right = shop.load(&docker_archive("localhost/a:1", &[Layer::new().file("right", "r").tar()])).unwrap();
    let pinned = format!("localhost/a@{}", right.descriptor.digest());
    let error = shop.load(&docker_archive(&pinned, &[Layer::new().file("evil", "e").tar()])).unwrap_err().to_string();
    assert!(error.contains("a name that is given has a tag"), "{error}");
    assert_eq!(shop.store.find(&pinned).unwrap().image.id(), right.id());
}

#[test]
fn what_is_damaged_can_be_seen_removed_and_brought_again() {
    let dir = tempfile::tempdir().unwrap();
    let (store, archive, whole) =
        (dir.path().join("store"), dir.path().join("image.tar"), dir.path().join("whole.tar"));
    fs::write(&archive, docker_archive("localhost/broken:1", &[Layer::new().file("a", "a").tar()])).unwrap();
    fs::write(&whole, docker_archive("localhost/whole:1", &[Layer::new().file("b", "b").tar()])).unwrap();
    let say = |arguments: &[&str]| finish(&mut command(&store, arguments));
    for archive in [&archive, &whole] {
        assert_eq!(say(&["load", archive.to_str().unwrap()]).code, Some(0));
    }
    let damage = || {
        let store = Store::open(&store).unwrap();
        let image = store.find("broken:1").unwrap().image;
        for digest in [image.descriptor.digest(), image.layers[0].blob.digest()] {
            let path = store.blob_path(digest);
            let mut bytes = fs::read(&path).unwrap();
            bytes[10] ^= 1;
            fs::write(path, bytes).unwrap();
        }
        fs::remove_file(store.trees(&image, &()).unwrap()[0].path.with_file_name("layer.json")).unwrap();
    };
    damage();
    let listed = say(&["images"]);
    assert!(listed.code == Some(0) && listed.out.contains("localhost/whole"), "{} {}", listed.out, listed.err);
    assert!(listed.err.contains("localhost/broken:1: image") && listed.err.contains("remove it"), "{}", listed.err);
    for arguments in [&["df"][..], &["history", "whole:1"], &["inspect", "whole:1"]] {
        assert_eq!(say(arguments).code, Some(0), "{arguments:?}");
    }
    let refused = say(&["gc"]);
    assert!(refused.code == Some(1) && refused.err.contains("unionfs-rs rmi localhost/broken:1"), "{}", refused.err);
    // Brought again it is whole.
    assert_eq!(say(&["load", archive.to_str().unwrap()]).code, Some(0));
    assert_whole(&store, "after it was brought again");
    let trees = || fs::read_dir(store.join("layers")).unwrap().count();
    assert!(store.join("layers").read_dir().unwrap().all(|tree| tree.unwrap().path().join("layer.json").exists()));
    damage();
    let removed = say(&["rmi", "broken:1"]);
    assert_eq!(removed.code, Some(0), "{}", removed.err);
    assert_whole(&store, "after it was removed");
    assert_eq!(trees(), 1);
}

#[test]
fn one_bad_container_stops_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (store, archive) = (dir.path().join("store"), dir.path().join("image.tar"));
    fs::write(&archive, docker_archive("localhost/test:1", &[Layer::new().file("a", "a").tar()])).unwrap();
    let say = |arguments: &[&str]| finish(&mut command(&store, arguments));
    assert_eq!(say(&["load", archive.to_str().unwrap()]).code, Some(0));
    fs::create_dir_all(store.join("containers/0123456789ab")).unwrap();
    fs::write(store.join("containers/0123456789ab/config.json"), "").unwrap();
    for arguments in [&["images"][..], &["ps"], &["create", "test:1"]] {
        let ran = say(arguments);
        assert_eq!(ran.code, Some(0), "{arguments:?}: {}", ran.err);
    }
    assert!(say(&["ps"]).err.contains("0123456789ab"));
    // But what it may need is not taken away.
    assert_eq!(say(&["gc"]).code, Some(1));
}

#[test]
fn a_mount_that_fails_leaves_no_container() {
    let shop = Shop::new();
    let store = shop.dir.path().join("store");
    shop.image(vec![Layer::new().file("a", "a")]).unwrap();
    let nowhere = shop.dir.path().join("nowhere");
    for arguments in
        [&["--image", "test:1"][..], &["--ro", "--image", "test:1"], &["--lower", "/", "--image", "test:1"]]
    {
        let mut mount = command(&store, &["mount"]);
        let ran = finish(mount.args(arguments).arg(&nowhere));
        assert_ne!(ran.code, Some(0), "{arguments:?}");
        assert_eq!(fs::read_dir(store.join("containers")).unwrap().count(), 0, "{arguments:?}: {}", ran.err);
    }
}

#[test]
fn one_configuration_with_two_manifests_is_one_image() {
    let dir = tempfile::tempdir().unwrap();
    let (store, archive, layout) = (dir.path().join("store"), dir.path().join("image.tar"), dir.path().join("layout"));
    fs::write(&archive, docker_archive("localhost/test:1", &[Layer::new().file("a", "a").tar()])).unwrap();
    let say = |arguments: &[&str]| {
        let ran = finish(&mut command(&store, arguments));
        assert_eq!(ran.code, Some(0), "{arguments:?}: {}", ran.err);
        ran.out
    };
    say(&["load", archive.to_str().unwrap()]);
    say(&["tag", "test:1", "as-docker-has-it:1"]);
    // The same as the OCI has it.
    say(&["save", "--format", "oci", "-o", layout.to_str().unwrap(), "test:1"]);
    say(&["load", layout.to_str().unwrap()]);
    let ids = say(&["images", "-q", "--no-trunc"]);
    let ids: Vec<&str> = ids.lines().collect();
    assert!(ids.len() == 2 && ids[0] == ids[1], "{ids:?}");
    say(&["inspect", ids[0]]);
    assert_eq!(say(&["rmi", ids[0]]).matches("Deleted").count(), 2);
    assert_eq!(fs::read_dir(store.join("layers")).unwrap().count(), 0);
}

#[test]
fn an_archive_may_name_its_layers_as_it_likes() {
    let shop = Shop::new();
    let layer = Layer::new().file("a", "a").tar();
    let archive = docker_archive("localhost/test:1", std::slice::from_ref(&layer));
    // As go-containerregistry writes them: packed, and named so.
    let mut renamed = tar::Builder::new(Vec::new());
    for entry in tar::Archive::new(&archive[..]).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
        let (path, bytes) = match path.as_str() {
            "0.tar" => ("0.tar.gz".to_owned(), crate::archive::gzip(&bytes)),
            "manifest.json" => (path, String::from_utf8(bytes).unwrap().replace("0.tar", "0.tar.gz").into_bytes()),
            _ => (path, bytes),
        };
        let mut header = Layer::header(path.as_bytes(), tar::EntryType::Regular, bytes.len() as u64);
        header.set_cksum();
        renamed.append(&header, &bytes[..]).unwrap();
    }
    let image = shop.load(&renamed.into_inner().unwrap()).unwrap();
    assert_eq!(image.layers[0].diff_id, digest::of(&layer).unwrap());
}

/// The store of another test, from which the blob `last` comes when `may` says so, and does not where it says `false`.
struct Slow<'a> {
    of: &'a Store,
    last: Digest,
    may: Mutex<mpsc::Receiver<bool>>,
}

impl Source for Slow<'_> {
    fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + '_>, Error> {
        let long = Duration::from_secs(30);
        if *descriptor.digest() == self.last && self.may.lock().unwrap().recv_timeout(long) != Ok(true) {
            return Ok(Box::new(io::empty()));
        }
        self.of.open(descriptor)
    }
}

/// Tells that a layer is unpacked.
struct Tell(Mutex<mpsc::Sender<bool>>);

impl Progress for Tell {
    fn moved(&self, _: &Work, _: u64) {}
    fn done(&self, _: &Work) {
        let _ = self.0.lock().unwrap().send(true);
    }
}

#[test]
fn a_layer_is_unpacked_while_another_is_still_brought() {
    let shop = Shop::new();
    let image = shop.image(vec![Layer::new().file("a", "a"), Layer::new().file("b", "b")]).unwrap();
    for comes in [true, false] {
        let (give, may) = mpsc::channel();
        let source = Slow { of: &shop.store, last: image.layers[1].blob.digest().clone(), may: Mutex::new(may) };
        let tell = Tell(Mutex::new(give.clone()));
        let watch = if comes { Watch { fetching: &(), unpacking: &tell } } else { Watch::NOBODY };
        if !comes {
            give.send(false).unwrap();
        }
        let other = Shop::new();
        let fetched = fetch(&other.store, &source, &image.descriptor, &Platform::here(), watch);
        if comes {
            assert_eq!(fetched.unwrap().layers, image.layers);
            assert_eq!(other.trees().len(), 2);
        } else {
            let error = fetched.unwrap_err().to_string();
            assert!(
                error.contains(&image.layers[1].blob.digest().to_string()) && error.contains("ends after 0"),
                "{error}"
            );
            assert!(other.trees().is_empty(), "a tree has got its name");
            assert_eq!(fs::read_dir(other.dir.path().join("store/tmp")).unwrap().count(), 0);
        }
    }
}

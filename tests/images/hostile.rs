//! Layers that were made to do harm: nothing is written outside of the tree, nothing that is mounted lies, nothing panics.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use tar::EntryType;

use crate::archive::{Layer, Shop, docker_archive, tree};
use crate::support::{Rng, number};

/// A file outside of the store, which no layer may reach.
fn sentinel(shop: &Shop) -> std::path::PathBuf {
    let path = shop.dir.path().join("sentinel");
    fs::write(&path, "untouched").expect("there is room");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("it is ours");
    path
}

#[test]
fn nothing_is_written_outside_of_the_tree() {
    let shop = Shop::new();
    let outside = sentinel(&shop);
    let there = outside.display().to_string();
    let up = "../".repeat(40);
    let above = shop.dir.path().display().to_string();
    let layers: Vec<Layer> = vec![
        Layer::new().file("../../../../../../sentinel", "x").file("a/../../../../../sentinel", "x"),
        Layer::new().file("/sentinel", "x").file("//../sentinel", "x"),
        Layer::new().symlink("out", &above).file("out/sentinel", "x"),
        Layer::new().symlink("out", &format!("{up}{}", &above[1..])).file("out/sentinel", "x"),
        Layer::new().symlink("a", "..").symlink("b", "a/..").symlink("c", "b/../..").file("c/sentinel", "x"),
        Layer::new().symlink("sentinel", &there).file("sentinel", "x"),
        Layer::new().symlink("d", &above).dir("d", 0o777).file("d/sentinel", "x"),
        Layer::new().symlink("d", &above).file("d/.wh.sentinel", ""),
        Layer::new().symlink("d", &above).file("d/.wh..wh..opq", ""),
    ];
    for (n, layer) in layers.into_iter().enumerate() {
        if let Err(error) = shop.image(vec![layer]) {
            panic!("layer {n}: {error}");
        }
        let metadata = fs::symlink_metadata(&outside).expect("it is there");
        assert_eq!(fs::read_to_string(&outside).expect("it is text"), "untouched", "layer {n}");
        assert_eq!((metadata.mode() & 0o7777, metadata.nlink()), (0o640, 1), "layer {n}");
    }
    // By hard links nothing of the machine comes in either.
    for target in [there.clone(), format!("{up}{}", &there[1..])] {
        let shop = Shop::new();
        let layer = Layer::new().hard_link("in", &target);
        assert!(shop.refused(vec![layer]).contains("neither this layer nor those below"));
    }
    let shop = Shop::new();
    let layer = Layer::new().symlink("d", &above).hard_link("in", "d/sentinel");
    assert!(shop.refused(vec![layer]).contains("neither this layer nor those below"));
    assert_eq!(fs::symlink_metadata(&outside).expect("it is there").nlink(), 1);
}

#[test]
fn links_that_go_in_circles_or_too_deep_are_errors() {
    let circle = Layer::new().symlink("a", "b").symlink("b", "a").file("a/x", "x");
    assert!(Shop::new().refused(vec![circle]).contains("member \"a/x\""));
    // Each link leads deeper than the one before.
    let down = "dddddddddd/".repeat(40);
    let mut deep = Layer::new().symlink("l0", &down).file("l0/x", "x");
    for n in 1..12 {
        deep = deep.symlink(&format!("l{n}"), &format!("/l{}/{down}", n - 1)).file(&format!("l{n}/x"), "x");
    }
    let error = Shop::new().refused(vec![deep]);
    assert!(error.contains("a path of more than 4095 bytes"), "{error}");
}

#[test]
fn what_belongs_to_the_overlay_cannot_be_forged() {
    let forged: Vec<(String, &[u8])> = ["trusted.overlay.", "user.overlay.", "user.fuseoverlayfs."]
        .iter()
        .flat_map(|prefix| {
            [
                ("opaque", &b"y"[..]),
                ("redirect", b"/etc"),
                ("metacopy", b""),
                ("whiteout", b"y"),
                ("origin", b"x"),
                ("upper", b"x"),
            ]
            .map(|(name, value)| (format!("SCHILY.xattr.{prefix}{name}"), value))
        })
        .chain([
            ("SCHILY.xattr.user.containers.override_stat".to_owned(), &b"0:0:04755"[..]),
            ("SCHILY.xattr.security.fuseoverlayfs.override_stat".to_owned(), b"0:0:04755"),
            ("SCHILY.xattr.user.containers.override_security.capability".to_owned(), b"x"),
        ])
        .collect();
    let records: Vec<(&str, &[u8])> = forged.iter().map(|(key, value)| (key.as_str(), *value)).collect();
    let shop = Shop::new();
    let lower = Layer::new().file("d/below", "below").file("f", "below").file("etc/secret", "secret");
    let upper = Layer::new().pax(&records).dir("d", 0o755).pax(&records).file("f", "").pax(&records).dir("./", 0o755);
    let image = shop.image(vec![lower, upper]).unwrap();
    let stack = shop.stack(&image);
    let shown = crate::archive::show(&stack);
    let expected = tree(&[
        ("/d", "dir 755 0:0"),
        ("/d/below", "file \"below\" 644 0:0"),
        ("/etc", "dir 755 0:0"),
        ("/etc/secret", "file \"secret\" 644 0:0"),
        ("/f", "file \"\" 644 0:0"),
    ]);
    assert_eq!(shown, expected);
    let object = stack.at(&["f".as_ref()]).unwrap().unwrap();
    assert_eq!(stack.xattrs_of(&object).unwrap(), []);
}

#[test]
fn no_name_of_a_mark_is_made_by_way_of_a_link() {
    for target in [".wh...", ".wh.", ".wh.t", "d/.wh.x"] {
        let error = Shop::new().refused(vec![Layer::new().dir("d", 0o755).symlink("l", target).file("l/x", "x")]);
        assert!(error.contains("member \"l/x\"") && error.contains("mark"), "{error}");
    }
}

#[test]
fn many_links_to_one_file_below_take_time_for_each_alone() {
    let shop = Shop::new();
    let mut upper = Layer::new();
    for n in 0..20_000 {
        upper = upper.hard_link(&format!("links/{n}"), "t");
    }
    let image = shop.image(vec![Layer::new().file("t", "t"), upper]).unwrap();
    let stack = shop.stack(&image);
    let Some(object) = stack.at(&["links".as_ref(), "19999".as_ref()]).unwrap() else { panic!("it is there") };
    assert_eq!(object.attr().nlink, 20_000);
}

#[test]
fn the_device_that_marks_what_is_removed_cannot_be_made() {
    let error = Shop::new().refused(vec![Layer::new().device("d/null", (0, 0))]);
    assert!(error.contains("member \"d/null\"") && error.contains("0:0"), "{error}");
    let shop = Shop::new();
    let shown = shop.shown(vec![Layer::new().device("dev/null", (1, 3))]);
    assert_eq!(shown["/dev/null"], "Char (1, 3) 644 0:0");
}

#[test]
fn sizes_and_names_that_cannot_be_are_refused_and_take_no_memory() {
    let raw = |set: fn(&mut tar::Header)| {
        let mut header = Layer::header(b"x", EntryType::Regular, 0);
        set(&mut header);
        header.set_cksum();
        [&header.as_bytes()[..], &[0; 1024]].concat()
    };
    let long = |kind: u8| {
        let mut header = Layer::header(b"././@LongLink", EntryType::new(kind), 1 << 40);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let all = [
        raw(|header| header.set_size(u64::MAX >> 1)),
        raw(|header| header.set_size(1 << 50)),
        raw(|header| header.as_gnu_mut().unwrap().size = *b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
        raw(|header| header.as_gnu_mut().unwrap().uid = *b"\xff\xff\xff\xff\xff\xff\xff\xff"),
        raw(|header| header.as_gnu_mut().unwrap().mode = *b"rwxrwxrw"),
        raw(|header| header.set_entry_type(EntryType::new(b'Q'))),
        raw(|header| header.as_gnu_mut().unwrap().name = [0; 100]),
        long(b'L'),
        long(b'K'),
        long(b'x'),
        long(b'g'),
        Layer::new().pax(&[("size", b"18446744073709551615")]).file("x", "x").tar(),
        Layer::new().pax(&[("path", b"a\0b")]).file("x", "x").tar(),
        Layer::new().pax(&[("path", &[b'x'; 5000])]).file("x", "x").tar(),
        Layer::new().pax(&[("path", &[b'x'; 256])]).file("x", "x").tar(),
        Layer::new().pax(&[("linkpath", &[b'x'; 5000])]).symlink("x", "x").tar(),
        Layer::new().pax(&[("uid", b"4294967295")]).file("x", "x").tar(),
        Layer::new()
            .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"9")])
            .file("x", "9999999999\n")
            .tar(),
        Layer::new().pax(&[("GNU.sparse.map", b"0,1,0,1"), ("GNU.sparse.size", b"9")]).file("x", "xx").tar(),
        b"this is no archive at all, but text that goes on for longer than a block does".repeat(20),
    ];
    for (n, tar) in all.into_iter().enumerate() {
        let shop = Shop::new();
        let error = match shop.load(&docker_archive("localhost/test:1", &[tar])) {
            Ok(_) => panic!("layer {n} was taken"),
            Err(error) => error.to_string(),
        };
        assert!(error.contains("layer sha256:"), "layer {n}: {error}");
        assert!(shop.trees().is_empty(), "layer {n}");
    }
}

#[test]
fn a_bomb_is_unpacked_no_further_than_its_member_says() {
    // Mebibytes of zeros in a few kilobytes, behind a member that has a byte.
    let mut tar = Layer::new().file("x", "x").tar();
    tar.truncate(1024);
    tar.extend(std::iter::repeat_n(0, 4 << 20));
    let packed = crate::archive::gzip(&tar);
    let diff_id = unionfs_rs::image::digest::of(&tar).unwrap().to_string();
    let shop = Shop::new();
    let archive = crate::archive::docker_archive_with("localhost/test:1", &[packed], &[diff_id]);
    let image = shop.load(&archive).unwrap();
    let tree = &shop.store.trees(&image, &()).unwrap()[0];
    assert_eq!((tree.facts.members, tree.facts.bytes), (1, 1));
}

/// Any tar with bytes changed is read or refused: `UNIONFS_IMAGE_ROUNDS`, `UNIONFS_IMAGE_SEED`.
#[test]
fn any_bytes_are_a_layer_or_an_error() {
    let (rounds, seed) = (number("UNIONFS_IMAGE_ROUNDS", 400), number("UNIONFS_IMAGE_SEED", 1));
    let mut rng = Rng::new(seed);
    let whole = Layer::new()
        .dir("./", 0o755)
        .pax(&[("path", b"long/name"), ("mtime", b"1.5"), ("SCHILY.xattr.user.x", b"v")])
        .file("x", "data")
        .symlink("l", "long")
        .hard_link("h", "long/name")
        .file("d/.wh.gone", "")
        .file("l/through", "x")
        .device("null", (1, 3))
        .tar();
    let (mut taken, mut refused) = (0, 0);
    let outside = tempfile::tempdir().unwrap();
    for _ in 0..rounds {
        let mut bytes = whole.clone();
        for _ in 0..=rng.below(6) {
            let at = rng.below(bytes.len());
            bytes[at] = rng.below(256) as u8;
        }
        // As if whoever made it had known how: a header that was changed has the right sum.
        for block in bytes.chunks_mut(512).filter(|block| block.len() == 512 && &block[257..262] == b"ustar") {
            let mut header = tar::Header::new_gnu();
            header.as_mut_bytes().copy_from_slice(block);
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
        }
        let root = tempfile::tempdir_in(outside.path()).unwrap();
        let fd = std::os::fd::OwnedFd::from(fs::File::open(root.path()).unwrap());
        match unionfs_rs::image::unpack::unpack(&bytes[..], fd, unionfs_rs::image::unpack::keep::Keep::here()) {
            Ok(_) => taken += 1,
            Err(_) => refused += 1,
        }
        drop(root);
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0, "seed {seed}: something is beside the tree");
    }
    assert!(
        taken > 0 && refused > 0,
        "{taken} taken, {refused} refused: the change of bytes is too small or too large"
    );
}

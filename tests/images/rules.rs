//! How layers are applied: the rules of the image specification, and what all tools do where it is silent.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use tar::EntryType;
use unionfs_rs::image::stack::Object;
use unionfs_rs::layer::attr::Timestamp;

use crate::archive::{Layer, Shop, gnu_tar, gzip, tree};

const FILE: &str = "644 0:0";

#[test]
fn a_whiteout_hides_lower_layers_alone_wherever_it_stands() {
    for whiteouts_first in [true, false] {
        let shop = Shop::new();
        let lower =
            Layer::new().file("d/a", "old").file("d/b", "old").file("d/c/x", "old").file("e/y", "old").file("f", "old");
        let marks = |layer: Layer| layer.file("d/.wh.a", "").file("d/.wh.b", "").file("d/.wh.c", "").file(".wh.f", "");
        let files =
            |layer: Layer| layer.file("d/a", "new").file("d/c/z", "new").file("e/.wh..wh..opq", "").file("e/w", "new");
        let upper = if whiteouts_first { files(marks(Layer::new())) } else { marks(files(Layer::new())) };
        let dir = "dir 755 0:0";
        let expected = tree(&[
            ("/d", dir),
            ("/d/a", &format!("file \"new\" {FILE}")),
            ("/d/c", dir),
            ("/d/c/z", &format!("file \"new\" {FILE}")),
            ("/e", dir),
            ("/e/w", &format!("file \"new\" {FILE}")),
        ]);
        assert_eq!(shop.shown(vec![lower, upper]), expected, "whiteouts first: {whiteouts_first}");
    }
}

#[test]
fn marks_of_aufs_are_skipped_and_a_mark_without_a_name_is_an_error() {
    let shop = Shop::new();
    let layer = Layer::new().file(".wh..wh.plnk", "").dir(".wh..wh.orph", 0o700).file("a", "a");
    assert_eq!(shop.shown(vec![layer]), tree(&[("/a", &format!("file \"a\" {FILE}"))]));
    for name in ["d/.wh.", ".wh..", ".wh...", ".wh.d/file"] {
        let shop = Shop::new();
        let error = shop.refused(vec![Layer::new().file(name, "")]);
        assert!(error.contains(&format!("member {name:?}")), "{error}");
    }
}

#[test]
fn a_directory_over_a_directory_keeps_its_children_and_anything_else_is_made_anew() {
    let shop = Shop::new();
    let layer = Layer::new()
        .dir("keeps", 0o755)
        .file("keeps/child", "c")
        .dir("keeps", 0o1777)
        .dir("becomes-file", 0o755)
        .file("becomes-file/gone", "c")
        .file("becomes-file", "file")
        .file("becomes-dir", "file")
        .dir("becomes-dir", 0o700)
        .file("becomes-dir/child", "c")
        .symlink("becomes-dir-too", "keeps")
        .dir("becomes-dir-too", 0o711)
        .file("twice", "first")
        .file("./twice", "second")
        .file("/twice", "last");
    let child = format!("file \"c\" {FILE}");
    let expected = tree(&[
        ("/keeps", "dir 1777 0:0"),
        ("/keeps/child", &child),
        ("/becomes-file", &format!("file \"file\" {FILE}")),
        ("/becomes-dir", "dir 700 0:0"),
        ("/becomes-dir/child", &child),
        ("/becomes-dir-too", "dir 711 0:0"),
        ("/twice", &format!("file \"last\" {FILE}")),
    ]);
    assert_eq!(shop.shown(vec![layer]), expected);
}

#[test]
fn parents_that_are_missing_are_roots_and_0755() {
    let shop = Shop::new();
    let shown = shop.shown(vec![Layer::new().file("a/b/c", "c")]);
    assert_eq!(shown["/a"], "dir 755 0:0");
    assert_eq!(shown["/a/b"], "dir 755 0:0");
    // A file in their place is no directory, and not lost for it.
    let error = Shop::new().refused(vec![Layer::new().file("a", "file").file("a/b", "in it")]);
    assert!(error.contains("member \"a/b\""), "{error}");
}

#[test]
fn the_root_is_what_the_topmost_layer_says_that_says_anything() {
    let shop = Shop::new();
    let image = shop.image(vec![Layer::new().dir("./", 0o711), Layer::new().file("a", "a")]).unwrap();
    let Object::Dir(_, attr) = shop.stack(&image).root().unwrap() else { panic!("the root is a directory") };
    assert_eq!(attr.mode, 0o711);
    let trees = shop.store.trees(&image, &()).unwrap();
    let container = shop.store.create_container(&image, None, &trees, false).unwrap();
    assert_eq!(container.upper().metadata().unwrap().mtime(), 1_700_000_000);
}

#[test]
fn hard_links_lead_within_the_layer_or_to_what_is_below() {
    let shop = Shop::new();
    let lower = Layer::new().file("below", "below").symlink("below-link", "x");
    let upper = Layer::new()
        .file("d/a", "a")
        .hard_link("b", "/d/a")
        .hard_link("c", "./d/../d/a")
        .hard_link("e/from-below", "below")
        .hard_link("again", "e/from-below")
        .hard_link("link", "below-link")
        .hard_link("taken", "below")
        .file("taken", "later");
    let image = shop.image(vec![lower, upper]).unwrap();
    let stack = shop.stack(&image);
    let shown = crate::archive::show(&stack);
    for (path, text) in
        [("/d/a", "a"), ("/b", "a"), ("/c", "a"), ("/e/from-below", "below"), ("/again", "below"), ("/taken", "later")]
    {
        assert_eq!(shown[path], format!("file {text:?} {FILE}"), "{path}");
    }
    assert_eq!(shown["/link"], "link \"x\" 777 0:0");
    let ino = |path: &str| {
        stack.at(&path.split('/').map(std::ffi::OsStr::new).collect::<Vec<_>>()).unwrap().unwrap().attr().ino
    };
    assert_eq!(ino("d/a"), ino("b"));
    assert_eq!(ino("again"), ino("e/from-below"), "two names of one file stay that");
    // What is copied from below is part of the tree, so it is of this chain of layers alone.
    assert_eq!(
        shop.trees().iter().filter(|tree| tree.file_name().unwrap().to_string_lossy().starts_with("chain-")).count(),
        1
    );

    for (link, reason) in [("nowhere", "neither this layer nor those below"), ("d", "directory"), ("self", "itself")] {
        let shop = Shop::new();
        let error = shop.refused(vec![Layer::new().dir("d", 0o755).hard_link("self", link)]);
        assert!(error.contains("member \"self\"") && error.contains(reason), "{error}");
    }
}

#[test]
fn pax_records_hold_over_the_header() {
    let shop = Shop::new();
    let long = "n".repeat(255);
    let path = format!("{}/{long}", "p/".repeat(100));
    let target = "t".repeat(3000);
    let link = Layer::header(b"short", EntryType::Symlink, 0);
    let layer = Layer::new()
        .pax(&[
            ("path", path.as_bytes()),
            ("uid", b"3000000000"),
            ("gid", b"2000000"),
            ("mtime", b"-1.5"),
            ("SCHILY.xattr.user.binary", b"\x00\n=\xff"),
        ])
        .file("short", "data")
        .pax(&[("path", b"link"), ("linkpath", target.as_bytes())])
        .raw(link, b"");
    let image = shop.image(vec![layer]).unwrap();
    let stack = shop.stack(&image);
    let names: Vec<&std::ffi::OsStr> =
        path.split('/').filter(|part| !part.is_empty()).map(std::ffi::OsStr::new).collect();
    let object = stack.at(&names).unwrap().expect("it is there");
    let attr = object.attr();
    assert_eq!((attr.uid, attr.gid, attr.size), (3_000_000_000, 2_000_000, 4));
    assert_eq!(attr.mtime, Timestamp { secs: -2, nanos: 500_000_000 });
    assert_eq!(stack.xattrs_of(&object).unwrap(), [("user.binary".into(), b"\x00\n=\xff".to_vec())]);
    assert_eq!(crate::archive::show(&stack)["/link"], format!("link {target:?} 777 0:0"));
}

#[test]
fn gnu_tars_long_names_and_holes_are_read_in_every_form() {
    let source = tempfile::tempdir().unwrap();
    let name = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    std::fs::create_dir(source.path().join("d".repeat(120))).unwrap();
    let file = File::create(source.path().join(&name)).unwrap();
    let long = 64 << 20;
    file.set_len(long).unwrap();
    // More extents than the header of the old form has room for.
    for n in 0..40_u64 {
        file.write_all_at(format!("data {n:02}").as_bytes(), n * (1 << 20)).unwrap();
    }
    drop(file);
    for options in [
        &["--format=gnu", "--sparse"][..],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
        &["--format=gnu"],
    ] {
        let shop = Shop::new();
        let tar = gnu_tar(source.path(), options);
        let image = shop
            .load(&crate::archive::docker_archive("localhost/test:1", &[tar]))
            .unwrap_or_else(|e| panic!("{options:?}: {e}"));
        let stack = shop.stack(&image);
        let names: Vec<&std::ffi::OsStr> = name.split('/').map(std::ffi::OsStr::new).collect();
        let Some(Object::File(dir, file, attr)) = stack.at(&names).unwrap() else {
            panic!("{options:?}: it is not there")
        };
        assert_eq!(attr.size, long, "{options:?}");
        let file = stack.open_file(&dir, &file).unwrap();
        let mut piece = [0; 8];
        for n in 0..40_u64 {
            file.read_exact_at(&mut piece, n * (1 << 20)).unwrap();
            assert_eq!(String::from_utf8_lossy(&piece), format!("data {n:02}\0"), "{options:?}");
        }
        let sparse = options.contains(&"--sparse");
        assert_eq!(attr.blocks * 512 < long / 2, sparse, "{options:?}: holes stay holes, and only those");
    }
}

#[test]
fn a_layer_may_be_packed_and_of_several_members() {
    let shop = Shop::new();
    let tar = Layer::new().file("a", "a").tar();
    let diff_id = unionfs_rs::image::digest::of(&tar).unwrap().to_string();
    let (one, two) = tar.split_at(700);
    let gzip = [gzip(one), gzip(two)].concat();
    let zstd = [zstd::encode_all(one, 3).unwrap(), zstd::encode_all(two, 3).unwrap()].concat();
    for packed in [gzip, zstd] {
        let archive =
            crate::archive::docker_archive_with("localhost/test:1", &[packed], std::slice::from_ref(&diff_id));
        let image = shop.load(&archive).unwrap();
        assert_eq!(crate::archive::show(&shop.stack(&image)).len(), 1);
    }
    assert_eq!(shop.trees().len(), 1, "one tar is one tree, however it was packed");
}

#[test]
fn what_is_removed_below_stays_so_whatever_becomes_of_the_name() {
    let lower = || Layer::new().file("d/secret", "secret").file("d/sub/secret", "secret");
    let new = |layer: Layer| layer.dir("d", 0o755).file("d/new", "new");
    let dir = "dir 755 0:0";
    let expected = tree(&[("/d", dir), ("/d/new", &format!("file \"new\" {FILE}"))]);
    for upper in [
        new(Layer::new().file(".wh.d", "").file("d", "file")),
        new(Layer::new().file("d", "file").file(".wh.d", "")),
        new(Layer::new().dir("d", 0o755).file("d/.wh..wh..opq", "").file("d", "file")),
        new(Layer::new().file("d/.wh.secret", "").file("d/.wh.sub", "").file("d", "file")),
        new(Layer::new()).file("d/.wh..wh..opq", ""),
    ] {
        assert_eq!(Shop::new().shown(vec![lower(), upper]), expected);
    }
}

#[test]
fn a_name_that_was_to_be_a_file_of_below_is_what_came_last() {
    let lower = || Layer::new().file("t", "old").file("e/was", "was");
    let shown = |upper: Layer| Shop::new().shown(vec![lower(), upper]);
    let old = format!("file \"old\" {FILE}");
    let all = shown(Layer::new().hard_link("a", "t").hard_link("b", "t").file("a", "new"));
    assert_eq!((&all["/a"], &all["/b"]), (&format!("file \"new\" {FILE}"), &old));
    let all = shown(Layer::new().dir("q", 0o755).hard_link("q/x", "t").file("q", "file"));
    assert_eq!(all["/q"], format!("file \"file\" {FILE}"));
    let all = shown(Layer::new().dir("q", 0o755).hard_link("q/x", "t").dir("e", 0o755).symlink("q", "e"));
    assert!(!all.contains_key("/e/x"), "{all:?}");
    // A file that comes later in the same layer is nearer than one below.
    let all = shown(Layer::new().hard_link("x", "t").file("t", "own"));
    assert_eq!(all["/x"], format!("file \"own\" {FILE}"));
}

#[test]
fn what_a_directory_was_given_before_or_passes_on_is_no_part_of_its_files() {
    // user::rwx user:1000:rwx group::r-x mask::rwx other::r-x
    let entry =
        |tag: u16, perm: u16, id: u32| [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat();
    let none = u32::MAX;
    let acl = [
        2_u32.to_le_bytes().to_vec(),
        entry(1, 7, none),
        entry(2, 7, 1000),
        entry(4, 5, none),
        entry(16, 7, none),
        entry(32, 5, none),
    ]
    .concat();
    let shop = Shop::new();
    let layer = Layer::new()
        .pax(&[("SCHILY.xattr.system.posix_acl_default", &acl), ("SCHILY.xattr.user.one", b"1")])
        .dir("d", 0o755)
        .file("d/f", "f")
        .pax(&[("SCHILY.xattr.system.posix_acl_default", &acl), ("SCHILY.xattr.user.two", b"2")])
        .dir("d", 0o755);
    let image = shop.image(vec![layer]).unwrap();
    let stack = shop.stack(&image);
    let names = |path: &[&str]| {
        let parts: Vec<&std::ffi::OsStr> = path.iter().map(std::ffi::OsStr::new).collect();
        let object = stack.at(&parts).unwrap().unwrap();
        stack.xattrs_of(&object).unwrap().into_iter().map(|(name, _)| name.into_string().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(names(&["d", "f"]), [""; 0]);
    assert_eq!(names(&["d"]), ["system.posix_acl_default", "user.two"]);
}

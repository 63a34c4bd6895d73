//! Changes made elsewhere and taken back, and copies in and out: what is copied is what shows, and no link leads away.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use unionfs_rs::error::ErrorKind;
use unionfs_rs::image::apply::apply;
use unionfs_rs::image::changes::{Compare, changes};
use unionfs_rs::image::extract::{Conflict, Extract, Owners};
use unionfs_rs::image::resolve::Last;
use unionfs_rs::image::stack::{Object, Part, Stack};
use unionfs_rs::image::store::Container;

use crate::archive::{Layer, Shop, lines, show};
use crate::support::{binary, finish, on_kernel};
use crate::upper::{base, change, changed, listed};

const COPY: Extract = Extract { owners: Owners::Kept, conflict: Conflict::Refused };
const APPLY: Extract = Extract { owners: Owners::Kept, conflict: Conflict::Removed };

fn open(path: &Path) -> OwnedFd {
    fs::File::open(path).expect("it is there").into()
}

/// What a directory of the host shows.
fn on_host(shop: &Shop, path: &Path) -> BTreeMap<String, String> {
    show(&Stack::open([Part { path, says_root: true }], shop.store.keep()).expect("it can be read"))
}

/// The tree of the container's image, copied to the host.
fn copied(shop: &Shop, stack: &Stack, name: &str) -> std::path::PathBuf {
    let target = shop.dir.path().join(name);
    fs::create_dir(&target).expect("there is room");
    let root = stack.root().expect("there is one");
    COPY.copy_inside(stack, &root, open(&target).as_fd()).expect("there is room");
    target
}

#[test]
fn changes_made_in_a_copy_of_the_image_give_what_the_container_shows() {
    if on_kernel() {
        crate::skip!("what our own mount leaves in upper is looked at");
    }
    let shop = Shop::new();
    let container = changed(&shop, vec![base(), Layer::new().file("d/over", "over")], change).unwrap();
    let (now, was) = shop.store.stacks_of(&container).unwrap();
    let target = copied(&shop, &was, "all");
    assert_eq!(on_host(&shop, &target), show(&was));
    let list = changes(&now, &was, Compare::Presence).unwrap();
    apply(&now, &list, &[], &open(&target), APPLY).unwrap();
    assert_eq!(on_host(&shop, &target), show(&now));
    // Once more changes nothing.
    apply(&now, &list, &[], &open(&target), APPLY).unwrap();
    assert_eq!(on_host(&shop, &target), show(&now));
    let time = |path: &Path| fs::metadata(path).unwrap().mtime();
    let new = now.at(&[OsStr::new("file-to-dir")]).unwrap().unwrap();
    assert_eq!(time(&target.join("file-to-dir")), new.attr().mtime.secs, "a directory is as old as in the container");
    // A part of them: directories on the way are made.
    let part = shop.dir.path().join("part");
    fs::create_dir(&part).unwrap();
    assert_eq!(
        apply(&now, &list, &[Path::new("/elsewhere/deep"), Path::new("/removed")], &open(&part), APPLY).unwrap(),
        3
    );
    let shown: Vec<String> = on_host(&shop, &part).into_keys().collect();
    assert_eq!(shown, ["/elsewhere", "/elsewhere/deep", "/elsewhere/deep/file"]);
}

#[test]
fn what_is_taken_back_shows_as_in_the_image() {
    if on_kernel() {
        crate::skip!("what our own mount leaves in upper is looked at");
    }
    let shop = Shop::new();
    let container = changed(&shop, vec![base()], change).unwrap();
    let both = || {
        let (now, was) = shop.store.stacks_of(&container).unwrap();
        (show(&now), show(&was))
    };
    let (before, image) = both();
    assert_ne!(before, image);
    for path in ["/plain", "/removed", "/moved", "/elsewhere", "/file-to-dir", "/dir-to-file", "/chmod"] {
        shop.store.discard(&container, Path::new(path)).unwrap();
        let (now, was) = both();
        let below = |tree: &BTreeMap<String, String>| {
            tree.range(path.to_owned()..)
                .take_while(|(at, _)| at.starts_with(path))
                .map(|(at, _)| at.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(below(&now), below(&was), "{path}");
        assert_eq!(now.get(path), was.get(path), "{path}");
    }
    let refused = |path: &str| shop.store.discard(&container, Path::new(path)).unwrap_err();
    // It is gone with the directory that was made anew.
    let error = refused("/d/a");
    assert!(error.to_string().contains("discard that"), "{error}");
    // No name but the root's, and never by accident.
    for path in ["/", "/..", "/d/../plain", "../plain"] {
        let before = both();
        assert_eq!(refused(path).kind(), ErrorKind::Image, "{path}");
        assert_eq!(both(), before, "{path}");
    }
    for path in ["/plain", "/chmod/untouched", "/nowhere", "/d/nowhere/at/all"] {
        assert_eq!(refused(path).kind(), ErrorKind::Absent, "{path}");
    }
    shop.store.discard(&container, Path::new("/d/new")).unwrap();
    shop.store.discard(&container, Path::new("/d")).unwrap();
    assert_eq!(both(), (image.clone(), image));
    assert_eq!(listed(&shop, &container), [""; 0]);
}

#[test]
fn what_came_with_a_renamed_directory_is_taken_back_with_it() {
    if on_kernel() {
        crate::skip!("what our own mount leaves in upper is looked at");
    }
    let shop = Shop::new();
    let container = changed(&shop, vec![base()], |root| {
        fs::rename(root.join("moved"), root.join("elsewhere")).unwrap();
        fs::write(root.join("elsewhere/deep/new"), "x").unwrap();
    })
    .unwrap();
    let discard = |path: &str| shop.store.discard(&container, Path::new(path));
    for path in ["/elsewhere/deep/file", "/elsewhere/deep/nothing/at/all"] {
        let error = discard(path).unwrap_err().to_string();
        let renamed = error.contains("renamed; discard that, and where it was");
        assert_eq!(renamed, path.ends_with("file"), "{error}");
        assert!(error.contains(&container.config.id), "{error}");
    }
    discard("/elsewhere/deep/new").unwrap();
    discard("/elsewhere").unwrap();
    discard("/moved").unwrap();
    let (now, was) = shop.store.stacks_of(&container).unwrap();
    assert_eq!(show(&now), show(&was));
}

#[test]
fn one_of_several_names_that_are_kept_together_is_not_taken_back_alone() {
    if on_kernel() {
        crate::skip!("what our own mount leaves in upper is looked at");
    }
    let shop = Shop::new();
    let container = changed(&shop, vec![base()], |_| ()).unwrap();
    // As a mount with --index on leaves it.
    fs::create_dir_all(container.work().join("index")).unwrap();
    fs::write(container.work().join("index/00fb"), "").unwrap();
    fs::write(container.upper().join("plain"), "x").unwrap();
    let error = shop.store.discard(&container, Path::new("/plain")).unwrap_err();
    assert!(error.to_string().contains("--index on"), "{error}");
    assert_eq!(listed(&shop, &container), ["C /plain"]);
    shop.store.discard_all(&container).unwrap();
    assert_eq!(listed(&shop, &container), [""; 0]);
}

#[test]
fn a_mark_that_hides_by_its_name_is_taken_back_too() {
    let shop = Shop::new();
    let container = shop.container(vec![base()]);
    fs::write(container.upper().join(".wh.plain"), "").unwrap();
    assert_eq!(listed(&shop, &container), ["D /plain"]);
    shop.store.discard(&container, Path::new("/plain")).unwrap();
    assert_eq!(listed(&shop, &container), [""; 0]);
}

#[test]
fn directories_in_which_nothing_is_changed_any_more_are_as_in_the_image() {
    if on_kernel() {
        crate::skip!("what our own mount leaves in upper is looked at");
    }
    let shop = Shop::new();
    let layer = Layer::new().file("a/b/c/one", "1").file("a/b/c/two", "2").file("a/b/other", "3");
    let container = changed(&shop, vec![layer], |root| {
        fs::write(root.join("a/b/c/one"), "x").unwrap();
        fs::remove_file(root.join("a/b/c/two")).unwrap();
    })
    .unwrap();
    let upper = container.upper();
    shop.store.discard(&container, Path::new("/a/b/c/one")).unwrap();
    assert_eq!(listed(&shop, &container), ["C /a", "C /a/b", "C /a/b/c", "D /a/b/c/two"]);
    shop.store.discard(&container, Path::new("/a/b/c/two")).unwrap();
    assert_eq!(fs::read_dir(upper).unwrap().count(), 0);
}

#[test]
fn all_that_was_changed_is_taken_back_at_once_and_not_while_it_is_mounted() {
    if on_kernel() {
        crate::skip!("what our own mount leaves in upper is looked at");
    }
    let shop = Shop::new();
    let discard = |container: &Container| shop.store.discard_all(container);
    let container = changed(&shop, vec![base()], |root| {
        change(root);
        let mounted = shop.store.containers().unwrap().remove(0);
        assert_eq!(discard(&mounted).unwrap_err().kind(), ErrorKind::InUse);
    })
    .unwrap();
    discard(&container).unwrap();
    assert_eq!(listed(&shop, &container), [""; 0]);
    let (now, was) = shop.store.stacks_of(&container).unwrap();
    assert_eq!(show(&now), show(&was));
    assert_eq!(fs::read_dir(shop.dir.path().join("store/tmp")).unwrap().count(), 0);
}

#[test]
fn links_of_an_image_lead_from_its_root_and_nowhere_else() {
    let shop = Shop::new();
    let image = shop
        .image(vec![
            Layer::new()
                .file("usr/lib/x", "x")
                .symlink("lib", "usr/lib")
                .symlink("deep/up", "../../../../usr")
                .symlink("absolute", "/lib/x")
                .symlink("loop", "loop")
                .symlink("nowhere", "/no/such"),
        ])
        .unwrap();
    let stack = shop.stack(&image);
    let at = |path: &str, last| {
        let found = stack.resolve(Path::new(path), last).unwrap();
        found.map(|found| match found {
            Object::File(dir, name, _) => dir.path_of(&name).to_str().unwrap().to_owned(),
            Object::Dir(merged, _) => merged.parts()[0].path_of(OsStr::new("")).to_str().unwrap().to_owned(),
        })
    };
    for path in ["lib/x", "/lib/x", "../../lib/./x", "deep/up/lib/x", "absolute", "lib/../lib/x", "usr/lib/../../lib/x"]
    {
        assert_eq!(at(path, Last::Followed).as_deref(), Some("usr/lib/x"), "{path}");
    }
    assert_eq!(at("absolute", Last::Kept).as_deref(), Some("absolute"));
    assert_eq!(at("/", Last::Kept).as_deref(), Some(""));
    for path in ["nowhere", "lib/y", "usr/lib/x/y"] {
        assert_eq!(at(path, Last::Followed), None, "{path}");
    }
    let error = stack.resolve(Path::new("loop"), Last::Followed).unwrap_err().to_string();
    assert!(error.contains("more than 40 links"), "{error}");
    assert_eq!(at("loop", Last::Kept).as_deref(), Some("loop"));
}

#[test]
fn nothing_is_written_through_a_link_that_is_there() {
    let shop = Shop::new();
    let image =
        shop.image(vec![Layer::new().file("d/file", "new").file("file", "new").symlink("link", "/etc")]).unwrap();
    let stack = shop.stack(&image);
    let (target, outside) = (shop.dir.path().join("target"), shop.dir.path().join("outside"));
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "old").unwrap();
    let root = stack.root().unwrap();
    for how in [COPY, APPLY] {
        fs::create_dir(&target).unwrap();
        symlink(&outside, target.join("d")).unwrap();
        symlink(outside.join("file"), target.join("file")).unwrap();
        symlink(&outside, target.join("link")).unwrap();
        let copied = how.copy_inside(&stack, &root, open(&target).as_fd());
        match how.conflict {
            Conflict::Refused => {
                let error = copied.unwrap_err().to_string();
                assert!(error.starts_with("d: "), "{error}");
            }
            Conflict::Removed => {
                copied.unwrap();
                assert_eq!(fs::read_to_string(target.join("d/file")).unwrap(), "new");
                assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "new");
                assert_eq!(fs::read_link(target.join("link")).unwrap(), Path::new("/etc"));
            }
        }
        assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "old");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        fs::remove_dir_all(&target).unwrap();
    }
    // Neither in a directory on the way.
    fs::create_dir(&target).unwrap();
    symlink(&outside, target.join("d")).unwrap();
    let list = changes(
        &stack,
        &Stack::open([Part { path: &outside, says_root: false }], shop.store.keep()).unwrap(),
        Compare::Presence,
    );
    let error = apply(&stack, &list.unwrap(), &[Path::new("/d/file")], &open(&target), APPLY).unwrap_err().to_string();
    assert!(error.contains("is no directory there"), "{error}");
    assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "old");
}

#[test]
fn copies_keep_holes_times_and_links_and_drop_privileges_that_are_not_kept() {
    let shop = Shop::new();
    let mut privileged = Layer::header(b"suid", tar::EntryType::Regular, 1);
    privileged.set_mode(0o4755);
    let image = shop.image(vec![Layer::new().raw(privileged, b"x").symlink("link", "x")]).unwrap();
    let stack = shop.stack(&image);
    let target = shop.dir.path().join("target");
    fs::create_dir(&target).unwrap();
    let mine = Extract { owners: Owners::Mine, conflict: Conflict::Refused };
    mine.copy_inside(&stack, &stack.root().unwrap(), open(&target).as_fd()).unwrap();
    let copy = fs::metadata(target.join("suid")).unwrap();
    assert_eq!((copy.mode() & 0o7777, copy.mtime()), (0o755, 1_700_000_000));
    assert_eq!(fs::symlink_metadata(target.join("link")).unwrap().mtime(), 1_700_000_000);
    // A file with holes, of the host.
    let sparse = shop.dir.path().join("sparse");
    fs::create_dir(&sparse).unwrap();
    let file = fs::File::create(sparse.join("file")).unwrap();
    file.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"data", 32 << 20).unwrap();
    let stack = Stack::open([Part { path: &sparse, says_root: true }], shop.store.keep()).unwrap();
    mine.copy_inside(&stack, &stack.root().unwrap(), open(&target).as_fd()).unwrap();
    let copy = fs::metadata(target.join("file")).unwrap();
    assert_eq!(copy.len(), 64 << 20);
    assert!(copy.blocks() * 512 <= 1 << 20, "{} blocks", copy.blocks());
    assert_eq!(fs::read(target.join("file")).unwrap(), fs::read(sparse.join("file")).unwrap());
}

/// Runs the command with a shop's store.
fn ours(shop: &Shop, arguments: &[&str]) -> (Option<i32>, String) {
    let ran = finish(Command::new(binary()).args(arguments).env("UNIONFS_RS_STORE", shop.dir.path().join("store")));
    (ran.code, ran.out + &ran.err)
}

#[test]
fn devices_are_not_copied_without_their_owners_and_what_is_there_keeps_its_mode() {
    if !crate::support::require_root("making devices") {
        return;
    }
    let shop = Shop::new();
    let image = shop
        .image(vec![Layer::new().dir("d", 0o777).device("d/mem", (1, 1)).file("d/file", "new").dir("new", 0o777)])
        .unwrap();
    let stack = shop.stack(&image);
    let target = shop.dir.path().join("target");
    fs::create_dir_all(target.join("d")).unwrap();
    fs::set_permissions(target.join("d"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let mine = Extract { owners: Owners::Mine, conflict: Conflict::Refused };
    let root = stack.root().unwrap();
    mine.copy_inside(&stack, &root, open(&target).as_fd()).unwrap();
    let mode = |name: &str| fs::metadata(target.join(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("d"), mode("new")), (0o700, 0o777));
    assert!(!target.join("d/mem").exists() && target.join("d/file").exists());
    COPY.copy_inside(&stack, &root, open(&target).as_fd()).unwrap();
    assert_eq!((mode("d"), mode("d/mem")), (0o777, 0o644));
}

#[test]
fn cp_names_what_it_copies_as_cp_does() {
    let shop = Shop::new();
    shop.image(vec![Layer::new().file("d/a", "a").file("d/sub/b", "b").symlink("l", "d/a")]).unwrap();
    let host = shop.dir.path().join("host");
    fs::create_dir(&host).unwrap();
    let names = || -> Vec<OsString> {
        let mut names: Vec<_> = lines("find", &[host.to_str().unwrap(), "-mindepth", "1", "-printf", "%P\\n"])
            .into_iter()
            .map(OsString::from)
            .collect();
        names.sort();
        names
    };
    let target = |name: &str| host.join(name).to_str().unwrap().to_owned();
    for (options, source, to, expected) in [
        (&[][..], "test:1:/d/a", "", &["a"][..]),
        (&[], "test:1:/d/a", "named", &["named"]),
        (&[], "test:1:/d", "", &["d", "d/a", "d/sub", "d/sub/b"]),
        (&[], "test:1:/d/", "new", &["new", "new/a", "new/sub", "new/sub/b"]),
        (&[], "test:1:/d/.", "", &["a", "sub", "sub/b"]),
        (&[], "test:1:/d/.", "new", &["new", "new/a", "new/sub", "new/sub/b"]),
        (&[], "test:1:/l", "", &["l"]),
        (&["-L"], "test:1:/l", "", &["l"]),
    ] {
        let to = target(to);
        let arguments = [&["cp"], options, &[source, &to]].concat();
        assert_eq!(ours(&shop, &arguments), (Some(0), String::new()), "{arguments:?}");
        assert_eq!(names(), expected, "{arguments:?}");
        let link = host.join("l").is_symlink();
        assert_eq!(link, source.ends_with("/l") && options.is_empty(), "{arguments:?}");
        fs::remove_dir_all(&host).unwrap();
        fs::create_dir(&host).unwrap();
    }
    fs::write(host.join("file"), "x").unwrap();
    for (source, to, reason) in [
        ("test:1:/nowhere", target(""), "there is no such file"),
        ("test:1:/d/a/.", target(""), "is no directory"),
        ("test:1:/d/a", target("no/such"), "No such file"),
        ("test:1:/d/a", target("no/"), "there is no such directory"),
        ("test:1:/d", target("file"), "Not a directory"),
        ("nothing:/d", target(""), "there is no such image"),
        ("./a", target(""), "one of both must be"),
        ("test:1:/d", "test:1:/e".into(), "one of both must be"),
        ("./no-such-file", "0000:/e".into(), "No such file"),
        ("./Cargo.toml", "0000:/e".into(), "there is no such container"),
    ] {
        let (code, said) = ours(&shop, &["cp", source, &to]);
        assert!(code != Some(0) && said.contains(reason), "{source} {to}: {said}");
    }
    assert_eq!(names(), ["file"]);
}

#[test]
fn what_is_copied_into_a_container_is_roots_and_goes_through_no_link_to_the_host() {
    if on_kernel() {
        crate::skip!("the containers of a store are not the kernel's");
    }
    let shop = Shop::new();
    let outside = shop.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let container = shop.container(vec![
        Layer::new().dir("etc", 0o755).symlink("away", outside.to_str().unwrap()).symlink("inside", "/etc"),
    ]);
    let source = shop.dir.path().join("source");
    fs::write(&source, "text").unwrap();
    let into = |path: &str| ours(&shop, &["cp", source.to_str().unwrap(), &format!("{}:{path}", container.config.id)]);
    assert_eq!(into("/inside/file"), (Some(0), String::new()));
    let (code, said) = into("/away/file");
    assert!(code == Some(1) && said.contains("No such file"), "{said}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(listed(&shop, &container), ["C /etc", "A /etc/file"]);
    // Closed again: while it is open nothing is taken back.
    let shown = || show(&shop.store.stacks_of(&container).unwrap().0);
    assert_eq!(shown()["/etc/file"], "file \"text\" 644 0:0");
    // What would be a mark in a layer is a file of the host, and one of /proc is as long as it is.
    let marks = shop.dir.path().join("marks");
    fs::create_dir(&marks).unwrap();
    fs::write(marks.join("plain"), "").unwrap();
    let made = |source: &str, path: &str| ours(&shop, &["cp", source, &format!("{}:{path}", container.config.id)]);
    assert_eq!(made("/proc/self/comm", "/comm"), (Some(0), String::new()));
    assert_eq!(made(marks.to_str().unwrap(), "/marks"), (Some(0), String::new()));
    assert!(shown()["/comm"].starts_with("file \"unionfs-rs"), "{}", shown()["/comm"]);
    assert!(shown().contains_key("/marks/plain"));
    fs::write(marks.join(".wh.plain"), "").unwrap();
    let (code, said) = made(marks.to_str().unwrap(), "/other");
    assert!(code != Some(0) && said.contains(".wh.plain"), "{said}");
    shop.store.discard_all(&container).unwrap();
    // Several at once: each waits for the others, and nothing is lost.
    let at_once: Vec<_> = (0..4)
        .map(|n| {
            let target = format!("{}:/etc/at-once-{n}", container.config.id);
            let mut command = Command::new(binary());
            command.arg("cp").arg(&source).arg(target).env("UNIONFS_RS_STORE", shop.dir.path().join("store"));
            command.spawn().unwrap()
        })
        .collect();
    for mut child in at_once {
        assert!(crate::support::wait(&mut child).success());
    }
    let expected = ["C /etc", "A /etc/at-once-0", "A /etc/at-once-1", "A /etc/at-once-2", "A /etc/at-once-3"];
    assert_eq!(listed(&shop, &container), expected);
    // And it is not left mounted, nor in use.
    container.remove().unwrap();
}

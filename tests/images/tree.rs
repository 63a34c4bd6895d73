//! `tree`: what an image shows in lines, and what each layer has made of it.

use std::process::Command;

use tar::EntryType;

use crate::archive::{Layer, Shop};
use crate::support::{binary, finish};

/// Layers with all that layers do to each other.
fn layers() -> Vec<Layer> {
    let of = |n: usize| "x".repeat(n);
    vec![
        Layer::new()
            .dir("./", 0o755)
            .dir("d", 0o755)
            .file("d/a", &of(100))
            .dir("d/sub", 0o1777)
            .file("d/sub/b", &of(1536))
            .dir("dir", 0o755)
            .file("dir/in", "in")
            .file("gone", "gone")
            .symlink("l", "d/a")
            .device("null", (1, 3)),
        Layer::new()
            .dir("d", 0o755)
            .file("d/.wh..wh..opq", "")
            .file("d/new", "n")
            .file("dir", "a file")
            .file(".wh.gone", ""),
        Layer::new().dir("d", 0o755).file("d/one", "one").hard_link("d/two", "d/one").file(".wh.l", ""),
    ]
}

struct Tree(Shop);

impl Tree {
    fn of(layers: Vec<Layer>) -> Self {
        let shop = Shop::new();
        shop.image(layers).unwrap_or_else(|error| panic!("{error}"));
        Self(shop)
    }

    /// The exit code, what was printed, and what was complained of.
    fn run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let store = self.0.dir.path().join("store");
        let ran = finish(Command::new(binary()).args(["tree", "test:1"]).args(arguments).arg("--store").arg(store));
        (ran.code, ran.out, ran.err)
    }

    fn lines(&self, arguments: &[&str]) -> Vec<String> {
        let (code, out, err) = self.run(arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {err}");
        out.lines().map(str::to_owned).collect()
    }
}

#[test]
fn the_merged_tree_is_drawn_with_the_layer_of_each_file() {
    let tree = Tree::of(layers());
    assert_eq!(
        tree.lines(&[]),
        [
            "MODE             OWNER     SIZE LAYER  NAME",
            "drwxr-xr-x         0:0        -     3  /",
            "drwxr-xr-x         0:0        -     3  ├── d",
            "-rw-r--r--         0:0      1 B     2  │   ├── new",
            "-rw-r--r--         0:0      3 B     3  │   ├── one",
            "-rw-r--r--         0:0      3 B     3  │   └── two",
            "-rw-r--r--         0:0      6 B     2  ├── dir",
            "crw-r--r--         0:0      1,3     1  └── null",
        ]
    );
    assert_eq!(
        tree.lines(&["--depth", "1", "--paths", "/d/"])[1..],
        [
            "drwxr-xr-x         0:0        -     3  /d",
            "-rw-r--r--         0:0      1 B     2  /d/new",
            "-rw-r--r--         0:0      3 B     3  /d/one",
            "-rw-r--r--         0:0      3 B     3  /d/two",
        ]
    );
    assert_eq!(tree.lines(&["--depth", "0", "d"]).len(), 2);
}

#[test]
fn a_layer_tells_what_it_adds_changes_and_removes() {
    let tree = Tree::of(layers());
    assert_eq!(
        tree.lines(&["--layer", "2"]),
        [
            "  MODE             OWNER     SIZE LAYER  NAME",
            "  drwxr-xr-x         0:0        -     2  /",
            "C drwxr-xr-x         0:0        -     2  ├── d",
            "D -rw-r--r--         0:0    100 B     1  │   ├── a",
            "A -rw-r--r--         0:0      1 B     2  │   ├── new",
            "D drwxrwxrwt         0:0        -     1  │   └── sub",
            "C -rw-r--r--         0:0      6 B     2  ├── dir",
            "D -rw-r--r--         0:0      4 B     1  └── gone",
        ]
    );
    let marks = |arguments: &[&str]| -> Vec<String> {
        let lines = tree.lines(arguments);
        lines[1..].iter().map(|line| format!("{} {}", &line[..1], line.split_whitespace().last().unwrap())).collect()
    };
    assert_eq!(marks(&["--layer", "3", "--paths"]), ["  /", "C /d", "A /d/one", "A /d/two", "D d/a"]);
    assert_eq!(marks(&["--layer", "2", "/dir"]), ["C /dir"]);
    assert_eq!(marks(&["--layer", "3", "/dir"]), ["  /dir"]);
    // What a layer removes with a directory is asked for by name.
    assert_eq!(marks(&["--layer", "2", "/d/sub/b"]), ["D /d/sub/b"]);
    let first = tree.lines(&["--layer", "1", "--bytes"]);
    assert_eq!(first.len(), 11);
    assert!(first[1..].iter().all(|line| line.starts_with("A ")), "{first:?}");
    assert!(first.iter().any(|line| line.ends_with("          1536     1  │       └── b")), "{first:?}");
    assert!(first.iter().any(|line| line.ends_with("l -> d/a")), "{first:?}");
}

#[test]
fn a_container_is_listed_with_what_was_written_to_it_as_its_last_layer() {
    let tree = Tree::of(layers());
    let store = tree.0.dir.path().join("store");
    let run = |arguments: &[&str]| finish(Command::new(binary()).args(arguments).arg("--store").arg(&store));
    let id = run(&["create", "test:1"]).out.trim().to_owned();
    std::fs::write(store.join("containers").join(&id).join("upper/written"), "w").unwrap();
    let ran = run(&["tree", "--layer", "4", "--paths", &id[..6]]);
    let last: Vec<&str> = ran.out.lines().skip(2).collect();
    assert_eq!(last.len(), 1, "{ran:?}");
    assert!(last[0].starts_with("A -rw") && last[0].ends_with("4  /written"), "{ran:?}");
}

#[test]
fn what_is_asked_for_wrongly_is_named() {
    let tree = Tree::of(layers());
    for (arguments, code, named) in [
        (&["--layer", "4"][..], 2, "--layer 4: there are layers 1 to 3"),
        (&["--layer", "0"], 2, "--layer 0"),
        (&["--layer", "x"], 2, "--layer"),
        (&["/nowhere"], 1, "/nowhere: there is no such path"),
        (&["/gone"], 1, "/gone: there is no such path"),
        (&["--layer", "3", "/gone"], 1, "/gone: there is no such path"),
        (&["d/../d"], 2, "\"..\" is no name"),
        (&["new/\u{1b}[31m"], 1, "new/\\u{1b}[31m: "),
    ] {
        let (found, out, err) = tree.run(arguments);
        assert!(found == Some(code) && err.contains(named) && out.is_empty(), "{arguments:?}: {found:?} {err}");
    }
}

#[test]
fn names_and_links_cannot_write_to_the_terminal() {
    let hostile = b"esc\x1b]0;owned\x07\x1b[2Jnl\nbad\xff\xc2\x9b\xe2\x80\xae";
    let header = Layer::header(hostile, EntryType::Regular, 1);
    let layer = Layer::new().raw(header, b"x").symlink("link", "to\u{1b}[31mred");
    let tree = Tree::of(vec![layer, Layer::new().file("after", "")]);
    for arguments in [&[][..], &["--paths"], &["--layer", "1"], &["--layer", "1", "--paths"]] {
        let (code, out, err) = tree.run(arguments);
        assert_eq!(code, Some(0), "{err}");
        assert!(!out.chars().any(|c| c.is_control() && c != '\n') && !out.contains('\u{202e}'), "{out:?}");
        let name = "esc\\u{1b}]0;owned\\u{7}\\u{1b}[2Jnl\\nbad\\xff\\u{9b}\\u{202e}";
        assert!(out.lines().any(|line| line.ends_with(name)), "{out}");
        assert!(out.contains("link -> to\\u{1b}[31mred"), "{out}");
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let many = (0..20_000).fold(Layer::new(), |layer, n| layer.file(&format!("{n}"), ""));
    let tree = Tree::of(vec![many]);
    let script = "set -o pipefail; \"$0\" tree test:1 --store \"$1\" | head -n 2";
    let store = tree.0.dir.path().join("store");
    let ran = finish(Command::new("bash").args(["-c", script]).arg(binary()).arg(store));
    assert_eq!((ran.code, ran.out.lines().count(), ran.err.as_str()), (Some(0), 2, ""));
}

//! Marks of any value anywhere: the check ends with an answer, a repair leaves nothing that could be repaired, and the
//! union shows what it showed, but for what was EIO or shown twice.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::damage::{Damaged, key};
use crate::support::{Io, Layers, LowersUnchanged, Mounted, Rng, Tree, number};

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// Fills a layer with files and directories of few names, so that those of several layers meet.
fn fill(tree: &Tree, rng: &mut Rng) {
    for _ in 0..25 {
        let depth = 1 + rng.below(3);
        let path: PathBuf = (0..depth).map(|_| *rng.pick(&NAMES)).collect();
        // A file may be in the way of it.
        let parent = path.parent().expect("a name");
        if fs::create_dir_all(tree.path(parent)).is_err() || tree.exists(&path) {
            continue;
        }
        match rng.below(6) {
            0 => tree.dir(&path),
            1 => tree.whiteout(&path),
            2 => tree.symlink(&path, "a/b"),
            3 => tree.file(&path, ""),
            _ => tree.file(&path, format!("{}", path.display())),
        };
    }
}

/// Puts marks on what is in upper.
fn mark(path: &Path, rng: &mut Rng) {
    let marks = ["opaque", "redirect", "origin", "impure", "nlink", "metacopy", "whiteout"];
    let origin = b"\0\xfb\x1d\0\x01".repeat(5);
    let values: [&[u8]; 16] = [
        b"y",
        b"x",
        b"",
        b"/a",
        b"/a/b",
        b"b",
        b"/",
        b"..",
        b"/../a",
        b"U+1",
        b"L-9",
        b"\xff\0",
        b"/a//b",
        b"/c/d/e",
        b"/\n\x1b[31m",
        &origin,
    ];
    let entries: Vec<_> = fs::read_dir(path).expect("it is ours").map(|entry| entry.expect("it is ours")).collect();
    for entry in entries {
        if rng.below(3) == 0 {
            let (mark, value) = (*rng.pick(&marks), *rng.pick(&values));
            let key = if rng.below(6) == 0 { format!("user.overlay.{mark}") } else { key(mark) };
            let at = entry.path();
            // Some xattrs cannot be on links and devices.
            let _unable = rustix::fs::lsetxattr(&at, key, value, rustix::fs::XattrFlags::empty());
        }
        if rng.below(10) == 0 {
            let name = format!(".wh.{}", entry.file_name().display());
            fs::write(path.join(name), "").expect("it is ours");
        }
        if entry.file_type().expect("it is ours").is_dir() {
            mark(&entry.path(), rng);
        }
    }
}

/// Puts entries of any name into the index, with marks.
fn fill_index(index: &Tree, rng: &mut Rng) {
    let handle = "00fb1d0001".to_owned() + &"07".repeat(24);
    let long = "f".repeat(255);
    for name in ["#1", "00", "+f", "no handle", "\u{e9}", handle.as_str(), long.as_str()] {
        match rng.below(12) {
            0 => index.dir(name),
            1 => index.whiteout(name),
            2 => index.symlink(name, "/"),
            3 | 4 => index.file(name, "x").overlay_xattr(name, "nlink", "L+1").overlay_xattr(name, "origin", "x"),
            _ => index,
        };
    }
}

/// Reads all that is shown below `path`; what answers an error as the error.
fn view(path: &Path, name: &Path, seen: &mut BTreeMap<PathBuf, String>) {
    let shown = match fs::symlink_metadata(path) {
        Err(error) => error.to_string(),
        Ok(meta) if meta.is_dir() => match fs::read_dir(path) {
            Err(error) => error.to_string(),
            Ok(entries) => {
                for entry in entries {
                    let Ok(entry) = entry else {
                        seen.insert(name.join("?"), "error".to_owned());
                        continue;
                    };
                    view(&entry.path(), &name.join(entry.file_name()), seen);
                }
                "dir".to_owned()
            }
        },
        Ok(meta) if meta.is_file() => match fs::read(path) {
            Err(error) => error.to_string(),
            Ok(data) => format!("{data:?}"),
        },
        Ok(meta) => format!("{:?}", meta.file_type()),
    };
    seen.insert(name.to_owned(), shown);
}

fn shown(layers: &Layers) -> BTreeMap<PathBuf, String> {
    let mut mount = layers.spec(Io::Cached).mount_ours();
    let mut seen = BTreeMap::new();
    view(mount.path(), Path::new(""), &mut seen);
    mount.unmount().expect("it can be unmounted");
    seen
}

/// Checks and repairs the upper that `seed` makes.
fn one(seed: u64) {
    let mut rng = Rng::new(seed);
    let damaged = Damaged::new(|layers| {
        for index in 0..2 {
            fill(&layers.lower(index), &mut rng);
        }
        fill(&layers.upper(), &mut rng);
        mark(&layers.path("upper"), &mut rng);
        fill_index(&Tree::at(layers.path("work/index")), &mut rng);
    });
    let lowers = LowersUnchanged::new(damaged.layers.lowers());
    let before = shown(&damaged.layers);
    let (code, found) = damaged.said(&["--repair"]);
    assert!(matches!(code, 0 | 1 | 4), "seed {seed}: {code}");
    assert!(!found.iter().any(|(_, _, outcome)| outcome == "failed"), "seed {seed}: {found:?}");
    let (again, left) = damaged.said(&["--repair"]);
    let expected: Vec<_> = found.iter().filter(|(_, _, outcome)| outcome == "left").cloned().collect();
    // What was closed off may hold what is now known to be left over, so that it takes another round.
    let only_whiteouts = |said: &(String, String, String)| expected.contains(said) || said.2 == "repaired";
    assert!(left.iter().all(only_whiteouts), "seed {seed}: {found:?}, then {left:?}");
    let (_, third) = damaged.said(&[]);
    assert!(
        third.iter().all(|(place, class, _)| left.contains(&(place.clone(), class.clone(), "left".into()))),
        "seed {seed}: {again} {left:?}, then {third:?}"
    );
    let after = shown(&damaged.layers);
    let told_twice = found.iter().any(|(_, class, _)| class == "shown-twice");
    for (path, was) in &before {
        // Below what answered EIO nothing was shown.
        if !told_twice && !was.contains("os error") && !path.ends_with("?") {
            assert_eq!(Some(was), after.get(path), "seed {seed}: {path:?} after {found:?}");
        }
    }
    lowers.check();
}

#[test]
fn marks_of_any_value_are_answered_and_repaired_without_a_change_of_what_shows() {
    for seed in 0..number("UNIONFS_FSCK_SEEDS", 25) {
        one(seed);
    }
}

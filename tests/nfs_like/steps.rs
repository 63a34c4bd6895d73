//! The scenario: steps that any directory takes, whose union must then look like a plain directory that took them too.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::support::Layers;

/// A step, and what it is called in messages.
pub type Step = (&'static str, fn(&Path));

/// Fills two lowers with what the steps change.
pub fn fill(layers: &Layers) {
    let (top, bottom) = (layers.lower(0), layers.lower(1));
    for name in ["f", "g", "h", "i", "gone", "old"] {
        bottom.file(name, format!("lower {name}"));
    }
    bottom.file("d/x", "x").file("d/sub/y", "y").file("e/z", "z").file("k/one", "1").file("m/deep/er/file", "m");
    bottom.file("empty/was", "was").file("again/first", "first").symlink("s", "f").file_mode("mode", "mode", 0o640);
    bottom.file("r/a", "a").file("r/b/c", "c").file("big", vec![b'b'; 300_000]);
    top.file("d/top", "top").file("e/top", "top").file("m/top", "m").file("again/second", "second");
}

fn write(path: impl AsRef<Path>, data: &str) {
    fs::write(path.as_ref(), data).unwrap_or_else(|error| panic!("write {}: {error}", path.as_ref().display()));
}

/// By mv(1), which copies where a directory cannot be renamed.
fn mv(root: &Path, from: &str, to: &str) {
    let moved =
        Command::new("mv").arg("-T").args([root.join(from), root.join(to)]).output().expect("mv can be started");
    assert!(moved.status.success(), "mv {from} {to}: {}", String::from_utf8_lossy(&moved.stderr));
}

fn renames_new(root: &Path, from: &str, to: &str) -> Result<(), Errno> {
    renameat_with(CWD, root.join(from), CWD, root.join(to), RenameFlags::NOREPLACE)
}

/// What a plain directory and a union take alike.
pub const STEPS: [Step; 14] = [
    ("new files and directories", |root| {
        fs::create_dir_all(root.join("new/deep/er")).expect("directories can be made");
        write(root.join("new/deep/er/file"), "new");
        write(root.join("d/sub/new"), "new");
        write(root.join("new/empty"), "");
    }),
    ("overwriting, appending, truncating", |root| {
        write(root.join("f"), "overwritten");
        let append = |name: &str, data: &[u8]| {
            let mut file = OpenOptions::new().append(true).open(root.join(name)).expect("a file can be opened");
            file.write_all(data).expect("a file can be appended to");
        };
        append("g", b" and more");
        append("big", b"end");
        let file = OpenOptions::new().write(true).open(root.join("h")).expect("a file can be opened");
        file.set_len(3).expect("a file can be cut");
    }),
    ("modes and times", |root| {
        fs::set_permissions(root.join("mode"), fs::Permissions::from_mode(0o600)).expect("root may chmod");
        fs::set_permissions(root.join("k"), fs::Permissions::from_mode(0o711)).expect("root may chmod");
    }),
    ("removal of files", |root| {
        for name in ["gone", "f", "d/x", "new/empty", "empty/was"] {
            fs::remove_file(root.join(name)).unwrap_or_else(|error| panic!("unlink {name}: {error}"));
        }
    }),
    ("names taken again", |root| {
        write(root.join("gone"), "again");
        fs::create_dir(root.join("f")).expect("a directory can be made where a file was");
        write(root.join("f/in"), "in");
    }),
    ("a merged directory removed and made anew", |root| {
        fs::remove_dir_all(root.join("again")).expect("a merged directory can be removed");
        fs::create_dir(root.join("again")).expect("it can be made again");
        assert_eq!(fs::read_dir(root.join("again")).expect("it can be listed").count(), 0);
        write(root.join("again/third"), "third");
    }),
    ("files renamed", |root| {
        for (from, to) in [("g", "h"), ("old", "young"), ("i", "d/x"), ("d/top", "e/top")] {
            fs::rename(root.join(from), root.join(to)).unwrap_or_else(|error| panic!("rename {from} {to}: {error}"));
        }
    }),
    ("renamed without replacing", |root| {
        assert_eq!(renames_new(root, "young", "h"), Err(Errno::EXIST));
        assert_eq!(renames_new(root, "r", "k"), Err(Errno::EXIST));
        renames_new(root, "young", "old").expect("a removed name is free");
        fs::create_dir(root.join("fresh")).expect("a directory can be made");
        renames_new(root, "fresh", "i").expect("a directory can take the name of a removed file");
    }),
    ("merged directories renamed", |root| {
        mv(root, "d", "renamed");
        mv(root, "m/deep", "m/shallow");
        mv(root, "r/b", "b");
    }),
    ("directories renamed onto others", |root| {
        mv(root, "e", "empty");
        fs::remove_file(root.join("k/one")).expect("a lower file can be removed");
        mv(root, "new", "k");
        mv(root, "r", "d");
    }),
    ("removed once more", |root| {
        fs::remove_dir_all(root.join("renamed")).expect("a renamed directory can be removed");
        fs::remove_dir_all(root.join("empty")).expect("a renamed directory can be removed");
        fs::create_dir(root.join("e")).expect("a directory can be made where one was");
    }),
    ("symbolic links", |root| {
        symlink("nowhere", root.join("link")).expect("a link can be made");
        fs::rename(root.join("s"), root.join("link")).expect("a lower link can replace another");
        symlink("target", root.join("s")).expect("a link can be made where one was");
        fs::remove_file(root.join("mode")).expect("a file can be removed");
        symlink("target", root.join("mode")).expect("a link can be made where a file was");
    }),
    ("an open file replaced", |root| {
        write(root.join("log"), "old");
        let mut file = OpenOptions::new().append(true).open(root.join("log")).expect("a file can be opened");
        write(root.join("log.new"), "new");
        fs::rename(root.join("log.new"), root.join("log")).expect("an open file can be replaced");
        file.write_all(b" more").expect("a file that was replaced can be written");
    }),
    ("names as long as they get", |root| {
        let long = "n".repeat(255);
        write(root.join(&long), "long");
        fs::rename(root.join(&long), root.join("n".repeat(250))).expect("a long name can be renamed");
    }),
];

/// Steps for where files can be linked.
pub const LINKS: [Step; 2] = [
    ("hard links", |root| {
        fs::hard_link(root.join("gone"), root.join("gone.too")).expect("a file can be linked");
        fs::remove_file(root.join("h")).expect("a file can be removed");
        fs::hard_link(root.join("gone"), root.join("h")).expect("a file can be linked to a removed name");
        write(root.join("gone.too"), "through one name");
    }),
    ("hard links removed", |root| {
        fs::remove_file(root.join("gone")).expect("a linked file can be removed");
        fs::rename(root.join("h"), root.join("link")).expect("a linked file can be renamed");
    }),
];

/// Describes everything below `root`: kinds, modes and contents, by path.
pub fn describe(root: &Path) -> BTreeMap<String, String> {
    let mut tree = BTreeMap::new();
    walk(root, "", &mut tree);
    tree
}

fn walk(dir: &Path, prefix: &str, tree: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(dir).unwrap_or_else(|error| panic!("list {}: {error}", dir.display())) {
        let entry = entry.unwrap_or_else(|error| panic!("list {}: {error}", dir.display()));
        let (path, name) = (entry.path(), format!("{prefix}{}", entry.file_name().to_string_lossy()));
        let stat = fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{name} is listed alone: {error}"));
        let what = if stat.is_dir() {
            walk(&path, &format!("{name}/"), tree);
            "a directory".to_owned()
        } else if stat.is_symlink() {
            format!("a link to {:?}", fs::read_link(&path).expect("a link can be read").as_os_str())
        } else {
            let data = fs::read(&path).unwrap_or_else(|error| panic!("read {name}: {error}"));
            let (start, _) = data.split_at(data.len().min(40));
            format!("{} bytes, {:?}", data.len(), String::from_utf8_lossy(start))
        };
        tree.insert(name, format!("{what}, mode {:o}", stat.mode() & 0o7777));
    }
}

/// Copies a tree as it is.
pub fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().expect("cp can be started");
    assert!(copied.success(), "the union cannot be copied");
}

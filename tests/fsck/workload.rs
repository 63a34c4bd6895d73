//! What programs do to a union, with everything that leaves a note in upper.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::support::Layers;

/// Fills two lowers.
pub fn lowers(layers: &Layers) {
    let (top, bottom) = (layers.lower(0), layers.lower(1));
    bottom.file("d/a", "a").file("d/sub/b", "b").file("d/sub/deep/c", "c").file("d/f", "below").file("e/x", "x");
    bottom.file("h1", "linked").link("h1", "h2").link("h1", "d/h3").file("k1", "k").link("k1", "k2");
    bottom.file("big", "b".repeat(70_000)).file("meta/one", "1").file("meta/two", "2").file("meta/three", "3");
    bottom.file("gone", "gone").file("again", "again").file("repl/old", "old").file("repl/sub/old", "old");
    bottom.file("swap1", "1").file("swap2", "2").file("over", "over").dir("empty").file("moved", "moved");
    bottom.symlink("link", "gone").fifo("fifo").file("parts/low", "low").file("hidden/x", "x");
    top.file("d/f", "above").file("parts/top", "top").whiteout("hidden/x").file("opaque/new", "new");
    top.opaque("opaque");
    bottom.file("opaque/old", "old");
}

/// Renames; a directory that cannot be is left where it is, as mv(1) would copy it.
fn rename(from: &Path, to: &Path) -> bool {
    match fs::rename(from, to) {
        Ok(()) => true,
        Err(error) if error.raw_os_error() == Some(Errno::XDEV.raw_os_error()) => false,
        Err(error) => panic!("rename {from:?} to {to:?}: {error}"),
    }
}

/// Changes the union on `mnt`.
pub fn run(mnt: &Path) {
    let at = |name: &str| mnt.join(name);
    let append = |name: &str| {
        let mut file = fs::OpenOptions::new().append(true).open(at(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        file.write_all(b"+").unwrap();
    };
    let mode = |name: &str, mode| fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    // New, copied up, removed, and made again.
    fs::write(at("new"), "new").unwrap();
    fs::create_dir(at("d/made")).unwrap();
    fs::write(at("d/made/file"), "made").unwrap();
    fs::write(mnt.join(OsStr::from_bytes(b"odd \n\xff")), "odd").unwrap();
    append("d/f");
    fs::remove_file(at("gone")).unwrap();
    fs::remove_file(at("again")).unwrap();
    fs::write(at("again"), "anew").unwrap();
    fs::remove_dir_all(at("repl")).unwrap();
    fs::create_dir(at("repl")).unwrap();
    fs::write(at("repl/new"), "new").unwrap();
    fs::remove_dir(at("empty")).unwrap();
    fs::remove_file(at("opaque/new")).unwrap();
    // Metadata alone, under other names, and whole later.
    mode("big", 0o600);
    for name in ["one", "two", "three"] {
        mode(&format!("meta/{name}"), 0o640);
    }
    rename(&at("meta/one"), &at("meta/uno"));
    rename(&at("meta/two"), &at("due"));
    fs::hard_link(at("meta/three"), at("tre")).unwrap();
    append("meta/uno");
    // Directories with lower parts, in their directory, elsewhere, within one that was renamed, and with a change below.
    if rename(&at("d"), &at("d2")) {
        rename(&at("d2/sub"), &at("d2/sub2"));
        fs::create_dir(at("newdir")).unwrap();
        rename(&at("e"), &at("newdir/e"));
        rename(&at("d2/sub2/deep"), &at("deep"));
        fs::remove_file(at("d2/a")).unwrap();
        fs::remove_file(at("deep/c")).unwrap();
        rename(&at("parts"), &at("parts.old"));
        fs::create_dir(at("parts")).unwrap();
        rename(&at("parts.old/top"), &at("parts/top"));
    } else {
        fs::remove_file(at("d/a")).unwrap();
    }
    // Names of files over each other, and over what was removed.
    rename(&at("moved"), &at("over"));
    rename(&at("new"), &at("gone"));
    match renameat_with(CWD, at("swap1"), CWD, at("swap2"), RenameFlags::EXCHANGE) {
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => panic!("exchange: {errno}"),
    }
    // A directory of upper where a lower layer could have one, and files with an origin in one that has no lower part.
    fs::create_dir(at("pure")).unwrap();
    rename(&at("over"), &at("pure/over"));
    rename(&at("pure"), &at("meta/pure"));
    // Hard links: written, named, removed, removed before they are written.
    append("h1");
    fs::hard_link(at("h2"), at("h4")).unwrap();
    fs::remove_file(at("h1")).unwrap();
    fs::remove_file(at("k1")).unwrap();
    fs::hard_link(at("gone"), at("gone2")).unwrap();
    // What is no file.
    std::os::unix::fs::lchown(at("link"), Some(1), Some(1)).unwrap();
    mode("fifo", 0o600);
    fs::remove_dir_all(at("hidden")).unwrap();
}

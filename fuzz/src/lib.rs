//! What the fuzzers of layers have in common: a place in which nothing but the tree may change, tars of a few lines of text,
//! and trees read back.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use unionfs_rs::image::commit::write_layer;
use unionfs_rs::image::stack::{Merged, Object, Part, Stack};
use unionfs_rs::image::tar::write::Writer;
use unionfs_rs::image::tar::{Member, MemberKind};
use unionfs_rs::image::unpack::keep::Keep;
use unionfs_rs::image::unpack::unpack;
use unionfs_rs::layer::attr::{FileKind, Timestamp};

pub mod model;
pub mod tree;

/// A directory in which trees are unpacked, beside things that no layer may touch.
pub struct Place {
    dir: TempDir,
    before: String,
}

impl Place {
    /// Makes one with an empty directory for each of `trees`.
    pub fn new(trees: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("there is room");
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("dir")).expect("there is room");
        fs::write(at("dir/file"), "inside").expect("there is room");
        fs::write(at("secret"), "secret").expect("there is room");
        symlink("secret", at("link")).expect("there is room");
        for tree in trees {
            fs::create_dir(at(tree)).expect("there is room");
        }
        let mut place = Self { dir, before: String::new() };
        place.before = place.beside();
        place
    }

    /// Returns the path of one of the trees.
    pub fn tree(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Unpacks `tar` into one of the trees, and asserts that nothing beside it has changed.
    pub fn unpack(&self, name: &str, tar: &[u8]) -> io::Result<()> {
        let root = OwnedFd::from(File::open(self.tree(name)).expect("it is there"));
        let done = unpack(tar, root, Keep::here()).map(drop);
        assert_eq!(self.before, self.beside(), "what is beside the tree is as it was");
        done
    }

    /// Says all of what is beside the trees. The times of change cannot be set back, so that nothing goes unnoticed.
    fn beside(&self) -> String {
        let mut text = String::new();
        for name in ["", "dir", "dir/file", "secret", "link"] {
            let m = fs::symlink_metadata(self.dir.path().join(name)).expect("it is still there");
            let (ctime, owner) = ((m.ctime(), m.ctime_nsec()), (m.uid(), m.gid()));
            writeln!(text, "{name} {} {:o} {owner:?} {} {} {ctime:?}", m.ino(), m.mode(), m.nlink(), m.size())
                .expect("a String takes everything");
        }
        text
    }
}

/// Makes a tar of lines: a letter for the kind, a path, and for links a tab and the target.
///
/// `d` directory, `f` file of the bytes of its path, `l` symbolic link, `h` hard link, `p` pipe, `c` device; what begins
/// otherwise, or what no tar can have, is left out.
pub fn tar_of<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for line in lines {
        let Some((kind, rest)) = line.split_first() else { continue };
        let mut words = rest.splitn(2, |byte| *byte == b'\t');
        let (path, link) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let kind = match kind {
            b'd' => MemberKind::File(FileKind::Directory),
            b'f' => MemberKind::File(FileKind::Regular),
            b'l' => MemberKind::File(FileKind::Symlink),
            b'p' => MemberKind::File(FileKind::Fifo),
            b'c' => MemberKind::File(FileKind::Char),
            b'h' => MemberKind::HardLink,
            _ => continue,
        };
        let data = if kind == MemberKind::File(FileKind::Regular) { path } else { b"" };
        let member = Member {
            path: path.into(),
            kind,
            mode: 0o750,
            uid: 1,
            gid: 2,
            mtime: Timestamp { secs: 1_700_000_000, nanos: 0 },
            size: data.len() as u64,
            link: link.into(),
            rdev: if kind == MemberKind::File(FileKind::Char) { (1, 3) } else { (0, 0) },
            xattrs: Vec::new(),
            extents: None,
        };
        if member.path.is_empty() || (member.link.is_empty() && matches!(line[0], b'l' | b'h')) {
            continue;
        }
        writer.append(&member, data).expect("a Vec takes everything");
    }
    writer.finish().expect("a Vec takes everything")
}

/// Opens trees, topmost first, as one.
pub fn stack(trees: &[&Path]) -> Stack {
    let parts = trees.iter().map(|path| Part { path, says_root: true });
    Stack::open(parts, Keep::here()).expect("the trees are there")
}

/// Goes through all that `stack` shows, reads it, and calls `each` with the path of everything but the root.
pub fn walk(stack: &Stack, each: &mut dyn FnMut(&[u8], &Object)) {
    stack.root_member(0).expect("a tree that was unpacked has a root");
    if let Object::Dir(root, _) = stack.root().expect("a tree that was unpacked has a root") {
        walk_dir(stack, &root, &mut Vec::new(), each);
    }
}

fn walk_dir(stack: &Stack, dir: &Merged, path: &mut Vec<u8>, each: &mut dyn FnMut(&[u8], &Object)) {
    for (name, object) in stack.list(dir).expect("what was unpacked is listed") {
        let before = path.len();
        if before > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
        let (member, data) = stack.to_member(path.clone(), &object).expect("what was unpacked is read");
        // Sparse files may be as long as they like: the beginning says whether they can be read.
        let read = data.map_or(0, |data| io::copy(&mut data.take(1 << 16), &mut io::sink()).expect("it is read"));
        assert_eq!(read, member.size.min(1 << 16));
        each(path, &object);
        if let Object::Dir(dir, _) = &object {
            walk_dir(stack, dir, path, each);
        }
        path.truncate(before);
    }
}

/// Writes what a tree shows as a layer, unless its files are too large for that.
pub fn written(tree: &Path) -> Option<Vec<u8>> {
    let stack = stack(&[tree]);
    let mut bytes = 0_u64;
    walk(&stack, &mut |_, object| {
        if let Object::File(_, _, attr) = object {
            bytes = bytes.saturating_add(attr.size);
        }
    });
    if bytes > 1 << 20 {
        return None;
    }
    let nothing = Stack::open([], Keep::here()).ok()?;
    let mut tar = Vec::new();
    write_layer(&stack, &nothing, &mut tar).ok().map(|_| tar)
}

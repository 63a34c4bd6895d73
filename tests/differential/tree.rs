//! A whole tree as a program sees it, and the differences between two of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, SeekFrom, Stat};
use rustix::io::Errno;

use super::observe::{brief, contents, describe, errno, names};

/// Whether holes are part of a tree. Where operations allocate blocks without writing them, whether
/// these are data or holes depends on what the page cache has read (ext4, xfs), so that two correct
/// mounts differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holes {
    Compare,
    Ignore,
}

/// What a name shows, all but its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub facts: String,
    /// Where the tree contradicts itself.
    pub faults: String,
    pub ino: u64,
    pub kind: FileType,
}

/// A tree: what each path shows.
pub type Tree = BTreeMap<PathBuf, Entry>;

/// Walks everything below the directory that is the caller's root.
///
/// What contradicts itself in one tree stands apart, in the faults. The kernel's overlayfs is not free of
/// them, so that they are no difference, but they are a failure of ours. It lists the whiteouts of a
/// directory that it does not merge, and after a remount the d_ino of a link in a directory that it does
/// not know to be impure is the upper's.
pub fn walk(holes: Holes) -> Tree {
    let mut tree = Tree::new();
    let stat = rustix::fs::statat(CWD, "/", AtFlags::SYMLINK_NOFOLLOW);
    visit(Path::new("/"), stat, String::new(), holes, &mut tree);
    tree
}

fn visit(path: &Path, stat: Result<Stat, Errno>, mut faults: String, holes: Holes, tree: &mut Tree) {
    let stat = match stat {
        Ok(stat) => stat,
        Err(error) => {
            let facts = format!("listed, but stat says {}", errno(error));
            let kind = FileType::Unknown;
            tree.insert(path.to_owned(), Entry { facts, faults, ino: 0, kind });
            return;
        }
    };
    let kind = FileType::from_raw_mode(stat.st_mode);
    let mut facts = describe(&stat);
    facts.push_str(&xattrs(path));
    match kind {
        FileType::RegularFile => facts.push_str(&data(path, holes)),
        FileType::Symlink => match rustix::fs::readlinkat(CWD, path, Vec::new()) {
            Ok(target) => note(&mut facts, "target", &target.as_bytes().escape_ascii().to_string()),
            Err(error) => note(&mut facts, "target", &errno(error)),
        },
        FileType::Directory => match list(path, &stat) {
            Ok((children, odd)) => {
                faults.push_str(&odd);
                for (child, stat, listed) in children {
                    visit(&child, stat, listed, holes, tree);
                }
            }
            Err(error) => note(&mut facts, "listing", &errno(error)),
        },
        _ => {}
    }
    let entry = Entry { facts, faults, ino: stat.st_ino, kind };
    tree.insert(path.to_owned(), entry);
}

fn note(facts: &mut String, what: &str, value: &str) {
    // Writing to a String cannot fail.
    let _ = write!(facts, " {what}={value}");
}

fn open(path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::open(path, flags, Mode::empty())
}

type Child = (PathBuf, Result<Stat, Errno>, String);

/// Returns the children with what the listing said of each, and what is wrong with the listing.
fn list(path: &Path, stat: &Stat) -> Result<(Vec<Child>, String), Errno> {
    let dir = open(path, OFlags::DIRECTORY)?;
    let mut space = Vec::with_capacity(32 * 1024);
    let mut entries = RawDir::new(&dir, space.spare_capacity_mut());
    let mut children = Vec::new();
    let mut odd = String::new();
    let mut dots = 0;
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." {
            dots += 1;
            if entry.ino() != stat.st_ino {
                note(&mut odd, "d_ino of .", "wrong");
            }
        } else if name == b".." {
            // Its number is not compared: FUSE caches a listing, and a directory that is moved keeps
            // that of its old parent there until something in it changes.
            dots += 1;
        } else {
            let child = path.join(std::ffi::OsStr::from_bytes(name));
            let stat = rustix::fs::statat(&dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW);
            if matches!(stat, Err(Errno::NOENT)) {
                note(&mut odd, "listed and not there", &format!("{:?}", entry.file_name()));
                continue;
            }
            let mut listed = String::new();
            if let Ok(stat) = &stat {
                if entry.ino() != stat.st_ino {
                    note(&mut listed, "d_ino", "wrong");
                }
                if entry.file_type() != FileType::from_raw_mode(stat.st_mode) {
                    note(&mut listed, "d_type", &format!("{:?}", entry.file_type()));
                }
            }
            children.push((child, stat, listed));
        }
    }
    if dots != 2 {
        note(&mut odd, "dots", &dots.to_string());
    }
    children.sort_by(|one, two| one.0.cmp(&two.0));
    for pair in children.windows(2) {
        if pair[0].0 == pair[1].0 {
            note(&mut odd, "listed twice", &format!("{:?}", pair[0].0.file_name()));
        }
    }
    Ok((children, odd))
}

fn xattrs(path: &Path) -> String {
    let mut facts = String::new();
    let mut list = Vec::with_capacity(65536);
    match rustix::fs::llistxattr(path, rustix::buffer::spare_capacity(&mut list)) {
        Ok(_) => {}
        Err(error) => note(&mut facts, "xattrs", &errno(error)),
    }
    let mut names: Vec<_> = names(&list).collect();
    names.sort_unstable();
    for name in names {
        let mut value = Vec::with_capacity(65536);
        let value = match rustix::fs::lgetxattr(path, name, rustix::buffer::spare_capacity(&mut value)) {
            Ok(_) => brief(&value),
            Err(error) => errno(error),
        };
        note(&mut facts, &name.escape_ascii().to_string(), &value);
    }
    facts
}

fn data(path: &Path, holes: Holes) -> String {
    let read = || -> Result<String, Errno> {
        let file = open(path, OFlags::empty())?;
        let mut facts = format!(" data={}", contents(file.as_fd())?);
        if holes == Holes::Compare {
            note(&mut facts, "extents", &extents(&file)?);
        }
        Ok(facts)
    };
    read().unwrap_or_else(|error| format!(" data={}", errno(error)))
}

fn extents(file: &OwnedFd) -> Result<String, Errno> {
    let mut text = String::new();
    let mut at = 0;
    loop {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            // No data from here to the end.
            Err(Errno::NXIO) => return Ok(text),
            Err(error) => return Err(error),
        };
        at = rustix::fs::seek(file, SeekFrom::Hole(data))?;
        // Writing to a String cannot fail.
        let _ = write!(text, "{data}..{at},");
    }
}

/// Returns the first differences between two trees, one a line; none where they are the same.
pub fn differences(one: &Tree, two: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, entry) in one {
        match two.get(path) {
            None => found.push(format!("{path:?}: only the first has it: {}", entry.facts)),
            Some(other) if other.facts != entry.facts => {
                found.push(format!("{path:?}:\n  first  {}\n  second {}", entry.facts, other.facts));
            }
            Some(_) => {}
        }
    }
    for (path, entry) in two.iter().filter(|(path, _)| !one.contains_key(*path)) {
        found.push(format!("{path:?}: only the second has it: {}", entry.facts));
    }
    let (links, other_links) = (links(one), links(two));
    if links != other_links {
        found.push(format!("the same inode:\n  first  {links:?}\n  second {other_links:?}"));
    }
    found.truncate(12);
    found
}

/// Returns where a tree contradicts itself.
pub fn faults(tree: &Tree) -> Vec<String> {
    let faulty = tree.iter().filter(|(_, entry)| !entry.faults.is_empty());
    faulty.map(|(path, entry)| format!("{path:?}:{}", entry.faults)).collect()
}

/// A path that has one number in one tree and another in the other.
pub struct Renumbered<'a> {
    pub path: &'a Path,
    pub one: u64,
    pub two: u64,
}

impl Renumbered<'_> {
    /// Whether this is the root, whose number is the upper's in the kernel's overlayfs and the topmost
    /// lower's in ours: either is constant for a mount of its own.
    pub fn is_root(&self) -> bool {
        self.path == Path::new("/")
    }
}

impl std::fmt::Display for Renumbered<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} is {} in the first and {} in the second", self.path, self.one, self.two)
    }
}

/// Returns the paths of both trees whose number differs.
pub fn renumbered<'a>(one: &'a Tree, two: &Tree) -> Vec<Renumbered<'a>> {
    let differs = |(path, entry): (&'a PathBuf, &Entry)| {
        let other = two.get(path).filter(|other| other.ino != entry.ino)?;
        Some(Renumbered { path, one: entry.ino, two: other.ino })
    };
    one.iter().filter_map(differs).collect()
}

/// Returns the groups of names that are one inode.
fn links(tree: &Tree) -> Vec<Vec<&Path>> {
    let mut by_ino: BTreeMap<u64, Vec<&Path>> = BTreeMap::new();
    for (path, entry) in tree {
        by_ino.entry(entry.ino).or_default().push(path);
    }
    let mut groups: Vec<_> = by_ino.into_values().filter(|names| names.len() > 1).collect();
    groups.sort();
    groups
}

//! Layers as a list of entries: generated from a seed, built below a directory, and small enough to
//! drop entries one by one while a failure persists.
//!
//! Every entry carries its times, so that nothing in a layer is as young as the run: what shows a
//! young time afterwards was changed by an operation.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::observe::brief;
use super::tree::Holes;
use crate::support::Rng;

/// What an entry is.
#[derive(Clone)]
pub enum Node {
    Dir,
    /// A regular file of `size` bytes with data where `extents` say and holes elsewhere.
    File {
        size: u64,
        extents: Vec<(u64, u32)>,
    },
    /// Another name of a file that stands earlier in the same layer.
    HardLink(PathBuf),
    Symlink(PathBuf),
    Fifo,
    Socket,
    Char(u32, u32),
    /// A character device 0:0: the kernel's whiteout.
    Whiteout,
    /// An empty file with the xattr that makes it a whiteout in a directory that says so (`opaque=x`,
    /// overlayfs.rst, "Nesting overlayfs mounts").
    XattrWhiteout,
}

/// One entry of a layer.
#[derive(Clone)]
pub struct Item {
    pub path: PathBuf,
    pub node: Node,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, i64),
    pub xattrs: Vec<(String, Vec<u8>)>,
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, mode, uid, gid, mtime, .. } = self;
        match &self.node {
            Node::Dir => write!(f, "dir      {path:?}")?,
            Node::File { size, extents } => {
                write!(f, "file     {path:?} size={size} extents={extents:?}")?;
            }
            Node::HardLink(to) => return write!(f, "hardlink {path:?} = {to:?}"),
            Node::Symlink(to) => write!(f, "symlink  {path:?} -> {to:?}")?,
            Node::Fifo => write!(f, "fifo     {path:?}")?,
            Node::Socket => write!(f, "socket   {path:?}")?,
            Node::Char(major, minor) => write!(f, "char     {path:?} {major}:{minor}")?,
            Node::Whiteout => return write!(f, "whiteout {path:?}"),
            Node::XattrWhiteout => return write!(f, "xattr whiteout {path:?}"),
        }
        write!(f, " {mode:04o} {uid}:{gid} mtime={}.{:09}", mtime.0, mtime.1)?;
        for (name, value) in &self.xattrs {
            write!(f, " {name}={}", brief(value))?;
        }
        Ok(())
    }
}

/// A layer, parents before their children.
pub type Layer = Vec<Item>;

/// The name of 255 bytes, the longest that there is.
pub fn longest_name() -> String {
    "L".repeat(255)
}

/// Tells whether `path` ends in the longest name. No directory has it: where such a one is renamed, its
/// redirect is longer than the 256 bytes that the kernel allows (its `redirect_max`), and the kernel
/// says EXDEV where ours does it.
pub fn is_longest(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.len() == 255)
}

/// Returns a name: few enough that operations meet each other.
pub fn name(rng: &mut Rng) -> PathBuf {
    const ODD: &[&[u8]] = &[b"sp ace", b"new\nline", b"\xff\xfe", b".hidden", b"back\\slash", b"co:lon"];
    match rng.below(20) {
        0 => PathBuf::from(longest_name()),
        1..3 => std::ffi::OsString::from_vec(rng.pick(ODD).to_vec()).into(),
        _ => PathBuf::from(*rng.pick(&["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"])),
    }
}

/// Returns the target of a symlink: present, dangling, looping, absolute. The processes that follow
/// them have the mount as their root.
pub fn target(rng: &mut Rng) -> PathBuf {
    match rng.below(8) {
        0 => PathBuf::from("/a/b"),
        1 => PathBuf::from("../a"),
        2 => PathBuf::from("a/../b"),
        3 => PathBuf::from("nowhere/at/all"),
        4 => PathBuf::from("t".repeat(400)),
        _ => name(rng),
    }
}

/// Returns a mode for a file or a directory; the suid, sgid and sticky bits are among them.
pub fn mode(rng: &mut Rng) -> u32 {
    *rng.pick(&[
        0o644, 0o644, 0o755, 0o755, 0o777, 0o600, 0o700, 0o000, 0o444, 0o555, 0o4755, 0o2755, 0o2711, 0o1777, 0o6775,
        0o666, 0o711,
    ])
}

/// Returns an owner and a group.
pub fn owner(rng: &mut Rng) -> (u32, u32) {
    (*rng.pick(&[0, 0, 1000, 1000, 1001]), *rng.pick(&[0, 1000, 1000, 2000, 3000]))
}

/// Returns a time that no run will ever take for "now".
pub fn time(rng: &mut Rng) -> (i64, i64) {
    match rng.below(12) {
        0 => (0, 0),
        1 => (-1_000_000, 5),
        2 => (4_000_000_000, 123_456_789),
        _ => (1_000_000_000 + rng.below(300_000_000) as i64, rng.below(1_000_000_000) as i64),
    }
}

/// Returns the bytes of an access ACL, or of a default one, in the form of
/// `system.posix_acl_access`: version 2 and entries of tag, permissions and id.
pub fn acl(rng: &mut Rng) -> Vec<u8> {
    const UNDEFINED: u32 = u32::MAX;
    let mut entries = vec![(0x01_u16, 7, UNDEFINED), (0x04, rng.below(8) as u16, UNDEFINED)];
    if rng.chance(70) {
        entries.push((0x02, rng.below(8) as u16, 1000));
    }
    if rng.chance(40) {
        entries.push((0x08, rng.below(8) as u16, 2000));
    }
    // With x in the mask: see umask() in generate.rs.
    entries.push((0x10, rng.below(8) as u16 | 1, UNDEFINED));
    entries.push((0x20, rng.below(8) as u16, UNDEFINED));
    // The kernel wants the tags in ascending order.
    entries.sort_by_key(|&(tag, _, id)| (tag, id));
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(u16::to_le_bytes(permissions));
        bytes.extend(u32::to_le_bytes(id));
    }
    bytes
}

/// Returns the `security.capability` that gives CAP_NET_RAW: revision 2, as setcap(8) writes it.
pub fn capability() -> Vec<u8> {
    let words: [u32; 5] = [0x0200_0001, 1 << 13, 0, 0, 0];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The kernel's copy-up looks for holes where a chunk of this size begins, and nowhere else.
const COPY_UP_CHUNK: u64 = 1 << 20;

fn contents(rng: &mut Rng, holes: Holes) -> Node {
    let size = match rng.below(12) {
        0..2 => 0,
        2..6 => 1 + rng.below(200) as u64,
        6..10 => rng.below(40_000) as u64,
        10 => 200_000 + rng.below(100_000) as u64,
        _ => 3_000_000,
    };
    let sparse = size > 20_000 && rng.chance(50);
    let extents = match (sparse, holes) {
        _ if size == 0 => Vec::new(),
        (false, _) => vec![(0, size as u32)],
        (true, Holes::Ignore) => scattered(rng, size),
        // The holes that the kernel keeps, so that they can be compared: before the data, or all of it.
        (true, Holes::Compare) if rng.chance(30) => Vec::new(),
        (true, Holes::Compare) => {
            let data = (size / 2).min(COPY_UP_CHUNK / 2);
            vec![(size - data, data as u32)]
        }
    };
    Node::File { size, extents }
}

fn scattered(rng: &mut Rng, size: u64) -> Vec<(u64, u32)> {
    let mut extents = Vec::new();
    let mut at = if rng.chance(50) { 0 } else { 8192 };
    while at < size {
        let len = (1 + rng.below(3) as u64 * 4000).min(size - at);
        extents.push((at, len as u32));
        at += len + (1 + rng.below(1 + size as usize / 4) as u64).next_multiple_of(4096);
    }
    extents
}

fn xattrs(rng: &mut Rng, node: &Node) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    let file = matches!(node, Node::File { .. });
    let dir = matches!(node, Node::Dir);
    if (file || dir) && rng.chance(15) {
        let len = if rng.chance(15) { 2000 } else { rng.below(20) };
        all.push(("user.one".to_owned(), vec![b'x'; len]));
    }
    if (file || dir) && rng.chance(8) {
        all.push(("system.posix_acl_access".to_owned(), acl(rng)));
    }
    if dir && rng.chance(6) {
        all.push(("system.posix_acl_default".to_owned(), acl(rng)));
    }
    if file && rng.chance(5) {
        all.push(("security.capability".to_owned(), capability()));
    }
    if !matches!(node, Node::HardLink(_) | Node::Whiteout | Node::XattrWhiteout) && rng.chance(5) {
        all.push(("trusted.two".to_owned(), b"two".to_vec()));
    }
    all
}

/// What the layers below say, as far as the generator needs to know it.
#[derive(Default)]
struct Below {
    dirs: BTreeSet<PathBuf>,
    names: BTreeMap<PathBuf, BTreeSet<PathBuf>>,
    /// What shows, merged.
    visible: BTreeSet<PathBuf>,
}

impl Below {
    fn add(&mut self, layer: &[Item]) {
        for item in layer {
            let path = item.path.clone();
            let is_dir = matches!(item.node, Node::Dir);
            if is_dir {
                self.dirs.insert(path.clone());
            }
            if !is_dir || is_opaque(item) {
                self.visible.retain(|shown| !is_within(shown, &path));
            }
            if !matches!(item.node, Node::Whiteout | Node::XattrWhiteout) {
                self.visible.insert(path.clone());
            }
            let parent = path.parent().unwrap_or(Path::new("")).to_owned();
            self.names.entry(parent).or_default().insert(path);
        }
    }
}

fn is_opaque(item: &Item) -> bool {
    let opaque = |(name, value): &(String, Vec<u8>)| name == OPAQUE && value == b"y";
    item.xattrs.iter().any(opaque)
}

const OPAQUE: &str = "trusted.overlay.opaque";

/// Generates `count` layers, topmost first.
pub fn generate(rng: &mut Rng, count: usize, holes: Holes) -> Vec<Layer> {
    let mut below = Below::default();
    let mut layers = Vec::new();
    for depth in 0..count {
        let place = match depth {
            0 => Place::Bottom,
            _ if depth + 1 == count => Place::Top,
            _ => Place::Middle,
        };
        let layer = generate_layer(rng, &below, place, holes);
        below.add(&layer);
        layers.push(layer);
    }
    layers.reverse();
    layers
}

/// Where a layer stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Bottom,
    Middle,
    /// A prelude may change this one as an upper, in which the kernel knows no xattr whiteouts.
    Top,
}

fn generate_layer(rng: &mut Rng, below: &Below, place: Place, holes: Holes) -> Layer {
    let covers = place != Place::Bottom;
    let mut layer = Layer::new();
    let mut dirs = vec![PathBuf::new()];
    let mut files: Vec<PathBuf> = Vec::new();
    let mut with_xattr_whiteouts: BTreeSet<PathBuf> = BTreeSet::new();
    let mut taken: BTreeSet<PathBuf> = BTreeSet::new();
    let wanted = 8 + rng.below(18);
    for _ in 0..wanted {
        let shared: Vec<_> = below.dirs.iter().filter(|dir| !taken.contains(*dir)).cloned().collect();
        if !shared.is_empty() && rng.chance(25) {
            let dir = rng.pick(&shared).clone();
            add_parents(rng, &dir, &mut layer, &mut dirs, &mut taken);
            continue;
        }
        let parent = rng.pick(&dirs).clone();
        let existing: Vec<_> = below.names.get(&parent).into_iter().flatten().cloned().collect();
        let path =
            if !existing.is_empty() && rng.chance(55) { rng.pick(&existing).clone() } else { parent.join(name(rng)) };
        if !taken.insert(path.clone()) {
            continue;
        }
        let node = match rng.below(100) {
            0..38 => contents(rng, holes),
            38..62 if path.components().count() < 5 && !is_longest(&path) => Node::Dir,
            62..72 => Node::Symlink(target(rng)),
            72..84 if !files.is_empty() => Node::HardLink(rng.pick(&files).clone()),
            84..87 => Node::Fifo,
            87..89 => Node::Char(1, 3),
            89 => Node::Socket,
            // Where it hides something: in a directory that it does not merge the kernel takes it
            // for a file.
            90..100
                if with_xattr_whiteouts.contains(&parent)
                    && below.visible.contains(&path)
                    && !layer.iter().any(|item| is_opaque(item) && is_within(&path, &item.path)) =>
            {
                Node::XattrWhiteout
            }
            90..100 if covers => Node::Whiteout,
            _ => contents(rng, holes),
        };
        let mut item = item(rng, path.clone(), node);
        match item.node {
            Node::Dir => {
                if covers && rng.chance(35) {
                    let xattr_whiteouts = place == Place::Middle && rng.chance(40);
                    let value = if xattr_whiteouts { "x" } else { "y" };
                    let opaque = (OPAQUE.to_owned(), value.into());
                    item.xattrs.push(opaque);
                    if xattr_whiteouts {
                        with_xattr_whiteouts.insert(path.clone());
                    }
                }
                dirs.push(path);
            }
            Node::File { .. } => files.push(path),
            _ => {}
        }
        layer.push(item);
    }
    layer
}

/// Adds `dir` and those of its parents that the layer does not hold yet.
fn add_parents(rng: &mut Rng, dir: &Path, layer: &mut Layer, dirs: &mut Vec<PathBuf>, taken: &mut BTreeSet<PathBuf>) {
    let mut missing: Vec<_> = dir.ancestors().filter(|p| !p.as_os_str().is_empty()).collect();
    missing.reverse();
    for path in missing {
        if dirs.iter().any(|known| known == path) {
            continue;
        }
        if !taken.insert(path.to_owned()) {
            return; // the layer has something else of that name
        }
        layer.push(item(rng, path.to_owned(), Node::Dir));
        dirs.push(path.to_owned());
    }
}

fn item(rng: &mut Rng, path: PathBuf, node: Node) -> Item {
    // A directory that nobody may enter hides what is in it from the unprivileged half of the
    // operations, so most are open.
    let mode = if matches!(node, Node::Dir) && rng.chance(70) { 0o777 } else { mode(rng) };
    let (uid, gid) = owner(rng);
    let xattrs = xattrs(rng, &node);
    Item { path, node, mode, uid, gid, mtime: time(rng), xattrs }
}

/// Returns `len` bytes that are never 0, so that data and holes differ.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| ((seed.wrapping_mul(31) + i * 7 + i / 251) % 255) as u8 + 1).collect()
}

/// Builds `layer` below the directory `root`, which exists and is empty. Items whose parent or link
/// target was dropped by the minimiser are dropped too.
pub fn build(root: &Path, layer: &[Item]) {
    for item in layer {
        match build_item(root, item) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => panic!("building {item:?}: {error}"),
        }
    }
    for item in layer.iter().rev() {
        if !matches!(item.node, Node::HardLink(_)) {
            set_mtime(&root.join(&item.path), item.mtime);
        }
    }
    set_mtime(root, (1_111_111_111, 1));
}

fn build_item(root: &Path, item: &Item) -> Result<(), Errno> {
    use rustix::fs::{linkat, lsetxattr, mkdirat, mknodat, symlinkat};
    let path = root.join(&item.path);
    let at = path.as_path();
    let mode = Mode::from_raw_mode(0o600);
    match &item.node {
        Node::Dir => mkdirat(CWD, at, Mode::from_raw_mode(0o700))?,
        Node::File { size, extents } => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
            let file = rustix::fs::open(at, flags, mode)?;
            rustix::fs::ftruncate(&file, *size)?;
            for &(offset, len) in extents {
                let seed = item.path.as_os_str().len() as u64 + offset + *size;
                write_all(&file, &pattern(seed, len as usize), offset)?;
            }
        }
        Node::HardLink(to) => {
            return linkat(CWD, root.join(to), CWD, at, AtFlags::empty());
        }
        Node::Symlink(to) => symlinkat(to.as_path(), CWD, at)?,
        Node::Fifo => mknodat(CWD, at, FileType::Fifo, mode, 0)?,
        Node::Socket => mknodat(CWD, at, FileType::Socket, mode, 0)?,
        Node::Char(major, minor) => {
            let device = rustix::fs::makedev(*major, *minor);
            mknodat(CWD, at, FileType::CharacterDevice, mode, device)?;
        }
        Node::XattrWhiteout => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
            let file = rustix::fs::open(at, flags, mode)?;
            let name = "trusted.overlay.whiteout";
            return rustix::fs::fsetxattr(&file, name, b"y", XattrFlags::empty());
        }
        Node::Whiteout => {
            return mknodat(CWD, at, FileType::CharacterDevice, Mode::empty(), 0);
        }
    }
    let (uid, gid) = (Uid::from_raw(item.uid), Gid::from_raw(item.gid));
    rustix::fs::chownat(CWD, at, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if !matches!(item.node, Node::Symlink(_)) {
        rustix::fs::chmod(at, Mode::from_raw_mode(item.mode))?;
    }
    for (name, value) in &item.xattrs {
        match lsetxattr(at, name.as_str(), value, XattrFlags::empty()) {
            // Some file systems hold less; the layer is shared by both sides, so that it is still
            // the same for both.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSPC) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn write_all(file: &rustix::fd::OwnedFd, mut bytes: &[u8], mut offset: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let done = rustix::io::pwrite(file, bytes, offset)?;
        bytes = &bytes[done..];
        offset += done as u64;
    }
    Ok(())
}

fn set_mtime(path: &Path, (tv_sec, tv_nsec): (i64, i64)) {
    let time = Timespec { tv_sec, tv_nsec };
    let times = Timestamps { last_access: time, last_modification: time };
    match rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW) {
        // ENOENT and ENOTDIR: the minimiser dropped what it stood in.
        Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
        Err(error) => panic!("utimensat({}): {error}", path.display()),
    }
}

/// Tells whether `path` stands below `dir` or is it.
pub fn is_within(path: &Path, dir: &Path) -> bool {
    path == dir || path.as_os_str().as_bytes().starts_with(&[dir.as_os_str().as_bytes(), b"/"].concat())
}

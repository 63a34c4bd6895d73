//! The promise that a lower never changes, checked bit by bit.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, SeekFrom};

/// Whether access times are part of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Atime {
    /// Access times are left out: reading a lower updates them, as it does under the kernel's
    /// overlayfs.
    Ignore,
    /// Access times of files and directories must not move either.
    Compare,
}

/// Which times are part of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Times {
    /// None: what was made and removed again has left nothing.
    None,
    /// When content and attributes changed.
    Changes,
    /// Those, and when it was read.
    All,
}

/// What the lowers were; compared with what they are by [`LowersUnchanged::check`].
#[derive(Debug)]
#[must_use = "the lowers are compared only by check()"]
pub struct LowersUnchanged {
    lowers: Vec<PathBuf>,
    times: Times,
    before: BTreeMap<PathBuf, String>,
}

impl LowersUnchanged {
    /// Records the lowers: path, mode, owner, size, mtime, ctime, nlink, device number, xattrs,
    /// link target and content of every file.
    pub fn new(lowers: &[PathBuf]) -> Self {
        Self::with(lowers, Atime::Ignore)
    }

    /// Records the lowers, access times included where asked.
    pub fn with(lowers: &[PathBuf], atime: Atime) -> Self {
        let times = match atime {
            Atime::Ignore => Times::Changes,
            Atime::Compare => Times::All,
        };
        Self::record(lowers, times)
    }

    /// Records names, contents and attributes of any directories, but no times.
    pub fn but_for_times(directories: &[PathBuf]) -> Self {
        Self::record(directories, Times::None)
    }

    fn record(lowers: &[PathBuf], times: Times) -> Self {
        Self { lowers: lowers.to_vec(), times, before: walk_all(lowers, times) }
    }

    /// Panics with every difference where a lower is not what it was.
    pub fn check(&self) {
        let after = walk_all(&self.lowers, self.times);
        let mut report = String::new();
        for (path, was) in &self.before {
            match after.get(path) {
                None => writeln!(report, "gone:    {}", path.display()),
                Some(is) if is != was => {
                    writeln!(report, "changed: {}\n  was {was}\n  is  {is}", path.display())
                }
                Some(_) => Ok(()),
            }
            .expect("a String takes everything");
        }
        for path in after.keys().filter(|path| !self.before.contains_key(*path)) {
            writeln!(report, "new:     {}", path.display()).expect("a String takes everything");
        }
        assert!(report.is_empty(), "the lowers changed:\n{report}");
    }
}

fn walk_all(lowers: &[PathBuf], times: Times) -> BTreeMap<PathBuf, String> {
    let mut seen = BTreeMap::new();
    for lower in lowers {
        walk(lower, times, &mut seen);
    }
    seen
}

fn walk(path: &Path, times: Times, seen: &mut BTreeMap<PathBuf, String>) {
    let meta = std::fs::symlink_metadata(path).unwrap_or_else(|error| panic!("lstat {}: {error}", path.display()));
    let kind = meta.file_type();
    // The size of a directory is the file system's affair.
    let size = if kind.is_dir() { 0 } else { meta.size() };
    let mut record = format!(
        "mode {:o} owner {}:{} size {size} nlink {} rdev {:#x}",
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.nlink(),
        meta.rdev(),
    );
    if times != Times::None {
        record.push_str(&format!(
            " mtime {}.{:09} ctime {}.{:09}",
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
            meta.ctime_nsec(),
        ));
    }
    // A symlink's access time moves when this walk reads it.
    if times == Times::All && !kind.is_symlink() {
        record.push_str(&format!(" atime {}.{:09}", meta.atime(), meta.atime_nsec()));
    }
    record.push_str(&xattrs(path));
    if kind.is_symlink() {
        let target = std::fs::read_link(path).expect("a symlink can be read");
        record.push_str(&format!(" -> {target:?}"));
    } else if kind.is_file() {
        record.push_str(&content(path));
    }
    seen.insert(path.to_owned(), record);
    if kind.is_dir() {
        for name in list(path) {
            walk(&path.join(name), times, seen);
        }
    }
}

/// Opens without moving the access time where that is allowed. `None` where this process may not
/// read the file: what it cannot read it could not have written either.
fn open_quietly(path: &Path, extra: OFlags) -> Option<rustix::fd::OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | extra;
    let opened = rustix::fs::openat(CWD, path, flags | OFlags::NOATIME, Mode::empty())
        .or_else(|_| rustix::fs::openat(CWD, path, flags, Mode::empty()));
    match opened {
        Ok(fd) => Some(fd),
        Err(rustix::io::Errno::ACCESS) => None,
        Err(errno) => panic!("open {}: {errno}", path.display()),
    }
}

fn list(path: &Path) -> Vec<OsString> {
    let Some(dir) = open_quietly(path, OFlags::DIRECTORY) else {
        return Vec::new();
    };
    let entries = rustix::fs::Dir::new(dir).expect("a directory can be listed");
    entries
        .map(|entry| {
            let entry = entry.unwrap_or_else(|errno| panic!("readdir {}: {errno}", path.display()));
            OsString::from_vec(entry.file_name().to_bytes().to_vec())
        })
        .filter(|name| name != "." && name != "..")
        .collect()
}

fn xattrs(path: &Path) -> String {
    let mut list = vec![0; 65536];
    let length = match rustix::fs::llistxattr(path, &mut list) {
        Ok(length) => length,
        // A file system without xattrs has none that could change.
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(errno) => panic!("listxattr {}: {errno}", path.display()),
    };
    let mut names: Vec<&[u8]> = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    let mut out = String::new();
    for name in names {
        let mut value = vec![0; 65536];
        let length = rustix::fs::lgetxattr(path, name, &mut value)
            .unwrap_or_else(|errno| panic!("getxattr {}: {errno}", path.display()));
        out.push_str(&format!(" {}={:?}", String::from_utf8_lossy(name), String::from_utf8_lossy(&value[..length])));
    }
    out
}

/// Hashes the blocks of a file that are not zero, with their offsets, so that a sparse file of
/// many gigabytes costs nothing and the layout of its holes does not matter.
fn content(path: &Path) -> String {
    const BLOCK: usize = 4096;
    let Some(fd) = open_quietly(path, OFlags::empty()) else {
        return " unreadable".to_owned();
    };
    let file = std::fs::File::from(fd);
    let mut hasher = DefaultHasher::new();
    let mut block = vec![0; BLOCK];
    let mut offset = 0;
    loop {
        match rustix::fs::seek(&file, SeekFrom::Data(offset)) {
            // Data may begin inside a block; whole blocks make the hash independent of that.
            Ok(data) => offset = data - data % BLOCK as u64,
            // No data from here to the end.
            Err(rustix::io::Errno::NXIO) => break,
            Err(errno) => panic!("SEEK_DATA {}: {errno}", path.display()),
        }
        let length = read_block(&file, &mut block, offset, path);
        if length == 0 {
            break;
        }
        if block[..length].iter().any(|byte| *byte != 0) {
            (offset, &block[..length]).hash(&mut hasher);
        }
        offset += length as u64;
    }
    format!(" content {:016x}", hasher.finish())
}

fn read_block(file: &std::fs::File, block: &mut [u8], offset: u64, path: &Path) -> usize {
    let mut filled = 0;
    while filled < block.len() {
        match file.read_at(&mut block[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) => panic!("read {}: {error}", path.display()),
        }
    }
    filled
}

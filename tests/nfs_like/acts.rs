//! What is done to a union without a mount, by path, and what it shows.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use rustix::fs::XattrFlags;
use unionfs_rs::error::Error;
use unionfs_rs::union::{Caller, Entry, FileKind, Flow, Name, New, NodeId, RenameFlags, SetAttr, Union};

/// Who does it.
pub const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 0 };

/// Everything that a union shows, by path.
pub type View = BTreeMap<String, String>;

type Result<T = ()> = std::result::Result<T, Error>;

fn name_of(name: &str) -> Name<'_> {
    Name::new(OsStr::new(name)).expect("a name of a test is one")
}

fn parent<'a>(union: &Union, path: &'a str) -> Result<(NodeId, Name<'a>)> {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    Ok((union.lookup_path(dir.as_ref())?.id, name_of(name)))
}

fn make(union: &Union, path: &str, new: New<'_>, mode: u32) -> Result<Entry> {
    let (dir, name) = parent(union, path)?;
    union.create(dir, name, new, mode, 0, ROOT)
}

pub fn mkdir(union: &Union, path: &str) -> Result {
    make(union, path, New::Directory, 0o755).map(drop)
}

pub fn symlink(union: &Union, target: &str, path: &str) -> Result {
    make(union, path, New::Symlink(OsStr::new(target)), 0o777).map(drop)
}

/// Makes an empty file.
pub fn touch(union: &Union, path: &str) -> Result {
    make(union, path, New::Regular, 0o644).map(drop)
}

/// Writes to a file that is there.
pub fn write(union: &Union, path: &str, data: &str) -> Result {
    union.write(union.lookup_path(path.as_ref())?.id, 0, data.as_bytes(), None).map(drop)
}

pub fn unlink(union: &Union, path: &str) -> Result {
    let (dir, name) = parent(union, path)?;
    union.unlink(dir, name)
}

pub fn rmdir(union: &Union, path: &str) -> Result {
    let (dir, name) = parent(union, path)?;
    union.rmdir(dir, name)
}

pub fn rename(union: &Union, from: &str, to: &str) -> Result {
    rename_with(union, from, to, RenameFlags::empty())
}

pub fn rename_with(union: &Union, from: &str, to: &str, flags: RenameFlags) -> Result {
    let ((from_dir, from), (to_dir, to)) = (parent(union, from)?, parent(union, to)?);
    union.rename(from_dir, from, to_dir, to, flags)
}

/// Makes a pipe, a socket or a device.
pub fn mknod(union: &Union, path: &str, kind: FileKind, rdev: (u32, u32)) -> Result {
    make(union, path, New::Node(kind, rdev), 0o640).map(drop)
}

pub fn set(union: &Union, path: &str, set: SetAttr) -> Result {
    union.setattr(union.lookup_path(path.as_ref())?.id, set, None, ROOT).map(drop)
}

pub fn setxattr(union: &Union, path: &str, name: &str, value: &[u8]) -> Result {
    let id = union.lookup_path(path.as_ref())?.id;
    union.setxattr(id, OsStr::new(name), value, XattrFlags::empty(), ROOT)
}

pub fn removexattr(union: &Union, path: &str, name: &str) -> Result {
    union.removexattr(union.lookup_path(path.as_ref())?.id, OsStr::new(name), ROOT)
}

pub fn link(union: &Union, of: &str, to: &str) -> Result {
    let (dir, name) = parent(union, to)?;
    union.link(union.lookup_path(of.as_ref())?.id, dir, name).map(drop)
}

/// Collects what the union shows: kind and contents of every file.
pub fn view(union: &Union) -> View {
    let mut view = View::new();
    collect(union, NodeId::ROOT, "", &mut view);
    view
}

fn collect(union: &Union, dir: NodeId, prefix: &str, view: &mut View) {
    let mut names = Vec::new();
    let read = union.read_dir(dir, 0, |entry| {
        names.push(entry.name.to_string_lossy().into_owned());
        Flow::More
    });
    read.unwrap_or_else(|error| panic!("{prefix:?} cannot be listed: {error}"));
    for name in names.iter().filter(|name| !matches!(name.as_str(), "." | "..")) {
        let path = format!("{prefix}{name}");
        let entry = union.lookup(dir, name_of(name)).unwrap_or_else(|error| panic!("{path} is listed alone: {error}"));
        let shown = match entry.attr.kind {
            FileKind::Directory => "a directory".to_owned(),
            FileKind::Symlink => format!("a link to {:?}", union.readlink(entry.id).expect("a link can be read")),
            kind => {
                let mut data = vec![0; 4096];
                let len = union.read(entry.id, 0, &mut data).unwrap_or_else(|error| panic!("read {path}: {error}"));
                format!("{kind:?} with {:?}", String::from_utf8_lossy(&data[..len]))
            }
        };
        view.insert(path.clone(), shown);
        if entry.attr.kind == FileKind::Directory {
            collect(union, entry.id, &format!("{path}/"), view);
        }
    }
}

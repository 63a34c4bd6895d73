//! Layers on disk seen as one tree, to be read: what an image shows, or a container.
//!
//! The rules are the union's, of which this needs little: nothing here is mounted or changed, no inode is kept, and each
//! question is asked of the layers anew.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::tar::{Member, MemberKind};
use super::unpack::keep::Keep;
use crate::error::{Error, Result};
use crate::layer::attr::{Attr, FileKind};
use crate::layer::dir::{Below, Found, LayerDir, Lowers};
use crate::layer::directory::Directory;
use crate::layer::name::{Name, WH_PREFIX};
use crate::layer::overlay::{self, Marks, Namespace, View};
use crate::layer::redirect::Redirect;
use crate::layer::{Layer, LayerId, Root};
use crate::sys::proc_path;

/// How many directories of the layers stay open.
const OPEN_MAX: usize = 1024;

/// Layers, seen as one tree.
pub struct Stack {
    lowers: Lowers,
    namespace: Namespace,
    /// Whether the root of each layer has attributes of its own, topmost first.
    says_root: Vec<bool>,
    /// What keeps the layers from being taken away, if anything has to.
    #[expect(dead_code, reason = "a lock is let go of when it is closed")]
    held: Option<File>,
}

/// A layer of a stack.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// The directory.
    pub path: &'a Path,
    /// Whether the attributes of its root are the root's, or were made up for want of any.
    pub says_root: bool,
}

/// A directory of the tree: what the layers have of it, topmost first.
#[derive(Debug, Clone)]
pub struct Merged {
    parts: Vec<Arc<LayerDir>>,
}

impl Merged {
    /// Returns what tells the parts apart from all others: device and inode number.
    pub fn identities(&self) -> Vec<((u32, u32), u64)> {
        self.parts.iter().map(|part| (part.dev, part.ino)).collect()
    }

    /// Returns the parts, topmost first.
    pub fn parts(&self) -> &[Arc<LayerDir>] {
        &self.parts
    }
}

/// What the tree has under a name.
#[derive(Debug, Clone)]
pub enum Object {
    /// A directory, with the attributes of its topmost part.
    Dir(Merged, Attr),
    /// Anything else, under a name in a directory of one layer.
    File(Arc<LayerDir>, OsString, Attr),
}

impl Object {
    /// Returns the attributes.
    pub fn attr(&self) -> &Attr {
        match self {
            Self::Dir(_, attr) | Self::File(_, _, attr) => attr,
        }
    }

    /// Returns the layer that it is of, of a directory the topmost that has it: counted from the topmost.
    pub fn layer(&self) -> usize {
        let part = match self {
            Self::Dir(merged, _) => merged.parts.first(),
            Self::File(dir, ..) => Some(dir),
        };
        part.map_or(0, |part| usize::from(part.layer.0).saturating_sub(1))
    }
}

/// What one layer says of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Says {
    /// Nothing, or nothing that could be seen.
    Nothing,
    /// It has it, and that is what shows; of a directory, the attributes.
    Shown,
    /// It has the directory, whose names show among those of the layers above.
    Merged,
    /// It has it, and a layer above hides that.
    Hidden,
    /// It marks it, or a directory that it is in, as removed from the layers below.
    Removes,
}

impl Stack {
    /// Returns what each layer says of `path`, whose components are names, topmost first.
    pub fn says(&self, path: &[&OsStr]) -> Result<Vec<Says>> {
        let shown = match self.at(path)? {
            Some(Object::Dir(merged, _)) => merged.parts,
            Some(Object::File(dir, ..)) => vec![dir],
            None => Vec::new(),
        };
        let mut all = Vec::new();
        for root in self.lowers.roots() {
            let layer = shown.iter().position(|part| part.layer == root.layer);
            let says = match self.says_alone(root.clone(), path)? {
                Some(true) => match layer {
                    Some(0) => Says::Shown,
                    Some(_) => Says::Merged,
                    None => Says::Hidden,
                },
                Some(false) => Says::Removes,
                None => Says::Nothing,
            };
            all.push(says);
        }
        Ok(all)
    }

    /// Returns whether one layer alone has `path` or removes it; `None` where it says nothing.
    fn says_alone(&self, root: Arc<LayerDir>, path: &[&OsStr]) -> Result<Option<bool>> {
        let (mut dir, mut removes) = (root, false);
        for (at, name) in path.iter().enumerate() {
            removes |= dir.opaque || self.hides_by_name(&dir, name)?;
            match self.examine(&dir, name)? {
                Found::Absent => return Ok(removes.then_some(false)),
                Found::Whiteout => return Ok(Some(false)),
                Found::File(_) => return Ok(Some(at + 1 == path.len())),
                Found::Dir(attr, marks) => dir = dir.child(name, &attr, &marks),
            }
        }
        Ok(Some(true))
    }

    /// Opens the trees of layers, topmost first. Errors: those of opening each, by its path.
    pub fn open<'a>(parts: impl IntoIterator<Item = Part<'a>>, keep: Keep) -> Result<Self> {
        let (mut layers, mut says_root) = (Vec::new(), Vec::new());
        for (at, part) in parts.into_iter().enumerate() {
            let path = part.path;
            let id = LayerId(u16::try_from(at + 1).map_err(|_| Error::image(path.display(), "is one layer too many"))?);
            let root = Root::plain(Directory::at(path)?);
            layers.push(Layer::new(id, path, root)?);
            says_root.push(part.says_root);
        }
        let lowers = Lowers::new(layers, keep.namespace, OPEN_MAX)?;
        Ok(Self { lowers, namespace: keep.namespace, says_root, held: None })
    }

    /// Holds `lock` for as long as the layers are open.
    pub fn holding(self, lock: File) -> Self {
        Self { held: Some(lock), ..self }
    }

    /// Returns how many layers there are.
    pub fn depth(&self) -> usize {
        self.lowers.layers().len()
    }

    /// Returns the root.
    pub fn root(&self) -> Result<Object> {
        self.root_from(0)
    }

    /// Returns the root that the layers show from the one at `first`, counted from the topmost, on down.
    pub fn root_from(&self, first: usize) -> Result<Object> {
        let of = self.says_root_from(first).ok_or_else(|| Error::image("tree", "has no layers"))?;
        let attr = self.lowers.stat(of, OsStr::new("")).map_err(|error| self.told(of, "", error))?;
        Ok(Object::Dir(Merged { parts: self.roots(first) }, attr))
    }

    /// As [`Stack::root_from`], as the member of a tar that would make it.
    pub fn root_member(&self, first: usize) -> Result<Member> {
        let root = self.root_from(first)?;
        let (mut member, _) = self.to_member(b"./".to_vec(), &root)?;
        if let Some(of) = self.says_root_from(first) {
            member.xattrs = self.xattrs(of, OsStr::new(""))?;
        }
        Ok(member)
    }

    /// Returns the root of the first layer from `first` on down that has attributes of its own, else of that at `first`.
    fn says_root_from(&self, first: usize) -> Option<&Arc<LayerDir>> {
        let own = self.says_root.iter().skip(first).position(|says| *says);
        self.lowers.roots().get(first + own.unwrap_or_default())
    }

    /// Returns the roots of the layers from the one at `first`, counted from the topmost, down to an opaque one.
    fn roots(&self, first: usize) -> Vec<Arc<LayerDir>> {
        let mut parts = Vec::new();
        for root in self.lowers.roots().iter().skip(first) {
            parts.push(root.clone());
            if root.opaque {
                break;
            }
        }
        parts
    }

    /// Finds `name` in `dir`.
    pub fn lookup(&self, dir: &Merged, name: &OsStr) -> Result<Option<Object>> {
        self.find(dir.parts.clone(), name)
    }

    fn find(&self, mut parts: Vec<Arc<LayerDir>>, name: &OsStr) -> Result<Option<Object>> {
        let mut name = name.to_owned();
        let mut found: Option<(Vec<Arc<LayerDir>>, Attr)> = None;
        let mut at = 0;
        while let Some(part) = parts.get(at).cloned() {
            at += 1;
            match self.examine(&part, &name)? {
                Found::Absent => {}
                Found::Whiteout => break,
                Found::File(attr) if found.is_none() => return Ok(Some(Object::File(part, name, attr))),
                Found::File(_) => break,
                Found::Dir(attr, marks) => {
                    found.get_or_insert_with(|| (Vec::new(), attr)).0.push(part.child(&name, &attr, &marks));
                    if marks.opaque {
                        break;
                    }
                    match self.redirect(&part, &name, &marks)? {
                        None => {}
                        Some(Redirect::Sibling(other)) => {
                            name = other;
                            continue;
                        }
                        Some(Redirect::Absolute(path)) => {
                            let Some((last, above)) = path.split_last() else { break };
                            let below = usize::from(part.layer.0);
                            (parts, at) = (self.descend(self.roots(below), above)?, 0);
                            name = last.clone();
                            continue;
                        }
                    }
                }
            }
            if self.hides_by_name(&part, &name)? {
                break;
            }
        }
        Ok(found.map(|(parts, attr)| Object::Dir(Merged { parts }, attr)))
    }

    fn redirect(&self, part: &Arc<LayerDir>, name: &OsStr, marks: &Marks) -> Result<Option<Redirect>> {
        let Some(value) = &marks.redirect else { return Ok(None) };
        let wrong = |reason: &str| Error::image(self.real_path(part, name).display(), reason);
        Redirect::parse(value).map(Some).map_err(wrong)
    }

    /// Goes down from `parts` along `path`; to nothing where it is no directory.
    fn descend(&self, parts: Vec<Arc<LayerDir>>, path: &[OsString]) -> Result<Vec<Arc<LayerDir>>> {
        let mut parts = parts;
        for name in path {
            parts = match self.find(parts, name)? {
                Some(Object::Dir(merged, _)) => merged.parts,
                _ => return Ok(Vec::new()),
            };
        }
        Ok(parts)
    }

    /// Finds what is at `path`, whose components are names; links are not followed.
    pub fn at(&self, path: &[&OsStr]) -> Result<Option<Object>> {
        self.at_from(0, path)
    }

    /// As [`Stack::at`], of what the layers show from the one at `first`, counted from the topmost, on down.
    pub fn at_from(&self, first: usize, path: &[&OsStr]) -> Result<Option<Object>> {
        if first >= self.depth() {
            return Ok(None);
        }
        let mut object = self.root_from(first)?;
        for name in path {
            let Object::Dir(dir, _) = &object else { return Ok(None) };
            match self.lookup(dir, name)? {
                Some(next) => object = next,
                None => return Ok(None),
            }
        }
        Ok(Some(object))
    }

    /// Collects the names that `parts` have, whether they show or are marks, but for those of `.wh.` files: the names that
    /// these hide take their place.
    pub fn names(&self, parts: &[Arc<LayerDir>]) -> Result<BTreeSet<OsString>> {
        let mut names = BTreeSet::new();
        for part in parts {
            let each = |name: &[u8], _, _| {
                let name = match name.strip_prefix(WH_PREFIX.as_bytes()) {
                    // `.wh..wh..opq` and its like are about no name.
                    Some(hidden) if hidden.starts_with(WH_PREFIX.as_bytes()) => return,
                    Some(hidden) => hidden,
                    None => name,
                };
                // What is left of `.wh...` is none.
                if let Ok(name) = Name::new(OsStr::from_bytes(name)) {
                    names.insert(name.as_os_str().to_owned());
                }
            };
            self.lowers.each_entry(part, each).map_err(|error| self.told(part, "", error))?;
        }
        Ok(names)
    }

    /// Lists what shows in `dir`, by name in the order of bytes.
    pub fn list(&self, dir: &Merged) -> Result<Vec<(OsString, Object)>> {
        let mut list = Vec::new();
        for name in self.names(&dir.parts)? {
            if let Some(object) = self.lookup(dir, &name)? {
                list.push((name, object));
            }
        }
        Ok(list)
    }

    /// Reads the target of a symbolic link.
    pub fn read_link(&self, dir: &Arc<LayerDir>, name: &OsStr) -> Result<OsString> {
        self.ask("readlinkat", dir, name, |layer, fd| layer.read_link(fd, name))
    }

    /// Opens a regular file for reading. Errors: [`Error::Image`] for what is none, as it may have become in a container that
    /// runs: to open a device does what its driver likes.
    pub fn open_file(&self, dir: &Arc<LayerDir>, name: &OsStr) -> Result<File> {
        let opened = self.ask("openat", dir, name, |layer, fd| {
            open_regular(&layer.open(fd, name, OFlags::PATH | OFlags::NOFOLLOW)?)
        })?;
        opened.ok_or_else(|| Error::image(self.real_path(dir, name).display(), "is no regular file any more"))
    }

    /// Returns the extended attributes that the tree shows, sorted by name; an empty name is `dir` itself.
    pub fn xattrs(&self, dir: &Arc<LayerDir>, name: &OsStr) -> Result<Vec<(OsString, Vec<u8>)>> {
        self.ask("listxattr", dir, name, |layer, fd| {
            let mut xattrs = Vec::new();
            for key in layer.xattrs(fd, name)? {
                let value = layer.xattr(fd, name, &key)?;
                xattrs.push((key, value));
            }
            xattrs.sort();
            Ok(xattrs)
        })
    }

    /// Returns the extended attributes of an object.
    pub fn xattrs_of(&self, object: &Object) -> Result<Vec<(OsString, Vec<u8>)>> {
        match object {
            Object::File(dir, name, _) => self.xattrs(dir, name),
            Object::Dir(merged, _) => match merged.parts.first() {
                Some(top) => self.xattrs(top, OsStr::new("")),
                None => Ok(Vec::new()),
            },
        }
    }

    /// Returns an object as the member of a tar that would make it at `path`, and the data of a regular file.
    ///
    /// Errors: [`crate::error::ErrorKind::Image`] for a file of an upper whose data is still in another layer (metacopy).
    pub fn to_member(&self, path: Vec<u8>, object: &Object) -> Result<(Member, Option<File>)> {
        let attr = object.attr();
        let (mut link, mut data) = (Vec::new(), None);
        if let Object::File(dir, name, _) = object {
            match attr.kind {
                FileKind::Symlink => link = self.read_link(dir, name)?.into_vec(),
                FileKind::Regular => {
                    self.refuse_metacopy(dir, name)?;
                    data = Some(self.open_file(dir, name)?);
                }
                _ => {}
            }
        }
        let member = Member {
            path,
            kind: MemberKind::File(attr.kind),
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            mtime: attr.mtime,
            size: if attr.kind == FileKind::Regular { attr.size } else { 0 },
            link,
            rdev: if matches!(attr.kind, FileKind::Char | FileKind::Block) { attr.rdev } else { (0, 0) },
            xattrs: self.xattrs_of(object)?.into_iter().filter(|(key, _)| is_for_layers(key)).collect(),
            extents: None,
        };
        Ok((member, data))
    }

    fn refuse_metacopy(&self, dir: &Arc<LayerDir>, name: &OsStr) -> Result<()> {
        let marks = self.ask("listxattr", dir, name, |_, fd| self.namespace.marks(fd, name))?;
        if marks.metacopy || marks.foreign {
            let path = self.real_path(dir, name);
            let reason = "has its data in another layer (metacopy=on); write to it, or mount without metacopy";
            return Err(Error::image(path.display(), reason));
        }
        Ok(())
    }

    fn examine(&self, dir: &Arc<LayerDir>, name: &OsStr) -> Result<Found> {
        self.lowers.examine(dir, name, Below::Something).map_err(|error| self.told(dir, name, error))
    }

    fn hides_by_name(&self, dir: &Arc<LayerDir>, name: &OsStr) -> Result<bool> {
        self.lowers.hides_by_name(dir, name).map_err(|error| self.told(dir, name, error))
    }

    /// Asks the layer of `dir` about `name` in it, by a descriptor of `dir`.
    fn ask<T>(
        &self,
        what: &str,
        dir: &Arc<LayerDir>,
        name: &OsStr,
        call: impl FnOnce(&Layer, BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> Result<T> {
        let failed = |errno: Errno| self.failed(what, dir, name, errno);
        let answer = self.lowers.with_fd(dir, |fd| Ok(call(self.lowers.layer(dir), fd)));
        answer.map_err(|error| self.told(dir, name, error))?.map_err(failed)
    }

    /// Returns an error with where on the disk it has happened: the layer's directory is called by its digest.
    fn told(&self, dir: &LayerDir, name: impl AsRef<OsStr>, error: Error) -> Error {
        match error {
            Error::Call { call, errno, .. } => self.failed(call, dir, name.as_ref(), errno),
            other => other,
        }
    }

    fn failed(&self, call: &str, dir: &LayerDir, name: &OsStr, errno: Errno) -> Error {
        Error::image_io(format!("{call}({})", self.real_path(dir, name).display()), &errno.into())
    }

    /// Returns where on the disk `name` in `dir` is, for messages.
    fn real_path(&self, dir: &LayerDir, name: impl AsRef<OsStr>) -> PathBuf {
        let below = dir.components().into_iter().chain([name.as_ref().to_owned()]).filter(|name| !name.is_empty());
        below.fold(self.lowers.layer(dir).path.clone(), |path, name| path.join(name))
    }
}

/// Opens what `seen`, opened with O_PATH, is for reading; `None` for what is no regular file.
pub fn open_regular(seen: &OwnedFd) -> rustix::io::Result<Option<File>> {
    if FileType::from_raw_mode(rustix::fs::fstat(seen)?.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    let open = |flags| rustix::fs::open(proc_path(seen), flags, Mode::empty());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = match open(flags | OFlags::NOATIME) {
        // Only the owner may.
        Err(Errno::PERM) => open(flags),
        done => done,
    };
    opened.map(|file| Some(file.into()))
}

/// Returns whether the xattr `key` of a tree can be in a layer: one that an overlay would take for its own cannot, nor can one
/// that pax records have no way to write.
fn is_for_layers(key: &OsStr) -> bool {
    let right = overlay::view(key) == View::Same && !key.as_bytes().contains(&b'=');
    if !right {
        log::warn!("the xattr {key:?} is left out of the layer");
    }
    right
}

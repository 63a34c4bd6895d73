//! From the tar of a layer to a tree in overlay format.
//!
//! A layer is unpacked by itself into an empty directory, so whatever it holds is its own: a mark that something is removed
//! is about the layers below, wherever in the tar it stands. What a member says is done as containers/storage does it, with
//! two differences: paths are resolved inside of the tree by this process (`tree`), and xattrs of the overlay are left out.
//!
//! Where a hard link leads to a file that only lower layers have, the unpacking says so ([`Outcome::borrowed`]).

mod borrow;
pub mod keep;
mod notes;
pub(super) mod path;
mod tree;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, OFlags};
use rustix::io::Errno;

use super::digest::invalid;
use super::pipe::drain;
use super::tar::read::Members;
use super::tar::{Member, MemberKind};
use crate::layer::attr::FileKind;
use crate::sys::writeback;
pub use borrow::borrow;
use keep::Keep;
use path::Entry;
use tree::{Dir, Missing, Standing, Tree};

/// From how many bytes on a file begins to be written to the disk while the next members come.
const LARGE: u64 = 1 << 20;

/// What became of a layer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// How many members there were.
    pub members: u64,
    /// Whether one of them was the root; else it is 0755 and root's, and says nothing of those below.
    pub says_root: bool,
    /// The bytes of its regular files, holes included.
    pub bytes: u64,
    /// How many xattrs were left out: those of the overlay, and those that this user may not set.
    pub xattrs_left_out: u64,
    /// How many devices were left out, which nobody can make in a user namespace.
    pub devices_left_out: u64,
    /// Hard links to files of lower layers: the path in the layer, and that of the file.
    pub borrowed: Vec<Borrowed>,
}

/// A hard link to a file that only lower layers have. Paths are without what means nothing in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Borrowed {
    /// Its path in the layer.
    pub path: Vec<u8>,
    /// The path of the file that it leads to.
    pub target: Vec<u8>,
}

/// Unpacks the tar `stream` into the empty directory `root`.
///
/// Errors: `InvalidData` for what no layer may hold, with the member that does; and the system's.
pub fn unpack(stream: impl BufRead, root: OwnedFd, keep: Keep) -> io::Result<Outcome> {
    let mut unpacking = Unpacking::new(root, keep);
    unpacking.tree.dress_root(&Member::implied())?;
    let mut members = Members::new(stream);
    while let Some(member) = members.next_member()? {
        unpacking.outcome.members += 1;
        unpacking.take(&member, &mut members.data()).map_err(|error| named(&member.path, &error))?;
    }
    // What follows the end belongs to the layer's digest.
    drain(&mut members.into_inner())?;
    let borrowed = std::mem::take(&mut unpacking.tree.notes.borrowed).into_iter();
    let borrowed = borrowed.map(|(path, target)| Borrowed { path: path.into_os_string().into_vec(), target }).collect();
    unpacking.tree.finish()?;
    Ok(Outcome { borrowed, ..unpacking.outcome })
}

/// Says which member it is that `error` is about.
fn named(path: &[u8], error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("member {:?}: {error}", String::from_utf8_lossy(path)))
}

struct Unpacking {
    tree: Tree,
    outcome: Outcome,
}

impl Unpacking {
    fn new(root: OwnedFd, keep: Keep) -> Self {
        Self { tree: Tree::new(root, keep), outcome: Outcome::default() }
    }

    fn take(&mut self, member: &Member, data: &mut dyn BufRead) -> io::Result<()> {
        match path::entry(&member.path)? {
            Entry::Skipped => Ok(()),
            Entry::Root if member.kind == MemberKind::File(FileKind::Directory) => {
                let left_out = self.tree.dress_root(member)?;
                self.count_left_out(left_out);
                self.outcome.says_root = true;
                Ok(())
            }
            Entry::Root => Err(invalid("is the root, and no directory")),
            Entry::Opaque(parts) => {
                let dir = self.tree.dir(&parts, Missing::Make)?;
                self.tree.notes.make_opaque(&dir.path)
            }
            Entry::Whiteout(parts, name) => {
                let dir = self.tree.dir(&parts, Missing::Make)?;
                self.tree.notes.whiteout(dir.path.join(OsStr::from_bytes(name)))
            }
            Entry::Name(parts, name) => {
                let dir = self.tree.dir(&parts, Missing::Make)?;
                match member.kind {
                    MemberKind::HardLink => self.link(member, &dir, OsStr::from_bytes(name)),
                    MemberKind::File(kind) => self.make(member, kind, data, &dir, OsStr::from_bytes(name)),
                }
            }
        }
    }

    /// Makes what `member` says under `name` in `dir`.
    fn make(
        &mut self,
        member: &Member,
        kind: FileKind,
        data: &mut dyn BufRead,
        dir: &Dir,
        name: &OsStr,
    ) -> io::Result<()> {
        let left_out = match kind {
            FileKind::Directory => self.tree.put_dir(dir, name, member)?,
            FileKind::Regular => self.file(member, data, dir, name)?,
            _ => {
                let keep = self.tree.keep;
                match self.tree.replace(dir, name, || keep.make_special(dir.fd.as_fd(), name, kind, member)) {
                    Ok(()) => keep.dress(dir.fd.as_fd(), name, kind, member)?,
                    Err(error) if is_device(kind) && error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {
                        log::warn!("{}: is left out: {error}", String::from_utf8_lossy(&member.path));
                        self.outcome.devices_left_out += 1;
                        0
                    }
                    Err(error) if is_device(kind) && member.rdev == (0, 0) => {
                        return Err(invalid(format!("is the device 0:0, which marks what is removed ({error})")));
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        self.count_left_out(left_out);
        Ok(())
    }

    fn count_left_out(&mut self, xattrs: usize) {
        self.outcome.xattrs_left_out += xattrs as u64;
    }

    /// Makes a regular file, and returns how many xattrs were left out.
    fn file(&mut self, member: &Member, data: &mut dyn BufRead, dir: &Dir, name: &OsStr) -> io::Result<usize> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = self.tree.keep.mode_to_make(member);
        let fd = self.tree.replace(dir, name, || rustix::fs::openat(&dir.fd, name, flags, mode))?;
        let file = File::from(fd);
        match &member.extents {
            None => copy(data, member.size, &mut &file)?,
            Some(extents) => {
                for &(offset, length) in extents {
                    copy(data, length, &mut At { file: &file, offset })?;
                }
                file.set_len(member.size)?;
            }
        }
        if member.size >= LARGE {
            let _ = writeback::begin(file.as_fd()); // The sync of the whole tree tells what is wrong.
        }
        self.outcome.bytes = self.outcome.bytes.saturating_add(member.size);
        Ok(self.tree.keep.dress(file.as_fd(), OsStr::new(""), FileKind::Regular, member)?)
    }

    /// Makes one more name for a file of the layer, or notes that only lower layers can have it.
    fn link(&mut self, member: &Member, dir: &Dir, name: &OsStr) -> io::Result<()> {
        let (parts, target) = path::target(&member.link)?;
        let from = match self.tree.dir(&parts, Missing::Refuse) {
            Ok(from) => Some(from),
            Err(error) if is(&error, Errno::NOENT) => None,
            Err(error) => return Err(error),
        };
        let target_name = OsStr::from_bytes(target);
        let standing = from.as_ref().map_or(Ok(Standing::Nothing), |from| self.tree.standing(from, target_name))?;
        match (standing, &from) {
            (Standing::Directory, _) => Err(invalid("is a link to a directory")),
            (Standing::Link(_) | Standing::File, Some(from)) => {
                if (&from.path, target_name) == (&dir.path, name) {
                    return Ok(());
                }
                let (from, to) = (&from.fd, &dir.fd);
                self.tree.replace(dir, name, || rustix::fs::linkat(from, target_name, to, name, AtFlags::empty()))
            }
            _ => {
                let path = dir.path.join(name);
                let target = path::joined(&parts, target);
                if target == path.as_os_str().as_bytes() {
                    return Err(invalid("is a link to itself"));
                }
                // A link to what is borrowed is a link to what that leads to.
                let first = from.and_then(|from| self.tree.notes.borrowed.get(&from.path.join(target_name)).cloned());
                if !matches!(self.tree.standing(dir, name)?, Standing::Nothing) {
                    self.tree.remove(dir, name)?;
                }
                self.tree.notes.borrow(path, first.unwrap_or(target))
            }
        }
    }
}

/// Copies the next `length` bytes of a member's data, out of the buffer that they have come in.
fn copy(data: &mut dyn BufRead, length: u64, to: &mut impl Write) -> io::Result<()> {
    let mut left = length;
    while left > 0 {
        let bytes = match data.fill_buf() {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        if most == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "is cut off"));
        }
        to.write_all(bytes.get(..most).unwrap_or_default())?;
        data.consume(most);
        left -= most as u64;
    }
    Ok(())
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

fn is_device(kind: FileKind) -> bool {
    matches!(kind, FileKind::Char | FileKind::Block)
}

/// A place in a file that is written to.
struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl Write for At<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.file.write_at(bytes, self.offset)?;
        self.offset += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

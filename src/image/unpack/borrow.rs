//! Hard links of a layer to files that only lower layers have: the layer gets a copy.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;

use super::super::stack::{Object, Part, Stack};
use super::super::tar::{Member, MemberKind};
use super::keep::{self, Keep};
use super::tree::{Missing, Standing};
use super::{Borrowed, Unpacking, is, named, path};
use crate::error::{Error, Result};
use crate::layer::attr::Attr;
use crate::layer::name::Name;

/// How much of a file is copied at once.
const BUFFER: usize = 256 * 1024;

/// Puts copies of what `borrowed` lead to into the tree of a layer; `below` are the trees of the lower ones, topmost first.
///
/// Errors: [`crate::error::ErrorKind::Image`] where no lower layer shows such a file.
pub fn borrow(tree: &Path, borrowed: &[Borrowed], below: &[Part<'_>], keep: Keep) -> Result<()> {
    let failed = |error: io::Error| Error::image_io("tree", &error);
    let stack = Stack::open(below.iter().copied(), keep)?;
    let root = OwnedFd::from(File::open(tree).map_err(failed)?);
    let mut unpacking = Unpacking::new(root, keep);
    // Two names of one file stay that.
    let mut first: HashMap<&[u8], &[u8]> = HashMap::new();
    for Borrowed { path, target } in borrowed {
        let failed = |error: io::Error| Error::image_io("tar", &named(path, &error));
        // What the layer itself has got since is nearer than what is below.
        let own = unpacking.has_file(target).map_err(failed)?.then_some(target.as_slice());
        match own.or(first.get(target.as_slice()).copied()) {
            Some(other) => unpacking.put(&link(path, other), None).map_err(failed)?,
            None => {
                let (member, data) = find(&stack, path, target)?;
                unpacking.put(&member, data).map_err(failed)?;
                first.insert(target, path);
            }
        }
    }
    unpacking.tree.finish().map_err(failed)
}

impl Unpacking {
    /// Returns whether the tree has at `path` something that is no directory.
    fn has_file(&mut self, path: &[u8]) -> io::Result<bool> {
        let (parts, name) = path::target(path)?;
        match self.tree.dir(&parts, Missing::Refuse) {
            Ok(dir) => {
                let standing = self.tree.standing(&dir, OsStr::from_bytes(name))?;
                Ok(matches!(standing, Standing::File | Standing::Link(_)))
            }
            Err(error) if is(&error, Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes `member`; the directory that it is in keeps its times.
    fn put(&mut self, member: &Member, data: Option<File>) -> io::Result<()> {
        let (parts, _) = path::target(&member.path)?;
        let dir = self.tree.dir(&parts, Missing::Make)?;
        let before = Attr::from(&rustix::fs::statx(&dir.fd, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?);
        match data {
            Some(data) => self.take(member, &mut BufReader::with_capacity(BUFFER, data))?,
            None => self.take(member, &mut io::empty())?,
        }
        Ok(keep::set_times(dir.fd.as_fd(), OsStr::new(""), before.mtime)?)
    }
}

/// A link from `path` to `target`.
fn link(path: &[u8], target: &[u8]) -> Member {
    Member { path: path.into(), kind: MemberKind::HardLink, link: target.into(), ..Member::implied() }
}

/// Finds the file at `target`, as the member that it would be at `path`, and its data.
fn find(stack: &Stack, path: &[u8], target: &[u8]) -> Result<(Member, Option<File>)> {
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let absent = || {
        let reason = format!("is a link to {:?}, which neither this layer nor those below have", shown(target));
        Error::image(format!("member {:?}", shown(path)), reason)
    };
    let mut names = Vec::new();
    for part in target.split(|byte| *byte == b'/') {
        let name = Name::new(OsStr::from_bytes(part)).map_err(|_| absent())?;
        names.push(name.as_os_str());
    }
    let Some(object) = stack.at(&names)? else { return Err(absent()) };
    match object {
        Object::File(..) => stack.to_member(path.into(), &object),
        Object::Dir(..) => Err(absent()),
    }
}

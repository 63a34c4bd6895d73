//! Directories of the host as they are, to be copied: no name in them is a mark, and no xattr an overlay's.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::extract::Tree;
use super::remove::DIR;
use super::stack::open_regular;
use super::tar::{Member, MemberKind};
use crate::error::{Error, Result};
use crate::layer::attr::{FileKind, Timestamp};
use crate::sys::xattr;

/// The longest value of an xattr (XATTR_SIZE_MAX).
const XATTR_MAX: usize = 64 << 10;

/// A file of the host, by its name in an open directory.
#[derive(Debug, Clone)]
pub struct HostFile {
    dir: Arc<OwnedFd>,
    name: OsString,
    stat: Stat,
}

impl HostFile {
    /// Finds `name` in the directory `dir`; `.` is that itself. Links are not followed.
    pub fn open(dir: &Path, name: &OsStr) -> Result<Self> {
        let failed = |errno: Errno| Error::image_io(dir.join(name).display(), &errno.into());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(dir, flags, Mode::empty()).map_err(failed)?;
        Self::at(Arc::new(opened), name).map_err(failed)
    }

    fn at(dir: Arc<OwnedFd>, name: &OsStr) -> rustix::io::Result<Self> {
        let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(Self { dir, name: name.to_owned(), stat })
    }

    fn failed(&self, errno: Errno) -> Error {
        Error::image_io(self.name.display(), &errno.into())
    }
}

/// The host.
#[derive(Debug, Clone, Copy)]
pub struct Host;

impl Tree for Host {
    type Node = HostFile;

    fn kind(&self, node: &HostFile) -> FileKind {
        FileKind::from_mode(node.stat.st_mode)
    }

    fn member(&self, node: &HostFile, path: Vec<u8>) -> Result<(Member, Option<File>)> {
        let failed = |errno| node.failed(errno);
        let (kind, stat) = (self.kind(node), &node.stat);
        let (mut link, mut data) = (Vec::new(), None);
        match kind {
            FileKind::Symlink => {
                link = rustix::fs::readlinkat(&node.dir, &node.name, Vec::new()).map_err(failed)?.into_bytes();
            }
            FileKind::Regular => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let seen = rustix::fs::openat(&node.dir, &node.name, flags, Mode::empty()).map_err(failed)?;
                data = open_regular(&seen).map_err(failed)?;
                if data.is_none() {
                    return Err(Error::image(node.name.display(), "is no regular file any more"));
                }
            }
            _ => {}
        }
        let mut xattrs = Vec::new();
        // `.` is no name that an xattr could be asked of.
        let name = if node.name == "." { OsStr::new("") } else { node.name.as_os_str() };
        for key in xattr::list(node.dir.as_fd(), name).unwrap_or_default() {
            let mut value = vec![0; XATTR_MAX];
            let len = match xattr::get(node.dir.as_fd(), name, &key, &mut value) {
                Ok(len) => len,
                // It is gone, or not this user's to read.
                Err(Errno::NODATA | Errno::PERM | Errno::ACCESS) => continue,
                Err(errno) => return Err(failed(errno)),
            };
            value.truncate(len);
            xattrs.push((key, value));
        }
        let rdev = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let mtime = Timestamp { secs: stat.st_mtime, nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or_default() };
        let member = Member {
            path,
            kind: MemberKind::File(kind),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime,
            size: u64::try_from(stat.st_size).unwrap_or_default(),
            link,
            rdev,
            xattrs,
            extents: None,
        };
        Ok((member, data))
    }

    fn list(&self, node: &HostFile) -> Result<Vec<(OsString, HostFile)>> {
        let failed = |errno| node.failed(errno);
        let opened = Arc::new(rustix::fs::openat(&node.dir, &node.name, DIR, Mode::empty()).map_err(failed)?);
        let mut list = Vec::new();
        for entry in Dir::read_from(&opened).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                list.push((name.to_owned(), HostFile::at(Arc::clone(&opened), name).map_err(failed)?));
            }
        }
        list.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(list)
    }
}

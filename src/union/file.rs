//! The data of files: found by inode through a bounded cache of descriptors, no handle needed.

use std::ffi::OsStr;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::copy_up::Data;
use super::inode::{DataPlace, Inode, NodeId};
use super::kept::Access;
use super::{Caller, Fh, FileKind, SetAttr, SetTime, Union, quota};
use crate::error::{Error, Result};
use crate::layer::dir::LayerDir;
use crate::sys::{ioctl, proc_path};

/// What lseek(2) looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// The next data at or after this offset.
    Data(u64),
    /// The next hole at or after this offset.
    Hole(u64),
}

/// When what a page cache has kept was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// When it comes here, as far as anybody can tell.
    Now,
    /// Before: whoever kept it sets the time of the file to when that was.
    Before,
}

impl Union {
    /// Reads up to `buffer.len()` bytes of `id` at `offset`; returns how many there were.
    pub fn read(&self, id: NodeId, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let inode = self.inode(id)?;
        let file = self.data_file(&inode, Access::Read)?;
        self.read_at(file.as_fd(), offset, buffer)
    }

    /// Reads from a file of one of the layers.
    pub(super) fn read_at(&self, file: BorrowedFd<'_>, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        read_at(file, offset, buffer, self.paged)
    }

    /// Writes `data` to `id` at `offset`; returns how many bytes were written.
    ///
    /// `unprivileged` is the caller whose write takes the set-user-id and set-group-id bits, if it does.
    pub fn write(&self, id: NodeId, offset: u64, data: &[u8], unprivileged: Option<Caller>) -> Result<usize> {
        let inode = self.inode(id)?;
        self.copy_up(&inode, Data::Copy)?;
        let file = self.data_file(&inode, Access::Write)?;
        // First, as the kernel does: should this be cut short, nobody gets rights by what was written.
        self.drop_capabilities(file.as_fd())?;
        if unprivileged.is_some() {
            self.drop_privileges(file.as_fd())?;
        }
        self.write_at(&inode, file.as_fd(), offset, data)
    }

    /// Writes what a page cache has kept of `id`; returns how many bytes were written.
    ///
    /// Nobody in particular writes it, and whoever did has lost what gives rights before: so nothing that does is taken.
    pub fn write_back(&self, id: NodeId, offset: u64, data: &[u8], written: Written) -> Result<usize> {
        let inode = self.inode(id)?;
        self.copy_up(&inode, Data::Copy)?;
        let file = self.data_file(&inode, Access::Write)?;
        let known = if inode.appends() { self.known_part(&inode, file.as_fd(), offset, data)? } else { 0 };
        let new = data.get(known..).unwrap_or_default();
        let write = || {
            self.keeping_capabilities(&inode, file.as_fd(), || {
                self.write_at(&inode, file.as_fd(), offset + known as u64, new)
            })
        };
        // Of a file that takes writes at its end alone nobody may set the times.
        let len = if written == Written::Now || inode.appends() {
            write()
        } else {
            let _times = self.hold_times(&inode);
            let mtime = Some(SetTime::To(self.stat_open(file.as_fd())?.mtime));
            let len = write();
            self.set_times(file.as_fd(), SetAttr { mtime, ..SetAttr::default() })?;
            len
        };
        len.map(|len| known + len)
    }

    /// Returns whether `id` is known as a file that takes writes at its end alone.
    pub fn takes_appends_alone(&self, id: NodeId) -> bool {
        self.inode(id).is_ok_and(|inode| inode.appends())
    }

    /// Returns how much of `data`, kept at `offset` of a file that takes writes at its end alone, is in the file: pages are
    /// kept whole. Errors: EPERM where it would change that.
    fn known_part(&self, inode: &Inode, file: BorrowedFd<'_>, offset: u64, data: &[u8]) -> Result<usize> {
        let size = rustix::fs::fstat(file).map_err(Error::Refused)?.st_size as u64;
        let mut there = vec![0; data.len().min(usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX))];
        let read = self.read_at(file, offset, &mut there)?;
        if data.get(..read) == there.get(..read) {
            Ok(read)
        } else {
            Err(self.upper_error("pwrite", inode, Errno::PERM))
        }
    }

    /// Writes all of `data` through `file`, unless an error follows what was written before.
    pub(super) fn write_at(&self, inode: &Inode, file: BorrowedFd<'_>, offset: u64, data: &[u8]) -> Result<usize> {
        // The kernel would write at the end whatever the offset, and say that all is well.
        if inode.appends() && rustix::fs::fstat(file).map_err(Error::Refused)?.st_size as u64 != offset {
            return Err(self.upper_error("pwrite", inode, Errno::PERM));
        }
        let Some(quota) = self.quota.as_ref().filter(|_| !data.is_empty()) else {
            return self.write_all(inode, file, offset, data);
        };
        let range = offset..offset.saturating_add(data.len() as u64);
        let room = quota.reserve_range(file, range);
        let (room, end) = room.map_err(|e| self.upper_error("pwrite", inode, e))?;
        let fits = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX);
        let written = self.write_all(inode, file, offset, data.get(..fits).unwrap_or(data));
        room.settle(|| quota::look(file));
        written
    }

    fn write_all(&self, inode: &Inode, file: BorrowedFd<'_>, offset: u64, data: &[u8]) -> Result<usize> {
        let mut written = 0;
        while written < data.len() {
            let rest = data.get(written..).unwrap_or_default();
            match rustix::io::pwrite(file, rest, offset + written as u64) {
                Ok(0) => break,
                Ok(n) => written += n,
                Err(Errno::INTR) => {}
                Err(_) if written > 0 => break,
                Err(errno) => return Err(self.upper_error("pwrite", inode, errno)),
            }
        }
        Ok(written)
    }

    /// Writes what upper holds of `id` to the disk; a file of a lower layer is there already.
    pub fn fsync(&self, id: NodeId, fh: Option<Fh>, data_only: bool) -> Result<()> {
        let inode = self.inode(id)?;
        if !inode.is_upper() || !self.writable()?.durability.waits() {
            return Ok(());
        }
        // Of a metacopy it is the metadata that is to be kept; its data is on the disk, below.
        let file = match self.data_below(&inode)? {
            Some(_) => Arc::new(self.open_object(&inode, OFlags::RDONLY)?),
            None => self.file_of(&inode, fh, Access::Read)?,
        };
        let synced = if data_only { rustix::fs::fdatasync(&*file) } else { rustix::fs::fsync(&*file) };
        synced.map_err(|e| self.upper_error("fsync", &inode, e))
    }

    /// Writes what upper holds of the directory `id` to the disk; a directory of a lower layer is there already.
    pub fn fsync_dir(&self, id: NodeId) -> Result<()> {
        let inode = self.directory(id)?;
        let Some(upper) = self.upper.as_ref().filter(|upper| upper.durability.waits() && inode.is_upper()) else {
            return Ok(());
        };
        let dir = self.upper_dir(&inode)?;
        let synced = upper.layer.open_listing(dir.as_fd()).and_then(rustix::fs::fsync);
        synced.map_err(|e| upper.layer.error("fsync", OsStr::new("."), e))
    }

    /// Allocates or frees space of `id` for `caller`, as fallocate(2) does with the flags `mode`.
    pub fn fallocate(&self, id: NodeId, fh: Option<Fh>, mode: u32, range: Range<u64>, caller: Caller) -> Result<()> {
        let inode = self.inode(id)?;
        self.copy_up(&inode, Data::Copy)?;
        let file = self.file_of(&inode, fh, Access::Write)?;
        let len = range.end.saturating_sub(range.start);
        self.drop_privileges_of(caller, file.as_fd())?;
        let flags = FallocateFlags::from_bits_retain(mode);
        let takes = !flags.contains(FallocateFlags::PUNCH_HOLE) && !flags.contains(FallocateFlags::COLLAPSE_RANGE);
        let room = match self.quota.as_ref().filter(|_| takes) {
            Some(quota) => {
                let (room, end) = quota.reserve_range(file.as_fd(), range.clone()).map_err(Error::Refused)?;
                if end < range.end {
                    return Err(self.upper_error("fallocate", &inode, Errno::NOSPC));
                }
                Some(room)
            }
            None => None,
        };
        let done = rustix::fs::fallocate(&*file, flags, range.start, len);
        self.charge(&[&inode]);
        drop(room);
        done.map_err(|e| self.upper_error("fallocate", &inode, e))
    }

    /// Finds data or a hole in `id`. Errors: ENXIO past the end.
    pub fn seek(&self, id: NodeId, fh: Option<Fh>, seek: Seek) -> Result<u64> {
        let inode = self.inode(id)?;
        let file = self.file_of(&inode, fh, Access::Read)?;
        let from = match seek {
            Seek::Data(offset) => SeekFrom::Data(offset),
            Seek::Hole(offset) => SeekFrom::Hole(offset),
        };
        rustix::fs::seek(&*file, from).map_err(Error::Refused)
    }

    /// Copies `len` bytes from one file to another for `caller`; returns how many were copied.
    ///
    /// Errors: EXDEV where the kernel copies between these files only through memory, which the caller then does.
    pub fn copy_range(
        &self,
        from: (NodeId, Option<Fh>, u64),
        to: (NodeId, Option<Fh>, u64),
        len: u64,
        caller: Caller,
    ) -> Result<usize> {
        let (source, target) = (self.inode(from.0)?, self.inode(to.0)?);
        self.copy_up(&target, Data::Copy)?;
        let input = self.file_of(&source, from.1, Access::Read)?;
        let output = self.file_of(&target, to.1, Access::Write)?;
        let (mut read, mut write) = (from.2, to.2);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.drop_privileges_of(caller, output.as_fd())?;
        let mut len = len;
        let room = match &self.quota {
            Some(quota) => {
                let range = to.2..to.2.saturating_add(len as u64);
                let (room, end) = quota.reserve_range(output.as_fd(), range).map_err(Error::Refused)?;
                len = len.min(usize::try_from(end.saturating_sub(to.2)).unwrap_or(usize::MAX));
                Some(room)
            }
            None => None,
        };
        let copied = rustix::fs::copy_file_range(&*input, Some(&mut read), &*output, Some(&mut write), len);
        if let Some(room) = room {
            room.settle(|| quota::look(output.as_fd()));
        }
        copied.map_err(Error::Refused)
    }

    /// Runs an ioctl that reads or sets the flags or version of `id`; `input` is its argument.
    ///
    /// Errors: ENOTTY for any other ioctl.
    pub fn ioctl(&self, id: NodeId, request: u32, input: &[u8]) -> Result<Vec<u8>> {
        let inode = self.inode(id)?;
        // A device, pipe or socket would have to be opened, which is never for the union to do.
        if !matches!(inode.kind, FileKind::Regular | FileKind::Directory) {
            return Err(Error::Refused(Errno::NOTTY));
        }
        let sets = ioctl::sets_flags(request);
        if sets {
            self.copy_up(&inode, Data::Copy)?;
        }
        let flags = if inode.dir().is_some() { OFlags::RDONLY | OFlags::DIRECTORY } else { OFlags::RDONLY };
        let file = self.open_object(&inode, flags | OFlags::NONBLOCK)?;
        let answer = ioctl::file_attributes(file.as_fd(), request, input).map_err(Error::Refused)?;
        if sets {
            // Whether a file is immutable xfs, btrfs and tmpfs ask at open(2) alone; whoever opens it at the moment opens it
            // again.
            self.drop_place(Some(inode.relocate(|_| {})));
            self.files.close(inode.serial);
        }
        Ok(answer)
    }

    /// Returns the descriptor of a handle, or one for the data of `inode` where there is no handle.
    pub(super) fn file_of(&self, inode: &Arc<Inode>, fh: Option<Fh>, access: Access) -> Result<Arc<OwnedFd>> {
        match fh {
            Some(fh) => self.handle_file(fh),
            None => self.data_file(inode, access),
        }
    }

    /// Returns whether a change of `id` copies data up first, and that takes long.
    pub fn would_copy(&self, id: NodeId) -> bool {
        let below = |inode: &Inode| !inode.is_upper() || self.metacopy && inode.data_place() != DataPlace::Here;
        self.inode(id).is_ok_and(|inode| {
            inode.kind == FileKind::Regular
                && below(&inode)
                && (self.syncs() || self.stat(&inode).is_ok_and(|attr| self.is_long_to_copy(attr.size)))
        })
    }

    /// Returns whether copying a file of so many bytes up takes long: it does where the copy is synced, and else where it
    /// is of more bytes than a read asks for at once.
    pub(super) fn is_long_to_copy(&self, size: u64) -> bool {
        const SHORT: u64 = 1 << 17;
        self.syncs() || size > SHORT
    }

    fn syncs(&self) -> bool {
        self.upper.as_ref().is_some_and(|upper| upper.durability.waits())
    }

    /// Returns a descriptor for the data of `inode`; for writing, the caller has copied it up.
    pub(super) fn data_file(&self, inode: &Arc<Inode>, access: Access) -> Result<Arc<OwnedFd>> {
        check_regular(inode)?;
        self.files.get_or_open(inode, access, || match access {
            Access::Write => self.open_for_writing(inode),
            Access::Read => Ok((self.open_for_reading(inode)?, true)),
        })
    }

    /// Opens the data of the regular file `id` for reading where a lower layer has it; `None` where upper does.
    ///
    /// Errors: EISDIR for a directory, EINVAL for anything else that is no regular file.
    pub fn open_lower(&self, id: NodeId) -> Result<Option<OwnedFd>> {
        let inode = self.inode(id)?;
        check_regular(&inode)?;
        let (_, version) = inode.place();
        if inode.is_upper() && self.data_below(&inode)?.is_none() {
            return Ok(None);
        }
        let file = self.open_for_reading(&inode)?;
        // It may have been copied up meanwhile.
        Ok(inode.is_at(version).then_some(file))
    }

    /// Opens the file that holds the data of `inode`; for writing, the caller has copied it up.
    pub(super) fn open_data(&self, inode: &Arc<Inode>, access: Access) -> Result<OwnedFd> {
        match access {
            Access::Read => self.open_for_reading(inode),
            Access::Write => self.open_for_writing(inode).map(|(fd, _)| fd),
        }
    }

    fn open_for_reading(&self, inode: &Arc<Inode>) -> Result<OwnedFd> {
        if let Some((dir, name)) = self.data_below(inode)? {
            return self.open_below(&dir, &name);
        }
        self.open_object(inode, OFlags::RDONLY)
    }

    /// Opens for writing; returns whether the descriptor can be read from, too.
    fn open_for_writing(&self, inode: &Arc<Inode>) -> Result<(OwnedFd, bool)> {
        let opened = self.open_object(inode, OFlags::RDWR);
        let appends = matches!(opened, Err(Error::Call { errno: Errno::PERM, .. }));
        inode.set_appends(appends);
        match opened {
            Err(_) if appends => self.open_object(inode, OFlags::RDWR | OFlags::APPEND).map(|fd| (fd, true)),
            // One that its owner may write and not read.
            Err(Error::Call { errno: Errno::ACCESS, .. }) => {
                self.open_object(inode, OFlags::WRONLY).map(|fd| (fd, false))
            }
            done => done.map(|fd| (fd, true)),
        }
    }

    pub(super) fn open_below(&self, dir: &Arc<LayerDir>, name: &OsStr) -> Result<OwnedFd> {
        let layer = self.lowers.layer(dir);
        self.lowers.with_fd(dir, |fd| {
            layer.open_file_noatime(fd, name, OFlags::RDONLY).map_err(|e| layer.error("openat", name, e))
        })
    }

    /// Opens the object of `inode` itself.
    pub(super) fn open_object(&self, inode: &Arc<Inode>, flags: OFlags) -> Result<OwnedFd> {
        let quiet = !self.atime || !inode.is_upper();
        self.with_object(inode, |layer, dir, name| {
            if name.is_empty() {
                let path = proc_path(dir);
                let open = |flags| rustix::fs::open(&path, flags | OFlags::CLOEXEC, Mode::empty());
                let opened = match open(if quiet { flags | OFlags::NOATIME } else { flags }) {
                    Err(Errno::PERM) if quiet => open(flags),
                    done => done,
                };
                return opened.map_err(|e| layer.error("open", OsStr::new(&path), e));
            }
            let opened = match (inode.kind == FileKind::Regular, quiet) {
                (true, true) => layer.open_file_noatime(dir, name, flags),
                (true, false) => layer.open_file(dir, name, flags),
                (false, true) => layer.open_noatime(dir, name, flags),
                (false, false) => layer.open(dir, name, flags),
            };
            opened.map_err(|e| layer.error("openat", name, e))
        })
    }
}

/// Errors: EISDIR for a directory, EINVAL for anything else that holds no data.
pub(super) fn check_regular(inode: &Inode) -> Result<()> {
    match inode.kind {
        FileKind::Regular => Ok(()),
        FileKind::Directory => Err(Error::Refused(Errno::ISDIR)),
        _ => Err(Error::Refused(Errno::INVAL)),
    }
}

/// Fills `buffer` from `file` at `offset`, short only at the end of the file: to who asked, a short answer means that.
fn read_at(file: BorrowedFd<'_>, offset: u64, buffer: &mut [u8], paged: bool) -> Result<usize> {
    /// The least that a page cache keeps of a file, in bytes.
    const PAGE: u64 = 4096;
    let mut read = 0;
    while read < buffer.len() {
        let rest = buffer.get_mut(read..).unwrap_or_default();
        match rustix::io::pread(file, rest, offset + read as u64) {
            Ok(0) => break,
            Ok(n) => {
                read += n;
                // The file's end, without asking again: what stops a read before that, stops it between two pages.
                if paged && !(offset + read as u64).is_multiple_of(PAGE) {
                    break;
                }
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::Refused(errno)),
        }
    }
    Ok(read)
}

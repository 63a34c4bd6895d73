//! Open handles: a descriptor that stays valid whatever becomes of the file's name and permissions.
//!
//! A handle that was opened for reading while the file was in a lower layer moves on to upper's object as
//! soon as there is one, so that it sees what others write.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use parking_lot::Mutex;
use rustix::io::Errno;

use super::copy_up::Data;
use super::inode::{DataPlace, Inode, NodeId};
use super::kept::Access;
use super::{Caller, FileKind, Union};
use crate::error::{Error, Result};

/// The number of an open handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fh(pub u64);

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenFile {
    /// For reading.
    Read,
    /// For reading, to run it as a program or as the interpreter of one.
    Execute,
    /// For writing, reading included.
    Write,
    /// For writing at the end, reading included.
    Append,
    /// For writing, the old contents gone, by this caller.
    Truncate(Caller),
    /// For reading, the old contents gone, by this caller.
    Empty(Caller),
}

impl OpenFile {
    /// Returns whether the file is in upper from then on.
    pub fn changes(self) -> bool {
        !matches!(self, Self::Read | Self::Execute)
    }
}

struct Handle {
    inode: Arc<Inode>,
    access: Access,
    /// The number by which it was opened, if it was for running it.
    runs: Option<NodeId>,
    /// Rank 5 (leaf). No syscall while held.
    file: Mutex<Opened>,
}

/// The file of a handle.
#[derive(Clone)]
struct Opened {
    fd: Arc<OwnedFd>,
    /// Whether it is of upper's object, for good.
    upper: bool,
    /// The inode's version before it was opened.
    version: u32,
}

/// Open handles by number; the map's shards are rank 5 (leaf).
#[derive(Default)]
pub(super) struct Handles {
    open: DashMap<u64, Arc<Handle>>,
    next: AtomicU64,
}

impl Handles {
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    fn add(&self, handle: Handle) -> Fh {
        // From 1: a server without handles answers 0. Relaxed: only uniqueness matters.
        let fh = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.open.insert(fh, Arc::new(handle));
        Fh(fh)
    }
}

impl Union {
    /// Opens the regular file `id`; one that is opened for writing is copied up first.
    ///
    /// Errors: EISDIR for a directory, ELOOP for a symbolic link, ENXIO for a device, pipe or socket, which are the
    /// caller's to open; EPERM for an append-only file, unless to append; EROFS, EACCES, ENOSPC, ETXTBSY.
    pub fn open(&self, id: NodeId, how: OpenFile) -> Result<Fh> {
        let inode = self.inode(id)?;
        match inode.kind {
            FileKind::Regular => {}
            FileKind::Directory => return Err(Error::Refused(Errno::ISDIR)),
            FileKind::Symlink => return Err(Error::Refused(Errno::LOOP)),
            FileKind::Fifo | FileKind::Socket | FileKind::Char | FileKind::Block => {
                return Err(Error::Refused(Errno::NXIO));
            }
        }
        match how {
            OpenFile::Read | OpenFile::Execute => {}
            OpenFile::Write | OpenFile::Append | OpenFile::Truncate(_) => self.check_text(&inode, Some(id))?,
            // The kernel looks whether the node is being run only once the file is open, and empty.
            OpenFile::Empty(_) => self.check_text(&inode, None)?,
        }
        let access = match how {
            OpenFile::Read | OpenFile::Execute => Access::Read,
            OpenFile::Write | OpenFile::Append => {
                self.copy_up(&inode, Data::Copy)?;
                Access::Write
            }
            OpenFile::Truncate(caller) | OpenFile::Empty(caller) => {
                self.copy_up(&inode, Data::Cut(0, caller))?;
                Access::Write
            }
        };
        let (_, version) = inode.place();
        let kept = self.files.get(&inode, Access::Write);
        // Before the file is opened: a lower file must not pass for upper's because it was copied up meanwhile.
        let upper = inode.is_upper();
        let file = match kept {
            // The one that made the file: it works even where its mode forbids the owner to open it.
            Some(fd) => fd,
            None => Arc::new(self.open_data(&inode, access)?),
        };
        if how.changes() && how != OpenFile::Append && inode.appends() {
            return Err(Error::Refused(Errno::PERM));
        }
        if let OpenFile::Truncate(caller) | OpenFile::Empty(caller) = how {
            self.set_size(&inode, &*file, 0, caller)?;
        }
        // Whoever writes has had it copied up, whatever is known of the place of its data.
        let upper = access == Access::Write || upper && self.data_below(&inode)?.is_none();
        let runs = (how == OpenFile::Execute).then_some(id);
        Ok(self.handles.add(Handle { inode, access, runs, file: Mutex::new(Opened { fd: file, upper, version }) }))
    }

    /// Refuses to change the contents of `inode` while a program runs from it, as open(2) and truncate(2) say.
    ///
    /// The kernel has looked whether the node `checked` is being run; a program that was started before the file
    /// [parted](Union::part) runs from another. Whoever has just ended may still count for a moment.
    pub(super) fn check_text(&self, inode: &Arc<Inode>, checked: Option<NodeId>) -> Result<()> {
        if checked.is_some() && inode.id().0 == inode.ino.0 {
            return Ok(());
        }
        let mut running = self.handles.open.iter().filter(|handle| handle.runs.is_some() && handle.runs != checked);
        if running.any(|handle| Arc::ptr_eq(&handle.inode, inode)) {
            Err(Error::Refused(Errno::TXTBSY))
        } else {
            Ok(())
        }
    }

    /// Closes a handle.
    pub fn close(&self, fh: Fh) {
        let closed = self.handles.open.remove(&fh.0);
        drop(closed);
    }

    fn handle(&self, fh: Fh) -> Result<Arc<Handle>> {
        self.handles.open.get(&fh.0).map(|handle| handle.clone()).ok_or(Error::Refused(Errno::BADF))
    }

    /// Returns the descriptor of a handle, of upper's object once there is one.
    pub(super) fn handle_file(&self, fh: Fh) -> Result<Arc<OwnedFd>> {
        let handle = self.handle(fh)?;
        let opened = handle.file.lock().clone();
        // The data of a metacopy is below until it is filled, which is a change of version.
        if opened.upper || !handle.inode.is_upper() || handle.inode.is_at(opened.version) {
            return Ok(opened.fd);
        }
        let (_, version) = handle.inode.place();
        let fresh = Arc::new(self.open_data(&handle.inode, handle.access)?);
        let upper = handle.inode.data_place() == DataPlace::Here;
        let now = Opened { fd: fresh.clone(), upper, version };
        let old = std::mem::replace(&mut *handle.file.lock(), now);
        drop(old);
        Ok(fresh)
    }

    /// Calls `call` with the descriptor of a handle, to hand it to the kernel; the second argument says whether it
    /// is upper's object.
    pub fn with_handle<T>(&self, fh: Fh, call: impl FnOnce(BorrowedFd<'_>, bool) -> T) -> Result<T> {
        let file = self.handle_file(fh)?;
        let upper = self.handle(fh)?.file.lock().upper;
        Ok(call(file.as_fd(), upper))
    }

    /// Reads through a handle, as [`Union::read`].
    pub fn read_handle(&self, fh: Fh, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let file = self.handle_file(fh)?;
        self.read_at(file.as_fd(), offset, buffer)
    }

    /// Writes through a handle, as [`Union::write`]. Errors: EBADF for one that was opened for reading.
    pub fn write_handle(&self, fh: Fh, offset: u64, data: &[u8], unprivileged: Option<Caller>) -> Result<usize> {
        let handle = self.handle(fh)?;
        if handle.access != Access::Write {
            return Err(Error::Refused(Errno::BADF));
        }
        let file = self.handle_file(fh)?;
        // First, as the kernel does: should this be cut short, nobody gets rights by what was written.
        self.drop_capabilities(file.as_fd())?;
        if unprivileged.is_some() {
            self.drop_privileges(file.as_fd())?;
        }
        self.write_at(&handle.inode, file.as_fd(), offset, data)
    }

    /// Gives the file `id` another number, so that who looks it up from now on does not share the node of those who
    /// have it open.
    pub fn part(&self, id: NodeId) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let Some(inode) = self.table.get(id) else { return };
        if inode.id() == id {
            // Far from the numbers of layers; the table refuses one that is taken. Relaxed: only uniqueness matters.
            let fresh = NodeId(u64::MAX - 1 - NEXT.fetch_add(1, Ordering::Relaxed));
            self.table.part(&inode, id, fresh);
        }
    }

    /// Returns whether the file `id` goes by another number than its first.
    pub fn has_parted(&self, id: NodeId) -> bool {
        self.table.get(id).is_some_and(|inode| inode.id().0 != inode.ino.0)
    }

    /// Records that a descriptor of `id` was handed out by which it may be written to without this union being told, for as
    /// long as it is known; returns whether that is new.
    pub fn note_unseen_changes(&self, id: NodeId) -> bool {
        self.table.get(id).is_some_and(|inode| inode.note_unseen_changes())
    }

    /// Returns whether the attributes of `id` may be used again without asking, as far as only this union changes the
    /// layers: not those of a file that has [parted](Union::part), since what changes through one number of it is not told to
    /// who knows the other; nor of one for which [unseen changes](Union::note_unseen_changes) were recorded.
    pub fn keeps_attributes(&self, id: NodeId) -> bool {
        self.table.get(id).is_none_or(|inode| inode.keeps_attributes())
    }

    /// Returns whether the data of `id` is in upper.
    pub fn has_upper_data(&self, id: NodeId) -> bool {
        self.inode(id).is_ok_and(|inode| inode.is_upper() && self.data_below(&inode).is_ok_and(|below| below.is_none()))
    }
}

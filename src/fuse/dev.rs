//! Serves /dev/fuse through fuser: decodes a request, makes one call into the union, and answers.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, INodeNo, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};
use rustix::fs::XattrFlags;

use super::buffer::with_buffer;
use super::convert::{absent, decode_device, entry_attributes, errno, file_type, flow, set_time};
use super::handshake;
use super::pool::guard;
use super::server::{GENERATION, Server, answer_xattr, finish, open_how};
use super::statistics::Operation;
use crate::error::Result;
use crate::sys::ioctl::sets_flags;
use crate::sys::memory;
use crate::union::{self, Caller, Fh, FileKind, Looked, Name, New, NodeId, Seek, SetAttr, Union, Unlinked};

/// After so many FORGETs, which come in floods, the memory is given back: some megabytes.
const FORGOTTEN: u64 = 1 << 14;

/// The file system as fuser calls it.
pub(super) struct Dev {
    server: Arc<Server>,
}

impl Dev {
    pub(super) fn new(server: Arc<Server>) -> Self {
        Self { server }
    }

    fn count(&self, operation: Operation) {
        self.server.requests.add(operation);
    }

    /// Runs `work` on the pool where `is_long` says so, else here.
    fn at_pace(&self, is_long: impl FnOnce(&Union) -> bool, work: impl FnOnce(&Server) + Send + 'static) {
        guard(|| if is_long(&self.server.union) { self.long(work) } else { work(&self.server) });
    }

    /// Runs `work` on the pool.
    fn long(&self, work: impl FnOnce(&Server) + Send + 'static) {
        let server = self.server.clone();
        self.server.pool.run(move || work(&server));
    }
}

/// Whether a change of `ino` copies data up first.
fn copies(ino: INodeNo) -> impl FnOnce(&Union) -> bool {
    move |union| union.would_copy(id(ino))
}

fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), pid: req.pid() }
}

fn id(ino: INodeNo) -> NodeId {
    NodeId(ino.0)
}

/// Returns the handle of a request; 0 is what the kernel has where files are opened without asking.
fn handle(fh: FileHandle) -> Option<Fh> {
    (fh.0 != 0).then_some(Fh(fh.0))
}

impl Filesystem for Dev {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        handshake::settle(&self.server, config);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.count(Operation::Lookup);
        guard(|| {
            let server = &self.server;
            match Name::new(name).map_err(Into::into).and_then(|name| server.union.lookup(id(parent), name)) {
                Err(error) if error.errno() == rustix::io::Errno::NOENT => {
                    if server.negative_timeout.is_zero() {
                        return reply.error(Errno::ENOENT);
                    }
                    reply.entry_with_ttls(&Duration::ZERO, &server.negative_timeout, &absent(), GENERATION);
                }
                result => server.entry(reply, result),
            }
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.count(Operation::Forget);
        guard(|| {
            self.server.union.forget(id(ino), nlookup);
            // Relaxed: a count alone.
            if self.server.forgotten.fetch_add(1, Ordering::Relaxed) % FORGOTTEN == FORGOTTEN - 1 {
                self.long(|server| {
                    server.union.shrink();
                    memory::trim();
                });
            }
        });
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.count(Operation::Getattr);
        guard(|| self.server.attr(reply, self.server.union.getattr(id(ino))));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.count(Operation::Setattr);
        let caller = caller(req);
        let mode = mode.map(|mode| mode & 0o7777);
        self.at_pace(copies(ino), move |server| {
            let set = SetAttr { mode, uid, gid, size, atime: atime.map(set_time), mtime: mtime.map(set_time) };
            server.attr(reply, server.union.setattr(id(ino), set, fh.and_then(handle), caller));
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.count(Operation::Readlink);
        guard(|| match self.server.union.readlink(id(ino)) {
            Ok(target) => reply.data(target.as_encoded_bytes()),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn mknod(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        self.count(Operation::Mknod);
        let new = match FileKind::from_mode(mode) {
            FileKind::Regular => New::Regular,
            kind => New::Node(kind, decode_device(rdev)),
        };
        self.create_entry(req, parent, name, new, mode, umask, reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.count(Operation::Mkdir);
        self.create_entry(req, parent, name, New::Directory, mode, umask, reply);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        self.count(Operation::Symlink);
        self.create_entry(req, parent, link_name, New::Symlink(target.as_os_str()), 0o777, 0, reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.count(Operation::Unlink);
        guard(|| {
            let checked = match Name::new(name) {
                Ok(name) => name,
                Err(e) => return finish(reply, Err(e.into())),
            };
            match self.server.union.unlink_quickly(id(parent), checked) {
                Ok(Unlinked::Done) => reply.ok(),
                Ok(Unlinked::Copies) => {
                    let name = name.to_owned();
                    self.long(move |server| {
                        finish(reply, with_name(&name, |name| server.union.unlink(id(parent), name)));
                    });
                }
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.count(Operation::Rmdir);
        let owned = name.to_owned();
        self.at_pace(
            |union| Name::new(name).is_ok_and(|name| union.is_merged(id(parent), name)),
            move |server| finish(reply, with_name(&owned, |name| server.union.rmdir(id(parent), name))),
        );
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.count(Operation::Rename);
        let (name, newname) = (name.to_owned(), newname.to_owned());
        let flags = union::RenameFlags::from_bits_retain(flags.bits());
        let merged = move |union: &Union| union.has_lower_parts(id(parent)) || union.has_lower_parts(id(newparent));
        self.at_pace(merged, move |server| {
            let renamed = with_name(&name, |name| {
                with_name(&newname, |newname| server.union.rename(id(parent), name, id(newparent), newname, flags))
            });
            finish(reply, renamed);
        });
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        self.count(Operation::Link);
        let newname = newname.to_owned();
        self.at_pace(copies(ino), move |server| {
            let linked = with_name(&newname, |name| server.union.link(id(ino), id(newparent), name));
            server.entry(reply, linked);
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.count(Operation::Open);
        if !self.server.opens_files() {
            return reply.error(Errno::ENOSYS);
        }
        let caller = caller(req);
        let writes = open_how(flags, caller).changes();
        let copies = move |union: &Union| writes && union.would_copy(id(ino));
        self.at_pace(copies, move |server| server.open(id(ino), flags, caller, reply));
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.count(Operation::Read);
        guard(|| {
            with_buffer(size as usize, |buffer| {
                let read = match handle(fh) {
                    Some(fh) => self.server.union.read_handle(fh, offset, buffer),
                    None => self.server.union.read(id(ino), offset, buffer),
                };
                match read {
                    Ok(len) => reply.data(buffer.get(..len).unwrap_or_default()),
                    Err(error) => reply.error(errno(&error)),
                }
            });
        });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.count(Operation::Write);
        let unprivileged = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID).then(|| caller(req));
        // A write from the page cache has the handle of whoever happened to have the file open.
        let fh = handle(fh);
        guard(|| {
            if self.server.union.would_copy(id(ino)) {
                let data = data.to_vec();
                self.long(move |server| server.write(id(ino), fh, offset, &data, unprivileged, reply));
            } else {
                self.server.write(id(ino), fh, offset, data, unprivileged, reply);
            }
        });
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        self.count(Operation::Flush);
        // There is nothing to flush, and locks are the kernel's: it need not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.count(Operation::Release);
        guard(|| {
            if let Some(fh) = handle(fh) {
                if let Some(passthrough) = self.server.passthrough() {
                    passthrough.close(id(ino));
                }
                self.server.union.close(fh);
            }
            reply.ok();
        });
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.count(Operation::Fsync);
        self.long(move |server| finish(reply, server.union.fsync(id(ino), handle(fh), datasync)));
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count(Operation::Opendir);
        // Directories are read by node, and the kernel may keep what it has read.
        if self.server.opens_directories.load(Ordering::Relaxed) {
            // Relaxed: settled by the handshake, before any request.
            return reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
        }
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.count(Operation::Readdir);
        guard(|| {
            let read = self.server.union.read_dir(id(ino), offset, |entry| {
                flow(reply.add(INodeNo(entry.ino), entry.cookie, file_type(entry.kind), entry.name))
            });
            match read {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn readdirplus(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        self.count(Operation::Readdirplus);
        guard(|| {
            let server = &self.server;
            let read = server.union.read_dir_plus(id(ino), offset, |dirent, looked| {
                let (attr, ttl) = match looked {
                    Looked::Up(entry) => {
                        (entry_attributes(entry.id, &entry.attr), server.attr_ttl(entry).min(server.entry_ttl(entry)))
                    }
                    Looked::Old(entry) => (entry_attributes(entry.id, &entry.attr), Duration::ZERO),
                    // The kernel takes only name, number and type of `.` and `..`.
                    Looked::Dots => (FileAttr { ino: INodeNo(dirent.ino), ..absent() }, Duration::ZERO),
                    // Kept for no time, so that the kernel looks it up, and gets the error, before it uses it.
                    Looked::Broken(id) => {
                        (FileAttr { ino: INodeNo(id.0), kind: file_type(dirent.kind), ..absent() }, Duration::ZERO)
                    }
                };
                flow(reply.add(attr.ino, dirent.cookie, dirent.name, &ttl, &attr, GENERATION))
            });
            match read {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.count(Operation::Fsyncdir);
        self.long(move |server| finish(reply, server.union.fsync_dir(id(ino))));
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.count(Operation::Statfs);
        guard(|| match self.server.union.statfs() {
            Ok(s) => reply.statfs(
                s.blocks,
                s.free,
                s.available,
                s.files,
                s.files_free,
                s.block_size as u32,
                s.name_max,
                s.fragment_size as u32,
            ),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.count(Operation::Setxattr);
        let (name, value) = (name.to_owned(), value.to_vec());
        let flags = XattrFlags::from_bits_retain(flags as u32);
        let caller = caller(req);
        self.at_pace(copies(ino), move |server| {
            finish(reply, server.union.setxattr(id(ino), &name, &value, flags, caller));
        });
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.count(Operation::Getxattr);
        guard(|| match self.server.union.getxattr(id(ino), name) {
            Ok(value) => answer_xattr(reply, &value, size),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.count(Operation::Listxattr);
        guard(|| match self.server.union.listxattr(id(ino), caller(req)) {
            Ok(names) => {
                let list: Vec<u8> = names.iter().flat_map(|name| [name.as_encoded_bytes(), b"\0"].concat()).collect();
                answer_xattr(reply, &list, size);
            }
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.count(Operation::Removexattr);
        let (name, caller) = (name.to_owned(), caller(req));
        self.at_pace(copies(ino), move |server| finish(reply, server.union.removexattr(id(ino), &name, caller)));
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        self.count(Operation::Create);
        guard(|| {
            let made = with_name(name, |name| {
                self.server.union.create(id(parent), name, New::Regular, mode, umask, caller(req))
            });
            match made {
                Ok(entry) => self.server.created(&entry, reply),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn ioctl(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.count(Operation::Ioctl);
        // Relaxed: settled by the handshake, before any request.
        if sets_flags(cmd) && !self.server.checks_flags.load(Ordering::Relaxed) {
            return reply.error(Errno::ENOTTY);
        }
        let input = in_data.to_vec();
        self.at_pace(copies(ino), move |server| match server.union.ioctl(id(ino), cmd, &input) {
            Ok(answer) => reply.ioctl(0, answer.get(..out_size as usize).unwrap_or(&answer)),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.count(Operation::Fallocate);
        let (caller, range) = (caller(req), offset..offset.saturating_add(length));
        self.at_pace(copies(ino), move |server| {
            finish(reply, server.union.fallocate(id(ino), handle(fh), mode as u32, range, caller));
        });
    }

    fn lseek(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        self.count(Operation::Lseek);
        guard(|| {
            let Ok(from) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
            let seek = match whence {
                libc::SEEK_DATA => Seek::Data(from),
                libc::SEEK_HOLE => Seek::Hole(from),
                _ => return reply.error(Errno::EINVAL),
            };
            match self.server.union.seek(id(ino), handle(fh), seek) {
                Ok(found) => reply.offset(found as i64),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.count(Operation::CopyFileRange);
        let caller = caller(req);
        self.long(move |server| {
            let from = (id(ino_in), handle(fh_in), offset_in);
            let to = (id(ino_out), handle(fh_out), offset_out);
            match server.union.copy_range(from, to, len, caller) {
                Ok(copied) => reply.written(copied as u32),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }
}

impl Dev {
    #[allow(clippy::too_many_arguments)]
    fn create_entry(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new: New<'_>,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        guard(|| {
            let made =
                with_name(name, |name| self.server.union.create(id(parent), name, new, mode, umask, caller(req)));
            self.server.entry(reply, made);
        });
    }
}

/// Checks a name and calls with it.
fn with_name<T>(name: &OsStr, call: impl FnOnce(Name<'_>) -> Result<T>) -> Result<T> {
    call(Name::new(name)?)
}

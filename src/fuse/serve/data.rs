//! The requests about data: opening, reading and writing.

use rustix::io::Errno;

use super::{at_pace, copies, handle};
use crate::fuse::answer::{Answer, Served};
use crate::fuse::passthrough::Maps;
use crate::fuse::protocol::{
    CopyFileRangeIn, FSYNC_FDATASYNC, FallocateIn, FsyncIn, LseekIn, LseekOut, OpenIn, ReadIn, ReleaseIn, WRITE_CACHE,
    WRITE_KILL_SUIDGID, WriteIn, WriteOut,
};
use crate::fuse::request::{Malformed, Request};
use crate::fuse::server::{Asked, Server};
use crate::union::{Caller, NodeId, OpenFile, Seek, Union, Written};

pub(super) fn open(server: &Server, mut request: Request<'_>) -> Result<Served, Malformed> {
    if !server.opens_files {
        return Ok(Answer::Error(Errno::NOSYS).into());
    }
    let OpenIn { flags, .. } = request.arguments.fixed()?;
    let (node, how) = (request.node, open_how(flags, request.caller));
    let asked = Asked { how, maps: Maps::of(flags), pid: request.caller.pid };
    let copies = move |union: &Union| how.changes() && union.would_copy(node);
    Ok(at_pace(server, copies, move |server| server.open(node, asked)))
}

/// What an open asks for.
fn open_how(flags: u32, caller: Caller) -> OpenFile {
    // Linux's own flag (`__FMODE_EXEC`), which no program can give.
    const EXECUTE: i32 = 0x20;
    let flags = flags as i32;
    match flags & libc::O_ACCMODE {
        libc::O_RDONLY if flags & libc::O_TRUNC != 0 => OpenFile::Empty(caller),
        libc::O_RDONLY if flags & EXECUTE != 0 => OpenFile::Execute,
        libc::O_RDONLY => OpenFile::Read,
        _ if flags & libc::O_TRUNC != 0 => OpenFile::Truncate(caller),
        _ if flags & libc::O_APPEND != 0 => OpenFile::Append,
        _ => OpenFile::Write,
    }
}

pub(super) fn read(server: &Server, mut request: Request<'_>, buffer: &mut [u8]) -> Result<Served, Malformed> {
    let ReadIn { fh, offset, size, .. } = request.arguments.fixed()?;
    let size = buffer.len().min(size as usize);
    let buffer = buffer.get_mut(..size).unwrap_or_default();
    let read = match handle(fh) {
        Some(fh) => server.union.read_handle(fh, offset, buffer),
        None => server.union.read(request.node, offset, buffer),
    };
    Ok(Answer::buffer(read).into())
}

pub(super) fn write(server: &Server, mut request: Request<'_>) -> Result<Served, Malformed> {
    let written: WriteIn = request.arguments.fixed()?;
    let node = request.node;
    let unprivileged = (written.write_flags & WRITE_KILL_SUIDGID != 0).then_some(request.caller);
    let data = request.arguments.bytes(written.size)?;
    if server.union.would_copy(node) {
        let data = data.to_owned();
        return Ok(Served::later(move |server| write_data(server, node, &written, &data, unprivileged)));
    }
    Ok(write_data(server, node, &written, data, unprivileged).into())
}

/// Writes through a handle where there is one, else by node.
fn write_data(server: &Server, node: NodeId, at: &WriteIn, data: &[u8], unprivileged: Option<Caller>) -> Answer {
    let kept = at.write_flags & WRITE_CACHE != 0;
    // A write from the page cache has the handle of whoever happened to have the file open.
    let written = match handle(at.fh) {
        Some(fh) => server.union.write_handle(fh, at.offset, data, unprivileged),
        None if kept => {
            let written = if server.writes_back { Written::Before } else { Written::Now };
            server.union.write_back(node, at.offset, data, written)
        }
        None => server.union.write(node, at.offset, data, unprivileged),
    };
    if kept && !server.writes_back {
        // The kernel forgets the attributes when it has the answer; but it would then take what a GETATTR was told before
        // this write for what is true after it, if that thread is slow to wake up. What is older than a notice it drops.
        // Not from this thread: the kernel may be forgetting the inode, for which it waits for the answer, and have the
        // notice wait for that.
        let connection = server.connection.clone();
        server.pool.run(move || connection.forget_attributes(node));
    }
    Answer::of(written, |len| Answer::Written(WriteOut { size: len as u32, padding: 0 }))
}

pub(super) fn release(server: &Server, mut request: Request<'_>) -> Result<Served, Malformed> {
    let released: ReleaseIn = request.arguments.fixed()?;
    server.close(request.node, handle(released.fh));
    Ok(Answer::Done.into())
}

pub(super) fn fsync(mut request: Request<'_>) -> Result<Served, Malformed> {
    let FsyncIn { fh, fsync_flags, .. } = request.arguments.fixed()?;
    let node = request.node;
    Ok(Served::later(move |server| {
        Answer::done(server.union.fsync(node, handle(fh), fsync_flags & FSYNC_FDATASYNC != 0))
    }))
}

pub(super) fn fallocate(server: &Server, mut request: Request<'_>) -> Result<Served, Malformed> {
    let FallocateIn { fh, offset, length, mode, .. } = request.arguments.fixed()?;
    let (node, caller) = (request.node, request.caller);
    Ok(at_pace(server, copies(node), move |server| {
        let range = offset..offset.saturating_add(length);
        Answer::done(server.union.fallocate(node, handle(fh), mode, range, caller))
    }))
}

pub(super) fn lseek(server: &Server, mut request: Request<'_>) -> Result<Served, Malformed> {
    if server.writes_back {
        // Upper may have a hole where the kernel has data. So to who asks all is data.
        return Ok(Answer::Error(Errno::NOSYS).into());
    }
    let LseekIn { fh, offset, whence, .. } = request.arguments.fixed()?;
    let Ok(from) = u64::try_from(offset) else { return Ok(Answer::Error(Errno::NXIO).into()) };
    let seek = match whence as i32 {
        libc::SEEK_DATA => Seek::Data(from),
        libc::SEEK_HOLE => Seek::Hole(from),
        _ => return Ok(Answer::Error(Errno::INVAL).into()),
    };
    let found = server.union.seek(request.node, handle(fh), seek);
    Ok(Answer::of(found, |offset| Answer::Offset(LseekOut { offset })).into())
}

pub(super) fn copy_file_range(mut request: Request<'_>) -> Result<Served, Malformed> {
    let copy: CopyFileRangeIn = request.arguments.fixed()?;
    let (node, caller) = (request.node, request.caller);
    Ok(Served::later(move |server| {
        let from = (node, handle(copy.fh_in), copy.off_in);
        let to = (NodeId(copy.nodeid_out), handle(copy.fh_out), copy.off_out);
        let copied = server.union.copy_range(from, to, copy.len, caller);
        Answer::of(copied, |len| Answer::Written(WriteOut { size: len as u32, padding: 0 }))
    }))
}

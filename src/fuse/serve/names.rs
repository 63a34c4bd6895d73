//! The requests about names: looking them up, making, removing and moving them.

use std::ffi::OsStr;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::{at_pace, copies};
use crate::error::Result;
use crate::fuse::answer::{Answer, Served};
use crate::fuse::convert::decode_device;
use crate::fuse::passthrough::Maps;
use crate::fuse::protocol::{
    BatchForgetIn, CreateIn, ForgetIn, ForgetOne, LinkIn, MkdirIn, MknodIn, Rename2In, RenameIn,
};
use crate::fuse::request::{Malformed, Request};
use crate::fuse::server::{Asked, Server};
use crate::fuse::statistics::Operation;
use crate::sys::memory;
use crate::union::{Attempt, FileKind, Name, New, NodeId, OpenFile, RenameFlags};

/// After so many FORGETs, which come in floods, the memory is given back: some megabytes.
const FORGOTTEN: u64 = 1 << 14;

pub(super) fn lookup(server: &Server, mut request: Request<'_>) -> std::result::Result<Served, Malformed> {
    let name = request.arguments.string()?;
    let found = with_name(name, |name| server.union.lookup(request.node, name));
    Ok(match found {
        Err(error) if error.errno() == Errno::NOENT && !server.negative_timeout.is_zero() => {
            Answer::Entry(server.absent())
        }
        found => Answer::of(found, |entry| Answer::Entry(server.entry(&entry))),
    }
    .into())
}

pub(super) fn forget(server: &Server, mut request: Request<'_>) -> std::result::Result<Served, Malformed> {
    let forget: ForgetIn = request.arguments.fixed()?;
    Ok(forget_one(server, request.node, forget.nlookup, Answer::Nothing.into()))
}

pub(super) fn batch_forget(server: &Server, mut request: Request<'_>) -> std::result::Result<Served, Malformed> {
    let batch: BatchForgetIn = request.arguments.fixed()?;
    let mut served = Answer::Nothing.into();
    for _ in 0..batch.count {
        let forget: ForgetOne = request.arguments.next()?;
        served = forget_one(server, NodeId(forget.nodeid), forget.nlookup, served);
    }
    Ok(served)
}

/// Forgets, and returns `served`, or that memory is to be given back.
fn forget_one(server: &Server, node: NodeId, count: u64, served: Served) -> Served {
    server.requests.add(Operation::Forget);
    server.forget(node, count);
    // Relaxed: a count alone.
    if server.forgotten.fetch_add(1, Ordering::Relaxed) % FORGOTTEN < FORGOTTEN - 1 {
        return served;
    }
    Served::later(|server| {
        server.union.shrink();
        memory::trim();
        Answer::Nothing
    })
}

pub(super) fn mknod(server: &Server, mut request: Request<'_>) -> std::result::Result<Served, Malformed> {
    let made: MknodIn = request.arguments.fixed()?;
    let name = request.arguments.string()?;
    let new = match FileKind::from_mode(made.mode) {
        FileKind::Regular => New::Regular,
        kind => New::Node(kind, decode_device(made.rdev)),
    };
    Ok(make(server, &request, name, new, made.mode, made.umask))
}

pub(super) fn mkdir(server: &Server, mut request: Request<'_>) -> std::result::Result<Served, Malformed> {
    let made: MkdirIn = request.arguments.fixed()?;
    let name = request.arguments.string()?;
    Ok(make(server, &request, name, New::Directory, made.mode, made.umask))
}

pub(super) fn symlink(server: &Server, mut request: Request<'_>) -> std::result::Result<Served, Malformed> {
    let (name, target) = (request.arguments.string()?, request.arguments.string()?);
    Ok(make(server, &request, name, New::Symlink(target), 0o777, 0))
}

fn make(server: &Server, request: &Request<'_>, name: &OsStr, new: New<'_>, mode: u32, umask: u32) -> Served {
    let made = with_name(name, |name| server.union.create(request.node, name, new, mode, umask, request.caller));
    Answer::of(made, |entry| Answer::Entry(server.entry(&entry))).into()
}

pub(super) fn create(server: &Server, mut request: Request<'_>) -> std::result::Result<Served, Malformed> {
    if !server.opens_files {
        // It makes the file by MKNOD from now on, and opens it without asking: then there is nothing to release either.
        return Ok(Answer::Error(Errno::NOSYS).into());
    }
    let made: CreateIn = request.arguments.fixed()?;
    let created = with_name(request.arguments.string()?, |name| {
        server.union.create(request.node, name, New::Regular, made.mode, made.umask, request.caller)
    });
    let asked = Asked { how: OpenFile::Write, maps: Maps::of(made.flags), pid: request.caller.pid };
    Ok(Answer::of(created, |entry| server.created(&entry, asked)).into())
}

pub(super) fn link(server: &Server, mut request: Request<'_>) -> std::result::Result<Served, Malformed> {
    let linked: LinkIn = request.arguments.fixed()?;
    let (old, parent, name) = (NodeId(linked.oldnodeid), request.node, request.arguments.string()?.to_owned());
    Ok(at_pace(server, copies(old), move |server| {
        let linked = with_name(&name, |name| server.union.link(old, parent, name));
        Answer::of(linked, |entry| Answer::Entry(server.entry(&entry)))
    }))
}

pub(super) fn unlink(server: &Server, mut request: Request<'_>) -> std::result::Result<Served, Malformed> {
    let (parent, name) = (request.node, request.arguments.string()?);
    Ok(match with_name(name, |name| server.union.unlink_quickly(parent, name)) {
        Ok(Attempt::Long) => {
            let name = name.to_owned();
            Served::later(move |server| Answer::done(with_name(&name, |name| server.union.unlink(parent, name))))
        }
        unlinked => Answer::done(unlinked.map(drop)).into(),
    })
}

pub(super) fn rmdir(server: &Server, mut request: Request<'_>) -> std::result::Result<Served, Malformed> {
    let (parent, name) = (request.node, request.arguments.string()?.to_owned());
    let merged = Name::new(&name).is_ok_and(|name| server.union.is_merged(parent, name));
    Ok(at_pace(
        server,
        |_| merged,
        move |server| Answer::done(with_name(&name, |name| server.union.rmdir(parent, name))),
    ))
}

pub(super) fn rename(server: &Server, mut request: Request<'_>) -> std::result::Result<Served, Malformed> {
    let renamed: RenameIn = request.arguments.fixed()?;
    move_name(server, request, NodeId(renamed.newdir), RenameFlags::empty())
}

pub(super) fn rename2(server: &Server, mut request: Request<'_>) -> std::result::Result<Served, Malformed> {
    let renamed: Rename2In = request.arguments.fixed()?;
    move_name(server, request, NodeId(renamed.newdir), RenameFlags::from_bits_retain(renamed.flags))
}

fn move_name(
    server: &Server,
    mut request: Request<'_>,
    new_parent: NodeId,
    flags: RenameFlags,
) -> std::result::Result<Served, Malformed> {
    let parent = request.node;
    let (name, new_name) = (request.arguments.string()?, request.arguments.string()?);
    let renamed = with_names(name, new_name, |name, new_name| {
        server.union.rename_quickly(parent, name, new_parent, new_name, flags)
    });
    Ok(match renamed {
        Ok(Attempt::Long) => {
            let (name, new_name) = (name.to_owned(), new_name.to_owned());
            Served::later(move |server| {
                Answer::done(with_names(&name, &new_name, |name, new_name| {
                    server.union.rename(parent, name, new_parent, new_name, flags)
                }))
            })
        }
        renamed => Answer::done(renamed.map(drop)).into(),
    })
}

/// Checks two names and calls with them.
fn with_names<T>(name: &OsStr, other: &OsStr, call: impl FnOnce(Name<'_>, Name<'_>) -> Result<T>) -> Result<T> {
    call(Name::new(name)?, Name::new(other)?)
}

/// Checks a name and calls with it.
fn with_name<T>(name: &OsStr, call: impl FnOnce(Name<'_>) -> Result<T>) -> Result<T> {
    call(Name::new(name)?)
}

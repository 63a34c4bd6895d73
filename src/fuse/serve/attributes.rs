//! The requests about attributes: stat and its changes, symbolic links, xattrs, flags, the file system's figures.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::XattrFlags;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::{at_pace, copies, handle};
use crate::fuse::answer::{Answer, Served};
use crate::fuse::convert::{set_attr, statfs_out};
use crate::fuse::protocol::{GetxattrIn, GetxattrOut, IoctlIn, IoctlOut, SetattrIn, SetxattrIn, Valid};
use crate::fuse::request::{Malformed, Request};
use crate::fuse::server::Server;
use crate::sys::ioctl::sets_flags;
use crate::union::{SetAttr, SetTime, Timestamp};

pub(super) fn getattr(server: &Server, request: Request<'_>) -> Result<Served, Malformed> {
    Ok(server.attr(server.union.getattr(request.node)).into())
}

pub(super) fn setattr(server: &Server, mut request: Request<'_>) -> Result<Served, Malformed> {
    let (node, caller) = (request.node, request.caller);
    let given: SetattrIn = request.arguments.fixed()?;
    let fh = Valid::from_bits_retain(given.valid).contains(Valid::FH).then_some(given.fh).and_then(handle);
    let set = set_attr(&given);
    if server.writes_back
        && let Some(mtime) = time_of_writes(&set)
    {
        let present = server.union.getattr(node);
        // The kernel also tells the times of a file whose name was removed, in case its change of status is kept: nobody has
        // written it, and it is not copied up for that. And who appends to a file of that kind sets its time.
        let same = present.as_ref().is_ok_and(|attr| attr.mtime == mtime);
        if same || server.union.takes_appends_alone(node) {
            return Ok(server.attr(present).into());
        }
    }
    Ok(at_pace(server, copies(node), move |server| server.attr(server.union.setattr(node, set, fh, caller))))
}

/// Returns what a kernel that keeps writes sends when a file was written: that time alone.
fn time_of_writes(set: &SetAttr) -> Option<Timestamp> {
    match *set {
        SetAttr { mode: None, uid: None, gid: None, size: None, atime: None, mtime: Some(SetTime::To(mtime)) } => {
            Some(mtime)
        }
        _ => None,
    }
}

pub(super) fn readlink(server: &Server, request: Request<'_>) -> Result<Served, Malformed> {
    let target = server.union.readlink(request.node);
    Ok(Answer::of(target, |target: OsString| Answer::Bytes(target.into_encoded_bytes())).into())
}

pub(super) fn setxattr(server: &Server, mut request: Request<'_>) -> Result<Served, Malformed> {
    let (node, caller) = (request.node, request.caller);
    let set: SetxattrIn = request.arguments.fixed()?;
    let name = request.arguments.string()?.to_owned();
    let value = request.arguments.bytes(set.size)?.to_owned();
    let flags = XattrFlags::from_bits_retain(set.flags);
    Ok(at_pace(server, copies(node), move |server| {
        Answer::done(server.union.setxattr(node, &name, &value, flags, caller))
    }))
}

pub(super) fn getxattr(server: &Server, mut request: Request<'_>) -> Result<Served, Malformed> {
    let get: GetxattrIn = request.arguments.fixed()?;
    let value = server.union.getxattr(request.node, request.arguments.string()?);
    Ok(Answer::of(value, |value| xattr(value, get.size)).into())
}

pub(super) fn listxattr(server: &Server, mut request: Request<'_>) -> Result<Served, Malformed> {
    let get: GetxattrIn = request.arguments.fixed()?;
    let names = server.union.listxattr(request.node, request.caller);
    let list = |names: Vec<OsString>| names.iter().flat_map(|name| [name.as_bytes(), b"\0"].concat()).collect();
    Ok(Answer::of(names, |names| xattr(list(names), get.size)).into())
}

/// Answers with a value, or with its length where that is what was asked for.
fn xattr(value: Vec<u8>, size: u32) -> Answer {
    if size == 0 {
        Answer::Size(GetxattrOut { size: value.len() as u32, padding: 0 })
    } else if value.len() > size as usize {
        Answer::Error(Errno::RANGE)
    } else {
        Answer::Bytes(value)
    }
}

pub(super) fn removexattr(server: &Server, mut request: Request<'_>) -> Result<Served, Malformed> {
    let (node, caller, name) = (request.node, request.caller, request.arguments.string()?.to_owned());
    Ok(at_pace(server, copies(node), move |server| Answer::done(server.union.removexattr(node, &name, caller))))
}

pub(super) fn ioctl(server: &Server, mut request: Request<'_>) -> Result<Served, Malformed> {
    let IoctlIn { cmd, in_size, out_size, .. } = request.arguments.fixed()?;
    if sets_flags(cmd) && !server.checks_flags {
        return Ok(Answer::Error(Errno::NOTTY).into());
    }
    let (node, input) = (request.node, request.arguments.bytes(in_size)?.to_owned());
    Ok(at_pace(server, copies(node), move |server| {
        Answer::of(server.union.ioctl(node, cmd, &input), |output| {
            let out = IoctlOut { result: 0, flags: 0, in_iovs: 0, out_iovs: 0 };
            Answer::Bytes([out.as_bytes(), output.get(..out_size as usize).unwrap_or(&output)].concat())
        })
    }))
}

pub(super) fn statfs(server: &Server) -> Result<Served, Malformed> {
    Ok(Answer::of(server.union.statfs(), |figures| Answer::Statfs(statfs_out(&figures))).into())
}

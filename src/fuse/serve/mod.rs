//! Requests become calls of the union: each is decoded, makes one call, and is answered with what came of it.
//!
//! Whatever brings the requests calls [`serve`], and sends what it returns. No lock is held then.

mod attributes;
mod data;
mod directories;
mod names;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rustix::io::Errno;

use super::answer::{Answer, Long, Served};
use super::protocol::Opcode;
use super::request::{Malformed, Request};
use super::server::Server;
use super::statistics::Operation;
use crate::sys::fault;
use crate::union::{Fh, NodeId, Union};

/// Serves a request; what it reads goes into `buffer`, which has room for the largest read.
///
/// A panic ends the request and not the mount.
pub(super) fn serve(server: &Arc<Server>, request: Request<'_>, buffer: &mut [u8]) -> Served {
    let (opcode, node) = (request.opcode, request.node);
    match catch_unwind(AssertUnwindSafe(|| dispatch(server, request, buffer))) {
        Ok(Ok(served)) => served,
        Ok(Err(Malformed)) => {
            log::error!("a request ({opcode:?} of {node:?}) is not as the protocol has it; it was answered with EIO");
            Answer::Error(Errno::IO).into()
        }
        Err(_) => panicked().into(),
    }
}

/// Does long work; a panic ends the request and not the mount.
pub(super) fn finish(server: &Server, work: Long) -> Answer {
    let done = || match work(server) {
        answer if answer.lacks_descriptors() => {
            server.union.close_kept();
            work(server)
        }
        answer => answer,
    };
    catch_unwind(AssertUnwindSafe(done)).unwrap_or_else(|_| panicked())
}

fn panicked() -> Answer {
    log::error!("a request panicked; it was answered with EIO and the mount goes on");
    Answer::Error(Errno::IO)
}

fn dispatch(server: &Arc<Server>, request: Request<'_>, buffer: &mut [u8]) -> Result<Served, Malformed> {
    if !server.admits(request.caller, request.opcode) {
        return Ok(Answer::Error(Errno::ACCESS).into());
    }
    let Some(opcode) = request.opcode else { return Ok(Answer::Error(Errno::NOSYS).into()) };
    if let Some(operation) = operation(opcode) {
        server.requests.add(operation);
        fault::point(operation.name());
    }
    match call(server, opcode, request, buffer)? {
        // Nothing is done by what fails, so that it can be tried again with what is open only to be used again closed. But
        // for CREATE, whose file is there where it could not be opened.
        Served::Now(answer) if answer.lacks_descriptors() && opcode != Opcode::Create => {
            server.union.close_kept();
            call(server, opcode, request, buffer)
        }
        served => Ok(served),
    }
}

fn call(server: &Arc<Server>, opcode: Opcode, request: Request<'_>, buffer: &mut [u8]) -> Result<Served, Malformed> {
    match opcode {
        Opcode::Lookup => names::lookup(server, request),
        Opcode::Forget => names::forget(server, request),
        Opcode::BatchForget => names::batch_forget(server, request),
        Opcode::Mknod => names::mknod(server, request),
        Opcode::Mkdir => names::mkdir(server, request),
        Opcode::Symlink => names::symlink(server, request),
        Opcode::Create => names::create(server, request),
        Opcode::Link => names::link(server, request),
        Opcode::Unlink => names::unlink(server, request),
        Opcode::Rmdir => names::rmdir(server, request),
        Opcode::Rename => names::rename(server, request),
        Opcode::Rename2 => names::rename2(server, request),
        Opcode::Getattr => attributes::getattr(server, request),
        Opcode::Setattr => attributes::setattr(server, request),
        Opcode::Readlink => attributes::readlink(server, request),
        Opcode::Setxattr => attributes::setxattr(server, request),
        Opcode::Getxattr => attributes::getxattr(server, request),
        Opcode::Listxattr => attributes::listxattr(server, request),
        Opcode::Removexattr => attributes::removexattr(server, request),
        Opcode::Ioctl => attributes::ioctl(server, request),
        Opcode::Statfs => attributes::statfs(server),
        Opcode::Opendir => directories::opendir(server),
        Opcode::Readdir => directories::readdir(server, request, buffer),
        Opcode::Readdirplus => directories::readdirplus(server, request, buffer),
        Opcode::Fsyncdir => directories::fsyncdir(request),
        // Directories have no handles.
        Opcode::Releasedir => Ok(Answer::Done.into()),
        Opcode::Open => data::open(server, request),
        Opcode::Read => data::read(server, request, buffer),
        Opcode::Write => data::write(server, request),
        // There is nothing to flush, and locks are the kernel's: it need not ask again.
        Opcode::Flush => Ok(Answer::Error(Errno::NOSYS).into()),
        Opcode::Release => data::release(server, request),
        Opcode::Fsync => data::fsync(request),
        Opcode::Fallocate => data::fallocate(server, request),
        Opcode::Lseek => data::lseek(server, request),
        Opcode::CopyFileRange => data::copy_file_range(request),
        Opcode::Destroy => Ok(Answer::Done.into()),
        // Without `default_permissions` everything is allowed; and nothing here can be interrupted.
        Opcode::Access | Opcode::Interrupt => Ok(Answer::Error(Errno::NOSYS).into()),
        // The handshake is over.
        Opcode::Init => Ok(Answer::Error(Errno::IO).into()),
    }
}

/// Returns what a request is counted as; FORGETs are counted one by one.
fn operation(opcode: Opcode) -> Option<Operation> {
    Some(match opcode {
        Opcode::Lookup => Operation::Lookup,
        Opcode::Getattr => Operation::Getattr,
        Opcode::Setattr => Operation::Setattr,
        Opcode::Readlink => Operation::Readlink,
        Opcode::Symlink => Operation::Symlink,
        Opcode::Mknod => Operation::Mknod,
        Opcode::Mkdir => Operation::Mkdir,
        Opcode::Unlink => Operation::Unlink,
        Opcode::Rmdir => Operation::Rmdir,
        Opcode::Rename | Opcode::Rename2 => Operation::Rename,
        Opcode::Link => Operation::Link,
        Opcode::Open => Operation::Open,
        Opcode::Read => Operation::Read,
        Opcode::Write => Operation::Write,
        Opcode::Statfs => Operation::Statfs,
        Opcode::Release => Operation::Release,
        Opcode::Fsync => Operation::Fsync,
        Opcode::Setxattr => Operation::Setxattr,
        Opcode::Getxattr => Operation::Getxattr,
        Opcode::Listxattr => Operation::Listxattr,
        Opcode::Removexattr => Operation::Removexattr,
        Opcode::Flush => Operation::Flush,
        Opcode::Opendir => Operation::Opendir,
        Opcode::Readdir => Operation::Readdir,
        Opcode::Readdirplus => Operation::Readdirplus,
        Opcode::Fsyncdir => Operation::Fsyncdir,
        Opcode::Create => Operation::Create,
        Opcode::Ioctl => Operation::Ioctl,
        Opcode::Fallocate => Operation::Fallocate,
        Opcode::Lseek => Operation::Lseek,
        Opcode::CopyFileRange => Operation::CopyFileRange,
        Opcode::Forget
        | Opcode::BatchForget
        | Opcode::Releasedir
        | Opcode::Access
        | Opcode::Interrupt
        | Opcode::Init
        | Opcode::Destroy => return None,
    })
}

/// Does `work` now, or later where `long` says that it takes long.
fn at_pace(
    server: &Server,
    long: impl FnOnce(&Union) -> bool,
    work: impl Fn(&Server) -> Answer + Send + 'static,
) -> Served {
    if long(&server.union) { Served::later(work) } else { work(server).into() }
}

/// Whether a change of `node` copies data up first.
fn copies(node: NodeId) -> impl FnOnce(&Union) -> bool {
    move |union| union.would_copy(node)
}

/// Returns the handle of a request; 0 is what the kernel has where files are opened without asking.
fn handle(fh: u64) -> Option<Fh> {
    (fh != 0).then_some(Fh(fh))
}

//! /dev/fuse as the way of requests and answers: a thread reads a request, serves it, and writes the answer.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::answer::{Answer, Served};
use super::connection::Connection;
use super::halt::Halt;
use super::handshake::Agreed;
use super::protocol::{InHeader, WriteIn};
use super::request::{Malformed, Request};
use super::serve::{finish, serve};
use super::server::Server;
use crate::sys::fuse_ring::Waker;
use crate::sys::memory::Pages;

/// What comes before the data of a WRITE, in bytes.
const BEFORE_DATA: usize = size_of::<InHeader>() + size_of::<WriteIn>();

/// Takes requests until the mount is gone.
pub(super) fn work(server: &Arc<Server>, agreed: &Agreed) -> io::Result<()> {
    let mut desk = Desk::new(agreed)?;
    while desk.serve_one(server)? == Came::Request {}
    Ok(())
}

/// Takes requests until the mount is gone, or `halt` is raised, of which `waker` tells.
pub(super) fn work_until(server: &Arc<Server>, agreed: &Agreed, halt: &Halt, waker: &Waker) -> io::Result<()> {
    let mut desk = Desk::new(agreed)?;
    while !halt.is_raised() {
        let (device, waker) = (server.connection.device(), waker.as_fd());
        let mut polled = [device, waker].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        match poll(&mut polled, None) {
            Err(Errno::INTR | Errno::AGAIN | Errno::NOMEM) => continue,
            result => result?,
        };
        let came = polled.first().is_some_and(|device| !device.revents().is_empty());
        if came && desk.serve_one(server)? == Came::End {
            break;
        }
    }
    Ok(())
}

/// What reading from /dev/fuse has brought.
#[derive(PartialEq, Eq)]
enum Came {
    Request,
    End,
}

/// Where a thread reads requests and what it answers.
struct Desk {
    message: Pages,
    buffer: Pages,
}

impl Desk {
    fn new(agreed: &Agreed) -> io::Result<Self> {
        // The kernel copies page by page: what is written begins at a page as it comes, and what is read as it goes.
        let message = Pages::new(rustix::param::page_size() + agreed.request_max())?;
        Ok(Self { message, buffer: Pages::new(agreed.read_max())? })
    }

    /// Waits for a request and serves it.
    fn serve_one(&mut self, server: &Arc<Server>) -> io::Result<Came> {
        let message = self.message.get_mut(rustix::param::page_size() - BEFORE_DATA..).unwrap_or_default();
        let Some(len) = server.connection.receive(message)? else { return Ok(Came::End) };
        let request = message.get(..len).ok_or(Malformed).and_then(Request::whole);
        let request = request.map_err(|Malformed| io::Error::other("the kernel sent what is not a request"))?;
        let unique = request.unique;
        match serve(server, request, &mut self.buffer) {
            Served::Now(Answer::Buffer(len)) => {
                server.connection.answer(unique, 0, self.buffer.get(..len).unwrap_or_default());
            }
            Served::Now(answer) => send(&server.connection, unique, &answer),
            Served::Later(work) => {
                let server = server.clone();
                server.pool.clone().run(move || send(&server.connection, unique, &finish(&server, work)));
            }
        }
        Ok(Came::Request)
    }
}

fn send(connection: &Connection, unique: u64, answer: &Answer) {
    if !matches!(answer, Answer::Nothing) {
        connection.answer(unique, answer.error(), answer.body());
    }
}

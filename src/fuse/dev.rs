//! /dev/fuse as the way of requests and answers: a thread reads a request, serves it, and writes the answer.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::answer::{Answer, Served};
use super::connection::{Connection, Received};
use super::halt::Halt;
use super::handshake::Agreed;
use super::linger::Linger;
use super::protocol::{InHeader, WriteIn};
use super::request::{Malformed, Request};
use super::serve::{finish, serve};
use super::server::Server;
use crate::sys::fuse_ring::Waker;
use crate::sys::memory::Pages;

/// What comes before the data of a WRITE, in bytes.
const BEFORE_DATA: usize = size_of::<InHeader>() + size_of::<WriteIn>();

/// Takes requests until the mount is gone; with `linger` the next one is looked for a while before the thread sleeps, and
/// the connection must not wait.
pub(super) fn work(server: &Arc<Server>, agreed: &Agreed, linger: Option<&Linger>) -> io::Result<()> {
    let mut desk = Desk::new(agreed)?;
    loop {
        let mut came = desk.receive(server)?;
        if let Some(linger) = linger.filter(|_| came == Received::Nothing) {
            let mut look = || Some(desk.receive(server)).filter(|came| !matches!(came, Ok(Received::Nothing)));
            came = linger.look_for(&mut look).unwrap_or(Ok(Received::Nothing))?;
        }
        match came {
            Received::End => return Ok(()),
            Received::Request(len) => desk.serve(server, len, linger)?,
            Received::Nothing => server.connection.wait(None)?,
        }
    }
}

/// Takes requests until the mount is gone, or `halt` is raised, of which `waker` tells.
pub(super) fn work_until(server: &Arc<Server>, agreed: &Agreed, halt: &Halt, waker: &Waker) -> io::Result<()> {
    let mut desk = Desk::new(agreed)?;
    server.connection.stop_waiting()?;
    while !halt.is_raised() {
        match desk.receive(server)? {
            Received::End => break,
            Received::Request(len) => desk.serve(server, len, None)?,
            Received::Nothing => server.connection.wait(Some(waker.as_fd()))?,
        }
    }
    Ok(())
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

    fn room(&mut self) -> &mut [u8] {
        self.message.get_mut(rustix::param::page_size() - BEFORE_DATA..).unwrap_or_default()
    }

    fn receive(&mut self, server: &Server) -> io::Result<Received> {
        Ok(server.connection.receive(self.room())?)
    }

    /// Serves the request of `len` bytes that was received.
    fn serve(&mut self, server: &Arc<Server>, len: usize, linger: Option<&Linger>) -> io::Result<()> {
        if let Some(linger) = linger {
            linger.note_request();
        }
        let message = self.message.get(rustix::param::page_size() - BEFORE_DATA..).unwrap_or_default();
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
        Ok(())
    }
}

fn send(connection: &Connection, unique: u64, answer: &Answer) {
    if !matches!(answer, Answer::Nothing) {
        connection.answer(unique, answer.error(), answer.body());
    }
}

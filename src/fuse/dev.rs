//! /dev/fuse as the way of requests and answers: a thread reads a request, serves it, and writes the answer.

use std::io;
use std::sync::Arc;

use super::answer::{Answer, Served};
use super::connection::Connection;
use super::handshake::Agreed;
use super::protocol::{InHeader, WriteIn};
use super::request::{Malformed, Request};
use super::serve::{finish, serve};
use super::server::Server;
use crate::sys::memory::Pages;

/// What comes before the data of a WRITE, in bytes.
const BEFORE_DATA: usize = size_of::<InHeader>() + size_of::<WriteIn>();

/// Takes requests until the mount is gone.
pub(super) fn work(server: &Arc<Server>, agreed: &Agreed) -> io::Result<()> {
    // The kernel copies page by page: what is written begins at a page as it comes, and what is read as it goes.
    let page = rustix::param::page_size();
    let mut message = Pages::new(page + agreed.request_max())?;
    let message = message.get_mut(page - BEFORE_DATA..).unwrap_or_default();
    let mut buffer = Pages::new(agreed.read_max())?;
    while let Some(len) = server.connection.receive(message)? {
        let request = message.get(..len).ok_or(Malformed).and_then(Request::whole);
        let request = request.map_err(|Malformed| io::Error::other("the kernel sent what is not a request"))?;
        let unique = request.unique;
        match serve(server, request, &mut buffer) {
            Served::Now(Answer::Buffer(len)) => {
                server.connection.answer(unique, 0, buffer.get(..len).unwrap_or_default());
            }
            Served::Now(answer) => send(&server.connection, unique, &answer),
            Served::Later(work) => {
                let server = server.clone();
                server.pool.clone().run(move || send(&server.connection, unique, &finish(&server, work)));
            }
        }
    }
    Ok(())
}

fn send(connection: &Connection, unique: u64, answer: &Answer) {
    if !matches!(answer, Answer::Nothing) {
        connection.answer(unique, answer.error(), answer.body());
    }
}

//! FUSE over io_uring as the way of requests and answers: each processor has a queue, and a thread that serves it.
//!
//! A request is served on the processor that its program waits on, and answer and next request change places in one
//! system call. What takes long is done by the pool, as everywhere; its answer comes back to the thread of the queue,
//! which alone may use the ring. FORGETs and INTERRUPTs go on coming through /dev/fuse.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::thread::CpuSet;
use zerocopy::IntoBytes;

use super::answer::{Answer, Served};
use super::connection::{Connection, HEADER};
use super::protocol::{Opcode, OutHeader};
use super::request::{Malformed, Request};
use super::serve::{finish, serve};
use super::server::Server;
use crate::sys::fuse_ring::{Entry, Event, Parts, Queue, Waker};
use crate::sys::processors;

/// How many requests a queue can hold that are not answered yet; what is more waits in the kernel.
const DEPTH: u16 = 8;

/// The queues of a mount, which are not in use yet.
pub(super) struct Ring {
    queues: Vec<Queue>,
}

impl Ring {
    /// Makes a queue for each processor that there may be, with room for `payload` bytes a request.
    pub(super) fn new(connection: &Connection, payload: usize) -> io::Result<Self> {
        let queues = (0..processors::possible()?).map(|id| Queue::new(connection.device(), id, DEPTH, payload));
        Ok(Self { queues: queues.collect::<io::Result<_>>()? })
    }

    /// Returns the queues, each to be served by a thread of its own.
    pub(super) fn queues(self) -> impl Iterator<Item = (usize, Queue)> {
        self.queues.into_iter().enumerate()
    }
}

/// The answers that the pool has found.
struct Found {
    /// A leaf.
    entries: Mutex<Vec<Entry>>,
    waker: Waker,
}

/// Serves a queue until the mount is gone.
///
/// Errors: those of the ring, and the kernel's when it takes no entry of it.
pub(super) fn work(server: &Arc<Server>, mut queue: Queue, processor: usize) -> io::Result<()> {
    let mut here = CpuSet::new();
    here.set(processor);
    if let Err(errno) = rustix::thread::sched_setaffinity(None, &here) {
        // Not a processor of this process: it is served from another one, which is slower.
        log::debug!("the queue of processor {processor} is served elsewhere: {errno}");
    }
    let found = Arc::new(Found { entries: Mutex::default(), waker: queue.waker() });
    let mut words = Vec::new();
    let mut left = DEPTH;
    queue.register()?;
    while left > 0 {
        queue.wait()?;
        while let Some(event) = queue.next_event() {
            match event {
                Event::Request(entry) => {
                    if let Some(entry) = serve_entry(server, entry, &mut words, &found) {
                        queue.commit(entry)?;
                    }
                }
                Event::Woken => {
                    let entries = std::mem::take(&mut *found.entries.lock());
                    entries.into_iter().try_for_each(|entry| queue.commit(entry))?;
                }
                Event::Ended(Errno::NOTCONN) => left -= 1,
                Event::Ended(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(())
}

/// Serves the request in `entry`, and returns it with the answer if there is one already.
fn serve_entry(server: &Arc<Server>, mut entry: Entry, words: &mut Vec<u8>, found: &Arc<Found>) -> Option<Entry> {
    let Parts { header, fixed, payload, received } = entry.parts();
    let (unique, served) = match Request::parted(header, fixed, &[]) {
        Ok(Request { unique, opcode: Some(Opcode::Write), .. }) => {
            // The data stays where it is, since the answer is short.
            let request = Request::parted(header, fixed, payload.get(..received).unwrap_or_default());
            (unique, request.map(|request| serve(server, request, &mut [])))
        }
        Ok(Request { unique, .. }) => {
            // The names are copied, since the answer comes into their place.
            words.clear();
            words.extend_from_slice(payload.get(..received).unwrap_or_default());
            (unique, Request::parted(header, fixed, words).map(|request| serve(server, request, payload)))
        }
        Err(malformed) => (0, Err(malformed)),
    };
    let served = served.unwrap_or_else(|Malformed| Answer::Error(Errno::IO).into());
    match served {
        Served::Now(answer) => {
            answer_entry(&mut entry, unique, &answer);
            Some(entry)
        }
        Served::Later(work) => {
            let (server, found) = (server.clone(), found.clone());
            server.pool.clone().run(move || {
                answer_entry(&mut entry, unique, &finish(&server, work));
                found.entries.lock().push(entry);
                found.waker.wake();
            });
            None
        }
    }
}

fn answer_entry(entry: &mut Entry, unique: u64, answer: &Answer) {
    let body = answer.body();
    let len = match answer {
        Answer::Buffer(len) => *len,
        _ => body.len(),
    };
    let payload = entry.parts().payload;
    let fits = match payload.get_mut(..len) {
        None => false,
        Some(_) if body.is_empty() => true,
        Some(room) => {
            room.copy_from_slice(body);
            true
        }
    };
    let (len, error) = if fits { (len as u32, answer.error()) } else { (0, -Errno::RANGE.raw_os_error()) };
    let header = OutHeader { len: HEADER as u32 + len, error, unique };
    let mut bytes = [0; HEADER];
    bytes.copy_from_slice(header.as_bytes());
    entry.set_answer(bytes, len);
}

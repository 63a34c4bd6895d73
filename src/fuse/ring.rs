//! FUSE over io_uring as the way of requests and answers: each processor has a queue, and a thread that serves it.
//!
//! A request is served on the processor that its program waits on, and answer and next request change places in one
//! system call. What takes long is done by the pool, as everywhere; its answer comes back to the thread of the queue,
//! which alone may use the ring, and until then it has one of the queue's entries. INTERRUPTs and nearly all FORGETs go
//! on coming through /dev/fuse.
//!
//! Once the kernel has been told of the queues it holds every request until all are in use. So each is made, by the
//! thread that will serve it, and tried, before INIT is answered.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use zerocopy::IntoBytes;

use super::affinity::{Affinity, Pattern};
use super::answer::{Answer, Served};
use super::connection::{Connection, HEADER};
use super::dev;
use super::halt::Halt;
use super::handshake::Agreed;
use super::linger::{self, Linger, Servers};
use super::protocol::{Opcode, OutHeader, ReadIn};
use super::request::{Malformed, Request};
use super::serve::{finish, serve};
use super::server::Server;
use crate::sys::fuse_ring::{Entry, Event, Parts, Queue, Waker};
use crate::sys::processors;

/// How many requests of one processor can be under way, those that take long included; what is more waits in the kernel.
const DEPTH: u16 = 32;

/// The largest read or write, in bytes. A queue comes to use so much memory for each of its entries.
pub(super) const TRANSFER: u32 = 1 << 18;

/// A ring and what wakes it.
const DESCRIPTORS: u64 = 2;

/// The queues of a mount, each waiting with its thread.
pub(super) struct Ring {
    queues: Vec<Waiting>,
}

struct Waiting {
    begin: Sender<Begin>,
    thread: JoinHandle<io::Result<()>>,
    waker: Waker,
}

struct Begin {
    server: Arc<Server>,
    halt: Arc<Halt>,
    linger: Arc<Linger>,
}

impl Ring {
    /// Makes a queue for each processor that there may be, with room for `payload` bytes a request, and tries it.
    ///
    /// The threads end when this is dropped. Errors: the reason why there can be none.
    pub(super) fn new(connection: &Arc<Connection>, payload: usize) -> io::Result<Self> {
        let processors = processors::possible()?;
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        if u64::from(processors) * DESCRIPTORS > limit / 8 {
            return Err(io::Error::other(format!(
                "the queues of {processors} processors would take too many of {limit} descriptors; raise the limit (ulimit -n)"
            )));
        }
        let mut queues = Vec::new();
        for id in 0..processors {
            let (report, reported) = sync_channel(1);
            let (begin, begun) = channel();
            let connection = connection.clone();
            // 15 characters can be seen.
            let thread = std::thread::Builder::new().name(format!("unionfs-ring{id}"));
            let thread = thread.spawn(move || prepare(connection, id, payload, &report, &begun))?;
            let waker = reported.recv().map_err(|_| io::Error::other("a thread of the ring has ended"))??;
            queues.push(Waiting { begin, thread, waker });
        }
        Ok(Self { queues })
    }

    /// Serves until the mount is gone; what does not come through the queues is taken by this thread.
    ///
    /// Errors: the first that ends a thread, and with it all others.
    pub(super) fn serve(self, server: &Arc<Server>, agreed: &Agreed) -> io::Result<()> {
        let dev = Waker::new()?;
        let wakers = self.queues.iter().map(|queue| queue.waker.clone()).chain([dev.clone()]);
        let halt = Arc::new(Halt::new(wakers.collect()));
        // On a few processors all of them stay awake together; on many each thread for itself.
        let together = (self.queues.len() <= linger::FEW).then(|| Arc::new(Linger::new(Servers::One)));
        let threads = self.queues.into_iter().map(|queue| {
            let linger = together.clone().unwrap_or_else(|| Arc::new(Linger::new(Servers::One)));
            // A thread that is gone is found out when it is waited for.
            let _ = queue.begin.send(Begin { server: server.clone(), halt: halt.clone(), linger });
            queue.thread
        });
        let threads: Vec<_> = threads.collect();
        // By a thread of its own, since this one unmounts in the end.
        let taken = std::thread::scope(|scope| {
            let work = || {
                server.confinement.enter();
                dev::work_until(server, agreed, &halt, &dev)
            };
            let thread = std::thread::Builder::new().name("unionfs-dev".into());
            end_all_on_failure(&halt, || thread.spawn_scoped(scope, work)?.join().unwrap_or_else(|_| Err(panicked())))
        });
        let joined = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(panicked())));
        joined.chain([taken]).fold(Ok(()), Result::and)
    }
}

fn panicked() -> io::Error {
    io::Error::other("a thread that takes requests panicked")
}

/// Does `work`, and ends the other threads where it cannot go on.
fn end_all_on_failure(halt: &Halt, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let done = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(panicked()));
    done.inspect_err(|error| {
        log::error!("requests cannot be served any longer: {error}");
        halt.raise();
    })
}

/// Makes the queue `id`, reports that it can be used, and serves it when it is told to.
fn prepare(
    connection: Arc<Connection>,
    id: u16,
    payload: usize,
    report: &SyncSender<io::Result<Waker>>,
    begun: &Receiver<Begin>,
) -> io::Result<()> {
    let affinity = Affinity::to(usize::from(id));
    let made = Queue::new(connection.device(), id, DEPTH, payload).and_then(|mut queue| {
        queue.try_out()?;
        Ok(queue)
    });
    drop(connection);
    // Whoever does not hear it has given up.
    let _ = report.send(made.as_ref().map(Queue::waker).map_err(|error| match error.raw_os_error() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::other(error.to_string()),
    }));
    let (Ok(queue), Ok(Begin { server, halt, linger })) = (made, begun.recv()) else { return Ok(()) };
    end_all_on_failure(&halt, || work(&server, queue, affinity, &halt, &linger))
}

/// The answers that the pool has found.
struct Found {
    /// A leaf.
    entries: Mutex<Vec<Entry>>,
    waker: Waker,
}

/// Serves a queue until the mount is gone, or all threads are to end.
///
/// Errors: those of the ring, and the kernel's when it takes an entry of it no more.
fn work(server: &Arc<Server>, mut queue: Queue, affinity: Affinity, halt: &Halt, linger: &Linger) -> io::Result<()> {
    server.confinement.enter();
    Linger::take_short_turns();
    let found = Arc::new(Found { entries: Mutex::default(), waker: queue.waker() });
    let mut worker = Worker { server, found, words: Vec::new(), affinity };
    let mut left = DEPTH;
    queue.register()?;
    while left > 0 && !halt.is_raised() {
        queue.exchange()?;
        match linger.look_for(|_| queue.has_news().then_some(())) {
            Some(()) => queue.exchange()?,
            None => queue.wait()?,
        }
        while let Some(event) = queue.next_event() {
            match event {
                Event::Request(entry) => {
                    linger.note_request();
                    if let Some(entry) = worker.serve(entry) {
                        queue.commit(entry)?;
                    }
                }
                Event::Woken => {
                    let entries = std::mem::take(&mut *worker.found.entries.lock());
                    entries.into_iter().try_for_each(|entry| queue.commit(entry))?;
                }
                // NOENT: its request was ended with the mount just before it was answered.
                Event::Ended(Errno::NOTCONN | Errno::CONNABORTED | Errno::NOENT) => left -= 1,
                Event::Ended(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(())
}

/// What serves the requests of one queue.
struct Worker<'a> {
    server: &'a Arc<Server>,
    found: Arc<Found>,
    /// The names of a request, for as long as it is served.
    words: Vec<u8>,
    affinity: Affinity,
}

impl Worker<'_> {
    /// Serves the request in `entry`, and returns it with the answer if there is one already.
    fn serve(&mut self, mut entry: Entry) -> Option<Entry> {
        let Parts { header, fixed, payload, received } = entry.parts();
        let (unique, served) = match Request::parted(header, fixed, &[]) {
            Ok(Request { unique, opcode: Some(Opcode::Write), .. }) => {
                self.affinity.note(Pattern::Single);
                // The data stays where it is, since the answer is short.
                let request = Request::parted(header, fixed, payload.get(..received).unwrap_or_default());
                (unique, request.map(|request| serve(self.server, request, &mut [])))
            }
            Ok(mut request @ Request { unique, .. }) => {
                self.affinity.note(pattern(&mut request));
                // The names are copied, since the answer comes into their place.
                self.words.clear();
                self.words.extend_from_slice(payload.get(..received).unwrap_or_default());
                let request = Request::parted(header, fixed, &self.words);
                (unique, request.map(|request| serve(self.server, request, payload)))
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
                let (server, found) = (self.server.clone(), self.found.clone());
                server.pool.clone().run(move || {
                    answer_entry(&mut entry, unique, &finish(&server, work));
                    found.entries.lock().push(entry);
                    found.waker.wake();
                });
                None
            }
        }
    }
}

fn pattern(request: &mut Request<'_>) -> Pattern {
    match request.opcode {
        Some(Opcode::Read) => {
            let read = request.arguments.fixed();
            read.map_or(Pattern::Single, |read: ReadIn| Pattern::of_read(read.offset, read.size))
        }
        _ => Pattern::Single,
    }
}

/// Puts an answer in the place of its request. Where none is waited for, the kernel takes an empty one.
fn answer_entry(entry: &mut Entry, unique: u64, answer: &Answer) {
    let body = answer.body();
    let len = match answer {
        Answer::Buffer(len) => *len,
        _ => body.len(),
    };
    let room = entry.parts().payload.get_mut(..len);
    let (len, error) = match room {
        None => (0, -Errno::RANGE.raw_os_error()),
        Some(room) => {
            if !body.is_empty() {
                room.copy_from_slice(body);
            }
            (len as u32, answer.error())
        }
    };
    let header = OutHeader { len: HEADER as u32 + len, error, unique };
    let mut bytes = [0; HEADER];
    bytes.copy_from_slice(header.as_bytes());
    entry.set_answer(bytes, len);
}

//! /dev/fuse as the way of requests and answers: a thread reads a request, serves it, and writes the answer.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::affinity::Affinity;
use super::answer::{Answer, Served};
use super::connection::{Connection, Received};
use super::halt::Halt;
use super::handshake::Agreed;
use super::linger::{Linger, Look};
use super::protocol::{InHeader, Opcode, WriteIn};
use super::request::{Malformed, Request};
use super::serve::{finish, serve};
use super::server::Server;
use crate::sys::fuse_ring::Waker;
use crate::sys::memory::Pages;

/// What comes before the data of a WRITE, in bytes.
const BEFORE_DATA: usize = size_of::<InHeader>() + size_of::<WriteIn>();

/// Takes requests until the mount is gone; with `linger` the next one is looked for a while before the thread sleeps, and
/// the connection must not wait. On a `processor` of its own, beside threads on all the others, it leaves to each of them
/// what comes from there.
pub(super) fn work(
    server: &Arc<Server>,
    agreed: &Agreed,
    linger: Option<&Linger>,
    processor: Option<usize>,
) -> io::Result<()> {
    let mut desk = Desk::new(agreed)?;
    let leaves = processor.is_some_and(|processor| Affinity::to(processor).is_kept());
    loop {
        let mut came = desk.receive(server)?;
        if let Some(linger) = linger.filter(|_| came == Received::Nothing) {
            let mut left = Left::default();
            let look = |look| {
                if leaves && left.is_to_others(look, || server.connection.has_news()) {
                    return None;
                }
                Some(desk.receive(server)).filter(|came| !matches!(came, Ok(Received::Nothing)))
            };
            came = linger.look_for(look).unwrap_or(Ok(Received::Nothing))?;
        }
        match came {
            Received::End => return Ok(()),
            Received::Request(len) => {
                desk.serve(server, len, linger)?;
            }
            Received::Nothing => server.connection.wait(None)?,
        }
    }
}

/// Takes the requests that come no other way, until the mount is gone, or `halt` is raised, of which `waker` tells.
pub(super) fn work_until(server: &Arc<Server>, agreed: &Agreed, halt: &Halt, waker: &Waker) -> io::Result<()> {
    let mut desk = Desk::new(agreed)?;
    let mut gathering = Gathering::default();
    server.connection.stop_waiting()?;
    while !halt.is_raised() {
        match desk.receive(server)? {
            Received::End => break,
            Received::Request(len) => {
                if let Some(opcode @ (Opcode::Forget | Opcode::BatchForget)) = desk.serve(server, len, None)? {
                    gathering.note(opcode == Opcode::BatchForget, Instant::now());
                }
            }
            Received::Nothing => {
                if let Some(pause) = gathering.pause().filter(|_| has_room(server)) {
                    std::thread::sleep(pause);
                }
                server.connection.wait(Some(waker.as_fd()))?;
            }
        }
    }
    Ok(())
}

/// Returns whether nobody would be refused for the space of removed files, which FORGETs that gather free later.
fn has_room(server: &Server) -> bool {
    /// Of blocks and inodes so many parts are to be free.
    const PARTS: u64 = 8;
    let is_ample = |free: u64, all: u64| free >= all / PARTS;
    server.union.statfs().is_ok_and(|of| is_ample(of.available, of.blocks) && is_ample(of.files_free, of.files))
}

/// Whether FORGETs are left to gather: while one comes upon the other, the programs whose files are forgotten would pay
/// for waking the thread that takes them, each time.
#[derive(Debug, Default)]
struct Gathering {
    /// When some last came.
    last: Option<Instant>,
    /// Whether more are to be expected.
    due: bool,
}

impl Gathering {
    /// One that comes so soon after another is followed by more.
    const SOON: Duration = Duration::from_micros(100);

    /// For how long they gather: the space of a removed file is free that much later, when many are removed.
    const PAUSE: Duration = Duration::from_micros(500);

    /// Notes that one came at `now`, or `several` at once.
    fn note(&mut self, several: bool, now: Instant) {
        self.due = several || self.last.is_some_and(|last| now.saturating_duration_since(last) < Self::SOON);
        self.last = Some(now);
    }

    /// Returns for how long more are left to gather before they are waited for; once for each time that they came.
    fn pause(&mut self) -> Option<Duration> {
        std::mem::take(&mut self.due).then_some(Self::PAUSE)
    }
}

/// What is left to the thread of the processor that its program waits on: that one has a turn there just when the program
/// begins to wait, and wakes it without an interrupt, which costs more than most requests.
#[derive(Debug, Default)]
struct Left {
    /// When it was first seen, in the nanoseconds of a [`Look`].
    since: Option<u64>,
}

impl Left {
    /// How long a request is left to others: they have no turn where somebody computes.
    const PATIENCE: Duration = Duration::from_micros(5);

    /// Returns whether nothing is to be taken at this `look`; `has_news` asks whether there is something.
    fn is_to_others(&mut self, look: Look, has_news: impl FnOnce() -> bool) -> bool {
        if look.after_others {
            return false;
        }
        if !has_news() {
            self.since = None;
            return true;
        }
        let since = *self.since.get_or_insert(look.now);
        u128::from(look.now.saturating_sub(since)) < Self::PATIENCE.as_nanos()
    }
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

    /// Serves the request of `len` bytes that was received, and returns what was asked for.
    fn serve(&mut self, server: &Arc<Server>, len: usize, linger: Option<&Linger>) -> io::Result<Option<Opcode>> {
        if let Some(linger) = linger {
            linger.note_request();
        }
        let message = self.message.get(rustix::param::page_size() - BEFORE_DATA..).unwrap_or_default();
        let request = message.get(..len).ok_or(Malformed).and_then(Request::whole);
        let request = request.map_err(|Malformed| io::Error::other("the kernel sent what is not a request"))?;
        let (unique, opcode) = (request.unique, request.opcode);
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
        Ok(opcode)
    }
}

fn send(connection: &Connection, unique: u64, answer: &Answer) {
    if !matches!(answer, Answer::Nothing) {
        connection.answer(unique, answer.error(), answer.body());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_left_to_others_for_a_while_unless_its_program_has_just_begun_to_wait() {
        let mut left = Left::default();
        let mut is_left = |now, after_others, news| left.is_to_others(Look { now, after_others }, || news);
        let patience = Left::PATIENCE.as_nanos() as u64;
        assert!(is_left(0, false, false));
        assert!(!is_left(1, true, false), "whoever ran here may have asked");
        assert!(is_left(10, false, true) && is_left(9 + patience, false, true));
        assert!(!is_left(10 + patience, false, true), "nobody has taken it");
        assert!(is_left(20 + patience, false, false) && is_left(30 + patience, false, true), "another one");
    }

    #[test]
    fn forgets_gather_while_they_come_one_upon_the_other() {
        let begin = Instant::now();
        let mut gathering = Gathering::default();
        let mut pauses_after = |several, micros| {
            gathering.note(several, begin + Duration::from_micros(micros));
            let pause = gathering.pause();
            assert_eq!(gathering.pause(), None, "once for each time");
            pause.is_some()
        };
        assert!(!pauses_after(false, 0), "a single one waits for nothing");
        assert!(pauses_after(false, 30));
        assert!(pauses_after(true, 600) && pauses_after(true, 1200), "they do gather");
        assert!(!pauses_after(false, 1800), "they do not");
    }
}

//! What the requests of one mount share, and the answers that several of them give.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::answer::Answer;
use super::confine::Confinement;
use super::connection::Connection;
use super::convert::{absent, attr_out, entry_out, errno, opened};
use super::handshake::{Agreed, Wishes};
use super::passthrough::{Handle, Maps, Passthrough, Way};
use super::pool::Pool;
use super::protocol::{CreateOut, EntryOut, FOPEN_KEEP_CACHE, FOPEN_PASSTHROUGH, Opcode, OpenOut};
use super::statistics::{Counts, Statistics};
use super::status::{self, Status};
use super::walk::Walk;
use crate::config::MountConfig;
use crate::error::Result;
use crate::union::{self, Caller, Entry, Fh, InForce, NodeId, OpenFile, Union};

/// What is asked for by who opens a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) how: OpenFile,
    pub(super) maps: Maps,
    /// The thread that asks.
    pub(super) pid: u32,
}

/// What the requests of one mount share.
pub(super) struct Server {
    pub(super) union: Union,
    pub(super) connection: Arc<Connection>,
    pub(super) pool: Pool,
    /// What is listed next; `None` where no other processor could prefetch it.
    pub(super) walk: Option<Walk>,
    pub(super) requests: Counts,
    /// How many FORGETs there were.
    pub(super) forgotten: AtomicU64,
    /// How often a name was not there, which the kernel remembers.
    absences: AtomicU64,
    since: Instant,
    /// The options of the mount, and why they are as they are.
    in_force: Vec<InForce>,
    /// What binds the threads that serve requests.
    pub(super) confinement: Confinement,
    entry_timeout: Duration,
    attr_timeout: Duration,
    pub(super) negative_timeout: Duration,
    /// Who may use the mount besides root, where that is one user alone.
    ///
    /// The kernel knows owner or everybody; that root alone comes besides is checked request by request.
    only: Option<u32>,
    /// Whether the kernel asks to open files; else data is found by node.
    pub(super) opens_files: bool,
    /// Whether the kernel keeps what is written, and when it was, for a while.
    pub(super) writes_back: bool,
    /// Whether every file can be opened again by its node, whoever has it open.
    by_node: bool,
    /// Whether the kernel asks to open directories.
    pub(super) opens_directories: bool,
    /// Whether the kernel itself checks who may set the flags of a file.
    pub(super) checks_flags: bool,
    passthrough: Option<Passthrough>,
}

impl Server {
    /// Makes what serves `union` on `connection`, as was asked for in `wishes` and then agreed.
    pub(super) fn new(
        union: Union,
        connection: Arc<Connection>,
        config: &MountConfig,
        wishes: &Wishes,
        agreed: &Agreed,
    ) -> Self {
        // Each use must begin with a request that can be checked, and nothing may be kept that answers in its place.
        let kept = |timeout: Duration| if wishes.checks_callers { Duration::ZERO } else { timeout };
        const LONG: NonZeroUsize = NonZeroUsize::new(8).expect("is not zero");
        let confinement = Confinement::of(&union, config.sandbox);
        Self {
            union,
            pool: Pool::new(LONG),
            walk: std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1).then(Walk::default),
            requests: Counts::default(),
            forgotten: AtomicU64::new(0),
            absences: AtomicU64::new(0),
            since: Instant::now(),
            in_force: status::in_force(config, wishes, agreed, &confinement),
            confinement,
            entry_timeout: kept(config.entry_timeout),
            attr_timeout: kept(config.attr_timeout),
            negative_timeout: kept(config.negative_timeout),
            only: wishes.checks_callers.then(|| rustix::process::geteuid().as_raw()),
            opens_files: agreed.opens_files,
            writes_back: agreed.writes_back(),
            by_node: !wishes.handles,
            opens_directories: wishes.checks_callers || !agreed.opens_directories_without_asking(),
            checks_flags: agreed.checks_flags(),
            passthrough: agreed.passes_through().then(|| Passthrough::new(connection.clone())),
            connection,
        }
    }

    /// Finishes long work and ends the use of the layers.
    pub(super) fn end(&self) -> Result<()> {
        self.pool.end();
        if let Some(passthrough) = &self.passthrough {
            passthrough.end();
        }
        self.union.end()
    }

    /// Returns what the mount holds and has done.
    pub(super) fn statistics(&self) -> Statistics {
        Statistics {
            usage: self.union.usage(),
            copy_ups: self.union.copy_ups(),
            caches: self.union.caches(),
            quota: self.union.quota_usage(),
            absences: self.absences.load(Ordering::Relaxed), // Relaxed: a count alone.
            requests: self.requests.read(),
        }
    }

    /// Returns what is served, how and why, and what it holds and has done.
    pub(super) fn status(&self) -> Status {
        Status {
            layers: self.union.layers(),
            in_force: self.in_force.iter().chain(self.union.in_force()).cloned().collect(),
            age: self.since.elapsed(),
            statistics: self.statistics(),
        }
    }

    /// Returns that a name is not there, for the kernel to remember, and counts it.
    pub(super) fn absent(&self) -> EntryOut {
        self.absences.fetch_add(1, Ordering::Relaxed); // Relaxed: a count alone.
        absent(self.negative_timeout)
    }

    /// Returns whether `caller` may ask for `opcode`, `None` for one that is not answered here.
    pub(super) fn admits(&self, caller: Caller, opcode: Option<Opcode>) -> bool {
        let Some(owner) = self.only else { return true };
        // What comes after a name was looked up or a file opened, which the kernel also asks for on nobody's behalf.
        let follows = opcode.is_some_and(|opcode| {
            matches!(
                opcode,
                Opcode::Read
                    | Opcode::Write
                    | Opcode::Readdir
                    | Opcode::Readdirplus
                    | Opcode::Fsync
                    | Opcode::Fsyncdir
                    | Opcode::Release
                    | Opcode::Releasedir
                    | Opcode::Forget
                    | Opcode::BatchForget
                    | Opcode::Interrupt
                    | Opcode::Destroy
            )
        });
        follows || caller.uid == owner || caller.uid == 0
    }

    /// Returns an entry with the times for which the kernel may keep it.
    pub(super) fn entry(&self, entry: &Entry) -> EntryOut {
        let entry_valid = if entry.settled { self.entry_timeout } else { Duration::ZERO };
        entry_out(entry.id, &entry.attr, entry_valid, self.attr_valid(entry.keeps_attributes))
    }

    /// Returns attributes with the time for which the kernel may keep them.
    pub(super) fn attr(&self, result: Result<union::Attr>) -> Answer {
        Answer::of(result, |attr| {
            // Only where files are passed through it may be otherwise.
            let kept = self.passthrough.is_none() || self.union.keeps_attributes(NodeId(attr.ino));
            Answer::Attr(attr_out(&attr, self.attr_valid(kept)))
        })
    }

    fn attr_valid(&self, kept: bool) -> Duration {
        if kept { self.attr_timeout } else { Duration::ZERO }
    }

    /// Opens a file.
    pub(super) fn open(&self, id: NodeId, asked: Asked) -> Answer {
        let Some(passthrough) = &self.passthrough else {
            let done = self.union.open(id, asked.how);
            return Answer::of(done, |fh| Answer::Opened(opened(fh.0, FOPEN_KEEP_CACHE)));
        };
        match self.open_through(passthrough, id, asked) {
            Ok(Some(open)) => Answer::Opened(open),
            Ok(None) => {
                // The kernel asks for the attributes anew from then on, and looks the name up again.
                self.union.part(id);
                self.connection.forget_attributes(id);
                if !asked.how.changes() {
                    passthrough.turn_away(id, asked.pid);
                }
                Answer::Error(Errno::STALE)
            }
            Err(error) => Answer::Error(errno(&error)),
        }
    }

    /// Opens a file that the kernel may read and write itself; `None` where the node has readers of a lower file, and who
    /// opens it needs another one.
    fn open_through(&self, passthrough: &Passthrough, id: NodeId, asked: Asked) -> Result<Option<OpenOut>> {
        let how = asked.how;
        let has_come_back = passthrough.has_come_back(id, asked.pid);
        if passthrough.has_lower_readers(id) && (how.changes() || self.union.has_upper_data(id)) {
            let again = self.by_node && has_come_back && !how.changes();
            let backing = if again { passthrough.open_lower_again(id) } else { None };
            return Ok(backing.map(|backing| self.open_out(id, None, &Way::Backed(backing))));
        }
        if self.by_node
            && how == OpenFile::Read
            && let Some(way) = self.open_lower(passthrough, id)?
        {
            return Ok(Some(self.open_out(id, None, &way)));
        }
        let fh = self.union.open(id, how)?;
        self.hand_out(id, fh, asked)
    }

    /// Opens `id` for reading where a lower layer has its data; `None` where upper does.
    fn open_lower(&self, passthrough: &Passthrough, id: NodeId) -> Result<Option<Way>> {
        if self.union.has_upper_data(id) {
            return Ok(None);
        }
        if let Some(backing) = passthrough.open_lower_again(id) {
            return Ok(Some(Way::Backed(backing)));
        }
        let Some(file) = self.union.open_lower(id)? else { return Ok(None) };
        Ok(Some(passthrough.open(id, &self.lower_handle(id, file.as_fd()))))
    }

    /// Returns how a lower file is to be served.
    fn lower_handle<'a>(&self, id: NodeId, file: BorrowedFd<'a>) -> Handle<'a> {
        // An empty file has nothing to pass through, and is there to be locked, which a node that parts would hinder. And a
        // node that somebody was sent to must have no readers of the lower file, or the kernel would be told ESTALE twice.
        let empty = rustix::fs::fstat(file).is_ok_and(|stat| stat.st_size == 0);
        Handle { file, upper: false, apart: empty || self.union.has_parted(id) }
    }

    /// Settles how the handle `fh` of `id` is served, and closes it where it would have nothing to do: what the kernel does
    /// not read and write by itself is found by node. `None` where it cannot be served.
    fn hand_out(&self, id: NodeId, fh: Fh, asked: Asked) -> Result<Option<OpenOut>> {
        let way = self.way(id, fh);
        // Programs that run are known by the handles that were opened for running them.
        let keeps = !self.by_node || asked.how == OpenFile::Execute;
        if !keeps || !matches!(way, Ok(Way::Backed(_) | Way::Served)) {
            self.union.close(fh);
        }
        let way = way?;
        if asked.maps == Maps::Perhaps && matches!(way, Way::Backed(_)) && self.union.note_unseen_changes(id) {
            self.connection.forget_attributes(id);
        }
        Ok((!matches!(way, Way::Part)).then(|| self.open_out(id, keeps.then_some(fh), &way)))
    }

    /// Returns an open file that is served in this way.
    fn open_out(&self, id: NodeId, fh: Option<Fh>, way: &Way) -> OpenOut {
        let fh = fh.map_or(0, |fh| fh.0);
        match *way {
            // Without FOPEN_KEEP_CACHE, so that the kernel drops what it has of a file that was served before: what is written
            // to the backing file does not come there.
            Way::Backed(backing_id) => OpenOut { fh, open_flags: FOPEN_PASSTHROUGH, backing_id },
            // The same for a file with two nodes: what is written by one does not come to the other.
            _ if self.union.has_parted(id) => opened(fh, 0),
            Way::Served | Way::Part => opened(fh, FOPEN_KEEP_CACHE),
        }
    }

    fn way(&self, id: NodeId, fh: Fh) -> Result<Way> {
        let Some(passthrough) = &self.passthrough else { return Ok(Way::Served) };
        self.union.with_handle(fh, |file, upper| {
            let handle = if upper {
                // The kernel would not clear privileges when it writes by itself.
                Handle { file, upper, apart: self.union.has_privileges(file)? }
            } else {
                self.lower_handle(id, file)
            };
            Ok(passthrough.open(id, &handle))
        })?
    }

    /// Answers a CREATE that has made `entry`.
    pub(super) fn created(&self, entry: &Entry, asked: Asked) -> Answer {
        let mut entry = *entry;
        if self.passthrough.is_some() && asked.maps == Maps::Perhaps {
            // Before the kernel knows of the file, so that it need not be told.
            self.union.note_unseen_changes(entry.id);
            entry.keeps_attributes = false;
        }
        let opened = self.union.open(entry.id, asked.how).and_then(|fh| self.hand_out(entry.id, fh, asked));
        match opened {
            Ok(Some(open)) => Answer::Created(CreateOut { entry: self.entry(&entry), open }),
            // The name stays, as after any create whose open fails. The kernel knows neither node nor handle of it, and
            // keeps that there is none until it is told otherwise.
            failed => {
                self.union.forget(entry.id, 1);
                Answer::Error(failed.err().map_or(Errno::STALE, |error| errno(&error)))
            }
        }
    }

    /// Takes `count` from the lookups of `id`.
    pub(super) fn forget(&self, id: NodeId, count: u64) {
        if let Some(passthrough) = &self.passthrough {
            passthrough.forget(id);
        }
        self.union.forget(id, count);
    }

    /// Ends a use of `id`, and the handle that it had if it had one.
    pub(super) fn close(&self, id: NodeId, fh: Option<Fh>) {
        if let Some(passthrough) = &self.passthrough {
            passthrough.close(id);
        }
        if let Some(fh) = fh {
            self.union.close(fh);
        }
    }
}

//! What the requests of one mount share, and the answers that several of them give.

use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use rustix::io::Errno;

use super::answer::Answer;
use super::connection::Connection;
use super::convert::{attr_out, entry_out, errno, opened};
use super::handshake::{Agreed, Wishes};
use super::passthrough::{Passthrough, Way};
use super::pool::Pool;
use super::protocol::{CreateOut, EntryOut, FOPEN_KEEP_CACHE, FOPEN_PASSTHROUGH, Opcode, OpenOut};
use super::statistics::{Counts, Statistics};
use crate::config::MountConfig;
use crate::error::Result;
use crate::union::{self, Caller, Entry, Fh, NodeId, OpenFile, Union};

/// What the requests of one mount share.
pub(super) struct Server {
    pub(super) union: Union,
    pub(super) connection: Arc<Connection>,
    pub(super) pool: Pool,
    pub(super) requests: Counts,
    /// How many FORGETs there were.
    pub(super) forgotten: AtomicU64,
    entry_timeout: Duration,
    attr_timeout: Duration,
    pub(super) negative_timeout: Duration,
    /// Who may use the mount besides root, where that is one user alone.
    ///
    /// The kernel knows owner or everybody; that root alone comes besides is checked request by request.
    only: Option<u32>,
    /// Whether each open is a handle; else data is found by node.
    pub(super) opens_files: bool,
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
        Self {
            union,
            pool: Pool::new(LONG),
            requests: Counts::default(),
            forgotten: AtomicU64::new(0),
            entry_timeout: kept(config.entry_timeout),
            attr_timeout: kept(config.attr_timeout),
            negative_timeout: kept(config.negative_timeout),
            only: wishes.checks_callers.then(|| rustix::process::geteuid().as_raw()),
            opens_files: agreed.handles,
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
        self.union.end()
    }

    /// Returns what the mount holds and has done.
    pub(super) fn statistics(&self) -> Statistics {
        Statistics { usage: self.union.usage(), copy_ups: self.union.copy_ups(), requests: self.requests.read() }
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
        entry_out(entry.id, &entry.attr, entry_valid, self.attr_valid(entry.id.0 != entry.attr.ino))
    }

    /// Returns attributes with the time for which the kernel may keep them.
    pub(super) fn attr(&self, result: Result<union::Attr>) -> Answer {
        Answer::of(result, |attr| {
            let parted = self.passthrough.is_some() && self.union.has_parted(NodeId(attr.ino));
            Answer::Attr(attr_out(&attr, self.attr_valid(parted)))
        })
    }

    /// How long the kernel keeps attributes: not at all those of a file that has parted, since what changes through one node
    /// of it is not told to the other.
    fn attr_valid(&self, parted: bool) -> Duration {
        if parted { Duration::ZERO } else { self.attr_timeout }
    }

    /// Opens a file for a handle.
    pub(super) fn open(&self, id: NodeId, how: OpenFile) -> Answer {
        if let Some(passthrough) = &self.passthrough
            && passthrough.has_lower_readers(id)
            && (how.changes() || self.union.has_upper_data(id))
        {
            return self.part(id);
        }
        if let Some(passthrough) = self.passthrough.as_ref().filter(|_| self.by_node && how == OpenFile::Read) {
            match self.open_lower(passthrough, id) {
                Ok(Some(way)) => return Answer::Opened(open_out(None, &way)),
                Ok(None) => {}
                Err(error) => return Answer::Error(errno(&error)),
            }
        }
        let fh = match self.union.open(id, how) {
            Ok(fh) => fh,
            Err(error) => return Answer::Error(errno(&error)),
        };
        match self.way(id, fh) {
            Ok(Way::Part) => {
                self.union.close(fh);
                self.part(id)
            }
            Ok(way) => Answer::Opened(open_out(Some(fh), &way)),
            Err(error) => {
                self.union.close(fh);
                Answer::Error(errno(&error))
            }
        }
    }

    /// Opens `id` for reading without a handle, which would have nothing to do: what the kernel does not read by itself is
    /// found by node. `None` where upper has the file, or its data.
    fn open_lower(&self, passthrough: &Passthrough, id: NodeId) -> Result<Option<Way>> {
        if self.union.has_upper_data(id) {
            return Ok(None);
        }
        if let Some(backing) = passthrough.open_lower_again(id) {
            return Ok(Some(Way::Backed(backing)));
        }
        // Whoever wants to write to it has another node, so that privileges play no part.
        Ok(self.union.open_lower(id)?.map(|file| passthrough.open(id, false, false, file.as_fd())))
    }

    /// Parts a file from the readers of `id`, whose kernel asks for its attributes anew from then on, and has the name
    /// looked up again.
    fn part(&self, id: NodeId) -> Answer {
        self.union.part(id);
        self.connection.forget_attributes(id);
        Answer::Error(Errno::STALE)
    }

    /// Settles how the handle `fh` of `id` is served.
    fn way(&self, id: NodeId, fh: Fh) -> Result<Way> {
        let Some(passthrough) = &self.passthrough else { return Ok(Way::Served) };
        self.union.with_handle(fh, |fd, upper| {
            let privileged = upper && self.union.has_privileges(id, fd)?;
            Ok(passthrough.open(id, upper, privileged, fd))
        })?
    }

    /// Answers a CREATE that has made `entry`.
    pub(super) fn created(&self, entry: &Entry) -> Answer {
        let opened = self.union.open(entry.id, OpenFile::Write).and_then(|fh| {
            let way = self.way(entry.id, fh).inspect_err(|_| self.union.close(fh))?;
            Ok(open_out(Some(fh), &way))
        });
        match opened {
            Ok(open) => Answer::Created(CreateOut { entry: self.entry(entry), open }),
            Err(error) => {
                // The name stays, as after any create whose open fails. The kernel knows neither node nor handle of it, and
                // keeps that there is none until it is told otherwise.
                self.union.forget(entry.id, 1);
                Answer::Error(errno(&error))
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

/// Returns an open file that is served in this way.
fn open_out(fh: Option<Fh>, way: &Way) -> OpenOut {
    let fh = fh.map_or(0, |fh| fh.0);
    match *way {
        // Without FOPEN_KEEP_CACHE, so that the kernel drops what it has of a file that was served before: what is written to
        // the backing file does not come there.
        Way::Backed(backing_id) => OpenOut { fh, open_flags: FOPEN_PASSTHROUGH, backing_id },
        // A new file, which alone comes here so, has no readers of a lower one to part from.
        Way::Served | Way::Part => opened(fh, FOPEN_KEEP_CACHE),
    }
}

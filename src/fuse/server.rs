//! What the requests of one mount share, and the answers that several of them give.

use std::num::{NonZeroU32, NonZeroUsize};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fuser::{
    BackingId, Errno, FileHandle, FopenFlags, Generation, OpenFlags, ReplyAttr, ReplyCreate, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, ReplyXattr,
};

use super::convert::{attributes, entry_attributes, errno};
use super::notices::Notices;
use super::passthrough::{Answer, Passthrough};
use super::pool::Pool;
use super::statistics::{Counts, Statistics};
use crate::config::{Access, IoMode, MountConfig};
use crate::error::{Error, Result};
use crate::sys::caps;
use crate::union::{self, Caller, Entry, Fh, NodeId, OpenFile, Union};

/// Numbers are never given to another file while the kernel knows one, so one generation is enough.
pub(super) const GENERATION: Generation = Generation(0);

/// What the requests of one mount share.
pub(super) struct Server {
    pub(super) union: Union,
    pub(super) pool: Pool,
    pub(super) notices: Notices,
    pub(super) requests: Counts,
    /// How many FORGETs there were.
    pub(super) forgotten: AtomicU64,
    pub(super) entry_timeout: Duration,
    attr_timeout: Duration,
    pub(super) negative_timeout: Duration,
    /// Whether the kernel is to ask for ACLs: it does so to check them.
    pub(super) acls: bool,
    pub(super) max_write: Option<NonZeroU32>,
    /// Whether each open is a handle: for a server that may not open every file again by itself or must ask who opens, for
    /// passthrough, and for a kernel that does not open files without asking. Else data is found by node.
    pub(super) opens_files: AtomicBool,
    /// Whether the kernel asks to open directories.
    pub(super) opens_directories: AtomicBool,
    /// Whether the kernel itself checks who may set the flags of a file.
    pub(super) checks_flags: AtomicBool,
    pub(super) offered: Option<Passthrough>,
    pub(super) passthrough_on: AtomicBool,
}

impl Server {
    pub(super) fn new(union: Union, config: &MountConfig) -> Self {
        let wanted = config.io == IoMode::Passthrough;
        let able = caps::effective(rustix::thread::CapabilitySet::SYS_ADMIN) && caps::in_initial_user_namespace();
        if wanted && !able {
            log::warn!("passthrough needs root in the initial user namespace; files are served by the page cache");
        }
        let passthrough = (wanted && able).then(Passthrough::default);
        // Without CAP_DAC_OVERRIDE a file whose mode forbids its owner to open it can be used through the handle that
        // was opened before alone.
        let all_powerful = caps::effective(rustix::thread::CapabilitySet::DAC_OVERRIDE);
        // The kernel knows owner or everybody; that root alone comes besides is checked request by request, by fuser. So each
        // use must begin with one, and nothing may be kept that answers in its place.
        let checked = config.access == Access::Root;
        let opens_files = AtomicBool::new(passthrough.is_some() || !all_powerful || checked);
        let kept = |timeout: Duration| if checked { Duration::ZERO } else { timeout };
        let acls = config.default_permissions && union.has_acls();
        const LONG: NonZeroUsize = NonZeroUsize::new(8).expect("is not zero");
        Self {
            union,
            pool: Pool::new(LONG),
            notices: Notices::default(),
            requests: Counts::default(),
            forgotten: AtomicU64::new(0),
            entry_timeout: kept(config.entry_timeout),
            attr_timeout: kept(config.attr_timeout),
            negative_timeout: kept(config.negative_timeout),
            acls,
            max_write: config.max_write,
            opens_files,
            opens_directories: AtomicBool::new(checked),
            checks_flags: AtomicBool::new(false),
            offered: passthrough,
            passthrough_on: AtomicBool::new(false),
        }
    }

    /// Finishes long work and ends the use of the layers.
    pub(super) fn end(&self) -> Result<()> {
        self.pool.end();
        self.notices.end();
        self.union.end()
    }

    /// Returns what the mount holds and has done.
    pub(super) fn statistics(&self) -> Statistics {
        Statistics { usage: self.union.usage(), copy_ups: self.union.copy_ups(), requests: self.requests.read() }
    }

    pub(super) fn opens_files(&self) -> bool {
        self.opens_files.load(Ordering::Relaxed) // Relaxed: settled by the handshake, before any request.
    }

    pub(super) fn passthrough(&self) -> Option<&Passthrough> {
        // Relaxed: settled by the handshake, before any request.
        self.offered.as_ref().filter(|_| self.passthrough_on.load(Ordering::Relaxed))
    }

    pub(super) fn entry(&self, reply: ReplyEntry, result: Result<Entry>) {
        match result {
            Ok(entry) => {
                let attr = entry_attributes(entry.id, &entry.attr);
                reply.entry_with_ttls(&self.attr_ttl(&entry), &self.entry_ttl(&entry), &attr, GENERATION);
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    /// How long the kernel uses a name without looking it up again.
    pub(super) fn entry_ttl(&self, entry: &Entry) -> Duration {
        if entry.settled { self.entry_timeout } else { Duration::ZERO }
    }

    /// How long the kernel keeps the attributes of an entry: not at all where they hold the node's number in place
    /// of the inode's, so that it asks for the right ones.
    pub(super) fn attr_ttl(&self, entry: &Entry) -> Duration {
        if entry.id.0 == entry.attr.ino { self.attr_timeout } else { Duration::ZERO }
    }

    pub(super) fn attr(&self, reply: ReplyAttr, result: Result<union::Attr>) {
        match result {
            Ok(attr) => {
                // What changes through one node of a parted file is not told to the other.
                let parted = self.passthrough().is_some() && self.union.has_parted(NodeId(attr.ino));
                let ttl = if parted { Duration::ZERO } else { self.attr_timeout };
                reply.attr(&ttl, &attributes(&attr));
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    pub(super) fn open(&self, id: NodeId, flags: OpenFlags, caller: Caller, reply: ReplyOpen) {
        let how = open_how(flags, caller);
        let passthrough = self.passthrough();
        if passthrough.is_some_and(|p| p.has_lower_readers(id)) && (how.changes() || self.union.has_upper_data(id)) {
            self.part(id);
            return reply.error(Errno::ESTALE);
        }
        let fh = match self.union.open(id, how) {
            Ok(fh) => fh,
            Err(error) => return reply.error(errno(&error)),
        };
        let answer = self.answer(id, fh, |fd| reply.open_backing(fd));
        match answer {
            Ok(Answer::Backed(backing)) => reply.opened_passthrough(FileHandle(fh.0), FopenFlags::empty(), &backing),
            Ok(Answer::Served) => reply.opened(FileHandle(fh.0), FopenFlags::FOPEN_KEEP_CACHE),
            Ok(Answer::Part) => {
                self.union.close(fh);
                self.part(id);
                reply.error(Errno::ESTALE);
            }
            Err(error) => {
                self.union.close(fh);
                reply.error(errno(&error));
            }
        }
    }

    /// Parts a file from the readers of `id`, whose kernel asks for its attributes anew from then on.
    fn part(&self, id: NodeId) {
        self.union.part(id);
        self.notices.forget_attributes(id);
    }

    /// Settles how the handle `fh` of `id` is served.
    fn answer(
        &self,
        id: NodeId,
        fh: Fh,
        register: impl FnOnce(BorrowedFd<'_>) -> std::io::Result<BackingId>,
    ) -> Result<Answer> {
        let Some(passthrough) = self.passthrough() else { return Ok(Answer::Served) };
        self.union.with_handle(fh, |fd, upper| {
            let privileged = self.union.has_privileges(id, fd)?;
            Ok(passthrough.open(id, upper, privileged, || register(fd)))
        })?
    }

    pub(super) fn created(&self, entry: &Entry, reply: ReplyCreate) {
        let attr = entry_attributes(entry.id, &entry.attr);
        let ttl = self.entry_ttl(entry).min(self.attr_ttl(entry));
        if !self.opens_files() {
            return reply.created(&ttl, &attr, GENERATION, FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        }
        // The name stays, as after any create whose open fails. The kernel knows neither node nor handle of it, and keeps
        // that there is none until it is told otherwise.
        let fail = |reply: ReplyCreate, error: &Error| {
            self.union.forget(entry.id, 1);
            reply.error(errno(error));
        };
        let fh = match self.union.open(entry.id, OpenFile::Write) {
            Ok(fh) => fh,
            Err(error) => return fail(reply, &error),
        };
        let answer = self.answer(entry.id, fh, |fd| reply.open_backing(fd));
        match answer {
            Ok(Answer::Backed(backing)) => {
                reply.created_passthrough(&ttl, &attr, GENERATION, FileHandle(fh.0), FopenFlags::empty(), &backing);
            }
            // A new file has no readers of a lower one.
            Ok(Answer::Served | Answer::Part) => {
                reply.created(&ttl, &attr, GENERATION, FileHandle(fh.0), FopenFlags::FOPEN_KEEP_CACHE);
            }
            Err(error) => {
                self.union.close(fh);
                fail(reply, &error);
            }
        }
    }

    /// Writes through a handle where there is one, else by node.
    pub(super) fn write(
        &self,
        id: NodeId,
        fh: Option<Fh>,
        offset: u64,
        data: &[u8],
        unprivileged: Option<Caller>,
        reply: ReplyWrite,
    ) {
        let written = match fh {
            Some(fh) => self.union.write_handle(fh, offset, data, unprivileged),
            None => self.union.write(id, offset, data, unprivileged),
        };
        match written {
            Ok(len) => reply.written(len as u32),
            Err(error) => reply.error(errno(&error)),
        }
    }
}

/// Answers with nothing or an error.
pub(super) fn finish(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(&error)),
    }
}

/// Answers with a value, or with its length where that is what was asked for.
pub(super) fn answer_xattr(reply: ReplyXattr, value: &[u8], size: u32) {
    if size == 0 {
        reply.size(value.len() as u32);
    } else if value.len() > size as usize {
        reply.error(Errno::ERANGE);
    } else {
        reply.data(value);
    }
}

/// What an open asks for.
pub(super) fn open_how(flags: OpenFlags, caller: Caller) -> OpenFile {
    // Linux's own flag (`__FMODE_EXEC`), which no program can give.
    const EXECUTE: i32 = 0x20;
    match flags.0 & libc::O_ACCMODE {
        libc::O_RDONLY if flags.0 & libc::O_TRUNC != 0 => OpenFile::Empty(caller),
        libc::O_RDONLY if flags.0 & EXECUTE != 0 => OpenFile::Execute,
        libc::O_RDONLY => OpenFile::Read,
        _ if flags.0 & libc::O_TRUNC != 0 => OpenFile::Truncate(caller),
        _ if flags.0 & libc::O_APPEND != 0 => OpenFile::Append,
        _ => OpenFile::Write,
    }
}

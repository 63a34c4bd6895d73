//! What requests are answered with.

use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::convert::errno;
use super::protocol::{AttrOut, CreateOut, EntryOut, GetxattrOut, LseekOut, OpenOut, StatfsOut, WriteOut};
use super::server::Server;
use crate::error::Result;

/// The answer to a request.
pub(super) enum Answer {
    /// It was done, and there is nothing else to say.
    Done,
    Error(Errno),
    Entry(EntryOut),
    Created(CreateOut),
    Attr(AttrOut),
    Opened(OpenOut),
    Written(WriteOut),
    Offset(LseekOut),
    Size(GetxattrOut),
    Statfs(StatfsOut),
    /// These bytes.
    Bytes(Vec<u8>),
    /// So many bytes of the buffer that the request was served with.
    Buffer(usize),
    /// The kernel waits for none.
    Nothing,
}

impl Answer {
    /// Returns whether more descriptors were needed than could be had.
    pub(super) fn lacks_descriptors(&self) -> bool {
        matches!(self, Self::Error(Errno::MFILE))
    }

    /// Returns the number that says how it went, as the protocol has it.
    pub(super) fn error(&self) -> i32 {
        /// Numbers from here on are the kernel's own; it takes no answer with one, and whoever asked would wait for ever.
        const INTERNAL: i32 = 512;
        match self {
            Self::Error(errno) if errno.raw_os_error() < INTERNAL => -errno.raw_os_error(),
            Self::Error(_) => -Errno::IO.raw_os_error(),
            _ => 0,
        }
    }

    /// Returns what follows the header, but for what is in the buffer of the request.
    pub(super) fn body(&self) -> &[u8] {
        match self {
            Self::Done | Self::Error(_) | Self::Buffer(_) | Self::Nothing => &[],
            Self::Entry(out) => out.as_bytes(),
            Self::Created(out) => out.as_bytes(),
            Self::Attr(out) => out.as_bytes(),
            Self::Opened(out) => out.as_bytes(),
            Self::Written(out) => out.as_bytes(),
            Self::Offset(out) => out.as_bytes(),
            Self::Size(out) => out.as_bytes(),
            Self::Statfs(out) => out.as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }

    /// Answers with what `shown` makes of a result, or with its error.
    pub(super) fn of<T>(result: Result<T>, shown: impl FnOnce(T) -> Self) -> Self {
        match result {
            Ok(value) => shown(value),
            Err(error) => Self::Error(errno(&error)),
        }
    }

    /// Answers that it was done, or with its error.
    pub(super) fn done(result: Result<()>) -> Self {
        Self::of(result, |()| Self::Done)
    }

    /// Answers that so many bytes of the buffer are it, or with its error.
    pub(super) fn buffer(result: Result<usize>) -> Self {
        Self::of(result, Self::Buffer)
    }
}

/// Work that copies data or waits for a disk, and whose result is the answer. What has failed can be done once more.
pub(super) type Long = Box<dyn Fn(&Server) -> Answer + Send>;

/// What becomes of a request.
pub(super) enum Served {
    /// It is answered.
    Now(Answer),
    /// It will be answered, once this has been done where nobody waits for it.
    Later(Long),
}

impl Served {
    /// Leaves `work` to the pool.
    pub(super) fn later(work: impl Fn(&Server) -> Answer + Send + 'static) -> Self {
        Self::Later(Box::new(work))
    }
}

impl From<Answer> for Served {
    fn from(answer: Answer) -> Self {
        Self::Now(answer)
    }
}

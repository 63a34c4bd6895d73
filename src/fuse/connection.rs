//! The connection to the kernel: the descriptor of /dev/fuse that a mount was made with.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::{Errno, Result};
use smallvec::SmallVec;
use zerocopy::IntoBytes;

use super::protocol::{NOTIFY_INVAL_INODE, NotifyInvalInodeOut, OutHeader};
use crate::sys::fuse_device;
use crate::union::NodeId;

/// Room for the header of an answer.
pub(super) const HEADER: usize = size_of::<OutHeader>();

/// What reading has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// A request of so many bytes.
    Request(usize),
    /// There is none at the moment.
    Nothing,
    /// The mount is gone.
    End,
}

/// An open /dev/fuse that belongs to a mount.
#[derive(Debug)]
pub(super) struct Connection {
    device: OwnedFd,
}

impl Connection {
    pub(super) fn new(device: OwnedFd) -> Self {
        Self { device }
    }

    /// Returns the descriptor of it.
    pub(super) fn device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// Reads a request, waiting for it unless [`Connection::stop_waiting`] was called.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> Result<Received> {
        loop {
            return match rustix::io::read(&self.device, &mut *buffer) {
                Ok(len) => Ok(Received::Request(len)),
                // CONNABORTED: it went while the request was read.
                Err(Errno::NODEV | Errno::CONNABORTED) => Ok(Received::End),
                Err(Errno::AGAIN) => Ok(Received::Nothing),
                // NOENT: the program that asked was killed before the request was read.
                Err(Errno::INTR | Errno::NOENT) => continue,
                Err(errno) => Err(errno),
            };
        }
    }

    /// Has [`Connection::receive`] return at once from now on; [`Connection::wait`] waits.
    pub(super) fn stop_waiting(&self) -> Result<()> {
        let flags = rustix::fs::fcntl_getfl(&self.device)?;
        rustix::fs::fcntl_setfl(&self.device, flags | OFlags::NONBLOCK)
    }

    /// Returns whether there is a request, or the end, to be received.
    pub(super) fn has_news(&self) -> bool {
        let mut device = [PollFd::from_borrowed_fd(self.device.as_fd(), PollFlags::IN)];
        poll(&mut device, Some(&Timespec::default())) != Ok(0)
    }

    /// Waits for a request, for the end, or for somebody to wake `waker`; it may also return for nothing.
    pub(super) fn wait(&self, waker: Option<BorrowedFd<'_>>) -> Result<()> {
        let watched = [Some(self.device.as_fd()), waker];
        let mut polled: SmallVec<[PollFd<'_>; 2]> =
            watched.into_iter().flatten().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        match poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR | Errno::AGAIN | Errno::NOMEM) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Answers the request `unique`.
    pub(super) fn answer(&self, unique: u64, error: i32, body: &[u8]) {
        match self.send(unique, error, body) {
            Ok(()) => {}
            // Whoever asked was killed meanwhile, or the mount is gone.
            Err(errno @ (Errno::NOENT | Errno::NODEV)) => {
                log::debug!("the answer to request {unique} is not taken: {errno}");
            }
            // A program would wait for it for ever.
            Err(errno) => {
                log::error!("the answer to request {unique} is not taken ({errno}), and is an error in its place");
                if let Err(errno) = self.send(unique, -Errno::IO.raw_os_error(), &[]) {
                    log::error!("nor is that: {errno}");
                }
            }
        }
    }

    fn send(&self, unique: u64, error: i32, body: &[u8]) -> Result<()> {
        let header = OutHeader { len: (HEADER + body.len()) as u32, error, unique };
        loop {
            match rustix::io::writev(&self.device, &[IoSlice::new(header.as_bytes()), IoSlice::new(body)]) {
                Err(Errno::INTR) => {}
                // The kernel has no room at the moment.
                Err(Errno::AGAIN | Errno::NOMEM) => std::thread::sleep(Duration::from_millis(1)),
                sent => return sent.map(|_| ()),
            }
        }
    }

    /// Lets go of the kernel, which ends the mount and what waits for answers.
    pub(super) fn disconnect(&self) {
        if let Err(errno) = fuse_device::disconnect(self.device.as_fd()) {
            log::error!("the connection cannot be ended: {errno}");
        }
    }

    /// Has the kernel ask for the attributes of `id` anew.
    ///
    /// Nothing may be told to the kernel that waits there for a directory: its holder may be waiting for an answer, and
    /// neither it nor a daemon that was killed would end.
    pub(super) fn forget_attributes(&self, id: NodeId) {
        // Less than 0: the attributes alone, so that it waits for no page.
        let notice = NotifyInvalInodeOut { ino: id.0, off: -1, len: 0 };
        let len = (HEADER + size_of::<NotifyInvalInodeOut>()) as u32;
        let header = OutHeader { len, error: NOTIFY_INVAL_INODE, unique: 0 };
        let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(notice.as_bytes())];
        if let Err(errno) = rustix::io::writev(&self.device, &parts) {
            // ENOENT: the kernel has forgotten the inode already.
            log::debug!("notice: {errno}");
        }
    }

    /// Makes `file` known to the kernel as one that it may read and write by itself, and returns its number.
    pub(super) fn open_backing(&self, file: BorrowedFd<'_>) -> Result<u32> {
        fuse_device::open_backing(self.device.as_fd(), file)
    }

    /// Has the kernel forget a backing file; what is open goes on with it.
    pub(super) fn close_backing(&self, backing: u32) {
        if let Err(errno) = fuse_device::close_backing(self.device.as_fd(), backing) {
            log::debug!("closing the backing file {backing}: {errno}");
        }
    }
}

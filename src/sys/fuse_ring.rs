//! FUSE over io_uring: the kernel's side of a queue of requests, `Documentation/filesystems/fuse/fuse-io-uring.rst`.
//!
//! A queue lends [`Entry`]s to the kernel. One comes back with a request in it, belongs to whoever holds it, and goes to
//! the kernel again with the answer. So memory that the kernel may write to is never reachable from here.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::squeue::Entry128;
use io_uring::types::{Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode};
use rustix::event::EventfdFlags;
use rustix::io::Errno;

use super::memory::Pages;

/// `FUSE_IO_URING_CMD_REGISTER`: lends an entry for the first time.
const REGISTER: u32 = 1;
/// `FUSE_IO_URING_CMD_COMMIT_AND_FETCH`: answers what is in an entry, and lends it.
const COMMIT_AND_FETCH: u32 = 2;

/// `struct fuse_uring_req_header`: where its parts are.
const FIXED_AT: usize = 128;
const COMMIT_ID_AT: usize = 264;
const PAYLOAD_LEN_AT: usize = 272;
const HEADER_LEN: usize = 288;

/// The header of an answer: `struct fuse_out_header`.
const OUT_HEADER_LEN: usize = 16;

/// The number of `len` in `struct io_uring_sqe`, which the crate does not set for a command.
const SQE_LEN_AT: usize = 24;

/// What a completion is of, besides the entry of this index.
const WAKE: u64 = u64::MAX;

/// The index of each descriptor among the registered ones.
const DEVICE: Fixed = Fixed(0);
const EVENT: Fixed = Fixed(1);

/// `struct fuse_uring_req_header`.
#[repr(C, align(8))]
struct Header([u8; HEADER_LEN]);

/// The memory of a request and its answer.
pub struct Entry {
    index: usize,
    header: Box<Header>,
    payload: Pages,
}

/// A request in an entry, and the room for its answer.
pub struct Parts<'a> {
    /// `struct fuse_in_header` and what follows it, up to the fixed arguments.
    pub header: &'a [u8],
    /// The fixed arguments, as long as the largest of them.
    pub fixed: &'a [u8],
    /// Where names and data came, and the body of the answer goes.
    pub payload: &'a mut [u8],
    /// How much of it came with the request.
    pub received: usize,
}

impl Entry {
    fn new(index: usize, payload: usize) -> io::Result<Self> {
        Ok(Self { index, header: Box::new(Header([0; HEADER_LEN])), payload: Pages::new(payload)? })
    }

    /// Returns where the kernel finds header and payload.
    fn areas(&mut self) -> [libc::iovec; 2] {
        let header = libc::iovec { iov_base: (&raw mut *self.header).cast(), iov_len: HEADER_LEN };
        [header, libc::iovec { iov_base: self.payload.as_mut_ptr().cast(), iov_len: self.payload.len() }]
    }

    /// Returns the request.
    pub fn parts(&mut self) -> Parts<'_> {
        let header = &self.header.0;
        let received = u32::from_ne_bytes(header[PAYLOAD_LEN_AT..PAYLOAD_LEN_AT + 4].try_into().unwrap_or_default());
        Parts {
            header: &header[..FIXED_AT],
            fixed: &header[FIXED_AT..2 * FIXED_AT],
            received: self.payload.len().min(received as usize),
            payload: &mut self.payload,
        }
    }

    /// Sets the answer: its header, and how much of the payload is its body.
    pub fn set_answer(&mut self, header: [u8; OUT_HEADER_LEN], body: u32) {
        self.header.0[..OUT_HEADER_LEN].copy_from_slice(&header);
        self.header.0[PAYLOAD_LEN_AT..PAYLOAD_LEN_AT + 4].copy_from_slice(&body.to_ne_bytes());
    }

    fn commit_id(&self) -> u64 {
        u64::from_ne_bytes(self.header.0[COMMIT_ID_AT..COMMIT_ID_AT + 8].try_into().unwrap_or_default())
    }
}

/// Wakes a thread that waits for a queue, or polls this.
#[derive(Debug, Clone)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// Makes one that nobody waits for yet. Errors: those of eventfd(2).
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?)))
    }

    /// Has [`Queue::wait`] return, and poll(2).
    pub fn wake(&self) {
        // Fails only where 2⁶⁴ - 2 wakings wait, and then the thread wakes anyhow.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What has happened to a queue.
pub enum Event {
    /// A request has come.
    Request(Entry),
    /// An entry is not used any more: the mount is gone (ENOTCONN), or the kernel has refused it.
    Ended(Errno),
    /// [`Waker::wake`] was called.
    Woken,
}

/// The requests of one processor. It belongs to the thread that has made it.
pub struct Queue {
    ring: IoUring<Entry128, cqueue::Entry>,
    id: u16,
    /// The entries that the kernel has, or has not been given yet, by index.
    lent: Vec<Option<Entry>>,
    /// Where header and payload of each are, as the kernel reads it when it takes a command for the first time.
    areas: Vec<[libc::iovec; 2]>,
    /// Whether the kernel may have any of them.
    registered: bool,
    waker: Waker,
    /// What the waking is read into.
    woken: Box<[u8; 8]>,
    /// Whether that is being waited for.
    listens: bool,
}

impl Queue {
    /// Makes the queue `id` of the connection `device`, with `depth` entries of `payload` bytes each.
    ///
    /// Errors: those of io_uring_setup(2), where this process may have no ring, and of mmap(2).
    pub fn new(device: BorrowedFd<'_>, id: u16, depth: u16, payload: usize) -> io::Result<Self> {
        // One more for the waker.
        let entries = (u32::from(depth) + 1).next_power_of_two();
        let ring = IoUring::<Entry128, cqueue::Entry>::builder()
            .setup_single_issuer()
            .setup_coop_taskrun()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(entries)?;
        let waker = Waker::new()?;
        ring.submitter().register_files(&[device.as_raw_fd(), waker.as_fd().as_raw_fd()])?;
        let mut lent = Vec::new();
        let mut areas = Vec::new();
        for index in 0..usize::from(depth) {
            let mut entry = Entry::new(index, payload)?;
            areas.push(entry.areas());
            lent.push(Some(entry));
        }
        let woken = Box::new([0; 8]);
        Ok(Self { ring, id, lent, areas, registered: false, waker, woken, listens: false })
    }

    /// Returns what wakes the thread that waits for the queue.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Finds out whether the kernel takes commands of this process, before INIT is answered: then it says EAGAIN.
    ///
    /// Errors: what it says else, as EPERM where a filter of system calls or a security module forbids it.
    pub fn try_out(&mut self) -> io::Result<()> {
        self.registered = true;
        self.lend(0)?;
        // Never waits that long where the kernel is as its source says.
        let time = Timespec::new().sec(5);
        let args = SubmitArgs::new().timespec(&time);
        while let Err(error) = self.ring.submitter().submit_with_args(1, &args) {
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        let refused = self.ring.completion().next().map_or(0, |completion| completion.result());
        if refused != -Errno::AGAIN.raw_os_error() {
            return Err(io::Error::from_raw_os_error(refused.saturating_neg()));
        }
        self.registered = false;
        Ok(())
    }

    /// Lends all entries to the kernel.
    ///
    /// Errors: those of the system call. What the kernel says about each entry comes as an event.
    pub fn register(&mut self) -> io::Result<()> {
        self.registered = true;
        (0..self.areas.len()).try_for_each(|index| self.lend(index))?;
        self.ring.submit()?;
        Ok(())
    }

    /// Lends an entry for the first time, with the next submission.
    fn lend(&mut self, index: usize) -> io::Result<()> {
        let Some(area) = self.areas.get(index) else { return Ok(()) };
        let command = opcode::UringCmd80::new(DEVICE, REGISTER).cmd(self.command(0)).addr(Some(area.as_ptr() as u64));
        let command = with_len(command.build(), area.len() as u32).user_data(index as u64);
        // SAFETY: `areas` is never changed, and stays for as long as the ring does. What it names is an entry in `lent`, at
        // its place on the heap, until the kernel has given it back.
        unsafe { self.push(command) }
    }

    /// Answers the request in `entry`, with what [`Entry::set_answer`] has set, and lends it again, at the next
    /// [`Queue::wait`].
    pub fn commit(&mut self, entry: Entry) -> io::Result<()> {
        let command = opcode::UringCmd80::new(DEVICE, COMMIT_AND_FETCH).cmd(self.command(entry.commit_id()));
        let command = command.build().user_data(entry.index as u64);
        if let Some(place) = self.lent.get_mut(entry.index) {
            *place = Some(entry);
        }
        // SAFETY: the kernel uses the areas that the entry was registered with, which are in `lent` again.
        unsafe { self.push(command) }
    }

    /// Waits for something to happen.
    pub fn wait(&mut self) -> io::Result<()> {
        self.enter(1)
    }

    /// Hands over what was committed, and takes what has happened, without waiting.
    pub fn exchange(&mut self) -> io::Result<()> {
        self.enter(0)
    }

    /// Returns whether something has happened, without a system call.
    pub fn has_news(&mut self) -> bool {
        self.ring.submission().taskrun() || !self.ring.completion().is_empty()
    }

    fn enter(&mut self, want: usize) -> io::Result<()> {
        if !self.listens {
            let read = opcode::Read::new(EVENT, self.woken.as_mut_ptr(), 8).build().user_data(WAKE);
            // SAFETY: `woken` stays at its place on the heap for as long as the ring is there.
            unsafe { self.push(read.into()) }?;
            self.listens = true;
        }
        match self.ring.submit_and_wait(want) {
            Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::INTR) => Ok(()),
                // The kernel has no room at the moment; what was not submitted is kept for the next time.
                Some(Errno::AGAIN | Errno::BUSY | Errno::NOMEM) => {
                    std::thread::sleep(Duration::from_millis(1));
                    Ok(())
                }
                _ => Err(error),
            },
            Ok(_) => Ok(()),
        }
    }

    /// Returns what has happened, one after the other; `None` when [`Queue::wait`] is to be called again.
    pub fn next_event(&mut self) -> Option<Event> {
        let completion = self.ring.completion().next()?;
        if completion.user_data() == WAKE {
            self.listens = false;
            return Some(Event::Woken);
        }
        let entry = usize::try_from(completion.user_data()).ok().and_then(|index| self.lent.get_mut(index)?.take());
        Some(match (completion.result(), entry) {
            (0, Some(entry)) => Event::Request(entry),
            (result, _) => Event::Ended(Errno::from_raw_os_error(result.saturating_neg())),
        })
    }

    /// `struct fuse_uring_cmd_req`.
    fn command(&self, commit_id: u64) -> [u8; 80] {
        let mut command = [0; 80];
        command[8..16].copy_from_slice(&commit_id.to_ne_bytes());
        command[16..18].copy_from_slice(&self.id.to_ne_bytes());
        command
    }

    /// Puts a command into the queue of submissions.
    ///
    /// # Safety
    ///
    /// The memory that it names must stay until it has completed.
    unsafe fn push(&mut self, command: Entry128) -> io::Result<()> {
        // SAFETY: as the caller says.
        let pushed = unsafe { self.ring.submission().push(&command) };
        // There is room for all entries and the waker, and none is submitted twice.
        pushed.map_err(|_| io::Error::other("the queue of submissions is full"))
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // What the kernel has not given back it may write to until the ring is gone, which takes its own time.
        if self.registered {
            self.lent.iter_mut().filter_map(Option::take).for_each(std::mem::forget);
        }
        if self.listens {
            std::mem::forget(std::mem::take(&mut self.woken));
        }
    }
}

/// Sets the number of areas at the address of a command.
fn with_len(mut command: Entry128, len: u32) -> Entry128 {
    const { assert!(size_of::<Entry128>() == 128) };
    let sqe = (&raw mut command).cast::<u8>();
    // SAFETY: an Entry128 is a `struct io_uring_sqe` of 128 bytes, in which `len` is at this place.
    let at = unsafe { sqe.add(SQE_LEN_AT) };
    // SAFETY: as above; four bytes are there, of a type that any four bytes are a value of.
    unsafe { at.cast::<u32>().write_unaligned(len) };
    command
}

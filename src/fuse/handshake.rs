//! The handshake: what this kernel can do, and what is asked of it.

use std::num::NonZeroU32;
use std::sync::Arc;

use rustix::io::Errno;
use zerocopy::{FromZeros, IntoBytes};

use super::connection::{Connection, Received};
use super::protocol::{InitFlags, InitIn, InitInExtended, InitOut, MINOR_MIN, Opcode, VERSION};
use super::request::{Malformed, Request};
use super::ring::{self, Ring};
use crate::config::{Access, IoMode, MountConfig, Transport};
use crate::sys::caps;
use crate::union::{ASKED, InForce, Union};

/// The largest read or write that the kernel sends through /dev/fuse, in bytes.
const TRANSFER: u32 = 1 << 20;

/// The smallest limit of a write that the kernel takes.
const WRITE_MIN: u32 = 1 << 12;

/// The longest value of an xattr, in bytes: xattr(7).
const XATTR_MAX: u32 = 1 << 16;

/// The version of a kernel (Linux 6.12) that tells a file's size when it has written at the end of it by passthrough: those
/// before may copy nothing from a file that was just written.
const PASSTHROUGH_WHOLE: u32 = 41;

/// What a request has besides data: its header and fixed part, in bytes at most, and then some.
const BESIDES_DATA: usize = 1 << 12;

/// Readahead and asynchronous reads that may wait for the server at one time.
const BACKGROUND: u16 = 64;

/// What a mount would have of the kernel.
pub(super) struct Wishes {
    /// Whether each open is a handle: for a server that may not open every file again by itself or must ask who opens.
    pub(super) handles: bool,
    /// Whether it is checked here who asks.
    pub(super) checks_callers: bool,
    /// Whether the kernel is to ask for ACLs: it does so to check them.
    acls: bool,
    passthrough: bool,
    /// What was asked for; whoever asked for passthrough is told where there is none.
    io: IoMode,
    /// Whether this process may have files passed through.
    able: bool,
    /// Whether there is a quota, which must see what is written.
    counted: bool,
    max_write: Option<NonZeroU32>,
    transport: Transport,
}

impl Wishes {
    /// Returns what the mount of `union` as `config` says would have.
    pub(super) fn of(union: &Union, config: &MountConfig) -> Self {
        let able = caps::effective(rustix::thread::CapabilitySet::SYS_ADMIN) && caps::in_initial_user_namespace();
        if config.io == IoMode::Passthrough && !able {
            log::warn!("passthrough needs root in the initial user namespace; files are served by the page cache");
        }
        // What the kernel writes by itself nobody counts.
        let counted = union.quota_usage().is_some();
        if counted && config.io == IoMode::Passthrough {
            log::warn!(
                "a quota counts what is written, so that nothing is passed through; files are served by the page cache"
            );
        }
        let passthrough = able
            && !counted
            && match config.io {
                IoMode::Auto => union.is_passable(),
                IoMode::Cached | IoMode::Writeback => false,
                IoMode::Passthrough => true,
            };
        // Without CAP_DAC_OVERRIDE a file whose mode forbids its owner to open it can be used through the handle that
        // was opened before alone.
        let all_powerful = caps::effective(rustix::thread::CapabilitySet::DAC_OVERRIDE);
        let checks_callers = config.access == Access::Root;
        Self {
            handles: !all_powerful || checks_callers,
            checks_callers,
            acls: config.checks_permissions() && union.has_acls(),
            passthrough,
            io: config.io,
            able,
            counted,
            max_write: config.max_write,
            transport: config.transport,
        }
    }

    fn insists(&self) -> bool {
        self.io == IoMode::Passthrough
    }

    /// Returns how data is served, in the words of the command line, and why.
    fn io_in_force(&self, agreed: &Agreed) -> InForce {
        let whole = agreed.minor >= PASSTHROUGH_WHOLE;
        let (value, why) = match self.io {
            _ if agreed.passes_through() && self.io == IoMode::Auto => {
                ("passthrough", "auto: root, Linux 6.12 or later, and layers on local file systems that note no reader")
            }
            _ if agreed.passes_through() => ("passthrough", ASKED),
            _ if agreed.writes_back() => ("writeback", ASKED),
            IoMode::Cached => ("cached", ASKED),
            IoMode::Writeback => ("cached", "writeback was asked for, and needs CAP_DAC_OVERRIDE and no --allow-root"),
            IoMode::Auto | IoMode::Passthrough if self.counted => ("cached", "a quota must see what is written"),
            IoMode::Passthrough if !self.able => {
                ("cached", "passthrough was asked for, and needs root in the initial user namespace")
            }
            IoMode::Passthrough => ("cached", "passthrough was asked for, and this kernel has none (Linux 6.9)"),
            IoMode::Auto if !self.able => ("cached", "auto: passthrough needs root in the initial user namespace"),
            IoMode::Auto if !self.passthrough => {
                ("cached", "auto: a layer is not on ext4, xfs, btrfs, tmpfs or f2fs, or notes who reads")
            }
            IoMode::Auto if !whole => ("cached", "auto: passthrough is not whole before Linux 6.12"),
            IoMode::Auto => ("cached", "auto: this kernel has no passthrough"),
        };
        InForce::new("io", value, why)
    }
}

/// What kernel and server have agreed on.
pub(super) struct Agreed {
    /// The minor version of the protocol that the kernel speaks.
    minor: u32,
    /// What the kernel can do.
    offered: InitFlags,
    /// What it was asked to do.
    taken: InitFlags,
    /// Whether the kernel asks to open files.
    pub(super) opens_files: bool,
    max_write: u32,
    /// The largest read.
    transfer: u32,
    /// The queues that requests come through, if not through /dev/fuse.
    pub(super) ring: Option<Ring>,
    /// Why they come through it, or do not.
    transport_why: String,
}

impl Agreed {
    /// Returns what of the options is in force, and why.
    pub(super) fn in_force(&self, wishes: &Wishes) -> Vec<InForce> {
        let transport = if self.ring.is_some() { "ring" } else { "dev" };
        vec![
            wishes.io_in_force(self),
            InForce::new("transport", transport, &*self.transport_why),
            InForce::new(
                "max_write",
                self.max_write,
                if wishes.max_write.is_some() { ASKED } else { "the most there is" },
            ),
            InForce::new("protocol", format!("{}.{}", VERSION.0, self.minor.min(VERSION.1)), "of this kernel"),
        ]
    }

    /// ENOSYS to OPENDIR means that the kernel need not ask, where it knows that it may mean that.
    pub(super) fn opens_directories_without_asking(&self) -> bool {
        self.offered.contains(InitFlags::NO_OPENDIR_SUPPORT)
    }

    /// Since Linux 5.13, which has the protocol's number of 5.12. Before, the server would set them for anybody.
    pub(super) fn checks_flags(&self) -> bool {
        self.minor >= 34
    }

    /// Whether backing files may be registered.
    pub(super) fn passes_through(&self) -> bool {
        self.taken.contains(InitFlags::PASSTHROUGH)
    }

    /// Whether the kernel keeps what is written for a while.
    pub(super) fn writes_back(&self) -> bool {
        self.taken.contains(InitFlags::WRITEBACK_CACHE)
    }

    /// The room that any request needs, in bytes.
    pub(super) fn request_max(&self) -> usize {
        self.max_write.max(XATTR_MAX) as usize + BESIDES_DATA
    }

    /// The room that what is read needs, in bytes.
    pub(super) fn read_max(&self) -> usize {
        self.transfer as usize
    }
}

/// Why there was no handshake, and what to do about it where that is known.
pub(super) struct Failure {
    pub(super) reason: String,
    pub(super) remedy: Option<&'static str>,
}

impl<T: Into<String>> From<T> for Failure {
    fn from(reason: T) -> Self {
        Self { reason: reason.into(), remedy: None }
    }
}

/// Shakes hands on a connection that nobody has answered yet.
pub(super) fn shake(connection: &Arc<Connection>, wishes: &Wishes) -> Result<Agreed, Failure> {
    // The kernel wants to be read into 8 KiB at least.
    let mut buffer = vec![0; TRANSFER as usize + BESIDES_DATA];
    loop {
        let received = connection.receive(&mut buffer).map_err(|errno| errno.to_string())?;
        let len = match received {
            Received::Request(len) => len,
            Received::Nothing => continue,
            Received::End => return Err("the mount is gone".into()),
        };
        let message = buffer.get(..len).unwrap_or_default();
        let malformed = |Malformed| "what the kernel sends is not the protocol's beginning";
        let mut request = Request::whole(message).map_err(malformed)?;
        let answer_error = |errno: Errno| connection.answer(request.unique, -errno.raw_os_error(), &[]);
        if request.opcode != Some(Opcode::Init) {
            answer_error(Errno::IO);
            return Err(malformed(Malformed).into());
        }
        let offer: InitIn = request.arguments.fixed().map_err(malformed)?;
        if offer.major > VERSION.0 {
            // It asks again in this version.
            let ours = InitOut { major: VERSION.0, minor: VERSION.1, ..InitOut::new_zeroed() };
            connection.answer(request.unique, 0, ours.as_bytes());
            continue;
        }
        if (offer.major, offer.minor) < (VERSION.0, MINOR_MIN) {
            answer_error(Errno::PROTO);
            let (major, minor) = (offer.major, offer.minor);
            let spoken =
                format!("the kernel speaks version {major}.{minor} of the protocol, and 7.{MINOR_MIN} is needed");
            return Err(Failure { reason: spoken, remedy: Some("use Linux 3.15 or later") });
        }
        let extended = request.arguments.next::<InitInExtended>().map_or(0, |extended| extended.flags2);
        let offered = InitFlags::from_bits_retain(u64::from(offer.flags));
        let high = if offered.contains(InitFlags::INIT_EXT) { u64::from(extended) << 32 } else { 0 };
        let offered = offered | InitFlags::from_bits_retain(high);
        let queues = queues(connection, wishes.transport, offered).inspect_err(|_| answer_error(Errno::IO))?;
        let agreed = agree(wishes, offer.minor, offered, queues);
        let way = if agreed.ring.is_some() { "io_uring" } else { "/dev/fuse" };
        log::debug!("FUSE 7.{}, requests come through {way}, features in use: {:?}", offer.minor, agreed.taken);
        connection.answer(request.unique, 0, answer(&agreed, &offer).as_bytes());
        return Ok(agreed);
    }
}

/// The queues that requests come through, if not through /dev/fuse, and why.
type Queues = (Option<Ring>, String);

/// Makes the queues for a kernel that offers `offered`, before it is told of them: once it is, it holds every request until
/// all are in use.
///
/// Errors: why requests that must come through a ring cannot.
fn queues(connection: &Arc<Connection>, transport: Transport, offered: InitFlags) -> Result<Queues, Failure> {
    if transport == Transport::Dev {
        return Ok((None, ASKED.to_owned()));
    }
    let made = if offered.contains(InitFlags::OVER_IO_URING) {
        // The kernel wants room for the largest write, and for the largest read.
        Ring::new(connection, ring::TRANSFER as usize + BESIDES_DATA).map_err(|error| Failure {
            reason: format!("no queue of io_uring can be had: {error}"),
            remedy: Some("use --transport dev, or allow this process io_uring (sysctl kernel.io_uring_disabled)"),
        })
    } else {
        Err(Failure {
            reason: "the kernel does not offer FUSE over io_uring".into(),
            remedy: Some("with Linux 6.14 root can turn it on: echo Y >/sys/module/fuse/parameters/enable_uring"),
        })
    };
    match made {
        Ok(ring) if transport == Transport::Ring => Ok((Some(ring), ASKED.to_owned())),
        Ok(ring) => Ok((Some(ring), "auto: the kernel offers it".to_owned())),
        Err(failure) if transport == Transport::Ring => Err(failure),
        Err(Failure { reason, .. }) => {
            log::info!("requests come through /dev/fuse: {reason}");
            Ok((None, format!("auto: {reason}")))
        }
    }
}

/// Settles what is asked of a kernel that offers `offered`.
fn agree(wishes: &Wishes, minor: u32, offered: InitFlags, (ring, transport_why): Queues) -> Agreed {
    let mut wanted = InitFlags::ASYNC_READ
        | InitFlags::BIG_WRITES
        | InitFlags::MAX_PAGES
        | InitFlags::DONT_MASK
        | InitFlags::HANDLE_KILLPRIV_V2
        | InitFlags::DO_READDIRPLUS
        | InitFlags::READDIRPLUS_AUTO
        | InitFlags::PARALLEL_DIROPS
        | InitFlags::CACHE_SYMLINKS
        | InitFlags::HAS_IOCTL_DIR
        | InitFlags::EXPLICIT_INVAL_DATA
        | InitFlags::ASYNC_DIO
        | InitFlags::INIT_EXT;
    wanted.set(InitFlags::POSIX_ACL, wishes.acls);
    wanted.set(InitFlags::PASSTHROUGH, wishes.passthrough && (wishes.insists() || minor >= PASSTHROUGH_WHOLE));
    wanted.set(InitFlags::OVER_IO_URING, ring.is_some());
    let opens_files = wishes.handles
        || (wanted & offered).contains(InitFlags::PASSTHROUGH)
        || !offered.contains(InitFlags::NO_OPEN_SUPPORT);
    // The truncation comes with the open, so that what is cut off is not copied up first.
    wanted.set(InitFlags::ATOMIC_O_TRUNC, opens_files);
    let writeback = wishes.io == IoMode::Writeback;
    // What is kept is written through any handle of the file, which may be one that appends, and read by one that only writes.
    wanted.set(InitFlags::WRITEBACK_CACHE, writeback && !opens_files);
    if writeback && opens_files {
        log::warn!("writeback needs CAP_DAC_OVERRIDE and no --allow-root; each write is sent to upper at once");
    }
    let lacking = wanted - offered;
    if !lacking.is_empty() {
        log::info!("this kernel lacks {lacking:?}");
    }
    if wishes.insists() && lacking.contains(InitFlags::PASSTHROUGH) {
        log::warn!("this kernel has no FUSE passthrough (Linux 6.9); files are served by the page cache");
    }
    let transfer = if ring.is_some() { ring::TRANSFER } else { TRANSFER };
    let max_write = wishes.max_write.map_or(transfer, |bytes| bytes.get().clamp(WRITE_MIN, transfer));
    Agreed { minor, offered, taken: wanted & offered, opens_files, max_write, transfer, ring, transport_why }
}

fn answer(agreed: &Agreed, offer: &InitIn) -> InitOut {
    let flags = agreed.taken.bits();
    InitOut {
        major: VERSION.0,
        minor: VERSION.1,
        max_readahead: offer.max_readahead.min(TRANSFER),
        flags: flags as u32,
        max_background: BACKGROUND,
        congestion_threshold: BACKGROUND / 4 * 3,
        max_write: agreed.max_write,
        // Times have nanoseconds.
        time_gran: 1,
        max_pages: (agreed.transfer as usize / rustix::param::page_size()) as u16,
        map_alignment: 0,
        flags2: (flags >> 32) as u32,
        // Backing files are of file systems that are not stacked themselves.
        max_stack_depth: u32::from(agreed.passes_through()),
        request_timeout: 0,
        unused: [0; 11],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes(handles: bool, passthrough: bool) -> Wishes {
        let max_write = NonZeroU32::new(1);
        let (checks_callers, io, transport) = (false, IoMode::Auto, Transport::Dev);
        Wishes {
            handles,
            checks_callers,
            acls: true,
            passthrough,
            io,
            able: passthrough,
            counted: false,
            max_write,
            transport,
        }
    }

    fn without() -> Queues {
        (None, String::new())
    }

    fn io(wishes: &Wishes, minor: u32, offered: InitFlags) -> (String, String) {
        let agreed = agree(wishes, minor, offered, without());
        let InForce { value, why, .. } = wishes.io_in_force(&agreed);
        (value, why)
    }

    #[test]
    fn the_io_mode_in_force_says_why() {
        let (all, none) = (InitFlags::all(), InitFlags::all() - InitFlags::PASSTHROUGH);
        let of = |io, able, passthrough| Wishes { io, able, ..wishes(false, passthrough) };
        for (wishes, minor, offered, value, why) in [
            (of(IoMode::Auto, true, true), VERSION.1, all, "passthrough", "Linux 6.12"),
            (of(IoMode::Auto, true, true), PASSTHROUGH_WHOLE - 1, all, "cached", "before Linux 6.12"),
            (of(IoMode::Auto, true, true), VERSION.1, none, "cached", "no passthrough"),
            (of(IoMode::Auto, true, false), VERSION.1, all, "cached", "ext4"),
            (of(IoMode::Auto, false, false), VERSION.1, all, "cached", "needs root"),
            (of(IoMode::Passthrough, true, true), PASSTHROUGH_WHOLE - 1, all, "passthrough", ASKED),
            (of(IoMode::Passthrough, true, true), VERSION.1, none, "cached", "Linux 6.9"),
            (of(IoMode::Passthrough, false, false), VERSION.1, all, "cached", "needs root"),
            (of(IoMode::Writeback, true, false), VERSION.1, all, "writeback", ASKED),
            (
                Wishes { handles: true, ..of(IoMode::Writeback, false, false) },
                VERSION.1,
                all,
                "cached",
                "CAP_DAC_OVERRIDE",
            ),
            (of(IoMode::Cached, true, false), VERSION.1, all, "cached", ASKED),
        ] {
            let (is, because) = io(&wishes, minor, offered);
            assert!(is == value && because.contains(why), "{:?}: {is}, {because}", wishes.io);
        }
    }

    #[test]
    fn what_a_kernel_lacks_is_not_asked_for() {
        let old = InitFlags::ASYNC_READ | InitFlags::BIG_WRITES | InitFlags::DONT_MASK | InitFlags::ATOMIC_O_TRUNC;
        let agreed = agree(&wishes(false, true), MINOR_MIN, old, without());
        // Such a kernel opens no file without asking, so that each open is a handle.
        assert_eq!(agreed.taken, old);
        assert!(agreed.opens_files && !agreed.opens_directories_without_asking());
        assert!(!agreed.checks_flags() && !agreed.passes_through());
        assert_eq!(agreed.max_write, WRITE_MIN);
        assert_eq!(agreed.request_max(), XATTR_MAX as usize + BESIDES_DATA);
    }

    #[test]
    fn truncation_comes_with_the_open_where_there_is_one() {
        let all = InitFlags::all();
        let agreed = agree(&wishes(false, false), VERSION.1, all, without());
        assert!(!agreed.opens_files && !agreed.taken.contains(InitFlags::ATOMIC_O_TRUNC));
        let agreed = agree(&wishes(true, false), VERSION.1, all, without());
        assert!(agreed.opens_files && agreed.taken.contains(InitFlags::ATOMIC_O_TRUNC));
        let agreed = agree(&wishes(false, true), VERSION.1, all, without());
        assert!(agreed.opens_files);
        assert!(agreed.taken.contains(InitFlags::ATOMIC_O_TRUNC | InitFlags::PASSTHROUGH | InitFlags::POSIX_ACL));
        assert!(!agreed.taken.intersects(InitFlags::OVER_IO_URING | InitFlags::NO_OPEN_SUPPORT));
        let offer = InitIn { major: 7, minor: VERSION.1, max_readahead: 1 << 17, flags: 0 };
        let answer = answer(&agreed, &offer);
        assert_eq!((answer.max_readahead, answer.max_pages, answer.max_stack_depth), (1 << 17, 256, 1));
        let flags = u64::from(answer.flags) | u64::from(answer.flags2) << 32;
        assert_eq!(InitFlags::from_bits_retain(flags), agreed.taken);
    }

    #[test]
    fn writes_are_kept_only_where_files_are_found_by_node() {
        let keeps = |handles, offered| {
            let wishes = Wishes { io: IoMode::Writeback, ..wishes(handles, false) };
            agree(&wishes, VERSION.1, offered, without()).writes_back()
        };
        assert!(keeps(false, InitFlags::all()));
        // A handle may append, or not be readable.
        assert!(!keeps(true, InitFlags::all()));
        assert!(!keeps(false, InitFlags::all() - InitFlags::NO_OPEN_SUPPORT));
    }
}

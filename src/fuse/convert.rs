//! The union's values as fuser has them, and back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo, TimeOrNow};

use crate::error::Error;
use crate::union::{Attr, FileKind, Flow, NodeId, SetTime, Timestamp};

/// Returns the errno to answer an error with, and logs what a layer's owner should know of.
pub(super) fn errno(error: &Error) -> Errno {
    match error {
        Error::Corrupt { .. } | Error::NotFollowed { .. } => log::warn!("{error}"),
        // What fails at a disk is its owner's to mend, and the program may not have asked for data to be copied.
        Error::Call { errno: rustix::io::Errno::IO | rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT, .. } => {
            log::warn!("{error}");
        }
        _ => log::debug!("{error}"),
    }
    Errno::from_i32(error.errno().raw_os_error())
}

/// Returns the type of a file.
pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::Char => FileType::CharDevice,
        FileKind::Block => FileType::BlockDevice,
    }
}

/// Returns whether a listing goes on, by whether its answer is full.
pub(super) fn flow(full: bool) -> Flow {
    if full { Flow::Full } else { Flow::More }
}

/// Returns attributes; fuser takes the node's number from where the inode's number stands.
pub(super) fn attributes(attr: &Attr) -> FileAttr {
    let (major, minor) = attr.rdev;
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: device_number(major, minor),
        blksize: attr.blksize,
        flags: 0,
    }
}

/// Returns the attributes of an entry, which tell the kernel the node's number.
pub(super) fn entry_attributes(id: NodeId, attr: &Attr) -> FileAttr {
    FileAttr { ino: INodeNo(id.0), ..attributes(attr) }
}

/// The attributes of nothing: an entry with them tells the kernel that there is none.
pub(super) fn absent() -> FileAttr {
    let zero = UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: zero,
        mtime: zero,
        ctime: zero,
        crtime: zero,
        kind: FileType::Directory,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// The kernel's `new_encode_dev`, which is what FUSE has on the wire.
fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The kernel's `new_decode_dev`.
pub(super) fn decode_device(dev: u32) -> (u32, u32) {
    ((dev & 0xf_ff00) >> 8, (dev & 0xff) | ((dev >> 12) & 0xf_ff00))
}

fn system_time(t: Timestamp) -> SystemTime {
    let time = match u64::try_from(t.secs) {
        Ok(secs) => UNIX_EPOCH.checked_add(Duration::new(secs, t.nanos)),
        Err(_) => UNIX_EPOCH
            .checked_sub(Duration::from_secs(t.secs.unsigned_abs()))
            .and_then(|whole| whole.checked_add(Duration::from_nanos(t.nanos.into()))),
    };
    // A time that SystemTime cannot hold is a file system's garbage.
    time.unwrap_or(UNIX_EPOCH)
}

/// Returns what a request sets a time to.
///
/// fuser 0.18.0 reads a time before 1970 as that many seconds and nanoseconds *before* the epoch, where the
/// nanoseconds count forward from the second; this undoes it.
pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::To(match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Timestamp { secs: after.as_secs() as i64, nanos: after.subsec_nanos() },
            Err(before) => {
                let before = before.duration();
                Timestamp { secs: -(before.as_secs() as i64), nanos: before.subsec_nanos() }
            }
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        let t = Timestamp { secs: -2, nanos: 800_000_000 };
        assert_eq!(system_time(t), UNIX_EPOCH - Duration::new(1, 200_000_000));
        // As fuser 0.18.0 decodes (-2, 800_000_000).
        let decoded = UNIX_EPOCH - Duration::new(2, 800_000_000);
        assert_eq!(set_time(TimeOrNow::SpecificTime(decoded)), SetTime::To(t));
    }

    #[test]
    fn device_numbers_round_trip() {
        for device in [(1, 3), (8, 0), (259, 1_048_575), (4095, 256)] {
            assert_eq!(decode_device(device_number(device.0, device.1)), device);
        }
    }
}

//! The union's values as the protocol has them, and back.

use std::time::Duration;

use rustix::io::Errno;
use zerocopy::FromZeros;

use super::complaints;
use super::protocol::{self, AttrOut, EntryOut, OpenOut, SetattrIn, StatfsOut, Valid};
use crate::error::Error;
use crate::union::{Attr, FileKind, NodeId, SetAttr, SetTime, StatFs, Timestamp};

/// Returns the errno to answer an error with, and logs what a layer's owner should know of.
pub(super) fn errno(error: &Error) -> Errno {
    complaints::note(error);
    error.errno()
}

/// Returns the type of a file as it stands in a directory: `DT_DIR` and so on.
pub(super) fn entry_kind(kind: FileKind) -> u32 {
    type_bits(kind) >> 12
}

fn type_bits(kind: FileKind) -> u32 {
    kind.file_type().as_raw_mode()
}

/// Returns attributes.
pub(super) fn attributes(attr: &Attr) -> protocol::Attr {
    protocol::Attr {
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        atime: attr.atime.secs,
        mtime: attr.mtime.secs,
        ctime: attr.ctime.secs,
        atimensec: attr.atime.nanos,
        mtimensec: attr.mtime.nanos,
        ctimensec: attr.ctime.nanos,
        mode: type_bits(attr.kind) | (attr.mode & 0o7777),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: device_number(attr.rdev),
        blksize: attr.blksize,
        flags: 0,
    }
}

/// Returns attributes with the time for which they are valid.
pub(super) fn attr_out(attr: &Attr, valid: Duration) -> AttrOut {
    AttrOut { attr_valid: valid.as_secs(), attr_valid_nsec: valid.subsec_nanos(), dummy: 0, attr: attributes(attr) }
}

/// Returns an entry with the times for which name and attributes are valid.
pub(super) fn entry_out(id: NodeId, attr: &Attr, entry_valid: Duration, attr_valid: Duration) -> EntryOut {
    EntryOut {
        nodeid: id.0,
        // Numbers are never given to another file while the kernel knows one.
        generation: 0,
        entry_valid: entry_valid.as_secs(),
        attr_valid: attr_valid.as_secs(),
        entry_valid_nsec: entry_valid.subsec_nanos(),
        attr_valid_nsec: attr_valid.subsec_nanos(),
        attr: attributes(attr),
    }
}

/// Returns the entry that says that there is none, and for how long that is valid.
pub(super) fn absent(valid: Duration) -> EntryOut {
    EntryOut { entry_valid: valid.as_secs(), entry_valid_nsec: valid.subsec_nanos(), ..EntryOut::new_zeroed() }
}

/// Returns an open file that the server reads and writes.
pub(super) fn opened(fh: u64, open_flags: u32) -> OpenOut {
    OpenOut { fh, open_flags, backing_id: 0 }
}

/// Returns the figures of the file system.
pub(super) fn statfs_out(s: &StatFs) -> StatfsOut {
    StatfsOut {
        blocks: s.blocks,
        bfree: s.free,
        bavail: s.available,
        files: s.files,
        ffree: s.files_free,
        bsize: s.block_size as u32,
        namelen: s.name_max,
        frsize: s.fragment_size as u32,
        ..StatfsOut::new_zeroed()
    }
}

/// Returns what a SETATTR sets.
pub(super) fn set_attr(set: &SetattrIn) -> SetAttr {
    let valid = Valid::from_bits_retain(set.valid);
    let time = |given: Valid, now: Valid, secs, nanos| {
        if !valid.contains(given) {
            None
        } else if valid.contains(now) {
            Some(SetTime::Now)
        } else {
            Some(SetTime::To(Timestamp { secs, nanos }))
        }
    };
    SetAttr {
        mode: valid.contains(Valid::MODE).then_some(set.mode & 0o7777),
        uid: valid.contains(Valid::UID).then_some(set.uid),
        gid: valid.contains(Valid::GID).then_some(set.gid),
        size: valid.contains(Valid::SIZE).then_some(set.size),
        atime: time(Valid::ATIME, Valid::ATIME_NOW, set.atime, set.atimensec),
        mtime: time(Valid::MTIME, Valid::MTIME_NOW, set.mtime, set.mtimensec),
    }
}

/// The kernel's `new_encode_dev`, which is what FUSE has on the wire.
fn device_number((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The kernel's `new_decode_dev`.
pub(super) fn decode_device(dev: u32) -> (u32, u32) {
    ((dev & 0xf_ff00) >> 8, (dev & 0xff) | ((dev >> 12) & 0xf_ff00))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_round_trip() {
        for device in [(1, 3), (8, 0), (259, 1_048_575), (4095, 256)] {
            assert_eq!(decode_device(device_number(device)), device);
        }
    }

    #[test]
    fn a_setattr_sets_what_it_says_is_valid() {
        let none = set_attr(&SetattrIn { mode: 0o644, uid: 1, ..SetattrIn::new_zeroed() });
        assert_eq!(none, SetAttr::default());
        let valid = Valid::MODE | Valid::SIZE | Valid::ATIME | Valid::ATIME_NOW | Valid::MTIME;
        let set = SetattrIn {
            valid: valid.bits(),
            mode: 0o104755,
            size: 5,
            mtime: -2,
            mtimensec: 800_000_000,
            ..SetattrIn::new_zeroed()
        };
        let mtime = SetTime::To(Timestamp { secs: -2, nanos: 800_000_000 });
        let expected = SetAttr {
            mode: Some(0o4755),
            size: Some(5),
            atime: Some(SetTime::Now),
            mtime: Some(mtime),
            ..SetAttr::default()
        };
        assert_eq!(set_attr(&set), expected);
    }
}

//! The handle by which a copied-up file names the lower file that it came from.
//!
//! The format is `struct ovl_fb` of the kernel's overlayfs: version, magic, length, flags, type, the
//! uuid of the lower file system, and the handle as that file system encodes it.

use std::ffi::OsString;

use crate::sys::fhandle::FileHandle;

const VERSION: u8 = 0;
const MAGIC: u8 = 0xfb;
const FLAG_BIG_ENDIAN: u8 = 1;
const FLAG_ANY_ENDIAN: u8 = 2;
const FLAG_PATH_UPPER: u8 = 4;
const HEADER: usize = 5 + 16;

#[cfg(target_endian = "little")]
const CPU_FLAGS: u8 = 0;
#[cfg(target_endian = "big")]
const CPU_FLAGS: u8 = FLAG_BIG_ENDIAN;

/// A decoded origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The uuid of the file system that the file is on.
    pub uuid: [u8; 16],
    /// The file's handle there.
    pub handle: FileHandle,
}

impl Origin {
    /// The uuid where there is none, or where the mount that wrote the origin did not know it.
    pub const NO_UUID: [u8; 16] = [0; 16];

    /// Returns the value of the xattr; `None` for a handle that the format has no room for.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let kind = u8::try_from(self.handle.kind).ok()?;
        let len = u8::try_from(HEADER + self.handle.bytes.len()).ok()?;
        let mut value = vec![VERSION, MAGIC, len, CPU_FLAGS, kind];
        value.extend_from_slice(&self.uuid);
        value.extend_from_slice(&self.handle.bytes);
        Some(value)
    }

    /// Parses the value of the xattr.
    ///
    /// `None` for an empty value (the lower file system has no handles), for another machine's byte order and for
    /// garbage: the file is then simply one without an origin, as the kernel takes it.
    pub fn decode(value: &[u8]) -> Option<Self> {
        let &[version, magic, len, flags, kind] = value.first_chunk()?;
        let foreign = flags & FLAG_ANY_ENDIAN == 0 && flags & FLAG_BIG_ENDIAN != CPU_FLAGS;
        let known = FLAG_BIG_ENDIAN | FLAG_ANY_ENDIAN | FLAG_PATH_UPPER;
        if version != VERSION || magic != MAGIC || usize::from(len) != value.len() || foreign || flags & !known != 0 {
            return None;
        }
        let uuid = *value.get(5..)?.first_chunk()?;
        let bytes = value.get(HEADER..)?.to_vec();
        Some(Self { uuid, handle: FileHandle { kind: i32::from(kind), bytes } })
    }

    /// Returns the inode number that the handle holds, for the encodings of ext4, xfs, btrfs and tmpfs.
    ///
    /// Reading it needs no privilege, unlike opening the handle; that the number still is this file's is for the
    /// caller to check against what it finds.
    pub fn inode_number(&self) -> Option<u64> {
        let word =
            |at: usize| -> Option<u32> { Some(u32::from_ne_bytes(*self.handle.bytes.get(at * 4..)?.first_chunk()?)) };
        let long =
            |at: usize| -> Option<u64> { Some(u64::from_ne_bytes(*self.handle.bytes.get(at * 4..)?.first_chunk()?)) };
        match (self.handle.kind, self.handle.bytes.len()) {
            // FILEID_INO32_GEN
            (1, 8) => word(0).map(u64::from),
            // tmpfs: generation, then the number in two halves
            (1, 12) => Some(u64::from(word(1)?) | u64::from(word(2)?) << 32),
            // FILEID_INO64_GEN of xfs
            (0x81, 12) => long(0),
            // FILEID_BTRFS_WITHOUT_PARENT: object id, root id, generation
            (0x4d, 20) => long(0),
            _ => None,
        }
    }

    /// Returns the name that the kernel gives the file in the index: the value of the xattr in hexadecimal.
    pub fn index_name(&self) -> Option<OsString> {
        use std::fmt::Write;
        let value = self.encode()?;
        let mut name = String::with_capacity(value.len() * 2);
        for byte in value {
            write!(name, "{byte:02x}").ok()?;
        }
        (name.len() <= super::name::NAME_MAX).then(|| name.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origin_round_trips_and_garbage_is_no_origin() {
        let origin = Origin { uuid: [3; 16], handle: FileHandle { kind: 1, bytes: vec![12, 0, 0, 0, 9, 9, 9, 9] } };
        let value = origin.encode().unwrap();
        assert_eq!(Origin::decode(&value), Some(origin.clone()));
        assert_eq!(origin.inode_number(), Some(12));
        assert_eq!(origin.index_name().unwrap().len(), value.len() * 2);
        for len in 0..value.len() {
            assert_eq!(Origin::decode(&value[..len]), None, "truncated to {len}");
        }
        let mut other = value.clone();
        other[3] = FLAG_BIG_ENDIAN ^ CPU_FLAGS;
        assert_eq!(Origin::decode(&other), None);
    }

    #[test]
    fn inode_numbers_of_the_common_file_systems() {
        let origin = |kind, bytes: &[u8]| Origin { uuid: [0; 16], handle: FileHandle { kind, bytes: bytes.to_vec() } };
        let xfs = [&77u64.to_ne_bytes()[..], &[0; 4]].concat();
        let tmpfs = [&[0; 4][..], &5u32.to_ne_bytes(), &1u32.to_ne_bytes()].concat();
        assert_eq!(origin(0x81, &xfs).inode_number(), Some(77));
        assert_eq!(origin(1, &tmpfs).inode_number(), Some(5 | 1 << 32));
        assert_eq!(origin(0xff, &xfs).inode_number(), None);
    }
}

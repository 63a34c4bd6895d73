//! The 512 bytes before each member, with numbers in octal or, as GNU has them, in base 256.

use std::io;

use super::super::digest::invalid;
use super::BLOCK;

/// Where a field is: its first byte and its length.
#[derive(Debug, Clone, Copy)]
pub struct Field(pub usize, pub usize);

pub const NAME: Field = Field(0, 100);
pub const MODE: Field = Field(100, 8);
pub const UID: Field = Field(108, 8);
pub const GID: Field = Field(116, 8);
pub const SIZE: Field = Field(124, 12);
pub const MTIME: Field = Field(136, 12);
pub const CHECKSUM: Field = Field(148, 8);
pub const TYPE: Field = Field(156, 1);
pub const LINK: Field = Field(157, 100);
pub const MAGIC: Field = Field(257, 8);
pub const DEV_MAJOR: Field = Field(329, 8);
pub const DEV_MINOR: Field = Field(337, 8);
pub const PREFIX: Field = Field(345, 155);
/// GNU's: four extents of a sparse file.
pub const SPARSE: Field = Field(386, 96);
/// GNU's: whether a block with more extents follows.
pub const SPARSE_MORE: Field = Field(482, 1);
/// GNU's: the length of a sparse file with its holes.
pub const SPARSE_SIZE: Field = Field(483, 12);

pub const USTAR: &[u8] = b"ustar\x0000";
const GNU: &[u8] = b"ustar  \0";

/// One header block.
#[derive(Clone)]
pub struct Header(pub [u8; BLOCK]);

impl Header {
    /// Returns the bytes of a field.
    pub fn bytes(&self, Field(start, len): Field) -> &[u8] {
        self.0.get(start..start + len).unwrap_or_default()
    }

    /// Returns a field of text, up to its first zero.
    pub fn text(&self, field: Field) -> &[u8] {
        up_to_zero(self.bytes(field))
    }

    /// Reads a field with a number. Errors: `InvalidData` for what is none.
    pub fn number(&self, field: Field, what: &str) -> io::Result<i64> {
        number(self.bytes(field)).ok_or_else(|| invalid(format!("its {what} is no number")))
    }

    /// Returns whether nothing is in it: two such blocks end an archive.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    /// Returns whether the block is a header at all, by its checksum: the sum of its bytes, as unsigned or, as some have
    /// written it, signed ones, with spaces for the checksum itself.
    pub fn is_sound(&self) -> bool {
        let Some(written) = number(self.bytes(CHECKSUM)) else { return false };
        let Field(start, len) = CHECKSUM;
        let bytes = || {
            self.0.iter().enumerate().map(|(at, &byte)| if (start..start + len).contains(&at) { b' ' } else { byte })
        };
        let unsigned: i64 = bytes().map(i64::from).sum();
        let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
        written == unsigned || written == signed
    }

    /// Returns whether GNU's fields are where ustar has the prefix of the name.
    pub fn is_gnu(&self) -> bool {
        self.bytes(MAGIC) == GNU
    }

    /// Returns the path that the header itself holds.
    pub fn path(&self) -> Vec<u8> {
        let prefix = if self.bytes(MAGIC).starts_with(b"ustar\0") { self.text(PREFIX) } else { b"" };
        if prefix.is_empty() {
            return self.text(NAME).to_vec();
        }
        [prefix, b"/", self.text(NAME)].concat()
    }
}

/// Returns `bytes` up to the first zero.
pub fn up_to_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Reads a number: octal digits between spaces and zeros, nothing for 0, or base 256 where the first bit is set.
fn number(bytes: &[u8]) -> Option<i64> {
    if let Some(first) = bytes.first().filter(|first| **first & 0x80 != 0) {
        // The second bit is the sign; the first byte holds six more.
        let start = if first & 0x40 != 0 { i128::from(*first) - 0x100 } else { i128::from(first & 0x3f) };
        let value = bytes
            .iter()
            .skip(1)
            .try_fold(start, |value, byte| value.checked_mul(256).map(|value| value + i128::from(*byte)));
        return value.and_then(|value| i64::try_from(value).ok());
    }
    let text = std::str::from_utf8(up_to_zero(bytes)).ok()?.trim_matches(' ');
    if text.is_empty() {
        return Some(0);
    }
    // Rust takes a sign, of which tar(5) knows nothing.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| i64::from_str_radix(text, 8).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_in_base_256() {
        for (bytes, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"00000000644 ", Some(0o644)),
            (b"77777777777\0", Some(0o77_777_777_777)),
            (b"\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"12a\0", None),
            (b"-12\0", None),
            (b"+12\0", None),
            (b"99\0", None),
            (b"\x80\0\0\0\0\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ] {
            assert_eq!(number(bytes), expected, "{bytes:?}");
        }
    }
}

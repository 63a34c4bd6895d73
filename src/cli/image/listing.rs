//! How a file of a layer is shown in a line: a layer's names and links are anybody's, so none of their bytes may reach a
//! terminal as something other than text.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::layer::attr::FileKind;

/// Writes bytes as text in one line: what cannot be seen, or changes how the rest is seen, as the escapes of Rust's strings,
/// what is no UTF-8 as `\xNN`, and a backslash as two.
pub fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        // Quotes need no escape where there are none around the text.
        for part in chunk.valid().split_inclusive(['\'', '"']) {
            let bare = part.trim_end_matches(['\'', '"']);
            text.extend(bare.escape_debug());
            text.push_str(part.get(bare.len()..).unwrap_or_default());
        }
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    text
}

/// Returns the name of a file, and where it leads.
pub fn name(name: &OsStr, link: Option<&OsStr>) -> String {
    let mut text = escaped(name.as_bytes());
    if let Some(link) = link {
        text.push_str(" -> ");
        text.push_str(&escaped(link.as_bytes()));
    }
    text
}

/// Returns kind and mode as ls(1) writes them, in ten characters.
pub fn mode(kind: FileKind, mode: u32) -> String {
    let mut text = String::with_capacity(10);
    text.push(match kind {
        FileKind::Regular => '-',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
        FileKind::Char => 'c',
        FileKind::Block => 'b',
    });
    // Each with the bit that shows where x does.
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_text_in_one_line_whatever_is_in_it() {
        for (name, expected) in [
            (&b"plain name"[..], "plain name"),
            ("ümläut-日本".as_bytes(), "ümläut-日本"),
            (b"it's \"so\"", "it's \"so\""),
            (b"\x1b[2J\x1b]0;title\x07", "\\u{1b}[2J\\u{1b}]0;title\\u{7}"),
            (b"two\nlines\r\ttab", "two\\nlines\\r\\ttab"),
            (b"\xff\xfe", "\\xff\\xfe"),
            (b"\xc2\x9b31m", "\\u{9b}31m"),
            ("safe\u{202e}gpj.exe".as_bytes(), "safe\\u{202e}gpj.exe"),
            (b"back\\slash", "back\\\\slash"),
            (b"''", "''"),
        ] {
            assert_eq!(escaped(name), expected);
        }
    }

    #[test]
    fn modes_are_written_as_by_ls() {
        for (kind, bits, expected) in [
            (FileKind::Regular, 0o644, "-rw-r--r--"),
            (FileKind::Directory, 0o1777, "drwxrwxrwt"),
            (FileKind::Regular, 0o4755, "-rwsr-xr-x"),
            (FileKind::Regular, 0o6640, "-rwSr-S---"),
            (FileKind::Directory, 0o1700, "drwx-----T"),
            (FileKind::Symlink, 0o777, "lrwxrwxrwx"),
            (FileKind::Char, 0o000, "c---------"),
        ] {
            assert_eq!(mode(kind, bits), expected);
        }
    }
}

//! What the path of a member says: where it goes, and whether it is a mark that something below is removed.

use std::io;

use super::super::digest::invalid;
use crate::layer::name::{NAME_MAX, WH_OPAQUE, WH_PREFIX};

/// The components of a path below the root, without empty ones and `.`; `..` may be among them.
pub type Parts<'a> = Vec<&'a [u8]>;

/// What a member is about.
#[derive(Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// The root of the layer.
    Root,
    /// The name in the directory.
    Name(Parts<'a>, &'a [u8]),
    /// That what lower layers have under the name in the directory is removed.
    Whiteout(Parts<'a>, &'a [u8]),
    /// That all that lower layers have in the directory is removed.
    Opaque(Parts<'a>),
    /// A mark of aufs, which means nothing elsewhere.
    Skipped,
}

/// Parts a path as it is written: `x`, `./x` and `/x` are one.
pub fn parts(path: &[u8]) -> io::Result<Parts<'_>> {
    let parts: Parts<'_> = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    match parts.iter().find(|part| part.len() > NAME_MAX) {
        Some(part) => {
            Err(invalid(format!("has a name of {} bytes in its path, and {NAME_MAX} are possible", part.len())))
        }
        None => Ok(parts),
    }
}

/// Returns whether the name is one of the marks.
fn is_mark(name: &[u8]) -> bool {
    name.starts_with(WH_PREFIX.as_bytes())
}

/// Returns what the member with `path` is about.
///
/// Errors: `InvalidData` for a path that ends in `..`, for what is inside of a mark, and for a mark of no possible name.
pub fn entry(path: &[u8]) -> io::Result<Entry<'_>> {
    let mut parts = parts(path)?;
    let Some(name) = parts.pop() else { return Ok(Entry::Root) };
    if name == b".." {
        return Err(invalid("ends in .."));
    }
    if parts.iter().any(|part| is_mark(part)) {
        return Err(invalid(format!("is inside of a mark that something is removed ({WH_PREFIX}NAME)")));
    }
    if name == WH_OPAQUE.as_bytes() {
        return Ok(Entry::Opaque(parts));
    }
    match name.strip_prefix(WH_PREFIX.as_bytes()) {
        None => Ok(Entry::Name(parts, name)),
        Some(b"" | b"." | b"..") => Err(invalid("marks no name as removed")),
        Some(removed) if is_mark(removed) => Ok(Entry::Skipped),
        Some(removed) => Ok(Entry::Whiteout(parts, removed)),
    }
}

/// Returns the path of `name` in the directory at `parts`.
pub fn joined(parts: &[&[u8]], name: &[u8]) -> Vec<u8> {
    let mut path = parts.join(&b'/');
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// Returns directory and name of the file that a hard link leads to. Errors: `InvalidData` where it can be none.
pub fn target(path: &[u8]) -> io::Result<(Parts<'_>, &[u8])> {
    match entry(path)? {
        Entry::Name(parts, name) => Ok((parts, name)),
        _ => Err(invalid("is a link to what is no file")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_however_they_are_written() {
        let at = |parts: &[&'static str]| parts.iter().map(|part| part.as_bytes()).collect::<Vec<_>>();
        for path in ["a/b", "/a/b", "./a/b", "a//b/", "./././a/./b/."] {
            assert_eq!(entry(path.as_bytes()).unwrap(), Entry::Name(at(&["a"]), b"b"), "{path}");
        }
        for path in ["/", ".", "./", "//./"] {
            assert_eq!(entry(path.as_bytes()).unwrap(), Entry::Root, "{path}");
        }
        assert_eq!(entry(b"a/../b").unwrap(), Entry::Name(at(&["a", ".."]), b"b"));
    }

    #[test]
    fn marks_are_told_from_names() {
        for (path, expected) in [
            (&b"a/.wh.b"[..], Entry::Whiteout(vec![b"a"], b"b")),
            (b".wh.b", Entry::Whiteout(vec![], b"b")),
            (b".wh.b/", Entry::Whiteout(vec![], b"b")),
            (b"a/.wh..wh..opq", Entry::Opaque(vec![b"a"])),
            (b".wh..wh.plnk", Entry::Skipped),
            (b".wh..wh.aufs", Entry::Skipped),
            (b".wh..wh..wh.x", Entry::Skipped),
            (b".wh..x", Entry::Whiteout(vec![], b".x")),
            (b".wh...x", Entry::Whiteout(vec![], b"..x")),
            (b".whx", Entry::Name(vec![], b".whx")),
            (b"x.wh.y", Entry::Name(vec![], b"x.wh.y")),
        ] {
            assert_eq!(entry(path).unwrap(), expected, "{:?}", String::from_utf8_lossy(path));
        }
        let long = [b".wh.", "n".repeat(252).as_bytes()].concat();
        for path in [&b".wh."[..], b"a/.wh.", b".wh..", b".wh...", b".wh.a/b", b"..", b"a/..", &long] {
            assert!(entry(path).is_err(), "{:?}", String::from_utf8_lossy(path));
        }
    }
}

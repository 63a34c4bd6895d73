//! The names that the parts of a directory hold, brought together: what the topmost part says about each counts.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::FileType;

use super::listing::hash;
use super::name_index::NameIndex;

/// What a part says about a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Says {
    /// There is something of this type, as far as the listing knows, with this number in the file system.
    There(Kind, u64),
    /// It is hidden in the parts below, by a mark beside it.
    Hidden,
}

/// A type of file in one byte, which can be put in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind(u8);

impl Kind {
    /// Returns `kind` in this form.
    pub fn of(kind: FileType) -> Self {
        Self((kind.as_raw_mode() >> 12) as u8)
    }

    /// Returns the type.
    pub fn file_type(self) -> FileType {
        FileType::from_raw_mode(u32::from(self.0) << 12)
    }
}

#[derive(Debug, Clone, Copy)]
struct Line {
    hash: u64,
    start: u32,
    len: u8,
    part: u16,
    says: Says,
}

/// The names of several directories.
#[derive(Debug, Default)]
pub struct Merge {
    names: Vec<u8>,
    lines: Vec<Line>,
}

/// A name, and what the topmost part that knows it says.
#[derive(Debug, Clone, Copy)]
pub struct Topmost<'a> {
    /// The name.
    pub name: &'a OsStr,
    /// Where it begins among all names.
    pub start: u32,
    /// The hash of the name.
    pub hash: u64,
    /// The part: 0 is upper, lower ones count from 1.
    pub part: u16,
    /// What that part says.
    pub says: Says,
}

impl Merge {
    /// Adds what `part` says about `name`.
    pub fn add(&mut self, part: u16, name: &[u8], kind: FileType, ino: u64) {
        self.push(part, name, Says::There(Kind::of(kind), ino));
    }

    /// Adds that `part` hides `name` in the parts below.
    pub fn hide(&mut self, part: u16, name: &[u8]) {
        self.push(part, name, Says::Hidden);
    }

    fn push(&mut self, part: u16, name: &[u8], says: Says) {
        // Names have 255 bytes at most, and directories less than 2³² of them in all.
        let (Ok(start), Ok(len)) = (u32::try_from(self.names.len()), u8::try_from(name.len())) else { return };
        self.names.extend_from_slice(name);
        self.lines.push(Line { hash: hash(name), start, len, part, says });
    }

    /// Puts the names in the order of their hashes, those of one name from the topmost part down.
    pub fn sort(&mut self) {
        let names = &self.names;
        let rest = |line: &Line| (bytes(names, line), line.part, line.says);
        self.lines.sort_unstable_by(|a, b| a.hash.cmp(&b.hash).then_with(|| rest(a).cmp(&rest(b))));
    }

    /// Returns which lower parts have each name; to be called after [`Merge::sort`].
    pub fn index(&self) -> NameIndex {
        let lower = self.lines.iter().filter(|line| line.part > 0 && line.says != Says::Hidden);
        lower.map(|line| (line.hash, line.part - 1)).collect()
    }

    /// Returns each name once; to be called after [`Merge::sort`].
    pub fn topmost(&self) -> impl Iterator<Item = Topmost<'_>> {
        let same = |a: &Line, b: &Line| a.hash == b.hash && bytes(&self.names, a) == bytes(&self.names, b);
        self.lines.chunk_by(same).filter_map(|lines| lines.first()).map(|line| Topmost {
            name: OsStr::from_bytes(bytes(&self.names, line)),
            start: line.start,
            hash: line.hash,
            part: line.part,
            says: line.says,
        })
    }

    /// Returns how many lines were added.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Returns the bytes of all names.
    pub fn into_names(self) -> Vec<u8> {
        self.names
    }
}

fn bytes<'a>(names: &'a [u8], line: &Line) -> &'a [u8] {
    let start = line.start as usize;
    names.get(start..start + usize::from(line.len)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::dir::Below;

    #[test]
    fn the_topmost_part_counts_and_a_mark_hides_only_what_is_below() {
        let mut merge = Merge::default();
        let regular = FileType::RegularFile;
        merge.add(0, b"upper", regular, 1);
        merge.hide(0, b"gone");
        merge.hide(1, b"both");
        merge.add(1, b"both", FileType::Directory, 2);
        merge.add(2, b"upper", regular, 3);
        merge.add(2, b"gone", regular, 4);
        merge.add(2, b"both", regular, 5);
        merge.add(2, b"lower", regular, 6);
        merge.sort();
        let mut found: Vec<_> = merge
            .topmost()
            .map(|top| match top.says {
                Says::There(kind, ino) => (top.name.to_str().unwrap(), top.part, Some((kind.file_type(), ino))),
                Says::Hidden => (top.name.to_str().unwrap(), top.part, None),
            })
            .collect();
        found.sort_unstable_by_key(|found| found.0);
        let expected = [
            ("both", 1, Some((FileType::Directory, 2))),
            ("gone", 0, None),
            ("lower", 2, Some((regular, 6))),
            ("upper", 0, Some((regular, 1))),
        ];
        assert_eq!(found, expected);
        let index = merge.index();
        let next = |name: &str, from| index.next(OsStr::new(name), from);
        assert_eq!(["upper", "gone", "lower"].map(|name| next(name, 0)), [Some((1, Below::Nothing)); 3]);
        assert_eq!((next("both", 0), next("both", 1)), (Some((0, Below::Something)), Some((1, Below::Nothing))));
        assert_eq!(next("nowhere", 0), None);
    }
}

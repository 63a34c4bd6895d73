//! The workdir: the index of hard links, what is left unfinished, and the marks that forbid a mount.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use rustix::io::Errno;

use super::Fsck;
use super::finding::{Finding, Problem, Side};
use super::merged::Merged;
use super::origins::{There, Verdict};
use super::tree::Indexed;
use crate::error::{Error, Result};
use crate::layer::attr::Attr;
use crate::layer::origin::Origin;
use crate::layer::overlay::Mark;
use crate::layer::workdir::{self, Incompatible};
use crate::sys::{dents, xattr};

/// What the kernel's overlayfs notes on the entry of a directory, which it has with `nfs_export=on`.
const UPPER: &str = "trusted.overlay.upper";

/// Returns the name in the index for a file with the origin `value`.
pub(super) fn entry_of(value: &[u8]) -> Option<OsString> {
    Origin::decode(value)?.index_name()
}

/// Returns the origin that the name of an entry says.
pub(super) fn origin_of(name: &OsStr) -> Option<Vec<u8>> {
    let digits = name.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let value: Vec<u8> = digits.chunks(2).map(byte).collect::<Option<_>>()?;
    // The kernel's form, in small letters.
    (entry_of(&value).as_deref() == Some(name)).then_some(value)
}

/// Whether every directory of the union could be looked into.
enum Counted {
    /// It could.
    All,
    /// One may have lower parts that are not found.
    Some,
}

/// A link count that is in doubt.
struct Doubt {
    entry: OsString,
    attr: Attr,
    value: Option<Vec<u8>>,
    /// Whether it can be what the mark says.
    possible: bool,
    there: (u32, u32, u64),
}

/// Returns the difference from upper's link count that a mark says, where `lower` is the count of the lower file.
fn difference(value: &[u8], upper: u32, lower: u32) -> Option<i64> {
    let (base, number) = value.split_first()?;
    let number = i64::from(std::str::from_utf8(number).ok()?.parse::<i32>().ok()?);
    match base {
        b'U' => Some(number),
        b'L' => Some(i64::from(lower) + number - i64::from(upper)),
        _ => None,
    }
}

impl Fsck {
    /// Reports what is in the workdir and should not be, but for its index.
    pub(super) fn check_workdir(&self, each: &mut dyn FnMut(Finding)) -> Result<()> {
        let Some(work) = &self.work else { return Ok(()) };
        let survey = workdir::survey(work.fd()).map_err(|e| Error::call("survey", "work", ".", e))?;
        let mut tell = |path: PathBuf, problem| each(Finding { side: Side::Work, path, problem, ino: 0 });
        for name in survey.foreign {
            tell(name.into(), Problem::NotOfWorkdir);
        }
        for name in survey.left {
            tell(Path::new("work").join(name), Problem::Leftover);
        }
        for (name, mark) in survey.marks {
            let problem = match mark {
                Incompatible::VolatileNow => Problem::VolatileNow,
                Incompatible::VolatileBefore => Problem::VolatileBefore,
                Incompatible::Unknown => Problem::FeatureUnknown,
            };
            tell(Path::new("work/incompat").join(name), problem);
        }
        Ok(())
    }

    /// Checks the index; returns what is in it.
    pub(super) fn check_index(&self, each: &mut dyn FnMut(Finding)) -> Result<Indexed> {
        let mut indexed = Indexed::new();
        let Some(work) = &self.work else { return Ok(indexed) };
        let failed = |e: Errno| Error::call("open", "work", "index", e);
        let Some(index) = workdir::index(work.fd()).map_err(failed)? else { return Ok(indexed) };
        let mut names = Vec::new();
        dents::each(index.as_fd(), |name, _, _| names.push(OsStr::from_bytes(name).to_owned())).map_err(failed)?;
        let mut doubts = Vec::new();
        for name in names {
            let mut tell = |ino: u64, problem: Problem| {
                each(Finding { side: Side::Work, path: Path::new("index").join(&name), problem, ino });
            };
            let attr = match self.upper()?.stat(index.as_fd(), &name) {
                Ok(attr) => attr,
                Err(errno) => {
                    tell(0, Problem::Unreadable { error: format!("statx: {errno}") });
                    continue;
                }
            };
            match self.judge_entry(index.as_fd(), &name, &attr, &mut doubts) {
                Ok(None) => {}
                // Its name says nothing about the file's other names.
                Ok(Some(problem @ (Problem::IndexGone | Problem::IndexInvalid { .. } | Problem::Leftover))) => {
                    tell(attr.ino, problem);
                    continue;
                }
                Ok(Some(problem)) => tell(attr.ino, problem),
                Err(errno) => tell(attr.ino, Problem::Unreadable { error: format!("getxattr: {errno}") }),
            }
            indexed.insert(attr.ino, name);
        }
        self.resolve(doubts, each);
        Ok(indexed)
    }

    /// Returns what is wrong with an entry; whose link count alone is in doubt goes to `doubts`.
    fn judge_entry(
        &self,
        index: BorrowedFd<'_>,
        name: &OsStr,
        attr: &Attr,
        doubts: &mut Vec<Doubt>,
    ) -> rustix::io::Result<Option<Problem>> {
        if name.as_bytes().starts_with(b"#") {
            // The kernel makes unfinished things here, too, and keeps what its whiteouts are links of.
            return Ok((!attr.is_char_whiteout()).then_some(Problem::Leftover));
        }
        let Some(value) = origin_of(name) else {
            return Ok(Some(Problem::IndexInvalid { named: attr.nlink > 1 && !attr.is_dir() }));
        };
        // With nfs_export=on the kernel has entries for directories, and whiteouts for what was removed.
        let exported = attr.is_dir() && xattr::read(index, name, OsStr::new(UPPER))?.is_some();
        if exported || attr.is_char_whiteout() {
            return Ok(None);
        }
        if attr.is_dir() {
            return Ok(Some(Problem::IndexInvalid { named: false }));
        }
        let there = match self.origins.judge(&value, Some(attr.kind)) {
            Verdict::There(there) => there,
            Verdict::Unknown => return Ok(None),
            Verdict::Invalid | Verdict::Gone => return Ok(Some(Problem::IndexGone)),
        };
        let namespace = self.layers.namespace;
        if namespace.get(index, name, Mark::Origin)?.as_deref() != Some(&value) {
            return Ok(Some(Problem::IndexOrigin));
        }
        let mark = namespace.get(index, name, Mark::Nlink)?;
        doubts.extend(doubt(name, attr, mark, &there));
        Ok(None)
    }

    /// Counts the names of the files that are in doubt, and reports what is not as it should be.
    fn resolve(&self, doubts: Vec<Doubt>, each: &mut dyn FnMut(Finding)) {
        if doubts.is_empty() {
            return;
        }
        let mut names: HashMap<(u32, u32, u64), u32> = doubts.iter().map(|doubt| (doubt.there, 0)).collect();
        let uncounted = match self.count_lower_names(&mut names) {
            Ok(Counted::All) => None,
            Ok(Counted::Some) => {
                Some("it may have names where redirects are not followed: repair those first".to_owned())
            }
            Err(error) => Some(format!("its names cannot be counted: {error}")),
        };
        for doubt in doubts {
            let path = Path::new("index").join(&doubt.entry);
            if let Some(error) = &uncounted {
                let problem = Problem::Unreadable { error: error.clone() };
                each(Finding { side: Side::Work, path, problem, ino: doubt.attr.ino });
                continue;
            }
            let below = names.get(&doubt.there).copied().unwrap_or_default();
            let in_upper = doubt.attr.nlink.saturating_sub(1);
            let right = i64::from(below) + i64::from(in_upper) - i64::from(doubt.attr.nlink);
            let problem = if below == 0 && in_upper == 0 {
                Problem::IndexUnused
            } else if doubt.possible {
                continue;
            } else {
                Problem::LinkCount { value: doubt.value, right: i32::try_from(right).unwrap_or_default() }
            };
            each(Finding { side: Side::Work, path, problem, ino: doubt.attr.ino });
        }
    }

    /// Counts the names under which the union shows the lower files in `names`, as far as they are not in upper.
    fn count_lower_names(&self, names: &mut HashMap<(u32, u32, u64), u32>) -> Result<Counted> {
        let mut pending = vec![self.layers.root()];
        let mut counted = Counted::All;
        while let Some(dir) = pending.pop() {
            if dir.lost || dir.lower.is_none() {
                counted = Counted::Some;
            }
            self.count_in(&dir, names)?;
            for name in self.directories_in(&dir)? {
                pending.extend(self.layers.child(&dir, &name)?);
            }
        }
        Ok(counted)
    }

    fn count_in(&self, dir: &Merged, names: &mut HashMap<(u32, u32, u64), u32>) -> Result<()> {
        let mut found = Vec::new();
        for part in dir.lower.iter().flatten() {
            self.layers.lowers.each_entry(part, |name, _, ino| {
                if names.contains_key(&(part.dev.0, part.dev.1, ino)) {
                    found.push((part.clone(), OsStr::from_bytes(name).to_owned(), ino));
                }
            })?;
        }
        for (part, name, ino) in found {
            if self.layers.shows_lower(dir, &part, &name)? {
                *names.entry((part.dev.0, part.dev.1, ino)).or_default() += 1;
            }
        }
        Ok(())
    }

    /// Returns the names of what may be directories in any part of `dir`.
    fn directories_in(&self, dir: &Merged) -> Result<std::collections::BTreeSet<OsString>> {
        let mut names = std::collections::BTreeSet::new();
        let mut add = |name: &[u8], kind: FileType| {
            if matches!(kind, FileType::Directory | FileType::Unknown) {
                names.insert(OsStr::from_bytes(name).to_owned());
            }
        };
        if let Some(upper) = &dir.upper {
            self.layers.upper.each_entry(upper, |name, kind, _| add(name, kind))?;
        }
        for part in dir.lower.iter().flatten() {
            self.layers.lowers.each_entry(part, |name, kind, _| add(name, kind))?;
        }
        Ok(names)
    }
}

/// Returns whether a link count can be: no less than the names in upper, and no more than with all those in the lowers.
fn is_possible(stored: Option<i64>, nlink: u32, lower: u32) -> bool {
    let Some(stored) = stored else { return false };
    let in_upper = i64::from(nlink) - 1;
    let count = i64::from(nlink) + stored;
    count >= in_upper.max(1) && count <= in_upper + i64::from(lower)
}

/// Returns an entry whose names must be counted: its mark cannot be, or it has no name in upper.
fn doubt(name: &OsStr, attr: &Attr, value: Option<Vec<u8>>, there: &There) -> Option<Doubt> {
    let stored = value.as_deref().and_then(|value| difference(value, attr.nlink, there.nlink));
    let possible = is_possible(stored, attr.nlink, there.nlink);
    if possible && attr.nlink > 1 {
        return None;
    }
    let there = (there.dev.0, there.dev.1, there.ino);
    Some(Doubt { entry: name.to_owned(), attr: *attr, value, possible, there })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fhandle::FileHandle;

    #[test]
    fn names_in_the_index_are_origins_in_small_letters() {
        let origin = Origin { uuid: [7; 16], handle: FileHandle { kind: 1, bytes: vec![0xab; 8] } };
        let name = origin.index_name().unwrap();
        assert_eq!(origin_of(&name), origin.encode());
        let large = name.to_str().unwrap().to_uppercase();
        for other in ["", "0", "00fb", "#1a", &large, "\u{e9}\u{e9}"] {
            assert_eq!(origin_of(OsStr::new(other)), None, "{other}");
        }
    }

    #[test]
    fn link_counts_are_possible_between_the_names_in_upper_and_all_names() {
        // In the index and under one name, of a lower file that has three.
        for (value, possible) in [
            (&b"U+1"[..], true),
            (b"U-1", true),
            (b"U+2", true),
            (b"L+0", true),
            (b"L-2", true),
            (b"U-2", false),
            (b"U+3", false),
            (b"L-3", false),
            (b"L+2", false),
            (b"", false),
            (b"X+1", false),
            (b"U", false),
        ] {
            let stored = difference(value, 2, 3);
            assert_eq!(is_possible(stored, 2, 3), possible, "{:?}", String::from_utf8_lossy(value));
        }
    }
}

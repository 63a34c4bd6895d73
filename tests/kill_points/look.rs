//! What a union shows, and when two of them show the same.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write;

use unionfs_rs::union::{Attr, Entry, FileKind, Flow, Name, NodeId, Union};

use crate::acts::ROOT;

/// The time that everything in the layers was written at.
pub const OLD: i64 = 1_000_000_000;

/// Everything that a union shows: a line each path, and in braces when a file was written, `{now}` for any time but those
/// that the test has set.
pub type View = Vec<String>;

/// Collects what `union` shows. Errors: the first one met, with the path.
pub fn view(union: &Union) -> Result<View, String> {
    let mut look = Look { union, view: View::new(), seen: BTreeMap::new() };
    look.collect(NodeId::ROOT, "")?;
    look.view.sort();
    Ok(look.view)
}

struct Look<'a> {
    union: &'a Union,
    view: View,
    /// The first path of each file that has several names.
    seen: BTreeMap<u64, String>,
}

impl Look<'_> {
    fn collect(&mut self, dir: NodeId, prefix: &str) -> Result<(), String> {
        let mut names = Vec::new();
        let read = self.union.read_dir(dir, 0, |entry| {
            names.push((entry.name.to_os_string(), entry.ino));
            Flow::More
        });
        read.map_err(|error| format!("{prefix}: cannot be listed: {error}"))?;
        names.retain(|(name, _)| name != "." && name != "..");
        names.sort();
        for (name, ino) in names {
            let path = format!("{prefix}{}", name.to_string_lossy());
            let name = Name::new(&name).map_err(|error| format!("{path}: {error}"))?;
            let entry = self.union.lookup(dir, name).map_err(|error| format!("{path} is listed alone: {error}"))?;
            if entry.attr.ino != ino {
                return Err(format!("{path} is listed with the number {ino} and has {}", entry.attr.ino));
            }
            let line = self.line(&path, &entry)?;
            self.view.push(line);
            if entry.attr.kind == FileKind::Directory {
                self.collect(entry.id, &format!("{path}/"))?;
            }
        }
        Ok(())
    }

    fn line(&mut self, path: &str, entry: &Entry) -> Result<String, String> {
        let Attr { kind, mode, nlink, uid, gid, rdev, size, ino, .. } = entry.attr;
        let failed = |call| move |error| format!("{path}: {call}: {error}");
        let mut line = format!("{path}: {kind:?} {mode:o} {uid}:{gid}");
        match kind {
            // Size and links of a directory depend on what of it is in upper.
            FileKind::Directory => {}
            FileKind::Regular => {
                let mut data = vec![0; 1 << 20];
                let len = self.union.read(entry.id, 0, &mut data).map_err(failed("read"))?;
                let _ = write!(line, " {size} bytes {}", digest(&data[..len])); // A String takes everything.
            }
            FileKind::Symlink => {
                let target = self.union.readlink(entry.id).map_err(failed("readlink"))?;
                let _ = write!(line, " to {target:?}"); // As above.
            }
            _ => {
                let _ = write!(line, " {rdev:?}"); // As above.
            }
        }
        if kind != FileKind::Directory {
            let first = self.seen.entry(ino).or_insert_with(|| path.to_owned());
            let _ = write!(line, " {nlink} links with {first}"); // As above.
        }
        let mut names = self.union.listxattr(entry.id, ROOT).map_err(failed("listxattr"))?;
        names.sort();
        for name in names {
            let value = self.union.getxattr(entry.id, &name).map_err(failed("getxattr"))?;
            let _ = write!(line, " {name:?}={}", OsStr::new(&String::from_utf8_lossy(&value).into_owned()).display()); // As above.
        }
        if kind == FileKind::Regular {
            let written = entry.attr.mtime.secs;
            let _ = if written < OLD * 3 / 2 { write!(line, " {{{written}}}") } else { write!(line, " {{now}}") }; // As above.
        }
        Ok(line.replace('\n', "\\n"))
    }
}

/// Tells contents apart: short ones are shown.
fn digest(data: &[u8]) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    if data.len() < 64 {
        return format!("{:?}", String::from_utf8_lossy(data));
    }
    let mut hasher = DefaultHasher::new();
    data.hash(&mut hasher);
    format!("#{:x}", hasher.finish())
}

/// Returns whether `now` is `expected`. A file that was to be written may have its new contents and still its old time: a
/// write is the one thing, and the time that it leaves another.
pub fn is(now: &View, expected: &View) -> bool {
    let same = |(now, expected): (&String, &String)| {
        let written = |line: &str| line.strip_suffix(" {now}").map(str::to_owned);
        match (written(expected), now.rsplit_once(" {")) {
            (Some(expected), Some((now, _))) => now == expected,
            _ => now == expected,
        }
    };
    now.len() == expected.len() && now.iter().zip(expected).all(same)
}

/// Returns `view` as if nothing of it had been written but what the layers hold.
pub fn aged(view: &View) -> View {
    let old = format!(" {{{OLD}}}");
    let aged = |line: &String| match line.strip_suffix(" {now}") {
        Some(line) => format!("{line}{old}"),
        None => line.clone(),
    };
    view.iter().map(aged).collect()
}

/// Says how `now` differs from `expected`.
pub fn difference(now: &View, expected: &View) -> String {
    let only = |of: &View, other: &View, sign: char| {
        let lines = of.iter().filter(|line| !other.contains(line)).map(|line| format!("    {sign} {line}\n"));
        lines.collect::<String>()
    };
    only(expected, now, '-') + &only(now, expected, '+')
}

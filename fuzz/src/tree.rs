//! Layers of a few lines of text, opened as a union without a mount, walked and changed.
//!
//! A line is a letter, a path, and what belongs to it after tabs. First comes upper, and after each line `=` another layer,
//! down to the undermost; after a line `!` come changes.
//!
//! - in a layer: `d` directory, `f` file (contents), `l` symbolic link (target), `h` hard link (of a path in the layer), `p`
//!   pipe, `w` device 0:0, `c` device 1:3, `x` xattr (name, value; a value `@PATH` is the handle of that path of the stage,
//!   as an origin has it), `m` mode (octal), `i` the entry of the index that belongs to the handle of a path of the stage
//!   (`f`ile, `l`ink out, `p`ipe or `d`irectory)
//! - changes: `u` unlink, `r` rmdir, `v` rename (to), `e` exchange (with), `f` make a file (contents), `d` make a directory, `l`
//!   make a link (target), `h` link (to), `p` make a pipe, `w` make a device 0:0 (refused), `a` write at the end (data), `t` cut,
//!   `m` mode (octal), `x` set an xattr (name, value), `y` remove one (name)
//! - anywhere: `o`, letters for how it is mounted: `m` metacopy, `n` no redirects followed, `u` user xattrs, `r` without upper

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use tempfile::TempDir;
use unionfs_rs::config::{Fsync, RedirectDir, UnionConfig, XattrNamespace};
use unionfs_rs::error::Error;
use unionfs_rs::layer::attr::FileKind;
use unionfs_rs::layer::origin::Origin;
use unionfs_rs::sys::fhandle;
use unionfs_rs::union::{Caller, Entry, Flow, Name, New, NodeId, RenameFlags, SetAttr, Union};

/// More layers than this say nothing new.
const LAYERS: usize = 4;

/// More lines than this only take time.
const LINES: usize = 64;

/// How many entries a walk looks at, and how deep: redirects may multiply a tree.
const ENTRIES: usize = 600;
const DEPTH: usize = 24;

/// A line: its letter and its words.
type Line<'a> = (u8, Vec<&'a [u8]>);

/// What a text describes.
pub struct Input<'a> {
    /// Upper, then the lowers from the topmost down.
    layers: Vec<Vec<Line<'a>>>,
    /// What is done to the union.
    pub changes: Vec<Line<'a>>,
    options: Vec<u8>,
}

impl<'a> Input<'a> {
    /// Reads a text; `None` for one that takes long and says nothing more.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut input = Self { layers: vec![Vec::new()], changes: Vec::new(), options: Vec::new() };
        let mut changing = false;
        for (n, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let Some((letter, rest)) = line.split_first() else { continue };
            if n > LINES {
                return None;
            }
            match letter {
                b'=' if !changing => input.layers.push(Vec::new()),
                b'!' => changing = true,
                b'o' => input.options.extend(rest),
                letter => {
                    let words = (*letter, rest.split(|byte| *byte == b'\t').collect());
                    if changing { input.changes.push(words) } else { input.layers.last_mut()?.push(words) }
                }
            }
        }
        if input.layers.len() == 1 {
            input.layers.push(Vec::new());
        }
        (input.layers.len() <= LAYERS).then_some(input)
    }

    fn has(&self, option: u8) -> bool {
        self.options.contains(&option)
    }

    /// Every name that is spoken of.
    fn names(&self) -> Vec<OsString> {
        let lines = self.layers.iter().flatten().chain(&self.changes);
        let words = lines.flat_map(|(_, words)| words.iter().take(2)).flat_map(|word| word.split(|b| *b == b'/'));
        let mut names: Vec<OsString> = words
            .filter(|name| Name::new(OsStr::from_bytes(name)).is_ok())
            .map(|n| OsStr::from_bytes(n).to_owned())
            .collect();
        names.sort_unstable();
        names.dedup();
        names.truncate(24);
        names
    }
}

/// The layers on the disk, and what must stay as it is.
pub struct Stage {
    dir: TempDir,
    names: Vec<OsString>,
    /// Whether no mark leads two names to one thing, which would then have numbers by turns.
    unique: bool,
    /// What a file outside of the layers holds, which no text can know.
    secret: String,
    before: String,
}

/// What a walk has seen, by path.
type Seen = BTreeMap<Vec<u8>, String>;

impl Stage {
    /// Makes the layers that `input`, the text `bytes`, describes. What cannot be made is left out.
    pub fn lay(bytes: &[u8], input: &Input<'_>) -> Self {
        let dir = tempfile::tempdir().expect("there is room");
        let secret = unionfs_rs::image::digest::of(bytes).expect("memory can be read").to_string();
        let at = |name: &str| dir.path().join(name);
        for name in ["upper", "work", "outside"] {
            fs::create_dir(at(name)).expect("there is room");
        }
        fs::write(at("outside/secret"), &secret).expect("there is room");
        fs::hard_link(at("outside/secret"), at("outside/twin")).expect("there is room");
        rustix::fs::mknodat(CWD, at("outside/pipe"), FileType::Fifo, Mode::RUSR, 0).expect("there is room");
        let leads = |(letter, words): &Line<'_>| {
            *letter == b'i'
                || *letter == b'x'
                    && words.get(1).is_some_and(|name| name.ends_with(b"redirect") || name.ends_with(b"origin"))
        };
        let unique = !input.layers.iter().flatten().any(leads);
        let mut stage = Self { dir, names: input.names(), unique, secret, before: String::new() };
        for (n, layer) in input.layers.iter().enumerate() {
            let root = if n == 0 { stage.dir.path().join("upper") } else { stage.lower(n) };
            if n > 0 {
                fs::create_dir(&root).expect("there is room");
            }
            let root = rustix::fs::open(&root, OFlags::PATH, Mode::empty()).expect("it was made");
            for line in layer {
                let _left_out = stage.make(&root, line);
            }
        }
        stage.before = stage.unchangeable(input.layers.len());
        stage
    }

    fn lower(&self, n: usize) -> PathBuf {
        self.dir.path().join(format!("lower{n}"))
    }

    /// Makes what a line says in a layer; links are not followed.
    fn make(&self, root: &OwnedFd, (letter, words): &Line<'_>) -> rustix::io::Result<()> {
        let path = words.first().copied().unwrap_or_default();
        let word = words.get(1).copied().unwrap_or_default();
        if *letter == b'i' {
            return self.make_index(path, word);
        }
        let (dir, name) = below(root, path, true)?;
        let (dir, name) = (&dir, OsStr::from_bytes(&name));
        match letter {
            b'd' => rustix::fs::mkdirat(dir, name, Mode::RWXU | Mode::ROTH),
            b'f' => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
                let file = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR | Mode::ROTH)?;
                rustix::io::write(&file, word).map(drop)
            }
            b'l' => rustix::fs::symlinkat(text(word), dir, name),
            b'h' => {
                let (from, old) = below(root, word, false)?;
                rustix::fs::linkat(&from, OsStr::from_bytes(&old), dir, name, AtFlags::empty())
            }
            b'p' => rustix::fs::mknodat(dir, name, FileType::Fifo, Mode::RUSR, 0),
            b'w' => rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::RUSR, 0),
            b'c' => {
                let null = rustix::fs::makedev(1, 3);
                rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::RUSR, null)
            }
            b'x' => {
                let value = words.get(2).copied().unwrap_or_default();
                let handle = value.strip_prefix(b"@").and_then(|path| self.origin_of(path)).and_then(|o| o.encode());
                let pinned = rustix::fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
                let value = handle.as_deref().unwrap_or(value);
                unionfs_rs::sys::xattr::set(pinned.as_fd(), OsStr::new(""), text(word), value, XattrFlags::empty())
            }
            b'm' => unionfs_rs::sys::mode::set(dir.as_fd(), name, octal(word)),
            _ => Err(Errno::INVAL),
        }
    }

    /// Makes the entry of the index for the handle of `path`.
    fn make_index(&self, path: &[u8], kind: &[u8]) -> rustix::io::Result<()> {
        let name = self.origin_of(path).and_then(|origin| origin.index_name()).ok_or(Errno::NOENT)?;
        let index = self.dir.path().join("work/index");
        let _there_already = fs::create_dir(&index);
        let entry = index.join(name);
        let secret = self.dir.path().join("outside/secret");
        match kind.first() {
            Some(b'l') => rustix::fs::symlinkat(&secret, CWD, &entry),
            Some(b'p') => rustix::fs::mknodat(CWD, &entry, FileType::Fifo, Mode::RUSR, 0),
            Some(b'd') => rustix::fs::mkdirat(CWD, &entry, Mode::RWXU),
            _ => fs::write(&entry, "indexed").map_err(|_| Errno::IO),
        }
    }

    /// Returns the handle of `path` on the stage, as the kernel would write it into an origin.
    fn origin_of(&self, path: &[u8]) -> Option<Origin> {
        let root = rustix::fs::open(self.dir.path(), OFlags::PATH, Mode::empty()).ok()?;
        let (dir, name) = below(&root, path, false).ok()?;
        let readable = rustix::fs::open(self.dir.path(), OFlags::RDONLY, Mode::empty()).ok()?;
        let uuid = fhandle::filesystem_uuid(readable.as_fd()).unwrap_or_default();
        Some(Origin { uuid, handle: fhandle::name_to_handle(dir.as_fd(), OsStr::from_bytes(&name)).ok()? })
    }

    /// Opens the union; `None` where its layers are refused.
    pub fn open(&self, input: &Input<'_>) -> Option<Union> {
        let upper = !input.has(b'r');
        let config = UnionConfig {
            lowers: (1..input.layers.len()).map(|n| self.lower(n).into()).collect(),
            upper: upper.then(|| self.dir.path().join("upper").into()),
            work: upper.then(|| self.dir.path().join("work").into()),
            patience: Duration::ZERO,
            fsync: Fsync::Never,
            metacopy: input.has(b'm'),
            redirect_dir: if input.has(b'n') { RedirectDir::NoFollow } else { RedirectDir::Auto },
            xattr_namespace: if input.has(b'u') { XattrNamespace::User } else { XattrNamespace::Auto },
            ..UnionConfig::default()
        };
        match Union::from_config(&config) {
            Ok(union) => Some(union),
            Err(error) => {
                assert!(matches!(error, Error::Setup { .. }), "{error}");
                None
            }
        }
    }

    /// Looks at all that the union shows, in every way; `None` where that is too much.
    pub fn walk(&self, union: &Union) -> Option<Seen> {
        let mut seen = Seen::new();
        let mut left = vec![(NodeId::ROOT, Vec::new(), 0)];
        let mut whole = true;
        while let Some((dir, path, depth)) = left.pop() {
            if seen.len() > ENTRIES || depth > DEPTH {
                whole = false;
            } else {
                self.look_into(union, dir, &path, depth, &mut seen, &mut left);
            }
            if dir != NodeId::ROOT {
                union.forget(dir, 1);
            }
        }
        whole.then_some(seen)
    }

    fn look_into(
        &self,
        union: &Union,
        dir: NodeId,
        path: &[u8],
        depth: usize,
        seen: &mut Seen,
        left: &mut Vec<(NodeId, Vec<u8>, usize)>,
    ) {
        let listed = match list(union, dir) {
            Ok(listed) => listed,
            Err(error) => {
                seen.insert(path.to_vec(), format!("not listed: {}", error.errno()));
                return;
            }
        };
        for name in &self.names {
            let found = union.lookup(dir, Name::new(name).expect("it was checked"));
            if let Ok(entry) = found {
                union.forget(entry.id, 1);
                assert!(listed.iter().any(|(other, ..)| other == name), "{name:?} is there, and not listed");
            }
        }
        for (name, ino, kind) in listed {
            let inside =
                if path.is_empty() { name.as_bytes().to_vec() } else { [path, b"/", name.as_bytes()].concat() };
            let found = union.lookup(dir, Name::new(&name).expect("what is listed is a name"));
            let entry = match found {
                Ok(entry) => entry,
                Err(error) => {
                    assert_ne!(error.errno(), Errno::NOENT, "{inside:?} is listed, and not there");
                    seen.insert(inside, format!("not there: {}", error.errno()));
                    continue;
                }
            };
            assert_eq!(entry.attr.kind, kind, "{inside:?} as listed and as looked up");
            assert!(
                !self.unique || entry.attr.ino == ino,
                "{inside:?} as listed and as looked up: {ino}, {}",
                entry.attr.ino
            );
            let line = self.look_at(union, &entry);
            seen.insert(inside.clone(), line);
            if entry.attr.kind == FileKind::Directory {
                left.push((entry.id, inside, depth + 1));
            } else {
                union.forget(entry.id, 1);
            }
        }
    }

    /// Says what is behind an entry, all of it.
    fn look_at(&self, union: &Union, entry: &Entry) -> String {
        let attr = entry.attr;
        let mut text = format!("{:?} {:o} {}:{} {:?}", attr.kind, attr.mode, attr.uid, attr.gid, attr.rdev);
        let again = union.getattr(entry.id).expect("what was looked up has attributes");
        assert_eq!((again.ino, again.kind, again.mode, again.size), (attr.ino, attr.kind, attr.mode, attr.size));
        match attr.kind {
            FileKind::Regular => {
                let mut data = vec![0; 4096];
                match union.read(entry.id, 0, &mut data) {
                    Ok(len) => {
                        assert!(!contains(&data[..len], self.secret.as_bytes()), "a file outside was read");
                        write!(text, " {} {:?}", attr.size, String::from_utf8_lossy(&data[..len])).expect("a String");
                    }
                    Err(error) => write!(text, " {}", error.errno()).expect("a String"),
                }
            }
            FileKind::Symlink => {
                let target = union.readlink(entry.id).map_err(|error| error.errno());
                write!(text, " {target:?}").expect("a String");
            }
            _ => {}
        }
        let names = union.listxattr(entry.id, Caller::current());
        for name in names.into_iter().flatten() {
            let value = union.getxattr(entry.id, &name).map_err(|error| error.errno());
            write!(text, " {name:?}={value:?}").expect("a String");
        }
        text
    }

    /// Does what a line says to the union; that it is refused is an answer.
    pub fn change(&self, union: &Union, (letter, words): &Line<'_>) {
        let word = |n: usize| words.get(n).copied().unwrap_or_default();
        let _refused = self.try_change(union, *letter, (word(0), word(1), word(2)));
    }

    fn try_change(&self, union: &Union, letter: u8, (path, word, value): (&[u8], &[u8], &[u8])) -> Result<(), Error> {
        let caller = Caller::current();
        let (parent, name) = split(path);
        let name = Name::new(OsStr::from_bytes(name)).map_err(Error::Refused)?;
        let parent = Held::new(union, parent)?;
        let at = |path: &[u8]| {
            union.lookup_path(Path::new(OsStr::from_bytes(path))).map(|entry| Held {
                union,
                entry: Some(entry),
                id: entry.id,
            })
        };
        let make = |new| {
            union.create(parent.id, name, new, 0o4755, 0o22, caller).map(|entry| Held {
                union,
                entry: Some(entry),
                id: entry.id,
            })
        };
        let other = |path: &'_ [u8], flags| -> Result<(), Error> {
            let (dir, other) = split(path);
            let dir = Held::new(union, dir)?;
            union.rename(parent.id, name, dir.id, Name::new(OsStr::from_bytes(other)).map_err(Error::Refused)?, flags)
        };
        match letter {
            b'u' => union.unlink(parent.id, name),
            b'r' => union.rmdir(parent.id, name),
            b'v' => other(word, RenameFlags::empty()),
            b'e' => other(word, RenameFlags::EXCHANGE),
            b'f' => {
                let made = make(New::Regular)?;
                union.write(made.id, 0, word, None).map(drop)
            }
            b'd' => make(New::Directory).map(drop),
            b'l' => make(New::Symlink(text(word))).map(drop),
            b'p' => make(New::Node(FileKind::Fifo, (0, 0))).map(drop),
            b'w' => {
                assert!(make(New::Node(FileKind::Char, (0, 0))).is_err(), "a mark was made as a device");
                Ok(())
            }
            b'h' => {
                let (dir, new) = split(word);
                let dir = Held::new(union, dir)?;
                let entry =
                    union.link(at(path)?.id, dir.id, Name::new(OsStr::from_bytes(new)).map_err(Error::Refused)?)?;
                union.forget(entry.id, 1);
                Ok(())
            }
            b'a' => {
                let file = at(path)?;
                let size = union.getattr(file.id)?.size.min(1 << 16);
                union.write(file.id, size, word, Some(caller)).map(drop)
            }
            b't' => {
                union.setattr(at(path)?.id, SetAttr { size: Some(1), ..SetAttr::default() }, None, caller).map(drop)
            }
            b'm' => {
                let set = SetAttr { mode: Some(octal(word)), ..SetAttr::default() };
                union.setattr(at(path)?.id, set, None, caller).map(drop)
            }
            b'x' => union.setxattr(at(path)?.id, text(word), value, XattrFlags::empty(), caller),
            b'y' => union.removexattr(at(path)?.id, text(word), caller),
            _ => Ok(()),
        }
    }

    /// Asserts that nothing has changed but upper and the workdir.
    pub fn check(&mut self) {
        let layers = fs::read_dir(self.dir.path()).expect("it is there").count() - 2;
        assert_eq!(self.before, self.unchangeable(layers), "what is no part of upper is as it was");
    }

    /// Says all of the lowers and of what is beside the layers. The times of change cannot be set back.
    fn unchangeable(&self, layers: usize) -> String {
        let mut said = String::new();
        let mut left: Vec<PathBuf> = (1..layers).map(|n| self.lower(n)).collect();
        left.push(self.dir.path().join("outside"));
        while let Some(path) = left.pop() {
            let m = fs::symlink_metadata(&path).expect("it is still there");
            let times = (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
            writeln!(said, "{path:?} {} {:o} {} {} {times:?}", m.ino(), m.mode(), m.nlink(), m.size())
                .expect("a String");
            if m.is_dir() {
                let entries = fs::read_dir(&path).expect("it is ours");
                left.extend(entries.map(|entry| entry.expect("it is ours").path()));
            }
        }
        said
    }
}

/// An entry of a directory as it is listed: name, number and kind.
type Listed = (OsString, u64, FileKind);

/// Lists a directory, in as many goes as it takes.
fn list(union: &Union, dir: NodeId) -> Result<Vec<Listed>, Error> {
    let (mut listed, mut last) = (Vec::new(), 0);
    loop {
        let from = last;
        union.read_dir(dir, from, |entry| {
            last = entry.cookie;
            listed.push((entry.name.to_owned(), entry.ino, entry.kind));
            Flow::More
        })?;
        if last == from {
            listed.retain(|(name, ..): &Listed| name != "." && name != "..");
            return Ok(listed);
        }
    }
}

/// A directory or file that was looked up, to be forgotten.
struct Held<'a> {
    union: &'a Union,
    entry: Option<Entry>,
    id: NodeId,
}

impl<'a> Held<'a> {
    fn new(union: &'a Union, path: &[u8]) -> Result<Self, Error> {
        let entry = union.lookup_path(Path::new(OsStr::from_bytes(path)))?;
        Ok(Self { union, entry: Some(entry), id: entry.id })
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.entry.is_some() && self.id != NodeId::ROOT {
            self.union.forget(self.id, 1);
        }
    }
}

/// Opens the directory that `path` is in, below `root`, and returns the name in it. Links and `..` are refused.
fn below(root: &OwnedFd, path: &[u8], make: bool) -> rustix::io::Result<(OwnedFd, Vec<u8>)> {
    let mut parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&&b".."[..]) || parts.len() > DEPTH {
        return Err(Errno::INVAL);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let name = parts.pop().unwrap_or(b".");
    let mut at = rustix::fs::openat(root, ".", flags, Mode::empty())?;
    for part in parts {
        if make {
            match rustix::fs::mkdirat(&at, OsStr::from_bytes(part), Mode::RWXU | Mode::ROTH) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        at = rustix::fs::openat(&at, OsStr::from_bytes(part), flags, Mode::empty())?;
    }
    Ok((at, name.to_vec()))
}

/// Parts a path into what it is in and its name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

fn text(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

fn octal(word: &[u8]) -> u32 {
    std::str::from_utf8(word).ok().and_then(|word| u32::from_str_radix(word, 8).ok()).unwrap_or(0o700) & 0o7777
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

//! Damage that is made by hand, and the command that finds and repairs it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Write;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::support::{Io, Layers, LowersUnchanged, Mounted, Placement, Ran, Spec, Tree, Watchdog, unionfs};

/// An upper over two lowers, about to be damaged.
pub struct Damaged {
    pub layers: Layers,
    pub args: Vec<OsString>,
    _watchdog: Watchdog,
}

/// What the check says of one thing: where it is, the class, and what became of it.
pub type Said = (String, String, String);

impl Damaged {
    /// Makes the layers, with what `fill` puts into them.
    pub fn new(fill: impl FnOnce(&Layers)) -> Self {
        Self::placed(Placement::OneFs, fill)
    }

    pub fn placed(placement: Placement, fill: impl FnOnce(&Layers)) -> Self {
        let layers = Layers::new(2, placement);
        fill(&layers);
        Self { layers, args: Vec::new(), _watchdog: Watchdog::start() }
    }

    /// Changes the layers through a mount of ours.
    pub fn mounted(self, spec: impl FnOnce(Spec) -> Spec, change: impl FnOnce(&Tree)) -> Self {
        let mut mount = spec(self.layers.spec(Io::Cached)).mount_ours();
        change(&mount.tree());
        mount.unmount().expect("it can be unmounted");
        self
    }

    /// Adds arguments.
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(OsString::from));
        self
    }

    /// Runs the command.
    pub fn fsck(&self, more: &[&str]) -> Ran {
        let mut words: Vec<OsString> = vec!["fsck".into()];
        for lower in self.layers.lowers() {
            words.extend(["--lower".into(), lower.into()]);
        }
        words.extend(["--upper".into(), self.layers.path("upper").into()]);
        if self.layers.path("work").exists() {
            words.extend(["--work".into(), self.layers.path("work").into()]);
        }
        words.extend(self.args.iter().cloned());
        words.extend(more.iter().map(OsString::from));
        unionfs(words)
    }

    /// Runs the command for its answer in JSON; returns the exit code and what was found.
    pub fn said(&self, more: &[&str]) -> (i32, Vec<Said>) {
        let ran = self.fsck(&[more, &["--json"]].concat());
        let json: serde_json::Value = serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
        let word = |finding: &serde_json::Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
        let findings = json["findings"].as_array().expect("a list");
        let said = findings.iter().map(|finding| {
            let place = format!("{}:{}", word(finding, "layer"), word(finding, "path"));
            (place, word(finding, "class"), word(finding, "outcome"))
        });
        (ran.code.expect("it ends by itself"), said.collect())
    }

    /// Asserts that nothing is found.
    pub fn is_clean(&self) {
        let ran = self.fsck(&[]);
        assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (Some(0), "fsck: nothing found\n", ""), "{ran:?}");
    }

    /// Asserts that `expected` is found, is repaired by changes at `changed` alone, and is then gone; then mounts.
    pub fn mends(&self, expected: &[(&str, &str)], changed: &[&str], shows: impl FnOnce(&Tree)) {
        let lowers = LowersUnchanged::new(self.layers.lowers());
        let before = self.record();
        self.finds(expected, 4);
        assert_eq!(differences(&before, &self.record()), BTreeSet::new(), "a check changes nothing");
        let (code, said) = self.said(&["--repair"]);
        assert_eq!((code, said), (1, with(expected, "repaired")));
        let changed: BTreeSet<String> = changed.iter().map(|&name| name.to_owned()).collect();
        assert_eq!(differences(&before, &self.record()), changed);
        self.is_clean();
        self.shows(shows);
        self.is_clean();
        lowers.check();
    }

    /// Asserts that `expected` is found, and is left as it is.
    pub fn stays(&self, expected: &[(&str, &str)]) {
        let lowers = LowersUnchanged::new(self.layers.lowers());
        let before = self.record();
        self.finds(expected, 4);
        let (code, said) = self.said(&["--repair"]);
        assert_eq!((code, said), (4, with(expected, "left")));
        assert_eq!(differences(&before, &self.record()), BTreeSet::new(), "nothing is changed");
        lowers.check();
    }

    fn finds(&self, expected: &[(&str, &str)], code: i32) {
        assert_eq!(self.said(&[]), (code, with(expected, "found")));
        let ran = self.fsck(&[]);
        assert_eq!(ran.out.lines().count(), expected.len() + 1, "a line each, and one at the end: {}", ran.out);
        assert_eq!(ran.code, Some(code));
    }

    /// Mounts the layers, and looks at what is shown.
    pub fn shows(&self, look: impl FnOnce(&Tree)) {
        let mut mount = self.layers.spec(Io::Cached).args(self.args.clone()).mount_ours();
        look(&mount.tree());
        mount.unmount().expect("it can be unmounted");
    }

    /// Records upper and workdir.
    fn record(&self) -> BTreeMap<String, String> {
        let mut seen = BTreeMap::new();
        for side in ["upper", "work"] {
            record(&self.layers.path(side), PathBuf::from(format!("{side}:")), &mut seen);
        }
        seen
    }
}

fn with(expected: &[(&str, &str)], outcome: &str) -> Vec<Said> {
    expected.iter().map(|(place, class)| ((*place).to_owned(), (*class).to_owned(), outcome.to_owned())).collect()
}

fn differences(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> BTreeSet<String> {
    let all: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    all.into_iter().filter(|path| before.get(*path) != after.get(*path)).cloned().collect()
}

/// Records what is at `path` and below: kind, mode, owner, size, times, xattrs, contents.
fn record(path: &Path, name: PathBuf, seen: &mut BTreeMap<String, String>) {
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    let mut line = format!("{:o} {}:{} {} {}", meta.mode(), meta.uid(), meta.gid(), meta.ino(), meta.rdev());
    let at = Tree::at(path.parent().expect("not the root"));
    let file = path.file_name().expect("not the root");
    for xattr in at.xattr_names(file) {
        write!(line, " {xattr}={:?}", at.get_xattr(file, &xattr)).unwrap();
    }
    write!(line, " {}.{}", meta.mtime(), meta.mtime_nsec()).unwrap();
    if meta.is_file() {
        let mut hasher = DefaultHasher::new();
        fs::read(path).expect("it can be read").hash(&mut hasher);
        write!(line, " {} {}", meta.nlink(), hasher.finish()).unwrap();
    }
    if meta.is_dir() {
        for entry in fs::read_dir(path).expect("it can be listed") {
            let entry = entry.expect("it can be listed").file_name();
            let below = if name.as_os_str().as_bytes().ends_with(b":") {
                let mut first = name.clone().into_os_string();
                first.push(&entry);
                first.into()
            } else {
                name.join(&entry)
            };
            record(&path.join(&entry), below, seen);
        }
    }
    seen.insert(name.to_string_lossy().into_owned(), line);
}

/// The name of an overlay xattr of this process's mounts.
pub fn key(mark: &str) -> String {
    format!("trusted.overlay.{mark}")
}

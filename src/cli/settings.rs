//! What an option of `mount` takes and sets, for flags and `-o` alike; the options are in [`super::table`].
//!
//! A flag `--redirect-dir on` and an option `-o redirect_dir=on` are two spellings of one row, so that
//! neither form can know an option that the other lacks. Where options contradict each other the last
//! one on the command line holds, in whichever spelling; lower layers add up instead.

use std::ffi::OsStr;
use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;

use super::options::{self, SyntaxError};
use super::table::{GROUPS, IGNORED, TEXT_ONLY};
use crate::config::{IdMap, MountConfig, UnionConfig};
use crate::image::store::Container;

/// How long an upper is waited for whose mount was just unmounted.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Everything that `mount` was told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The layers.
    pub union: UnionConfig,
    /// The mount.
    pub mount: MountConfig,
    /// Whether the command stays, and serves the mount itself.
    pub foreground: bool,
    /// The file that the log is appended to.
    pub log_file: Option<PathBuf>,
    /// The least of what is logged; `None` leaves it to RUST_LOG.
    pub log_level: Option<LevelFilter>,
    /// Whether what was done is reported when the mount has ended.
    pub stats: bool,
    /// The container of a store that the layers are of.
    pub container: Option<Container>,
}

/// What an option takes, and what it then sets.
#[derive(Clone, Copy)]
pub enum Takes {
    /// No value.
    Nothing(fn(&mut Settings)),
    /// One of a few words.
    Word(&'static [Word]),
    /// A whole number of one or more.
    Count(fn(&mut Settings, NonZeroUsize)),
    /// A number of seconds.
    Seconds(fn(&mut Settings, Duration)),
    /// A directory.
    Dir(fn(&mut Settings, PathBuf)),
    /// A colon-separated list of directories.
    Dirs(fn(&mut Settings, Vec<PathBuf>)),
    /// A file.
    File(fn(&mut Settings, PathBuf)),
    /// A name for people.
    Label(fn(&mut Settings, String)),
    /// As a flag nothing; in `-o` also `=1`, or `=0` to take it back, as fuse-overlayfs has them.
    Switch(fn(&mut Settings, bool)),
    /// The number of a user or group.
    Id(fn(&mut Settings, u32)),
    /// A map of such numbers.
    IdMap(fn(&mut Settings, IdMap)),
    /// A number of bytes.
    Bytes(fn(&mut Settings, NonZeroU32)),
    /// A whole number, with or without a unit.
    Size(fn(&mut Settings, u64)),
    /// An SELinux context.
    Context(fn(&mut Settings, String)),
}

/// A value that is a word, and what it sets.
pub type Word = (&'static str, fn(&mut Settings));

/// One option of `mount`.
#[derive(Clone, Copy)]
pub struct Spec {
    /// The name in `-o`.
    pub name: &'static str,
    /// The long flag, without its dashes.
    pub flag: &'static str,
    /// What it takes and sets.
    pub takes: Takes,
    /// The line of the help.
    pub help: &'static str,
}

/// A group of options under one heading of the help.
pub struct Group {
    /// The heading.
    pub heading: &'static str,
    /// The options.
    pub specs: &'static [Spec],
}

/// How an option was written, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spelling {
    /// As a flag of its own.
    Flag,
    /// In the text of a `-o`.
    Text,
}

/// An option that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OptionError {
    /// Nothing has this name.
    Unknown {
        /// The name.
        name: String,
        /// The known name that is most like it.
        nearest: Option<&'static str>,
    },
    /// It needs a value and has none.
    NoValue {
        /// The option as it was written.
        option: String,
    },
    /// It has a value and takes none.
    Unwanted {
        /// The option as it was written.
        option: String,
        /// The value.
        value: String,
    },
    /// Its value is none of the words.
    NoSuchWord {
        /// The option and its value as they were written.
        option: String,
        /// The words.
        words: Vec<&'static str>,
    },
    /// Its value cannot be read.
    Invalid {
        /// The option and its value as they were written.
        option: String,
        /// What is wrong with it.
        error: SyntaxError,
    },
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { name, nearest: Some(nearest) } => {
                write!(f, "-o {name}: unknown option; did you mean {nearest}?")
            }
            Self::Unknown { name, nearest: None } => {
                write!(f, "-o {name}: unknown option; unionfs-rs mount --help lists them")
            }
            Self::NoValue { option } => write!(f, "{option}: the value is missing; write {option}=VALUE"),
            Self::Unwanted { option, value } => write!(f, "{option}={value}: it takes no value; write {option}"),
            Self::NoSuchWord { option, words } => {
                write!(f, "{option}: no such value; give one of {}", words.join(", "))
            }
            Self::Invalid { option, error } => write!(f, "{option}: {error}"),
        }
    }
}

impl Settings {
    /// Returns the defaults for a mount on `mountpoint`.
    pub fn new(mountpoint: impl Into<PathBuf>) -> Self {
        Self {
            union: UnionConfig { patience: PATIENCE, ..UnionConfig::default() },
            mount: MountConfig::new(mountpoint),
            foreground: false,
            log_file: None,
            log_level: None,
            stats: false,
            container: None,
        }
    }

    /// Sets one option of a `-o` string, whose value still has its backslashes.
    pub fn set_text(&mut self, name: &OsStr, value: Option<&OsStr>) -> Result<(), OptionError> {
        let known = name.to_str().unwrap_or_default();
        if let Some(spec) = in_text(known) {
            return self.set(spec, Spelling::Text, value);
        }
        if is_for_others(known) {
            return Ok(());
        }
        Err(OptionError::Unknown { name: name.display().to_string(), nearest: nearest(known) })
    }

    /// Sets what `spec` says to `value`.
    pub fn set(&mut self, spec: &Spec, spelling: Spelling, value: Option<&OsStr>) -> Result<(), OptionError> {
        let option = match spelling {
            Spelling::Flag => format!("--{}", spec.flag),
            Spelling::Text => format!("-o {}", spec.name),
        };
        let value = match (spec.takes, value) {
            (Takes::Nothing(apply), None) => {
                apply(self);
                return Ok(());
            }
            (Takes::Switch(apply), None) => {
                apply(self, true);
                return Ok(());
            }
            (Takes::Nothing(_), Some(value)) => {
                return Err(OptionError::Unwanted { option, value: value.display().to_string() });
            }
            (_, None) => return Err(OptionError::NoValue { option }),
            (_, Some(value)) => value,
        };
        let written = match spelling {
            Spelling::Flag => format!("{option} {}", value.display()),
            Spelling::Text => format!("{option}={}", value.display()),
        };
        if let Takes::Word(words) = spec.takes {
            let Some((_, apply)) = words.iter().find(|(word, _)| OsStr::new(word) == value) else {
                let words = words.iter().map(|(word, _)| *word).collect();
                return Err(OptionError::NoSuchWord { option: written, words });
            };
            apply(self);
            return Ok(());
        }
        if let Takes::Switch(apply) = spec.takes {
            match value.to_str() {
                Some("0") => apply(self, false),
                Some("1") => apply(self, true),
                _ => return Err(OptionError::NoSuchWord { option: written, words: vec!["0", "1"] }),
            }
            return Ok(());
        }
        self.read(spec.takes, spelling, value).map_err(|error| OptionError::Invalid { option: written, error })
    }

    /// Reads a value that is not a word.
    fn read(&mut self, takes: Takes, spelling: Spelling, value: &OsStr) -> Result<(), SyntaxError> {
        // The elements of a list keep their backslashes until they are parted.
        let unescaped;
        let plain = match (spelling, takes) {
            (Spelling::Text, Takes::Dir(_) | Takes::File(_) | Takes::IdMap(_)) => {
                unescaped = options::unescape(value)?;
                unescaped.as_os_str()
            }
            _ => value,
        };
        match takes {
            Takes::Count(apply) => apply(self, options::count(plain)?),
            Takes::Seconds(apply) => apply(self, options::seconds(plain)?),
            Takes::Dir(apply) | Takes::File(apply) => apply(self, options::path(plain)?),
            Takes::Dirs(apply) => apply(self, options::split_lowers(plain)?),
            Takes::Label(apply) => apply(self, options::label(plain)?),
            Takes::Id(apply) => apply(self, options::id(plain)?),
            Takes::IdMap(apply) => apply(self, options::id_map(plain)?),
            Takes::Bytes(apply) => apply(self, options::bytes(plain)?),
            Takes::Size(apply) => apply(self, options::size(plain)?),
            Takes::Context(apply) => apply(self, options::context(plain)?),
            Takes::Nothing(_) | Takes::Word(_) | Takes::Switch(_) => {}
        }
        Ok(())
    }
}

/// Walks over every option that has a flag.
pub fn all() -> impl Iterator<Item = &'static Spec> {
    GROUPS.iter().flat_map(|group| group.specs)
}

/// Returns the option that is called `name` in `-o`.
pub fn in_text(name: &str) -> Option<&'static Spec> {
    all().chain(TEXT_ONLY).find(|spec| spec.name == name)
}

/// Whether an option of `-o` says nothing to a file system.
pub fn is_for_others(name: &str) -> bool {
    // fstab(5) keeps x- and X- for notes of programs of user space.
    IGNORED.contains(&name) || name.starts_with("x-") || name.starts_with("X-") || name == "comment"
}

/// Returns the known name that `name` most likely stands for, if any is near.
fn nearest(name: &str) -> Option<&'static str> {
    all()
        .chain(TEXT_ONLY)
        .flat_map(|spec| [(spec.name, spec.name), (spec.flag, spec.name)])
        .filter(|(known, _)| !known.is_empty())
        .map(|(known, answer)| (distance(name, known), answer))
        .filter(|(distance, _)| *distance <= (name.len() / 4).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, answer)| answer)
}

/// Counts the letters to insert, remove or replace between two words (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

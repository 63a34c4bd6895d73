//! `tree`: what an image shows, as a listing.

use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::vec::IntoIter;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::subject::Subject;
use super::{listing, open_store, os_word, output, path_arg, store_arg, word};
use crate::cli::exit::{Exit, Failure};
use crate::image::changes::{ChangeKind, changes_of_layer};
use crate::image::stack::{Object, Stack};
use crate::layer::attr::{Attr, FileKind};
use crate::layer::name::Name;

pub fn command() -> Command {
    let flag = |name: &'static str, help: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    let number = |name: &'static str| Arg::new(name).long(name).value_name("N").value_parser(value_parser!(usize));
    Command::new("tree")
        .about("Lists what an image or a container shows, and the layer that each file is from")
        .long_about(
            "Lists what an image or a container shows: mode, owner, size, the layer that it is from, counted from the lowest, \
             and name. What cannot be printed in a name is escaped as in a string of Rust, a backslash as two.",
        )
        .after_help("Example:\n  unionfs-rs tree --layer 2 --paths app | grep '^D'")
        .arg(Arg::new("IMAGE").required(true).help("An image or a container: its name, or the first digits of its id or digest"))
        .arg(path_arg("PATH").required(false).default_value("/").help("What to list, from the root; links are not followed"))
        .arg(number("layer").help("List only what this layer adds (A), changes (C) and removes (D)"))
        .arg(number("depth").help("Go down so many directories"))
        .arg(flag("paths", "Print whole paths instead of a drawing"))
        .arg(flag("bytes", "Print sizes in bytes"))
        .arg(store_arg())
}

/// How lines are written.
struct Format {
    depth: usize,
    names: Names,
    sizes: Sizes,
    marks: Marks,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Names {
    Drawn,
    Paths,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sizes {
    Short,
    Bytes,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Marks {
    Shown,
    None,
}

pub fn run(matches: &ArgMatches) -> Result<Exit, Failure> {
    let store = open_store(matches)?;
    let image = word(matches, "IMAGE");
    let stack = Subject::find(&store, image)?.stack(&store, image)?;
    let text = os_word(matches, "PATH");
    let names = names(text)?;
    let layer = matches.get_one::<usize>("layer").copied();
    let format = Format {
        depth: matches.get_one("depth").copied().unwrap_or(usize::MAX),
        names: if matches.get_flag("paths") { Names::Paths } else { Names::Drawn },
        sizes: if matches.get_flag("bytes") { Sizes::Bytes } else { Sizes::Short },
        marks: if layer.is_some() { Marks::Shown } else { Marks::None },
    };
    let mut listing = Listing { stack: &stack, format, out: output::Lines::new() };
    if stack.depth() == 0 {
        return Ok(Exit::Done);
    }
    let done = match layer {
        None => listing.whole(text, &names),
        Some(layer) if (1..=stack.depth()).contains(&layer) => listing.changes(text, &names, stack.depth() - layer),
        Some(layer) => {
            let reason = format!("--layer {layer}: there are layers 1 to {}", stack.depth());
            return Err(Failure::new(Exit::Usage, reason));
        }
    };
    // Who reads no further has seen enough.
    let _read_on: ControlFlow<()> = done.map_err(|failure| failure.within(image))?;
    listing.out.end()
}

/// Reads a path as the names that it consists of.
pub fn names(path: &OsStr) -> Result<Vec<&OsStr>, Failure> {
    let parts = path.as_bytes().split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    let name = |part| {
        let (name, shown) = (OsStr::from_bytes(part), path.display());
        Name::new(name)
            .map(Name::as_os_str)
            .map_err(|errno| Failure::new(Exit::Usage, format!("{shown}: {name:?} is no name in an image: {errno}")))
    };
    parts.map(name).collect()
}

/// A directory of which some is still to be listed.
struct Open {
    entries: IntoIter<(OsString, Object)>,
    /// What its entries are drawn behind.
    bars: String,
    path: PathBuf,
}

struct Listing<'a> {
    stack: &'a Stack,
    format: Format,
    out: output::Lines,
}

type Listed = Result<ControlFlow<()>, Failure>;

impl Listing<'_> {
    /// Lists what is at and below a path, directory by directory as they are read.
    fn whole(&mut self, text: &OsStr, names: &[&OsStr]) -> Listed {
        let object = self.stack.at(names)?.ok_or_else(|| absent(text))?;
        let top: PathBuf = [OsStr::new("/")].iter().chain(names).collect();
        if self.heading()?.is_break() || self.line(None, &object, "", top.as_os_str())?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let mut open: Vec<Open> = self.enter(&object, String::new(), top, 0)?.into_iter().collect();
        while let Some(dir) = open.last_mut() {
            let Some((name, object)) = dir.entries.next() else {
                open.pop();
                continue;
            };
            let Draw { own, below } =
                Draw::new(&dir.bars, if dir.entries.len() == 0 { Place::Last } else { Place::Amid });
            let path = dir.path.join(&name);
            if self.named(None, &object, &own, &path)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            let level = open.len();
            open.extend(self.enter(&object, below, path, level)?);
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Reads a directory, if it is one and not too deep.
    fn enter(&self, object: &Object, bars: String, path: PathBuf, level: usize) -> Result<Option<Open>, Failure> {
        match object {
            Object::Dir(dir, _) if level < self.format.depth => {
                Ok(Some(Open { entries: self.stack.list(dir)?.into_iter(), bars, path }))
            }
            _ => Ok(None),
        }
    }

    /// Lists what the layer at `at`, counted from the topmost, changes at and below a path.
    fn changes(&mut self, text: &OsStr, names: &[&OsStr], at: usize) -> Listed {
        let top: PathBuf = [OsStr::new("/")].iter().chain(names).collect();
        let (now, was) = (self.stack.at_from(at, names)?, self.stack.at_from(at + 1, names)?);
        let gone = now.is_none().then_some(ChangeKind::Deleted);
        let object = now.or(was).ok_or_else(|| absent(text))?;
        let mut changes = changes_of_layer(self.stack, at)?;
        changes.retain(|change| change.path.starts_with(&top));
        changes.sort_by(|a, b| a.path.cmp(&b.path));
        let own = changes.first().filter(|change| change.path == top).map(|change| change.kind);
        if self.heading()?.is_break() || self.line(own.or(gone), &object, "", top.as_os_str())?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let level = |path: &Path| path.components().count().saturating_sub(names.len() + 1);
        changes.retain(|change| (1..=self.format.depth).contains(&level(&change.path)));
        let places = places(changes.iter().map(|change| level(&change.path)));
        // What is drawn at each level, of the directories that the next change is in.
        let mut bars = vec![String::new()];
        for (change, place) in changes.iter().zip(places) {
            bars.truncate(level(&change.path));
            let Draw { own, below } = Draw::new(bars.last().map_or("", String::as_str), place);
            bars.push(below);
            let Some(object) = change.now.as_ref().or(change.was.as_ref()) else { continue };
            if self.named(Some(change.kind), object, &own, &change.path)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn heading(&mut self) -> Listed {
        let mark = if self.format.marks == Marks::Shown { "  " } else { "" };
        let size = self.size_width();
        self.out.line(&format!("{mark}{:<10} {:>11} {:>size$} {:>5}  NAME", "MODE", "OWNER", "SIZE", "LAYER"))
    }

    fn size_width(&self) -> usize {
        if self.format.sizes == Sizes::Bytes { 14 } else { 8 }
    }

    fn named(&mut self, mark: Option<ChangeKind>, object: &Object, draw: &str, path: &Path) -> Listed {
        match self.format.names {
            Names::Paths => self.line(mark, object, "", path.as_os_str()),
            Names::Drawn => self.line(mark, object, draw, path.file_name().unwrap_or_default()),
        }
    }

    fn line(&mut self, mark: Option<ChangeKind>, object: &Object, draw: &str, name: &OsStr) -> Listed {
        let attr = object.attr();
        let link = match object {
            Object::File(dir, name, attr) if attr.kind == FileKind::Symlink => Some(self.stack.read_link(dir, name)?),
            _ => None,
        };
        let mark = match self.format.marks {
            Marks::Shown => format!("{} ", mark.map_or(' ', ChangeKind::letter)),
            Marks::None => String::new(),
        };
        let (mode, owner) = (listing::mode(attr.kind, attr.mode), format!("{}:{}", attr.uid, attr.gid));
        let (size, width) = (self.size(attr), self.size_width());
        let (layer, name) = (self.stack.depth() - object.layer(), listing::name(name, link.as_deref()));
        self.out.line(&format!("{mark}{mode} {owner:>11} {size:>width$} {layer:>5}  {draw}{name}"))
    }

    /// Returns the size of a file, and the numbers of a device.
    fn size(&self, attr: &Attr) -> String {
        match (attr.kind, self.format.sizes) {
            (FileKind::Regular, Sizes::Bytes) => attr.size.to_string(),
            (FileKind::Regular, Sizes::Short) => output::size(attr.size, 3),
            (FileKind::Char | FileKind::Block, _) => format!("{},{}", attr.rdev.0, attr.rdev.1),
            _ => "-".to_owned(),
        }
    }
}

fn absent(text: &OsStr) -> Failure {
    Failure::new(
        Exit::Failed,
        format!("{}: there is no such path; unionfs-rs which tells of one that a layer removed", text.display()),
    )
}

/// Whether something else of its directory follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Amid,
    Last,
}

/// Returns the place of each of a list, whose levels are given, parents first.
fn places(levels: impl DoubleEndedIterator<Item = usize>) -> Vec<Place> {
    // Whether something follows at each level, before the end of the directory that it is in.
    let mut follows: Vec<Place> = Vec::new();
    let mut places = Vec::new();
    for level in levels.rev() {
        follows.resize(level + 1, Place::Last);
        if let Some(place) = follows.get_mut(level) {
            places.push(std::mem::replace(place, Place::Amid));
        }
    }
    places.reverse();
    places
}

/// The lines that lead to a name.
struct Draw {
    /// Before its own name.
    own: String,
    /// Before those of what is in it.
    below: String,
}

impl Draw {
    fn new(bars: &str, place: Place) -> Self {
        let (own, below) = match place {
            Place::Amid => ("├── ", "│   "),
            Place::Last => ("└── ", "    "),
        };
        Self { own: format!("{bars}{own}"), below: format!("{bars}{below}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_last_in_its_directory_is_told_from_the_list_alone() {
        use Place::{Amid, Last};
        assert_eq!(places([1, 2, 2, 3, 1, 2].into_iter()), [Amid, Amid, Last, Last, Last, Last]);
        assert_eq!(places([1, 1, 2, 3, 2].into_iter()), [Amid, Last, Amid, Last, Last]);
        assert!(places([].into_iter()).is_empty());
    }
}

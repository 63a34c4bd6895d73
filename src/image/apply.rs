//! Changes taken over: made in a directory of the host, or taken back in the container.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::changes::{Change, ChangeKind, Compare, changes};
use super::extract::{Extract, Made, open_below};
use super::remove::{DIR, remove_at};
use super::stack::{Object, Stack};
use super::store::{Container, Store};
use crate::error::{Error, ErrorKind, Result};
use crate::layer::dir::dotwh_name;

/// Returns whether `path` is one of `chosen`, or in one of them; all are chosen where none is named.
fn is_chosen(path: &Path, chosen: &[&Path]) -> bool {
    chosen.is_empty() || chosen.iter().any(|chosen| path.starts_with(chosen))
}

/// Returns the names of a path. Errors: [`Error::Image`] for one with `..`, which leads elsewhere where there are links.
fn names(path: &Path) -> Result<Vec<OsString>> {
    let mut names = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => names.push(name.to_owned()),
            Component::ParentDir => return Err(Error::image(path.display(), "has .. in it; write the path without")),
            _ => {}
        }
    }
    Ok(names)
}

/// Makes the chosen ones of `list`, what differs between `now` and another tree, in the directory `dir`; returns how many.
///
/// Directories on the way that are missing are made as they are in `now`; nothing is reached through a link. Errors:
/// [`Error::Image`] with the path.
pub fn apply(now: &Stack, list: &[Change], chosen: &[&Path], dir: &OwnedFd, how: Extract) -> Result<usize> {
    let mut count = 0;
    let mut unsettled = Vec::new();
    for change in list.iter().filter(|change| is_chosen(&change.path, chosen) && change.itself) {
        let within = |error: Error| error.within(change.path.display());
        let failed = |errno: Errno| Error::image_io(change.path.display(), &errno.into());
        let path = names(&change.path)?;
        // The root is as whoever made the directory wanted it.
        let Some((name, above)) = path.split_last() else { continue };
        count += 1;
        match (&change.now, change.kind) {
            (None, _) | (_, ChangeKind::Deleted) => {
                let Some(parent) = open_below(dir.as_fd(), above).map_err(failed)? else { continue };
                match remove_at(parent.as_fd(), name) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(errno) => return Err(failed(errno)),
                }
            }
            (Some(object), _) => {
                let parent = make_parents(now, above, dir, how, &mut unsettled).map_err(within)?;
                if let Made::New(_) | Made::Old(_) = how.put(now, object, parent.as_fd(), name).map_err(within)? {
                    unsettled.push((parent, name.clone(), object.clone()));
                }
            }
        }
    }
    // What is made in them changes their times, and needs that they can be written.
    for (parent, name, object) in unsettled.into_iter().rev() {
        how.settle(now, &object, parent.as_fd(), &name)?;
    }
    Ok(count)
}

/// A directory that lacks what is known of it: where it is, and what it is a copy of.
type Unsettled = (OwnedFd, OsString, Object);

/// Opens the directory at `path`, and makes what is missing of it.
fn make_parents(
    now: &Stack,
    path: &[OsString],
    dir: &OwnedFd,
    how: Extract,
    unsettled: &mut Vec<Unsettled>,
) -> Result<OwnedFd> {
    let failed = |errno: Errno| Error::image_io(path.join(OsStr::new("/")).display(), &errno.into());
    let open = |dir: &OwnedFd, name: &OsStr| rustix::fs::openat(dir, name, DIR, Mode::empty());
    let mut at = open(dir, OsStr::new(".")).map_err(failed)?;
    for (depth, name) in path.iter().enumerate() {
        at = match open(&at, name) {
            Ok(next) => next,
            Err(Errno::NOENT) => {
                let so_far: Vec<&OsStr> = path.iter().take(depth + 1).map(OsString::as_os_str).collect();
                let object = now.at(&so_far)?.ok_or_else(|| failed(Errno::NOENT))?;
                let (Made::New(made) | Made::Old(made)) = how.put(now, &object, at.as_fd(), name)? else {
                    return Err(failed(Errno::NOTDIR));
                };
                unsettled.push((at, name.clone(), object));
                made
            }
            // A link, or a file.
            Err(Errno::NOTDIR | Errno::LOOP) => {
                let reason = "is no directory there; remove it, or apply elsewhere";
                return Err(Error::image(name.display(), reason));
            }
            Err(errno) => return Err(failed(errno)),
        };
    }
    Ok(at)
}

impl Store {
    /// Takes back what was changed at `path` in a container, and in it: then the image's shows again.
    ///
    /// Errors: [`ErrorKind::InUse`]; [`ErrorKind::Absent`] where nothing was changed there; [`Error::Image`] for the root, for
    /// what was removed with a directory that was made anew or has come with one that was renamed, which must be taken back
    /// itself, and for one of several names that a mount with an index keeps together.
    pub fn discard(&self, container: &Container, path: &Path) -> Result<()> {
        let _held = container.alone()?;
        self.take_back(container, path).map_err(|error| error.within(&container.config.id))
    }

    fn take_back(&self, container: &Container, path: &Path) -> Result<()> {
        let path_names = names(path)?;
        let Some((name, above)) = path_names.split_last() else {
            return Err(Error::image(path.display(), "is the root; take back all that was changed"));
        };
        let failed = |errno: Errno| Error::image_io(path.display(), &errno.into());
        if std::fs::read_dir(container.work().join("index")).is_ok_and(|mut index| index.next().is_some()) {
            let reason = "cannot be taken back alone in a container that was mounted with --index on; take back all";
            return Err(Error::image(path.display(), reason));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let upper = rustix::fs::open(container.upper(), flags, Mode::empty()).map_err(failed)?;
        let parent = open_below(upper.as_fd(), above).map_err(failed)?;
        let mut found = false;
        if let Some(parent) = &parent {
            let marks = [Some(name.clone()), dotwh_name(name)];
            for name in marks.into_iter().flatten() {
                match remove_at(parent.as_fd(), &name) {
                    Ok(()) => found = true,
                    Err(Errno::NOENT) => {}
                    Err(errno) => return Err(failed(errno)),
                }
            }
        }
        if !found {
            let (now, was) = self.open_stacks(container)?;
            let at: Vec<&OsStr> = path_names.iter().map(OsString::as_os_str).collect();
            let file = |object: Option<Object>| object.map(|object| (object.attr().dev, object.attr().ino));
            let reason = match (file(now.at(&at)?), file(was.at(&at)?)) {
                (None, Some(_)) => "was removed with a directory that it was in; discard that",
                (Some(now), was) if was != Some(now) => {
                    "came with a directory that was renamed; discard that, and where it was"
                }
                _ => return Err(Error::image(path.display(), "was not changed").of_kind(ErrorKind::Absent)),
            };
            return Err(Error::image(path.display(), reason));
        }
        self.drop_unchanged(container, &upper, above)
    }

    /// Takes from upper the directories on the way to what was taken back, where nothing is changed in them any more.
    fn drop_unchanged(&self, container: &Container, upper: &OwnedFd, path: &[OsString]) -> Result<()> {
        let (now, was) = self.open_stacks(container)?;
        // Removing what is not among them changes nothing of the rest.
        let list = changes(&now, &was, Compare::Presence)?;
        for depth in (1..=path.len()).rev() {
            let dirs = path.get(..depth).unwrap_or_default();
            let shown = dirs.iter().fold(PathBuf::from("/"), |path, name| path.join(name));
            if list.iter().any(|change| change.path == shown) {
                return Ok(());
            }
            let Some((name, above)) = dirs.split_last() else { return Ok(()) };
            let failed = |errno: Errno| Error::image_io(shown.display(), &errno.into());
            let Some(parent) = open_below(upper.as_fd(), above).map_err(failed)? else { return Ok(()) };
            match rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::NOTDIR) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        Ok(())
    }
}

//! How a removed name is marked in upper.
//!
//! Whiteouts are hard links of one template in the workdir: one call each, and one inode for all of them.
//!
//! A mark beside the name (`.wh.NAME`) is also what makes a change safe that takes several steps, where upper's file system
//! cannot exchange two names: the mark comes first, and from then on nothing below shows, whatever is under the name and
//! after whichever step a crash comes. It is no use in the other forms, whose whiteouts stand under the name itself.

use std::ffi::{OsStr, OsString};
use std::os::fd::BorrowedFd;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::{Errno, Result};

use super::dir::dotwh_name;
use super::features::Features;
use super::overlay::{Mark, Namespace};
use super::upper::Place;
use super::workdir::Workdir;
use crate::sys::xattr;

/// The form of the marks that this mount writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A character device 0:0 under the name.
    Char,
    /// An empty file with the whiteout xattr under the name, in a directory marked `x`.
    Xattr,
    /// An empty file named `.wh.NAME` beside where the name was.
    DotWh,
}

/// What stands in upper under the name that is to be hidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing.
    Nothing,
    /// Something other than a directory.
    File,
    /// A directory; it ends up in the workdir.
    Directory,
}

/// Makes whiteouts.
#[derive(Debug)]
pub struct Whiteouts {
    format: Format,
    namespace: Namespace,
    features: Features,
    /// Rank 5 (leaf). The name of the template in the workdir. No syscall while held.
    template: Mutex<Option<OsString>>,
}

impl Whiteouts {
    /// Makes whiteouts of `format`, their xattrs in `namespace`, on a file system with `features`.
    pub fn new(format: Format, namespace: Namespace, features: Features) -> Self {
        Self { format, namespace, features, template: Mutex::new(None) }
    }

    /// Returns the form of the marks.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Makes one whiteout, or the empty file that `.wh.NAME` is, under `name` in `dir`.
    pub fn make(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        match self.format {
            Format::Char => rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0),
            Format::Xattr | Format::DotWh => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?;
                if self.format == Format::Xattr {
                    xattr::set(dir, name, &self.namespace.name(Mark::Whiteout), b"y", XattrFlags::empty())?;
                }
                Ok(())
            }
        }
    }

    /// Links the template to `name` in `dir`, making a template first where there is none that can be linked.
    ///
    /// Errors: EEXIST where something is there.
    fn link(&self, work: &Workdir, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        if !self.features.links {
            return self.make_alone(work, dir, name);
        }
        let to = Place::at(dir, name);
        let known = self.template.lock().clone();
        if let Some(template) = known {
            match self.features.link(Place::at(work.fd(), &template), to) {
                // Full of links, or taken away: a new one takes its place. EPERM: this file system cannot link.
                Err(Errno::MLINK | Errno::NOENT | Errno::PERM | Errno::XDEV) => {}
                done => return done,
            }
        }
        let template = work.temporary();
        self.make(work.fd(), &template)?;
        match self.features.link(Place::at(work.fd(), &template), to) {
            Ok(()) => {
                let old = self.template.lock().replace(template);
                if let Some(old) = old {
                    work.discard(&old);
                }
                Ok(())
            }
            Err(errno) => {
                work.discard(&template);
                // Without hard links each whiteout is an inode of its own.
                let unable = errno == Errno::PERM || errno == Errno::OPNOTSUPP;
                if unable { self.make_alone(work, dir, name) } else { Err(errno) }
            }
        }
    }

    /// Makes a whiteout that is an inode of its own under `name` in `dir`, in one step that a crash leaves done or undone.
    fn make_alone(&self, work: &Workdir, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        if self.format != Format::Xattr {
            return self.make(dir, name);
        }
        // Until it has its xattr it would be an empty file.
        let temporary = work.temporary();
        let made = self.make(work.fd(), &temporary);
        let moved = made.and_then(|()| {
            self.features.rename(Place::at(work.fd(), &temporary), Place::at(dir, name), RenameFlags::NOREPLACE)
        });
        moved.inspect_err(|_| work.discard(&temporary))
    }

    /// Marks the directory `dir` as one that holds whiteouts of this form, where the form needs that.
    ///
    /// Comes before every [`Whiteouts::hide`] in a directory of upper.
    pub fn prepare(&self, dir: BorrowedFd<'_>) -> Result<()> {
        let own = OsStr::new("");
        if self.format != Format::Xattr || self.namespace.get(dir, own, Mark::Opaque)?.is_some() {
            return Ok(());
        }
        self.namespace.set(dir, own, Mark::Opaque, b"x")
    }

    /// Hides `name` in `dir`, where `standing` is now, in one step that a crash leaves done or undone.
    ///
    /// Returns the name in the workdir of a directory that stood there. Errors: EEXIST where `standing` is
    /// [`Standing::Nothing`] and something is there.
    pub fn hide(
        &self,
        work: &Workdir,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        standing: Standing,
    ) -> Result<Option<OsString>> {
        if self.format == Format::DotWh {
            return self.hide_beside(work, dir, name, standing);
        }
        if standing == Standing::Nothing {
            self.link(work, dir, name)?;
            return Ok(None);
        }
        let temporary = work.temporary();
        self.link(work, work.fd(), &temporary)?;
        let flags = if standing == Standing::Directory { RenameFlags::EXCHANGE } else { RenameFlags::empty() };
        match self.features.rename(Place::at(work.fd(), &temporary), Place::at(dir, name), flags) {
            Ok(()) if standing == Standing::Directory => Ok(Some(temporary)),
            Ok(()) => Ok(None),
            Err(errno) => {
                work.discard(&temporary);
                Err(errno)
            }
        }
    }

    /// Marks beside `name` that nothing below shows, whatever the form of whiteouts; that it is marked already is no error.
    ///
    /// What stands under the name goes on showing, but for the lower parts of a directory without a redirect.
    /// Errors: ENAMETOOLONG for a name that leaves no room for the prefix.
    pub fn mark_beside(&self, work: &Workdir, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        let mark = dotwh_name(name).ok_or(Errno::NAMETOOLONG)?;
        match self.link(work, dir, &mark) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Hides `name` by a mark beside it; the mark comes first, so that what is below never shines through.
    fn hide_beside(
        &self,
        work: &Workdir,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        standing: Standing,
    ) -> Result<Option<OsString>> {
        self.mark_beside(work, dir, name)?;
        match standing {
            Standing::Nothing => Ok(None),
            Standing::File => rustix::fs::unlinkat(dir, name, AtFlags::empty()).map(|()| None),
            Standing::Directory => {
                let temporary = work.temporary();
                rustix::fs::renameat(dir, name, work.fd(), &temporary)?;
                Ok(Some(temporary))
            }
        }
    }

    /// Removes the template, at the end of the mount.
    pub fn end(&self, work: &Workdir) {
        let template = self.template.lock().take();
        if let Some(template) = template {
            work.discard(&template);
        }
    }
}

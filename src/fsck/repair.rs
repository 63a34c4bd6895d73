//! What a repair does, each in steps that a crash leaves done or undone.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use super::finding::{Finding, Repair, Side};
use super::{Fsck, Work, index};
use crate::error::{Error, Result};
use crate::layer::dir::{Below, Found, LayerDir};
use crate::layer::overlay::Mark;
use crate::layer::upper::Place;
use crate::layer::{Layer, workdir};
use crate::sys::xattr;

/// The directory that a finding is in, and its name there.
enum Spot {
    /// In upper.
    Upper(Arc<LayerDir>, OsString),
    /// In the index.
    Index(OwnedFd, OsString),
}

impl Fsck {
    /// Does what [`Finding::repair`] says; returns whether there was something to do.
    ///
    /// Errors: those of the system calls; [`Error::Corrupt`] for a file that is not the one that was found.
    pub fn repair(&self, finding: &Finding) -> Result<bool> {
        let repair = finding.repair();
        match &repair {
            Repair::None(_) => return Ok(false),
            Repair::RemoveLeftover => {
                self.in_workdir(finding, |work| workdir::remove_left(work.fd(), &finding.path))?;
            }
            Repair::SettleVolatile => self.in_workdir(finding, |work| workdir::settle_volatile(work.fd()))?,
            Repair::Hide(other) => self.hide(other)?,
            Repair::AddToIndex(entry) => self.add_to_index(finding, entry)?,
            Repair::RemoveName
            | Repair::RemoveXattr(_)
            | Repair::RemoveOrigin
            | Repair::RemoveRedirect
            | Repair::CloseDirectory
            | Repair::MarkImpure
            | Repair::WriteOrigin
            | Repair::WriteLinkCount(_) => {
                let spot = self.spot(finding)?;
                self.at(&spot, |fd, name| self.change(&repair, finding, fd, name))?;
            }
        }
        Ok(true)
    }

    /// Waits until what was repaired is on the disk.
    pub fn sync(&self) -> Result<()> {
        let layer = self.upper()?;
        let failed = |e: Errno| layer.error("syncfs", OsStr::new("."), e);
        let root = layer.open_listing(layer.root()).map_err(failed)?;
        rustix::fs::syncfs(root).map_err(failed)
    }

    /// Changes `name` in `fd`, which is what was found.
    fn change(&self, repair: &Repair, finding: &Finding, fd: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        let layer = self.upper()?;
        let namespace = self.layers.namespace;
        let failed = |call: &'static str| move |e: Errno| layer.error(call, finding.path.as_os_str(), e);
        let seen = layer.stat_file(fd, name).map_err(failed("statx"))?;
        if seen.ino != finding.ino {
            let reason = "it is another file than the one that was checked".to_owned();
            return Err(Error::Corrupt { file: finding.location(), reason });
        }
        let clear = |mark: Mark| {
            let done = in_spite_of_mode(layer, fd, name, || namespace.clear(fd, name, mark));
            done.map_err(failed("removexattr"))
        };
        let set = |mark: Mark, value: &[u8]| {
            let done = in_spite_of_mode(layer, fd, name, || namespace.set(fd, name, mark, value));
            done.map_err(failed("setxattr"))
        };
        match repair {
            Repair::RemoveName => keeping_times(layer, fd, || rustix::fs::unlinkat(fd, name, AtFlags::empty()))
                .map_err(failed("unlinkat")),
            Repair::RemoveXattr(key) => match in_spite_of_mode(layer, fd, name, || xattr::remove(fd, name, key)) {
                Err(Errno::NODATA) => Ok(()),
                done => done.map_err(failed("removexattr")),
            },
            Repair::RemoveOrigin => {
                // Without an origin it says nothing.
                clear(Mark::Origin)?;
                clear(Mark::Nlink)
            }
            Repair::RemoveRedirect => clear(Mark::Redirect),
            Repair::CloseDirectory => {
                // In this order, so that what has its name in the lower layers never shows.
                set(Mark::Opaque, b"y")?;
                clear(Mark::Redirect)
            }
            Repair::MarkImpure => set(Mark::Impure, b"y"),
            Repair::WriteOrigin => match index::origin_of(name) {
                Some(value) => set(Mark::Origin, &value),
                None => Err(failed("setxattr")(Errno::INVAL)),
            },
            Repair::WriteLinkCount(right) => set(Mark::Nlink, format!("U{right:+}").as_bytes()),
            // Done elsewhere: they are about other names than that of the finding.
            Repair::None(_)
            | Repair::Hide(_)
            | Repair::AddToIndex(_)
            | Repair::RemoveLeftover
            | Repair::SettleVolatile => Ok(()),
        }
    }

    /// Puts a whiteout under the name `other` of the union, whose directory is in upper and which is not there itself.
    fn hide(&self, other: &Path) -> Result<()> {
        let (dir, name) = self.in_upper(other)?;
        let layer = self.upper()?;
        self.layers.upper.with_fd(&dir, |fd| {
            let made = keeping_times(layer, fd, || {
                rustix::fs::mknodat(fd, &*name, FileType::CharacterDevice, Mode::empty(), 0)
            });
            made.map_err(|e| layer.error("mknodat", other.as_os_str(), e))
        })
    }

    /// Links the file of `finding` into the index as `entry`.
    fn add_to_index(&self, finding: &Finding, entry: &OsStr) -> Result<()> {
        let spot = self.spot(finding)?;
        self.at(&spot, |fd, name| {
            self.in_workdir(finding, |work| {
                let index = workdir::make_index(work.fd())?;
                if self.upper().map_err(|_| Errno::STALE)?.stat_file(fd, name)?.ino != finding.ino {
                    return Err(Errno::STALE);
                }
                rustix::fs::linkat(fd, name, index.as_fd(), entry, AtFlags::empty())
            })
        })
    }

    fn in_workdir(&self, finding: &Finding, change: impl FnOnce(&Work) -> rustix::io::Result<()>) -> Result<()> {
        let work = self.work.as_ref().ok_or(Error::Refused(Errno::NOENT))?;
        change(work).map_err(|e| Error::call("repair", finding.side.label(), finding.path.as_os_str(), e))
    }

    /// Finds the directory of `finding` anew.
    fn spot(&self, finding: &Finding) -> Result<Spot> {
        if finding.side == Side::Upper {
            let (dir, name) = self.in_upper(&finding.path)?;
            return Ok(Spot::Upper(dir, name));
        }
        let work = self.work.as_ref().ok_or(Error::Refused(Errno::NOENT))?;
        let opened = workdir::index(work.fd()).and_then(|index| index.ok_or(Errno::NOENT));
        let index = opened.map_err(|e| Error::call("open", "work", "index", e))?;
        Ok(Spot::Index(index, finding.path.file_name().unwrap_or_default().to_owned()))
    }

    /// Runs `change` with the descriptor of the directory and the name; an empty one is the directory itself.
    fn at(&self, spot: &Spot, change: impl FnOnce(BorrowedFd<'_>, &OsStr) -> Result<()>) -> Result<()> {
        match spot {
            Spot::Upper(dir, name) => self.layers.upper.with_fd(dir, |fd| change(fd, name)),
            Spot::Index(index, name) => change(index.as_fd(), name),
        }
    }

    /// Returns the directory in upper that `path` is in, and its name; of an empty path the root and no name.
    fn in_upper(&self, path: &Path) -> Result<(Arc<LayerDir>, OsString)> {
        let upper = &self.layers.upper;
        let mut dir = upper.roots().first().cloned().ok_or(Error::Refused(Errno::STALE))?;
        let Some(name) = path.file_name() else { return Ok((dir, OsString::new())) };
        for part in path.parent().into_iter().flat_map(Path::components) {
            let Component::Normal(part) = part else { continue };
            let Found::Dir(attr, marks) = upper.examine(&dir, part, Below::Nothing)? else {
                return Err(upper.layer(&dir).error("openat", path.as_os_str(), Errno::NOTDIR));
            };
            dir = dir.child(part, &attr, &marks);
        }
        Ok((dir, name.to_owned()))
    }
}

/// Runs `change`, which changes the names in `dir`, and puts back when that was changed last.
fn keeping_times(
    layer: &Layer,
    dir: BorrowedFd<'_>,
    change: impl Fn() -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    let before = layer.stat_file(dir, OsStr::new(""))?;
    in_spite_of_mode(layer, dir, OsStr::new(""), change)?;
    Place::at(dir, OsStr::new(".")).set_times(before.atime, before.mtime)
}

/// Runs `change` of `name` in `dir`, of `dir` itself where it is empty, also where the mode forbids it to the owner: `user.`
/// xattrs take write permission, and names that of their directory.
fn in_spite_of_mode(
    layer: &Layer,
    dir: BorrowedFd<'_>,
    name: &OsStr,
    change: impl Fn() -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    match change() {
        Err(Errno::ACCESS) => {
            let attr = layer.stat_file(dir, name)?;
            let place = Place::at(dir, if name.is_empty() { OsStr::new(".") } else { name });
            place.chmod(attr.mode | if attr.is_dir() { 0o300 } else { 0o200 })?;
            let done = change();
            place.chmod(attr.mode)?;
            done
        }
        done => done,
    }
}

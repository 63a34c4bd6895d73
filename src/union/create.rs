//! Making new files, directories, links and nodes in upper.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::inode::{DataPlace, Inode, NodeId};
use super::lookup::Entry;
use super::search::{Hit, InUpper, Stack, Top};
use super::{Caller, Union, dir_of};
use crate::error::{Error, Result};
use crate::layer::acl;
use crate::layer::attr::{Attr, FileKind};
use crate::layer::dir::dotwh_name;
use crate::layer::name::{Name, WH_OPAQUE};
use crate::layer::overlay::{Mark, Marks};
use crate::layer::permissions::Stat;
use crate::layer::publish::Publish;
use crate::layer::upper::{New, Place, Upper};
use crate::sys::xattr;

/// What a new name takes the place of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vacancy {
    /// Nothing.
    Free,
    /// A whiteout under the name.
    Whiteout,
    /// A `.wh.` mark beside the name.
    Hidden,
}

impl Vacancy {
    /// Returns how a file takes the name.
    pub(super) fn publish(self) -> Publish {
        match self {
            Self::Free | Self::Hidden => Publish::New,
            Self::Whiteout => Publish::Replace,
        }
    }
}

/// The mode, owner and group that a new file is to have, with its inherited ACLs.
struct Wanted {
    mode: u32,
    caller: Caller,
    access: Option<Vec<u8>>,
    default: Option<Vec<u8>>,
}

impl Union {
    /// Makes `new` under `name` in `parent`, with permission bits `mode`, for `caller` with `umask`.
    ///
    /// `umask` plays no part where the parent has a default ACL. Errors: EEXIST, EROFS, EINVAL for a `.wh.` name,
    /// EPERM for a character device 0:0, which is how layers mark a removed name.
    pub fn create(
        &self,
        parent: NodeId,
        name: Name<'_>,
        new: New<'_>,
        mode: u32,
        umask: u32,
        caller: Caller,
    ) -> Result<Entry> {
        if name.is_reserved() {
            return Err(Error::Refused(Errno::INVAL));
        }
        if matches!(new, New::Node(FileKind::Char, (0, 0))) {
            return Err(Error::Refused(Errno::PERM));
        }
        let caller = self.stored_owner(caller);
        let parent = self.directory(parent)?;
        self.ensure_upper(&parent)?;
        let blocks = if matches!(new, New::Directory) { 2 } else { 1 };
        let room = self.quota.as_ref().map(|quota| quota.reserve(quota.blocks(blocks), 1)).transpose();
        let _room = room.map_err(Error::Refused)?;
        let _names = dir_of(&parent)?.lock.write();
        let make = |vacancy| self.create_locked(&parent, &name, new, (mode & 0o7777, umask), caller, vacancy);
        let (attr, fd) = if dir_of(&parent)?.lower.is_empty() && !parent.is_unlinked() {
            // Upper alone has the directory, and says itself whether the name is free.
            match make(Vacancy::Free) {
                Err(error) if error.errno() == Errno::EXIST => make(self.vacancy(&parent, &name)?)?,
                made => made?,
            }
        } else {
            make(self.vacancy(&parent, &name)?)?
        };
        let hit = Hit { attr, top: Top::Upper, lower: Stack::new(), marks: Marks::default() };
        let inode = self.hold_new(&parent, &name, &hit)?;
        if let Some(fd) = fd {
            inode.set_data_place(DataPlace::Here);
            self.files.keep(&inode, super::kept::Access::Write, Arc::new(fd));
        }
        self.charge(&[&parent, &inode]);
        let attr = inode.finish(attr);
        Ok(inode.keep(attr))
    }

    /// Returns what `name` in `parent` would take the place of. Errors: EEXIST, and ENOENT in a removed directory.
    pub(super) fn vacancy(&self, parent: &Arc<Inode>, name: &OsStr) -> Result<Vacancy> {
        if parent.place().0.unlinked {
            return Err(Error::Refused(Errno::NOENT));
        }
        match self.in_upper(parent, name)? {
            InUpper::Whiteout => Ok(Vacancy::Whiteout),
            InUpper::File(_) | InUpper::Dir(..) => Err(Error::Refused(Errno::EXIST)),
            InUpper::Nothing if self.hidden_in_upper(parent, name)? => Ok(Vacancy::Hidden),
            InUpper::Nothing if self.shows_below(parent, name)? => Err(Error::Refused(Errno::EXIST)),
            InUpper::Nothing => Ok(Vacancy::Free),
        }
    }

    fn create_locked(
        &self,
        parent: &Arc<Inode>,
        name: &OsStr,
        new: New<'_>,
        (mode, umask): (u32, u32),
        caller: Caller,
        vacancy: Vacancy,
    ) -> Result<(Attr, Option<OwnedFd>)> {
        let upper = self.writable()?;
        let dir = self.upper_dir(parent)?;
        let inherits = self.has_default_acl(upper, parent, dir.as_fd())?;
        // Whose file it is the kernel settles as it should where we act as the caller does; so does it the ACLs.
        // Without ACLs nothing may be inherited that shows at a later mount.
        let as_it_comes = vacancy == Vacancy::Free && !upper.keeps_modes_apart() && self.acls;
        if as_it_comes && (caller.owns_as(&self.server) || !self.may_chown) {
            let masked = if inherits { mode } else { mode & !umask };
            let quiet = if self.atime { OFlags::empty() } else { OFlags::NOATIME };
            let fd = make_in_place(upper, dir.as_fd(), name, new, masked, quiet)?;
            dir_of(parent)?.changed();
            let exact = (!inherits && !matches!(new, New::Symlink(_))).then_some(masked);
            let place = fd.as_ref().map_or(Place::at(dir.as_fd(), name), |fd| Place::file(fd.as_fd()));
            let attr = look_at_made(upper, place, name, new, exact).inspect_err(|_| {
                let flags = if matches!(new, New::Directory) { AtFlags::REMOVEDIR } else { AtFlags::empty() };
                if let Err(errno) = rustix::fs::unlinkat(dir.as_fd(), name, flags) {
                    log::error!("{}: it is left, half made", upper.layer.error("unlinkat", name, errno));
                }
            })?;
            return Ok((attr, fd));
        }
        let mut vacancy = vacancy;
        if vacancy == Vacancy::Whiteout && matches!(new, New::Directory) && !upper.features.exchange {
            self.set_whiteout_aside(upper, parent, name)?;
            vacancy = Vacancy::Hidden;
        }
        let wanted = self.wanted(upper, dir.as_fd(), new, (mode, umask), caller, inherits)?;
        let (made, fd) = self.make_apart(upper, dir.as_fd(), name, new, &wanted, vacancy)?;
        dir_of(parent)?.changed();
        if vacancy == Vacancy::Hidden {
            forget_mark(upper, dir.as_fd(), name);
        }
        // As it was before it had its name, where it cannot be looked at: it is there, whatever is answered.
        let attr = upper.stat(dir.as_fd(), name).unwrap_or_else(|error| {
            log::warn!("{error}");
            Attr { nlink: made.nlink.max(1), ..made }
        });
        Ok((attr, fd))
    }

    /// Returns whether upper's part of `parent` has a default ACL.
    fn has_default_acl(&self, upper: &Upper, parent: &Arc<Inode>, fd: BorrowedFd<'_>) -> Result<bool> {
        let dir = dir_of(parent)?;
        if !self.acls {
            return Ok(false);
        }
        if let Some(known) = dir.default_acl() {
            return Ok(known);
        }
        let has = match xattr::get(fd, OsStr::new(""), OsStr::new(acl::DEFAULT), &mut []) {
            Ok(_) => true,
            Err(Errno::NODATA | Errno::OPNOTSUPP) => false,
            Err(errno) => return Err(upper.layer.error("getxattr", OsStr::new(acl::DEFAULT), errno)),
        };
        dir.set_default_acl(Some(has));
        Ok(has)
    }

    /// Works out what the kernel would give a file that `caller` makes in the directory behind `fd`.
    fn wanted(
        &self,
        upper: &Upper,
        fd: BorrowedFd<'_>,
        new: New<'_>,
        (mode, umask): (u32, u32),
        caller: Caller,
        inherits: bool,
    ) -> Result<Wanted> {
        let parent = upper.stat(fd, OsStr::new(""))?;
        let mut wanted = Wanted { mode: mode & !umask, caller, access: None, default: None };
        if inherits && !matches!(new, New::Symlink(_)) {
            let failed = |e| upper.layer.error("getxattr", OsStr::new(acl::DEFAULT), e);
            if let Some(value) = xattr::read(fd, OsStr::new(""), OsStr::new(acl::DEFAULT)).map_err(failed)? {
                let inherited = acl::inherit(&value, mode)?;
                wanted.mode = inherited.mode;
                wanted.access = inherited.access;
                wanted.default = matches!(new, New::Directory).then_some(value);
            }
        }
        if parent.mode & 0o2000 != 0 {
            wanted.caller.gid = parent.gid;
            if matches!(new, New::Directory) {
                wanted.mode |= 0o2000;
            }
        }
        Ok(wanted)
    }

    /// Makes `new` in the workdir, complete, and publishes it under `name` in `dir`; returns what it was before that.
    fn make_apart(
        &self,
        upper: &Upper,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        new: New<'_>,
        wanted: &Wanted,
        vacancy: Vacancy,
    ) -> Result<(Attr, Option<OwnedFd>)> {
        if matches!(new, New::Regular)
            && let Some(fd) = upper.tmpfile()?
        {
            self.dress(upper, Place::file(fd.as_fd()), new, wanted)?;
            let attr = upper.stat(fd.as_fd(), OsStr::new(""))?;
            let linked = upper.link_file(fd.as_fd(), dir, name, vacancy.publish());
            linked.map_err(|e| upper.layer.error("linkat", name, e))?;
            return Ok((attr, Some(fd)));
        }
        upper.work.with_temporary(|temporary| {
            let made = upper.make(temporary, new)?;
            let place = Place::at(upper.work.fd(), temporary);
            self.dress(upper, place, new, wanted)?;
            let attr = upper.stat(upper.work.fd(), temporary)?;
            self.publish_new(upper, temporary, dir, name, new, vacancy)?;
            Ok((attr, made))
        })
    }

    /// Moves what was made in the workdir to its name; a directory that replaces a removed one is opaque first.
    fn publish_new(
        &self,
        upper: &Upper,
        temporary: &OsStr,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        new: New<'_>,
        vacancy: Vacancy,
    ) -> Result<()> {
        let directory = matches!(new, New::Directory);
        if directory && vacancy != Vacancy::Free {
            self.set_opaque(upper, Place::at(upper.work.fd(), temporary))?;
        }
        let how = if directory && vacancy == Vacancy::Whiteout { Publish::Exchange } else { vacancy.publish() };
        upper.publish(temporary, dir, name, how).map_err(|e| upper.layer.error("publish", name, e))?;
        if how == Publish::Exchange {
            upper.work.discard(temporary);
        }
        Ok(())
    }

    /// Makes a directory one through which nothing below shows, by the xattr or, where there are none, by an entry.
    pub(super) fn set_opaque(&self, upper: &Upper, place: Place<'_>) -> Result<()> {
        if upper.features.xattrs {
            return upper.set_mark(place, Mark::Opaque, b"y");
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = upper.layer.open_dir(place.dir, place.name);
        let made = opened.and_then(|dir| rustix::fs::openat(dir, WH_OPAQUE, flags, Mode::RUSR | Mode::WUSR));
        made.map(drop).map_err(|e| upper.layer.error("openat", place.name, e))
    }

    /// Gives what was made its owner, ACLs and mode.
    fn dress(&self, upper: &Upper, place: Place<'_>, new: New<'_>, wanted: &Wanted) -> Result<()> {
        let failed = |call: &'static str| move |e: Errno| upper.layer.error(call, OsStr::new("work"), e);
        let Caller { uid, gid, .. } = wanted.caller;
        if self.may_chown {
            upper.give(place, uid, gid).map_err(failed("chown"))?;
        }
        for (name, value) in [(acl::DEFAULT, &wanted.default), (acl::ACCESS, &wanted.access)] {
            if let Some(value) = value {
                place.set_xattr(OsStr::new(name), value).map_err(failed("setxattr"))?;
            }
        }
        let (kind, rdev) = match new {
            New::Regular => (FileKind::Regular, (0, 0)),
            New::Directory => (FileKind::Directory, (0, 0)),
            New::Symlink(_) => (FileKind::Symlink, (0, 0)),
            New::Node(kind, rdev) => (kind, rdev),
        };
        // A symbolic link has every permission, whatever the umask.
        let mode = if kind == FileKind::Symlink { 0o777 } else { wanted.mode };
        upper.settle(place, Stat { uid, gid, mode, kind, rdev }).map_err(failed("chmod"))
    }
}

/// Removes the `.wh.` mark of a name that is there again.
pub(super) fn remove_mark(upper: &Upper, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    let Some(mark) = dotwh_name(name) else { return Ok(()) };
    let removed = match rustix::fs::unlinkat(dir, &mark, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        // A directory of that name is a mark as well, with whatever is in it.
        Err(Errno::ISDIR) => {
            let temporary = upper.work.temporary();
            let moved = rustix::fs::renameat(dir, &mark, upper.work.fd(), &temporary);
            moved.map(|()| upper.work.discard(&temporary))
        }
        done => done,
    };
    removed.map_err(|e| upper.layer.error("unlinkat", &mark, e))
}

/// Removes the mark as [`remove_mark`], or leaves it: what is there shows beside it.
pub(super) fn forget_mark(upper: &Upper, dir: BorrowedFd<'_>, name: &OsStr) {
    if let Err(error) = remove_mark(upper, dir, name) {
        log::warn!("{error}: a mark of a name that is there again is left");
    }
}

/// Returns the attributes of what was made under `name`, and is at `place`; it is given the mode `exact`, if any.
fn look_at_made(upper: &Upper, place: Place<'_>, name: &OsStr, new: New<'_>, exact: Option<u32>) -> Result<Attr> {
    let failed = |call: &'static str| move |e: Errno| upper.layer.error(call, name, e);
    let mut attr = upper.layer.stat(place.dir, place.name).map_err(failed("statx"))?;
    if let Some(exact) = exact.map(|exact| exact | attr.mode & inherited_bits(new)).filter(|exact| *exact != attr.mode)
    {
        // The umask of this process took some; it is not ours to change.
        place.chmod(exact).map_err(failed("chmod"))?;
        attr.mode = exact;
    }
    Ok(attr)
}

/// The bits that a new file takes over from its directory.
fn inherited_bits(new: New<'_>) -> u32 {
    if matches!(new, New::Directory) { 0o2000 } else { 0 }
}

/// Makes `new` where it belongs: one call, so that it is whole or not there.
fn make_in_place(
    upper: &Upper,
    dir: BorrowedFd<'_>,
    name: &OsStr,
    new: New<'_>,
    mode: u32,
    quiet: OFlags,
) -> Result<Option<OwnedFd>> {
    let bits = Mode::from_raw_mode(mode);
    let made = match new {
        New::Regular => {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | quiet;
            rustix::fs::openat(dir, name, flags, bits).map(Some)
        }
        New::Directory => rustix::fs::mkdirat(dir, name, bits).map(|()| None),
        New::Symlink(target) => rustix::fs::symlinkat(target, dir, name).map(|()| None),
        New::Node(kind, (major, minor)) => {
            let device = if matches!(kind.file_type(), FileType::CharacterDevice | FileType::BlockDevice) {
                rustix::fs::makedev(major, minor)
            } else {
                0
            };
            rustix::fs::mknodat(dir, name, kind.file_type(), bits, device).map(|()| None)
        }
    };
    made.map_err(|e| upper.layer.error("create", name, e))
}

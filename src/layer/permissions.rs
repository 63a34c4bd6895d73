//! Owner and mode of things in upper: with the file, or in its xattr where upper keeps them there.
//!
//! Beside `user.containers.override_stat` go the `security.` xattrs, which a plain user cannot set either.
//!
//! Where they are in the xattr, the file itself belongs to the server, which can always read and write it; devices, pipes,
//! sockets and, where the xattr cannot be on them, symbolic links are plain files.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::{Errno, Result};

use super::Layer;
use super::acl::{self, Acl};
use super::attr::FileKind;
use super::overlay::{self, SECURITY_APART, View};
use super::override_stat::{OverrideStat, Store};
use super::upper::{New, Place, Upper};
use super::workdir::Workdir;
use crate::config::UnionConfig;
use crate::error::Error;
use crate::sys::{dents, mode, xattr};

/// What the names of xattrs begin with that a plain user cannot set.
const SECURITY: &[u8] = b"security.";

/// The xattr that gives a program capabilities.
const CAPABILITY: &str = "security.capability";

/// What stat(2) is to say about a new thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits with set-user-id, set-group-id and sticky.
    pub mode: u32,
    /// What it is.
    pub kind: FileKind,
    /// The device that a device node stands for (major, minor).
    pub rdev: (u32, u32),
}

impl Layer {
    /// Returns the name that the layer stores the xattr `name` of the mount under.
    pub fn stored_xattr(&self, name: &OsStr) -> OsString {
        let stored = overlay::stored(name);
        if !self.keeps_security_apart() || !stored.as_bytes().starts_with(SECURITY) {
            return stored;
        }
        let mut apart = OsString::from(SECURITY_APART);
        apart.push(stored);
        apart
    }

    /// Returns the name that the mount shows for the xattr `name` of the layer; `None` for one that it does not show.
    pub fn shown_xattr(&self, name: &OsStr) -> Option<OsString> {
        let apart = name.as_bytes().strip_prefix(SECURITY_APART.as_bytes());
        let name = match apart.filter(|rest| self.keeps_security_apart() && rest.starts_with(SECURITY)) {
            Some(rest) => OsStr::from_bytes(rest),
            None => name,
        };
        match overlay::view(name) {
            View::Same => Some(name.to_owned()),
            View::Unescaped(name) => Some(name),
            View::Hidden => None,
        }
    }

    /// Reads the xattr `name` of the mount of `file` in `dir`. Errors: ENODATA.
    pub fn xattr(&self, dir: BorrowedFd<'_>, file: &OsStr, name: &OsStr) -> Result<Vec<u8>> {
        let stored = self.stored_xattr(name);
        let value = match xattr::whole(dir, file, &stored) {
            // What the file itself has shows through, until it is set or removed.
            Err(Errno::NODATA)
                if self.keeps_security_apart() && stored.as_bytes().starts_with(SECURITY_APART.as_bytes()) =>
            {
                xattr::whole(dir, file, &overlay::stored(name))
            }
            done => done,
        }?;
        let Some(owners) = self.idmap.as_ref().filter(|_| acl::is_acl(name)) else { return Ok(value) };
        let mut acl = Acl::parse(&value)?;
        let (uids, gids) = (&owners.uids, &owners.gids);
        acl.show_ids(|id| uids.stored(id), |id| gids.stored(id));
        Ok(acl.to_bytes())
    }

    /// Lists the names of the xattrs of `file` in `dir` that the mount shows.
    pub fn xattrs(&self, dir: BorrowedFd<'_>, file: &OsStr) -> Result<Vec<OsString>> {
        let mut shown: Vec<_> = xattr::list(dir, file)?.iter().filter_map(|name| self.shown_xattr(name)).collect();
        if self.keeps_security_apart() {
            shown.sort_unstable();
            shown.dedup();
        }
        Ok(shown)
    }

    /// Returns whether `security.` xattrs are under other names, which anybody can set.
    fn keeps_security_apart(&self) -> bool {
        self.overrides == Some(Store::Containers)
    }
}

impl Upper {
    /// Sets the xattr `name` of the mount of what is at `place`.
    pub fn set_xattr(&self, place: Place<'_>, name: &OsStr, value: &[u8], flags: XattrFlags) -> Result<()> {
        xattr::set(place.dir, place.name, &self.layer.stored_xattr(name), value, flags)
    }

    /// Removes the xattr `name` of the mount of what is behind `fd`. Errors: ENODATA.
    pub fn remove_xattr(&self, fd: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        let (own, stored, itself) = (OsStr::new(""), self.layer.stored_xattr(name), overlay::stored(name));
        // A plain user may not even try to remove one that is not there.
        if stored != itself && xattr::get(fd, own, &itself, &mut []).is_ok() {
            xattr::remove(fd, own, &itself)?;
            return match xattr::remove(fd, own, &stored) {
                Err(Errno::NODATA) => Ok(()),
                done => done,
            };
        }
        xattr::remove(fd, own, &stored)
    }

    /// Takes the capabilities of what is behind `fd`, whose contents were changed, where the kernel does not know of them.
    pub fn drop_capabilities(&self, fd: BorrowedFd<'_>) -> Result<()> {
        if !self.layer.keeps_security_apart() {
            return Ok(());
        }
        match xattr::remove(fd, OsStr::new(""), &self.layer.stored_xattr(OsStr::new(CAPABILITY))) {
            Ok(()) | Err(Errno::NODATA) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Returns whether the kernel knows nothing of the capabilities that what is behind `fd` has.
    pub fn has_capabilities_apart(&self, fd: BorrowedFd<'_>) -> bool {
        let name = || self.layer.stored_xattr(OsStr::new(CAPABILITY));
        self.layer.keeps_security_apart() && xattr::get(fd, OsStr::new(""), &name(), &mut []).is_ok()
    }

    /// Returns whether owners and modes are kept apart from the files.
    pub fn keeps_modes_apart(&self) -> bool {
        self.layer.overrides.is_some()
    }

    /// Returns what a plain file that stands for `new` holds; `None` where `new` is made as what it is.
    fn stand_in<'a>(&self, new: New<'a>) -> Option<&'a [u8]> {
        match new {
            New::Node(..) => self.layer.overrides.map(|_| &b""[..]),
            New::Symlink(target) => {
                self.layer.overrides.filter(|store| store.keeps_links_in_files()).map(|_| target.as_bytes())
            }
            New::Regular | New::Directory => None,
        }
    }

    /// Makes the plain file that stands for `new` under `name` in the workdir; returns whether there is one.
    pub(super) fn make_stand_in(&self, name: &OsStr, new: New<'_>) -> Result<bool> {
        let Some(contents) = self.stand_in(new) else { return Ok(false) };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(self.work.fd(), name, flags, Mode::RUSR | Mode::WUSR)?;
        let mut rest = contents;
        while !rest.is_empty() {
            let written = rustix::io::write(&file, rest)?;
            rest = rest.get(written..).unwrap_or_default();
        }
        Ok(true)
    }

    /// Gives a new thing to its owner. Comes first, as it clears what follows.
    pub fn give(&self, place: Place<'_>, uid: u32, gid: u32) -> Result<()> {
        if self.keeps_modes_apart() { Ok(()) } else { place.chown(uid, gid) }
    }

    /// Gives a new thing its mode, and what else is kept with it. Comes after the xattrs, which take write permission.
    pub fn settle(&self, place: Place<'_>, stat: Stat) -> Result<()> {
        let Some(store) = self.layer.overrides else {
            return if stat.kind == FileKind::Symlink { Ok(()) } else { place.chmod(stat.mode) };
        };
        let Stat { uid, gid, mode, kind, rdev } = stat;
        let linked = kind == FileKind::Symlink && !store.keeps_links_in_files();
        if !linked {
            // Whoever else may write a file may set its xattr too.
            place.chmod(if kind == FileKind::Directory { 0o700 } else { 0o600 })?;
        }
        let itself = linked || matches!(kind, FileKind::Regular | FileKind::Directory);
        let stands_for = (!itself).then_some((kind, rdev));
        store.set(place.dir, place.name, OverrideStat { uid, gid, mode, stands_for })
    }

    /// Gives what is behind `fd` another owner, group or both.
    ///
    /// As chown(2), it takes the set-user-id and set-group-id bits and the capabilities of anything but a directory.
    pub fn set_owner(&self, fd: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        let Some(store) = self.layer.overrides else {
            return rustix::fs::chownat(fd, "", uid.map(Uid::from_raw), gid.map(Gid::from_raw), AtFlags::EMPTY_PATH);
        };
        if self.layer.stat_file(fd, OsStr::new(""))?.kind == FileKind::Regular {
            match self.remove_xattr(fd, OsStr::new(CAPABILITY)) {
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(errno),
            }
        }
        self.change(store, fd, |stat, kind| {
            stat.uid = uid.unwrap_or(stat.uid);
            stat.gid = gid.unwrap_or(stat.gid);
            if kind != FileKind::Directory {
                stat.mode = without_privileges(stat.mode);
            }
        })
    }

    /// Takes set-user-id, and set-group-id of a file that its group may execute.
    pub fn drop_set_id(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let mode = self.layer.stat(fd, OsStr::new(""))?.mode;
        if without_privileges(mode) == mode {
            return Ok(());
        }
        match self.layer.overrides {
            None => self.set_mode(fd, without_privileges(mode)),
            Some(store) => self.change(store, fd, |stat, _| stat.mode = without_privileges(stat.mode)),
        }
    }

    /// Sets the permission bits of what is behind `fd`, which may have been opened with O_PATH.
    ///
    /// Errors: EOPNOTSUPP for a symbolic link.
    pub fn set_mode(&self, fd: BorrowedFd<'_>, mode: u32) -> Result<()> {
        match self.layer.overrides {
            None => mode::set_open(fd, mode),
            Some(store) => {
                if self.layer.stat(fd, OsStr::new(""))?.kind == FileKind::Symlink {
                    return Err(Errno::OPNOTSUPP);
                }
                self.change(store, fd, |stat, _| stat.mode = mode)
            }
        }
    }

    /// Sets the access ACL of what is behind `fd`, and with it the permission bits.
    ///
    /// Where the mode is kept apart, the ACL of the file itself allows its owner, the server, everything and others nothing;
    /// what the mode says in place of the base entries is put back by whoever reads it.
    pub fn set_access_acl(&self, fd: BorrowedFd<'_>, value: &[u8], flags: XattrFlags) -> Result<()> {
        let (own, name) = (OsStr::new(""), OsStr::new(acl::ACCESS));
        let Some(store) = self.layer.overrides else { return xattr::set(fd, own, name, value, flags) };
        let mut acl = Acl::parse(value)?;
        let mode = acl.mode()?;
        acl.set_mode(0o700)?;
        xattr::set(fd, own, name, &acl.to_bytes(), flags)?;
        self.change(store, fd, |stat, _| stat.mode = stat.mode & !0o777 | mode)
    }

    /// Changes what is kept for the file behind `fd`.
    fn change(&self, store: Store, fd: BorrowedFd<'_>, change: impl FnOnce(&mut OverrideStat, FileKind)) -> Result<()> {
        let own = OsStr::new("");
        let _changing = self.changing.lock();
        let file = self.layer.stat_file(fd, own)?;
        let attr = store.apply(fd, own, file)?;
        let stands_for = (attr.kind != file.kind).then_some((attr.kind, attr.rdev));
        let mut stat = OverrideStat { uid: attr.uid, gid: attr.gid, mode: attr.mode, stands_for };
        change(&mut stat, attr.kind);
        store.set(fd, own, stat)
    }

    /// Begins to keep owners and modes in xattrs, where that was asked for and the layer does not do so yet: its root says so
    /// to later mounts.
    pub fn begin_to_keep_apart(&self) -> Result<()> {
        let Some(store) = self.layer.overrides else { return Ok(()) };
        let own = OsStr::new("");
        let root = self.layer.root();
        if store.get(root, own)?.is_some() {
            return Ok(());
        }
        let attr = self.layer.stat_file(root, own)?;
        store.set(root, own, OverrideStat { uid: attr.uid, gid: attr.gid, mode: attr.mode, stands_for: None })?;
        // Relaxed: read by the same thread, if at all.
        self.began_to_keep_apart.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Undoes [`Upper::begin_to_keep_apart`], for a mount that failed.
    pub(super) fn end_to_keep_apart(&self) {
        let Some(store) = self.layer.overrides else { return };
        if !self.began_to_keep_apart.load(Ordering::Relaxed) {
            return; // Relaxed: as above.
        }
        if let Err(errno) = xattr::remove(self.layer.root(), OsStr::new(""), OsStr::new(store.name())) {
            log::warn!("{}: its {} is left: {errno}", self.layer.path.display(), store.name());
        }
    }
}

/// Settles where upper keeps owners and modes: where it does already, else where it was asked to.
pub(super) fn store(config: &UnionConfig, layer: &Layer) -> crate::error::Result<Option<Store>> {
    let asked = Store::asked(config.permissions);
    if asked.is_some() && layer.overrides.is_none() && !is_empty(layer)? {
        let path = layer.path.display();
        log::warn!("{path}: holds files already, so owners and modes go on being kept with them (xattr_permissions=0)");
        return Ok(None);
    }
    match (asked, layer.overrides) {
        (None, Some(found)) if !found.is_credible(config.permissions) => {
            let reason = format!("keeps owners and modes in {}, which anybody who owns a file may write", found.name());
            Err(Error::setup(&layer.path, reason, "mount with xattr_permissions=2 if only you could"))
        }
        // Written by older versions of what writes the other.
        (Some(Store::Containers), Some(Store::Old)) => Ok(Some(Store::Old)),
        (Some(asked), Some(found)) if asked != found => {
            let reason =
                format!("keeps owners and modes in {}, and was to keep them in {}", found.name(), asked.name());
            Err(Error::setup(&layer.path, reason, "leave xattr_permissions out, which then follows the upper"))
        }
        (asked, found) => Ok(found.or(asked)),
    }
}

fn is_empty(layer: &Layer) -> crate::error::Result<bool> {
    let mut empty = true;
    let listed = layer.open_listing(layer.root()).and_then(|fd| dents::each(fd.as_fd(), |_, _, _| empty = false));
    let failed = |e| Error::setup(&layer.path, format!("cannot be listed: {e}"), "check its permissions").because(e);
    listed.map_err(failed)?;
    Ok(empty)
}

/// Refuses an upper that cannot hold the xattrs that owners and modes are to be kept in.
pub(super) fn check_store(layer: &Layer, work: &Workdir, probe: &OsStr) -> crate::error::Result<()> {
    let Some(store) = layer.overrides else { return Ok(()) };
    let stat = OverrideStat { uid: 0, gid: 0, mode: 0, stands_for: None };
    store.set(work.fd(), probe, stat).map_err(|errno| {
        let remedy = match store {
            Store::Security => "mount with CAP_SYS_ADMIN, or use xattr_permissions=2",
            Store::Containers | Store::Old => "use xattr_permissions=0, or an upper on a file system with user xattrs",
        };
        let reason = format!("cannot hold the xattr {}, where owners and modes are to be kept: {errno}", store.name());
        Error::setup(&layer.path, reason, remedy)
    })
}

/// Returns `mode` without set-user-id, and without set-group-id where the group may execute, as chown(2) and write(2)
/// leave it.
pub fn without_privileges(mode: u32) -> u32 {
    let cleared = if mode & 0o010 != 0 { 0o6000 } else { 0o4000 };
    mode & !cleared
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_group_id_stays_where_it_does_not_mean_execution() {
        assert_eq!(without_privileges(0o6755), 0o755);
        assert_eq!(without_privileges(0o6745), 0o2745);
        assert_eq!(without_privileges(0o1644), 0o1644);
    }
}

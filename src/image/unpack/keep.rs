//! How a layer keeps what a plain user may not set: owners, modes, devices, capabilities.

use std::ffi::{OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::{Errno, Result};
use rustix::thread::CapabilitySet;

use super::super::tar::Member;
use crate::layer::acl::{self, Acl};
use crate::layer::attr::{FileKind, Timestamp};
use crate::layer::name::WH_OPAQUE;
use crate::layer::overlay::{self, Mark, Namespace, SECURITY_APART, View};
use crate::layer::override_stat::{OverrideStat, Store};
use crate::sys::{caps, mode, proc_path, xattr};

/// How many owners the files of images may have: those below the ids that systemd and others give out.
const IDS_OF_IMAGES: u64 = 1000;

/// How the trees of layers are kept by this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Where owners and modes are, if not with the files.
    pub store: Option<Store>,
    /// Where the marks of the overlay are.
    pub namespace: Namespace,
}

impl Keep {
    /// Returns what this process can do: keep everything with the files, if it may give them to any owner.
    pub fn here() -> Self {
        let initial = caps::in_initial_user_namespace();
        let gives = caps::effective(CapabilitySet::CHOWN) && (initial || caps::mapped_ids() >= IDS_OF_IMAGES);
        let namespace = if caps::trusted_xattrs() { Namespace::Trusted } else { Namespace::User };
        Self { store: (!gives).then_some(Store::Containers), namespace }
    }

    /// Makes what is neither a regular file nor a directory under `name` in `dir`.
    ///
    /// Errors: EEXIST; EPERM for a device in a user namespace; EINVAL for the device 0:0, which marks what is removed.
    pub fn make_special(self, dir: BorrowedFd<'_>, name: &OsStr, kind: FileKind, member: &Member) -> Result<()> {
        if kind == FileKind::Char && member.rdev == (0, 0) {
            return Err(Errno::INVAL);
        }
        if self.store.is_some() {
            // A plain file stands for it, which holds the target of a link.
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?;
            let mut rest = &member.link[..];
            while !rest.is_empty() {
                let written = rustix::io::write(&file, rest)?;
                rest = rest.get(written..).unwrap_or_default();
            }
            return Ok(());
        }
        if kind == FileKind::Symlink {
            return rustix::fs::symlinkat(OsStr::from_bytes(&member.link), dir, name);
        }
        let (major, minor) = member.rdev;
        rustix::fs::mknodat(dir, name, kind.file_type(), Mode::RUSR | Mode::WUSR, rustix::fs::makedev(major, minor))
    }

    /// Gives what was made under `name` in `dir` the owner, xattrs, mode and times of `member`; an empty name is `dir` itself.
    ///
    /// Returns how many xattrs had to be left out.
    pub fn dress(self, dir: BorrowedFd<'_>, name: &OsStr, kind: FileKind, member: &Member) -> Result<usize> {
        let left_out = self.dress_but_times(dir, name, kind, member)?;
        set_times(dir, name, member.mtime)?;
        Ok(left_out)
    }

    /// As [`Keep::dress`], but for the times: those of a directory would not stay while things are made in it.
    pub fn dress_but_times(self, dir: BorrowedFd<'_>, name: &OsStr, kind: FileKind, member: &Member) -> Result<usize> {
        // A file that was opened to be written: what it is already, from its making, is not set again.
        let is = if kind == FileKind::Regular { Some(rustix::fs::fstat(dir)?) } else { None };
        let owned = is.is_some_and(|is| (is.st_uid, is.st_gid) == (member.uid, member.gid));
        if self.store.is_none() && !owned {
            let (uid, gid) = (Some(Uid::from_raw(member.uid)), Some(Gid::from_raw(member.gid)));
            rustix::fs::chownat(dir, name, uid, gid, at(name))?;
        }
        let mut mode = member.mode;
        let mut left_out = 0;
        for (key, value) in &member.xattrs {
            if key == acl::DEFAULT && kind == FileKind::Directory {
                continue; // In the end, or what is made in it would inherit it.
            }
            match self.set_xattr(dir, name, (key, value), &mut mode) {
                Ok(true) => {}
                Ok(false) => left_out += 1,
                // `trusted.` of a plain user, `user.` on what is neither file nor directory, a file system without.
                Err(errno @ (Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP)) => {
                    log::warn!("{}: its xattr {key:?} is left out: {errno}", String::from_utf8_lossy(&member.path));
                    left_out += 1;
                }
                Err(errno) => return Err(errno),
            }
        }
        let itself = matches!(kind, FileKind::Regular | FileKind::Directory);
        let stands_for = (!itself).then_some((kind, member.rdev));
        // A change of owner takes bits from the mode, and an ACL gives it others.
        let settled = (self.store.is_some() || owned) && member.xattrs.is_empty();
        let has = is.filter(|_| settled).map(|is| is.st_mode & 0o7777);
        self.set_mode(dir, name, (kind, has), OverrideStat { uid: member.uid, gid: member.gid, mode, stands_for })?;
        Ok(left_out)
    }

    /// Sets the ACL that what is made in `dir` from now on gets.
    pub fn set_default_acl(self, dir: BorrowedFd<'_>, value: &[u8]) -> Result<()> {
        match xattr::set(dir, OsStr::new(""), OsStr::new(acl::DEFAULT), value, XattrFlags::empty()) {
            Err(Errno::OPNOTSUPP) => {
                log::warn!("a default ACL is left out: {}", Errno::OPNOTSUPP);
                Ok(())
            }
            done => done,
        }
    }

    /// Takes from the directory `name` in `dir` the xattrs that an earlier member of the same path has given it.
    pub fn undress(self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        for key in xattr::list(dir, name)? {
            let apart = key.as_bytes().starts_with(SECURITY_APART.as_bytes());
            // Where the kernel has SELinux, its label is no member's.
            if key == "security.selinux" || (overlay::view(&key) != View::Same && !apart) {
                continue;
            }
            match xattr::remove(dir, name, &key) {
                Ok(()) | Err(Errno::NODATA | Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Sets one xattr of a member; false where it belongs to the overlay and is none of the image's.
    fn set_xattr(self, dir: BorrowedFd<'_>, name: &OsStr, xattr: (&OsStr, &[u8]), mode: &mut u32) -> Result<bool> {
        let (key, value) = xattr;
        if overlay::view(key) != View::Same {
            return Ok(false);
        }
        let none = XattrFlags::empty();
        if self.store.is_none() {
            return xattr::set(dir, name, key, value, none).map(|()| true);
        }
        if key == acl::ACCESS {
            // The ACL of the file itself allows its owner everything; what it says of the others goes into the mode.
            let mut acl = Acl::parse(value)?;
            *mode = *mode & !0o777 | acl.mode()?;
            acl.set_mode(0o700)?;
            return xattr::set(dir, name, key, &acl.to_bytes(), none).map(|()| true);
        }
        if key.as_bytes().starts_with(b"security.") {
            let mut apart = OsString::from(SECURITY_APART);
            apart.push(key);
            return xattr::set(dir, name, &apart, value, none).map(|()| true);
        }
        xattr::set(dir, name, key, value, none).map(|()| true)
    }

    /// Sets the mode, unless it is what the file `has`, and what is kept beside it.
    fn set_mode(
        self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        (kind, has): (FileKind, Option<u32>),
        stat: OverrideStat,
    ) -> Result<()> {
        let mode = self.mode_of(kind, stat.mode);
        let links = self.store.is_none() && kind == FileKind::Symlink;
        if !links && has != Some(mode) {
            chmod(dir, name, mode)?;
        }
        self.store.map_or(Ok(()), |store| store.set(dir, name, stat))
    }

    /// Returns the mode that the file itself has of a member with `mode`.
    fn mode_of(self, kind: FileKind, mode: u32) -> u32 {
        match (self.store, kind) {
            (None, _) => mode,
            (Some(_), FileKind::Directory) => 0o700,
            (Some(_), _) => 0o600,
        }
    }

    /// Returns the mode that a regular file is made with: most often the one that it is to have. It belongs to this user
    /// until it has its owner, so the bits that lend somebody's rights come after that.
    pub fn mode_to_make(self, member: &Member) -> Mode {
        Mode::from_raw_mode(self.mode_of(FileKind::Regular, member.mode) & 0o777)
    }

    /// Marks that `name` is removed from the layers below, where nothing is under the name.
    pub fn whiteout(self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        match rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0) {
            // A plain user may since Linux 5.8; before, or where a filter forbids it, there is the form of images.
            Err(Errno::PERM) => {
                let mark = crate::layer::dir::dotwh_name(name).ok_or(Errno::NAMETOOLONG)?;
                touch(dir, &mark)
            }
            done => done,
        }
    }

    /// Marks that nothing of the layers below shows in `dir`.
    pub fn make_opaque(self, dir: BorrowedFd<'_>) -> Result<()> {
        match self.namespace.set(dir, OsStr::new(""), Mark::Opaque, b"y") {
            Err(Errno::OPNOTSUPP | Errno::PERM) => touch(dir, OsStr::new(WH_OPAQUE)),
            done => done,
        }
    }
}

/// Makes an empty file, where there is none yet.
fn touch(dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR).map(drop)
}

fn at(name: &OsStr) -> AtFlags {
    if name.is_empty() { AtFlags::EMPTY_PATH } else { AtFlags::SYMLINK_NOFOLLOW }
}

/// Sets the permission bits of what is no symbolic link.
fn chmod(dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> Result<()> {
    if name.is_empty() {
        let mode = Mode::from_raw_mode(mode);
        return match rustix::fs::fchmod(dir, mode) {
            // It was opened with O_PATH.
            Err(Errno::BADF) => rustix::fs::chmod(proc_path(dir), mode),
            done => done,
        };
    }
    mode::set(dir, name, mode)
}

/// Sets the time of the last change, and of the last access to the same, so that trees of one layer are equal.
pub fn set_times(dir: BorrowedFd<'_>, name: &OsStr, mtime: Timestamp) -> Result<()> {
    let time = Timespec { tv_sec: mtime.secs, tv_nsec: i64::from(mtime.nanos) };
    let times = Timestamps { last_access: time, last_modification: time };
    if name.is_empty() {
        return match rustix::fs::futimens(dir, &times) {
            // It was opened with O_PATH.
            Err(Errno::BADF) => rustix::fs::utimensat(rustix::fs::CWD, proc_path(dir), &times, AtFlags::empty()),
            done => done,
        };
    }
    rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

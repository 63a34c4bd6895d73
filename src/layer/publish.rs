//! How names are given and moved in upper: with the flags of renameat2(2), or without them.
//!
//! A file system that lacks a flag answers EINVAL to it; NFS and most FUSE file systems lack them all. RENAME_NOREPLACE has
//! a stand-in here: a look before a plain rename. The union holds the lock of every directory that it changes, so only who
//! changes upper behind the mount's back could make the name between the two, and would lose what is there. linkat(2) and
//! unlinkat(2) would not, and are not used: a crash between them leaves a file with a name too many, directories cannot be
//! linked, and NFS and FUSE keep an open file whose name is removed under another one. RENAME_EXCHANGE and RENAME_WHITEOUT
//! have none here: the union takes another way, see [`super::whiteout`].

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::{Errno, Result};

use super::features::Features;
use super::upper::{Place, Upper};
use crate::sys::{fault, proc_path};

/// What happens to a thing that stands under the name that something is published under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publish {
    /// Nothing may stand there.
    New,
    /// What stands there is replaced.
    Replace,
    /// What stands there is exchanged with what is published, and so ends up in the workdir.
    Exchange,
}

impl Features {
    /// Moves `from` to `to`. Errors: EEXIST for RENAME_NOREPLACE where `to` is there; EINVAL for a flag that the file
    /// system lacks and that has no stand-in.
    pub fn rename(self, from: Place<'_>, to: Place<'_>, flags: RenameFlags) -> Result<()> {
        if flags == RenameFlags::NOREPLACE && !self.noreplace {
            return match rustix::fs::statat(to.dir, to.name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) => Err(Errno::EXIST),
                Err(Errno::NOENT) => self.rename(from, to, RenameFlags::empty()),
                Err(errno) => Err(errno),
            };
        }
        let lacking = flags.contains(RenameFlags::EXCHANGE) && !self.exchange
            || flags.contains(RenameFlags::WHITEOUT) && !self.rename_whiteout;
        if lacking {
            return Err(Errno::INVAL);
        }
        if flags.is_empty() {
            // The older call, which no seccomp filter and no server of files is without.
            return rustix::fs::renameat(from.dir, from.name, to.dir, to.name);
        }
        rustix::fs::renameat_with(from.dir, from.name, to.dir, to.name, flags)
    }

    /// Gives what is `from` the further name `to`. Errors: EEXIST, EPERM where the file system has no hard links.
    pub fn link(self, from: Place<'_>, to: Place<'_>) -> Result<()> {
        if !self.links {
            return Err(Errno::PERM);
        }
        rustix::fs::linkat(from.dir, from.name, to.dir, to.name, AtFlags::empty())
    }

    /// Gives the file behind `fd`, which may have no name, the name `to`. Errors as for [`Features::link`].
    fn link_descriptor(self, fd: BorrowedFd<'_>, to: Place<'_>) -> Result<()> {
        if !self.links {
            return Err(Errno::PERM);
        }
        rustix::fs::linkat(rustix::fs::CWD, proc_path(fd), to.dir, to.name, AtFlags::SYMLINK_FOLLOW)
    }
}

impl Upper {
    /// Gives the file `fd` the name `name` in `dir`, in place of what `how` allows to stand there.
    pub fn link_file(&self, fd: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &OsStr, how: Publish) -> Result<()> {
        fault::point("publish");
        if how == Publish::New {
            return self.features.link_descriptor(fd, Place::at(dir, name));
        }
        let temporary = self.work.temporary();
        self.features.link_descriptor(fd, Place::at(self.work.fd(), &temporary))?;
        self.publish(&temporary, dir, name, how).inspect_err(|_| self.work.discard(&temporary))
    }

    /// Moves `temporary` of the workdir to `name` in `dir`.
    pub fn publish(&self, temporary: &OsStr, dir: BorrowedFd<'_>, name: &OsStr, how: Publish) -> Result<()> {
        fault::point("publish");
        let flags = match how {
            Publish::New => RenameFlags::NOREPLACE,
            Publish::Replace => RenameFlags::empty(),
            Publish::Exchange => RenameFlags::EXCHANGE,
        };
        self.features.rename(Place::at(self.work.fd(), temporary), Place::at(dir, name), flags)
    }
}

//! Extended attributes and ACLs, the overlay's own hidden and escaped.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::copy_up::Data;
use super::inode::{Inode, NodeId};
use super::{Caller, FileKind, Union};
use crate::error::{Error, Result};
use crate::layer::acl;
use crate::layer::upper::Place;

impl Union {
    /// Reads the xattr `name` of `id`. Errors: ENODATA, EOPNOTSUPP.
    pub fn getxattr(&self, id: NodeId, name: &OsStr) -> Result<Vec<u8>> {
        self.check_xattr(name)?;
        let inode = self.inode(id)?;
        if is_impossible(inode.kind, name) {
            return Err(Error::Refused(Errno::NODATA));
        }
        let (value, mode) = self.with_object(&inode, |layer, dir, file| {
            let failed = |e| layer.error("getxattr", name, e);
            let value = layer.xattr(dir, file, name).map_err(failed)?;
            let apart = layer.overrides.is_some() && name == acl::ACCESS;
            let mode = if apart { Some(layer.stat(dir, file).map_err(failed)?.mode) } else { None };
            Ok((value, mode))
        })?;
        if acl::is_acl(name) { self.shown_acl(value, mode) } else { Ok(value) }
    }

    /// Lists the names of the xattrs of `id` that `caller` may know of.
    pub fn listxattr(&self, id: NodeId, caller: Caller) -> Result<Vec<OsString>> {
        if !self.xattrs {
            return Err(Error::Refused(Errno::OPNOTSUPP));
        }
        let inode = self.inode(id)?;
        let mut names = self.with_object(&inode, |layer, dir, file| {
            layer.xattrs(dir, file).map_err(|e| layer.error("listxattr", file, e))
        })?;
        // `trusted.` is for those with CAP_SYS_ADMIN; the server has it, the caller may not.
        names.retain(|name| caller.uid == 0 || !name.as_bytes().starts_with(b"trusted."));
        names.retain(|name| (self.acls || !acl::is_acl(name)) && !is_impossible(inode.kind, name));
        Ok(names)
    }

    /// Sets the xattr `name` of `id`. Errors: EEXIST, ENODATA, EOPNOTSUPP, ENOSPC, ERANGE, EROFS.
    ///
    /// An access ACL takes the set-group-id bit of a file whose group `caller` is not in, as chmod(2) would.
    pub fn setxattr(&self, id: NodeId, name: &OsStr, value: &[u8], flags: XattrFlags, caller: Caller) -> Result<()> {
        self.check_xattr(name)?;
        let inode = self.inode(id)?;
        if is_impossible(inode.kind, name) {
            return Err(Error::Refused(Errno::PERM));
        }
        let value = if acl::is_acl(name) { self.stored_acl(value)? } else { value.into() };
        self.copy_up(&inode, Data::Metadata)?;
        let _held = self.hold_metacopy(&inode);
        let pinned = self.pin(&inode)?;
        // Looked at before: for nearly every file nothing is left then that could fail after the change.
        let takes_bit = name == acl::ACCESS && self.takes_set_group_id(pinned.as_fd(), caller)?;
        // What does not fit into the inode takes a block.
        let room = self.quota.as_ref().map(|quota| quota.reserve(quota.whole(value.len() as u64), 0)).transpose();
        let room = room.map_err(Error::Refused)?;
        let done = if name == acl::ACCESS {
            self.writable()?.set_access_acl(pinned.as_fd(), &value, flags)
        } else {
            self.writable()?.set_xattr(Place::file(pinned.as_fd()), name, &value, flags)
        };
        self.charge(&[&inode]);
        drop(room);
        self.note_acl(&inode, name);
        done.map_err(|e| self.upper_error("setxattr", &inode, e))?;
        if takes_bit { self.drop_set_group_id(pinned.as_fd()) } else { Ok(()) }
    }

    /// Removes the xattr `name` of `id`. Errors: ENODATA, EROFS.
    ///
    /// An access ACL takes the set-group-id bit along, as in [`Union::setxattr`].
    pub fn removexattr(&self, id: NodeId, name: &OsStr, caller: Caller) -> Result<()> {
        self.check_xattr(name)?;
        let inode = self.inode(id)?;
        self.writable()?;
        if is_impossible(inode.kind, name) {
            return Err(Error::Refused(Errno::PERM));
        }
        // Nothing is copied up for an xattr that is not there. The ACLs answer for themselves: they may be removed twice.
        if !name.as_bytes().starts_with(b"system.") && !inode.is_upper() {
            self.with_object(&inode, |layer, dir, file| {
                layer.xattr(dir, file, name).map_err(|e| layer.error("getxattr", name, e))
            })?;
        }
        self.copy_up(&inode, Data::Metadata)?;
        let _held = self.hold_metacopy(&inode);
        let pinned = self.pin(&inode)?;
        let takes_bit = name == acl::ACCESS && self.takes_set_group_id(pinned.as_fd(), caller)?;
        let done = self.writable()?.remove_xattr(pinned.as_fd(), name);
        self.charge(&[&inode]);
        self.note_acl(&inode, name);
        done.map_err(|e| self.upper_error("removexattr", &inode, e))?;
        if takes_bit { self.drop_set_group_id(pinned.as_fd()) } else { Ok(()) }
    }

    fn note_acl(&self, inode: &Inode, name: &OsStr) {
        if let Some(dir) = inode.dir().filter(|_| name == acl::DEFAULT) {
            dir.set_default_acl(None);
        }
    }
}

/// Returns whether files of `kind` have no xattr `name`, which a plain file that stands for it would take:
/// `user.` ones exist on regular files and directories alone (xattr(7)).
pub(super) fn is_impossible(kind: FileKind, name: &OsStr) -> bool {
    !matches!(kind, FileKind::Regular | FileKind::Directory) && name.as_bytes().starts_with(b"user.")
}

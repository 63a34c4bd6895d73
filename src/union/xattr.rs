//! Extended attributes and ACLs, the overlay's own hidden and escaped.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::XattrFlags;

use super::copy_up::Data;
use super::inode::NodeId;
use super::{Caller, Union};
use crate::error::Result;
use crate::layer::acl;
use crate::layer::overlay::{View, stored, view};
use crate::sys::xattr;

impl Union {
    /// Reads the xattr `name` of `id`. Errors: ENODATA, EOPNOTSUPP.
    pub fn getxattr(&self, id: NodeId, name: &OsStr) -> Result<Vec<u8>> {
        let inode = self.inode(id)?;
        let name = stored(name);
        self.with_object(&inode, |layer, dir, file| {
            xattr::whole(dir, file, &name).map_err(|e| layer.error("getxattr", &name, e))
        })
    }

    /// Lists the names of the xattrs of `id` that `caller` may know of.
    pub fn listxattr(&self, id: NodeId, caller: Caller) -> Result<Vec<OsString>> {
        let inode = self.inode(id)?;
        let names = self.with_object(&inode, |layer, dir, file| {
            xattr::list(dir, file).map_err(|e| layer.error("listxattr", file, e))
        })?;
        let shown = names.into_iter().filter_map(|name| match view(&name) {
            View::Same => Some(name),
            View::Unescaped(name) => Some(name),
            View::Hidden => None,
        });
        // `trusted.` is for those with CAP_SYS_ADMIN; the server has it, the caller may not.
        Ok(shown.filter(|name| caller.uid == 0 || !name.as_bytes().starts_with(b"trusted.")).collect())
    }

    /// Sets the xattr `name` of `id`. Errors: EEXIST, ENODATA, EOPNOTSUPP, ENOSPC, ERANGE, EROFS.
    ///
    /// An access ACL takes the set-group-id bit of a file whose group `caller` is not in, as chmod(2) would.
    pub fn setxattr(&self, id: NodeId, name: &OsStr, value: &[u8], flags: XattrFlags, caller: Caller) -> Result<()> {
        let inode = self.inode(id)?;
        self.copy_up(&inode, Data::Metadata)?;
        let _held = self.hold_metacopy(&inode);
        let pinned = self.pin(&inode)?;
        let done = xattr::set(pinned.as_fd(), OsStr::new(""), &stored(name), value, flags);
        self.note_acl(&inode, name);
        done.map_err(|e| self.upper_error("setxattr", &inode, e))?;
        if name == acl::ACCESS { self.drop_set_group_id(pinned.as_fd(), caller) } else { Ok(()) }
    }

    /// Removes the xattr `name` of `id`. Errors: ENODATA, EROFS.
    ///
    /// An access ACL takes the set-group-id bit along, as in [`Union::setxattr`].
    pub fn removexattr(&self, id: NodeId, name: &OsStr, caller: Caller) -> Result<()> {
        let inode = self.inode(id)?;
        self.writable()?;
        let name = stored(name);
        // Nothing is copied up for an xattr that is not there. The ACLs answer for themselves: they may be removed twice.
        if !name.as_bytes().starts_with(b"system.") && !inode.is_upper() {
            self.with_object(&inode, |layer, dir, file| {
                xattr::get(dir, file, &name, &mut []).map_err(|e| layer.error("getxattr", &name, e))
            })?;
        }
        self.copy_up(&inode, Data::Metadata)?;
        let _held = self.hold_metacopy(&inode);
        let pinned = self.pin(&inode)?;
        let done = xattr::remove(pinned.as_fd(), OsStr::new(""), &name);
        self.note_acl(&inode, &name);
        done.map_err(|e| self.upper_error("removexattr", &inode, e))?;
        if name == acl::ACCESS { self.drop_set_group_id(pinned.as_fd(), caller) } else { Ok(()) }
    }

    fn note_acl(&self, inode: &super::inode::Inode, name: &OsStr) {
        if let Some(dir) = inode.dir().filter(|_| name == acl::DEFAULT) {
            dir.set_default_acl(None);
        }
    }
}

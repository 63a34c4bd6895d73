//! What callers see and set of owners, and what the layers store for it.
//!
//! Everything inside works with what is stored. What goes out is mapped by [`Union::show`], what comes in where an owner
//! is made or set; ACLs name users and groups too.

use std::borrow::Cow;
use std::ffi::OsStr;

use rustix::io::Errno;

use super::{Attr, Caller, Union};
use crate::config::{IdMap, NOBODY, Owners};
use crate::error::{Error, Result};
use crate::layer::acl;

/// The owners that are shown for those that are stored.
#[derive(Debug)]
pub(super) struct OwnerView {
    owners: Owners,
    /// Whether everything is shown as it is stored.
    plain: bool,
}

impl OwnerView {
    pub(super) fn new(owners: Owners) -> Self {
        let plain = owners == Owners::default();
        Self { owners, plain }
    }

    fn shown_uid(&self, stored: u32) -> u32 {
        self.owners.squash_uid.unwrap_or_else(|| self.owners.uids.shown(stored).unwrap_or(NOBODY))
    }

    fn shown_gid(&self, stored: u32) -> u32 {
        self.owners.squash_gid.unwrap_or_else(|| self.owners.gids.shown(stored).unwrap_or(NOBODY))
    }
}

impl Union {
    /// Makes the attributes that are stored those that callers see.
    pub(super) fn show(&self, mut attr: Attr) -> Attr {
        if !self.view.plain {
            attr.uid = self.view.shown_uid(attr.uid);
            attr.gid = self.view.shown_gid(attr.gid);
        }
        if self.static_nlink && attr.is_dir() {
            attr.nlink = 1;
        }
        attr
    }

    /// Returns the group that callers see for the one that is stored.
    pub(super) fn shown_gid(&self, stored: u32) -> u32 {
        if self.view.plain { stored } else { self.view.shown_gid(stored) }
    }

    /// Returns whom the files that `caller` makes are stored to belong to.
    ///
    /// A caller that the map has no place for is nobody: refusing it would keep the runtime itself, which is not in its
    /// container's map, from preparing the container.
    pub(super) fn stored_owner(&self, caller: Caller) -> Caller {
        if self.view.plain {
            return caller;
        }
        let Owners { uids, gids, .. } = &self.view.owners;
        let uid = uids.stored(caller.uid).unwrap_or(NOBODY);
        let gid = gids.stored(caller.gid).unwrap_or(NOBODY);
        Caller { uid, gid, ..caller }
    }

    /// Returns the user to store for the one that a caller names. Errors: EINVAL for one that the map has no place for.
    pub(super) fn stored_uid(&self, shown: u32) -> Result<u32> {
        stored(&self.view.owners.uids, shown)
    }

    /// Returns the group to store for the one that a caller names. Errors: EINVAL as [`Union::stored_uid`].
    pub(super) fn stored_gid(&self, shown: u32) -> Result<u32> {
        stored(&self.view.owners.gids, shown)
    }

    /// Makes the ACL that is stored the one that callers see. `mode` holds where it is kept apart from the file.
    ///
    /// The users and groups that it names are mapped and not squashed: a squash is about whom the files belong to.
    pub(super) fn shown_acl(&self, value: Vec<u8>, mode: Option<u32>) -> Result<Vec<u8>> {
        let Owners { uids, gids, .. } = &self.view.owners;
        if mode.is_none() && uids.is_identity() && gids.is_identity() {
            return Ok(value);
        }
        let mut acl = acl::Acl::parse(&value)?;
        if let Some(mode) = mode {
            acl.set_mode(mode)?;
        }
        acl.show_ids(|id| uids.shown(id), |id| gids.shown(id));
        Ok(acl.to_bytes())
    }

    /// Makes the ACL that a caller sets the one to store. Errors: EINVAL for garbage, and for a user or group that the map
    /// has no place for.
    pub(super) fn stored_acl<'a>(&self, value: &'a [u8]) -> Result<Cow<'a, [u8]>> {
        let Owners { uids, gids, .. } = &self.view.owners;
        if uids.is_identity() && gids.is_identity() {
            return Ok(value.into());
        }
        let mut acl = acl::Acl::parse(value)?;
        acl.map_ids(|id| uids.stored(id), |id| gids.stored(id))?;
        Ok(acl.to_bytes().into())
    }

    /// Returns whether files have ACLs that callers can see.
    pub fn has_acls(&self) -> bool {
        self.acls
    }

    /// Refuses the xattr `name` where callers have none of its kind. Errors: EOPNOTSUPP.
    pub(super) fn check_xattr(&self, name: &OsStr) -> Result<()> {
        let refused = !self.xattrs || !self.acls && acl::is_acl(name);
        if refused { Err(Error::Refused(Errno::OPNOTSUPP)) } else { Ok(()) }
    }
}

fn stored(map: &IdMap, shown: u32) -> Result<u32> {
    map.stored(shown).ok_or(Error::Refused(Errno::INVAL))
}

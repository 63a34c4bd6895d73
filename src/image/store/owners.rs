//! Whether the trees of a store have owners and modes with the files, or apart from them.
//!
//! Who makes the store settles it, and it stays so: the same store is used by a plain user, and by that user as the root of a
//! user namespace with one id, where no other owner can be given either.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::super::unpack::keep::Keep;
use super::replace;
use crate::error::{Error, ErrorKind, Result};
use crate::layer::override_stat::Store as Xattr;

/// The file that says so.
pub const FILE: &str = "store.json";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Said {
    /// In the xattr `user.containers.override_stat`.
    owners_apart: bool,
}

/// Says how a store that is made will keep them.
pub fn create(root: &Path) -> Result<()> {
    let said = Said { owners_apart: Keep::here().store.is_some() };
    let path = root.join(FILE);
    let written = serde_json::to_vec(&said).map_err(io::Error::from).and_then(|bytes| replace(&path, &bytes));
    written.map_err(|error| Error::image_io(path.display(), &error))
}

/// Returns how the store keeps them. Errors: [`ErrorKind::Permission`] where this process cannot do so.
pub fn settle(root: &Path) -> Result<Keep> {
    let path = root.join(FILE);
    let here = Keep::here();
    let said: Said = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|error| Error::image(path.display(), format!("cannot be read: {error}")))?,
        // A layout that another tool has made.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create(root)?;
            return Ok(here);
        }
        Err(error) => return Err(Error::image_io(path.display(), &error)),
    };
    match (said.owners_apart, here.store) {
        (true, _) => Ok(Keep { store: Some(Xattr::Containers), ..here }),
        (false, None) => Ok(here),
        (false, Some(_)) => {
            let reason = "was made by who may give files to others, as root or with subordinate ids, and this process may not; \
                          do the same, or use another store (--store DIR)";
            Err(Error::image(root.display(), reason).of_kind(ErrorKind::Permission))
        }
    }
}

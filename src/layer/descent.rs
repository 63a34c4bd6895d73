//! The way along a path that a redirect names, through the layers from their roots down.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use super::dir::{Below, Found, LayerDir, Lowers};
use super::overlay::Marks;
use super::redirect::Redirect;
use crate::error::Result;

/// Says where the search goes on below the directory of this name, in this directory and with these marks; fails where that
/// is not to be followed.
pub type Lead<'a> = &'a dyn Fn(&LayerDir, &OsStr, &Marks) -> Result<Redirect>;

impl Lowers {
    /// Follows `path` from the roots of the layers from position `from` on, as far as `lead` lets it; returns the directories
    /// that it leads to, topmost first.
    pub fn along(&self, from: usize, mut path: Vec<OsString>, lead: Lead<'_>) -> Result<Vec<Arc<LayerDir>>> {
        let mut dirs = Vec::new();
        for root in self.roots().get(from..).unwrap_or_default() {
            let (found, stop) = self.walk(root, &mut path, lead)?;
            dirs.extend(found);
            if stop {
                break;
            }
        }
        Ok(dirs)
    }

    /// Follows `path` from the root of one layer; returns the directory there, and whether the search ends here.
    ///
    /// A redirect on the way changes `path` for the layers below.
    fn walk(
        &self,
        root: &Arc<LayerDir>,
        path: &mut Vec<OsString>,
        lead: Lead<'_>,
    ) -> Result<(Option<Arc<LayerDir>>, bool)> {
        let mut at = root.clone();
        let mut stop = false;
        // The way that this layer leads the ones below, as far as it has the path.
        let mut below: Vec<OsString> = Vec::with_capacity(path.len());
        for (depth, name) in path.iter().enumerate() {
            let found = self.examine(&at, name, Below::Something)?;
            // A mark beside what leads elsewhere is about what was under the name before.
            let elsewhere = matches!(&found, Found::Dir(_, marks) if marks.redirect.is_some());
            let hidden = !elsewhere && self.hides_by_name(&at, name)?;
            stop |= hidden;
            match found {
                Found::Absent => {
                    below.extend_from_slice(path.get(depth..).unwrap_or_default());
                    *path = below;
                    return Ok((None, stop));
                }
                Found::Whiteout | Found::File(_) => return Ok((None, true)),
                Found::Dir(attr, marks) => {
                    stop |= marks.opaque;
                    match lead(&at, name, &marks)? {
                        // A path from the roots leaves behind what is opaque above here, as in the kernel (ovl_check_redirect).
                        Redirect::Absolute(start) => (below, stop) = (start, hidden || marks.opaque),
                        Redirect::Sibling(name) => below.push(name),
                    }
                    at = at.child(name, &attr, &marks);
                }
            }
        }
        *path = below;
        Ok((Some(at), stop))
    }
}

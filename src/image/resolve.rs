//! Paths inside a tree, as the programs of a container see them: links lead from its root, and nowhere out of it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::stack::{Object, Stack};
use crate::error::{Error, Result};
use crate::layer::attr::FileKind;

/// The most links that one path leads through, as the kernel's.
const LINKS_MAX: usize = 40;

/// What becomes of a link at the end of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// It is what is meant.
    Kept,
    /// What it leads to is meant.
    Followed,
}

impl Stack {
    /// Finds what is at `path`; `None` where nothing is.
    ///
    /// Errors: [`Error::Image`] for more than 40 links; those of reading the layers.
    pub fn resolve(&self, path: &Path, last: Last) -> Result<Option<Object>> {
        let mut todo = components(path.as_os_str());
        let mut at = vec![self.root()?];
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == ".." {
                // The root's parent is the root.
                at.truncate(at.len().saturating_sub(1).max(1));
                continue;
            }
            let Some(Object::Dir(dir, _)) = at.last() else { return Ok(None) };
            let Some(object) = self.lookup(dir, &name)? else { return Ok(None) };
            if let Object::File(dir, inside, attr) = &object
                && attr.kind == FileKind::Symlink
                && (last == Last::Followed || !todo.is_empty())
            {
                links += 1;
                if links > LINKS_MAX {
                    return Err(Error::image(path.display(), format!("leads through more than {LINKS_MAX} links")));
                }
                let target = self.read_link(dir, inside)?;
                if target.as_bytes().starts_with(b"/") {
                    at.truncate(1);
                }
                todo.extend(components(&target));
                continue;
            }
            at.push(object);
        }
        Ok(at.pop())
    }
}

/// Parts a path, the last component first.
fn components(path: &OsStr) -> Vec<OsString> {
    let parts = path.as_bytes().split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    let mut parts: Vec<OsString> = parts.map(|part| OsStr::from_bytes(part).to_owned()).collect();
    parts.reverse();
    parts
}

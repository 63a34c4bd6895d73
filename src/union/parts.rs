//! What a directory is merged of, for those who compare two unions: what an upper has changed, above all.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use super::{NodeId, Union, dir_of};
use crate::error::Result;
use crate::layer::name::WH_PREFIX;

/// A directory of a lower layer, which is the same in every union that has the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LowerPart {
    /// The device of the layer's file system, major and minor.
    pub dev: (u32, u32),
    /// The directory's own number there, not that of the union.
    pub ino: u64,
}

impl Union {
    /// Returns the directories of lower layers that the directory `id` is merged of, topmost first.
    ///
    /// They end at the first opaque one; where a directory was renamed in a layer, those below are of its old name. So two
    /// directories with the same parts have the same entries, as long as upper has no part in them. Errors: ESTALE, ENOTDIR.
    pub fn lower_parts(&self, id: NodeId) -> Result<Vec<LowerPart>> {
        let inode = self.directory(id)?;
        Ok(dir_of(&inode)?.lower.iter().map(|part| LowerPart { dev: part.dev, ino: part.ino }).collect())
    }

    /// Returns the names that the topmost of the lower parts of `id` says anything about, in order: those that it holds,
    /// and those that it hides in the parts below, whatever the whiteout is written as.
    ///
    /// A lookup tells which is which. Errors: ESTALE, ENOTDIR, and those of listing a directory.
    pub fn names_of_topmost_part(&self, id: NodeId) -> Result<Vec<OsString>> {
        let inode = self.directory(id)?;
        let Some(part) = dir_of(&inode)?.lower.first() else { return Ok(Vec::new()) };
        let mut names = Vec::new();
        self.lowers.each_entry(part, |name, _, _| names.extend(meant(name)))?;
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }
}

/// Returns the name that an entry is about; `None` for a mark of the whole directory.
fn meant(entry: &[u8]) -> Option<OsString> {
    let mark = WH_PREFIX.as_bytes();
    let name = entry.strip_prefix(mark).unwrap_or(entry);
    (!name.starts_with(mark) && !name.is_empty()).then(|| OsStr::from_bytes(name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_about_the_names_that_they_hide() {
        for (entry, name) in
            [("a", Some("a")), (".wh.a", Some("a")), (".wh..wh..opq", None), (".wh.", None), (".w", Some(".w"))]
        {
            assert_eq!(meant(entry.as_bytes()), name.map(OsString::from), "{entry}");
        }
    }

    #[test]
    fn the_parts_of_a_directory_end_where_a_layer_is_opaque() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["top/d/.wh.gone", "top/opaque/.wh..wh..opq", "below/d/gone", "below/opaque/hidden"] {
            std::fs::create_dir_all(at(name).parent().unwrap()).unwrap();
            std::fs::write(at(name), "").unwrap();
        }
        let union = Union::builder().lower(at("top")).lower(at("below")).build().unwrap();
        let alone = Union::builder().lower(at("below")).build().unwrap();
        let parts =
            |union: &Union, path: &str| union.lower_parts(union.lookup_path(path.as_ref()).unwrap().id).unwrap();
        assert_eq!(parts(&union, "/d")[1..], parts(&alone, "/d"));
        assert_eq!((parts(&union, "/d").len(), parts(&union, "/opaque").len()), (2, 1));
        let names = |path: &str| union.names_of_topmost_part(union.lookup_path(path.as_ref()).unwrap().id).unwrap();
        assert_eq!(names("/d"), ["gone"]);
        assert_eq!((names("/opaque").len(), names("/").len()), (0, 2));
    }
}

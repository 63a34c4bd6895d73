//! Hard links and symbolic links.

use std::ffi::OsString;
use std::os::fd::AsFd;

use rustix::io::Errno;

use super::copy_up::Data;
use super::create::{Vacancy, forget_mark};
use super::inode::NodeId;
use super::lookup::Entry;
use super::{FileKind, Union, dir_of};
use crate::error::{Error, Result};
use crate::layer::name::Name;
use crate::layer::upper::Place;

impl Union {
    /// Gives the file `id` another name, `name` in `parent`, and counts as a lookup of it.
    ///
    /// Errors: EEXIST, EPERM for a directory, ENOENT for a file whose last name is gone, EMLINK.
    pub fn link(&self, id: NodeId, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        let inode = self.inode(id)?;
        if inode.dir().is_some() {
            return Err(Error::Refused(Errno::PERM));
        }
        if name.is_reserved() {
            return Err(Error::Refused(Errno::INVAL));
        }
        let parent = self.directory(parent)?;
        self.ensure_upper(&parent)?;
        self.copy_up(&inode, Data::Metadata)?;
        let _names = dir_of(&parent)?.lock.write();
        let vacancy = self.vacancy(&parent, &name)?;
        self.settle_count_of(&inode)?;
        let upper = self.writable()?;
        let dir = self.upper_dir(&parent)?;
        if self.stat(&inode)?.nlink == 0 {
            // A copy without a name could be given one; the file it is a copy of lost its last.
            return Err(Error::Refused(Errno::NOENT));
        }
        let source = self.pin(&inode)?;
        let (place, _) = inode.place();
        if let Some(home) = &place.parent {
            self.lead_metacopy_below(upper, Place::file(source.as_fd()), &inode, (home, &place.name))?;
        }
        if inode.from_below {
            // Before the name, so that its number is the lower file's in every listing.
            self.mark_impure(upper, &parent)?;
        }
        inode.note_links_change();
        let linked = upper.link_file(source.as_fd(), dir.as_fd(), &name, vacancy.publish());
        linked.map_err(|e| upper.layer.error("linkat", &name, e))?;
        if vacancy == Vacancy::Hidden {
            forget_mark(upper, dir.as_fd(), &name);
        }
        dir_of(&parent)?.changed();
        self.charge(&[&parent, &inode]);
        self.drop_place(inode.relocate_if_unlinked(&parent, &name));
        inode.note_name(&parent, &name);
        // By what was linked where that fails: the name is there.
        let attr = self.stat(&inode).or_else(|_| self.stat_open(source.as_fd()).map(|attr| inode.finish(attr)))?;
        Ok(self.entry(self.table.count(&inode), &inode, attr))
    }

    /// Reads the target of a symbolic link. Errors: EINVAL for anything else.
    pub fn readlink(&self, id: NodeId) -> Result<OsString> {
        let inode = self.inode(id)?;
        if inode.kind != FileKind::Symlink {
            return Err(Error::Refused(Errno::INVAL));
        }
        self.with_object(&inode, |layer, dir, name| {
            layer.read_link(dir, name).map_err(|e| layer.error("readlinkat", name, e))
        })
    }
}

//! The descriptors that are kept of the data of files, each for whoever reads,
//! writes or changes the same file next.
//!
//! They are opened without a lock, by the place that an inode had then, so that a copy-up or a rename may come between. Two
//! things keep the old file from those who come after it: what was opened is kept only while that place is current, and
//! whoever has put another object in its place closes what was kept before.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::inode::Inode;
use crate::error::Result;
use crate::layer::dir::Serial;
use crate::layer::fds::{FdCache, Hits};
use crate::sys::sync::yield_now;

/// What a descriptor is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Access {
    /// Reading.
    Read,
    /// Writing, and reading where the file allows it.
    Write,
}

/// Descriptors by inode and what they are good for.
#[derive(Debug)]
pub(super) struct KeptFiles(FdCache<(Serial, Access)>);

impl KeptFiles {
    /// Keeps about `capacity` descriptors.
    pub fn new(capacity: usize) -> Self {
        Self(FdCache::new(capacity))
    }

    /// Returns the descriptor that is kept of `inode` for `access`.
    pub fn get(&self, inode: &Inode, access: Access) -> Option<Arc<OwnedFd>> {
        self.0.get(&(inode.serial, access))
    }

    /// Returns the descriptor that is kept, or what `open` opens, which also says whether it can be read from.
    pub fn get_or_open(
        &self,
        inode: &Inode,
        access: Access,
        mut open: impl FnMut() -> Result<(OwnedFd, bool)>,
    ) -> Result<Arc<OwnedFd>> {
        if let Some(fd) = self.get(inode, Access::Write) {
            return Ok(fd);
        }
        if access == Access::Read
            && let Some(fd) = self.get(inode, Access::Read)
        {
            return Ok(fd);
        }
        loop {
            let (_, version) = inode.place();
            let (fd, readable) = open()?;
            let fd = Arc::new(fd);
            // Readers are given what is kept for writers.
            if !readable || self.keep_of(inode, version, access, &fd) {
                return Ok(fd);
            }
            yield_now();
        }
    }

    /// Keeps a descriptor of an inode whose object nobody can have switched yet.
    pub fn keep(&self, inode: &Inode, access: Access, fd: Arc<OwnedFd>) {
        inode.note_descriptor(true);
        self.0.insert((inode.serial, access), fd);
    }

    /// Keeps `fd`, opened by the place of this `version`, unless that has changed; returns whether it has not.
    pub fn keep_of(&self, inode: &Inode, version: u32, access: Access, fd: &Arc<OwnedFd>) -> bool {
        // First: whoever switches the object sees that something may be kept, or what comes next sees the switch.
        inode.note_descriptor(true);
        self.0.insert_if((inode.serial, access), fd.clone(), || inode.is_at(version))
    }

    /// Closes what was kept before the object of `inode` was switched.
    pub fn switched(&self, inode: &Inode) {
        if inode.note_descriptor(false) {
            self.close(inode.serial);
        }
    }

    /// Closes what is kept of an inode.
    pub fn close(&self, serial: Serial) {
        self.0.remove(&(serial, Access::Read));
        self.0.remove(&(serial, Access::Write));
    }

    /// Closes all.
    pub fn clear(&self) {
        self.0.clear();
    }

    /// Returns how often what was asked for was kept.
    pub fn asked(&self) -> Hits {
        self.0.asked()
    }

    /// Returns how many are kept.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// What is kept, under every order of its steps: run by `scripts/conformance models`.
///
/// They fail, as they should, where `keep_of` keeps whatever the version, where it looks at the version before it notes the
/// descriptor, where it keeps first and looks, and closes, after that, and where `switched` closes nothing.
#[cfg(test)]
#[cfg(loom)]
mod loom_models {
    use std::fs::File;

    use super::super::inode::{Ino, NodeId, Parts, Place, Real};
    use super::*;
    use crate::layer::attr::FileKind;
    use crate::sys::sync::{Mutex, explore};

    const OLD: &str = "/dev/null";
    const NEW: &str = "/dev/zero";

    /// A file whose object is the old one, until it is switched to the new one in upper.
    struct Switch {
        inode: Arc<Inode>,
        kept: KeptFiles,
    }

    impl Switch {
        fn new() -> Arc<Self> {
            let real = Real::Index(Arc::new("old".into()));
            let place = Place {
                parent: None,
                name: std::ffi::OsStr::new("name").into(),
                real,
                unlinked: false,
                resident: false,
            };
            let parts = Parts {
                ino: Ino(5),
                kind: FileKind::Regular,
                place,
                from_below: true,
                upper_ino: 0,
                nlink_delta: None,
                dir: None,
            };
            Arc::new(Self { inode: Inode::new(NodeId(5), parts), kept: KeptFiles::new(8) })
        }

        /// Opens for reading as `Union::data_file` does; returns whether it is the new file.
        fn read(&self) -> bool {
            self.read_by(|| matches!(self.inode.place().0.real, Real::Upper))
        }

        fn read_by(&self, is_new: impl Fn() -> bool) -> bool {
            let open = || Ok((File::open(if is_new() { NEW } else { OLD }).unwrap().into(), true));
            let device = |file: &OwnedFd| rustix::fs::fstat(file).unwrap().st_rdev;
            let fd = self.kept.get_or_open(&self.inode, Access::Read, open).unwrap();
            device(&fd) == device(&File::open(NEW).unwrap().into())
        }

        /// Switches as `Union::switch` does.
        fn switch(&self) {
            drop(self.inode.relocate(|place| place.real = Real::Upper));
            self.kept.switched(&self.inode);
        }
    }

    #[test]
    fn after_a_switch_nobody_reads_the_old_file() {
        explore(|| {
            let file = Switch::new();
            let reader = loom::thread::spawn({
                let file = file.clone();
                move || file.read()
            });
            file.switch();
            assert!(file.read(), "whoever has switched the file reads the old one");
            reader.join().unwrap();
            assert!(file.read(), "the old file is kept for good");
        });
    }

    #[test]
    fn after_a_switch_nobody_reads_the_old_file_of_two_readers() {
        explore(|| {
            let file = Switch::new();
            let readers = [(); 2].map(|()| {
                let file = file.clone();
                loom::thread::spawn(move || file.read())
            });
            file.switch();
            assert!(file.read(), "whoever has switched the file reads the old one");
            for reader in readers {
                reader.join().unwrap();
            }
            assert!(file.read(), "the old file is kept for good");
        });
    }

    /// Another file takes the name by which ours is opened: for a while the name leads to it, and the inode does not know.
    #[test]
    fn nobody_reads_the_file_that_takes_the_name() {
        explore(|| {
            let file = Switch::new();
            let name_is_of_another = Arc::new(Mutex::new(false));
            let read = {
                let (file, name) = (file.clone(), name_is_of_another.clone());
                move || file.read_by(|| !matches!(file.inode.place().0.real, Real::Upper) && *name.lock())
            };
            let reader = loom::thread::spawn(read.clone());
            let leaving = file.inode.moving();
            *name_is_of_another.lock() = true;
            // By a descriptor of its own it is found whatever has its name.
            drop(file.inode.relocate(|place| place.real = Real::Upper));
            drop(leaving);
            assert!(!read(), "another file is read after the name was taken");
            assert!(!reader.join().unwrap(), "another file is read while the name is taken");
        });
    }
}

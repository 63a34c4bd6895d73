//! Whether an origin is a file of the lower layers.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;

use crate::layer::attr::FileKind;
use crate::layer::dir::Lowers;
use crate::layer::directory::Identity;
use crate::layer::origin::Origin;
use crate::sys::fhandle;

/// A lower layer's file system.
struct Mounted {
    dev: (u32, u32),
    uuid: [u8; 16],
    /// Its root, open for reading: handles are not opened by a descriptor with O_PATH.
    root: OwnedFd,
    /// Whether its files are what they seem.
    plain: bool,
    /// Whether its handles can be relied on.
    handles: bool,
}

/// The file systems of the lower layers.
pub(super) struct Origins(Vec<Mounted>);

/// What can be said of an origin.
pub(super) enum Verdict {
    /// It is a file of the lower layers' file systems.
    There(There),
    /// Nothing: opening handles takes CAP_DAC_READ_SEARCH.
    Unknown,
    /// It cannot be read.
    Invalid,
    /// It is no file of theirs.
    Gone,
}

/// A file that an origin leads to.
pub(super) struct There {
    pub identity: Option<Identity>,
    pub dev: (u32, u32),
    pub ino: u64,
    pub nlink: u32,
}

impl Origins {
    /// Opens the file systems of `lowers`.
    pub fn of(lowers: &Lowers) -> Self {
        let mut known: Vec<Mounted> = Vec::new();
        for (layer, root) in lowers.layers().iter().zip(lowers.roots()) {
            let plain = layer.overrides.is_none();
            if let Some(known) = known.iter_mut().find(|known| known.dev == root.dev) {
                known.plain &= plain;
                continue;
            }
            // Where it cannot be opened nothing is said about its files.
            if let Ok(fd) = layer.open_listing(layer.root()) {
                known.push(Mounted { dev: root.dev, uuid: layer.uuid, root: fd, plain, handles: layer.handles });
            }
        }
        Self(known)
    }

    /// Judges the value of an origin of a file of `kind`.
    ///
    /// An empty one is what is written where the lower file system has no handles.
    pub fn judge(&self, value: &[u8], kind: Option<FileKind>) -> Verdict {
        if value.is_empty() {
            return Verdict::Unknown;
        }
        let Some(origin) = Origin::decode(value) else { return Verdict::Invalid };
        // Zeros mean that the uuid was not known: by who wrote it, or here.
        let may_be = |on: &&Mounted| on.uuid == origin.uuid || [on.uuid, origin.uuid].contains(&Origin::NO_UUID);
        for on in self.0.iter().filter(may_be) {
            if !on.handles {
                return Verdict::Unknown;
            }
            let file = match fhandle::open_by_handle(on.root.as_fd(), &origin.handle) {
                Ok(file) => file,
                // ESTALE, and EINVAL for a handle of a form that the file system does not have.
                Err(Errno::STALE | Errno::NOENT | Errno::INVAL) => continue,
                Err(_) => return Verdict::Unknown,
            };
            let Ok(stat) = rustix::fs::statat(&file, OsStr::new(""), rustix::fs::AtFlags::EMPTY_PATH) else {
                return Verdict::Unknown;
            };
            let found = FileKind::from_mode(stat.st_mode);
            if on.plain && kind.is_some_and(|kind| kind != found) {
                continue;
            }
            return Verdict::There(There {
                identity: Identity::of(file.as_fd()).ok(),
                dev: on.dev,
                ino: stat.st_ino,
                nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            });
        }
        Verdict::Gone
    }
}

//! One layer: what a directory tree on disk says about a name, and how the upper one is written.
//!
//! A layer's bytes are hostile: every name is resolved as one component that is no symbolic link, and
//! nothing mounted on or inside a layer is entered. Whether an answer means that lower layers shine
//! through is for the union to say.

pub mod acl;
pub mod attr;
pub mod descent;
pub mod dir;
pub mod directories;
pub mod directory;
pub mod durability;
pub mod fds;
pub mod features;
pub mod name;
pub mod origin;
pub mod overlay;
pub mod override_stat;
pub mod permissions;
pub mod publish;
pub mod redirect;
pub mod upper;
pub mod whiteout;
pub mod workdir;

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use crate::config::{NOBODY, Owners};
use crate::error::{Error, Result};
use crate::sys::fhandle;
use crate::sys::mount::Limit;
use crate::sys::proc_path;
use attr::Attr;
use directory::Directory;
use origin::Origin;
use override_stat::Store;

/// The position of a layer in the union: 0 is upper, the lowers follow from the topmost down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LayerId(pub u16);

impl LayerId {
    /// The writable layer.
    pub const UPPER: Self = Self(0);
}

/// A directory tree that a union is made of.
#[derive(Debug)]
pub struct Layer {
    /// Where it stands in the union.
    pub id: LayerId,
    /// Its path as it was given, for messages.
    pub path: PathBuf,
    /// The uuid of its file system, zeros where it has none, as overlayfs writes it into handles.
    pub uuid: [u8; 16],
    /// Whether its file system has file handles that tell which file they are of, also after it was unmounted.
    pub handles: bool,
    /// Where owners and modes are kept, if not with the files.
    pub overrides: Option<Store>,
    /// What the mount that the layer is on shows for the owners that are stored, where it is idmapped.
    pub idmap: Option<Arc<Owners>>,
    /// Whether attributes are asked of the file system each time, because it caches them for each name of a file.
    pub fresh: bool,
    /// Whether its file system is one of those that are known to be local: a read goes through the page cache, so that it is
    /// cut short by the file's end, or else between two pages; and a directory that does not change is listed in one order.
    pub local: bool,
    /// Whether reading it, by whoever, changes no access time.
    pub quiet: bool,
    /// Whether its files can be opened with O_DIRECT.
    pub direct: bool,
    /// Whether upper may share data of its files (FICLONE), as far as is known.
    pub clones: AtomicBool,
    root: OwnedFd,
    private: bool,
    deviceless: bool,
    /// Whether each opening is confined to the mount of the layer by openat2(2).
    confined: bool,
}

/// Below a mount, and through nothing that leads out of it.
const CONFINED: ResolveFlags = ResolveFlags::NO_XDEV.union(ResolveFlags::NO_MAGICLINKS);

/// As [`CONFINED`], for what is more than one component.
const BENEATH: ResolveFlags = CONFINED.union(ResolveFlags::BENEATH).union(ResolveFlags::NO_SYMLINKS);

/// What statfs(2) says of a FUSE file system.
const FUSE_SUPER_MAGIC: rustix::fs::FsWord = 0x6573_5546;

/// The longest target of a symbolic link (PATH_MAX without the final zero).
const TARGET_MAX: usize = 4095;

/// How a layer's root was opened.
pub struct Root {
    /// An O_PATH descriptor of the root.
    pub fd: OwnedFd,
    /// Whether it belongs to a clone of the mount that nothing is mounted in.
    pub private: bool,
    /// Whether reading below it, by whoever, changes no access time.
    pub quiet: bool,
    /// Whether no device below it can be opened.
    pub deviceless: bool,
}

impl Root {
    /// Opens `directory` as a private clone of its mount, or as it is where that is not allowed.
    ///
    /// The clone is limited to `limit` where the kernel can, as overlayfs limits its own: then even a mistake of ours,
    /// or a read through the kernel's passthrough, leaves a lower layer as it is.
    pub fn of(directory: Directory, limit: Limit) -> Self {
        let clone = rustix::mount::open_tree(
            directory.fd(),
            "",
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH,
        );
        match clone {
            Ok(fd) => {
                let limited = crate::sys::mount::limit(fd.as_fd(), limit);
                if let Err(errno) = limited {
                    log::info!("{}: its private mount cannot be limited: {errno}", directory.name().display());
                }
                let deviceless = limited.is_ok();
                Self { fd, private: true, quiet: deviceless && limit != Limit::NoDevices, deviceless }
            }
            // EPERM without CAP_SYS_ADMIN over the mount namespace, EINVAL where another namespace has locked
            // mounts below, ENOSYS before Linux 5.2: then resolution stops at mounts instead.
            Err(_) => Self::plain(directory),
        }
    }

    /// Takes `directory` as it is, in the mount that it is in.
    pub fn plain(directory: Directory) -> Self {
        Self { fd: directory.into_fd(), private: false, quiet: false, deviceless: false }
    }
}

/// The types of file systems that more than one thing here depends on: statfs(2), `include/uapi/linux/magic.h`.
///
/// ext2 and ext3 have that of ext4.
const EXT4: rustix::fs::FsWord = 0xef53;
const XFS: rustix::fs::FsWord = 0x5846_5342;
const BTRFS: rustix::fs::FsWord = 0x9123_683e;
const TMPFS: rustix::fs::FsWord = 0x0102_1994;
const F2FS: rustix::fs::FsWord = 0xf2f5_2010;

/// Finds out whether the file system of `root` is known to be local, and none of FUSE, 9p and the network's.
fn is_local(root: BorrowedFd<'_>) -> bool {
    /// The last three are ramfs, erofs and squashfs.
    const LOCAL: [rustix::fs::FsWord; 8] = [EXT4, XFS, BTRFS, TMPFS, F2FS, 0x8584_58f6, 0xe0f5_e1e2, 0x7371_7368];
    is_on(root, &LOCAL)
}

/// Finds out whether the file system of `root` is known to open files with O_DIRECT: squashfs and others answer EINVAL.
fn takes_direct(root: BorrowedFd<'_>) -> bool {
    /// tmpfs since Linux 6.6.
    const DIRECT: [rustix::fs::FsWord; 5] = [EXT4, XFS, BTRFS, TMPFS, F2FS];
    is_on(root, &DIRECT)
}

/// Returns whether `root` is on a file system of one of these types.
fn is_on(root: BorrowedFd<'_>, types: &[rustix::fs::FsWord]) -> bool {
    rustix::fs::fstatfs(root).is_ok_and(|fs| types.contains(&fs.f_type))
}

/// Finds out whether the handles of the file system of `root` can be relied on.
///
/// Those of FUSE cannot: a server gives the numbers in them to other files when it is started anew. And of those whose
/// form is not known it cannot be said which file they are of.
fn has_handles(root: BorrowedFd<'_>, uuid: [u8; 16]) -> bool {
    let own = OsStr::new("");
    let Ok(handle) = fhandle::name_to_handle(root, own) else { return false };
    let number = Origin { uuid, handle }.inode_number();
    let stat = rustix::fs::statx(root, own, AtFlags::EMPTY_PATH, StatxFlags::INO);
    !is_on(root, &[FUSE_SUPER_MAGIC]) && stat.is_ok_and(|stat| number == Some(stat.stx_ino))
}

/// Finds out whether openat2(2) can be used below `root`; where it cannot, `stat` alone tells mountpoints.
fn can_confine(root: BorrowedFd<'_>, path: &Path) -> bool {
    match rustix::fs::openat2(root, ".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), CONFINED) {
        // Before Linux 5.6; or under a seccomp filter that does not know it, or answers EPERM to all that it forbids.
        Err(errno @ (Errno::NOSYS | Errno::PERM)) => {
            log::info!("{}: openat2(2) cannot be used: {errno}", path.display());
            false
        }
        _ => true,
    }
}

/// Returns `fd` if it is of a regular file. Errors: ESTALE.
fn regular(fd: OwnedFd) -> rustix::io::Result<OwnedFd> {
    let mode = rustix::fs::fstat(&fd)?.st_mode;
    if FileType::from_raw_mode(mode) == FileType::RegularFile { Ok(fd) } else { Err(Errno::STALE) }
}

impl Layer {
    /// Makes a layer of an opened root.
    pub fn new(id: LayerId, path: &Path, root: Root) -> Result<Self> {
        let readable =
            rustix::fs::openat(&root.fd, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|errno| {
                    Error::setup(path, format!("cannot be read: {errno}"), "make it readable for the user that mounts")
                        .because(errno)
                })?;
        // overlayfs writes zeros for a file system without a uuid, and so do we.
        let uuid = fhandle::filesystem_uuid(readable.as_fd()).unwrap_or_default();
        let handles = has_handles(root.fd.as_fd(), uuid);
        let local = is_local(root.fd.as_fd());
        let confined = !root.private && can_confine(root.fd.as_fd(), path);
        let overrides = Store::of_root(root.fd.as_fd())
            .map_err(|e| Error::setup(path, format!("its xattrs cannot be read: {e}"), "check the file system"))?;
        Ok(Self {
            id,
            path: path.to_owned(),
            uuid,
            clones: AtomicBool::new(true),
            local,
            quiet: root.quiet,
            direct: takes_direct(root.fd.as_fd()),
            handles,
            overrides,
            idmap: None,
            fresh: false,
            root: root.fd,
            private: root.private,
            deviceless: root.deviceless,
            confined,
        })
    }

    /// Returns the O_PATH descriptor of the layer's root.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Returns whether the layer is a private clone of its mount.
    pub fn is_private(&self) -> bool {
        self.private
    }

    /// Returns the layer's name in messages.
    pub fn label(&self) -> String {
        if self.id == LayerId::UPPER { "upper".into() } else { format!("lower{}", self.id.0 - 1) }
    }

    /// Wraps `errno` of `call` on `name`.
    pub fn error(&self, call: &'static str, name: &OsStr, errno: Errno) -> Error {
        Error::call(call, self.label(), name, errno)
    }

    /// Reads the attributes of `name` in `dir` as the layer has them; an empty name is `dir` itself.
    ///
    /// Errors: ENOENT, EXDEV for something mounted inside a layer that could not be cloned, EIO for a garbled xattr
    /// of owner and mode.
    pub fn stat(&self, dir: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<Attr> {
        let attr = self.stat_file(dir, name)?;
        match self.overrides {
            Some(store) => store.apply(dir, name, attr),
            None => Ok(attr),
        }
    }

    /// Reads the attributes that the file itself has, whatever the layer keeps elsewhere, as [`Layer::stat`].
    pub fn stat_file(&self, dir: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<Attr> {
        let at = if name.is_empty() { AtFlags::EMPTY_PATH } else { AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT };
        let at = if self.fresh { at | AtFlags::STATX_FORCE_SYNC } else { at };
        let statx = rustix::fs::statx(dir, name, at, StatxFlags::BASIC_STATS)?;
        if !self.private && !name.is_empty() && statx.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            return Err(Errno::XDEV);
        }
        let mut attr = Attr::from(&statx);
        if let Some(owners) = &self.idmap {
            attr.uid = owners.uids.stored(attr.uid).unwrap_or(NOBODY);
            attr.gid = owners.gids.stored(attr.gid).unwrap_or(NOBODY);
        }
        Ok(attr)
    }

    /// Returns whether `name` in `dir` is a device that marks a removed name.
    pub fn is_char_whiteout(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<bool> {
        self.stat_file(dir, name).map(|attr| attr.is_char_whiteout()).map_err(|e| self.error("statx", name, e))
    }

    /// Reads the target of the symbolic link `name` in `dir`; with an empty name `dir` is the link, opened with O_PATH.
    pub fn read_link(&self, dir: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<OsString> {
        match rustix::fs::readlinkat(dir, name, Vec::new()) {
            Ok(target) => Ok(OsString::from_vec(target.into_bytes())),
            // A plain file that stands for a link holds the target. ENOENT: what an empty name is to one that is no link.
            Err(Errno::INVAL | Errno::NOENT) if self.overrides.is_some_and(Store::keeps_links_in_files) => {
                // Without waiting: what stands there may have become a pipe.
                let flags = OFlags::RDONLY | OFlags::NONBLOCK;
                let file = if name.is_empty() {
                    rustix::fs::open(proc_path(dir), flags | OFlags::CLOEXEC, Mode::empty())?
                } else {
                    self.open_noatime(dir, name, flags)?
                };
                let mut target = vec![0; TARGET_MAX];
                let len = rustix::io::pread(&file, &mut target, 0)?;
                target.truncate(len);
                Ok(OsString::from_vec(target))
            }
            Err(errno) => Err(errno),
        }
    }

    /// Opens the directory `name` in `dir` with O_PATH.
    pub fn open_dir(&self, dir: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<OwnedFd> {
        self.open(dir, name, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// Opens `name` in `dir`, one component that is no symbolic link (with O_PATH it may be one).
    pub fn open(&self, dir: BorrowedFd<'_>, name: &OsStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if self.confined {
            return rustix::fs::openat2(dir, name, flags, Mode::empty(), CONFINED);
        }
        rustix::fs::openat(dir, name, flags, Mode::empty())
    }

    /// Opens the regular file `name` in `dir`. What has become something else since it was looked at is not waited for, as a
    /// pipe would be, and not opened, as a device would be.
    ///
    /// Errors: ESTALE where it is no regular file.
    pub fn open_file(&self, dir: BorrowedFd<'_>, name: &OsStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        if self.deviceless {
            match self.open(dir, name, flags | OFlags::NONBLOCK) {
                // EAGAIN: somebody has a lease on it (fcntl(2)), which is waited for once it is known to be a file.
                // EACCES: perhaps a device. ENXIO: a pipe that nobody reads, or a socket. ELOOP: a symbolic link.
                Err(Errno::AGAIN | Errno::ACCESS | Errno::NXIO | Errno::LOOP | Errno::ISDIR) => {}
                opened => return opened.and_then(regular),
            }
        }
        let pinned = regular(self.open(dir, name, OFlags::PATH)?)?;
        rustix::fs::open(proc_path(&pinned), flags | OFlags::CLOEXEC, Mode::empty())
    }

    /// Opens the regular file `name` in `dir` as [`Layer::open_file`] and [`Layer::open_noatime`] do.
    pub fn open_file_noatime(&self, dir: BorrowedFd<'_>, name: &OsStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        match self.open_file(dir, name, flags | OFlags::NOATIME) {
            Err(Errno::PERM) => self.open_file(dir, name, flags),
            done => done,
        }
    }

    /// Returns whether the directory `name` in `dir` has `entry`; false where this user may not look into it.
    ///
    /// Errors: ELOOP where `name` has become a symbolic link.
    pub fn has_entry(&self, dir: BorrowedFd<'_>, name: &OsStr, entry: &OsStr) -> rustix::io::Result<bool> {
        let path = [name.as_bytes(), b"/", entry.as_bytes()].concat();
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = match rustix::fs::openat2(dir, OsStr::from_bytes(&path), flags, Mode::empty(), BENEATH) {
            // As in `can_confine`.
            Err(Errno::NOSYS | Errno::PERM) => {
                self.open_dir(dir, name).and_then(|inner| self.stat_file(inner.as_fd(), entry).map(drop))
            }
            done => done.map(drop),
        };
        match found {
            Ok(()) => Ok(true),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Opens `name` in `dir` for reading, without touching its access time where this user may choose that.
    pub fn open_noatime(&self, dir: BorrowedFd<'_>, name: &OsStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        match self.open(dir, name, flags | OFlags::NOATIME) {
            // Only the owner may (or CAP_FOWNER); others read with the access time of the mount.
            Err(Errno::PERM) => self.open(dir, name, flags),
            done => done,
        }
    }

    /// Opens the directory behind `dir` for reading its entries.
    pub fn open_listing(&self, dir: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
        self.open_noatime(dir, OsStr::new("."), OFlags::RDONLY | OFlags::DIRECTORY)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::CWD;

    use super::*;

    /// A layer with one of each kind, as a private clone of its mount where that is allowed, and as it is.
    fn layers() -> (tempfile::TempDir, Vec<Layer>) {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "data").unwrap();
        std::fs::create_dir_all(at("dir/inner")).unwrap();
        std::fs::create_dir(at("empty")).unwrap();
        symlink("file", at("link")).unwrap();
        symlink("dir", at("dirlink")).unwrap();
        rustix::fs::mknodat(CWD, at("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let open = || Directory::at(dir.path()).unwrap();
        let roots = [Root::of(open(), Limit::NoDevices), Root::plain(open())];
        let layers = roots.map(|root| Layer::new(LayerId(1), dir.path(), root).unwrap());
        (dir, layers.into())
    }

    #[test]
    fn only_a_regular_file_is_opened_for_its_data_and_nothing_is_waited_for() {
        let (dir, layers) = layers();
        // Where root runs the tests, and devices can be made.
        let null = rustix::fs::makedev(1, 3);
        let device = rustix::fs::mknodat(CWD, dir.path().join("null"), FileType::CharacterDevice, Mode::RUSR, null);
        for layer in layers {
            for flags in [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR] {
                let open = |name: &str| layer.open_file(layer.root(), OsStr::new(name), flags).map(drop);
                assert_eq!(open("file"), Ok(()));
                assert_eq!(open("pipe"), Err(Errno::STALE));
                assert_eq!(open("link"), Err(Errno::STALE));
                assert_eq!(open("dir"), Err(Errno::STALE));
                if device.is_ok() {
                    assert_eq!(open("null"), Err(Errno::STALE));
                }
            }
            let read = layer.open_file_noatime(layer.root(), OsStr::new("file"), OFlags::RDONLY).unwrap();
            assert_eq!(rustix::io::read(&read, &mut [0; 8]), Ok(4));
        }
    }

    #[test]
    fn an_entry_is_looked_for_in_a_directory_and_not_where_a_link_leads() {
        for layer in layers().1 {
            let has = |name: &str, entry: &str| layer.has_entry(layer.root(), OsStr::new(name), OsStr::new(entry));
            assert_eq!(has("dir", "inner"), Ok(true));
            assert_eq!(has("empty", "inner"), Ok(false));
            assert_eq!(has("file", "inner"), Ok(false));
            assert_eq!(has("dirlink", "inner"), Err(Errno::LOOP));
        }
    }
}

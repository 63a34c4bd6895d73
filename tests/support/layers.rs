//! Layers on disk, and short ways to fill them and look at them.

use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode as Bits, XattrFlags, mknodat};
use rustix::mount::{MountFlags, UnmountFlags};

use super::mount::{Io, Spec};
use super::privilege::{Privilege, privilege};

/// Where the layers of a test are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// All on the file system of the test directory.
    OneFs,
    /// The lowers with an even number on a tmpfs, the rest with the upper.
    TwoFs,
}

/// A tmpfs that is unmounted when it goes.
#[derive(Debug)]
pub struct Tmpfs {
    at: PathBuf,
}

impl Tmpfs {
    /// Mounts a tmpfs at `at`, which is made, with `options` as in tmpfs(5).
    pub fn mount(at: &Path, options: &str) -> io::Result<Self> {
        fs::create_dir_all(at)?;
        let options = CString::new(options)?;
        rustix::mount::mount("tmpfs", at, "tmpfs", MountFlags::empty(), Some(options.as_c_str()))?;
        Ok(Self { at: at.to_owned() })
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        if let Err(errno) = rustix::mount::unmount(&self.at, UnmountFlags::DETACH) {
            eprintln!("cannot unmount the tmpfs {}: {errno}", self.at.display());
        }
    }
}

/// Numbered lowers (0 is the topmost), an upper, a workdir and a mountpoint in a directory of
/// their own, which is removed at the end.
#[derive(Debug)]
pub struct Layers {
    // Fields drop in order: the tmpfs goes before the directory that it is mounted in.
    second_fs: Option<Tmpfs>,
    lowers: Vec<PathBuf>,
    root: tempfile::TempDir,
}

impl Layers {
    /// Makes `lowers` empty lower directories, an upper, a workdir and a mountpoint.
    ///
    /// Panics where the second file system cannot be mounted: ask [`super::Mode::obstacle`] first.
    pub fn new(lowers: usize, placement: Placement) -> Self {
        let root = match std::env::var_os("UNIONFS_TEST_DIR") {
            Some(dir) => tempfile::TempDir::with_prefix_in("unionfs-rs-", dir),
            None => tempfile::TempDir::with_prefix("unionfs-rs-"),
        }
        .expect("the test directory can be written");
        // Other users reach the mount, as the tests of permissions need.
        chmod(root.path(), 0o755);
        let second_fs = (placement == Placement::TwoFs)
            .then(|| Tmpfs::mount(&root.path().join("fs2"), "mode=755").expect("a tmpfs can be mounted"));
        let lowers: Vec<PathBuf> = (0..lowers)
            .map(|index| match &second_fs {
                Some(tmpfs) if index % 2 == 0 => tmpfs.at.join(format!("lower{index}")),
                _ => root.path().join(format!("lower{index}")),
            })
            .collect();
        let layers = Self { second_fs, lowers, root };
        for dir in layers.lowers.iter().map(PathBuf::as_path).chain([
            layers.path("upper").as_path(),
            &layers.path("work"),
            &layers.path("mnt"),
        ]) {
            fs::create_dir(dir).expect("the test directory can be written");
            chmod(dir, 0o755);
        }
        layers
    }

    /// Returns a path in the test's own directory.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.path().join(name)
    }

    /// Returns the lower with this number; 0 is the topmost.
    pub fn lower(&self, index: usize) -> Tree {
        Tree::at(&self.lowers[index])
    }

    /// Returns the lowers, topmost first.
    pub fn lowers(&self) -> &[PathBuf] {
        &self.lowers
    }

    /// Returns the upper.
    pub fn upper(&self) -> Tree {
        Tree::at(self.path("upper"))
    }

    /// Returns the workdir.
    pub fn work(&self) -> Tree {
        Tree::at(self.path("work"))
    }

    /// Returns the mountpoint.
    pub fn mnt(&self) -> PathBuf {
        self.path("mnt")
    }

    /// Returns the mount of these layers, upper and workdir included, to be changed or started.
    pub fn spec(&self, io: Io) -> Spec {
        Spec {
            lowers: self.lowers.clone(),
            upper: Some(self.path("upper")),
            work: Some(self.path("work")),
            at: self.mnt(),
            io,
            args: Vec::new(),
            kernel_options: Vec::new(),
            wrapper: Vec::new(),
            log: self.path("daemon.log"),
        }
    }
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("an own directory");
}

/// A directory tree, with short ways to fill it and look at it. Paths are relative to it; missing
/// parents are made.
#[derive(Clone, Debug)]
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// Takes the directory at `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Returns the path of `name` in this tree.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    /// Returns the tree's own directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn with_parents(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.path(name);
        let parent = path.parent().expect("a name below the root has a parent");
        fs::create_dir_all(parent).expect("parents can be made");
        path
    }

    /// Makes a file, mode 0644.
    pub fn file(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) -> &Self {
        let path = self.with_parents(name);
        fs::write(&path, content).expect("a file can be written");
        chmod(&path, 0o644);
        self
    }

    /// Makes a file with a mode.
    pub fn file_mode(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>, mode: u32) -> &Self {
        self.file(&name, content);
        chmod(&self.path(name), mode);
        self
    }

    /// Makes a file of `size` bytes that is one hole.
    pub fn sparse(&self, name: impl AsRef<Path>, size: u64) -> &Self {
        self.file(&name, "");
        let file = fs::OpenOptions::new().write(true).open(self.path(name)).expect("just made");
        file.set_len(size).expect("a file can be extended");
        self
    }

    /// Makes a directory, mode 0755.
    pub fn dir(&self, name: impl AsRef<Path>) -> &Self {
        self.dir_mode(name, 0o755)
    }

    /// Makes a directory with a mode.
    pub fn dir_mode(&self, name: impl AsRef<Path>, mode: u32) -> &Self {
        let path = self.with_parents(name);
        fs::create_dir_all(&path).expect("a directory can be made");
        chmod(&path, mode);
        self
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, name: impl AsRef<Path>, target: impl AsRef<Path>) -> &Self {
        std::os::unix::fs::symlink(target, self.with_parents(name)).expect("a link can be made");
        self
    }

    /// Makes a hard link `name` of `existing`.
    pub fn link(&self, existing: impl AsRef<Path>, name: impl AsRef<Path>) -> &Self {
        fs::hard_link(self.path(existing), self.with_parents(name)).expect("a link can be made");
        self
    }

    /// Makes a fifo, mode 0644.
    pub fn fifo(&self, name: impl AsRef<Path>) -> &Self {
        let path = self.with_parents(name);
        mknodat(CWD, &path, FileType::Fifo, Bits::from(0o644), 0).expect("a fifo can be made");
        self
    }

    /// Makes a whiteout as the kernel's overlayfs does: a character device 0:0.
    pub fn whiteout(&self, name: impl AsRef<Path>) -> &Self {
        let path = self.with_parents(name);
        mknodat(CWD, &path, FileType::CharacterDevice, Bits::empty(), 0)
            .expect("a 0:0 character device needs no privilege since Linux 5.8");
        self
    }

    /// Marks a directory, which is made, as opaque in the namespace that this process may write.
    pub fn opaque(&self, name: impl AsRef<Path>) -> &Self {
        self.dir(&name);
        self.overlay_xattr(name, "opaque", "y")
    }

    /// Sets an xattr.
    pub fn xattr(&self, name: impl AsRef<Path>, key: &str, value: impl AsRef<[u8]>) -> &Self {
        let path = self.path(name);
        rustix::fs::lsetxattr(&path, key, value.as_ref(), XattrFlags::empty())
            .unwrap_or_else(|errno| panic!("setxattr {key} of {}: {errno}", path.display()));
        self
    }

    /// Sets an overlay xattr, `trusted.overlay.KEY` as root and `user.overlay.KEY` else.
    pub fn overlay_xattr(&self, name: impl AsRef<Path>, key: &str, value: impl AsRef<[u8]>) -> &Self {
        self.xattr(name, &overlay_key(key), value)
    }

    /// Sets owner and group, of a symlink itself.
    pub fn owner(&self, name: impl AsRef<Path>, uid: u32, gid: u32) -> &Self {
        std::os::unix::fs::lchown(self.path(name), Some(uid), Some(gid)).expect("root may chown");
        self
    }

    /// Sets access and modification time, in seconds, of a symlink itself.
    pub fn times(&self, name: impl AsRef<Path>, seconds: i64) -> &Self {
        let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 123_456_789 };
        rustix::fs::utimensat(
            CWD,
            self.path(name),
            &rustix::fs::Timestamps { last_access: time, last_modification: time },
            rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
        )
        .expect("an own file's times can be set");
        self
    }

    /// Returns a file's content.
    pub fn read(&self, name: impl AsRef<Path>) -> Vec<u8> {
        let path = self.path(name);
        fs::read(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
    }

    /// Returns the attributes of `name` itself.
    pub fn stat(&self, name: impl AsRef<Path>) -> fs::Metadata {
        let path = self.path(name);
        fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("lstat {}: {error}", path.display()))
    }

    /// Returns the permission bits, suid, sgid and sticky included.
    pub fn mode(&self, name: impl AsRef<Path>) -> u32 {
        self.stat(name).mode() & 0o7777
    }

    /// Whether `name` itself exists, whatever it is.
    pub fn exists(&self, name: impl AsRef<Path>) -> bool {
        let path = self.path(name);
        match fs::symlink_metadata(&path) {
            Ok(_) => true,
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT) | Some(libc::ENOTDIR)) => false,
            Err(error) => panic!("lstat {}: {error}", path.display()),
        }
    }

    /// Returns the names in a directory, sorted.
    pub fn names(&self, name: impl AsRef<Path>) -> Vec<String> {
        let path = self.path(name);
        let mut names: Vec<String> = fs::read_dir(&path)
            .unwrap_or_else(|error| panic!("readdir {}: {error}", path.display()))
            .map(|entry| {
                let entry = entry.unwrap_or_else(|error| panic!("readdir {}: {error}", path.display()));
                entry.file_name().to_string_lossy().into_owned()
            })
            .collect();
        names.sort();
        names
    }

    /// Returns an xattr's value, or none where it is not set.
    pub fn get_xattr(&self, name: impl AsRef<Path>, key: &str) -> Option<Vec<u8>> {
        let path = self.path(name);
        let mut value = vec![0; 65536];
        match rustix::fs::lgetxattr(&path, key, &mut value) {
            Ok(length) => {
                value.truncate(length);
                Some(value)
            }
            // Not set, or a file system that has no xattrs: either way it is not there.
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => None,
            Err(errno) => panic!("getxattr {key} of {}: {errno}", path.display()),
        }
    }

    /// Returns an overlay xattr's value from the namespace that this process's mounts write.
    pub fn get_overlay_xattr(&self, name: impl AsRef<Path>, key: &str) -> Option<Vec<u8>> {
        self.get_xattr(name, &overlay_key(key))
    }

    /// Returns the names of all xattrs, sorted.
    pub fn xattr_names(&self, name: impl AsRef<Path>) -> Vec<String> {
        let path = self.path(name);
        let mut list = vec![0; 65536];
        let length = rustix::fs::llistxattr(&path, &mut list)
            .unwrap_or_else(|errno| panic!("listxattr of {}: {errno}", path.display()));
        list.truncate(length);
        let mut names: Vec<String> = list
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect();
        names.sort();
        names
    }

    /// Whether `name` is a whiteout, in any of the three formats.
    pub fn is_whiteout(&self, name: impl AsRef<Path>) -> bool {
        let name = name.as_ref();
        if self.is_char_whiteout(name) {
            return true;
        }
        let mut dot_wh = OsStr::from_bytes(b".wh.").to_owned();
        dot_wh.push(name.file_name().expect("a whiteout has a name"));
        if self.exists(name.with_file_name(dot_wh)) {
            return true;
        }
        self.exists(name)
            && ["trusted.overlay.whiteout", "user.overlay.whiteout"]
                .iter()
                .any(|key| self.get_xattr(name, key).is_some())
    }

    /// Whether `name` is a character device 0:0.
    pub fn is_char_whiteout(&self, name: impl AsRef<Path>) -> bool {
        let name = name.as_ref();
        self.exists(name) && {
            let stat = self.stat(name);
            stat.file_type().is_char_device() && stat.rdev() == 0
        }
    }

    /// Whether the directory is marked opaque, in any namespace.
    pub fn is_opaque(&self, name: impl AsRef<Path>) -> bool {
        let name = name.as_ref();
        ["trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque"]
            .iter()
            .any(|key| self.get_xattr(name, key).as_deref() == Some(b"y"))
            || self.exists(name.join(".wh..wh..opq"))
    }
}

/// Returns the full name of an overlay xattr in the namespace that this process may write.
fn overlay_key(key: &str) -> String {
    match privilege() {
        Privilege::Root => format!("trusted.overlay.{key}"),
        Privilege::UserNamespace | Privilege::Plain => format!("user.overlay.{key}"),
    }
}

//! What a union and a mount can be told, as types that cannot be wrong.
//!
//! Text is parsed into these at the edge (the command line); the inside does not check again.

mod ids;
mod lacking;
mod source;

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

pub use ids::{IdMap, IdMapError, IdRange, NOBODY, Owners};
pub use lacking::Lacking;
pub use source::Source;

/// The layers of a union and how they are read and written.
#[derive(Debug, Clone)]
pub struct UnionConfig {
    /// Read-only layer directories, topmost first.
    pub lowers: Vec<Source>,
    /// The writable layer; without one the union is read-only.
    pub upper: Option<Source>,
    /// A directory on upper's file system for unfinished things; by default one beside upper, which an upper needs a path
    /// for.
    pub work: Option<Source>,
    /// The most descriptors that are kept open to be used again, shared by upper's directories, the lowers' and data; no
    /// less than 48 are. By default three quarters of the limit on open files, and 49152 at most; the limit is raised as
    /// far as it goes for that.
    ///
    /// A process that has other descriptors, or several unions, gives each union its share; then the limit of the process
    /// stays as it is. Besides each layer takes one, each handle, and each file that was removed while in use.
    pub descriptors: Option<NonZeroUsize>,
    /// What waits for the disk.
    pub fsync: Fsync,
    /// How long an upper or workdir that another mount uses is waited for: one that is gone from the tree may still be
    /// ending.
    pub patience: Duration,
    /// Whether directories of lower layers can be renamed.
    pub redirect_dir: RedirectDir,
    /// Whether hard links of lower files stay linked after copy-up; `None` where upper can hold it.
    pub index: Option<bool>,
    /// Whether a change of metadata copies up metadata alone.
    pub metacopy: bool,
    /// How inode numbers of layers on several file systems are kept apart.
    pub xino: Xino,
    /// Where overlay xattrs are kept.
    pub xattr_namespace: XattrNamespace,
    /// How a removed name is marked in upper.
    pub whiteout_format: WhiteoutFormat,
    /// Whether reads update the access time of files in upper.
    pub atime: bool,
    /// The owners that are shown for those that the layers store.
    pub owners: Owners,
    /// Where upper keeps owners and modes.
    pub permissions: Permissions,
    /// Whether ACLs can be seen and set, and are inherited.
    pub acls: bool,
    /// Whether xattrs can be seen and set.
    pub xattrs: bool,
    /// Whether every directory is shown with one link, so that nobody counts its subdirectories.
    pub static_nlink: bool,
    /// Whether inode numbers have 32 bits.
    pub ino32: bool,
    /// The most that upper may hold.
    pub quota: QuotaLimits,
    /// What upper's file system is taken to lack.
    #[doc(hidden)]
    pub lacking: Lacking,
}

impl Default for UnionConfig {
    fn default() -> Self {
        Self {
            lowers: Vec::new(),
            upper: None,
            work: None,
            descriptors: None,
            fsync: Fsync::Auto,
            patience: Duration::ZERO,
            redirect_dir: RedirectDir::Auto,
            index: None,
            metacopy: false,
            xino: Xino::Auto,
            xattr_namespace: XattrNamespace::Auto,
            whiteout_format: WhiteoutFormat::Auto,
            atime: false,
            owners: Owners::default(),
            permissions: Permissions::Inode,
            acls: true,
            xattrs: true,
            static_nlink: false,
            ino32: false,
            quota: QuotaLimits::default(),
            lacking: Lacking::empty(),
        }
    }
}

/// The most that upper may hold; without either nothing is counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuotaLimits {
    /// Bytes that are allocated for files and directories.
    pub bytes: Option<u64>,
    /// Files and directories, each once whatever names it has.
    pub inodes: Option<u64>,
}

impl QuotaLimits {
    /// Returns whether there is any limit.
    pub fn is_set(self) -> bool {
        self.bytes.is_some() || self.inodes.is_some()
    }
}

/// What waits for the disk, in the words of the kernel's overlayfs (fsync=), and one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fsync {
    /// A copy-up, until power that is lost leaves the lower file or all of the copy; and fsync(2).
    Auto,
    /// The same, and each file and directory that is copied up is synced, also where metadata alone was copied.
    Strict,
    /// Nothing, and upper is marked so that no later mount takes what it holds for complete.
    Volatile,
    /// Nothing, and nothing says so to later mounts.
    Never,
}

/// Where the owner and the mode of a file in upper are kept.
///
/// An xattr lets a server that may not change owners, or whose file system does not keep them, show any; devices, pipes and
/// sockets, and where the xattr cannot be on them symbolic links, are plain files there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permissions {
    /// With the file, as everywhere.
    Inode,
    /// In the xattr `security.fuseoverlayfs.override_stat`, which needs CAP_SYS_ADMIN.
    Security,
    /// In the xattr `user.containers.override_stat`.
    User,
}

/// What becomes of directories that have been renamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedirectDir {
    /// `On` where upper can hold the xattr, else `Follow`.
    Auto,
    /// Redirects are written and followed.
    On,
    /// Redirects are followed and not written: renaming a lower directory is EXDEV.
    Follow,
    /// Redirects are neither written nor followed: a redirected directory answers EIO.
    NoFollow,
}

/// How the inode numbers of several file systems are kept apart.
///
/// FUSE has one device number a mount, so they always are; the choice is how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Xino {
    /// The layer's index in the high bits, a hash where they are taken.
    Auto,
    /// As `Auto`.
    On,
    /// Always a hash for layers that are not on upper's file system.
    Off,
}

/// The namespace of the overlay xattrs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrNamespace {
    /// `Trusted` with CAP_SYS_ADMIN in the initial user namespace, else `User`.
    Auto,
    /// `trusted.overlay.`
    Trusted,
    /// `user.overlay.`
    User,
}

/// How a removed name is marked in upper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhiteoutFormat {
    /// `Char` where upper takes one, else `Xattr` where upper holds xattrs, else `DotWh`; that too where upper's file
    /// system cannot exchange two names.
    Auto,
    /// A character device 0:0.
    Char,
    /// An empty file with the `overlay.whiteout` xattr.
    Xattr,
    /// An empty file named `.wh.NAME`.
    DotWh,
}

/// How the kernel is given the data of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoMode {
    /// `Passthrough` for root in the initial user namespace since Linux 6.12, where all layers are on file systems that serve
    /// whoever opens their files (ext4, xfs, btrfs, tmpfs, f2fs) and none notes who reads; else `Cached`.
    Auto,
    /// Through the page cache of the mount; files are opened without asking the server.
    Cached,
    /// As `Cached`, and what is written stays there, too, until the file is closed or synced, or half a minute is over: what
    /// has not come to upper is lost when the server dies, and an error such as ENOSPC is told when it comes there.
    ///
    /// `Cached` where each open is a handle: for a server that may not open every file again, and for [`Access::Root`].
    Writeback,
    /// Straight from the layer's file, where the kernel offers it (root, initial namespace).
    Passthrough,
}

/// The way of requests and answers between kernel and server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// `Ring` where the kernel offers it, else `Dev`.
    Auto,
    /// Reading and writing /dev/fuse.
    Dev,
    /// FUSE over io_uring: Linux 6.14, where root has set the parameter `enable_uring` of the module `fuse`.
    Ring,
}

/// Whether the kernel keeps the threads that serve requests to the layers, whatever a request or a layer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sandbox {
    /// By Landlock, where the kernel has it (Linux 5.19).
    Auto,
    /// Nothing keeps them.
    Off,
}

/// Who may use the mount besides the user that mounted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nobody.
    Owner,
    /// Root. The server checks that, so each open is a request and the kernel keeps no names and attributes.
    Root,
    /// Everybody.
    All,
}

/// Where mounts that are made below the mountpoint are seen besides: mount_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Nowhere.
    Private,
    /// In every namespace that shares it, and theirs here.
    Shared,
    /// Nowhere, but those of the namespace it came from are seen here.
    Slave,
}

/// How a union is mounted.
#[derive(Debug, Clone)]
pub struct MountConfig {
    /// The directory to mount on.
    pub mountpoint: PathBuf,
    /// How the kernel is given the data of files.
    pub io: IoMode,
    /// The way of requests and answers.
    pub transport: Transport,
    /// What keeps the threads that serve requests to the layers.
    pub sandbox: Sandbox,
    /// Threads that take requests from /dev/fuse; by default one for each processor, two at least.
    pub threads: Option<NonZeroUsize>,
    /// How long the kernel may keep a name.
    pub entry_timeout: Duration,
    /// How long the kernel may keep attributes.
    pub attr_timeout: Duration,
    /// How long the kernel may keep the absence of a name.
    pub negative_timeout: Duration,
    /// Who may use the mount.
    pub access: Access,
    /// Whether the kernel checks permissions by mode and ACL; where everybody may use the mount it does in any case.
    pub default_permissions: bool,
    /// Whether the mount itself is read-only.
    pub read_only: bool,
    /// Whether set-user-id and set-group-id bits are honoured.
    pub suid: bool,
    /// Whether device nodes are honoured.
    pub dev: bool,
    /// Whether programs may be executed.
    pub exec: bool,
    /// The most bytes of one write, where that is to be less than the most there can be.
    pub max_write: Option<NonZeroU32>,
    /// The SELinux context of every file, as `system_u:object_r:container_file_t:s0:c1,c2`.
    pub context: Option<String>,
    /// Whether mounts made below are seen in other namespaces; `None` leaves it as the directory above has it.
    pub propagation: Option<Propagation>,
    /// The source in /proc/mounts.
    pub fsname: String,
    /// The part of the type in /proc/mounts after `fuse.`.
    pub subtype: String,
}

/// A year: the layers belong to the mount, so nothing the kernel keeps can go stale.
pub const KEEP: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl MountConfig {
    /// Returns whether the kernel checks permissions: what everybody may use is not left unchecked, since the server may do
    /// more than those who ask it.
    pub fn checks_permissions(&self) -> bool {
        self.default_permissions || self.access == Access::All
    }

    /// Returns the defaults for `mountpoint`, as a kernel mount has them for root, and nosuid, nodev
    /// and the owner alone for a plain user.
    pub fn new(mountpoint: impl Into<PathBuf>) -> Self {
        let root = rustix::process::geteuid().is_root();
        Self {
            mountpoint: mountpoint.into(),
            io: IoMode::Auto,
            transport: Transport::Auto,
            sandbox: Sandbox::Auto,
            threads: None,
            entry_timeout: KEEP,
            attr_timeout: KEEP,
            negative_timeout: KEEP,
            access: if root { Access::All } else { Access::Owner },
            default_permissions: true,
            read_only: false,
            suid: root,
            dev: root,
            exec: true,
            max_write: None,
            context: None,
            propagation: None,
            fsname: "unionfs-rs".into(),
            subtype: "unionfs-rs".into(),
        }
    }
}

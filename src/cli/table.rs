//! The table of the options of `mount`: one row for each, whichever way it is written.

use log::LevelFilter;

use super::settings::{Group, Settings, Spec, Takes, Word};
use crate::config::{
    Access, Fsync, IoMode, Permissions, Propagation, RedirectDir, Sandbox, Source, Transport, WhiteoutFormat,
    XattrNamespace, Xino,
};

/// Makes a row of the table.
const fn spec(name: &'static str, flag: &'static str, takes: Takes, help: &'static str) -> Spec {
    Spec { name, flag, takes, help }
}

const ON_OFF_INDEX: &[Word] = &[("on", |s| s.union.index = Some(true)), ("off", |s| s.union.index = Some(false))];
const ON_OFF_METACOPY: &[Word] = &[("on", |s| s.union.metacopy = true), ("off", |s| s.union.metacopy = false)];

fn write_back(settings: &mut Settings, on: bool) {
    let io = &mut settings.mount.io;
    *io = match (on, *io) {
        (true, _) => IoMode::Writeback,
        (false, IoMode::Writeback) => IoMode::Auto,
        (false, other) => other,
    };
}

/// Makes an option that has no flag.
pub const fn text_only(name: &'static str, takes: Takes) -> Spec {
    spec(name, "", takes, "")
}

/// Every option of `mount`.
pub const GROUPS: &[Group] = &[
    Group {
        heading: "Layers",
        specs: &[
            spec(
                "lowerdir",
                "lower",
                Takes::Dirs(|s, dirs| s.union.lowers.extend(dirs.into_iter().map(Source::from))),
                "Read-only layers, topmost first, parted by colons (\\: for a colon in a name); may be repeated, later ones lie below",
            ),
            spec(
                "upperdir",
                "upper",
                Takes::Dir(|s, dir| s.union.upper = Some(dir.into())),
                "The layer that takes the changes; without one the mount is read-only",
            ),
            spec(
                "workdir",
                "work",
                Takes::Dir(|s, dir| s.union.work = Some(dir.into())),
                "A directory for unfinished things, on the file system of the upper [default: .NAME.work beside the upper]",
            ),
            spec(
                "quota_size",
                "quota-size",
                Takes::Size(|s, bytes| s.union.quota.bytes = Some(bytes)),
                "The most bytes that the upper may hold; what would exceed it fails by ENOSPC [default: what its file system has]",
            ),
            spec(
                "quota_inodes",
                "quota-inodes",
                Takes::Size(|s, inodes| s.union.quota.inodes = Some(inodes)),
                "The most files and directories that it may hold [default: the same]",
            ),
            spec("ro", "ro", Takes::Nothing(|s| s.mount.read_only = true), "Mount read-only"),
            spec(
                "rw",
                "rw",
                Takes::Nothing(|s| s.mount.read_only = false),
                "Mount read-write where there is an upper [default]",
            ),
            spec(
                "volatile",
                "volatile",
                Takes::Nothing(|s| s.union.fsync = Fsync::Volatile),
                "Never wait for the disk; once the machine was started anew the upper is not to be trusted, and is refused",
            ),
            spec(
                "fsync",
                "fsync",
                Takes::Word(&[
                    ("auto", |s| s.union.fsync = Fsync::Auto),
                    ("strict", |s| s.union.fsync = Fsync::Strict),
                    ("volatile", |s| s.union.fsync = Fsync::Volatile),
                    // As fuse-overlayfs.
                    ("0", |s| {
                        // volatile waits for as little, and its mark is not taken back.
                        if s.union.fsync != Fsync::Volatile {
                            s.union.fsync = Fsync::Never;
                        }
                    }),
                    ("1", |s| s.union.fsync = Fsync::Auto),
                ]),
                "What waits for the disk: auto, fsync(2), and copying up until a loss of power leaves the old file or the whole \
                 copy; strict, the same, with an fsync of every file and directory; volatile, nothing, as --volatile; 0, nothing, \
                 and no mark [default: auto]",
            ),
        ],
    },
    Group {
        heading: "Semantics",
        specs: &[
            spec(
                "redirect_dir",
                "redirect-dir",
                Takes::Word(&[
                    ("on", |s| s.union.redirect_dir = RedirectDir::On),
                    ("follow", |s| s.union.redirect_dir = RedirectDir::Follow),
                    ("nofollow", |s| s.union.redirect_dir = RedirectDir::NoFollow),
                    // As the kernel, where redirect_always_follow is on unless it was built otherwise.
                    ("off", |s| s.union.redirect_dir = RedirectDir::Follow),
                ]),
                "Whether directories of lower layers can be renamed; off is follow [default: on where the upper can hold it]",
            ),
            spec(
                "index",
                "index",
                Takes::Word(ON_OFF_INDEX),
                "Whether hard links of lower files stay linked when one is changed [default: on where the upper can hold it]",
            ),
            spec(
                "metacopy",
                "metacopy",
                Takes::Word(ON_OFF_METACOPY),
                "Whether chmod, chown and the like copy metadata alone into the upper [default: off]",
            ),
            spec(
                "xino",
                "xino",
                Takes::Word(&[
                    ("auto", |s| s.union.xino = Xino::Auto),
                    ("on", |s| s.union.xino = Xino::On),
                    ("off", |s| s.union.xino = Xino::Off),
                ]),
                "How inode numbers of layers on several file systems are kept apart [default: auto]",
            ),
            spec(
                "xattr_namespace",
                "xattr-namespace",
                Takes::Word(&[
                    ("auto", |s| s.union.xattr_namespace = XattrNamespace::Auto),
                    ("trusted", |s| s.union.xattr_namespace = XattrNamespace::Trusted),
                    ("user", |s| s.union.xattr_namespace = XattrNamespace::User),
                ]),
                "Where the upper keeps what it notes about files [default: auto, by privilege]",
            ),
            spec(
                "whiteout",
                "whiteout",
                Takes::Word(&[
                    ("auto", |s| s.union.whiteout_format = WhiteoutFormat::Auto),
                    ("char", |s| s.union.whiteout_format = WhiteoutFormat::Char),
                    ("xattr", |s| s.union.whiteout_format = WhiteoutFormat::Xattr),
                    ("dotwh", |s| s.union.whiteout_format = WhiteoutFormat::DotWh),
                ]),
                "How the upper marks removed names: a 0:0 device, an xattr, a .wh. file [default: auto, the first that works]",
            ),
        ],
    },
    Group {
        heading: "Owners and metadata",
        specs: &[
            spec(
                "uidmapping",
                "uid-mapping",
                Takes::IdMap(|s, map| s.union.owners.uids = map),
                "Show other users than the layers store: STORED:SHOWN:COUNT, or several of them joined by colons",
            ),
            spec("gidmapping", "gid-mapping", Takes::IdMap(|s, map| s.union.owners.gids = map), "The same for groups"),
            spec(
                "squash_to_uid",
                "squash-uid",
                Takes::Id(|s, id| s.union.owners.squash_uid = Some(id)),
                "Show everything as owned by this user",
            ),
            spec(
                "squash_to_gid",
                "squash-gid",
                Takes::Id(|s, id| s.union.owners.squash_gid = Some(id)),
                "Show everything as owned by this group",
            ),
            spec(
                "xattr_permissions",
                "xattr-permissions",
                Takes::Word(&[
                    ("off", |s| s.union.permissions = Permissions::Inode),
                    ("security", |s| s.union.permissions = Permissions::Security),
                    ("user", |s| s.union.permissions = Permissions::User),
                    // The words of fuse-overlayfs.
                    ("0", |s| s.union.permissions = Permissions::Inode),
                    ("1", |s| s.union.permissions = Permissions::Security),
                    ("2", |s| s.union.permissions = Permissions::User),
                ]),
                "Keep owners, modes and devices of the upper in an xattr of this namespace; 0, 1, 2 are off, security, user [default: off]",
            ),
            spec(
                "noacl",
                "no-acl",
                Takes::Switch(|s, on| s.union.acls = !on),
                "ACLs are neither seen nor checked nor inherited",
            ),
            spec(
                "noxattrs",
                "no-xattrs",
                Takes::Switch(|s, on| s.union.xattrs = !on),
                "Extended attributes are neither seen nor set",
            ),
            spec(
                "static_nlink",
                "static-nlink",
                Takes::Switch(|s, on| s.union.static_nlink = on),
                "Show every directory with one link, whatever is in it",
            ),
            spec("ino32_t", "ino32", Takes::Switch(|s, on| s.union.ino32 = on), "Show inode numbers of 32 bits"),
        ],
    },
    Group {
        heading: "Access",
        specs: &[
            spec(
                "allow_other",
                "allow-other",
                Takes::Nothing(|s| s.mount.access = Access::All),
                "Every user may use the mount [default for root]",
            ),
            spec(
                "allow_root",
                "allow-root",
                Takes::Nothing(|s| s.mount.access = Access::Root),
                "Root may use the mount, besides the user who mounted it",
            ),
            spec(
                "no_allow_other",
                "no-allow-other",
                Takes::Nothing(|s| s.mount.access = Access::Owner),
                "Only the user who mounted it may use the mount [default for others]",
            ),
            spec(
                "default_permissions",
                "default-permissions",
                Takes::Nothing(|s| s.mount.default_permissions = true),
                "The kernel checks modes and ACLs [default]",
            ),
            spec(
                "no_default_permissions",
                "no-default-permissions",
                Takes::Nothing(|s| s.mount.default_permissions = false),
                "The kernel checks nothing, where not everybody may use the mount: who may, may do what the daemon may",
            ),
            spec(
                "suid",
                "suid",
                Takes::Nothing(|s| s.mount.suid = true),
                "Honour set-user-id bits and file capabilities [default for root]",
            ),
            spec("nosuid", "nosuid", Takes::Nothing(|s| s.mount.suid = false), "Ignore them [default for others]"),
            spec("dev", "dev", Takes::Nothing(|s| s.mount.dev = true), "Honour device files [default for root]"),
            spec("nodev", "nodev", Takes::Nothing(|s| s.mount.dev = false), "Ignore them [default for others]"),
            spec("exec", "exec", Takes::Nothing(|s| s.mount.exec = true), "Programs may be run [default]"),
            spec("noexec", "noexec", Takes::Nothing(|s| s.mount.exec = false), "They may not"),
            spec(
                "atime",
                "atime",
                Takes::Nothing(|s| s.union.atime = true),
                "Reading updates the access time of files in the upper",
            ),
            spec(
                "relatime",
                "relatime",
                Takes::Nothing(|s| s.union.atime = true),
                "As atime: how often is for the file system of the upper to say",
            ),
            spec("strictatime", "strictatime", Takes::Nothing(|s| s.union.atime = true), "As atime"),
            spec(
                "noatime",
                "noatime",
                Takes::Nothing(|s| s.union.atime = false),
                "Reading leaves access times alone [default]",
            ),
            spec(
                "context",
                "context",
                Takes::Context(|s, context| s.mount.context = Some(context)),
                "The SELinux context of every file (root, where the kernel has SELinux)",
            ),
            spec(
                "propagation",
                "propagation",
                Takes::Word(&[
                    ("private", |s| s.mount.propagation = Some(Propagation::Private)),
                    ("shared", |s| s.mount.propagation = Some(Propagation::Shared)),
                    ("slave", |s| s.mount.propagation = Some(Propagation::Slave)),
                ]),
                "Whether mounts below are seen in other namespaces (root) [default: as of the directory above]",
            ),
            spec(
                "sandbox",
                "sandbox",
                Takes::Word(&[
                    ("auto", |s| s.mount.sandbox = Sandbox::Auto),
                    ("off", |s| s.mount.sandbox = Sandbox::Off),
                ]),
                "Have the kernel (Landlock, Linux 5.19) keep whoever serves requests to the layers [default: auto, if it can]",
            ),
        ],
    },
    Group {
        heading: "Speed",
        specs: &[
            spec(
                "io",
                "io",
                Takes::Word(&[
                    ("auto", |s| s.mount.io = IoMode::Auto),
                    ("cached", |s| s.mount.io = IoMode::Cached),
                    ("writeback", |s| s.mount.io = IoMode::Writeback),
                    ("passthrough", |s| s.mount.io = IoMode::Passthrough),
                ]),
                "Serve data through the page cache, or let the kernel take it from the layer (root, Linux 6.9) [default: auto]",
            ),
            spec(
                "writeback",
                "writeback",
                Takes::Switch(write_back),
                "As --io writeback: keep what is written in the page cache until it is closed or synced; lost if this is killed",
            ),
            spec(
                "transport",
                "transport",
                Takes::Word(&[
                    ("auto", |s| s.mount.transport = Transport::Auto),
                    ("dev", |s| s.mount.transport = Transport::Dev),
                    ("ring", |s| s.mount.transport = Transport::Ring),
                ]),
                "How requests come: by /dev/fuse, or by io_uring (Linux 6.14, enable_uring=Y) [default: auto, the ring if it can]",
            ),
            spec(
                "entry_timeout",
                "entry-timeout",
                Takes::Seconds(|s, time| s.mount.entry_timeout = time),
                "How long the kernel keeps names, in seconds [default: a year]",
            ),
            spec(
                "attr_timeout",
                "attr-timeout",
                Takes::Seconds(|s, time| s.mount.attr_timeout = time),
                "How long the kernel keeps attributes, in seconds [default: a year]",
            ),
            spec(
                "negative_timeout",
                "negative-timeout",
                Takes::Seconds(|s, time| s.mount.negative_timeout = time),
                "How long the kernel keeps the absence of names, in seconds [default: a year]",
            ),
            spec(
                "threads",
                "threads",
                Takes::Count(|s, number| s.mount.threads = Some(number)),
                "Threads that take requests from /dev/fuse [default: one a processor, two at least]",
            ),
            spec(
                "max_write",
                "max-write",
                Takes::Bytes(|s, bytes| s.mount.max_write = Some(bytes)),
                "The most bytes of one write, from 4096 [default and most: 1048576]",
            ),
        ],
    },
    Group {
        heading: "Running",
        specs: &[
            spec(
                "foreground",
                "foreground",
                Takes::Nothing(|s| s.foreground = true),
                "Stay, serve the mount, and log to standard error, until unmounted",
            ),
            spec(
                "fsname",
                "fsname",
                Takes::Label(|s, name| s.mount.fsname = name),
                "The source that /proc/mounts shows [default: unionfs-rs]",
            ),
            spec(
                "log_file",
                "log-file",
                Takes::File(|s, file| s.log_file = Some(file)),
                "Append the log to this file; without one a daemon logs nothing once it is detached",
            ),
            spec(
                "log_level",
                "log-level",
                Takes::Word(&[
                    ("error", |s| s.log_level = Some(LevelFilter::Error)),
                    ("warn", |s| s.log_level = Some(LevelFilter::Warn)),
                    ("info", |s| s.log_level = Some(LevelFilter::Info)),
                    ("debug", |s| s.log_level = Some(LevelFilter::Debug)),
                    ("trace", |s| s.log_level = Some(LevelFilter::Trace)),
                ]),
                "The least of what is logged [default: RUST_LOG, else warn]",
            ),
            spec(
                "stats",
                "stats",
                Takes::Nothing(|s| s.stats = true),
                "Report at the end what was done, to standard error in the foreground, else to the log file",
            ),
        ],
    },
];

/// Options of `-o` that have no flag.
///
/// `lowerdir+` is the kernel's since 6.7: one layer, in whose name a colon is a colon. `userxattr` is
/// its name for the user namespace of xattrs. Then fuse-overlayfs's word for both squashes, which is not to undo
/// either, and mount(8)'s for propagation; of one mount the recursive ones say the same.
pub const TEXT_ONLY: &[Spec] = &[
    text_only("lowerdir+", Takes::Dir(|s, dir| s.union.lowers.push(dir.into()))),
    text_only("userxattr", Takes::Nothing(|s| s.union.xattr_namespace = XattrNamespace::User)),
    text_only(
        "squash_to_root",
        Takes::Nothing(|s| {
            s.union.owners.squash_uid.get_or_insert(0);
            s.union.owners.squash_gid.get_or_insert(0);
        }),
    ),
    text_only("private", Takes::Nothing(|s| s.mount.propagation = Some(Propagation::Private))),
    text_only("rprivate", Takes::Nothing(|s| s.mount.propagation = Some(Propagation::Private))),
    text_only("shared", Takes::Nothing(|s| s.mount.propagation = Some(Propagation::Shared))),
    text_only("rshared", Takes::Nothing(|s| s.mount.propagation = Some(Propagation::Shared))),
    text_only("slave", Takes::Nothing(|s| s.mount.propagation = Some(Propagation::Slave))),
    text_only("rslave", Takes::Nothing(|s| s.mount.propagation = Some(Propagation::Slave))),
];

/// Options that say nothing to a file system: those for mount(8) itself and its fstab, and names of
/// what is so in any case. Directories never get an access time from us, and unsynced is how a mount is.
pub const IGNORED: &[&str] = &[
    "defaults",
    "async",
    "nodiratime",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "silent",
    "loud",
];

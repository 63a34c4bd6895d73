//! The options that this form has besides those of `mount`, and those of which nothing follows here.

use log::LevelFilter;
use std::num::NonZeroUsize;
use std::time::Duration;

use crate::cli::settings::{Settings, Spec, Takes};
use crate::cli::table::text_only;

/// Options of fuse-overlayfs and of libfuse that `mount` has under other names.
pub const SPECS: &[Spec] = &[
    text_only("timeout", Takes::Seconds(keep_for)),
    text_only(
        "threaded",
        Takes::Word(&[("0", |s| s.mount.threads = Some(NonZeroUsize::MIN)), ("1", |s| s.mount.threads = None)]),
    ),
    text_only("max_threads", Takes::Count(|s, number| s.mount.threads = Some(number))),
    text_only("debug", Takes::Nothing(debug)),
    text_only("subtype", Takes::Label(|s, name| s.mount.subtype = name)),
    text_only("mountpoint", Takes::Dir(|s, dir| s.mount.mountpoint = dir)),
];

/// Stays in front, and logs what is done.
pub fn debug(settings: &mut Settings) {
    settings.foreground = true;
    settings.log_level = Some(LevelFilter::Debug);
}

fn keep_for(settings: &mut Settings, time: Duration) {
    let mount = &mut settings.mount;
    for timeout in [&mut mount.entry_timeout, &mut mount.attr_timeout, &mut mount.negative_timeout] {
        *timeout = time;
    }
}

/// Options that ask for what is so in any case, and for what is done in another way to the same end.
pub const GRANTED: &[&str] = &[
    "async_read",
    "atomic_o_trunc",
    "auto_cache",
    "big_writes",
    "fast_ino",
    "fast_ino_check",
    "kernel_cache",
    "lazytime",
    "no_splice_move",
    "no_splice_read",
    "no_splice_write",
    "nolazytime",
    "nonempty",
    "readdir_ino",
    "use_ino",
];

/// An option that is accepted, and of which nothing follows.
pub struct Void {
    /// Its name.
    pub name: &'static str,
    /// The value with which it asks for nothing that is not so.
    pub granted: &'static str,
    /// What is so instead.
    pub instead: &'static str,
}

const fn void(name: &'static str, granted: &'static str, instead: &'static str) -> Void {
    Void { name, granted, instead }
}

/// Every [`Void`], of fuse-overlayfs, libfuse, mount(8) and the kernel's overlayfs.
pub const VOIDS: &[Void] = &[
    void("plugins", "", "layers are read from directories alone"),
    void("splice_read", "", "data is copied unless --io passes it through"),
    void("splice_write", "", "data is copied unless --io passes it through"),
    void("splice_move", "", "data is copied unless --io passes it through"),
    void("auto_unmount", "", "should the server be killed, unmount it by fusermount3 -u"),
    void("sync", "0", "data is on the disk after fsync(2)"),
    void("dirsync", "", "directories are on the disk after fsync(2)"),
    void("diratime", "", "directories keep their access times"),
    void("nosymfollow", "", "symbolic links are followed"),
    void("uid", "", "owners are as stored; squash_to_uid= shows another"),
    void("gid", "", "groups are as stored; squash_to_gid= shows another"),
    void("umask", "", "modes are as stored"),
    void("direct_io", "", "the page cache is used"),
    void("sync_read", "", "reads may run side by side"),
    void("noforget", "", "what the kernel forgets is forgotten"),
    void("remember", "", "what the kernel forgets is forgotten"),
    void("ac_attr_timeout", "", "attr_timeout= holds"),
    void("clone_fd", "", "the threads share one connection"),
    void("max_idle_threads", "", "threads stay; max_threads= says how many"),
    void("max_read", "", "reads are of 1 MiB at most"),
    void("max_readahead", "", "readahead is of 1 MiB at most"),
    void("max_background", "", "it is 64"),
    void("congestion_threshold", "", "the kernel's holds"),
    void("intr", "", "requests are not interrupted"),
    void("intr_signal", "", "requests are not interrupted"),
    void("nfs_export", "off", "file handles do not outlive the mount"),
    void("verity", "off", "digests of lower files are not checked"),
    void("uuid", "", "the file system has none"),
];

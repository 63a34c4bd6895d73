//! What upper's file system can do, found out by trying in the workdir; and what is done where it cannot.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, StatxFlags, XattrFlags};
use rustix::io::Errno;

use super::Layer;
use super::name::WH_PREFIX;
use super::overlay::{Mark, Namespace};
use super::permissions;
use super::whiteout::{Format, Whiteouts};
use super::workdir::Workdir;
use crate::config::{Lacking, UnionConfig, WhiteoutFormat};
use crate::error::{Error, Result};
use crate::sys::{dents, proc_path, xattr};

/// What upper's file system can do, found out by trying.
#[derive(Debug, Clone, Copy)]
pub struct Features {
    /// Overlay xattrs can be kept.
    pub xattrs: bool,
    /// O_TMPFILE makes files without a name.
    pub tmpfile: bool,
    /// A rename can be made to replace nothing.
    pub noreplace: bool,
    /// Two names can be exchanged.
    pub exchange: bool,
    /// A rename can leave a whiteout behind.
    pub rename_whiteout: bool,
    /// A file can have several names, and is one file under all of them.
    pub links: bool,
    /// Attributes are cached by name: those of a file that was changed under another name may be old.
    pub stale: bool,
    /// What the file system calls a file that is open and has lost its name.
    kept_open: Option<KeptOpen>,
}

/// How a file system names a file that is open and has lost its name, until it is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeptOpen {
    /// `.nfs`, the number of the file (16 digits) and a counter (8).
    Nfs,
    /// `.fuse_hidden`, the number of the node (8 digits) and a counter (8), as libfuse has it.
    Fuse,
}

impl KeptOpen {
    /// Returns what `work` is on does, by the magic number of statfs(2).
    fn of(work: &Workdir) -> Option<Self> {
        match rustix::fs::fstatfs(work.fd()).ok()?.f_type {
            rustix::fs::NFS_SUPER_MAGIC => Some(Self::Nfs),
            FUSE_SUPER_MAGIC => Some(Self::Fuse),
            _ => None,
        }
    }

    fn prefix(self) -> (&'static [u8], usize) {
        match self {
            Self::Nfs => (b".nfs", 24),
            Self::Fuse => (b".fuse_hidden", 16),
        }
    }
}

/// See statfs(2).
const FUSE_SUPER_MAGIC: rustix::fs::FsWord = 0x6573_5546;

impl Features {
    /// Returns whether `name` is that of a file which was removed and is still open: it is no part of the layer.
    pub fn is_kept_open(self, name: &[u8]) -> bool {
        self.kept_open.is_some_and(|kept| {
            let (prefix, digits) = kept.prefix();
            let rest = name.strip_prefix(prefix);
            rest.is_some_and(|rest| rest.len() == digits && rest.iter().all(u8::is_ascii_hexdigit))
        })
    }

    /// Says in the log what the file system of `layer` lacks, and what is done instead.
    fn report(self, layer: &Layer, work: &Workdir, namespace: Namespace) {
        let path = layer.path.display();
        if !self.xattrs {
            let other = namespace == Namespace::Trusted && holds_user_xattrs(work);
            let remedy = if other { "; --xattr-namespace user would work" } else { "" };
            log::warn!("{path}: cannot hold overlay xattrs, so lower directories cannot be renamed{remedy}");
        }
        if !self.exchange {
            log::warn!(
                "{path}: names cannot be exchanged (RENAME_EXCHANGE), so programs cannot either; what is removed is marked \
                 by .wh. files, and lower names of more than 251 bytes cannot be removed"
            );
        }
        if renumbers(work) {
            log::warn!(
                "{path}: gives files other numbers when they are renamed (mergerfs: mount it with inodecalc=devino-hash); \
                 what is renamed may not be found for a moment"
            );
        }
        if !self.links {
            log::warn!(
                "{path}: has no hard links that could be told to be one file, so those of lower files part when they are changed"
            );
        }
        let instead = [
            (self.noreplace, "RENAME_NOREPLACE: names are looked up before they are taken"),
            (self.rename_whiteout, "RENAME_WHITEOUT: renaming a lower name takes two steps"),
            (self.tmpfile, "O_TMPFILE: copies have a name in the workdir until they are whole"),
        ];
        for (_, what) in instead.into_iter().filter(|(able, _)| !able) {
            log::info!("{path}: has no {what}");
        }
    }
}

/// Finds out what upper can do, and refuses what was asked for and it cannot.
pub(super) fn check(
    config: &UnionConfig,
    layer: &Layer,
    work: &Workdir,
    namespace: Namespace,
    index: Option<bool>,
) -> Result<(Features, Format)> {
    let features = probe(layer, work, namespace, config.lacking)?;
    let needs = [
        (index == Some(true), "index", features.links, "has no hard links, which index=on needs"),
        (index == Some(true), "index", features.xattrs, "cannot hold the xattrs that index=on needs"),
        (config.metacopy, "metacopy", features.xattrs, "cannot hold the xattrs that metacopy=on needs"),
    ];
    for (asked, option, able, reason) in needs {
        if asked && !able {
            return Err(Error::setup(&layer.path, reason, format!("use {option}=off or another file system")));
        }
    }
    let format = whiteout_format(config, &layer.path, work, namespace, features)?;
    features.report(layer, work, namespace);
    Ok((features, format))
}

/// Finds out what the file system of upper can do, and refuses one that tells no file types.
fn probe(layer: &Layer, work: &Workdir, namespace: Namespace, lacking: Lacking) -> Result<Features> {
    let path = work.path();
    let failed =
        |e: Errno| Error::setup(path, format!("cannot be written: {e}"), "check permissions and free space").because(e);
    let (a, b, third) = (work.temporary(), work.temporary(), work.temporary());
    let dir = work.fd();
    let file = |name: &OsStr| {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR).map(drop)
    };
    let probed = (|| -> Result<Features> {
        file(&a).map_err(failed)?;
        file(&b).map_err(failed)?;
        check_file_types(work, path)?;
        check_same_mount(layer, work, &a)?;
        permissions::check_store(layer, work, &a)?;
        let renames = |from: &OsStr, to: &OsStr, flags| rustix::fs::renameat_with(dir, from, dir, to, flags).is_ok();
        let names = try_link(work, &a, &third).map_err(failed)?;
        let links = matches!(names, Names::Same | Names::Stale);
        // A file system that takes no notice of the flag would have moved the one over the other.
        let exchange = renames(&a, &b, RenameFlags::EXCHANGE) && is_listed(work, &a).map_err(failed)?;
        let moved = renames(&b, &third, RenameFlags::NOREPLACE);
        let noreplace = moved && renames(&third, &b, RenameFlags::empty());
        Ok(Features {
            xattrs: !lacking.contains(Lacking::XATTRS) && namespace.set(dir, &b, Mark::Impure, b"y").is_ok(),
            // A file without a name is of use only where it can be given one.
            tmpfile: links && !lacking.intersects(Lacking::TMPFILE | Lacking::LINKS) && links_nameless(work),
            noreplace: noreplace && !lacking.contains(Lacking::NOREPLACE),
            exchange: exchange && !lacking.contains(Lacking::EXCHANGE),
            rename_whiteout: !lacking.contains(Lacking::RENAME_WHITEOUT) && leaves_whiteout(work, &b, &a),
            links: links && !lacking.contains(Lacking::LINKS),
            stale: names == Names::Stale,
            kept_open: KeptOpen::of(work),
        })
    })();
    for name in [&a, &b, &third] {
        work.discard(name);
    }
    probed
}

/// What the names of one file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    /// It cannot have several, or each looks like a file of its own.
    Apart,
    /// One file.
    Same,
    /// One file, whose attributes are cached for each name.
    Stale,
}

/// Links `a` to `b` and back off, and finds out what the two names are.
fn try_link(work: &Workdir, a: &OsStr, b: &OsStr) -> rustix::io::Result<Names> {
    let dir = work.fd();
    if rustix::fs::linkat(dir, a, dir, b, AtFlags::empty()).is_err() {
        return Ok(Names::Apart);
    }
    let stat = |name: &OsStr| rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
    let same = stat(a)?.st_ino == stat(b)?.st_ino;
    let written = rustix::fs::openat(dir, a, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&written, b"x")?;
    drop(written);
    let seen = stat(b)?.st_size == 1;
    work.discard(b);
    Ok(match (same, seen) {
        (false, _) => Names::Apart,
        (true, true) => Names::Same,
        (true, false) => Names::Stale,
    })
}

/// Returns whether `from` can be renamed to `to` so that a whiteout is left; some file systems take no notice of that.
fn leaves_whiteout(work: &Workdir, from: &OsStr, to: &OsStr) -> bool {
    let dir = work.fd();
    let left = || rustix::fs::statat(dir, from, AtFlags::SYMLINK_NOFOLLOW);
    rustix::fs::renameat_with(dir, from, dir, to, RenameFlags::WHITEOUT).is_ok()
        && left()
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0)
}

/// Returns whether a file can be made without a name and be given one, which goes through /proc.
fn links_nameless(work: &Workdir) -> bool {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::openat(work.fd(), ".", flags, Mode::RUSR).is_ok_and(|fd| {
        let name = work.temporary();
        let follow = AtFlags::SYMLINK_FOLLOW;
        let linked = rustix::fs::linkat(rustix::fs::CWD, proc_path(&fd), work.fd(), &name, follow).is_ok();
        if linked {
            work.discard(&name);
        }
        linked
    })
}

/// Returns whether the workdir lists `name`: asked anew, where a name alone might be answered from a cache.
fn is_listed(work: &Workdir, name: &OsStr) -> rustix::io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listing = rustix::fs::openat(work.fd(), ".", flags, Mode::empty())?;
    let mut listed = false;
    dents::each(listing.as_fd(), |entry, _, _| listed |= entry == name.as_encoded_bytes())?;
    Ok(listed)
}

/// Returns whether a directory that is renamed gets another inode number.
fn renumbers(work: &Workdir) -> bool {
    let (dir, from, to) = (work.fd(), work.temporary(), work.temporary());
    let number = |name: &OsStr| {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
        rustix::fs::statx(dir, name, flags, StatxFlags::INO).map(|stat| stat.stx_ino)
    };
    let numbers = rustix::fs::mkdirat(dir, &from, Mode::RWXU).and_then(|()| {
        let before = number(&from)?;
        rustix::fs::renameat(dir, &from, dir, &to)?;
        Ok((before, number(&to)?))
    });
    for name in [&from, &to] {
        work.discard(name);
    }
    numbers.is_ok_and(|(before, after)| before != after)
}

/// Returns whether the file system holds the xattrs that everybody may set.
fn holds_user_xattrs(work: &Workdir) -> bool {
    let (own, probe) = (OsStr::new(""), Namespace::User.name(Mark::Impure));
    let held = xattr::set(work.fd(), own, &probe, b"y", XattrFlags::empty()).is_ok();
    held && xattr::remove(work.fd(), own, &probe).is_ok()
}

fn check_file_types(work: &Workdir, path: &Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let failed = |e: Errno| Error::setup(path, format!("cannot be listed: {e}"), "check its permissions");
    let listing = rustix::fs::openat(work.fd(), ".", flags, Mode::empty()).map_err(failed)?;
    let mut unknown = false;
    dents::each(listing.as_fd(), |_, kind, _| unknown |= kind == FileType::Unknown).map_err(failed)?;
    if unknown {
        let remedy = "use a file system with d_type (xfs: mkfs with ftype=1)";
        return Err(Error::setup(path, "its file system tells no file types (d_type)", remedy));
    }
    Ok(())
}

/// Refuses a workdir from which nothing can be moved to upper, though both have one device number.
fn check_same_mount(layer: &Layer, work: &Workdir, probe: &OsStr) -> Result<()> {
    // Renaming onto the root itself cannot succeed; the kernel looks at the mounts before anything else.
    match rustix::fs::renameat(work.fd(), probe, layer.root(), ".") {
        Err(Errno::XDEV) => Err(Error::setup(
            work.path(),
            format!("is in another mount than {}", layer.path.display()),
            "name a workdir beside upper, in the same mount",
        )),
        _ => Ok(()),
    }
}

/// Settles the form of whiteouts: the one asked for if it works, else the first that does.
///
/// Without RENAME_EXCHANGE it is a mark beside the name: any other takes the place of what is removed, and a directory
/// has no way to give its place to a file but by leaving it first, and then what is below would show.
fn whiteout_format(
    config: &UnionConfig,
    path: &Path,
    work: &Workdir,
    namespace: Namespace,
    features: Features,
) -> Result<Format> {
    let works = |format: Format| {
        let mut name = OsString::from(if format == Format::DotWh { WH_PREFIX } else { "" });
        name.push(work.temporary());
        let made = Whiteouts::new(format, namespace, features).make(work.fd(), &name);
        work.discard(&name);
        made.is_ok() && !(format == Format::Char && config.lacking.contains(Lacking::NODES))
    };
    let (format, what) = match config.whiteout_format {
        WhiteoutFormat::Auto => {
            let forms = [(Format::Char, features.exchange), (Format::Xattr, features.exchange && features.xattrs)];
            let able = forms.into_iter().filter_map(|(format, able)| able.then_some(format)).chain([Format::DotWh]);
            return able.into_iter().find(|format| works(*format)).ok_or_else(|| {
                let reason = "takes whiteouts in no form, so that nothing of the lower layers could be removed";
                Error::setup(path, reason, "use another file system for upper")
            });
        }
        WhiteoutFormat::DotWh => (Format::DotWh, "takes no files named .wh.NAME"),
        WhiteoutFormat::Char => (Format::Char, "takes no whiteout devices"),
        WhiteoutFormat::Xattr => (Format::Xattr, "takes no whiteout xattrs"),
    };
    let remedy = "use --whiteout auto";
    if !features.exchange && format != Format::DotWh {
        let reason = "its file system cannot exchange two names (RENAME_EXCHANGE), which whiteouts of this form need";
        return Err(Error::setup(path, reason, remedy));
    }
    if works(format) { Ok(format) } else { Err(Error::setup(path, what, remedy)) }
}

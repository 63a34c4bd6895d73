//! The xattrs that overlayfs and fuse-overlayfs keep in a layer, and how they are kept from view.
//!
//! Marks that can only hide (opaque, whiteout) are honoured in every namespace. What leads to another
//! place (redirect, metacopy, origin) is taken from the mount's own namespace alone, because anyone who
//! may write a file may set its `user.` xattrs.

use std::ffi::{OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::XattrFlags;
use rustix::io::{Errno, Result};

use crate::sys::xattr;

const PREFIXES: [&str; 3] = ["trusted.overlay.", "user.overlay.", "user.fuseoverlayfs."];

/// Where owner and mode are kept by a mount with CAP_SYS_ADMIN that does not keep them with the file.
pub const OVERRIDE_SECURITY: &str = "security.fuseoverlayfs.override_stat";

/// As [`OVERRIDE_SECURITY`], for anybody; containers/storage writes it too.
pub const OVERRIDE_CONTAINERS: &str = "user.containers.override_stat";

/// As [`OVERRIDE_CONTAINERS`], written by older versions of fuse-overlayfs. It has a prefix of the overlay's own.
pub const OVERRIDE_OLD: &str = "user.fuseoverlayfs.override_stat";

/// What comes before the name of a `security.` xattr that is kept beside [`OVERRIDE_CONTAINERS`], as a plain user can set
/// none.
pub const SECURITY_APART: &str = "user.containers.override_";

/// What follows a prefix when the name was escaped: `trusted.overlay.overlay.X` stands for `trusted.overlay.X`.
const ESCAPE: &str = "overlay.";

/// Where a mount keeps its overlay xattrs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    /// `trusted.overlay.`, which needs CAP_SYS_ADMIN in the initial user namespace.
    Trusted,
    /// `user.overlay.`, as the kernel's `userxattr` has it.
    User,
}

/// One of the overlay xattrs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// `y`: nothing below shines through; `x`: holds whiteouts that are xattrs.
    Opaque,
    /// Where a renamed directory, or the data of a metacopy, is below.
    Redirect,
    /// The handle of the lower file that this one was copied up from.
    Origin,
    /// Entries of this directory were copied up or moved: their numbers come from their origin.
    Impure,
    /// How far the link count of an indexed file differs from that of its upper or lower inode.
    Nlink,
    /// The file has the metadata alone, the data is below.
    Metacopy,
    /// The empty file is a whiteout.
    Whiteout,
}

/// Who keeps an overlay xattr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeper {
    /// The mounts that use this namespace.
    Overlay(Namespace),
    /// fuse-overlayfs.
    FuseOverlayfs,
}

/// Returns what mark the xattr `name` is, and whose; `None` for any other xattr.
pub fn mark_of(name: &OsStr) -> Option<(Keeper, Mark)> {
    let (prefix, suffix) = split(name)?;
    let keeper = match PREFIXES.iter().position(|known| *known == prefix)? {
        0 => Keeper::Overlay(Namespace::Trusted),
        1 => Keeper::Overlay(Namespace::User),
        _ => Keeper::FuseOverlayfs,
    };
    Some((keeper, *Mark::ALL.iter().find(|mark| mark.suffix().as_bytes() == suffix)?))
}

impl Mark {
    /// Every mark.
    const ALL: [Self; 7] =
        [Self::Opaque, Self::Redirect, Self::Origin, Self::Impure, Self::Nlink, Self::Metacopy, Self::Whiteout];

    fn suffix(self) -> &'static str {
        match self {
            Self::Opaque => "opaque",
            Self::Redirect => "redirect",
            Self::Origin => "origin",
            Self::Impure => "impure",
            Self::Nlink => "nlink",
            Self::Metacopy => "metacopy",
            Self::Whiteout => "whiteout",
        }
    }
}

/// What the program that uses the mount sees of an xattr that a layer holds.
#[derive(Debug, PartialEq, Eq)]
pub enum View {
    /// The xattr under its own name.
    Same,
    /// Nothing: it belongs to the overlay.
    Hidden,
    /// The xattr under the name it had before it was escaped.
    Unescaped(OsString),
}

/// Parts a name of the overlay's into its prefix and the rest.
fn split(name: &OsStr) -> Option<(&'static str, &[u8])> {
    let name = name.as_bytes();
    PREFIXES
        .iter()
        .find_map(|p| name.strip_prefix(p.as_bytes()).map(|rest| (*p, rest)))
        .or_else(|| split_override(name))
}

/// As [`split`], for the names under whose prefix others have xattrs of their own: those alone, escaped or not.
fn split_override(name: &[u8]) -> Option<(&'static str, &[u8])> {
    ["security.fuseoverlayfs.", "user.containers."].into_iter().find_map(|prefix| {
        let rest = name.strip_prefix(prefix.as_bytes())?;
        let mut plain = rest;
        while let Some(inner) = plain.strip_prefix(ESCAPE.as_bytes()) {
            plain = inner;
        }
        plain.starts_with(b"override_").then_some((prefix, rest))
    })
}

/// Returns how the stored xattr `name` is shown through the mount.
pub fn view(name: &OsStr) -> View {
    match split(name) {
        None => View::Same,
        Some((prefix, rest)) => match rest.strip_prefix(ESCAPE.as_bytes()) {
            Some(rest) => View::Unescaped(joined(prefix, "", rest)),
            None => View::Hidden,
        },
    }
}

/// Returns the name that the xattr `name` of the mount is stored under.
pub fn stored(name: &OsStr) -> OsString {
    match split(name) {
        None => name.to_owned(),
        Some((prefix, rest)) => joined(prefix, ESCAPE, rest),
    }
}

fn joined(prefix: &str, infix: &str, rest: &[u8]) -> OsString {
    OsString::from_vec([prefix.as_bytes(), infix.as_bytes(), rest].concat())
}

/// What the overlay xattrs of one file say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Nothing below the directory shines through.
    pub opaque: bool,
    /// The directory holds xattr whiteouts.
    pub xwhiteouts: bool,
    /// Entries of the directory have an origin.
    pub impure: bool,
    /// The empty file is a whiteout.
    pub whiteout: bool,
    /// The file has an origin.
    pub origin: bool,
    /// The file has a link count of its own.
    pub nlink: bool,
    /// The file holds metadata alone.
    pub metacopy: bool,
    /// A redirect in the mount's own namespace.
    pub redirect: Option<Vec<u8>>,
    /// A redirect or metacopy in a namespace that the mount does not follow.
    pub foreign: bool,
}

impl Namespace {
    /// Returns the name of `mark` in this namespace.
    pub fn name(self, mark: Mark) -> OsString {
        let prefix = match self {
            Self::Trusted => PREFIXES[0],
            Self::User => PREFIXES[1],
        };
        joined(prefix, "", mark.suffix().as_bytes())
    }

    /// Reads `mark` of `name` in `dir`.
    pub fn get(self, dir: BorrowedFd<'_>, name: &OsStr, mark: Mark) -> Result<Option<Vec<u8>>> {
        xattr::read(dir, name, &self.name(mark))
    }

    /// Writes `mark` of `name` in `dir`.
    pub fn set(self, dir: BorrowedFd<'_>, name: &OsStr, mark: Mark, value: &[u8]) -> Result<()> {
        xattr::set(dir, name, &self.name(mark), value, XattrFlags::empty())
    }

    /// Removes `mark` of `name` in `dir`; that it was not there is no error.
    pub fn clear(self, dir: BorrowedFd<'_>, name: &OsStr, mark: Mark) -> Result<()> {
        match xattr::remove(dir, name, &self.name(mark)) {
            Err(Errno::NODATA) => Ok(()),
            done => done,
        }
    }

    /// Reads all marks of `name` in `dir`: one call where there are none.
    pub fn marks(self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<Marks> {
        let mut marks = Marks::default();
        for xattr in xattr::list(dir, name)? {
            let Some((prefix, suffix)) = split(&xattr) else { continue };
            let own = match self {
                Self::Trusted => prefix == PREFIXES[0],
                Self::User => prefix == PREFIXES[1],
            };
            match suffix {
                b"opaque" => match xattr::read(dir, name, &xattr)?.as_deref() {
                    Some(b"y") => marks.opaque = true,
                    Some(b"x") => marks.xwhiteouts = true,
                    _ => {}
                },
                b"whiteout" => marks.whiteout = true,
                b"impure" => marks.impure = true,
                b"origin" if own => marks.origin = true,
                b"nlink" if own => marks.nlink = true,
                b"metacopy" if own => marks.metacopy = true,
                b"redirect" if own => marks.redirect = xattr::read(dir, name, &xattr)?,
                b"metacopy" | b"redirect" => marks.foreign = true,
                _ => {}
            }
        }
        Ok(marks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlay_xattrs_are_hidden_and_escaped_in_every_namespace() {
        for prefix in PREFIXES {
            let raw = OsString::from(format!("{prefix}opaque"));
            assert!(matches!(mark_of(&raw), Some((_, Mark::Opaque))));
            assert_eq!(mark_of(&stored(&raw)), None);
            assert_eq!(view(&raw), View::Hidden);
            let escaped = stored(&raw);
            assert_eq!(escaped, *format!("{prefix}overlay.opaque"));
            assert_eq!(view(&escaped), View::Unescaped(raw));
        }
        for name in [OVERRIDE_SECURITY, OVERRIDE_CONTAINERS, OVERRIDE_OLD] {
            let mut raw = OsString::from(name);
            assert_eq!(view(&raw), View::Hidden);
            for _ in 0..3 {
                let escaped = stored(&raw);
                assert_eq!(view(&escaped), View::Unescaped(raw));
                raw = escaped;
            }
        }
        assert_eq!(view(OsStr::new("user.containers.override_security.capability")), View::Hidden);
        assert_eq!(stored(OsStr::new(OVERRIDE_CONTAINERS)), "user.containers.overlay.override_stat");
        for name in ["user.containers.other", "user.containers.overlay.other", "security.fuseoverlayfs.x"] {
            assert_eq!((view(OsStr::new(name)), stored(OsStr::new(name))), (View::Same, name.into()));
        }
        assert_eq!(view(OsStr::new("user.overlays")), View::Same);
        assert_eq!(stored(OsStr::new("security.capability")), "security.capability");
    }
}

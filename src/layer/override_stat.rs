//! Owner, mode and kind of a file in an xattr, as fuse-overlayfs and containers/storage keep them where the file itself
//! cannot: `uid:gid:0mode`, and what the file is where it is a plain file that stands for another.
//!
//! A layer that keeps them says so by the xattr on its root; files without it are what they are.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;

use rustix::fs::XattrFlags;
use rustix::io::{Errno, Result};
use rustix::thread::CapabilitySet;

use super::attr::{Attr, FileKind};
use super::overlay::{OVERRIDE_CONTAINERS, OVERRIDE_OLD, OVERRIDE_SECURITY};
use crate::config::Permissions;
use crate::sys::{caps, xattr};

/// The xattr that a layer keeps owners and modes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// `security.fuseoverlayfs.override_stat`
    Security,
    /// `user.containers.override_stat`
    Containers,
    /// `user.fuseoverlayfs.override_stat`, which older versions of fuse-overlayfs wrote.
    Old,
}

/// What the xattr of a file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverrideStat {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits with set-user-id, set-group-id and sticky.
    pub mode: u32,
    /// What a plain file stands for, with the device (major, minor) of a device node; `None` for what the file is itself.
    pub stands_for: Option<(FileKind, (u32, u32))>,
}

impl OverrideStat {
    /// Reads a value. Errors: EIO for garbage, which is no answer about who may do what.
    pub fn parse(value: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(value).map_err(|_| Errno::IO)?;
        // Some writers count the final zero of a C string.
        let mut parts = text.trim_end_matches('\0').split(':');
        let mut number = |radix| parts.next().and_then(|part| u32::from_str_radix(part, radix).ok()).ok_or(Errno::IO);
        let (uid, gid, mode) = (number(10)?, number(10)?, number(8)?);
        // The highest number means "none" to chown(2).
        if uid == u32::MAX || gid == u32::MAX {
            return Err(Errno::IO);
        }
        let stands_for = match parts.next() {
            None => None,
            Some(kind) => stands_for(kind).ok_or(Errno::IO)?,
        };
        let done = parts.next().is_none();
        // The bits above are the type of the file, which some writers put there too.
        if done { Ok(Self { uid, gid, mode: mode & 0o7777, stands_for }) } else { Err(Errno::IO) }
    }

    /// Returns the value that says this.
    pub fn to_bytes(self) -> Vec<u8> {
        let Self { uid, gid, mode, stands_for } = self;
        let kind = match stands_for {
            None => String::new(),
            Some((FileKind::Char, (major, minor))) => format!(":char-{major}-{minor}"),
            Some((FileKind::Block, (major, minor))) => format!(":block-{major}-{minor}"),
            Some((kind, _)) => format!(":{}", word(kind)),
        };
        format!("{uid}:{gid}:0{mode:o}{kind}").into_bytes()
    }
}

fn word(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Regular => "file",
        FileKind::Directory => "dir",
        FileKind::Symlink => "symlink",
        FileKind::Fifo => "pipe",
        FileKind::Socket => "socket",
        FileKind::Char => "char",
        FileKind::Block => "block",
    }
}

/// Reads the last part of a value: what the file stands for, if anything. `None` for garbage.
fn stands_for(text: &str) -> Option<Option<(FileKind, (u32, u32))>> {
    let mut parts = text.split('-');
    let kind = match parts.next()? {
        "file" | "dir" => return (text == "file" || text == "dir").then_some(None),
        "symlink" => FileKind::Symlink,
        "pipe" => FileKind::Fifo,
        "socket" => FileKind::Socket,
        "char" => FileKind::Char,
        "block" => FileKind::Block,
        _ => return None,
    };
    let device = if matches!(kind, FileKind::Char | FileKind::Block) {
        (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?)
    } else {
        (0, 0)
    };
    parts.next().is_none().then_some(Some((kind, device)))
}

impl Store {
    /// Returns the store that `permissions` asks for.
    pub fn asked(permissions: Permissions) -> Option<Self> {
        match permissions {
            Permissions::Inode => None,
            Permissions::Security => Some(Self::Security),
            Permissions::User => Some(Self::Containers),
        }
    }

    /// Finds out what store the layer with this root says that it has, if any.
    pub fn of_root(root: BorrowedFd<'_>) -> Result<Option<Self>> {
        let names = xattr::list(root, OsStr::new(""))?;
        let stores = [Self::Security, Self::Containers, Self::Old];
        Ok(stores.into_iter().find(|store| names.iter().any(|name| name == store.name())))
    }

    /// Returns whether the store may be believed by a mount that was told `asked`.
    ///
    /// Whoever may write a file may set its `user.` xattrs, and would give themselves the rights of anybody: where the server
    /// has such rights to give, it must be told that the layers come from somebody who may. Others can give their own alone.
    pub fn is_credible(self, asked: Permissions) -> bool {
        let gives_rights = || caps::in_initial_user_namespace() && caps::effective(CapabilitySet::CHOWN);
        self == Self::Security || asked == Permissions::User || !gives_rights()
    }

    /// Returns the name of the xattr.
    pub fn name(self) -> &'static str {
        match self {
            Self::Security => OVERRIDE_SECURITY,
            Self::Containers => OVERRIDE_CONTAINERS,
            Self::Old => OVERRIDE_OLD,
        }
    }

    /// Returns whether symbolic links are plain files: `user.` xattrs exist on regular files and directories alone.
    pub fn keeps_links_in_files(self) -> bool {
        self != Self::Security
    }

    /// Reads what is kept for `name` in `dir`; an empty name is `dir` itself. Errors: EIO for garbage.
    pub fn get(self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<Option<OverrideStat>> {
        let mut value = [0; 128];
        match xattr::get(dir, name, OsStr::new(self.name()), &mut value) {
            Ok(len) => OverrideStat::parse(value.get(..len).unwrap_or_default()).map(Some).inspect_err(|_| {
                log::warn!("{name:?}: its {} is garbage", self.name());
            }),
            // EPERM: `user.` on a kind of file that cannot have one. EACCES: on one that this user may not read, which then
            // is what the file itself says.
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => Ok(None),
            Err(Errno::RANGE) => Err(Errno::IO),
            Err(errno) => Err(errno),
        }
    }

    /// Keeps `stat` for `name` in `dir`; an empty name is `dir` itself.
    pub fn set(self, dir: BorrowedFd<'_>, name: &OsStr, stat: OverrideStat) -> Result<()> {
        xattr::set(dir, name, OsStr::new(self.name()), &stat.to_bytes(), XattrFlags::empty())
    }

    /// Puts what is kept for the file into its attributes.
    pub fn apply(self, dir: BorrowedFd<'_>, name: &OsStr, attr: Attr) -> Result<Attr> {
        let Some(stat) = self.get(dir, name)? else { return Ok(attr) };
        let (kind, rdev) = match stat.stands_for {
            // Only a plain file can stand for something, and none for a mark that a name is removed.
            Some((kind, rdev)) if attr.kind == FileKind::Regular && (kind, rdev) != (FileKind::Char, (0, 0)) => {
                (kind, rdev)
            }
            _ => (attr.kind, attr.rdev),
        };
        Ok(Attr { uid: stat.uid, gid: stat.gid, mode: stat.mode, kind, rdev, ..attr })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_and_written() {
        let plain = |uid, gid, mode| OverrideStat { uid, gid, mode, stands_for: None };
        for (text, stat) in [
            ("7:8:04755", plain(7, 8, 0o4755)),
            ("0:0:0555", plain(0, 0, 0o555)),
            ("1:2:00", plain(1, 2, 0)),
            ("7:8:0644:pipe", OverrideStat { stands_for: Some((FileKind::Fifo, (0, 0))), ..plain(7, 8, 0o644) }),
            ("7:8:0644:socket", OverrideStat { stands_for: Some((FileKind::Socket, (0, 0))), ..plain(7, 8, 0o644) }),
            ("7:8:0777:symlink", OverrideStat { stands_for: Some((FileKind::Symlink, (0, 0))), ..plain(7, 8, 0o777) }),
            (
                "7:8:0600:block-8-17",
                OverrideStat { stands_for: Some((FileKind::Block, (8, 17))), ..plain(7, 8, 0o600) },
            ),
            ("7:8:0600:char-1-3", OverrideStat { stands_for: Some((FileKind::Char, (1, 3))), ..plain(7, 8, 0o600) }),
        ] {
            assert_eq!(OverrideStat::parse(text.as_bytes()), Ok(stat), "{text}");
            assert_eq!(String::from_utf8_lossy(&stat.to_bytes()), text);
        }
        // As others write them.
        assert_eq!(OverrideStat::parse(b"7:8:104755"), Ok(plain(7, 8, 0o4755)));
        assert_eq!(OverrideStat::parse(b"7:8:755:file"), Ok(plain(7, 8, 0o755)));
        assert_eq!(OverrideStat::parse(b"7:8:0755:dir\0"), Ok(plain(7, 8, 0o755)));
    }

    #[test]
    fn garbage_is_no_answer() {
        for text in [
            "",
            "7",
            "7:8",
            "7:8:",
            "7:8:9",
            "-7:8:0644",
            "7:8:0644:",
            "7:8:0644:tree",
            "7:8:0644:file-1",
            "7:8:0644:char",
            "7:8:0644:char-1",
            "7:8:0644:char-1-2-3",
            "7:8:0644:pipe-1-2",
            "7:8:0644:file:more",
            "4294967295:0:0644",
            "4294967296:0:0644",
        ] {
            assert_eq!(OverrideStat::parse(text.as_bytes()), Err(Errno::IO), "{text}");
        }
        assert_eq!(OverrideStat::parse(b"7:8:0644\xff"), Err(Errno::IO));
    }
}

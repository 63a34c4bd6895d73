//! What an operation is done to: a union in this process, or a mount.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, RenameFlags as SysFlags, Timespec, Timestamps, XattrFlags};
use unionfs_rs::union::{FileKind, RenameFlags, SetAttr, SetTime, Union};

use crate::acts;

/// A union, by path.
#[derive(Clone, Copy)]
pub enum Subject<'a> {
    /// Called as a library.
    Union(&'a Union),
    /// Mounted here.
    Mount(&'a Path),
}

type Result = std::result::Result<(), String>;

/// Runs one of the two, and has the error in words.
macro_rules! either {
    ($self:ident, $union:ident => $called:expr, $at:ident => $mounted:expr) => {
        match $self {
            Subject::Union($union) => $called.map_err(|error| error.to_string()),
            Subject::Mount($at) => $mounted.map_err(|error| error.to_string()),
        }
    };
}

impl Subject<'_> {
    pub fn mkdir(self, path: &str) -> Result {
        let bits = Mode::from_raw_mode(0o755);
        either!(self, union => acts::mkdir(union, path), at => rustix::fs::mkdir(at.join(path), bits))
    }

    pub fn touch(self, path: &str) -> Result {
        either!(self, union => acts::touch(union, path), at => fs::File::create_new(at.join(path)).map(drop))
    }

    pub fn write(self, path: &str, data: &str) -> Result {
        let written = |at: &Path| {
            let file = fs::File::options().write(true).open(at.join(path))?;
            file.write_all_at(data.as_bytes(), 0)
        };
        either!(self, union => acts::write(union, path, data), at => written(at))
    }

    pub fn symlink(self, target: &str, path: &str) -> Result {
        either!(self, union => acts::symlink(union, target, path), at => symlink(target, at.join(path)))
    }

    pub fn mknod(self, path: &str, kind: FileKind, (major, minor): (u32, u32)) -> Result {
        let (bits, rdev) = (Mode::from_raw_mode(0o640), rustix::fs::makedev(major, minor));
        let made = |at: &Path| rustix::fs::mknodat(CWD, at.join(path), kind.file_type(), bits, rdev);
        either!(self, union => acts::mknod(union, path, kind, (major, minor)), at => made(at))
    }

    pub fn link(self, of: &str, to: &str) -> Result {
        either!(self, union => acts::link(union, of, to), at => fs::hard_link(at.join(of), at.join(to)))
    }

    pub fn unlink(self, path: &str) -> Result {
        either!(self, union => acts::unlink(union, path), at => fs::remove_file(at.join(path)))
    }

    pub fn rmdir(self, path: &str) -> Result {
        either!(self, union => acts::rmdir(union, path), at => fs::remove_dir(at.join(path)))
    }

    pub fn rename(self, from: &str, to: &str) -> Result {
        self.rename_with(from, to, RenameFlags::empty())
    }

    pub fn rename_with(self, from: &str, to: &str, flags: RenameFlags) -> Result {
        let sys = SysFlags::from_bits_retain(flags.bits());
        let renamed = |at: &Path| rustix::fs::renameat_with(CWD, at.join(from), CWD, at.join(to), sys);
        either!(self, union => acts::rename_with(union, from, to, flags), at => renamed(at))
    }

    pub fn set(self, path: &str, set: SetAttr) -> Result {
        either!(self, union => acts::set(union, path, set), at => change(&at.join(path), set))
    }

    pub fn setxattr(self, path: &str, name: &str, value: &[u8]) -> Result {
        let put = |at: &Path| rustix::fs::setxattr(at.join(path), name, value, XattrFlags::empty());
        either!(self, union => acts::setxattr(union, path, name, value), at => put(at))
    }

    pub fn removexattr(self, path: &str, name: &str) -> Result {
        let removed = |at: &Path| rustix::fs::removexattr(at.join(path), name);
        either!(self, union => acts::removexattr(union, path, name), at => removed(at))
    }
}

/// Changes attributes, by the system call for each.
fn change(path: &Path, set: SetAttr) -> rustix::io::Result<()> {
    use rustix::process::{Gid, Uid};
    if set.uid.is_some() || set.gid.is_some() {
        let (uid, gid) = (set.uid.map(Uid::from_raw), set.gid.map(Gid::from_raw));
        rustix::fs::chownat(CWD, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    if let Some(mode) = set.mode {
        rustix::fs::chmod(path, Mode::from_raw_mode(mode))?;
    }
    if let Some(size) = set.size {
        let file = fs::File::options().write(true).open(path);
        file.and_then(|file| file.set_len(size))
            .map_err(|e| rustix::io::Errno::from_io_error(&e).unwrap_or(rustix::io::Errno::IO))?;
    }
    if let (Some(SetTime::To(atime)), Some(SetTime::To(mtime))) = (set.atime, set.mtime) {
        let spec = |time: unionfs_rs::union::Timestamp| Timespec { tv_sec: time.secs, tv_nsec: time.nanos.into() };
        let times = Timestamps { last_access: spec(atime), last_modification: spec(mtime) };
        rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

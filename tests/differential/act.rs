//! How each operation is done, with system calls on whatever is mounted.

use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, RawDir, Stat, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::observe::{brief, contents, describe, errno, hash, when, xattr_names};
use super::op::{At, Follow, Op, SLOTS, Time};
use super::plan::pattern;

/// The descriptors that a run holds on one mount.
pub type Slots = [Option<OwnedFd>; SLOTS];

/// Does one operation and returns what a program sees of it.
pub fn act(op: &Op, slots: &mut Slots) -> Result<String, Errno> {
    match op {
        Op::WriteFile { .. } | Op::ReadFile { .. } | Op::Truncate { .. } => act_on_file(op, slots),
        Op::Mkdir { .. }
        | Op::Mknod { .. }
        | Op::Symlink { .. }
        | Op::Link { .. }
        | Op::Unlink { .. }
        | Op::Rmdir { .. }
        | Op::Rename { .. } => act_on_name(op, slots),
        Op::Stat { .. }
        | Op::Access { .. }
        | Op::Readlink { .. }
        | Op::Statfs { .. }
        | Op::Chmod { .. }
        | Op::Chown { .. }
        | Op::Utimens { .. }
        | Op::SetXattr { .. }
        | Op::GetXattr { .. }
        | Op::ListXattr { .. }
        | Op::RemoveXattr { .. } => act_on_attributes(op, slots),
        Op::RemoveTree { at } => {
            let dir = open_at(slots, at, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW, 0)?;
            let removed = remove_contents(&dir)?;
            rustix::fs::unlinkat(base(slots, at)?, &at.1, AtFlags::REMOVEDIR)?;
            Ok(removed.to_string())
        }
        Op::List { at, buffer } => {
            let dir = open_at(slots, at, OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
            Ok(list(&dir, *buffer)?.join(" "))
        }
        Op::ListAndUnlink { at, buffer } => {
            let dir = open_at(slots, at, OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
            list_and_unlink(&dir, *buffer)
        }
        Op::Open { slot, at, flags, mode } => {
            slots[*slot] = None;
            let opened = open_at(slots, at, *flags, *mode)?;
            slots[*slot] = Some(opened);
            Ok(String::new())
        }
        Op::Umask { mask } => {
            rustix::process::umask(Mode::from_raw_mode(*mask));
            Ok(String::new())
        }
        _ => act_on_slot(op, slots),
    }
}

fn act_on_file(op: &Op, slots: &Slots) -> Result<String, Errno> {
    match op {
        Op::WriteFile { at, flags, mode, offset, len, seed } => {
            let file = open_at(slots, at, *flags | OFlags::NONBLOCK, *mode)?;
            let done = if *len == 0 {
                0
            } else if flags.contains(OFlags::APPEND) {
                rustix::io::write(&file, &pattern(*seed, *len))?
            } else {
                rustix::io::pwrite(&file, &pattern(*seed, *len), *offset)?
            };
            Ok(format!("{done} {}", describe(&rustix::fs::fstat(&file)?)))
        }
        Op::ReadFile { at } => {
            let file = open_at(slots, at, OFlags::RDONLY | OFlags::NONBLOCK, 0)?;
            contents(file.as_fd())
        }
        Op::Truncate { path, len } => {
            let same = rustix::fs::stat(path).is_ok_and(|stat| u64::try_from(stat.st_size) == Ok(*len));
            truncate(path, *len)?;
            if same {
                // An unchanged size leaves the mtime on xfs, btrfs and tmpfs, and so in the kernel's overlay; ext4 sets
                // it, and so does ours. ftruncate(2) sets it everywhere.
                rustix::fs::ftruncate(rustix::fs::open(path, OFlags::WRONLY, Mode::empty())?, *len)?;
            }
            Ok(String::new())
        }
        other => unreachable!("{other:?} is no operation on a whole file"),
    }
}

fn act_on_name(op: &Op, slots: &Slots) -> Result<String, Errno> {
    let done = String::new();
    match op {
        Op::Mkdir { at, mode } => {
            rustix::fs::mkdirat(base(slots, at)?, &at.1, Mode::from_raw_mode(*mode))?;
        }
        Op::Mknod { at, kind, mode, device } => {
            let device = rustix::fs::makedev(device.0, device.1);
            rustix::fs::mknodat(base(slots, at)?, &at.1, *kind, Mode::from_raw_mode(*mode), device)?;
        }
        Op::Symlink { target, at } => rustix::fs::symlinkat(target, base(slots, at)?, &at.1)?,
        Op::Link { from, to, follow } => {
            let flags = match follow {
                Follow::Yes => AtFlags::SYMLINK_FOLLOW,
                Follow::No => AtFlags::empty(),
            };
            rustix::fs::linkat(base(slots, from)?, &from.1, base(slots, to)?, &to.1, flags)?;
            let one = stat_at(slots, from, *follow)?;
            let two = stat_at(slots, to, Follow::No)?;
            return Ok(format!("{} same={}", describe(&two), one.st_ino == two.st_ino));
        }
        Op::Unlink { at } => rustix::fs::unlinkat(base(slots, at)?, &at.1, AtFlags::empty())?,
        Op::Rmdir { at } => rustix::fs::unlinkat(base(slots, at)?, &at.1, AtFlags::REMOVEDIR)?,
        Op::Rename { from, to, flags, probe } => {
            let before = if *probe { stat_at(slots, from, Follow::No).ok() } else { None };
            rustix::fs::renameat_with(base(slots, from)?, &from.1, base(slots, to)?, &to.1, *flags)?;
            if let Some(before) = before {
                let after = stat_at(slots, to, Follow::No)?;
                return Ok(format!("{} same={}", describe(&after), before.st_ino == after.st_ino));
            }
        }
        other => unreachable!("{other:?} is no operation on a name"),
    }
    Ok(done)
}

fn act_on_attributes(op: &Op, slots: &Slots) -> Result<String, Errno> {
    match op {
        Op::Stat { at, follow } => return Ok(describe(&stat_at(slots, at, *follow)?)),
        Op::Access { at, access } => {
            rustix::fs::accessat(base(slots, at)?, &at.1, *access, AtFlags::EACCESS)?;
        }
        Op::Readlink { at } => {
            let target = rustix::fs::readlinkat(base(slots, at)?, &at.1, Vec::new())?;
            return Ok(target.as_bytes().escape_ascii().to_string());
        }
        Op::Statfs { path } => {
            let answer = rustix::fs::statfs(path)?;
            return Ok(format!("namelen={} bsize={}", answer.f_namelen, answer.f_bsize));
        }
        Op::Chmod { at, mode } => {
            let mode = Mode::from_raw_mode(*mode);
            rustix::fs::chmodat(base(slots, at)?, &at.1, mode, AtFlags::empty())?;
            return Ok(describe(&stat_at(slots, at, Follow::Yes)?));
        }
        Op::Chown { at, uid, gid, follow } => {
            let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
            rustix::fs::chownat(base(slots, at)?, &at.1, uid, gid, follow.flags())?;
            return Ok(describe(&stat_at(slots, at, *follow)?));
        }
        Op::Utimens { at, atime, mtime, follow } => {
            let times = Timestamps { last_access: atime.timespec(), last_modification: mtime.timespec() };
            rustix::fs::utimensat(base(slots, at)?, &at.1, &times, follow.flags())?;
            let stat = stat_at(slots, at, *follow)?;
            // Reading sets it too, or not, as the mount options say; what was asked for is exact.
            let atime = match atime {
                Time::Omit => String::new(),
                Time::Now | Time::Set(..) => when(stat.st_atime, stat.st_atime_nsec as i64),
            };
            return Ok(format!("{} atime={atime}", describe(&stat)));
        }
        Op::SetXattr { path, name, value, flags, follow } => match follow {
            Follow::Yes => rustix::fs::setxattr(path, name.as_str(), &value.0, *flags)?,
            Follow::No => rustix::fs::lsetxattr(path, name.as_str(), &value.0, *flags)?,
        },
        Op::GetXattr { path, name, follow } => {
            let mut value = Vec::with_capacity(65536);
            let space = rustix::buffer::spare_capacity(&mut value);
            match follow {
                Follow::Yes => rustix::fs::getxattr(path, name.as_str(), space)?,
                Follow::No => rustix::fs::lgetxattr(path, name.as_str(), space)?,
            };
            return Ok(brief(&value));
        }
        Op::ListXattr { path, follow } => {
            let mut names = Vec::with_capacity(65536);
            let space = rustix::buffer::spare_capacity(&mut names);
            match follow {
                Follow::Yes => rustix::fs::listxattr(path, space)?,
                Follow::No => rustix::fs::llistxattr(path, space)?,
            };
            return Ok(xattr_names(&names));
        }
        Op::RemoveXattr { path, name, follow } => match follow {
            Follow::Yes => rustix::fs::removexattr(path, name.as_str())?,
            Follow::No => rustix::fs::lremovexattr(path, name.as_str())?,
        },
        other => unreachable!("{other:?} is no operation on attributes"),
    }
    Ok(String::new())
}

fn act_on_slot(op: &Op, slots: &mut Slots) -> Result<String, Errno> {
    let held = |slot: usize| slots[slot].as_ref().ok_or(Errno::BADF);
    match op {
        Op::Close { slot } => {
            held(*slot)?;
            slots[*slot] = None;
        }
        Op::Read { slot, offset, len } => {
            let mut bytes = vec![0; *len];
            let done = rustix::io::pread(held(*slot)?, &mut bytes, *offset)?;
            return Ok(read_answer(&bytes[..done]));
        }
        Op::Write { slot, offset, len, seed } => {
            let bytes = pattern(*seed, *len);
            let done = match offset {
                Some(offset) => rustix::io::pwrite(held(*slot)?, &bytes, *offset)?,
                None => rustix::io::write(held(*slot)?, &bytes)?,
            };
            return Ok(format!("{done} {}", describe(&rustix::fs::fstat(held(*slot)?)?)));
        }
        Op::Ftruncate { slot, len } => rustix::fs::ftruncate(held(*slot)?, *len)?,
        Op::Fallocate { slot, mode, offset, len } => {
            rustix::fs::fallocate(held(*slot)?, *mode, *offset, *len)?;
            return Ok(describe(&rustix::fs::fstat(held(*slot)?)?));
        }
        Op::Seek { slot, to } => {
            let file = held(*slot)?;
            // The offset of a directory is a cookie that each file system chooses.
            if FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode) != FileType::Directory {
                return Ok(rustix::fs::seek(file, *to)?.to_string());
            }
        }
        Op::CopyRange { from, to, offset, to_offset, len } => {
            let (mut offset, mut to_offset) = (*offset, *to_offset);
            let (from, to) = (held(*from)?, held(*to)?);
            let done = rustix::fs::copy_file_range(from, Some(&mut offset), to, Some(&mut to_offset), *len)?;
            return Ok(format!("{done} {}", describe(&rustix::fs::fstat(to)?)));
        }
        Op::Fstat { slot } => return Ok(describe(&rustix::fs::fstat(held(*slot)?)?)),
        Op::SameInode { slot, at } => {
            let one = rustix::fs::fstat(held(*slot)?)?;
            let two = stat_at(slots, at, Follow::No)?;
            return Ok(format!("same={}", one.st_ino == two.st_ino));
        }
        Op::Fchmod { slot, mode } => rustix::fs::fchmod(held(*slot)?, Mode::from_raw_mode(*mode))?,
        Op::Fchown { slot, uid, gid } => {
            let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
            rustix::fs::fchown(held(*slot)?, uid, gid)?;
        }
        Op::Futimens { slot, mtime } => {
            let times = Timestamps { last_access: Time::Omit.timespec(), last_modification: mtime.timespec() };
            rustix::fs::futimens(held(*slot)?, &times)?;
            return Ok(describe(&rustix::fs::fstat(held(*slot)?)?));
        }
        Op::Fsync { slot } => rustix::fs::fsync(held(*slot)?)?,
        Op::FsetXattr { slot, name, value } => {
            rustix::fs::fsetxattr(held(*slot)?, name.as_str(), &value.0, XattrFlags::empty())?;
        }
        Op::FlistXattr { slot } => {
            let mut names = Vec::with_capacity(65536);
            rustix::fs::flistxattr(held(*slot)?, rustix::buffer::spare_capacity(&mut names))?;
            return Ok(xattr_names(&names));
        }
        Op::FremoveXattr { slot, name } => rustix::fs::fremovexattr(held(*slot)?, name.as_str())?,
        other => unreachable!("{other:?} is no operation on a descriptor"),
    }
    Ok(String::new())
}

/// Returns the answer to a read that gave `bytes`.
pub fn read_answer(bytes: &[u8]) -> String {
    format!("{} {:016x}", bytes.len(), hash(bytes))
}

fn base<'a>(slots: &'a Slots, at: &At) -> Result<BorrowedFd<'a>, Errno> {
    match at.0 {
        Some(slot) => Ok(slots[slot].as_ref().ok_or(Errno::BADF)?.as_fd()),
        None => Ok(CWD),
    }
}

fn open_at(slots: &Slots, at: &At, flags: OFlags, mode: u32) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC;
    rustix::fs::openat(base(slots, at)?, &at.1, flags, Mode::from_raw_mode(mode))
}

fn stat_at(slots: &Slots, at: &At, follow: Follow) -> Result<Stat, Errno> {
    rustix::fs::statat(base(slots, at)?, &at.1, follow.flags())
}

#[expect(unsafe_code, reason = "neither std nor rustix has truncate(2) by name, which is a request of its own")]
fn truncate(path: &Path, len: u64) -> Result<(), Errno> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
    // SAFETY: path is a string that ends in NUL and outlives the call.
    if unsafe { libc::truncate(path.as_ptr(), len as libc::off_t) } == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    Err(Errno::from_raw_os_error(error))
}

/// Returns a name as one word, since spaces stand between the entries of a listing.
fn word(name: &std::ffi::CStr) -> String {
    name.to_bytes().escape_ascii().to_string().replace(' ', "\\x20")
}

/// Returns "name type" of every entry, sorted.
pub fn list(dir: &OwnedFd, buffer: usize) -> Result<Vec<String>, Errno> {
    let mut space = vec![MaybeUninit::uninit(); buffer];
    let mut entries = RawDir::new(dir, &mut space);
    let mut all = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = word(entry.file_name());
        all.push(format!("{name}:{:?}", entry.file_type()));
    }
    all.sort();
    Ok(all)
}

/// Removes all that is in `dir` and returns how much that was. It goes on after an error and returns the
/// first one: which entries come before it depends on the order of the listing.
fn remove_contents(dir: &OwnedFd) -> Result<usize, Errno> {
    let mut space = vec![MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(dir, &mut space);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        names.push(entry?.file_name().to_owned());
    }
    names.retain(|name| !matches!(name.to_bytes(), b"." | b".."));
    names.sort();
    let mut removed = 0;
    let mut result = Ok(());
    for name in &names {
        let done = match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => remove_subtree(dir, name),
            // What is not there is what was wanted; the kernel's overlayfs lists such names.
            Err(Errno::NOENT) => Ok(0),
            other => other.map(|()| 1),
        };
        match done {
            Ok(count) => removed += count,
            Err(error) => result = result.and(Err(error)),
        }
    }
    result.map(|()| removed)
}

fn remove_subtree(dir: &OwnedFd, name: &std::ffi::CStr) -> Result<usize, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let below = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    let removed = remove_contents(&below)?;
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?;
    Ok(removed + 1)
}

/// Removes what can be unlinked while the listing goes on. readdir(3) promises that each entry which
/// is there from the beginning to the end is seen once, and says nothing of the removed ones but
/// that none can be seen twice.
fn list_and_unlink(dir: &OwnedFd, buffer: usize) -> Result<String, Errno> {
    let mut space = vec![MaybeUninit::uninit(); buffer];
    let mut entries = RawDir::new(dir, &mut space);
    let mut seen = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_owned();
        let outcome = match name.to_bytes() {
            b"." | b".." => "kept".to_owned(),
            _ => match rustix::fs::unlinkat(dir, &name, AtFlags::empty()) {
                Ok(()) => "unlinked".to_owned(),
                Err(error) => errno(error),
            },
        };
        seen.push(format!("{}:{outcome}", word(&name)));
    }
    seen.sort();
    Ok(seen.join(" "))
}

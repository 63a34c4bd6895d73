//! What a program sees, as text: without what two correct mounts may differ in (the numbers of new
//! files, times that are "now").

use std::fmt::Write as _;

use rustix::fd::BorrowedFd;
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

/// Returns the name of an errno, which says more in a report than its number.
pub fn errno(error: Errno) -> String {
    let name = match error {
        Errno::PERM => "EPERM",
        Errno::NOENT => "ENOENT",
        Errno::IO => "EIO",
        Errno::NXIO => "ENXIO",
        Errno::BADF => "EBADF",
        Errno::AGAIN => "EAGAIN",
        Errno::NOMEM => "ENOMEM",
        Errno::ACCESS => "EACCES",
        Errno::BUSY => "EBUSY",
        Errno::EXIST => "EEXIST",
        Errno::XDEV => "EXDEV",
        Errno::NODEV => "ENODEV",
        Errno::NOTDIR => "ENOTDIR",
        Errno::ISDIR => "EISDIR",
        Errno::INVAL => "EINVAL",
        Errno::TXTBSY => "ETXTBSY",
        Errno::FBIG => "EFBIG",
        Errno::NOSPC => "ENOSPC",
        Errno::SPIPE => "ESPIPE",
        Errno::ROFS => "EROFS",
        Errno::MLINK => "EMLINK",
        Errno::PIPE => "EPIPE",
        Errno::RANGE => "ERANGE",
        Errno::NAMETOOLONG => "ENAMETOOLONG",
        Errno::NOSYS => "ENOSYS",
        Errno::NOTEMPTY => "ENOTEMPTY",
        Errno::LOOP => "ELOOP",
        Errno::NODATA => "ENODATA",
        Errno::OVERFLOW => "EOVERFLOW",
        Errno::OPNOTSUPP => "EOPNOTSUPP",
        Errno::STALE => "ESTALE",
        Errno::NOTCONN => "ENOTCONN",
        other => return format!("errno {}", other.raw_os_error()),
    };
    name.to_owned()
}

/// Returns a time, or "now" where it was taken from the clock during this run.
pub fn when(seconds: i64, nanoseconds: i64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_secs() as i64);
    if (now - seconds).abs() < 86_400 { "now".to_owned() } else { format!("{seconds}.{nanoseconds:09}") }
}

/// Returns what a program may rely on in a stat. The size and the link count of a directory are its
/// file system's own affair.
pub fn describe(stat: &Stat) -> String {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let mut text = format!(
        "{kind:?} {:04o} {}:{} mtime={}",
        stat.st_mode & 0o7777,
        stat.st_uid,
        stat.st_gid,
        when(stat.st_mtime, stat.st_mtime_nsec as i64),
    );
    if kind != FileType::Directory {
        // Writing to a String cannot fail.
        let _ = write!(text, " size={} nlink={}", stat.st_size, stat.st_nlink);
    }
    if matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) {
        // As above.
        let _ = write!(text, " rdev={:x}", stat.st_rdev);
    }
    text
}

/// Returns a value as text, a long one by its length and its hash.
pub fn brief(value: &[u8]) -> String {
    if value.len() > 60 {
        return format!("{} bytes {:016x}", value.len(), hash(value));
    }
    value.escape_ascii().to_string()
}

/// Returns the FNV-1a hash of `bytes`.
pub fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// Returns the length and the hash of all that can be read from `file`.
pub fn contents(file: BorrowedFd<'_>) -> Result<String, Errno> {
    let mut all = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let done = rustix::io::read(file, &mut buffer)?;
        if done == 0 {
            return Ok(format!("{} bytes {:016x}", all.len(), hash(&all)));
        }
        all.extend_from_slice(&buffer[..done]);
    }
}

/// Returns the names of a list that listxattr(2) gave, sorted.
pub fn xattr_names(list: &[u8]) -> String {
    let mut names: Vec<_> = names(list).map(|name| name.escape_ascii().to_string()).collect();
    names.sort();
    names.join(" ")
}

/// Splits a list that listxattr(2) gave, without the name under which xfs shows an ACL a second time: a file that is
/// copied up to xfs has it at once, and those that the kernel has copied up already are others than ours.
pub fn names(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == 0).filter(|name| !name.is_empty() && !name.starts_with(b"trusted.SGI_ACL_"))
}

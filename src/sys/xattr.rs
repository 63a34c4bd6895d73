//! Extended attributes by directory and name, without following a symbolic link.
//!
//! `getxattrat(2)` and its family (Linux 6.13) take an O_PATH descriptor and a name. Older kernels get
//! the same through /proc/self/fd. An empty name is the descriptor's own file; for that the calls would
//! refuse an O_PATH descriptor (EBADF), so it always goes through /proc/self/fd.
#![allow(unsafe_code)]

use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::XattrFlags;
use rustix::io::{Errno, Result};

// The numbers are the same on every architecture that Linux runs on.
const SYS_SETXATTRAT: libc::c_long = 463;
const SYS_GETXATTRAT: libc::c_long = 464;
const SYS_LISTXATTRAT: libc::c_long = 465;
const SYS_REMOVEXATTRAT: libc::c_long = 466;

/// The kernel's limit on one value and on the list of names (XATTR_SIZE_MAX, XATTR_LIST_MAX).
pub const XATTR_MAX: usize = 64 * 1024;

#[repr(C)]
struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}

/// Set once the kernel has said that it lacks the calls.
static LACKING: AtomicBool = AtomicBool::new(false);

/// Makes every later call take the /proc/self/fd way, as on a kernel before 6.13.
#[doc(hidden)]
pub fn forget_at_calls() {
    LACKING.store(true, Ordering::Relaxed); // Relaxed: guards nothing but itself.
}

fn c_string(name: &OsStr) -> Result<CString> {
    CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)
}

/// Turns the return value of `syscall` into a result; `None` when the kernel lacks the call.
fn outcome(ret: libc::c_long) -> Option<Result<usize>> {
    if let Ok(len) = usize::try_from(ret) {
        return Some(Ok(len));
    }
    let errno = std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
    if errno == Errno::NOSYS {
        LACKING.store(true, Ordering::Relaxed); // Relaxed: guards nothing but itself.
        return None;
    }
    Some(Err(errno))
}

fn lacking() -> bool {
    LACKING.load(Ordering::Relaxed) // Relaxed: a stale answer costs one more ENOSYS.
}

/// The path of `name` in `dir` through /proc, and whether its last part is a magic link to be followed.
fn fallback(dir: BorrowedFd<'_>, name: &OsStr) -> (OsString, bool) {
    let mut path = super::proc_path(dir).into_bytes();
    if name.is_empty() {
        return (OsString::from_vec(path), true);
    }
    path.push(b'/');
    path.extend_from_slice(name.as_bytes());
    (OsString::from_vec(path), false)
}

/// Reads `xattr` of `name` in `dir` into `value`; returns its length.
///
/// An empty `value` asks for the length alone. Errors: ENODATA, ERANGE, EOPNOTSUPP and those of path resolution.
pub fn get(dir: BorrowedFd<'_>, name: &OsStr, xattr: &OsStr, value: &mut [u8]) -> Result<usize> {
    if !name.is_empty() && !lacking() {
        let (path, key) = (c_string(name)?, c_string(xattr)?);
        let args = XattrArgs { value: value.as_mut_ptr() as u64, size: value.len().min(XATTR_MAX) as u32, flags: 0 };
        // SAFETY: path and key are C strings and args points to a buffer of args.size bytes; all outlive the call.
        let ret = unsafe {
            libc::syscall(
                SYS_GETXATTRAT,
                dir.as_raw_fd(),
                path.as_ptr(),
                libc::AT_SYMLINK_NOFOLLOW,
                key.as_ptr(),
                &raw const args,
                size_of::<XattrArgs>(),
            )
        };
        if let Some(done) = outcome(ret) {
            return done;
        }
    }
    let (path, follow) = fallback(dir, name);
    if follow { rustix::fs::getxattr(&path, xattr, value) } else { rustix::fs::lgetxattr(&path, xattr, value) }
}

/// Reads `xattr` of `name` in `dir` whole. Errors: ENODATA, EOPNOTSUPP and those of path resolution.
pub fn whole(dir: BorrowedFd<'_>, name: &OsStr, xattr: &OsStr) -> Result<Vec<u8>> {
    let mut small = [0u8; 256];
    match get(dir, name, xattr, &mut small) {
        Ok(len) => return Ok(small[..len].to_vec()),
        Err(Errno::RANGE) => {}
        Err(errno) => return Err(errno),
    }
    let mut value = vec![0; XATTR_MAX];
    let len = get(dir, name, xattr, &mut value)?;
    value.truncate(len);
    Ok(value)
}

/// Reads `xattr` of `name` in `dir` as [`whole`]; `None` when there is none, or none can be.
pub fn read(dir: BorrowedFd<'_>, name: &OsStr, xattr: &OsStr) -> Result<Option<Vec<u8>>> {
    match whole(dir, name, xattr) {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Lists the names of the xattrs of `name` in `dir`; none where the file system has no xattrs.
pub fn list(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Vec<OsString>> {
    let mut small = [0u8; 512];
    match list_into(dir, name, &mut small) {
        Ok(len) => return Ok(split(&small[..len])),
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(Errno::RANGE) => {}
        Err(errno) => return Err(errno),
    }
    let mut names = vec![0; XATTR_MAX];
    let len = list_into(dir, name, &mut names)?;
    Ok(split(&names[..len]))
}

fn split(names: &[u8]) -> Vec<OsString> {
    names.split(|&b| b == 0).filter(|n| !n.is_empty()).map(|n| OsStr::from_bytes(n).to_owned()).collect()
}

fn list_into(dir: BorrowedFd<'_>, name: &OsStr, names: &mut [u8]) -> Result<usize> {
    if !name.is_empty() && !lacking() {
        let path = c_string(name)?;
        // SAFETY: path is a C string; names is writable for names.len() bytes; both outlive the call.
        let ret = unsafe {
            libc::syscall(
                SYS_LISTXATTRAT,
                dir.as_raw_fd(),
                path.as_ptr(),
                libc::AT_SYMLINK_NOFOLLOW,
                names.as_mut_ptr(),
                names.len(),
            )
        };
        if let Some(done) = outcome(ret) {
            return done;
        }
    }
    let (path, follow) = fallback(dir, name);
    if follow { rustix::fs::listxattr(&path, names) } else { rustix::fs::llistxattr(&path, names) }
}

/// Sets `xattr` of `name` in `dir`.
pub fn set(dir: BorrowedFd<'_>, name: &OsStr, xattr: &OsStr, value: &[u8], flags: XattrFlags) -> Result<()> {
    let size = u32::try_from(value.len()).map_err(|_| Errno::TOOBIG)?;
    if !name.is_empty() && !lacking() {
        let (path, key) = (c_string(name)?, c_string(xattr)?);
        let args = XattrArgs { value: value.as_ptr() as u64, size, flags: flags.bits() };
        // SAFETY: path and key are C strings and args points to size readable bytes; all outlive the call.
        let ret = unsafe {
            libc::syscall(
                SYS_SETXATTRAT,
                dir.as_raw_fd(),
                path.as_ptr(),
                libc::AT_SYMLINK_NOFOLLOW,
                key.as_ptr(),
                &raw const args,
                size_of::<XattrArgs>(),
            )
        };
        if let Some(done) = outcome(ret) {
            return done.map(drop);
        }
    }
    let (path, follow) = fallback(dir, name);
    if follow {
        rustix::fs::setxattr(&path, xattr, value, flags)
    } else {
        rustix::fs::lsetxattr(&path, xattr, value, flags)
    }
}

/// Removes `xattr` of `name` in `dir`.
pub fn remove(dir: BorrowedFd<'_>, name: &OsStr, xattr: &OsStr) -> Result<()> {
    if !name.is_empty() && !lacking() {
        let (path, key) = (c_string(name)?, c_string(xattr)?);
        // SAFETY: path and key are C strings that outlive the call.
        let ret = unsafe {
            libc::syscall(SYS_REMOVEXATTRAT, dir.as_raw_fd(), path.as_ptr(), libc::AT_SYMLINK_NOFOLLOW, key.as_ptr())
        };
        if let Some(done) = outcome(ret) {
            return done.map(drop);
        }
    }
    let (path, follow) = fallback(dir, name);
    if follow { rustix::fs::removexattr(&path, xattr) } else { rustix::fs::lremovexattr(&path, xattr) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn values_round_trip_by_name_by_descriptor_and_without_the_at_calls() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), b"").unwrap();
        let fd = rustix::fs::open(dir.path(), rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        let (name, key) = (OsStr::new("f"), OsStr::new("user.k"));
        for round in 0..2 {
            set(fd.as_fd(), name, key, b"v", XattrFlags::empty()).unwrap();
            assert_eq!(read(fd.as_fd(), name, key).unwrap().as_deref(), Some(&b"v"[..]), "round {round}");
            assert_eq!(list(fd.as_fd(), name).unwrap(), ["user.k"]);
            remove(fd.as_fd(), name, key).unwrap();
            assert_eq!(read(fd.as_fd(), name, key).unwrap(), None);
            set(fd.as_fd(), OsStr::new(""), key, &[7; 4000], XattrFlags::empty()).unwrap();
            assert_eq!(read(fd.as_fd(), OsStr::new(""), key).unwrap().map(|v| v.len()), Some(4000));
            assert_eq!(list(fd.as_fd(), OsStr::new("")).unwrap(), ["user.k"]);
            remove(fd.as_fd(), OsStr::new(""), key).unwrap();
            forget_at_calls();
        }
    }
}

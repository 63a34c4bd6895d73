//! The permission bits of a name, whatever has taken its place meanwhile: fchmodat2(2), Linux 6.6. And those of what is
//! open, also with O_PATH.
#![allow(unsafe_code)]

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result};

// The same on every architecture that Linux runs on, but for alpha.
const SYS_FCHMODAT2: libc::c_long = 452;

/// Set once the kernel has said that it lacks the call.
static LACKING: AtomicBool = AtomicBool::new(false);

/// Makes every later call take the way by a descriptor, as on a kernel before 6.6.
#[doc(hidden)]
pub fn forget_call() {
    LACKING.store(true, Ordering::Relaxed); // Relaxed: guards nothing but itself.
}

/// Sets the permission bits of `name` in `dir`, which fchmodat(2) would follow if it has become a symbolic link.
///
/// Errors: EOPNOTSUPP for a symbolic link.
pub fn set(dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> Result<()> {
    // Relaxed: as above.
    if LACKING.load(Ordering::Relaxed) {
        return set_pinned(dir, name, mode);
    }
    let path = CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)?;
    // SAFETY: path is a C string that outlives the call.
    let ret = unsafe { libc::syscall(SYS_FCHMODAT2, dir.as_raw_fd(), path.as_ptr(), mode, libc::AT_SYMLINK_NOFOLLOW) };
    if ret == 0 {
        return Ok(());
    }
    match std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error) {
        Errno::NOSYS => {
            forget_call();
            set_pinned(dir, name, mode)
        }
        // It may be the answer, or that of a seccomp filter to all that it does not know.
        Errno::PERM => set_pinned(dir, name, mode),
        errno => Err(errno),
    }
}

/// Sets the permission bits of what is behind `fd`, however it was opened.
///
/// Errors: EOPNOTSUPP for a symbolic link.
pub fn set_open(fd: BorrowedFd<'_>, mode: u32) -> Result<()> {
    match rustix::fs::fchmod(fd, Mode::from_raw_mode(mode)) {
        // It was opened with O_PATH.
        Err(Errno::BADF) => rustix::fs::chmod(super::proc_path(fd), Mode::from_raw_mode(mode)),
        done => done,
    }
}

/// As [`set`], by a descriptor that leads to what was under the name when it was opened.
fn set_pinned(dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let pinned = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    set_open(pinned.as_fd(), mode)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn the_mode_of_a_name_is_set_and_none_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "").unwrap();
        symlink("f", dir.path().join("l")).unwrap();
        let fd = rustix::fs::open(dir.path(), OFlags::PATH, Mode::empty()).unwrap();
        let mode = || std::fs::metadata(dir.path().join("f")).unwrap().mode() & 0o7777;
        for (mode_wanted, set) in [(0o4711, set as fn(_, &OsStr, _) -> _), (0o600, set_pinned)] {
            set(fd.as_fd(), OsStr::new("f"), mode_wanted).unwrap();
            assert_eq!(mode(), mode_wanted);
            assert_eq!(set(fd.as_fd(), OsStr::new("l"), 0o777), Err(Errno::OPNOTSUPP));
            assert_eq!(mode(), mode_wanted);
            assert_eq!(set(fd.as_fd(), OsStr::new("none"), 0o777), Err(Errno::NOENT));
        }
    }
}

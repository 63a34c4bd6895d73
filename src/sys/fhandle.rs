//! File handles: name_to_handle_at(2) and open_by_handle_at(2), and the uuid of a file system.
#![allow(unsafe_code)]

use std::ffi::{CString, OsStr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::io::{Errno, Result};

/// A file handle as the kernel encodes it: a type and opaque bytes, unique in its file system.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FileHandle {
    /// The kernel's `enum fid_type`, below 256 for file systems that overlayfs takes handles from.
    pub kind: i32,
    /// The opaque bytes, 128 at most.
    pub bytes: Vec<u8>,
}

#[repr(C)]
struct RawHandle {
    size: u32,
    kind: i32,
    bytes: [u8; libc::MAX_HANDLE_SZ as usize],
}

fn last_errno() -> Errno {
    std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

/// Returns the handle of `name` in `dir`, not following a symbolic link; an empty name is `dir` itself.
///
/// Errors: EOPNOTSUPP where the file system has no handles.
pub fn name_to_handle(dir: BorrowedFd<'_>, name: &OsStr) -> Result<FileHandle> {
    let path = CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)?;
    let mut raw = RawHandle { size: libc::MAX_HANDLE_SZ as u32, kind: 0, bytes: [0; libc::MAX_HANDLE_SZ as usize] };
    let mut mount_id = 0;
    let flags = if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    // SAFETY: path is a C string; raw has the layout of struct file_handle with room for raw.size bytes.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            dir.as_raw_fd(),
            path.as_ptr(),
            &raw mut raw,
            &raw mut mount_id as *mut libc::c_int,
            flags,
        )
    };
    if ret != 0 {
        return Err(last_errno());
    }
    let bytes = raw.bytes.get(..raw.size as usize).ok_or(Errno::OVERFLOW)?.to_vec();
    Ok(FileHandle { kind: raw.kind, bytes })
}

/// Opens the file of `handle` on the file system of `mount`.
///
/// Needs CAP_DAC_READ_SEARCH. Errors: ESTALE when the file is gone, EPERM.
pub fn open_by_handle(mount: BorrowedFd<'_>, handle: &FileHandle) -> Result<OwnedFd> {
    let mut raw = RawHandle { size: 0, kind: handle.kind, bytes: [0; libc::MAX_HANDLE_SZ as usize] };
    raw.bytes.get_mut(..handle.bytes.len()).ok_or(Errno::INVAL)?.copy_from_slice(&handle.bytes);
    raw.size = u32::try_from(handle.bytes.len()).map_err(|_| Errno::INVAL)?;
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: raw has the layout of struct file_handle and holds raw.size bytes; it outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw mut raw, flags) };
    let fd = i32::try_from(fd).map_err(|_| Errno::IO)?;
    if fd < 0 {
        return Err(last_errno());
    }
    // SAFETY: the kernel has just returned fd, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `_IOR(0x15, 0, struct fsuuid2)`: FS_IOC_GETFSUUID, Linux 6.9.
const FS_IOC_GETFSUUID: libc::c_ulong = 0x8011_1500;

#[repr(C)]
struct FsUuid {
    len: u8,
    uuid: [u8; 16],
}

/// `_IOR(0x94, 31, struct btrfs_ioctl_fs_info_args)`: BTRFS_IOC_FS_INFO.
const BTRFS_IOC_FS_INFO: libc::c_ulong = 0x8400_941f;

/// `BTRFS_SUPER_MAGIC` of statfs(2).
const BTRFS: rustix::fs::FsWord = 0x9123_683e_u32 as rustix::fs::FsWord;

/// `struct btrfs_ioctl_fs_info_args`.
#[repr(C)]
struct BtrfsInfo {
    max_id: u64,
    num_devices: u64,
    fsid: [u8; 16],
    rest: [u8; 992],
}

/// Returns the uuid of the file system of `dir`, which must not be opened with O_PATH, as overlayfs sees it.
pub fn filesystem_uuid(dir: BorrowedFd<'_>) -> Result<[u8; 16]> {
    match rustix::fs::fstatfs(dir) {
        // It has one and does not answer the ioctl that is meant for all.
        Ok(statfs) if statfs.f_type == BTRFS => btrfs_uuid(dir),
        _ => common_uuid(dir),
    }
}

fn btrfs_uuid(dir: BorrowedFd<'_>) -> Result<[u8; 16]> {
    let mut answer = BtrfsInfo { max_id: 0, num_devices: 0, fsid: [0; 16], rest: [0; 992] };
    // SAFETY: answer has the layout and the size of struct btrfs_ioctl_fs_info_args, which this ioctl fills.
    let ret = unsafe { libc::ioctl(dir.as_raw_fd(), BTRFS_IOC_FS_INFO, &raw mut answer) };
    if ret == 0 { Ok(answer.fsid) } else { Err(last_errno()) }
}

fn common_uuid(dir: BorrowedFd<'_>) -> Result<[u8; 16]> {
    let mut answer = FsUuid { len: 0, uuid: [0; 16] };
    // SAFETY: answer has the layout of struct fsuuid2, which this ioctl fills.
    let ret = unsafe { libc::ioctl(dir.as_raw_fd(), FS_IOC_GETFSUUID, &raw mut answer) };
    if ret != 0 {
        return Err(last_errno());
    }
    if answer.len == 16 { Ok(answer.uuid) } else { Err(Errno::OPNOTSUPP) }
}

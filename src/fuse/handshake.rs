//! The handshake: what this kernel can do, and what is asked of it.

use std::sync::atomic::Ordering;

use fuser::{InitFlags, KernelConfig, Version};

use super::server::Server;

/// The largest read or write that the kernel sends, in bytes.
const TRANSFER: u32 = 1 << 20;

/// The smallest limit of a write that the kernel takes.
const WRITE_MIN: u32 = 1 << 12;

/// Asks for what the server uses, and settles how it answers without what the kernel lacks; before any request.
pub(super) fn settle(server: &Server, config: &mut KernelConfig) {
    let mut wanted = vec![
        InitFlags::FUSE_DONT_MASK,
        InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        InitFlags::FUSE_DO_READDIRPLUS,
        InitFlags::FUSE_READDIRPLUS_AUTO,
        InitFlags::FUSE_PARALLEL_DIROPS,
        InitFlags::FUSE_CACHE_SYMLINKS,
        InitFlags::FUSE_HAS_IOCTL_DIR,
        InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        InitFlags::FUSE_ASYNC_DIO,
    ];
    if server.acls {
        wanted.push(InitFlags::FUSE_POSIX_ACL);
    }
    // ENOSYS means that the kernel need not ask, where it knows that it may mean that.
    let silent = config.capabilities().contains(InitFlags::FUSE_NO_OPEN_SUPPORT);
    server.opens_files.fetch_or(!silent, Ordering::Relaxed); // Relaxed: no other thread is there yet.
    let silent = config.capabilities().contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
    server.opens_directories.fetch_or(!silent, Ordering::Relaxed); // Relaxed: as above.
    if server.opens_files() {
        // The truncation comes with the open, so that what is cut off is not copied up first.
        wanted.push(InitFlags::FUSE_ATOMIC_O_TRUNC);
    }
    for flag in wanted {
        if config.add_capabilities(flag).is_err() {
            log::info!("this kernel lacks {flag:?}");
        }
    }
    // Since Linux 5.13, which has the protocol's number of 5.12. Before, the server would set them for anybody.
    let checks = config.kernel_abi() >= Version(7, 34);
    server.checks_flags.store(checks, Ordering::Relaxed); // Relaxed: as above.
    if server.offered.is_some() {
        let depth = config.set_max_stack_depth(1).is_ok();
        let on = depth && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok();
        if !on {
            log::warn!("this kernel has no FUSE passthrough (Linux 6.9); files are served by the page cache");
        }
        server.passthrough_on.store(on, Ordering::Relaxed); // Relaxed: no other thread is there yet.
    }
    let max_write = server.max_write.map_or(TRANSFER, |bytes| bytes.get().clamp(WRITE_MIN, TRANSFER));
    for rejected in [config.set_max_write(max_write), config.set_max_readahead(TRANSFER)] {
        if let Err(nearest) = rejected {
            log::debug!("the kernel's limit is {nearest}");
        }
    }
    // Readahead and asynchronous reads that may wait for the server at one time.
    let _ = config.set_max_background(64); // Fails for 0 alone.
}

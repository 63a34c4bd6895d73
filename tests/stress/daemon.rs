//! The mount under stress, and what its daemon holds.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{Mounted, OurMount, Privilege, Spec, number, on_kernel, privilege};

/// Our mount, or the kernel's overlayfs under `UNIONFS_TEST_ON=kernel`.
pub enum AnyMount {
    Ours(Box<OurMount>),
    Kernel(Box<dyn Mounted>),
}

/// What a daemon holds at a time.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    pub descriptors: usize,
    pub resident_kib: u64,
}

impl AnyMount {
    /// Mounts `spec`. Panics with the reason where that fails.
    pub fn start(spec: Spec) -> Self {
        if on_kernel() { Self::Kernel(spec.mount()) } else { Self::Ours(Box::new(spec.mount_ours())) }
    }

    fn inner(&mut self) -> &mut dyn Mounted {
        match self {
            Self::Ours(mount) => mount.as_mut(),
            Self::Kernel(mount) => mount.as_mut(),
        }
    }

    /// Returns the mountpoint.
    pub fn path(&self) -> &Path {
        match self {
            Self::Ours(mount) => mount.path(),
            Self::Kernel(mount) => mount.path(),
        }
    }

    /// Unmounts and mounts again.
    pub fn remount(&mut self) {
        self.inner().remount();
    }

    /// Unmounts.
    pub fn unmount(&mut self) {
        self.inner().unmount().expect("the union can be unmounted");
    }

    /// Returns what the daemon holds; none for the kernel, which has no daemon.
    pub fn usage(&self) -> Option<Usage> {
        let Self::Ours(mount) = self else { return None };
        let proc = format!("/proc/{}", mount.pid()?);
        let descriptors = fs::read_dir(format!("{proc}/fd")).expect("the daemon lives").count();
        let status = fs::read_to_string(format!("{proc}/status")).expect("the daemon lives");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident_kib = resident
            .and_then(|rest| rest.trim().strip_suffix(" kB"))
            .and_then(|number| number.parse().ok())
            .expect("status has VmRSS in kB (proc_pid_status(5))");
        Some(Usage { descriptors, resident_kib })
    }
}

impl Usage {
    /// How many descriptors a daemon may hold more than at the beginning: what one operation that is
    /// still being answered has open. All else goes with the inodes that the kernel has forgotten.
    const MORE_DESCRIPTORS: usize = 16;

    /// How much more memory a daemon may have resident than at the beginning. What is freed goes back
    /// to the allocator, which keeps pages that are in part in use and a heap for each thread; so it
    /// is no leak as long as it does not grow with the work, of which a stress test does far more
    /// than fits in here. `UNIONFS_STRESS_RESIDENT_KIB` says how much where the daemon has another
    /// allocator, as one built with a sanitizer.
    const MORE_RESIDENT_KIB: u64 = 24 * 1024;

    /// Waits until the daemon is back where it was `before`, and panics where that takes longer than
    /// the kernel needs to send its FORGETs.
    pub fn settles(before: &Option<Self>, now: impl Fn() -> Option<Self>) {
        let Some(before) = before else { return };
        // Only root may drop caches; without that the kernel keeps its inodes, and ours with them.
        if privilege() != Privilege::Root {
            return;
        }
        let more_resident_kib = number("UNIONFS_STRESS_RESIDENT_KIB", Self::MORE_RESIDENT_KIB);
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let now = now().expect("the daemon lives");
            let descriptors = now.descriptors <= before.descriptors + Self::MORE_DESCRIPTORS;
            if descriptors && now.resident_kib <= before.resident_kib + more_resident_kib {
                return;
            }
            assert!(Instant::now() < deadline, "the daemon had {before:?} and has {now:?}");
            std::thread::sleep(Duration::from_millis(100));
            // One time drops only what was not used since the last (dcache.c, DCACHE_REFERENCED).
            forget_inodes();
        }
    }
}

/// Makes the kernel forget the inodes and dentries that are not in use, where it may be asked.
pub fn forget_inodes() {
    if privilege() == Privilege::Root {
        fs::write("/proc/sys/vm/drop_caches", "2").expect("root may drop caches");
    }
}

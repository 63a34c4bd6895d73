//! Mounts that the runtime makes itself.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};
use unionfs_rs::config::MountConfig;
use unionfs_rs::error::{Error, ErrorKind};
use unionfs_rs::fuse::Mount;
use unionfs_rs::union::Union;

use crate::support::{Layers, Placement, Tree, Watchdog, require_root};

/// A mount that the test has made, which is taken down whatever becomes of the test.
struct Own {
    at: PathBuf,
}

impl Own {
    /// Mounts /dev/fuse on `at`.
    fn mount(at: &Path) -> (OwnedFd, Self) {
        let device = open_device();
        let words = "rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other";
        let data = CString::new(format!("fd={},{words}", device.as_raw_fd())).expect("there is no zero in it");
        rustix::mount::mount("runtime", at, "fuse.runtime", MountFlags::empty(), Some(&*data)).expect("root may mount");
        (device, Self { at: at.to_owned() })
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // A test that got as far has unmounted it.
        let _ = rustix::mount::unmount(&self.at, UnmountFlags::DETACH);
    }
}

fn open_device() -> OwnedFd {
    fs::File::options().read(true).write(true).open("/dev/fuse").expect("the machine has FUSE").into()
}

fn union(layers: &Layers) -> Union {
    let built = Union::builder().lowers(layers.lowers()).upper(layers.path("upper")).work(layers.path("work")).build();
    built.expect("the layers are good")
}

#[test]
fn an_attached_descriptor_is_served_until_its_owner_unmounts() {
    if !require_root("mounting") {
        return;
    }
    let _watchdog = Watchdog::start();
    let layers = Layers::new(1, Placement::OneFs);
    layers.lower(0).file("f", "lower");
    let (device, own) = Own::mount(&layers.mnt());
    let mount = Mount::attach(union(&layers), device, &MountConfig::new(layers.mnt())).expect("it is mounted");
    let unmounter = mount.unmounter();
    let handle = mount.spawn().expect("a thread can be started");
    let mnt = Tree::at(layers.mnt());
    assert_eq!(mnt.read("f"), b"lower");
    mnt.file("f", "upper");
    let refused = unmounter.unmount().expect_err("the mount is the runtime's");
    assert!(matches!(&refused, Error::NotOurs { mountpoint } if *mountpoint == layers.mnt()), "{refused}");
    assert_eq!(refused.kind(), ErrorKind::NotOurs);
    assert_eq!(mnt.read("f"), b"upper");
    rustix::mount::unmount(&own.at, UnmountFlags::empty()).expect("nobody is in it");
    handle.join().expect("it was served to its end");
    assert_eq!(layers.upper().read("f"), b"upper");
    assert_eq!(layers.work().names("work"), [""; 0], "something is left in the workdir");
}

#[test]
fn a_descriptor_that_cannot_be_served_is_refused_and_leaves_nothing_in_the_workdir() {
    if !require_root("opening /dev/fuse") {
        return;
    }
    let _watchdog = Watchdog::start();
    let layers = Layers::new(1, Placement::OneFs);
    for (fd, reason) in [
        (open_device(), "the attached mount: the kernel's handshake failed"),
        (
            OwnedFd::from(fs::File::open("/dev/null").expect("every system has it")),
            "the attached mount: the descriptor is not /dev/fuse",
        ),
    ] {
        let Err(error) = Mount::attach(union(&layers), fd, &MountConfig::new("")) else { panic!("it was attached") };
        assert!(matches!(&error, Error::Mount { .. }) && error.to_string().starts_with(reason), "{error}");
        assert_eq!(layers.work().names("."), [""; 0], "something is left in the workdir");
    }
}

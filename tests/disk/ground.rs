//! A union with its upper on a file system that is made for one test.

use std::fs;
use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::support::{Io, Layers, Looped, Placement, Spec, record_skip, require_root, run, test_name};

/// A kind of file system.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub make: &'static [&'static str],
    pub name: &'static str,
    pub options: &'static str,
    pub mebibytes: u64,
}

pub const EXT4: Kind = Kind { make: &["mkfs.ext4", "-q", "-F"], name: "ext4", options: "rw", mebibytes: 32 };
/// The least that mkfs.xfs makes.
pub const XFS: Kind = Kind { make: &["mkfs.xfs", "-q", "-f"], name: "xfs", options: "rw", mebibytes: 320 };

/// The layers, and the disk of upper and workdir.
pub struct Ground {
    kind: Kind,
    // Dropped before the directory that it is mounted in.
    disk: Option<Looped>,
    pub layers: Layers,
}

impl Ground {
    /// Makes one, if that is possible here; says why not.
    pub fn new(kind: Kind) -> Option<Self> {
        if let Some(reason) = Looped::obstacle(kind.name) {
            record_skip(&format!("{} on {}", test_name(), kind.name), &reason);
            return None;
        }
        if !require_root("loop mounts") {
            return None;
        }
        let layers = Layers::new(1, Placement::OneFs);
        Looped::make(kind.make, kind.mebibytes, &layers.path("image"));
        let mut ground = Self { kind, disk: None, layers };
        ground.mount();
        for dir in ["upper", "work"] {
            fs::create_dir(ground.path(dir)).expect("a new disk has room");
        }
        run("sync", &["-f", ground.path("").to_str().expect("the test directory has a plain name")]);
        Some(ground)
    }

    /// Returns a path on the disk.
    pub fn path(&self, name: &str) -> PathBuf {
        self.layers.path("disk").join(name)
    }

    fn mount(&mut self) {
        let (image, at) = (self.layers.path("image"), self.layers.path("disk"));
        self.disk = Some(Looped::mount(self.kind.name, self.kind.options, &image, &at));
    }

    /// Takes the disk away, and gives it back as it was left.
    pub fn mount_again(&mut self) {
        self.disk = None;
        self.mount();
    }

    /// Returns the mount of the union.
    pub fn spec(&self) -> Spec {
        let mut spec = self.layers.spec(Io::Cached);
        (spec.upper, spec.work) = (Some(self.path("upper")), Some(self.path("work")));
        spec
    }

    /// Returns what of a mount that is gone is left in the workdir.
    pub fn unfinished(&self) -> Vec<String> {
        crate::support::Tree::at(self.path("work")).names("work")
    }
}

/// Returns the error that something must have.
pub fn errno<T: std::fmt::Debug>(done: io::Result<T>) -> Errno {
    let error = done.expect_err("this cannot be done");
    Errno::from_io_error(&error).unwrap_or_else(|| panic!("{error} is of no system call"))
}

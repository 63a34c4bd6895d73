//! Reading attributes and xattrs, of a file in a lower layer and of one in upper.

use std::cell::LazyCell;
use std::ffi::OsStr;

use criterion::Criterion;
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use unionfs_rs::config::Fsync;
use unionfs_rs::union::{NodeId, Union};

use crate::stage::{Disk, Stage, Upper, look_up};

const XATTR: &str = "user.bench";
const VALUE: &[u8] = b"of sixteen bytes";
const CONTENTS: &[u8] = b"contents";

/// The files, each in the layer that it is called by.
const FILES: [&str; 2] = ["lower", "upper"];

struct Scene {
    // Fields drop in order: the union lets go of the layers before they are removed.
    union: Union,
    /// Each of [`FILES`].
    ids: [NodeId; 2],
    /// Whether the file system has user xattrs, as a tmpfs does since Linux 6.6.
    xattrs: bool,
    _dirs: (Upper, Stage),
}

impl Scene {
    fn new() -> Self {
        let stage = Stage::new(Disk::Memory, 1);
        let upper = stage.upper();
        stage.file(0, "lower", CONTENTS);
        upper.file("upper", CONTENTS);
        let set = [stage.lower(0).join("lower"), upper.path().join("upper")]
            .map(|file| rustix::fs::setxattr(file, XATTR, VALUE, XattrFlags::empty()));
        let union = stage.union(&upper, Fsync::Auto);
        let ids = FILES.map(|name| look_up(&union, NodeId::ROOT, name).id);
        Self { union, ids, xattrs: set.iter().all(Result::is_ok), _dirs: (upper, stage) }
    }
}

/// Adds the benchmarks.
pub fn benches(criterion: &mut Criterion) {
    let scene = LazyCell::new(Scene::new);
    for (at, word) in FILES.into_iter().enumerate() {
        criterion.bench_function(&format!("getattr/{word}"), |bencher| {
            bencher.iter(|| {
                let attr = scene.union.getattr(scene.ids[at]).expect("it is known");
                assert_eq!(attr.size, CONTENTS.len() as u64);
            });
        });
        criterion.bench_function(&format!("getxattr/hit/{word}"), |bencher| {
            if !scene.xattrs {
                eprintln!("skipped: there are no user xattrs where the layers are");
                return bencher.iter(|| ());
            }
            bencher.iter(|| {
                let value = scene.union.getxattr(scene.ids[at], OsStr::new(XATTR)).expect("it was set");
                assert_eq!(value, VALUE);
            });
        });
        // What the kernel asks for at each write.
        criterion.bench_function(&format!("getxattr/miss/{word}"), |bencher| {
            bencher.iter(|| {
                let answer = scene.union.getxattr(scene.ids[at], OsStr::new("security.capability"));
                let error = answer.expect_err("it was not set");
                assert_eq!(error.errno(), Errno::NODATA);
            });
        });
    }
}

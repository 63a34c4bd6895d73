//! Reading small files.

use std::cell::LazyCell;

use criterion::{Criterion, Throughput};
use unionfs_rs::config::Fsync;
use unionfs_rs::union::{NodeId, Union};

use crate::stage::{Disk, Stage, Upper, look_up};

const SIZE: usize = 4096;

struct Scene {
    // Fields drop in order: the union lets go of the layers before they are removed.
    union: Union,
    _dirs: (Upper, Stage),
}

impl Scene {
    fn new() -> Self {
        let stage = Stage::new(Disk::Memory, 1);
        let upper = stage.upper();
        stage.file(0, "lower", [b'l'; SIZE]);
        upper.file("upper", [b'u'; SIZE]);
        Self { union: stage.union(&upper, Fsync::Auto), _dirs: (upper, stage) }
    }
}

/// Reads all of a file, and checks that it is `file`'s.
fn read(union: &Union, id: NodeId, file: &str, buffer: &mut [u8; SIZE]) {
    buffer.fill(0);
    assert_eq!(union.read(id, 0, buffer).expect("it can be read"), SIZE);
    assert_eq!([buffer.first(), buffer.last()], [file.as_bytes().first(); 2]);
}

/// Adds the benchmarks.
pub fn benches(criterion: &mut Criterion) {
    let scene = LazyCell::new(Scene::new);
    let mut group = criterion.benchmark_group("read");
    group.throughput(Throughput::Bytes(SIZE as u64));
    for file in ["lower", "upper"] {
        let mut buffer = [0; SIZE];
        group.bench_function(format!("open/{file}/bytes={SIZE}"), |bencher| {
            let id = look_up(&scene.union, NodeId::ROOT, file).id;
            bencher.iter(|| read(&scene.union, id, file, &mut buffer));
            scene.union.forget(id, 1);
        });
        // With the LOOKUP before and the FORGET after it, so that the file is opened each time.
        group.bench_function(format!("anew/{file}/bytes={SIZE}"), |bencher| {
            bencher.iter(|| {
                let id = look_up(&scene.union, NodeId::ROOT, file).id;
                read(&scene.union, id, file, &mut buffer);
                scene.union.forget(id, 1);
            });
            assert_eq!(scene.union.usage().files, 0, "it was closed each time");
        });
    }
}

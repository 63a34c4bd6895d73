//! Looking names up, and forgetting what was found.

use std::cell::LazyCell;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput};
use rustix::io::Errno;
use unionfs_rs::error::Error;
use unionfs_rs::union::{NodeId, Union};

use crate::stage::{Disk, Stage, look_up, name};

/// Names of its own that the directory has in each layer.
const OWN_NAMES: usize = 16;

/// What is in the file that is looked up.
const CONTENTS: &[u8] = b"from the lowest layer";

/// A directory that every layer has, with a file of the lowest one.
struct Scene {
    // Fields drop in order: the union lets go of the layers before they are removed.
    union: Union,
    dir: NodeId,
    stage: Stage,
}

impl Scene {
    fn new(layers: usize) -> Self {
        let stage = Stage::new(Disk::Memory, layers);
        for layer in 0..layers {
            for number in 0..OWN_NAMES {
                stage.file(layer, &format!("dir/own-{layer}-{number}"), "");
            }
        }
        stage.file(layers - 1, "dir/deep", CONTENTS);
        let union = stage.read_only();
        let dir = look_up(&union, NodeId::ROOT, "dir").id;
        Self { union, dir, stage }
    }
}

/// Looks the file up, and checks that it is the one.
fn find(union: &Union, dir: NodeId) -> NodeId {
    let found = look_up(union, dir, "deep");
    assert_eq!(found.attr.size, CONTENTS.len() as u64);
    found.id
}

/// Adds the benchmarks.
pub fn benches(criterion: &mut Criterion) {
    for layers in [1, 3, 8, 32, 128] {
        lookups(criterion, layers);
    }
    forgets(criterion);
}

fn lookups(criterion: &mut Criterion, layers: usize) {
    let scene = LazyCell::new(|| Scene::new(layers));
    // The directory and the file, the first of all in a new union.
    criterion.bench_function(&format!("lookup/cold/layers={layers}"), |bencher| {
        let find_first = |union: Union| {
            let dir = look_up(&union, NodeId::ROOT, "dir").id;
            find(&union, dir);
            union
        };
        bencher.iter_batched(|| scene.stage.read_only(), find_first, BatchSize::PerIteration);
    });
    // The directory is known, the file was forgotten; with the FORGET.
    criterion.bench_function(&format!("lookup/forgotten/layers={layers}"), |bencher| {
        let known = scene.union.usage().inodes;
        bencher.iter(|| scene.union.forget(find(&scene.union, scene.dir), 1));
        assert_eq!(scene.union.usage().inodes, known, "it was forgotten each time");
    });
    criterion.bench_function(&format!("lookup/warm/layers={layers}"), |bencher| {
        let held = find(&scene.union, scene.dir);
        let mut lookups = 1;
        bencher.iter(|| {
            assert_eq!(find(&scene.union, scene.dir), held);
            lookups += 1;
        });
        scene.union.forget(held, lookups);
    });
    criterion.bench_function(&format!("lookup/miss/layers={layers}"), |bencher| {
        let absent = name("absent");
        bencher.iter(|| {
            let answer = scene.union.lookup(scene.dir, absent);
            assert!(matches!(answer, Err(Error::Refused(Errno::NOENT))));
        });
    });
}

fn forgets(criterion: &mut Criterion) {
    const NAMES: usize = 1000;
    let names: Vec<String> = (0..NAMES).map(|number| format!("{number:04}")).collect();
    let stage = LazyCell::new(|| {
        let stage = Stage::new(Disk::Memory, 1);
        names.iter().for_each(|name| stage.file(0, name, ""));
        stage
    });
    let mut group = criterion.benchmark_group("forget");
    group.throughput(Throughput::Elements(NAMES as u64));
    group.bench_function(format!("names={NAMES}"), |bencher| {
        let union = stage.read_only();
        bencher.iter_custom(|times| {
            let mut taken = Duration::ZERO;
            for _ in 0..times {
                let none = union.usage().inodes;
                let ids: Vec<NodeId> = names.iter().map(|name| look_up(&union, NodeId::ROOT, name).id).collect();
                assert_eq!(union.usage().inodes, none + NAMES);
                let begin = Instant::now();
                for id in &ids {
                    union.forget(*id, 1);
                }
                taken += begin.elapsed();
                assert_eq!(union.usage().inodes, none);
            }
            taken
        });
    });
}

//! Listing directories, each time in a union that has never listed one.

use std::cell::LazyCell;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BatchSize, BenchmarkGroup, Criterion, SamplingMode, Throughput};
use unionfs_rs::config::Fsync;
use unionfs_rs::union::{Flow, Looked, NodeId, Union};

use crate::stage::{Disk, Stage, Upper, look_up};

/// What a directory is made of.
#[derive(Clone, Copy)]
enum Shape {
    /// One part, in a lower layer.
    Lower,
    /// An upper and two lower parts, each with a third of the names; every tenth name is in all three.
    Merged,
}

/// A directory of so many entries.
struct Scene {
    // Fields drop in order: the upper is in a directory of the stage.
    upper: Option<Upper>,
    stage: Stage,
}

impl Scene {
    fn new(shape: Shape, entries: usize) -> Self {
        match shape {
            Shape::Lower => {
                let stage = Stage::new(Disk::Memory, 1);
                (0..entries).for_each(|entry| stage.file(0, &path(entry), ""));
                Self { upper: None, stage }
            }
            Shape::Merged => {
                let stage = Stage::new(Disk::Memory, 2);
                let upper = stage.upper();
                for entry in 0..entries {
                    let everywhere = entry % 10 == 0;
                    if everywhere || entry % 3 == 0 {
                        upper.file(&path(entry), "");
                    }
                    for layer in 0..2 {
                        if everywhere || entry % 3 == layer + 1 {
                            stage.file(layer, &path(entry), "");
                        }
                    }
                }
                Self { upper: Some(upper), stage }
            }
        }
    }

    /// Builds a union that knows the directory and has not listed it.
    fn union(&self) -> (Union, NodeId) {
        let union = match &self.upper {
            None => self.stage.read_only(),
            Some(upper) => self.stage.union(upper, Fsync::Auto),
        };
        let dir = look_up(&union, NodeId::ROOT, "dir").id;
        (union, dir)
    }
}

fn path(entry: usize) -> String {
    format!("dir/entry-{entry:06}")
}

/// Adds the benchmarks.
pub fn benches(criterion: &mut Criterion) {
    for (shape, word) in [(Shape::Lower, "lower"), (Shape::Merged, "merged")] {
        for entries in [1, 1000, 100_000] {
            let scene = LazyCell::new(|| Scene::new(shape, entries));
            let id = format!("{word}/entries={entries}");
            let mut group = group(criterion, "read_dir", entries);
            group.bench_function(&id, |bencher| {
                let list = |(union, dir)| list(union, dir, entries);
                bencher.iter_batched(|| scene.union(), list, BatchSize::PerIteration);
            });
            group.finish();
            let mut group = self::group(criterion, "read_dir_plus", entries);
            group.bench_function(&id, |bencher| {
                let list = |(union, dir)| list_and_look_up(union, dir, entries);
                bencher.iter_batched(|| scene.union(), list, BatchSize::PerIteration);
            });
            group.finish();
        }
    }
}

fn group<'a>(criterion: &'a mut Criterion, what: &str, entries: usize) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(what);
    group.throughput(Throughput::Elements(entries as u64));
    if entries > 1000 {
        group.sampling_mode(SamplingMode::Flat).sample_size(10).warm_up_time(Duration::from_millis(1));
    }
    group
}

/// Lists everything; returns the union, which is taken down when the time is taken.
fn list(union: Union, dir: NodeId, entries: usize) -> Union {
    let mut seen = 0;
    let listed = union.read_dir(dir, 0, |_| {
        seen += 1;
        Flow::More
    });
    listed.expect("it can be listed");
    assert_eq!(seen, entries + 2, "with `.` and `..`");
    union
}

/// Lists everything, and has each entry looked up.
fn list_and_look_up(union: Union, dir: NodeId, entries: usize) -> Union {
    let mut found = 0;
    let listed = union.read_dir_plus(dir, 0, |_, looked| {
        found += usize::from(matches!(looked, Looked::Up(_)));
        Flow::More
    });
    listed.expect("it can be listed");
    assert_eq!(found, entries);
    union
}

//! Making and removing names, and copying files up.

use std::cell::LazyCell;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{Bencher, Criterion, SamplingMode, Throughput};
use unionfs_rs::config::Fsync;
use unionfs_rs::union::{Caller, New, NodeId, Union};

use crate::stage::{Disk, Stage, copy_up_directory, look_up, name};

/// Whether the disk is waited for, and how the names of benchmarks say it.
const WAITS: [(Fsync, &str); 2] = [(Fsync::Auto, "durable"), (Fsync::Volatile, "volatile")];

/// Adds the benchmarks.
pub fn benches(criterion: &mut Criterion) {
    creations(criterion);
    copies_of_small_files(criterion);
    copies_of_a_large_file(criterion);
}

/// Makes a file and removes it again.
fn make_and_remove(union: &Union, dir: NodeId, file: &str, made: impl FnOnce()) {
    let entry = union
        .create(dir, name(file), New::Regular, 0o644, 0, Caller::current())
        .expect("there is no such name, and the directory can be written");
    made();
    union.unlink(dir, name(file)).expect("it was just made");
    union.forget(entry.id, 1);
}

fn creations(criterion: &mut Criterion) {
    let stage = LazyCell::new(|| {
        let stage = Stage::new(Disk::Memory, 1);
        stage.file(0, "below/hidden", "of the lower layer");
        stage
    });
    // In a directory of upper alone; in a merged one; and there a name that the lower layer has, which becomes a whiteout.
    for (id, dir, file) in [("upper", "above", "new"), ("merged", "below", "new"), ("over_whiteout", "below", "hidden")]
    {
        criterion.bench_function(&format!("create_unlink/{id}"), |bencher| {
            let upper = stage.upper();
            let union = stage.union(&upper, Fsync::Auto);
            let caller = Caller::current();
            union.create(NodeId::ROOT, name("above"), New::Directory, 0o755, 0, caller).expect("it is a new name");
            let parent = look_up(&union, NodeId::ROOT, dir).id;
            let path = upper.path().join(dir).join(file);
            if file == "hidden" {
                union.unlink(parent, name(file)).expect("the lower layer has it");
            }
            let is_file = || fs::symlink_metadata(&path).is_ok_and(|is| is.is_file() && is.len() == 0);
            make_and_remove(&union, parent, file, || assert!(is_file(), "upper has it"));
            bencher.iter(|| make_and_remove(&union, parent, file, || ()));
            // A whiteout may be a plain file, which then has an xattr.
            assert_eq!(fs::symlink_metadata(&path).is_ok(), file == "hidden", "a whiteout is left where it must be");
            assert!(union.lookup(parent, name(file)).is_err());
        });
    }
}

/// Copies up `files`, all in the directory `dir`, by a write of a byte, each `times` over; returns the time of the writes.
fn copy_up(stage: &Stage, fsync: Fsync, files: &[String], size: u64, times: u64) -> Duration {
    let mut taken = Duration::ZERO;
    let mut left = usize::try_from(times).expect("as many as can be counted");
    while left > 0 {
        let batch = &files[..left.min(files.len())];
        left -= batch.len();
        let upper = stage.upper();
        let union = stage.union(&upper, fsync);
        let dir = look_up(&union, NodeId::ROOT, "dir").id;
        copy_up_directory(&union, dir);
        let ids: Vec<NodeId> = batch.iter().map(|file| look_up(&union, dir, file).id).collect();
        let before = union.copy_ups();
        let begin = Instant::now();
        for id in &ids {
            union.write(*id, 0, b"x", None).expect("it can be written");
        }
        taken += begin.elapsed();
        let after = union.copy_ups();
        assert_eq!(after.objects - before.objects, batch.len() as u64);
        // File systems that share data copy none.
        let bytes = after.bytes - before.bytes;
        assert!(bytes == 0 || bytes == size * batch.len() as u64, "{bytes} bytes");
        batch.iter().for_each(|file| assert_copied(&upper.path().join("dir").join(file), size));
        union.end().expect("nothing is unfinished");
    }
    taken
}

fn assert_copied(copy: &Path, size: u64) {
    assert_eq!(fs::symlink_metadata(copy).map(|is| is.len()).ok(), Some(size), "{}", copy.display());
}

fn copies_of_small_files(criterion: &mut Criterion) {
    const SIZE: usize = 4096;
    let files: Vec<String> = (0..500).map(|number| format!("{number:03}")).collect();
    let mut group = criterion.benchmark_group("copy_up");
    group.sampling_mode(SamplingMode::Flat);
    for disk in [Disk::Memory, Disk::Temporary] {
        let stage = LazyCell::new(|| {
            let stage = Stage::new(disk, 1);
            files.iter().for_each(|file| stage.file(0, &format!("dir/{file}"), [b'd'; SIZE]));
            stage
        });
        for (sync, word) in WAITS {
            group.bench_function(format!("{}/{word}/bytes={SIZE}", disk.name()), |bencher: &mut Bencher<'_>| {
                bencher.iter_custom(|times| copy_up(&stage, sync, &files, SIZE as u64, times));
            });
        }
    }
}

fn copies_of_a_large_file(criterion: &mut Criterion) {
    const SIZE: usize = 64 << 20;
    let mut group = criterion.benchmark_group("copy_up");
    group.throughput(Throughput::Bytes(SIZE as u64)).sampling_mode(SamplingMode::Flat).sample_size(10);
    for disk in [Disk::Memory, Disk::Temporary] {
        let stage = LazyCell::new(|| {
            let stage = Stage::new(disk, 1);
            stage.file(0, "dir/large", vec![b'd'; SIZE]);
            stage
        });
        for (sync, word) in WAITS {
            group.bench_function(format!("{}/{word}/bytes={SIZE}", disk.name()), |bencher: &mut Bencher<'_>| {
                bencher.iter_custom(|times| copy_up(&stage, sync, &["large".into()], SIZE as u64, times));
            });
        }
    }
}

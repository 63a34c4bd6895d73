//! Making trees of the tars of layers.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode, Throughput};
use tempfile::TempDir;
use unionfs_rs::image::unpack::keep::Keep;
use unionfs_rs::image::unpack::unpack;

use crate::stage::Disk;

/// Adds the benchmarks.
pub fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("extraction");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    // Files in directories of a hundred each; and one that is large.
    for (files, size) in [(1000, 0), (1000, 4096), (1, 64 << 20)] {
        let tar = layer(files, size);
        group.throughput(Throughput::Elements(files));
        group.bench_function(format!("memory/files={files}/bytes={size}"), |bencher| {
            bencher.iter_custom(|times| (0..times).map(|_| extract(&tar, files, size)).sum());
        });
    }
}

/// Returns a tar of `files` files of `size` bytes, and their directories.
fn layer(files: u64, size: u64) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut append = |path: String, kind, mode, data: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(1_700_000_000);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(data.len() as u64);
        builder.append_data(&mut header, path, data).expect("memory takes it");
    };
    let data = vec![b'd'; usize::try_from(size).expect("it fits into memory")];
    for file in 0..files {
        if file.is_multiple_of(100) {
            append(format!("{:02}/", file / 100), tar::EntryType::Directory, 0o755, &[]);
        }
        append(path(file), tar::EntryType::Regular, 0o644, &data);
    }
    builder.into_inner().expect("memory takes it")
}

fn path(file: u64) -> String {
    format!("{:02}/{file:04}", file / 100)
}

/// Unpacks `tar` into a new directory; returns how long that took.
fn extract(tar: &[u8], files: u64, size: u64) -> Duration {
    let dir = TempDir::with_prefix_in("unionfs-bench-", Disk::Memory.path()).expect("the directory can be written");
    let root = File::open(dir.path()).expect("it was just made");
    let begin = Instant::now();
    let outcome = unpack(tar, root.into(), Keep::here()).expect("it is a tar");
    let taken = begin.elapsed();
    assert_eq!(outcome.bytes, files * size);
    assert_whole(&dir.path().join(path(files - 1)), size);
    taken
}

fn assert_whole(file: &Path, size: u64) {
    assert_eq!(fs::symlink_metadata(file).map(|is| is.len()).ok(), Some(size), "{}", file.display());
}

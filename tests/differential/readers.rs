//! Readers of lower files, which passthrough leaves with what they opened.
//!
//! Who opened a file for reading while its data was in a lower layer goes on reading that when the file is copied up
//! (docs/SEMANTICS.md, "The I/O modes"). Whatever else a read gives must be what the kernel gives.

use std::path::Path;

use rustix::fs::{FileType, OFlags};
use unionfs_rs::layer::origin::Origin;

use super::act::read_answer;
use super::op::{Op, SLOTS};

/// What the lower files held that the slots have open for reading.
#[derive(Default)]
pub struct Readers([Option<Vec<u8>>; SLOTS]);

impl Readers {
    /// Takes over that a slot holds another descriptor, or none; `contents` are those of a lower file.
    pub fn set(&mut self, slot: usize, contents: Option<Vec<u8>>) {
        self.0[slot] = contents;
    }

    /// Tells whether `answer` to the read `op` is what the lower file held.
    pub fn explain(&self, op: &Op, answer: &str) -> bool {
        let Op::Read { slot, offset, len } = *op else { return false };
        let Some(contents) = &self.0[slot] else { return false };
        let begin = usize::try_from(offset).map_or(contents.len(), |offset| offset.min(contents.len()));
        let end = begin.saturating_add(len).min(contents.len());
        answer == read_answer(&contents[begin..end])
    }
}

/// Tells whether a descriptor that was opened with `flags` can only read.
pub fn only_reads(flags: OFlags) -> bool {
    !flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::PATH | OFlags::DIRECTORY)
}

/// Tells whether the data of the lower file `ino` is in `upper` or, for a hard link, in the index in `work`.
pub fn has_copy(upper: &Path, work: &Path, ino: u64) -> bool {
    let index = work.join("index");
    is_in(upper, ino) || index.exists() && is_in(&index, ino)
}

fn is_in(dir: &Path, ino: u64) -> bool {
    std::fs::read_dir(dir).expect("a layer of our own").any(|entry| {
        let entry = entry.expect("a layer of our own");
        let (path, kind) = (entry.path(), entry.file_type().expect("a layer of our own"));
        if kind.is_dir() {
            return is_in(&path, ino);
        }
        let origin = xattr(&path, "trusted.overlay.origin").and_then(|value| Origin::decode(&value));
        kind.is_file()
            && origin.and_then(|origin| origin.inode_number()) == Some(ino)
            && xattr(&path, "trusted.overlay.metacopy").is_none()
    })
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = Vec::with_capacity(256);
    // ENODATA for the most part; what cannot be read counts as not there, and then a difference is reported.
    rustix::fs::lgetxattr(path, name, rustix::buffer::spare_capacity(&mut value)).ok()?;
    Some(value)
}

/// Reads all of a regular file through its descriptor, whose offset stays.
pub fn contents(file: &rustix::fd::OwnedFd) -> Option<Vec<u8>> {
    let stat = rustix::fs::fstat(file).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut all = vec![0; usize::try_from(stat.st_size).ok()?];
    let mut done = 0;
    while done < all.len() {
        match rustix::io::pread(file, &mut all[done..], done as u64) {
            Ok(0) | Err(_) => return None,
            Ok(count) => done += count,
        }
    }
    Some(all)
}

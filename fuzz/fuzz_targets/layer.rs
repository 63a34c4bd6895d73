//! Any bytes are the tar of a layer or an error, and touch nothing beside the tree: `cargo fuzz run layer`.
#![no_main]

use std::os::fd::OwnedFd;

use libfuzzer_sys::fuzz_target;
use unionfs_rs::image::unpack::keep::Keep;
use unionfs_rs::image::unpack::unpack;

// Headers have their sum put right, since bytes that are no header end a tar at once.
fuzz_target!(|bytes: &[u8]| {
    let mut tar = bytes.to_vec();
    for block in tar.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    let outside = tempfile::tempdir().expect("there is room");
    let root = outside.path().join("root");
    std::fs::create_dir(&root).expect("there is room");
    let fd = OwnedFd::from(std::fs::File::open(&root).expect("it is there"));
    let _ = unpack(&tar[..], fd, Keep::here()); // That it returns is all that is asked,
    let beside = std::fs::read_dir(outside.path()).expect("it is listed").count();
    assert_eq!(beside, 1); // and this.
});

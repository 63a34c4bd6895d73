//! Any bytes are the tar of a layer or an error; they touch nothing beside the tree, and what was unpacked can be read:
//! `cargo fuzz run layer`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use unionfs_rs_fuzz::{Place, stack, walk};

// Headers have their sum put right, since bytes that are no header end a tar at once.
fuzz_target!(|bytes: &[u8]| {
    let mut tar = bytes.to_vec();
    for block in tar.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    let place = Place::new(&["tree"]);
    if place.unpack("tree", &tar).is_ok() {
        walk(&stack(&[&place.tree("tree")]), &mut |_, _| {});
    }
});

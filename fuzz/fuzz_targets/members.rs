//! Members of any paths and with any links, in any order, touch nothing beside the tree; and what the tree shows, written as a
//! layer and unpacked again, is the same tree: `cargo fuzz run members`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use unionfs_rs_fuzz::{Place, tar_of, written};

// A member a line.
fuzz_target!(|bytes: &[u8]| {
    let place = Place::new(&["tree", "again"]);
    if place.unpack("tree", &tar_of(bytes.split(|byte| *byte == b'\n'))).is_err() {
        return;
    }
    if let Some(tar) = written(&place.tree("tree")) {
        place.unpack("again", &tar).expect("what was written is a layer");
        assert!(written(&place.tree("again")).as_ref() == Some(&tar), "the second tree is another than the first");
    }
});

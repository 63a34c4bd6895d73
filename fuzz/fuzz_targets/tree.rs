//! Any layers are a union, or parts of one are clean errors: what is listed can be looked up, what can be looked up is listed,
//! nothing beside the layers is read and nothing but upper is changed; and after any changes the tree is the same when it is
//! opened again: `cargo fuzz run tree`.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use unionfs_rs_fuzz::tree::{Input, Stage};

// A line each, as `unionfs_rs_fuzz::tree` says.
fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Some(input) = Input::parse(bytes) else { return Corpus::Reject };
    let mut stage = Stage::lay(bytes, &input);
    let Some(union) = stage.open(&input) else { return Corpus::Keep };
    let _before = stage.walk(&union);
    for change in &input.changes {
        stage.change(&union, change);
    }
    let live = stage.walk(&union);
    union.end().expect("upper can be left");
    drop(union);
    if let Some(union) = stage.open(&input) {
        let again = stage.walk(&union);
        if let (Some(live), Some(again)) = (live, again) {
            assert_eq!(live, again, "the tree is another when it is opened again");
        }
    }
    stage.check();
    Corpus::Keep
});

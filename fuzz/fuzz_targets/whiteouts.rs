//! What two layers of any names and marks show together is what the rules say: `cargo fuzz run whiteouts`.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::{Corpus, fuzz_target};
use unionfs_rs::image::stack::Object;
use unionfs_rs_fuzz::model::{Layer, merged};
use unionfs_rs_fuzz::{Place, stack, tar_of, walk};

// A member a line, directories (`d`) and files (`f`); what follows a line `=` is the upper layer.
fuzz_target!(|bytes: &[u8]| -> Corpus {
    // Of longer paths there are bounds that the rules do not know, and no header holds a zero.
    if bytes.len() > 2000 || bytes.contains(&0) {
        return Corpus::Reject;
    }
    let lines: Vec<&[u8]> = bytes
        .split(|byte| *byte == b'\n')
        .filter(|line| matches!(line.first(), Some(b'd' | b'f' | b'=')) && !line.contains(&b'\t'))
        .collect();
    let mut layers = lines.splitn(2, |line| **line == *b"=").map(<[&[u8]]>::to_vec);
    let (lower, upper) = (layers.next().unwrap_or_default(), layers.next().unwrap_or_default());
    let place = Place::new(&["lower", "upper"]);
    let apply = |name: &str, lines: &[&[u8]]| {
        let (done, rules) = (place.unpack(name, &tar_of(lines.iter().copied())), Layer::of(lines.iter().copied()));
        assert_eq!(done.is_ok(), rules.is_ok(), "{name}: {done:?}, {rules:?}");
        rules.ok()
    };
    let (Some(lower), Some(upper)) = (apply("lower", &lower), apply("upper", &upper)) else { return Corpus::Keep };
    let mut shown = BTreeMap::new();
    walk(&stack(&[&place.tree("upper"), &place.tree("lower")]), &mut |path, object| {
        shown.insert(path.to_vec(), matches!(object, Object::Dir(..)));
    });
    assert_eq!(shown, merged(&upper, &lower));
    Corpus::Keep
});

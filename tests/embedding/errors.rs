//! Errors by type: what a runtime can tell without reading text.

use std::fs;

use rustix::io::Errno;
use unionfs_rs::config::MountConfig;
use unionfs_rs::error::ErrorKind;
use unionfs_rs::fuse::Mount;
use unionfs_rs::union::{Name, NodeId, Union, UnionBuilder};

use crate::support::{Layers, Placement};

fn kind(builder: UnionBuilder) -> ErrorKind {
    builder.build().err().expect("no union can be made of it").kind()
}

#[test]
fn errors_say_whose_fault_they_are() {
    let layers = Layers::new(1, Placement::OneFs);
    let (lower, upper) = (&layers.lowers()[0], layers.path("upper"));
    let union = || Union::builder().lower(lower).upper(&upper).work(layers.path("work"));
    assert_eq!(kind(Union::builder()), ErrorKind::Setup);
    assert_eq!(kind(Union::builder().lower(layers.path("nowhere"))), ErrorKind::Setup);
    assert_eq!(kind(Union::builder().lower(lower).upper(lower)), ErrorKind::Setup);

    let first = union().build().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(kind(union()), ErrorKind::InUse);
    let name = Name::new("nothing".as_ref()).expect("a good name");
    let error = first.lookup(NodeId::ROOT, name).expect_err("there is nothing");
    assert_eq!((error.kind(), error.errno()), (ErrorKind::Operation, Errno::NOENT));
    let nowhere = MountConfig::new(layers.path("nowhere"));
    let error = Mount::new(first, &nowhere).err().expect("there is no mountpoint");
    assert_eq!(error.kind(), ErrorKind::Setup);

    // The failed mount has let go of it.
    let again = union().build().unwrap_or_else(|error| panic!("{error}"));
    let not_fuse = fs::File::open("/dev/null").expect("every system has it");
    let error = Mount::attach(again, not_fuse.into(), &nowhere).err().expect("it is not /dev/fuse");
    assert_eq!(error.kind(), ErrorKind::Setup);
}

//! A blob that comes from elsewhere: whole or not at all, and from where it broke off.

use std::fs;
use std::io::{self, Cursor, Read};
use std::sync::atomic::{AtomicUsize, Ordering};

use oci_spec::image::{Descriptor, MediaType};
use unionfs_rs::error::{ErrorKind, Result};
use unionfs_rs::image::digest;
use unionfs_rs::image::store::Store;

const LEN: usize = 1_000_000;

/// A store that lacks a blob.
struct Lacking {
    dir: tempfile::TempDir,
    store: Store,
    bytes: Vec<u8>,
    blob: Descriptor,
}

impl Lacking {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("there is room");
        let store = Store::open(&dir.path().join("store")).expect("it is made");
        let bytes: Vec<u8> = (0..LEN).map(|at| (at / 7) as u8).collect();
        let digest = digest::of(&bytes).expect("it is hashed");
        Self { blob: Descriptor::new(MediaType::ImageLayer, LEN as u64, digest), dir, store, bytes }
    }

    /// Asks for the blob; who has it answers with what `answer` makes of the offset.
    fn fetch<R: Read>(&self, answer: impl FnOnce(usize) -> (usize, R)) -> Result<()> {
        self.store.fetch_blob(&self.blob, &(), |offset| {
            let (from, stream) = answer(usize::try_from(offset).expect("it is in memory"));
            Ok((from as u64, stream))
        })
    }

    /// What is kept for the next try.
    fn kept(&self) -> Option<u64> {
        let partial = self.dir.path().join("store/tmp").join(format!("partial-{}", self.blob.digest().digest()));
        fs::metadata(partial).ok().map(|is| is.len())
    }

    fn has(&self) -> bool {
        self.store.has(&self.blob).expect("it can be asked")
    }

    fn assert_whole(&self) {
        assert_eq!(fs::read(self.store.blob_path(self.blob.digest())).expect("it is there"), self.bytes);
        assert_eq!(self.kept(), None);
    }
}

/// Gives some bytes, and then fails.
struct BreaksOff(Cursor<Vec<u8>>);

impl Read for BreaksOff {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(io::ErrorKind::ConnectionReset.into()),
            len => Ok(len),
        }
    }
}

#[test]
fn what_has_come_before_it_broke_off_is_not_asked_for_again() {
    let lacking = Lacking::new();
    let bytes = &lacking.bytes;
    let error = lacking.fetch(|from| (from, BreaksOff(Cursor::new(bytes[from..300_000].to_vec())))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Machine);
    assert_eq!((lacking.has(), lacking.kept()), (false, Some(300_000)));
    // One that ends too early says so.
    let error = lacking.fetch(|from| (from, &bytes[from..500_000])).unwrap_err();
    assert!(error.kind() == ErrorKind::Machine && error.to_string().contains("500000 of 1000000"), "{error}");
    let asked = AtomicUsize::new(0);
    let answer = |from| {
        asked.store(from, Ordering::Relaxed);
        (from, &bytes[from..])
    };
    lacking.fetch(answer).unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 500_000);
    lacking.assert_whole();
}

#[test]
fn who_cannot_begin_in_the_middle_begins_anew() {
    let lacking = Lacking::new();
    let bytes = &lacking.bytes;
    lacking.fetch(|from| (from, &bytes[from..10_000])).unwrap_err();
    lacking.fetch(|_| (0, &bytes[..])).unwrap();
    lacking.assert_whole();
}

#[test]
fn a_blob_that_is_another_is_never_there() {
    let lacking = Lacking::new();
    let (bytes, digest) = (&lacking.bytes, lacking.blob.digest().to_string());
    let mut wrong = bytes.clone();
    wrong[LEN / 2] ^= 1;
    let longer = [&bytes[..], b"x"].concat();
    for other in [&wrong, &longer] {
        let error = lacking.fetch(|from| (from, &other[from..])).unwrap_err();
        assert!(error.kind() == ErrorKind::Image && error.to_string().contains(&digest), "{error}");
        assert_eq!((lacking.has(), lacking.kept()), (false, None));
    }
    // Where the first part was another one's, that may be what is wrong: it is worth another try.
    lacking.fetch(|from| (from, &wrong[from..LEN - 9])).unwrap_err();
    let error = lacking.fetch(|from| (from, &bytes[from..])).unwrap_err();
    assert_eq!((error.kind(), lacking.has(), lacking.kept()), (ErrorKind::Machine, false, None));
    lacking.fetch(|from| (from, &bytes[from..])).unwrap();
    lacking.assert_whole();
}

#[test]
fn of_two_who_want_a_blob_one_brings_it() {
    let lacking = Lacking::new();
    let opened = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let answer = |from| {
                    opened.fetch_add(1, Ordering::Relaxed);
                    (from, &lacking.bytes[from..])
                };
                lacking.fetch(answer).unwrap();
            });
        }
    });
    assert_eq!(opened.load(Ordering::Relaxed), 1);
    lacking.assert_whole();
}

//! How far long work is, for who waits for it.

use std::io::{self, Read};

use oci_spec::image::Descriptor;

/// Is told how far work on blobs is: bringing, unpacking, saving or comparing them.
pub trait Progress: Sync {
    /// Is called when `bytes` more of the blob `blob` were read.
    fn read(&self, blob: &Descriptor, bytes: u64);
    /// Is called when nothing more will be read of the blob `blob`.
    fn done(&self, blob: &Descriptor);
}

/// Tells nobody.
impl Progress for () {
    fn read(&self, _: &Descriptor, _: u64) {}
    fn done(&self, _: &Descriptor) {}
}

/// A stream that tells how far it is read.
pub struct Counted<'a, R> {
    inner: R,
    blob: &'a Descriptor,
    progress: &'a dyn Progress,
}

impl<'a, R> Counted<'a, R> {
    /// Makes one of `inner`, the bytes of `blob`.
    pub fn new(inner: R, blob: &'a Descriptor, progress: &'a dyn Progress) -> Self {
        Self { inner, blob, progress }
    }

    /// Returns the stream itself.
    pub fn into_inner(self) -> R {
        self.inner
    }
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buffer)?;
        self.progress.read(self.blob, len as u64);
        Ok(len)
    }
}

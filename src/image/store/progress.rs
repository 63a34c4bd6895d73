//! How far long work is, for who waits for it.

use std::io::{self, Read, Write};

use oci_spec::image::Descriptor;

/// A piece of long work: a blob, an archive, a layer that is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// What it is called, a blob by its digest; one that goes on has the name to itself.
    pub name: String,
    /// How many bytes it has, where that is known before the end.
    pub bytes: Option<u64>,
}

impl From<&Descriptor> for Work {
    fn from(blob: &Descriptor) -> Self {
        Self { name: blob.digest().to_string(), bytes: Some(blob.size()) }
    }
}

/// Is told how far work is.
pub trait Progress: Sync {
    /// Is called when `bytes` more of `work` were read, or written.
    fn moved(&self, work: &Work, bytes: u64);
    /// Is called when nothing more will be done of `work`.
    fn done(&self, work: &Work);
}

/// Tells nobody.
impl Progress for () {
    fn moved(&self, _: &Work, _: u64) {}
    fn done(&self, _: &Work) {}
}

/// A stream that tells how far it is, and at its end, when it is dropped, that it is done.
pub struct Counted<'a, S> {
    inner: S,
    end: Telling<'a>,
}

/// Who is told, also when something fails.
struct Telling<'a> {
    work: Work,
    progress: &'a dyn Progress,
}

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        self.progress.done(&self.work);
    }
}

impl<'a, S> Counted<'a, S> {
    /// Makes one of `inner`.
    pub fn new(inner: S, work: Work, progress: &'a dyn Progress) -> Self {
        Self { inner, end: Telling { work, progress } }
    }

    /// Returns the stream itself.
    pub fn into_inner(self) -> S {
        self.inner
    }

    fn tell(&self, bytes: usize) {
        self.end.progress.moved(&self.end.work, bytes as u64);
    }
}

impl<S: Read> Read for Counted<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buffer)?;
        self.tell(len);
        Ok(len)
    }
}

impl<S: Write> Write for Counted<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.inner.write(bytes)?;
        self.tell(len);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

//! Blobs: found by digest, and seen by others only when they are whole and are what they should be.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, Digest};
use rustix::fs::FlockOperation;
use tempfile::NamedTempFile;

use super::super::digest::{Hasher, Hashing, Verified, compare};
use super::{Progress, Store, Work};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::writeback;

/// What the names in `tmp` of blobs begin with that are fetched piece by piece.
pub const PARTIAL: &str = "partial-";

/// The most bytes of a manifest, an index or a configuration: what registries take.
pub const DOCUMENT_MAX: u64 = 4 << 20;

/// How much is copied at once, in bytes.
const BUFFER: usize = 256 * 1024;

/// How many bytes may wait before the disk begins with them.
const WAITING_MAX: usize = 8 << 20;

/// A blob whose digest is not known yet.
#[derive(Debug)]
pub struct BlobWriter<'a> {
    store: &'a Store,
    file: Hashing<NamedTempFile>,
}

impl Write for BlobWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl BlobWriter<'_> {
    /// Writes what `stream` has.
    pub fn copy(&mut self, stream: impl Read) -> io::Result<()> {
        let mut waiting = Waiting::default();
        each_part(stream, |bytes| {
            self.file.write_all(bytes)?;
            waiting.add(self.file.get_ref().as_file(), bytes);
            Ok(())
        })
    }

    /// Puts what was written into the store; returns digest and length in bytes.
    pub fn finish(self) -> Result<(Digest, u64)> {
        let failed = |error: io::Error| self.store.error("tmp", &error);
        let (file, digest, size) = self.file.finish().map_err(failed)?;
        self.store.publish(file, &digest)?;
        Ok((digest, size))
    }
}

impl Store {
    /// Returns the path of the blob `digest`.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        // Of a digest the algorithm and the rest are letters, digits and `+._=-`, which lead nowhere else.
        self.path("blobs").join(digest.algorithm().as_ref()).join(digest.digest())
    }

    /// Returns the length in bytes of the blob `digest`, if it is there.
    pub fn blob_size(&self, digest: &Digest) -> Result<Option<u64>> {
        match fs::metadata(self.blob_path(digest)) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::image_io(digest, &error)),
        }
    }

    /// Returns whether the blob that `descriptor` describes is there, with its length.
    pub fn has(&self, descriptor: &Descriptor) -> Result<bool> {
        Ok(self.blob_size(descriptor.digest())? == Some(descriptor.size()))
    }

    /// Opens the blob `digest` for reading. Errors: [`ErrorKind::Absent`].
    pub fn open_blob(&self, digest: &Digest) -> Result<File> {
        File::open(self.blob_path(digest)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                Error::image(digest, "is not in the store; pull or load the image again").of_kind(ErrorKind::Absent)
            }
            _ => Error::image_io(digest, &error),
        })
    }

    /// Reads the blob that `descriptor` describes, which is compared with its digest while it is read.
    pub fn read_blob(&self, descriptor: &Descriptor) -> Result<Verified<File>> {
        let digest = descriptor.digest();
        let file = self.open_blob(digest)?;
        Verified::new(file, digest, descriptor.size()).map_err(|error| Error::image_io(digest, &error))
    }

    /// Reads a manifest, an index or a configuration whole.
    pub fn read_document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let digest = descriptor.digest();
        if descriptor.size() > DOCUMENT_MAX {
            let reason = format!("has {} bytes, and {DOCUMENT_MAX} are the most that it may have", descriptor.size());
            return Err(Error::image(digest, reason));
        }
        let mut stream = self.read_blob(descriptor)?;
        let mut bytes = Vec::new();
        let read = stream.read_to_end(&mut bytes).and_then(|_| stream.finish());
        read.map_err(|error| Error::image_io(digest, &error))?;
        Ok(bytes)
    }

    /// Begins a blob whose digest will be known in the end.
    pub fn new_blob(&self) -> Result<BlobWriter<'_>> {
        let file = NamedTempFile::new_in(self.path("tmp")).map_err(|error| self.error("tmp", &error))?;
        Ok(BlobWriter { store: self, file: Hashing::new(file, Hasher::sha256()) })
    }

    /// Puts `bytes` into the store; returns their digest.
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<Digest> {
        let mut blob = self.new_blob()?;
        blob.write_all(bytes).map_err(|error| self.error("tmp", &error))?;
        blob.finish().map(|(digest, _)| digest)
    }

    /// Puts the blob that should have `digest` and `size` bytes into the store, unless it is there, and is what it should be:
    /// then `stream` is not read.
    ///
    /// Errors: [`ErrorKind::Image`] where `stream` is another; nothing is left of it.
    pub fn put_blob(&self, digest: &Digest, size: u64, stream: impl Read) -> Result<()> {
        if self.blob_size(digest)? == Some(size) && self.rehash(digest, &()).is_ok() {
            return Ok(());
        }
        let failed = |error: io::Error| Error::image_io(digest, &error);
        let file = NamedTempFile::new_in(self.path("tmp")).map_err(|error| self.error("tmp", &error))?;
        let mut stream = Verified::new(stream, digest, size).map_err(failed)?;
        copy(&mut stream, file.as_file(), |_| {}).and_then(|()| stream.finish()).map_err(failed)?;
        self.publish(file, digest)
    }

    /// Brings the blob that `descriptor` describes into the store, from where an earlier try has broken off.
    ///
    /// `open` opens it from an offset, and says from which it really comes. What has come is kept when it breaks off, and
    /// is not when it is another than it should be. Errors: [`ErrorKind::Machine`] where it broke off.
    pub fn fetch_blob<R: Read>(
        &self,
        descriptor: &Descriptor,
        progress: &dyn Progress,
        open: impl FnOnce(u64) -> Result<(u64, R)>,
    ) -> Result<()> {
        let digest = descriptor.digest();
        let failed = |error: io::Error| Error::image_io(digest, &error);
        let path = self.path("tmp").join(format!("{PARTIAL}{}", digest.digest()));
        let work = Work::from(descriptor);
        // Two that want the same blob: the second waits, and finds it.
        let file = open_locked(&path).map_err(failed)?;
        if self.has(descriptor)? {
            fs::remove_file(&path).map_err(failed)?;
            progress.done(&work);
            return Ok(());
        }
        let have = file.metadata().map_err(failed)?.len();
        // One that is complete and is not published was cut off in writing.
        let have = if have < descriptor.size() { have } else { 0 };
        let (from, stream) = open(have)?;
        file.set_len(from).map_err(failed)?;
        progress.moved(&work, from);
        // What is there is read once more, and what comes is compared as it does.
        let mut hasher =
            Hasher::like(digest).ok_or_else(|| Error::image(digest, "is by an algorithm that is not known"))?;
        let most = descriptor.size().saturating_sub(from).saturating_add(1);
        let copied = (&file).seek(io::SeekFrom::Start(0)).and_then(|_| {
            each_part((&file).take(from), |bytes| {
                hasher.update(bytes);
                Ok(())
            })?;
            (&file).seek(io::SeekFrom::Start(from))?;
            copy(stream.take(most), &file, |bytes| {
                hasher.update(bytes);
                progress.moved(&work, bytes.len() as u64);
            })
        });
        let size = file.metadata().map_err(failed)?.len();
        // Where all has come, what it is says more than how its stream has ended.
        if let Err(error) = copied.or_else(|error| if size < descriptor.size() { Err(error) } else { Ok(()) }) {
            if error.kind() == io::ErrorKind::StorageFull {
                // It would keep the disk full.
                fs::remove_file(&path).map_err(failed)?;
                return Err(failed(error).of_kind(ErrorKind::Setup));
            }
            return Err(failed(error).of_kind(ErrorKind::Machine));
        }
        if size < descriptor.size() {
            return Err(Error::image(digest, format!("ends after {size} of {} bytes", descriptor.size()))
                .of_kind(ErrorKind::Machine));
        }
        let compared = hasher.digest().and_then(|found| compare((&found, size), (digest, descriptor.size())));
        if let Err(error) = compared {
            fs::remove_file(&path).map_err(failed)?;
            // What was there from before may be the wrong part: the next try begins anew.
            let kind = if from > 0 { ErrorKind::Machine } else { ErrorKind::Image };
            return Err(failed(error).of_kind(kind));
        }
        file.sync_all().map_err(failed)?;
        let dir = format!("blobs/{}", digest.algorithm());
        fs::create_dir_all(self.path(&dir)).map_err(failed)?;
        fs::rename(&path, self.blob_path(digest)).map_err(failed)?;
        progress.done(&work);
        self.sync_dir(&dir)
    }

    /// Gives a file, which is what `digest` says, its name.
    fn publish(&self, file: NamedTempFile, digest: &Digest) -> Result<()> {
        let path = self.blob_path(digest);
        let failed = |error: io::Error| Error::image_io(digest, &error);
        let dir = format!("blobs/{}", digest.algorithm());
        fs::create_dir_all(self.path(&dir)).map_err(failed)?;
        file.as_file().sync_all().map_err(failed)?;
        // Over what may be there: of a store that another tool writes, a blob may be damaged.
        file.persist(path).map_err(|error| failed(error.error))?;
        self.sync_dir(&dir)
    }
}

/// Opens and locks the file at `path`, made where there is none; who had it before may have moved or removed it.
fn open_locked(path: &Path) -> io::Result<File> {
    loop {
        let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        let locked = file.metadata()?;
        match fs::symlink_metadata(path) {
            Ok(named) if (named.dev(), named.ino()) == (locked.dev(), locked.ino()) => return Ok(file),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

/// Copies a stream, and calls `each` with each piece. The disk begins with what was written while the rest comes.
fn copy(from: impl Read, mut to: &File, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut waiting = Waiting::default();
    each_part(from, |bytes| {
        to.write_all(bytes)?;
        each(bytes);
        waiting.add(to, bytes);
        Ok(())
    })
}

/// Bytes of a file that the disk has not begun with.
#[derive(Default)]
struct Waiting(usize);

impl Waiting {
    /// Counts `bytes`, which were written to `file`, and has the disk begin where they are many.
    fn add(&mut self, file: &File, bytes: &[u8]) {
        self.0 += bytes.len();
        if self.0 >= WAITING_MAX {
            self.0 = 0;
            let _ = writeback::begin(file.as_fd()); // The sync in the end tells what is wrong.
        }
    }
}

/// Reads a stream, and calls `each` with each piece.
fn each_part(mut from: impl Read, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => each(buffer.get(..len).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::digest;

    #[test]
    fn a_blob_that_is_another_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let digest = digest::of(b"right").unwrap();
        let error = store.put_blob(&digest, 5, &b"wrong"[..]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Image);
        assert!(error.to_string().starts_with(&digest.to_string()), "{error}");
        assert!(store.put_blob(&digest, 4, &b"right"[..]).is_err());
        assert_eq!(store.blob_size(&digest).unwrap(), None);
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
        store.put_blob(&digest, 5, &b"right"[..]).unwrap();
        assert_eq!(store.put_bytes(b"right").unwrap(), digest);
        assert_eq!(fs::read(store.blob_path(&digest)).unwrap(), b"right");
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn a_document_that_was_damaged_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let digest = store.put_bytes(b"{}").unwrap();
        fs::write(store.blob_path(&digest), b"[]").unwrap();
        let descriptor = Descriptor::new(oci_spec::image::MediaType::ImageConfig, 2, digest);
        assert_eq!(store.read_document(&descriptor).unwrap_err().kind(), ErrorKind::Image);
    }
}

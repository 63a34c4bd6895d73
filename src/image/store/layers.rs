//! Trees of layers: each is unpacked once, whatever images share it, and seen by others only when it is whole.
//!
//! What a layer is unpacked to follows from its tar alone, so that the diff_id names the tree. One with hard links to files
//! of lower layers has copies of those, and is named by its chain_id.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use oci_spec::image::{Descriptor, Digest, DigestAlgorithm};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::super::digest::{Hashed, Hasher, Verified};
use super::super::manifest::{Image, Layer};
use super::super::media::Unpacked;
use super::super::stack::Part;
use super::super::unpack::{self, Borrowed, Outcome};
use super::{Store, replace};
use crate::error::{Error, Result};

/// The file beside a tree that says what it was made of.
const FACTS: &str = "layer.json";

/// The directory of the tree itself.
const TREE: &str = "tree";

/// What is known of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// The digest of the tar that it was made of.
    pub diff_id: Digest,
    /// How many members that had.
    pub members: u64,
    /// The bytes of its regular files, holes included.
    pub bytes: u64,
    /// The bytes of the tar.
    pub tar_bytes: u64,
    /// How many xattrs are missing in the tree: those of an overlay, and those that the user might not set.
    #[serde(default)]
    pub xattrs_left_out: u64,
    /// How many devices are missing in the tree.
    #[serde(default)]
    pub devices_left_out: u64,
    /// The blobs whose tar was compared with the diff_id.
    #[serde(default)]
    pub blobs: Vec<Digest>,
    /// Whether the tar has the root; else that of a layer below is the root's.
    pub says_root: bool,
}

/// The tree of a layer.
#[derive(Debug, Clone)]
pub struct Tree {
    /// The directory.
    pub path: PathBuf,
    /// What is known of it.
    pub facts: Facts,
}

impl Tree {
    /// Returns the tree as a layer of a stack.
    pub fn part(&self) -> Part<'_> {
        Part { path: &self.path, says_root: self.facts.says_root }
    }
}

/// Says how far the unpacking of layers is.
pub trait Progress: Sync {
    /// Is called when `bytes` more of the blob `blob` were read.
    fn read(&self, blob: &Digest, bytes: u64);
    /// Is called when nothing more will be read of the blob `blob`.
    fn done(&self, blob: &Digest);
}

/// Tells nobody.
impl Progress for () {
    fn read(&self, _: &Digest, _: u64) {}
    fn done(&self, _: &Digest) {}
}

/// A tree that was made and is not published yet.
struct Made {
    work: TempDir,
    facts: Facts,
    borrowed: Vec<Borrowed>,
}

impl Store {
    /// Returns the tree of `layer`, if it is there.
    pub fn tree(&self, layer: &Layer) -> Result<Option<Tree>> {
        match self.tree_named(&name_of(&layer.diff_id))? {
            Some(tree) => Ok(Some(tree)),
            None => self.tree_named(&chain_name(&layer.chain_id)),
        }
    }

    /// Returns the tree that is called `name` in `layers`, if it is there.
    pub fn tree_named(&self, name: &str) -> Result<Option<Tree>> {
        let dir = self.path("layers").join(name);
        let bytes = match fs::read(dir.join(FACTS)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::image_io(dir.display(), &error)),
        };
        let facts = serde_json::from_slice(&bytes).map_err(|error| {
            Error::image(dir.display(), format!("its {FACTS} cannot be read: {error}; remove the directory"))
        })?;
        Ok(Some(Tree { path: dir.join(TREE), facts }))
    }

    /// Returns the bytes of the tars of an image's layers; of one that was not unpacked yet those of its blob.
    pub fn unpacked_size(&self, image: &Image) -> Result<u64> {
        let mut sum = 0_u64;
        for layer in &image.layers {
            let size = self.tree(layer)?.map_or(layer.blob.size(), |tree| tree.facts.tar_bytes);
            sum = sum.saturating_add(size);
        }
        Ok(sum)
    }

    /// Returns the trees of an image, lowest first; those that are not there yet are unpacked, several at once.
    ///
    /// Errors: [`crate::error::ErrorKind::Image`] with the layer and the member, where a layer is another than its
    /// diff_id says or holds what it may not; then nothing is left of it.
    pub fn trees(&self, image: &Image, progress: &dyn Progress) -> Result<Vec<Tree>> {
        let mut missing: Vec<&Layer> = Vec::new();
        for layer in &image.layers {
            if self.known(layer)? || self.compare(layer, progress)? {
                continue;
            }
            if !missing.iter().any(|other| other.diff_id == layer.diff_id && other.blob.digest() == layer.blob.digest())
            {
                missing.push(layer);
            }
        }
        let made = self.unpack_all(&missing, progress)?;
        // From the lowest up: what is borrowed is in the trees below.
        let mut trees: Vec<Tree> = Vec::with_capacity(image.layers.len());
        let mut made: Vec<Option<Made>> = made.into_iter().map(Some).collect();
        for layer in &image.layers {
            let tree = match self.tree(layer)? {
                Some(tree) => tree,
                None => {
                    let same =
                        |other: &&Layer| other.diff_id == layer.diff_id && other.blob.digest() == layer.blob.digest();
                    let at = missing.iter().position(same);
                    let made = at.and_then(|at| made.get_mut(at)).and_then(Option::take);
                    // A layer that stands twice in an image and borrows from different files below.
                    let made = made.map_or_else(|| self.unpack(layer, &()), Ok)?;
                    self.publish_tree(layer, made, &trees).map_err(|error| error.within(subject(layer)))?
                }
            };
            trees.push(tree);
        }
        Ok(trees)
    }

    /// Returns whether the tree of `layer` is there, and its blob is one that was compared with the diff_id.
    fn known(&self, layer: &Layer) -> Result<bool> {
        Ok(self.tree(layer)?.is_some_and(|tree| tree.facts.blobs.contains(layer.blob.digest())))
    }

    /// Compares the blob of `layer` with its diff_id, where a tree of that is there, of another blob; false where none is.
    ///
    /// Without this, an image could claim a tree of this store as its own.
    fn compare(&self, layer: &Layer, progress: &dyn Progress) -> Result<bool> {
        let Some(tree) = self.tree(layer)? else { return Ok(false) };
        let blob = self.read_blob(&layer.blob)?;
        let read = read_layer(&layer.blob, &layer.diff_id, blob, progress, |tar| io::copy(tar, &mut io::sink()));
        progress.done(layer.blob.digest());
        read.map_err(|error| error.within(subject(layer)))?;
        let mut facts = tree.facts;
        facts.blobs.push(layer.blob.digest().clone());
        let path = tree.path.with_file_name(FACTS);
        let written = serde_json::to_vec(&facts).map_err(io::Error::from).and_then(|bytes| replace(&path, &bytes));
        written.map_err(|error| Error::image_io(path.display(), &error))?;
        Ok(true)
    }

    /// Unpacks layers, as many at once as there are processors.
    fn unpack_all(&self, layers: &[&Layer], progress: &dyn Progress) -> Result<Vec<Made>> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(layers.len());
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        let made: Mutex<Vec<(usize, Made)>> = Mutex::new(Vec::new());
        let work = || {
            // Relaxed: a number that is handed out; what is made goes through the mutexes.
            while let Some((at, layer)) =
                Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, layers.get(at)?)))
            {
                match self.unpack(layer, progress) {
                    Ok(one) => made.lock().push((at, one)),
                    Err(error) => {
                        next.store(layers.len(), Ordering::Relaxed); // Relaxed: the others stop a layer later at worst.
                        failed.lock().get_or_insert(error);
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        if let Some(error) = failed.into_inner() {
            return Err(error);
        }
        let mut made = made.into_inner();
        made.sort_by_key(|(at, _)| *at);
        Ok(made.into_iter().map(|(_, made)| made).collect())
    }

    /// Unpacks one layer into the workspace, and compares blob and tar with their digests.
    fn unpack(&self, layer: &Layer, progress: &dyn Progress) -> Result<Made> {
        let made = self.unpack_unnamed(layer, progress);
        progress.done(layer.blob.digest());
        made.map_err(|error| error.within(subject(layer)))
    }

    fn unpack_unnamed(&self, layer: &Layer, progress: &dyn Progress) -> Result<Made> {
        let work = self.workspace()?;
        let failed = |error: io::Error| Error::image_io("tree", &error);
        let tree = work.path().join(TREE);
        fs::create_dir(&tree).map_err(failed)?;
        let root = OwnedFd::from(File::open(&tree).map_err(failed)?);
        let blob = self.read_blob(&layer.blob)?;
        let (outcome, tar_bytes) = read_layer(&layer.blob, &layer.diff_id, blob, progress, |stream| {
            unpack::unpack(stream, root, self.keep())
        })?;
        let Outcome { members, says_root, bytes, xattrs_left_out, devices_left_out, borrowed } = outcome;
        let (diff_id, blobs) = (layer.diff_id.clone(), vec![layer.blob.digest().clone()]);
        let facts = Facts { diff_id, members, bytes, tar_bytes, xattrs_left_out, devices_left_out, says_root, blobs };
        Ok(Made { work, facts, borrowed })
    }

    /// Gives a tree that was made its name; `below` are the trees that its borrowed files are in, lowest first.
    fn publish_tree(&self, layer: &Layer, made: Made, below: &[Tree]) -> Result<Tree> {
        let failed = |error: io::Error| Error::image_io("tree", &error);
        let Made { work, facts, borrowed } = made;
        let name = if borrowed.is_empty() { name_of(&layer.diff_id) } else { chain_name(&layer.chain_id) };
        if !borrowed.is_empty() {
            let below: Vec<Part<'_>> = below.iter().rev().map(Tree::part).collect();
            unpack::borrow(&work.path().join(TREE), &borrowed, &below, self.keep())?;
        }
        let bytes = serde_json::to_vec(&facts).map_err(|error| failed(error.into()))?;
        fs::write(work.path().join(FACTS), bytes).map_err(failed)?;
        // All of the tree, before a name says that it is whole.
        let dir = File::open(work.path()).map_err(failed)?;
        rustix::fs::syncfs(dir.as_fd()).map_err(|errno| failed(errno.into()))?;
        let path = self.path("layers").join(name);
        if path.exists() && !path.join(FACTS).exists() {
            // Of a tree that says nothing of itself nobody knows whether it is whole.
            let aside = self.workspace()?;
            fs::rename(&path, aside.path().join("broken")).map_err(failed)?;
        }
        match fs::rename(work.path(), &path) {
            Ok(()) => {
                // It has moved away from where it would be removed.
                let _moved = work.keep();
                self.sync_dir("layers")?;
            }
            // Somebody else was faster, with the same.
            Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {}
            Err(error) => return Err(failed(error)),
        }
        Ok(Tree { path: path.join(TREE), facts })
    }
}

/// Reads the tar of a layer with `read`, to its end, and compares it with its diff_id, and the blob with its digest.
///
/// Returns what `read` does, and how many bytes the tar has.
pub fn read_layer<T>(
    blob: &Descriptor,
    diff_id: &Digest,
    stream: Verified<impl Read>,
    progress: &dyn Progress,
    read: impl FnOnce(&mut dyn Read) -> io::Result<T>,
) -> Result<(T, u64)> {
    let failed = |error: io::Error| Error::image_io("blob", &error);
    let counted = Counted { inner: stream, blob: blob.digest(), progress };
    let unpacked = Unpacked::new(counted).map_err(failed)?;
    let hasher =
        Hasher::like(diff_id).ok_or_else(|| Error::image(diff_id, "is a digest of a kind that is not known"))?;
    let mut tar = Hashed::new(unpacked, hasher);
    let done = read(&mut tar);
    let done = match done {
        Ok(done) => done,
        // Of a blob that is another than it should be, that is the reason, whatever its bytes say.
        Err(error) => {
            let packed = tar.into_inner().into_inner().inner;
            return Err(packed.finish().map_or_else(failed, |()| Error::image_io("tar", &error)));
        }
    };
    let (unpacked, found, bytes) = tar.finish_parts().map_err(failed)?;
    unpacked.into_inner().inner.finish().map_err(failed)?;
    if found != *diff_id {
        return Err(Error::image("tar", format!("has the digest {found}, and the configuration says {diff_id}")));
    }
    Ok((done, bytes))
}

/// A stream whose reader is told how far it is.
struct Counted<'a, R> {
    inner: R,
    blob: &'a Digest,
    progress: &'a dyn Progress,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buffer)?;
        self.progress.read(self.blob, len as u64);
        Ok(len)
    }
}

/// Names a layer in messages.
fn subject(layer: &Layer) -> String {
    format!("layer {}", layer.blob.digest())
}

/// Returns the name of the tree of a layer that is nobody else's.
pub(super) fn name_of(diff_id: &Digest) -> String {
    match diff_id.algorithm() {
        DigestAlgorithm::Sha256 => diff_id.digest().to_owned(),
        other => format!("{other}-{}", diff_id.digest()),
    }
}

/// Returns the name of the tree of a layer with files of those below.
pub(super) fn chain_name(chain_id: &Digest) -> String {
    format!("chain-{}", chain_id.digest())
}

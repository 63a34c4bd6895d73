//! Trees of layers: each is unpacked once, whatever images share it, and seen by others only when it is whole.
//!
//! What a layer is unpacked to follows from its tar alone, so that the diff_id names the tree. One with hard links to files
//! of lower layers has copies of those, and is named by its chain_id.

use std::fs::{self, File};
use std::io::{self, BufRead, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use oci_spec::image::{Descriptor, Digest, DigestAlgorithm};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::super::digest::{Hashed, Hasher, Verified};
use super::super::manifest::{Image, Layer};
use super::super::media::{Compression, Unpacked};
use super::super::pipe::{drain, pipe};
use super::super::same::{Difference, differences};
use super::super::stack::Part;
use super::super::unpack::{self, Borrowed, Outcome};
use super::progress::{Counted, Progress};
use super::{Store, replace};
use crate::error::{Error, ErrorKind, Result};

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

/// A tree that was made and is not published yet.
struct Made {
    work: TempDir,
    facts: Facts,
    borrowed: Vec<Borrowed>,
}

impl Made {
    /// Says what the tree was made of, and puts all of it on the disk: before a name says that it is whole.
    fn sync(&self) -> Result<()> {
        let failed = |error: io::Error| Error::image_io("tree", &error);
        let bytes = serde_json::to_vec(&self.facts).map_err(|error| failed(error.into()))?;
        fs::write(self.work.path().join(FACTS), bytes).map_err(failed)?;
        let dir = File::open(self.work.path()).map_err(failed)?;
        rustix::fs::syncfs(dir.as_fd()).map_err(|errno| failed(errno.into()))
    }
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
        let (give, come) = mpsc::channel();
        for at in image.distinct_layers() {
            let _ = give.send(at); // The other end is below.
        }
        drop(give);
        self.trees_as_they_come(image, come, progress)
    }

    /// As [`Store::trees`], of layers whose blobs are still being brought: `come` says which are there. It must say so of all
    /// of [`Image::distinct_layers`]; a layer that it ends without is an error.
    pub fn trees_as_they_come(
        &self,
        image: &Image,
        come: mpsc::Receiver<usize>,
        progress: &dyn Progress,
    ) -> Result<Vec<Tree>> {
        let mut made = self.unpack_all(image, come, progress)?;
        // From the lowest up: what is borrowed is in the trees below.
        let mut trees: Vec<Tree> = Vec::with_capacity(image.layers.len());
        let mut published = false;
        for layer in &image.layers {
            let tree = match self.tree(layer)? {
                Some(tree) => tree,
                None => {
                    let same = |(at, _): &(usize, Made)| image.layers.get(*at).is_some_and(|one| one.is_like(layer));
                    let made = made.iter().position(same).map(|at| made.swap_remove(at).1);
                    // A layer that stands twice in an image and borrows from different files below.
                    let made = made.map_or_else(|| self.unpack(layer, &()), Ok)?;
                    published = true;
                    self.publish_tree(layer, made, &trees).map_err(|error| error.within(subject(layer)))?
                }
            };
            trees.push(tree);
        }
        if published {
            self.sync_dir("layers")?;
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
        let read = read_layer(&layer.blob, &layer.diff_id, blob, progress, |tar| drain(tar));
        read.map_err(|error| error.within(subject(layer)))?;
        let mut facts = tree.facts;
        facts.blobs.push(layer.blob.digest().clone());
        let path = tree.path.with_file_name(FACTS);
        let written = serde_json::to_vec(&facts).map_err(io::Error::from).and_then(|bytes| replace(&path, &bytes));
        written.map_err(|error| Error::image_io(path.display(), &error))?;
        Ok(true)
    }

    /// Unpacks the layers that `come` names and whose trees are not there, as many at once as there are processors.
    fn unpack_all(
        &self,
        image: &Image,
        come: mpsc::Receiver<usize>,
        progress: &dyn Progress,
    ) -> Result<Vec<(usize, Made)>> {
        let wanted = image.distinct_layers().count();
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(wanted);
        let (made, failed) = (Mutex::new(Vec::new()), Mutex::new(None));
        let (come, seen) = (Mutex::new(come), AtomicUsize::new(0));
        let work = || {
            while failed.lock().is_none() {
                // One waits for the next layer, and the others wait for that one.
                let Ok(at) = come.lock().recv() else { return };
                seen.fetch_add(1, Ordering::Relaxed); // Relaxed: read when all threads have ended.
                let Some(layer) = image.layers.get(at) else { continue };
                match self.known_or_unpacked(layer, progress) {
                    Ok(one) => made.lock().extend(one.map(|one| (at, one))),
                    Err(error) => drop(failed.lock().get_or_insert(error)),
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
        if seen.into_inner() < wanted {
            return Err(Error::image("image", "not all of its layers have come").of_kind(ErrorKind::Absent));
        }
        Ok(made.into_inner())
    }

    /// Unpacks a layer, unless its tree is there and is its own.
    fn known_or_unpacked(&self, layer: &Layer, progress: &dyn Progress) -> Result<Option<Made>> {
        if self.known(layer)? || self.compare(layer, progress)? {
            return Ok(None);
        }
        self.unpack(layer, progress).map(Some)
    }

    /// Unpacks one layer into the workspace, and compares blob and tar with their digests.
    fn unpack(&self, layer: &Layer, progress: &dyn Progress) -> Result<Made> {
        let made = self.unpack_unnamed(layer, progress);
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
        let made = Made { work, facts, borrowed };
        if made.borrowed.is_empty() {
            // Here, and not when it gets its name: the disk writes it while other layers are unpacked.
            made.sync()?;
        }
        Ok(made)
    }

    /// Tells what of the tree of the layer at `at` of `image` is not as the layer says, by unpacking that once more; nothing of
    /// one that is not unpacked.
    ///
    /// Errors: as those of [`Store::trees`], for its blob.
    pub(super) fn differences(&self, image: &Image, at: usize, progress: &dyn Progress) -> Result<Vec<Difference>> {
        let Some(layer) = image.layers.get(at) else { return Ok(Vec::new()) };
        let Some(tree) = self.tree(layer)? else { return Ok(Vec::new()) };
        let made = self.unpack_unnamed(layer, progress)?;
        let below: Result<Vec<Option<Tree>>> = image.layers.iter().take(at).map(|layer| self.tree(layer)).collect();
        self.borrow(&made, &below?.into_iter().flatten().collect::<Vec<_>>())?;
        let open = |path: &Path| File::open(path).map_err(|error| Error::image_io(path.display(), &error));
        let (ours, theirs) = (open(&tree.path)?, open(&made.work.path().join(TREE))?);
        differences(ours.as_fd(), theirs.as_fd())
    }

    /// Copies what a tree has of files of the trees `below`, lowest first.
    fn borrow(&self, made: &Made, below: &[Tree]) -> Result<()> {
        if made.borrowed.is_empty() {
            return Ok(());
        }
        let below: Vec<Part<'_>> = below.iter().rev().map(Tree::part).collect();
        unpack::borrow(&made.work.path().join(TREE), &made.borrowed, &below, self.keep())
    }

    /// Gives a tree that was made its name; `below` are the trees that its borrowed files are in, lowest first.
    fn publish_tree(&self, layer: &Layer, made: Made, below: &[Tree]) -> Result<Tree> {
        let failed = |error: io::Error| Error::image_io("tree", &error);
        let name = if made.borrowed.is_empty() { name_of(&layer.diff_id) } else { chain_name(&layer.chain_id) };
        if !made.borrowed.is_empty() {
            self.borrow(&made, below)?;
            made.sync()?;
        }
        let Made { work, facts, .. } = made;
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
/// The blob is read, unpacked and compared by a thread of its own. Returns what `read` does, and how many bytes the tar has.
pub fn read_layer<T>(
    blob: &Descriptor,
    diff_id: &Digest,
    stream: Verified<impl Read + Send>,
    progress: &dyn Progress,
    read: impl FnOnce(&mut dyn BufRead) -> io::Result<T>,
) -> Result<(T, u64)> {
    let failed = |error: io::Error| Error::image_io("blob", &error);
    let counted = Counted::new(stream, blob.into(), progress);
    let unpacked = Unpacked::new(counted).map_err(failed)?;
    let hasher =
        Hasher::like(diff_id).ok_or_else(|| Error::image(diff_id, "is a digest of a kind that is not known"))?;
    // Then the digest of the tar is that of the blob, which is compared anyway.
    let is_blob = unpacked.compression() == Compression::None && blob.digest() == diff_id;
    let (done, unpacked) = std::thread::scope(|scope| {
        let (mut chunks, feeder) = pipe(scope, unpacked)?;
        let done = if is_blob {
            let done = read(&mut chunks).and_then(|done| drain(&mut chunks).map(|_| done));
            drop(chunks);
            done.map(|done| (done, diff_id.clone(), blob.size()))
        } else {
            let mut tar = Hashed::new(chunks, hasher);
            let done = read(&mut tar);
            done.and_then(|done| tar.finish().map(|(found, bytes)| (done, found, bytes)))
        };
        Ok((done, feeder.finish()?))
    })
    .map_err(failed)?;
    let blob = unpacked.into_inner().into_inner().finish();
    // Of a blob that is another than it should be, that is the reason, whatever its bytes say.
    blob.map_err(failed)?;
    let (done, found, bytes) = done.map_err(|error| Error::image_io("tar", &error))?;
    if found != *diff_id {
        return Err(Error::image("tar", format!("has the digest {found}, and the configuration says {diff_id}")));
    }
    Ok((done, bytes))
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

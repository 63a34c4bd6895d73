//! Images of elsewhere, and how one is brought into a store: its documents, and the layers that the store lacks.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use oci_spec::image::{Descriptor, Digest, ImageIndex};
use parking_lot::Mutex;

use super::manifest::{Image, Platform, manifest_type, parse_manifest, select};
use super::media::Kind;
use super::store::{Counted, DOCUMENT_MAX, Progress, Store};
use crate::error::{Error, Result};

/// How many indexes may lead to one another.
const INDEXES_MAX: usize = 8;

/// How many blobs are brought at once.
const AT_ONCE: usize = 3;

/// Who is told how far it is.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Of blobs that are brought.
    pub fetching: &'a dyn Progress,
    /// Of layers that are unpacked.
    pub unpacking: &'a dyn Progress,
}

impl Watch<'_> {
    /// Tells nobody.
    pub const NOBODY: Watch<'static> = Watch { fetching: &(), unpacking: &() };
}

/// Somewhere that has the blobs of images.
pub trait Source: Sync {
    /// Opens the blob that `descriptor` describes; what comes is not verified.
    fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + '_>>;

    /// Brings a blob into the store that lacks it.
    fn bring(&self, store: &Store, descriptor: &Descriptor, progress: &dyn Progress) -> Result<()> {
        let stream = Counted::new(self.open(descriptor)?, descriptor.into(), progress);
        store.put_blob(descriptor.digest(), descriptor.size(), stream)
    }
}

/// An OCI image layout in a directory.
#[derive(Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Takes the layout in the directory `root`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Reads which images it has.
    pub fn index(&self) -> Result<ImageIndex> {
        let path = self.root.join("index.json");
        let failed = |error: std::io::Error| Error::image_io(path.display(), &error);
        let mut bytes = Vec::new();
        File::open(&path).and_then(|file| file.take(DOCUMENT_MAX).read_to_end(&mut bytes)).map_err(failed)?;
        parse_index(&bytes).map_err(|error| error.within(path.display()))
    }
}

impl Source for Layout {
    fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + '_>> {
        let digest = descriptor.digest();
        let path = self.root.join("blobs").join(digest.algorithm().as_ref()).join(digest.digest());
        let file = File::open(&path).map_err(|error| Error::image_io(path.display(), &error))?;
        Ok(Box::new(file))
    }
}

/// Reads an index.
pub fn parse_index(bytes: &[u8]) -> Result<ImageIndex> {
    serde_json::from_slice(bytes).map_err(|error| Error::image("index", format!("cannot be read: {error}")))
}

/// Brings the image that `descriptor` leads to into the store, and unpacks its layers; an index is followed for `platform`.
///
/// The image is whole then, and has no name yet.
pub fn fetch(
    store: &Store,
    source: &dyn Source,
    descriptor: &Descriptor,
    platform: &Platform,
    watch: Watch<'_>,
) -> Result<Image> {
    let descriptor = resolve(store, source, descriptor, platform)?;
    let manifest = parse_manifest(&document(store, source, &descriptor)?)?;
    document(store, source, manifest.config())?;
    let image = Image::read(store, &descriptor)?;
    bring_and_unpack(store, source, &image, watch)?;
    Ok(image)
}

/// Brings the layers that the store lacks, several at once; each is unpacked as soon as it is there.
fn bring_and_unpack(store: &Store, source: &dyn Source, image: &Image, watch: Watch<'_>) -> Result<()> {
    let (give, come) = mpsc::channel();
    // By blob, the layers that it is: an image may say two things of one.
    let mut missing: Vec<(&Descriptor, Vec<usize>)> = Vec::new();
    for (at, layer) in image.distinct_layers().filter_map(|at| Some((at, image.layers.get(at)?))) {
        if let Some((_, of)) = missing.iter_mut().find(|(blob, _)| blob.digest() == layer.blob.digest()) {
            of.push(at);
        } else if store.has(&layer.blob)? {
            let _ = give.send(at); // The other end is below.
        } else {
            missing.push((&layer.blob, vec![at]));
        }
    }
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    let work = |give: mpsc::Sender<usize>| {
        // Relaxed: a number that is handed out.
        while let Some((blob, of)) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
            let brought = source.bring(store, blob, watch.fetching);
            let told = match brought {
                Ok(()) => of.iter().all(|at| give.send(*at).is_ok()),
                Err(error) => {
                    failed.lock().get_or_insert(error.within(format!("layer {}", blob.digest())));
                    false
                }
            };
            if !told {
                // It failed, or the unpacking has. Relaxed: the others stop a blob later at worst.
                next.store(missing.len(), Ordering::Relaxed);
            }
        }
    };
    let trees = std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(missing.len()) {
            let give = give.clone();
            scope.spawn(|| work(give));
        }
        drop(give);
        store.trees_as_they_come(image, come, watch.unpacking)
    });
    // What has not come is the reason, and not that it is missed.
    failed.into_inner().map_or(trees.map(drop), Err)
}

/// Follows indexes to the manifest of one image, which is described by what is in it.
fn resolve(store: &Store, source: &dyn Source, descriptor: &Descriptor, platform: &Platform) -> Result<Descriptor> {
    let mut descriptor = descriptor.clone();
    for _ in 0..INDEXES_MAX {
        let kind = match Kind::of(descriptor.media_type()) {
            Kind::Other => {
                let bytes = document(store, source, &descriptor)?;
                descriptor.set_media_type(manifest_type(&bytes)?);
                Kind::of(descriptor.media_type())
            }
            kind => kind,
        };
        match kind {
            Kind::Manifest => {
                return Ok(Descriptor::new(
                    descriptor.media_type().clone(),
                    descriptor.size(),
                    descriptor.digest().clone(),
                ));
            }
            Kind::Index => {
                let index = parse_index(&document(store, source, &descriptor)?)?;
                descriptor = select(&index, platform)?.clone();
            }
            Kind::Schema1 => {
                let reason =
                    "is a manifest of Docker's first schema, which has to be converted (skopeo copy --format oci)";
                return Err(Error::image(descriptor.digest(), reason));
            }
            _ => {
                let reason = format!("is a {}, and no manifest of an image", descriptor.media_type());
                return Err(Error::image(descriptor.digest(), reason));
            }
        }
    }
    Err(Error::image(descriptor.digest(), "is an index of indexes of indexes"))
}

/// Brings a document into the store, and returns it.
fn document(store: &Store, source: &dyn Source, descriptor: &Descriptor) -> Result<Vec<u8>> {
    if descriptor.size() <= DOCUMENT_MAX {
        // One that is there and is damaged is brought again.
        if store.has(descriptor)?
            && let Ok(bytes) = store.read_document(descriptor)
        {
            return Ok(bytes);
        }
        let stream = source.open(descriptor)?;
        store.put_blob(descriptor.digest(), descriptor.size(), stream)?;
    }
    store.read_document(descriptor)
}

/// A store, from which an image can be fetched that is in it: its layers are unpacked, and it is checked.
impl Source for Store {
    fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + '_>> {
        let digest: &Digest = descriptor.digest();
        Ok(Box::new(self.open_blob(digest)?))
    }
}

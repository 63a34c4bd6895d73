//! Reading everything again, and comparing it with its digest.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;

use oci_spec::image::Digest;

use super::super::digest::Verified;
use super::super::manifest::{Image, Layer};
use super::super::pipe::drain;
use super::super::same::Difference;
use super::Store;
use super::layers::read_layer;
use super::progress::{Counted, Progress, Work};
use crate::error::{Error, ErrorKind, Result};

/// Something in a store that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The image, the blob or the layer.
    pub subject: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What reading everything again has shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// How many blobs there are.
    pub blobs: u64,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// Whether the trees of layers are compared, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trees {
    /// With what their layers are unpacked to once more, which takes room for one at a time.
    Compared,
    /// They are not looked at.
    Left,
}

impl Store {
    /// Reads every blob again, and the tars in the layers of every image, and returns what is not what it should be.
    ///
    /// With [`Trees::Compared`] the trees of layers, too. `hashing` is told of blobs, `unpacking` of layers. Errors: those of
    /// listing the store.
    pub fn verify(&self, trees: Trees, hashing: &dyn Progress, unpacking: &dyn Progress) -> Result<Verdict> {
        if trees == Trees::Compared && !self.is_ours()? {
            let reason = "belongs to another user, whose trees would be unpacked otherwise; compare them as that user";
            return Err(Error::image(self.root.display(), reason).of_kind(ErrorKind::Permission));
        }
        let mut verdict = Verdict::default();
        let mut found = |subject: String, reason: String| verdict.problems.push(Problem { subject, reason });
        let mut damaged = HashSet::new();
        for (algorithm, name) in self.blob_names()? {
            let text = format!("{algorithm}:{name}");
            verdict.blobs += 1;
            match Digest::try_from(text.as_str()) {
                Ok(digest) => {
                    if let Err(error) = self.rehash(&digest, hashing) {
                        found(format!("blob {text}"), error.to_string());
                        damaged.insert(digest);
                    }
                }
                Err(error) => found(format!("blob {text}"), format!("its name is no digest: {error}")),
            }
        }
        let mut seen = HashSet::new();
        for named in self.images()? {
            let shown = named.name.map_or_else(|| named.manifest.digest().to_string(), |name| name.to_string());
            let image = match Image::read(self, &named.manifest) {
                Ok(image) => image,
                Err(error) => {
                    found(format!("image {shown}"), error.to_string());
                    continue;
                }
            };
            for (at, layer) in image.layers.iter().enumerate() {
                if !self.has(&layer.blob)? {
                    found(format!("image {shown}"), format!("its layer {} is missing", layer.blob.digest()));
                    continue;
                }
                // One that several images share is what it is.
                if !seen.insert((layer.blob.digest().clone(), layer.chain_id.clone())) {
                    continue;
                }
                let has_tree = match self.tree(layer) {
                    Ok(tree) => tree.is_some(),
                    Err(error) => {
                        found(format!("tree {}", layer.diff_id), error.to_string());
                        false
                    }
                };
                let compared = match trees {
                    Trees::Compared if has_tree && !damaged.contains(layer.blob.digest()) => {
                        match self.differences(&image, at, unpacking) {
                            // That there is no room to unpack it says nothing of the layer.
                            Err(error) if matches!(error.kind(), ErrorKind::Machine | ErrorKind::Permission) => {
                                return Err(error.within(format!("layer {}", layer.blob.digest())));
                            }
                            compared => compared,
                        }
                    }
                    _ => self.reread(layer, unpacking).map(|()| Vec::new()),
                };
                match compared {
                    Ok(list) => {
                        for Difference { path, what } in list {
                            found(format!("tree {}", layer.diff_id), format!("/{} {what}", path.display()));
                        }
                    }
                    Err(error) => found(format!("layer {}", layer.blob.digest()), error.to_string()),
                }
            }
        }
        Ok(verdict)
    }

    /// Whether the store is of the user that this process runs as.
    fn is_ours(&self) -> Result<bool> {
        let failed = |error: io::Error| Error::image_io(self.root.display(), &error);
        Ok(fs::metadata(&self.root).map_err(failed)?.uid() == rustix::process::geteuid().as_raw())
    }

    /// Compares the tar of a layer with its diff_id, and its blob with its digest.
    fn reread(&self, layer: &Layer, progress: &dyn Progress) -> Result<()> {
        let blob = self.read_blob(&layer.blob)?;
        read_layer(&layer.blob, &layer.diff_id, blob, progress, |tar| drain(tar)).map(drop)
    }

    /// Compares a blob with the digest that is its name.
    pub(super) fn rehash(&self, digest: &Digest, progress: &dyn Progress) -> io::Result<()> {
        let file = File::open(self.blob_path(digest))?;
        let size = file.metadata()?.len();
        let work = Work { name: digest.to_string(), bytes: Some(size) };
        Verified::new(Counted::new(file, work, progress), digest, size)?.finish()
    }
}

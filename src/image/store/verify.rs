//! Reading everything again, and comparing it with its digest.

use std::fs::File;
use std::io;

use oci_spec::image::Digest;

use super::super::digest::Verified;
use super::super::manifest::Image;
use super::super::pipe::drain;
use super::Store;
use super::layers::read_layer;
use super::progress::{Counted, Progress, Work};
use crate::error::Result;

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

impl Store {
    /// Reads every blob again, and the tars in the layers of every image, and returns what is not what it should be.
    ///
    /// `hashing` is told of blobs, `unpacking` of layers. Errors: those of listing the store.
    pub fn verify(&self, hashing: &dyn Progress, unpacking: &dyn Progress) -> Result<Verdict> {
        let mut verdict = Verdict::default();
        let mut found = |subject: String, reason: String| verdict.problems.push(Problem { subject, reason });
        for (algorithm, name) in self.blob_names()? {
            let text = format!("{algorithm}:{name}");
            verdict.blobs += 1;
            match Digest::try_from(text.as_str()) {
                Ok(digest) => {
                    if let Err(error) = self.rehash(&digest, hashing) {
                        found(format!("blob {text}"), error.to_string());
                    }
                }
                Err(error) => found(format!("blob {text}"), format!("its name is no digest: {error}")),
            }
        }
        for named in self.images()? {
            let shown = named.name.map_or_else(|| named.manifest.digest().to_string(), |name| name.to_string());
            let image = match Image::read(self, &named.manifest) {
                Ok(image) => image,
                Err(error) => {
                    found(format!("image {shown}"), error.to_string());
                    continue;
                }
            };
            for layer in &image.layers {
                if !self.has(&layer.blob)? {
                    found(format!("image {shown}"), format!("its layer {} is missing", layer.blob.digest()));
                    continue;
                }
                let unpacked = self
                    .read_blob(&layer.blob)
                    .and_then(|blob| read_layer(&layer.blob, &layer.diff_id, blob, unpacking, |tar| drain(tar)));
                if let Err(error) = unpacked {
                    found(format!("layer {}", layer.blob.digest()), error.to_string());
                }
            }
        }
        Ok(verdict)
    }

    /// Compares a blob with the digest that is its name.
    pub(super) fn rehash(&self, digest: &Digest, progress: &dyn Progress) -> io::Result<()> {
        let file = File::open(self.blob_path(digest))?;
        let size = file.metadata()?.len();
        let work = Work { name: digest.to_string(), bytes: Some(size) };
        Verified::new(Counted::new(file, work, progress), digest, size)?.finish()
    }
}

//! Reading everything again, and comparing it with its digest.

use std::fs::File;
use std::io;

use oci_spec::image::Digest;

use super::super::digest::Verified;
use super::super::manifest::Image;
use super::super::pipe::drain;
use super::Store;
use super::layers::read_layer;
use crate::error::Result;

/// Something in a store that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The image, the blob or the layer.
    pub subject: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Store {
    /// Reads every blob and every image again, and returns what is not what it should be.
    ///
    /// `each` is called with each blob before it is read. Errors: those of listing the store.
    pub fn verify(&self, mut each: impl FnMut(&str)) -> Result<Vec<Problem>> {
        let mut problems = Vec::new();
        let mut found = |subject: String, reason: String| problems.push(Problem { subject, reason });
        for (algorithm, name) in self.blob_names()? {
            let text = format!("{algorithm}:{name}");
            each(&text);
            match Digest::try_from(text.as_str()) {
                Ok(digest) => {
                    if let Err(error) = self.rehash(&digest) {
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
                    .and_then(|blob| read_layer(&layer.blob, &layer.diff_id, blob, &(), |tar| drain(tar)));
                if let Err(error) = unpacked {
                    found(format!("layer {}", layer.blob.digest()), error.to_string());
                }
            }
        }
        Ok(problems)
    }

    /// Compares a blob with the digest that is its name.
    pub(super) fn rehash(&self, digest: &Digest) -> io::Result<()> {
        let file = File::open(self.blob_path(digest))?;
        let size = file.metadata()?.len();
        Verified::new(file, digest, size)?.finish()
    }
}

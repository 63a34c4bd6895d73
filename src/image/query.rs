//! Finding an image by what people write: a name, short or whole, or the beginning of an id or digest.

use oci_spec::image::{Descriptor, Digest};

use super::manifest::Image;
use super::reference::ImageName;
use super::store::{Named, Store};
use crate::error::{Error, ErrorKind, Result};

/// The fewest digits that are taken for the beginning of an id.
const DIGITS_MIN: usize = 4;

/// An image that was found.
#[derive(Debug)]
pub struct Found {
    /// The image.
    pub image: Image,
    /// The name by which it was found; `None` for one that was found by id or digest.
    pub name: Option<ImageName>,
}

/// Where an image was found, which need not be whole.
#[derive(Debug, Clone)]
pub struct Located {
    /// Describes its manifest.
    pub manifest: Descriptor,
    /// The name by which it was found; `None` for one that was found by id or digest.
    pub name: Option<ImageName>,
}

impl Store {
    /// Finds the image that `text` names, and reads it. Errors: [`ErrorKind::Absent`] where there is none, or several begin so.
    pub fn find(&self, text: &str) -> Result<Found> {
        let located = self.locate(text)?;
        let found = located.first().ok_or_else(|| absent(text, "there is no such image"))?;
        let image = Image::read(self, &found.manifest).map_err(|error| error.within(text))?;
        Ok(Found { image, name: found.name.clone() })
    }

    /// Finds the manifests of the image that `text` names: several where one configuration has several, by its id.
    ///
    /// Errors: [`ErrorKind::Absent`] where there is none, or several images begin so.
    pub fn locate(&self, text: &str) -> Result<Vec<Located>> {
        let images = self.images()?;
        if let Ok(candidates) = ImageName::candidates(text) {
            for name in &candidates {
                if let Some(found) = by_name(&images, name) {
                    return Ok(vec![Located { manifest: found.manifest.clone(), name: Some(name.clone()) }]);
                }
            }
        }
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let hexadecimal =
            digits.len() >= DIGITS_MIN && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let mut found: Vec<(String, Descriptor)> = Vec::new();
        for named in images.into_iter().filter(|_| hexadecimal) {
            let digest = named.manifest.digest();
            if found.iter().any(|(_, manifest)| manifest.digest() == digest) {
                continue;
            }
            // One that cannot be read is found by its digest alone.
            let id =
                Image::read(self, &named.manifest).map_or_else(|_| digest.to_string(), |image| image.id().to_string());
            let of_id = id.strip_prefix("sha256:").is_some_and(|id| id.starts_with(digits));
            if of_id || digest.digest().starts_with(digits) {
                found.push((id, named.manifest));
            }
        }
        match found.first() {
            None => Err(absent(text, "there is no such image; unionfs-rs images lists them, pull and load bring more")),
            Some((id, _)) if found.iter().any(|(other, _)| other != id) => {
                Err(absent(text, "several images begin so; write more of the digits"))
            }
            Some(_) => Ok(found.into_iter().map(|(_, manifest)| Located { manifest, name: None }).collect()),
        }
    }

    /// Returns the names of the image with the manifest `digest`.
    pub fn names_of(&self, digest: &Digest) -> Result<Vec<ImageName>> {
        let images = self.images()?;
        Ok(images
            .into_iter()
            .filter(|image| image.manifest.digest() == digest)
            .filter_map(|image| image.name)
            .collect())
    }
}

/// Returns the image with this name, or of this repository with this digest.
fn by_name<'a>(images: &'a [Named], name: &ImageName) -> Option<&'a Named> {
    let exact = images.iter().find(|image| image.name.as_ref() == Some(name));
    exact.or_else(|| {
        let digest = name.digest()?;
        let of_repository = |image: &&Named| image.name.as_ref().is_some_and(|other| other.base() == name.base());
        images.iter().filter(of_repository).find(|image| image.manifest.digest().as_ref() == digest)
    })
}

fn absent(text: &str, reason: &str) -> Error {
    Error::image(text, reason).of_kind(ErrorKind::Absent)
}

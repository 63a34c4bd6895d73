//! `index.json`: the images of the store, and what they are called.
//!
//! It is read, changed and replaced under a lock of its own, held for that moment alone. An image that has lost its name to
//! another stays, without one, until it is removed.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use oci_spec::image::{Descriptor, ImageIndex, ImageIndexBuilder, MediaType};
use rustix::fs::FlockOperation;

use super::super::reference::ImageName;
use super::{Store, open_lock, replace};
use crate::error::{Error, Result};

/// The annotation with the name, as the OCI's layout has it.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An image of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// What it is called, if anything.
    pub name: Option<ImageName>,
    /// Its manifest.
    pub manifest: Descriptor,
}

/// Makes an index of no images, where there is none.
pub(super) fn create(root: &Path) -> Result<()> {
    let path = root.join("index.json");
    if path.exists() {
        return Ok(());
    }
    let made = encode(Vec::new()).and_then(|bytes| replace(&path, &bytes));
    made.map_err(|error| Error::image_io(path.display(), &error))
}

fn encode(manifests: Vec<Descriptor>) -> std::io::Result<Vec<u8>> {
    let index = ImageIndexBuilder::default()
        .schema_version(2_u32)
        .media_type(MediaType::ImageIndex)
        .manifests(manifests)
        .build()
        .map_err(std::io::Error::other)?;
    serde_json::to_vec(&index).map_err(Into::into)
}

/// Returns the name that `descriptor` of an index is given by its annotation.
pub fn ref_name(descriptor: &Descriptor) -> Option<&str> {
    descriptor.annotations().as_ref().and_then(|annotations| annotations.get(REF_NAME)).map(String::as_str)
}

/// Returns `descriptor` with the annotation for `name`, or without it.
pub fn with_ref_name(mut descriptor: Descriptor, name: Option<&str>) -> Descriptor {
    let mut annotations = descriptor.annotations().clone().unwrap_or_default();
    match name {
        Some(name) => drop(annotations.insert(REF_NAME.to_owned(), name.to_owned())),
        None => drop(annotations.remove(REF_NAME)),
    }
    descriptor.set_annotations((!annotations.is_empty()).then_some(annotations));
    descriptor
}

/// Returns what an image of the index is called. One that another tool has called by something that is no name has none
/// here, and a mere tag is a name of this machine.
pub fn called(descriptor: &Descriptor) -> Option<ImageName> {
    ref_name(descriptor).and_then(|name| ImageName::local(name).ok())
}

impl Store {
    /// Returns the images of the store, in the order in which they came.
    pub fn images(&self) -> Result<Vec<Named>> {
        let named =
            |descriptor: Descriptor| Named { name: called(&descriptor), manifest: with_ref_name(descriptor, None) };
        Ok(self.read_index()?.into_iter().map(named).collect())
    }

    fn read_index(&self) -> Result<Vec<Descriptor>> {
        let failed = |error| self.error("index.json", &error);
        let bytes = fs::read(self.path("index.json")).map_err(failed)?;
        let index: ImageIndex = serde_json::from_slice(&bytes)
            .map_err(|error| Error::image(self.path("index.json").display(), format!("cannot be read: {error}")))?;
        Ok(index.manifests().clone())
    }

    /// Changes the index in one step, and returns what `change` does.
    fn change_index<T>(&self, change: impl FnOnce(&mut Vec<Descriptor>) -> T) -> Result<T> {
        // Let go of when it is closed.
        let lock = open_lock(&self.path("index.lock"))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(|e| self.error("index.lock", &e.into()))?;
        let before = self.read_index()?;
        let mut after = before.clone();
        let done = change(&mut after);
        if after != before {
            let fewer = after.len() < before.len();
            let bytes = encode(after).map_err(|error| self.error("index.json", &error))?;
            let write = || replace(&self.path("index.json"), &bytes);
            let written = match write() {
                Err(error)
                    if fewer
                        && matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
                        && self.give_spare() =>
                {
                    write()
                }
                done => done,
            };
            written.map_err(|error| self.error("index.json", &error))?;
        }
        Ok(done)
    }

    /// Calls the image with `manifest` by `name`, which is taken from any other; without a name, makes it known alone.
    ///
    /// Whatever it is made of must be in the store.
    pub fn tag(&self, manifest: &Descriptor, name: Option<&ImageName>) -> Result<()> {
        let manifest = with_ref_name(manifest.clone(), None);
        let text = name.map(ToString::to_string);
        self.change_index(|list| {
            let is_it = |entry: &Descriptor| entry.digest() == manifest.digest();
            if name.is_some() {
                let has_it = |entry: &Descriptor| called(entry).as_ref() == name;
                for entry in list.iter_mut().filter(|entry| has_it(entry) && !is_it(entry)) {
                    *entry = with_ref_name(entry.clone(), None);
                }
                if list.iter().any(|entry| is_it(entry) && has_it(entry)) {
                    return;
                }
                // A name takes the place of having none.
                list.retain(|entry| !(is_it(entry) && ref_name(entry).is_none()));
            } else if list.iter().any(is_it) {
                return;
            }
            list.push(with_ref_name(manifest.clone(), text.as_deref()));
            forget_doubles(list);
        })
    }

    /// Takes `name` from the image that has it; false where none has. The image stays, by another name or without one.
    pub fn untag(&self, name: &ImageName) -> Result<bool> {
        self.change_index(|list| {
            let Some(at) = list.iter().position(|entry| called(entry).as_ref() == Some(name)) else { return false };
            let entry = list.remove(at);
            list.insert(at, with_ref_name(entry, None));
            forget_doubles(list);
            true
        })
    }

    /// Takes every name from the image with the manifest `digest`, and forgets it; its blobs stay until [`Store::gc`].
    pub fn forget(&self, digest: &oci_spec::image::Digest) -> Result<()> {
        self.change_index(|list| list.retain(|entry| entry.digest() != digest))
    }
}

/// Drops entries without a name of images that have one, and all but the first of those that have none.
fn forget_doubles(list: &mut Vec<Descriptor>) {
    let mut named: HashMap<String, bool> = HashMap::new();
    for entry in list.iter() {
        let has = named.entry(entry.digest().to_string()).or_default();
        *has |= ref_name(entry).is_some();
    }
    let mut seen = Vec::new();
    list.retain(|entry| {
        let digest = entry.digest().to_string();
        if ref_name(entry).is_some() {
            return true;
        }
        if named.get(&digest) == Some(&true) || seen.contains(&digest) {
            return false;
        }
        seen.push(digest);
        true
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(store: &Store, text: &str) -> Descriptor {
        let digest = store.put_bytes(text.as_bytes()).unwrap();
        Descriptor::new(MediaType::ImageManifest, text.len() as u64, digest)
    }

    fn shown(store: &Store) -> Vec<(Option<String>, u64)> {
        let images = store.images().unwrap();
        images.iter().map(|image| (image.name.as_ref().map(ToString::to_string), image.manifest.size())).collect()
    }

    #[test]
    fn a_name_leads_to_one_image_and_an_image_may_have_several() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let name = |text: &str| ImageName::parse(text).unwrap();
        let (one, two) = (manifest(&store, "1"), manifest(&store, "22"));
        let (a, b) = (name("localhost/a:1"), name("localhost/b:1"));
        store.tag(&one, None).unwrap();
        store.tag(&one, None).unwrap();
        assert_eq!(shown(&store), [(None, 1)]);
        store.tag(&one, Some(&a)).unwrap();
        store.tag(&one, Some(&b)).unwrap();
        store.tag(&one, Some(&b)).unwrap();
        let text = |name: &ImageName| Some(name.to_string());
        assert_eq!(shown(&store), [(text(&a), 1), (text(&b), 1)]);
        store.tag(&two, Some(&a)).unwrap();
        assert_eq!(shown(&store), [(text(&b), 1), (text(&a), 2)]);
        assert!(store.untag(&b).unwrap() && !store.untag(&b).unwrap());
        assert_eq!(shown(&store), [(None, 1), (text(&a), 2)]);
        store.forget(two.digest()).unwrap();
        assert_eq!(shown(&store), [(None, 1)]);
        // Another tool reads it.
        let index = ImageIndex::from_file(dir.path().join("index.json")).unwrap();
        assert_eq!(index.manifests().len(), 1);
    }

    #[test]
    fn two_that_name_images_at_once_lose_none() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let dir = dir.path();
                scope.spawn(move || {
                    let store = Store::open(dir).unwrap();
                    for n in 0..10 {
                        let text = format!("localhost/t{thread}:{n}");
                        let manifest = manifest(&store, &text);
                        store.tag(&manifest, Some(&ImageName::parse(&text).unwrap())).unwrap();
                    }
                });
            }
        });
        assert_eq!(Store::open(dir.path()).unwrap().images().unwrap().len(), 40);
    }
}

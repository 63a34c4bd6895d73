//! Taking away what no image and no container needs, and counting what each needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use oci_spec::image::Descriptor;
use rustix::fs::FlockOperation;

use super::super::manifest::Image;
use super::super::media::Kind;
use super::super::source::parse_index;
use super::layers::{chain_name, name_of};
use super::{Store, blobs, remove};
use crate::error::{Error, Result};

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// How many blobs.
    pub blobs: u64,
    /// How many trees of layers.
    pub layers: u64,
    /// How many bytes of the disk they had.
    pub bytes: u64,
}

/// What an image takes of the disk, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// The digest of its manifest.
    pub manifest: String,
    /// Of what other images have, too.
    pub shared: u64,
    /// Of what it has alone.
    pub unique: u64,
}

/// Names of blobs and trees.
#[derive(Debug, Default)]
struct Parts {
    /// `sha256/…`
    blobs: BTreeSet<String>,
    layers: BTreeSet<String>,
}

impl Parts {
    /// Adds what `image` is made of; both names that a tree may have.
    fn add(&mut self, image: &Image) {
        for blob in [&image.descriptor, image.manifest.config()].into_iter().chain(image.layers.iter().map(|l| &l.blob))
        {
            self.add_blob(blob);
        }
        let trees = image.layers.iter().flat_map(|layer| [name_of(&layer.diff_id), chain_name(&layer.chain_id)]);
        self.layers.extend(trees);
    }
}

impl Parts {
    fn add_blob(&mut self, blob: &Descriptor) {
        self.blobs.insert(format!("{}/{}", blob.digest().algorithm(), blob.digest().digest()));
    }
}

impl Store {
    /// Removes blobs and trees that no image has and no container uses; waits until nobody else has the store open.
    ///
    /// Errors: those of reading an image, of which it could not be said what it needs: then nothing is removed.
    pub fn gc(&self) -> Result<Removed> {
        self.lock(FlockOperation::LockExclusive)?;
        let done = self.remove_unneeded();
        self.lock(FlockOperation::LockShared)?;
        done
    }

    /// As [`Store::gc`], where nobody else has the store open now; else `None`.
    pub fn try_gc(&self) -> Result<Option<Removed>> {
        if !self.lock(FlockOperation::NonBlockingLockExclusive)? {
            // What could not be changed may have been given up.
            self.lock(FlockOperation::LockShared)?;
            return Ok(None);
        }
        let done = self.remove_unneeded();
        self.lock(FlockOperation::LockShared)?;
        done.map(Some)
    }

    /// Removes what nothing needs. The store must be locked alone.
    fn remove_unneeded(&self) -> Result<Removed> {
        let needed = self.needed()?;
        self.empty_tmp()?;
        self.remove_partial()?;
        let mut removed = Removed::default();
        for (algorithm, name) in self.blob_names()? {
            if needed.blobs.contains(&format!("{algorithm}/{name}")) {
                continue;
            }
            removed.bytes += self.remove_part(&format!("blobs/{algorithm}/{name}"))?;
            removed.blobs += 1;
        }
        for name in self.entries("layers")? {
            if !needed.layers.contains(&name) {
                removed.bytes += self.remove_tree(&name)?;
                removed.layers += 1;
            }
        }
        Ok(removed)
    }

    /// Returns what each image takes, in the order of the images; each once, whatever names it has.
    pub fn usage(&self) -> Result<Vec<Usage>> {
        let images = self.distinct_images()?;
        let parts: Vec<Parts> = images
            .iter()
            .map(|image| {
                let mut parts = Parts::default();
                parts.add(image);
                parts
            })
            .collect();
        let mut users: BTreeMap<String, u64> = BTreeMap::new();
        let paths = |parts: &Parts| -> Vec<String> {
            let blobs = parts.blobs.iter().map(|name| format!("blobs/{name}"));
            blobs.chain(parts.layers.iter().map(|name| format!("layers/{name}"))).collect()
        };
        for part in parts.iter().flat_map(paths) {
            *users.entry(part).or_default() += 1;
        }
        let mut sizes = BTreeMap::new();
        for part in users.keys() {
            sizes.insert(part.clone(), disk_usage(&self.path(part)).map_err(|error| self.error(part, &error))?);
        }
        let mut usage = Vec::new();
        for (image, parts) in images.iter().zip(&parts) {
            let mut one = Usage { manifest: image.descriptor.digest().to_string(), shared: 0, unique: 0 };
            for part in paths(parts) {
                let size = sizes.get(&part).copied().unwrap_or_default();
                if users.get(&part) == Some(&1) { one.unique += size } else { one.shared += size }
            }
            usage.push(one);
        }
        Ok(usage)
    }

    /// Returns the bytes that the whole store takes of the disk.
    pub fn disk_usage(&self) -> Result<u64> {
        disk_usage(self.root()).map_err(|error| self.error("", &error))
    }

    /// Reads the images of the store, each once; one that cannot be read is left out.
    pub fn distinct_images(&self) -> Result<Vec<Image>> {
        let mut images: Vec<Image> = Vec::new();
        for named in self.images()? {
            if !images.iter().any(|image| image.descriptor.digest() == named.manifest.digest()) {
                match Image::read(self, &named.manifest) {
                    Ok(image) => images.push(image),
                    Err(error) => log::warn!("{error}"),
                }
            }
        }
        Ok(images)
    }

    fn needed(&self) -> Result<Parts> {
        let mut needed = Parts::default();
        let mut todo: Vec<(Descriptor, String)> = Vec::new();
        for named in self.images()? {
            let shown = named.name.map_or_else(|| named.manifest.digest().to_string(), |name| name.to_string());
            todo.push((named.manifest, shown));
        }
        while let Some((manifest, shown)) = todo.pop() {
            let hint =
                |error: Error| error.within(format!("{shown}: bring it again, or remove it (unionfs-rs rmi {shown})"));
            if Kind::of(manifest.media_type()) == Kind::Index {
                // As other tools put them into a layout: with what it leads to, as far as that is there.
                needed.add_blob(&manifest);
                let index = self.read_document(&manifest).and_then(|bytes| parse_index(&bytes)).map_err(hint)?;
                for entry in index.manifests().iter().filter(|entry| Kind::of(entry.media_type()) != Kind::Other) {
                    if self.has(entry)? {
                        todo.push((entry.clone(), shown.clone()));
                    }
                }
                continue;
            }
            needed.add(&Image::read(self, &manifest).map_err(hint)?);
        }
        for container in self.whole_containers()? {
            needed.layers.extend(container.config.layers);
        }
        Ok(needed)
    }

    /// Returns the names of what is in the directory `name` of the store.
    pub(super) fn entries(&self, name: &str) -> Result<Vec<String>> {
        let failed = |error: io::Error| self.error(name, &error);
        let mut names = Vec::new();
        for entry in fs::read_dir(self.path(name)).map_err(failed)? {
            let entry = entry.map_err(failed)?.file_name();
            // What is no text was put there by somebody else.
            names.extend(entry.into_string());
        }
        names.sort();
        Ok(names)
    }

    /// Returns algorithm and digits of each blob.
    pub(super) fn blob_names(&self) -> Result<Vec<(String, String)>> {
        let mut names = Vec::new();
        for algorithm in self.entries("blobs")? {
            // What somebody else has put there is no blob.
            if !self.path("blobs").join(&algorithm).is_dir() {
                continue;
            }
            names
                .extend(self.entries(&format!("blobs/{algorithm}"))?.into_iter().map(|name| (algorithm.clone(), name)));
        }
        Ok(names)
    }

    /// Removes what earlier pulls have begun to fetch.
    fn remove_partial(&self) -> Result<()> {
        for name in self.entries("tmp")?.iter().filter(|name| name.starts_with(blobs::PARTIAL)) {
            self.remove_part(&format!("tmp/{name}"))?;
        }
        Ok(())
    }

    /// Removes a file or directory of the store; returns what it took of the disk.
    fn remove_part(&self, name: &str) -> Result<u64> {
        let path = self.path(name);
        let removed = disk_usage(&path).and_then(|bytes| remove(&path).map(|()| bytes));
        removed.map_err(|error| self.error(name, &error))
    }

    /// Removes a tree, which is no tree any more before anything in it is gone.
    fn remove_tree(&self, name: &str) -> Result<u64> {
        let work = self.workspace()?;
        let path = self.path("layers").join(name);
        let failed = |error: io::Error| Error::image_io(path.display(), &error);
        fs::rename(&path, work.path().join(name)).map_err(failed)?;
        let bytes = disk_usage(work.path()).map_err(failed)?;
        work.close().map_err(failed)?;
        Ok(bytes)
    }
}

/// Returns the bytes that what is at `path` takes of the disk, a file with several names once; nothing where nothing is.
fn disk_usage(path: &Path) -> io::Result<u64> {
    let mut seen = BTreeSet::new();
    let mut sum = 0;
    let mut todo = vec![path.to_owned()];
    while let Some(path) = todo.pop() {
        let metadata = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            // Deeper than a path can say: what is there is not counted.
            Err(error) if error.kind() == io::ErrorKind::InvalidFilename => continue,
            metadata => metadata?,
        };
        if metadata.is_dir() {
            match fs::read_dir(&path) {
                Ok(entries) => {
                    for entry in entries {
                        todo.push(entry?.path());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        } else if metadata.nlink() > 1 && !seen.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        sum += metadata.blocks() * 512;
    }
    Ok(sum)
}

//! Images out of files: docker-archive, oci-archive and OCI layouts, packed or not.
//!
//! An archive is read once and in any order, so that it may come through a pipe: what may be a blob goes into the store as it
//! comes by, and what no image has turned out to need is taken away by [`Store::gc`].

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::Path;

use oci_spec::image::{Descriptor, Digest, ImageIndex, MediaType};
use serde::Deserialize;

use super::digest;
use super::manifest::{Image, Platform, is_attachment};
use super::media::{self, Unpacked};
use super::reference::ImageName;
use super::source::{Layout, Source, Watch, fetch, parse_index};
use super::store::{Counted, DOCUMENT_MAX, Store, Work, ref_name};
use super::tar::read::Members;
use super::tar::{Member, MemberKind};
use crate::error::{Error, Result};
use crate::layer::attr::FileKind;

/// The most bytes of documents of an archive that are kept until it is known which are needed.
const DOCUMENTS_MAX: u64 = 64 << 20;

/// The most links of an archive: one for each layer of many images.
const LINKS_MAX: usize = 100_000;

/// An image that was loaded.
#[derive(Debug)]
pub struct Loaded {
    /// The image.
    pub image: Image,
    /// What it is called from now on.
    pub names: Vec<ImageName>,
}

/// Loads the images of the file or directory `path`.
///
/// Errors: [`crate::error::ErrorKind::Image`] with what is wrong; what was named before stays as it was.
pub fn load(store: &Store, path: &Path, platform: &Platform, watch: Watch<'_>) -> Result<Vec<Loaded>> {
    let failed = |error: &io::Error| Error::image_io(path.display(), error);
    if path.is_dir() {
        let layout = Layout::new(path);
        let loaded = layout.index().and_then(|index| load_index(store, &layout, &index, platform, watch));
        return loaded.map_err(|error| error.within(path.display()));
    }
    let file = File::open(path).map_err(|error| failed(&error))?;
    let bytes = file.metadata().ok().filter(Metadata::is_file).map(|is| is.len());
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let counted = Counted::new(file, Work { name, bytes }, watch.fetching);
    load_archive(store, counted, platform, watch).map_err(|error| error.within(path.display()))
}

/// Loads the images of an archive that is read from `stream`.
pub fn load_stream(store: &Store, stream: impl Read, platform: &Platform, watch: Watch<'_>) -> Result<Vec<Loaded>> {
    let work = Work { name: "archive".into(), bytes: None };
    load_archive(store, Counted::new(stream, work, watch.fetching), platform, watch)
}

fn load_archive(store: &Store, stream: impl Read, platform: &Platform, watch: Watch<'_>) -> Result<Vec<Loaded>> {
    let archive = Archive::read(store, stream)?;
    if let Some(index) = archive.documents.get("index.json").filter(|_| archive.documents.contains_key("oci-layout")) {
        return archive.load_oci(store, index, platform, watch);
    }
    if let Some(list) = archive.documents.get("manifest.json") {
        return archive.load_docker(store, list, watch);
    }
    let reason = "is neither a docker-archive (manifest.json) nor an oci-archive (index.json, oci-layout)";
    Err(Error::image("archive", reason))
}

/// Brings the images of a layout's index into the store, and names them when all of them are there.
///
/// What goes with an image and is none (`unknown/unknown`) is left.
fn load_index(
    store: &Store,
    source: &dyn Source,
    index: &ImageIndex,
    platform: &Platform,
    watch: Watch<'_>,
) -> Result<Vec<Loaded>> {
    let mut images = Vec::new();
    for descriptor in index.manifests().iter().filter(|descriptor| !is_attachment(descriptor)) {
        images.push((fetch(store, source, descriptor, platform, watch)?, annotated(descriptor)));
    }
    images.into_iter().map(|(image, called)| name(store, image, called.into_iter().collect())).collect()
}

/// Calls an image by its names.
fn name(store: &Store, image: Image, names: Vec<ImageName>) -> Result<Loaded> {
    if names.is_empty() {
        store.tag(&image.descriptor, None)?;
    }
    for name in &names {
        store.tag(&image.descriptor, Some(name))?;
    }
    Ok(Loaded { image, names })
}

/// Returns the name that an index gives an image, if it is one. A mere tag is a name of this machine, as podman has it.
fn annotated(descriptor: &Descriptor) -> Option<ImageName> {
    let containerd = descriptor.annotations().as_ref().and_then(|all| all.get("io.containerd.image.name"));
    let text = containerd.map(String::as_str).or(ref_name(descriptor))?;
    let name = match containerd {
        Some(name) => ImageName::parse(name),
        None => ImageName::local(text),
    };
    name.and_then(ImageName::tagged).inspect_err(|error| log::warn!("{error}; the image has no name")).ok()
}

/// What was found in an archive.
#[derive(Default)]
struct Archive {
    /// Files that may be documents, by path.
    documents: BTreeMap<String, Vec<u8>>,
    /// Digest and length of files that were put into the store, by path.
    blobs: HashMap<String, (Digest, u64)>,
    /// Other names of files.
    links: HashMap<String, String>,
}

/// One image of a docker-archive.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

impl Archive {
    fn read(store: &Store, stream: impl Read) -> Result<Self> {
        let failed = |error: io::Error| Error::image_io("archive", &error);
        let mut members = Members::new(Unpacked::new(stream).map_err(failed)?);
        let mut archive = Self::default();
        let mut kept = 0_u64;
        while let Some(member) = members.next_member().map_err(failed)? {
            let path = plain(&member.path);
            match member.kind {
                MemberKind::HardLink | MemberKind::File(FileKind::Symlink) if archive.links.len() >= LINKS_MAX => {
                    return Err(Error::image("archive", format!("has more than {LINKS_MAX} links")));
                }
                MemberKind::HardLink => drop(archive.links.insert(path, plain(&member.link))),
                MemberKind::File(FileKind::Symlink) => {
                    let target = beside(&path, &member.link);
                    archive.links.insert(path, target);
                }
                MemberKind::File(FileKind::Regular) => {
                    let taken = archive.take(store, &mut members, &member, path.clone(), &mut kept);
                    taken.map_err(|error| error.within(format!("member {path:?}")))?;
                }
                MemberKind::File(_) => {}
            }
        }
        // Whoever writes to the pipe wants to get rid of it all.
        io::copy(&mut members.into_inner(), &mut io::sink()).map_err(failed)?;
        Ok(archive)
    }

    /// Takes a file out of the archive: a blob into the store, what may be a document into memory.
    fn take(
        &mut self,
        store: &Store,
        members: &mut Members<impl Read>,
        member: &Member,
        path: String,
        kept: &mut u64,
    ) -> Result<()> {
        let failed = |error: io::Error| Error::image_io("archive", &error);
        if let Some(digest) = blob_digest(&path) {
            store.put_blob(&digest, member.size, members.data())?;
            self.blobs.insert(path, (digest, member.size));
            return Ok(());
        }
        let document = !path.ends_with(".tar") && member.size <= DOCUMENT_MAX;
        if document {
            *kept += member.size;
            if *kept > DOCUMENTS_MAX {
                return Err(Error::image("archive", "has too many files that are no layers"));
            }
            let mut bytes = Vec::new();
            members.data().read_to_end(&mut bytes).map_err(failed)?;
            self.documents.insert(path, bytes);
            return Ok(());
        }
        let mut blob = store.new_blob()?;
        blob.copy(members.data()).map_err(failed)?;
        self.blobs.insert(path, blob.finish()?);
        Ok(())
    }

    /// Returns the path of the file that `path` leads to.
    fn resolve(&self, path: &str) -> String {
        let mut path = plain(path.as_bytes());
        // A chain of links cannot be longer than there are links, unless it goes in circles.
        for _ in 0..=self.links.len() {
            match self.links.get(&path) {
                Some(target) => path = target.clone(),
                None => break,
            }
        }
        path
    }

    fn load_oci(&self, store: &Store, index: &[u8], platform: &Platform, watch: Watch<'_>) -> Result<Vec<Loaded>> {
        load_index(store, store, &parse_index(index)?, platform, watch)
    }

    fn load_docker(&self, store: &Store, list: &[u8], watch: Watch<'_>) -> Result<Vec<Loaded>> {
        let list: Vec<DockerImage> = serde_json::from_slice(list)
            .map_err(|error| Error::image("manifest.json", format!("cannot be read: {error}")))?;
        let mut loaded = Vec::new();
        for entry in list {
            let descriptor = self.docker_manifest(store, &entry)?;
            let image = fetch(store, store, &descriptor, &Platform::here(), watch)?;
            let tags = entry.repo_tags.unwrap_or_default();
            let names =
                tags.iter().map(|tag| ImageName::parse(tag).and_then(ImageName::tagged)).collect::<Result<Vec<_>>>()?;
            loaded.push(name(store, image, names)?);
        }
        Ok(loaded)
    }

    /// Makes the manifest that a docker-archive leaves out, as containers/image makes it.
    fn docker_manifest(&self, store: &Store, entry: &DockerImage) -> Result<Descriptor> {
        let path = self.resolve(&entry.config);
        let absent =
            |path: &str| Error::image("archive", format!("its manifest.json names {path:?}, which is not there"));
        let (config, size) = match (self.documents.get(&path), self.blobs.get(&path)) {
            (Some(bytes), _) => (store.put_bytes(bytes)?, bytes.len() as u64),
            (None, Some((digest, size))) => (digest.clone(), *size),
            (None, None) => return Err(absent(&entry.config)),
        };
        let described = |media_type: &str, digest: &Digest, size: u64| serde_json::json!({"mediaType": media_type, "size": size, "digest": digest.to_string()});
        let mut layers = Vec::new();
        for name in entry.layers.iter().flatten() {
            let path = self.resolve(name);
            let (digest, size) = match (self.blobs.get(&path), self.documents.get(&path)) {
                (Some((digest, size)), _) => (digest.clone(), *size),
                // A small one whose name does not end in .tar.
                (None, Some(bytes)) => (store.put_bytes(bytes)?, bytes.len() as u64),
                (None, None) => return Err(absent(name)),
            };
            layers.push(described(media::DOCKER_LAYER, &digest, size));
        }
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": media::DOCKER_MANIFEST,
            "config": described(media::DOCKER_CONFIG, &config, size),
            "layers": layers,
        });
        let bytes = serde_json::to_vec(&manifest).map_err(|error| Error::image_io("manifest", &error.into()))?;
        let digest = store.put_bytes(&bytes)?;
        Ok(Descriptor::new(MediaType::from(media::DOCKER_MANIFEST), bytes.len() as u64, digest))
    }
}

/// Returns the digest that a file of an OCI layout has, by its path.
fn blob_digest(path: &str) -> Option<Digest> {
    let (algorithm, digits) = path.strip_prefix("blobs/")?.split_once('/')?;
    let digest = Digest::try_from(format!("{algorithm}:{digits}")).ok()?;
    digest::Hasher::like(&digest).map(|_| digest)
}

/// Returns the path of a member without what means nothing in it.
fn plain(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    let parts: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    parts.join("/")
}

/// Returns the path that the link at `path` to `target` leads to, within the archive.
fn beside(path: &str, target: &[u8]) -> String {
    let target = String::from_utf8_lossy(target);
    let mut parts: Vec<&str> = if target.starts_with('/') { Vec::new() } else { path.split('/').collect() };
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_within_an_archive_are_followed() {
        assert_eq!(beside("abc/layer.tar", b"../def.tar"), "def.tar");
        assert_eq!(beside("abc/layer.tar", b"x.tar"), "abc/x.tar");
        assert_eq!(beside("layer.tar", b"/def/x.tar"), "def/x.tar");
        assert_eq!(beside("layer.tar", b"../../../etc/passwd"), "etc/passwd");
        let mut archive = Archive::default();
        for (from, to) in [("a", "b"), ("b", "c"), ("x", "y"), ("y", "x")] {
            archive.links.insert(from.into(), to.into());
        }
        assert_eq!(archive.resolve("./a"), "c");
        assert!(["x", "y"].contains(&archive.resolve("x").as_str()));
    }
}

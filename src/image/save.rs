//! Images into files that other tools read: docker-archive, oci-archive and OCI layouts.
//!
//! The same images give the same bytes: members are sorted, and belong to nobody and no time.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use oci_spec::image::{Descriptor, Digest, ImageIndex, ImageIndexBuilder, MediaType, OciLayoutBuilder};

use super::digest;
use super::manifest::Image;
use super::media::{Kind, Unpacked};
use super::reference::ImageName;
use super::store::{Counted, Progress, Store, read_layer, ref_name, with_ref_name};
use super::tar::write::Writer;
use super::tar::{Member, MemberKind};
use crate::error::{Error, Result};
use crate::layer::attr::{FileKind, Timestamp};

/// An image to be saved, and what it is to be called.
#[derive(Debug)]
pub struct Saved {
    /// The image.
    pub image: Image,
    /// Its names.
    pub names: Vec<ImageName>,
}

/// Writes `images` to `out` as an archive that `podman load` and `docker load` read, its layers not packed.
pub fn docker_archive(store: &Store, images: &[Saved], out: impl Write, progress: &dyn Progress) -> Result<()> {
    let mut archive = Archive::new(out);
    let mut list = Vec::new();
    let mut files: BTreeMap<String, Content<'_>> = BTreeMap::new();
    for Saved { image, names } in images {
        let config = format!("{}.json", image.id().digest());
        let layer_path = |diff_id: &Digest| format!("{}.tar", diff_id.digest());
        let layers: Vec<String> = image.layers.iter().map(|layer| layer_path(&layer.diff_id)).collect();
        let tags: Vec<String> = names.iter().filter(|name| name.tag().is_some()).map(ToString::to_string).collect();
        list.push(serde_json::json!({"Config": config, "RepoTags": tags, "Layers": layers}));
        files.insert(config, Content::Bytes(image.config_bytes.clone()));
        for layer in &image.layers {
            files.insert(layer_path(&layer.diff_id), Content::Tar(&layer.blob, &layer.diff_id));
        }
    }
    let list = serde_json::to_vec(&list).map_err(|error| Error::image_io("manifest.json", &error.into()))?;
    files.insert("manifest.json".into(), Content::Bytes(list));
    for (path, content) in files {
        archive.add(store, &path, &content, progress).map_err(|error| error.within(&path))?;
    }
    archive.finish()
}

/// Writes `images` to `out` as an archive of an OCI layout.
pub fn oci_archive(store: &Store, images: &[Saved], out: impl Write, progress: &dyn Progress) -> Result<()> {
    let mut archive = Archive::new(out);
    let mut files = BTreeMap::new();
    let manifests = layout(images, &mut files)?;
    files.insert("index.json".into(), Content::Bytes(index(manifests)?));
    files.insert("oci-layout".into(), Content::Bytes(oci_layout()?));
    for (path, content) in files {
        archive.add(store, &path, &content, progress).map_err(|error| error.within(&path))?;
    }
    archive.finish()
}

/// Writes `images` to the OCI layout in the directory `root`, beside those that it has already; a name there is replaced.
pub fn oci_layout_dir(store: &Store, images: &[Saved], root: &Path, progress: &dyn Progress) -> Result<()> {
    let failed = |path: &Path, error: &io::Error| Error::image_io(path.display(), error);
    let mut manifests = existing(root)?;
    let mut files = BTreeMap::new();
    for manifest in layout(images, &mut files)? {
        let name = ref_name(&manifest).map(str::to_owned);
        manifests.retain(|other| match &name {
            Some(name) => ref_name(other) != Some(name),
            None => other.digest() != manifest.digest(),
        });
        manifests.push(manifest);
    }
    for (path, content) in files {
        let path = root.join(path);
        // A blob that is there by its digest is this one, or is replaced by whoever verifies the layout.
        if path.exists() {
            continue;
        }
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(|error| failed(dir, &error))?;
        }
        let mut file = tempfile::NamedTempFile::new_in(root).map_err(|error| failed(root, &error))?;
        content.write(store, &mut file, progress).map_err(|error| error.within(path.display()))?;
        publish(file, &path).map_err(|error| failed(&path, &error))?;
    }
    for (name, bytes) in [("oci-layout", oci_layout()?), ("index.json", index(manifests)?)] {
        let path = root.join(name);
        let mut file = tempfile::NamedTempFile::new_in(root).map_err(|error| failed(root, &error))?;
        let written = file.write_all(&bytes).and_then(|()| publish(file, &path));
        written.map_err(|error| failed(&path, &error))?;
    }
    Ok(())
}

/// Gives a file that is whole its name, readable for everybody that may read what is written here otherwise.
pub fn publish(file: tempfile::NamedTempFile, path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let umask = rustix::process::umask(rustix::fs::Mode::empty());
    rustix::process::umask(umask);
    file.as_file().set_permissions(fs::Permissions::from_mode(0o666 & !umask.bits()))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error).map(drop)
}

/// Returns the images of a layout that is there, none for a directory that is empty or is made.
fn existing(root: &Path) -> Result<Vec<Descriptor>> {
    let failed = |error: io::Error| Error::image_io(root.display(), &error);
    if root.join("oci-layout").exists() {
        let bytes = fs::read(root.join("index.json")).map_err(failed)?;
        let index: ImageIndex = super::source::parse_index(&bytes).map_err(|error| error.within(root.display()))?;
        return Ok(index.manifests().clone());
    }
    fs::create_dir_all(root).map_err(failed)?;
    match fs::read_dir(root).map_err(failed)?.next() {
        None => Ok(Vec::new()),
        Some(_) => Err(Error::image(root.display(), "holds something, and no OCI layout; name an empty directory")),
    }
}

/// What a file holds.
enum Content<'a> {
    Bytes(Vec<u8>),
    /// A blob as it is.
    Blob(&'a Descriptor),
    /// The tar of a layer with the diff_id.
    Tar(&'a Descriptor, &'a Digest),
}

impl Content<'_> {
    /// Writes it to `out`, compared with its digest.
    fn write(&self, store: &Store, out: &mut impl Write, progress: &dyn Progress) -> Result<()> {
        match self {
            Self::Bytes(bytes) => out.write_all(bytes).map_err(|error| Error::image_io("output", &error)),
            Self::Blob(blob) => {
                let mut stream = Counted::new(store.read_blob(blob)?, (*blob).into(), progress);
                io::copy(&mut stream, out).map_err(|error| Error::image_io("output", &error))?;
                stream.into_inner().finish().map_err(|error| Error::image_io(blob.digest(), &error))
            }
            Self::Tar(blob, diff_id) => {
                let stream = store.read_blob(blob)?;
                read_layer(blob, diff_id, stream, progress, |tar| io::copy(tar, out)).map(drop)
            }
        }
    }

    /// Returns how many bytes it has: of a layer that is packed, after it was unpacked for that.
    fn size(&self, store: &Store) -> Result<u64> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.len() as u64),
            Self::Blob(blob) => Ok(blob.size()),
            Self::Tar(blob, diff_id) if blob.digest() == *diff_id => Ok(blob.size()),
            Self::Tar(blob, _) => {
                let unpacked = store.open_blob(blob.digest()).map(Unpacked::new)?;
                let size = unpacked.and_then(|mut tar| io::copy(&mut tar, &mut io::sink()));
                size.map_err(|error| Error::image_io(blob.digest(), &error))
            }
        }
    }
}

/// A tar that is written.
struct Archive<W> {
    writer: Writer<W>,
}

impl<W: Write> Archive<W> {
    fn new(out: W) -> Self {
        Self { writer: Writer::new(out) }
    }

    fn add(&mut self, store: &Store, path: &str, content: &Content<'_>, progress: &dyn Progress) -> Result<()> {
        let size = content.size(store)?;
        let member = Member {
            path: path.into(),
            kind: MemberKind::File(FileKind::Regular),
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            size,
            link: Vec::new(),
            rdev: (0, 0),
            xattrs: Vec::new(),
            extents: None,
        };
        let failed = |error: io::Error| Error::image_io("output", &error);
        let mut out = self.writer.begin(&member).map_err(failed)?;
        content.write(store, &mut out, progress)?;
        out.finish().map_err(failed)
    }

    fn finish(self) -> Result<()> {
        self.writer.finish().map(drop).map_err(|error| Error::image_io("output", &error))
    }
}

/// Collects the files of a layout with `images`, and returns what its index has of them.
fn layout<'a>(images: &'a [Saved], files: &mut BTreeMap<String, Content<'a>>) -> Result<Vec<Descriptor>> {
    let mut manifests = Vec::new();
    for Saved { image, names } in images {
        let (manifest, bytes) = as_oci(image)?;
        files.insert(blob_path(manifest.digest()), Content::Bytes(bytes));
        files.insert(blob_path(image.id()), Content::Bytes(image.config_bytes.clone()));
        for layer in &image.layers {
            files.insert(blob_path(layer.blob.digest()), Content::Blob(&layer.blob));
        }
        if names.is_empty() {
            manifests.push(manifest.clone());
        }
        manifests.extend(names.iter().map(|name| with_ref_name(manifest.clone(), Some(&name.to_string()))));
    }
    Ok(manifests)
}

/// Returns the manifest of `image` as the OCI has it; one of Docker's is made anew, its configuration stays.
pub fn as_oci(image: &Image) -> Result<(Descriptor, Vec<u8>)> {
    let docker = |media_type: &MediaType| matches!(media_type, MediaType::Other(_));
    let mut manifest = image.manifest.clone();
    let all = manifest.layers().iter().chain([manifest.config()]).any(|blob| docker(blob.media_type()));
    if !all && !docker(image.descriptor.media_type()) {
        return Ok((with_ref_name(image.descriptor.clone(), None), image.manifest_bytes.clone()));
    }
    manifest.set_media_type(Some(MediaType::ImageManifest));
    let mut config = manifest.config().clone();
    config.set_media_type(MediaType::ImageConfig);
    manifest.set_config(config);
    let layers = manifest.layers().iter().map(|layer| {
        let mut layer = layer.clone();
        layer.set_media_type(oci_type(layer.media_type()));
        layer
    });
    manifest.set_layers(layers.collect());
    let failed = |error: io::Error| Error::image_io("manifest", &error);
    let bytes = serde_json::to_vec(&manifest).map_err(|error| failed(error.into()))?;
    let digest = digest::of(&bytes).map_err(failed)?;
    Ok((Descriptor::new(MediaType::ImageManifest, bytes.len() as u64, digest), bytes))
}

/// Returns the OCI's type for one of Docker's of a layer.
fn oci_type(media_type: &MediaType) -> MediaType {
    let MediaType::Other(name) = media_type else { return media_type.clone() };
    let foreign = Kind::of(media_type) == Kind::ForeignLayer;
    match (name.rsplit('.').next(), foreign) {
        (Some("gzip"), false) => MediaType::ImageLayerGzip,
        (Some("zstd"), false) => MediaType::ImageLayerZstd,
        (_, false) => MediaType::ImageLayer,
        (Some("gzip"), true) => MediaType::ImageLayerNonDistributableGzip,
        (Some("zstd"), true) => MediaType::ImageLayerNonDistributableZstd,
        (_, true) => MediaType::ImageLayerNonDistributable,
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.digest())
}

fn index(manifests: Vec<Descriptor>) -> Result<Vec<u8>> {
    let index = ImageIndexBuilder::default().schema_version(2_u32).manifests(manifests).build();
    let bytes = index.map_err(io::Error::other).and_then(|index| Ok(serde_json::to_vec(&index)?));
    bytes.map_err(|error| Error::image_io("index.json", &error))
}

fn oci_layout() -> Result<Vec<u8>> {
    let layout = OciLayoutBuilder::default().image_layout_version("1.0.0").build();
    let bytes = layout.map_err(io::Error::other).and_then(|layout| Ok(serde_json::to_vec(&layout)?));
    bytes.map_err(|error| Error::image_io("oci-layout", &error))
}

//! An image: its manifest, its configuration, and what follows from them.
//!
//! Both are kept as the bytes that they came as, since their digests name them; what is read of them here is what is needed.

use std::collections::HashMap;
use std::fmt;

use oci_spec::image::{Arch, Descriptor, Digest, ImageIndex, ImageManifest, MediaType, Os};

use super::digest;
use super::media::Kind;
use super::store::Store;
use crate::error::{Error, Result};

/// The most layers of an image: what the kernel's overlayfs takes (OVL_MAX_STACK).
const LAYERS_MAX: usize = 500;

/// The platform that an image is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// As `linux`.
    pub os: Os,
    /// As `amd64`.
    pub architecture: Arch,
    /// As `v8`, of ARM's processors.
    pub variant: Option<String>,
}

impl Platform {
    /// Returns what this machine runs.
    pub fn here() -> Self {
        Self { os: Os::default(), architecture: Arch::default(), variant: None }
    }

    /// Reads `os/architecture[/variant]`, as `linux/arm64/v8`.
    pub fn parse(text: &str) -> Result<Self> {
        let mut parts = text.split('/');
        let (os, architecture, variant) = (parts.next(), parts.next(), parts.next());
        let word =
            |part: &&str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        match (os.filter(word), architecture.filter(word), parts.next()) {
            (Some(os), Some(architecture), None) if variant.is_none_or(|variant| word(&variant)) => {
                Ok(Self { os: os.into(), architecture: architecture.into(), variant: variant.map(str::to_owned) })
            }
            _ => Err(Error::image(format!("{text:?}"), "is no platform; write one as linux/amd64 or linux/arm64/v8")),
        }
    }

    /// Returns whether an image for `other` is for this platform. A variant that is not asked for may be any.
    fn takes(&self, other: &oci_spec::image::Platform) -> bool {
        let variant = |variant: &str| other.variant().as_deref().is_none_or(|other| other == variant);
        self.os == *other.os()
            && self.architecture == *other.architecture()
            && self.variant.as_deref().is_none_or(variant)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

/// Returns the first manifest of `index` that is for `platform`.
///
/// An entry without a platform is for any; `unknown/unknown` is of what goes with an image, and no image.
pub fn select<'a>(index: &'a ImageIndex, platform: &Platform) -> Result<&'a Descriptor> {
    let images = || {
        let kind = |entry: &&Descriptor| matches!(Kind::of(entry.media_type()), Kind::Manifest | Kind::Index);
        index.manifests().iter().filter(kind).filter(|entry| !is_attachment(entry))
    };
    let fits = |entry: &&Descriptor| entry.platform().as_ref().is_none_or(|other| platform.takes(other));
    images().find(fits).ok_or_else(|| {
        let there: Vec<String> = images().filter_map(|entry| entry.platform().as_ref()).map(shown).collect();
        let there = if there.is_empty() { "no image at all".to_owned() } else { there.join(", ") };
        Error::image("index", format!("has no image for {platform}; it has {there} (--platform)"))
    })
}

/// Returns whether what an index has is no image, but goes with one: a signature, an attestation.
pub fn is_attachment(entry: &Descriptor) -> bool {
    let unknown =
        |p: &oci_spec::image::Platform| p.os().to_string() == "unknown" || p.architecture().to_string() == "unknown";
    entry.platform().as_ref().is_some_and(unknown)
}

fn shown(platform: &oci_spec::image::Platform) -> String {
    let Platform { os, architecture, variant } = Platform {
        os: platform.os().clone(),
        architecture: platform.architecture().clone(),
        variant: platform.variant().clone(),
    };
    Platform { os, architecture, variant }.to_string()
}

/// What is needed of an image configuration. All of it may be missing but the layers: other tools write what they like.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct Configuration {
    /// When the image was made, as RFC 3339 writes times.
    pub created: Option<String>,
    /// What it is made of.
    pub rootfs: RootFs,
    /// How it came to be, oldest first.
    pub history: Option<Vec<History>>,
}

/// What an image is made of.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct RootFs {
    /// The digests of the tars of its layers, lowest first.
    #[serde(default)]
    pub diff_ids: Vec<String>,
}

/// One step of an image's history.
#[derive(Debug, Clone, Default, serde::Deserialize)]
pub struct History {
    /// When, as RFC 3339 writes times.
    pub created: Option<String>,
    /// By what command.
    pub created_by: Option<String>,
    /// By whom.
    pub author: Option<String>,
    /// Why.
    pub comment: Option<String>,
    /// Whether it made no layer.
    pub empty_layer: Option<bool>,
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The blob, as it is packed.
    pub blob: Descriptor,
    /// The digest of the tar.
    pub diff_id: Digest,
    /// The digest of this layer with all below it.
    pub chain_id: Digest,
}

/// An image of a store.
#[derive(Debug, Clone)]
pub struct Image {
    /// Describes the manifest.
    pub descriptor: Descriptor,
    /// The manifest as it came.
    pub manifest_bytes: Vec<u8>,
    /// The manifest.
    pub manifest: ImageManifest,
    /// The configuration as it came.
    pub config_bytes: Vec<u8>,
    /// The configuration.
    pub config: Configuration,
    /// The layers, lowest first.
    pub layers: Vec<Layer>,
}

impl Layer {
    /// Returns whether the two are one tar in one blob.
    pub fn is_like(&self, other: &Self) -> bool {
        self.diff_id == other.diff_id && self.blob.digest() == other.blob.digest()
    }
}

impl Image {
    /// Returns which layers differ from all below them, counted from the lowest.
    pub fn distinct_layers(&self) -> impl Iterator<Item = usize> {
        let first = |layer: &Layer| self.layers.iter().position(|other| other.is_like(layer));
        self.layers.iter().enumerate().filter(move |(at, layer)| first(layer) == Some(*at)).map(|(at, _)| at)
    }

    /// Reads the image whose manifest `descriptor` describes; its layers need not be there.
    pub fn read(store: &Store, descriptor: &Descriptor) -> Result<Self> {
        let failed = |error: Error| error.within(format!("image {}", digest::short(descriptor.digest())));
        let manifest_bytes = store.read_document(descriptor).map_err(failed)?;
        let manifest = parse_manifest(&manifest_bytes).map_err(failed)?;
        let config_bytes = store.read_document(manifest.config()).map_err(failed)?;
        Self::new(descriptor.clone(), manifest_bytes, config_bytes).map_err(failed)
    }

    /// Makes an image of its documents, which have been compared with their digests.
    pub fn new(descriptor: Descriptor, manifest_bytes: Vec<u8>, config_bytes: Vec<u8>) -> Result<Self> {
        let manifest = parse_manifest(&manifest_bytes)?;
        let config: Configuration = serde_json::from_slice(&config_bytes)
            .map_err(|error| Error::image("configuration", format!("cannot be read: {error}")))?;
        let layers = layers(&manifest, &config)?;
        Ok(Self { descriptor, manifest_bytes, manifest, config_bytes, config, layers })
    }

    /// Returns the digest of the configuration, which is what people know an image by.
    pub fn id(&self) -> &Digest {
        self.manifest.config().digest()
    }

    /// Returns the bytes of the layers as they are packed.
    pub fn packed_size(&self) -> u64 {
        self.layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.blob.size()))
    }
}

/// Reads a manifest. Errors: [`crate::error::ErrorKind::Image`] for one of something that is no image.
pub fn parse_manifest(bytes: &[u8]) -> Result<ImageManifest> {
    let manifest: ImageManifest = serde_json::from_slice(bytes).map_err(|error| {
        let hint = match serde_json::from_slice::<HashMap<String, serde_json::Value>>(bytes) {
            Ok(fields) if fields.get("schemaVersion").and_then(serde_json::Value::as_u64) == Some(1) => {
                "; it is of Docker's first schema, which has to be converted (skopeo copy --format oci)"
            }
            _ => "",
        };
        Error::image("manifest", format!("cannot be read: {error}{hint}"))
    })?;
    match Kind::of(manifest.config().media_type()) {
        Kind::Config => Ok(manifest),
        _ => {
            let of = manifest.config().media_type();
            Err(Error::image("manifest", format!("is of no container image, its configuration is {of}")))
        }
    }
}

fn layers(manifest: &ImageManifest, config: &Configuration) -> Result<Vec<Layer>> {
    let (blobs, diff_ids) = (manifest.layers(), &config.rootfs.diff_ids);
    if blobs.len() != diff_ids.len() {
        let reason = format!("has {} layers, and its configuration {}", blobs.len(), diff_ids.len());
        return Err(Error::image("manifest", reason));
    }
    if blobs.len() > LAYERS_MAX {
        let reason = format!("has {} layers, and {LAYERS_MAX} can be mounted", blobs.len());
        return Err(Error::image("manifest", reason));
    }
    let mut layers: Vec<Layer> = Vec::with_capacity(blobs.len());
    for (blob, diff_id) in blobs.iter().zip(diff_ids) {
        match Kind::of(blob.media_type()) {
            Kind::Layer | Kind::ForeignLayer => {}
            _ => {
                let reason = format!("is a {}, and no layer", blob.media_type());
                return Err(Error::image(blob.digest(), reason));
            }
        }
        let diff_id: Digest = diff_id
            .parse()
            .map_err(|error| Error::image("configuration", format!("its diff_id {diff_id:?} is no digest: {error}")))?;
        if digest::Hasher::like(&diff_id).is_none() {
            return Err(Error::image(
                "configuration",
                format!("its diff_id {diff_id} is by an algorithm that is not known"),
            ));
        }
        let chain_id = match layers.last() {
            None => diff_id.clone(),
            Some(below) => digest::of(format!("{} {diff_id}", below.chain_id).as_bytes())
                .map_err(|error| Error::image_io(&diff_id, &error))?,
        };
        layers.push(Layer { blob: blob.clone(), diff_id, chain_id });
    }
    Ok(layers)
}

/// Returns the type of a manifest as it says it itself, else as its fields tell.
pub fn manifest_type(bytes: &[u8]) -> Result<MediaType> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Head {
        media_type: Option<String>,
        manifests: Option<serde_json::Value>,
    }
    let head: Head =
        serde_json::from_slice(bytes).map_err(|error| Error::image("manifest", format!("cannot be read: {error}")))?;
    Ok(match (head.media_type, head.manifests) {
        (Some(name), _) => MediaType::from(name.as_str()),
        (None, Some(_)) => MediaType::ImageIndex,
        (None, None) => MediaType::ImageManifest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> ImageIndex {
        let entry = |platform: &str, n: u8| {
            format!(
                "{{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"size\":1,\"digest\":\"sha256:{}\"{platform}}}",
                format!("{n:02x}").repeat(32)
            )
        };
        let of = |os: &str, arch: &str, variant: &str| {
            format!(",\"platform\":{{\"os\":\"{os}\",\"architecture\":\"{arch}\"{variant}}}")
        };
        let list = [
            entry(&of("unknown", "unknown", ""), 0),
            entry(&of("linux", "arm64", ",\"variant\":\"v8\""), 1),
            entry(&of("linux", "amd64", ""), 2),
            entry(&of("linux", "arm", ",\"variant\":\"v6\""), 3),
            entry(&of("linux", "arm", ",\"variant\":\"v7\""), 4),
            entry(&of("linux", "amd64", ""), 5),
        ];
        serde_json::from_str(&format!("{{\"schemaVersion\":2,\"manifests\":[{}]}}", list.join(","))).unwrap()
    }

    #[test]
    fn the_first_manifest_for_a_platform_is_taken() {
        let index = index();
        let select =
            |text: &str| select(&index, &Platform::parse(text).unwrap()).map(|d| d.digest().digest()[..2].to_owned());
        assert_eq!(select("linux/amd64").unwrap(), "02");
        assert_eq!(select("linux/arm64").unwrap(), "01");
        assert_eq!(select("linux/arm64/v8").unwrap(), "01");
        assert_eq!(select("linux/arm/v7").unwrap(), "04");
        assert_eq!(select("linux/arm").unwrap(), "03");
        let error = select("linux/s390x").unwrap_err().to_string();
        assert!(error.contains("linux/arm64/v8, linux/amd64, linux/arm/v6") && !error.contains("unknown"), "{error}");
        for text in ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/amd64/"] {
            assert!(Platform::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn chain_ids_are_those_of_the_specification() {
        // The OCI's image-spec, config.md, "Layer ChainID".
        let digest = |n: u8| format!("sha256:{}", format!("{n:02x}").repeat(32));
        let manifest = format!(
            "{{\"schemaVersion\":2,\"config\":{{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"size\":1,\"digest\":\"{0}\"}},\
             \"layers\":[{1},{1}]}}",
            digest(9),
            format!(
                "{{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar\",\"size\":1,\"digest\":\"{}\"}}",
                digest(7)
            )
        );
        let config = format!(
            "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"{}\",\"{}\"]}}}}",
            digest(1),
            digest(2)
        );
        let descriptor = Descriptor::new(MediaType::ImageManifest, 1, Digest::try_from(digest(3)).unwrap());
        let image = Image::new(descriptor, manifest.into_bytes(), config.into_bytes()).unwrap();
        assert_eq!(image.layers[0].chain_id, image.layers[0].diff_id);
        let both = digest::of(format!("{} {}", digest(1), digest(2)).as_bytes()).unwrap();
        assert_eq!(image.layers[1].chain_id, both);
    }
}

//! Media types of what images are made of, and how layers are compressed.
//!
//! Docker's types and those of the OCI say the same. A layer is read by its first bytes, not by its type: registries are full
//! of layers whose type is wrong, and all tools sniff.

use std::io::{self, BufReader, Chain, Cursor, Read};

use flate2::bufread::MultiGzDecoder;
use oci_spec::image::MediaType;

use super::digest::invalid;

/// Docker's manifest of one image (schema 2).
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's list of manifests, one for each platform.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Docker's layer, which is not compressed.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// What Docker's types of layers that are not given away begin with.
const DOCKER_FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";
/// Docker's manifests before digests named configurations, which nobody writes any more.
const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+";

/// What a descriptor leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The manifest of one image.
    Manifest,
    /// Manifests for several platforms.
    Index,
    /// An image configuration.
    Config,
    /// A layer.
    Layer,
    /// A layer that may not be given away: its place is in the descriptor's `urls`.
    ForeignLayer,
    /// A manifest of Docker's first schema.
    Schema1,
    /// Something else.
    Other,
}

impl Kind {
    /// Returns what `media_type` says.
    pub fn of(media_type: &MediaType) -> Self {
        match media_type {
            MediaType::ImageManifest => Self::Manifest,
            MediaType::ImageIndex => Self::Index,
            MediaType::ImageConfig => Self::Config,
            MediaType::ImageLayer | MediaType::ImageLayerGzip | MediaType::ImageLayerZstd => Self::Layer,
            MediaType::ImageLayerNonDistributable
            | MediaType::ImageLayerNonDistributableGzip
            | MediaType::ImageLayerNonDistributableZstd => Self::ForeignLayer,
            MediaType::Other(name) => Self::of_docker(name),
            _ => Self::Other,
        }
    }

    fn of_docker(name: &str) -> Self {
        match name {
            DOCKER_MANIFEST => Self::Manifest,
            DOCKER_LIST => Self::Index,
            DOCKER_CONFIG => Self::Config,
            _ if name.starts_with(DOCKER_LAYER) => Self::Layer,
            _ if name.starts_with(DOCKER_FOREIGN) => Self::ForeignLayer,
            _ if name.starts_with(DOCKER_SCHEMA1) => Self::Schema1,
            _ => Self::Other,
        }
    }
}

/// How the tar of a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, of one member or more.
    Gzip,
    /// zstd, of one frame or more.
    Zstd,
}

impl Compression {
    /// Returns what the first bytes of a stream say; errors for the packings that layers do not have.
    fn sniff(start: &[u8]) -> io::Result<Self> {
        let names = [
            (&b"BZh"[..], "bzip2"),
            (b"\xfd7zXZ\0", "xz"),
            (b"\x1f\x9d", "compress"),
            (b"PK\x03\x04", "zip"),
            (b"\x04\x22\x4d\x18", "lz4"),
        ];
        if start.starts_with(b"\x1f\x8b") {
            return Ok(Self::Gzip);
        }
        // A skippable frame may come first: RFC 8878, 3.1.2.
        let skippable = matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]);
        if start.starts_with(b"\x28\xb5\x2f\xfd") || skippable {
            return Ok(Self::Zstd);
        }
        match names.into_iter().find(|(magic, _)| start.starts_with(magic)) {
            Some((_, name)) => Err(invalid(format!("is packed with {name}; layers are tar, tar+gzip or tar+zstd"))),
            None => Ok(Self::None),
        }
    }

    /// Returns the OCI's type of a layer that is packed so.
    pub fn layer_type(self) -> MediaType {
        match self {
            Self::None => MediaType::ImageLayer,
            Self::Gzip => MediaType::ImageLayerGzip,
            Self::Zstd => MediaType::ImageLayerZstd,
        }
    }
}

/// The most memory that a zstd stream may ask for: 2²⁷ bytes, as `zstd --long` needs it.
const WINDOW_LOG_MAX: u32 = 27;

/// How much is read at once; who reads more at once from a stream that is not packed has it without a copy.
const BUFFER: usize = 64 * 1024;

/// The longest of the beginnings by which a packing is known, in bytes.
const MAGIC: u64 = 6;

/// A stream, unpacked.
pub struct Unpacked<R: Read> {
    inner: Inner<R>,
    compression: Compression,
}

/// A stream whose beginning was looked at.
type Packed<R> = BufReader<Chain<Cursor<Vec<u8>>, R>>;

enum Inner<R: Read> {
    Plain(Packed<R>),
    Gzip(Box<MultiGzDecoder<Packed<R>>>),
    Zstd(Box<zstd::Decoder<'static, Packed<R>>>),
}

impl<R: Read> Unpacked<R> {
    /// Unpacks `stream`, whatever it is packed with. Errors: `InvalidData` for what layers are not packed with.
    pub fn new(mut stream: R) -> io::Result<Self> {
        let mut start = Vec::new();
        stream.by_ref().take(MAGIC).read_to_end(&mut start)?;
        let compression = Compression::sniff(&start)?;
        let stream = BufReader::with_capacity(BUFFER, Cursor::new(start).chain(stream));
        let inner = match compression {
            Compression::None => Inner::Plain(stream),
            Compression::Gzip => Inner::Gzip(Box::new(MultiGzDecoder::new(stream))),
            Compression::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(stream)?;
                decoder.window_log_max(WINDOW_LOG_MAX)?;
                Inner::Zstd(Box::new(decoder))
            }
        };
        Ok(Self { inner, compression })
    }

    /// Returns how the stream is packed.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// Returns the packed stream, which has been read up to where this one was, and perhaps farther.
    pub fn into_inner(self) -> R {
        let packed = match self.inner {
            Inner::Plain(stream) => stream,
            Inner::Gzip(decoder) => decoder.into_inner(),
            Inner::Zstd(decoder) => decoder.finish(),
        };
        packed.into_inner().into_inner().1
    }
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.inner {
            Inner::Plain(stream) => stream.read(buffer),
            Inner::Gzip(decoder) => decoder.read(buffer),
            Inner::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn unpacked(packed: &[u8]) -> io::Result<(Compression, Vec<u8>)> {
        let mut unpacked = Unpacked::new(packed)?;
        let mut bytes = Vec::new();
        unpacked.read_to_end(&mut bytes)?;
        Ok((unpacked.compression(), bytes))
    }

    #[test]
    fn several_members_and_frames_are_one_stream() {
        let two = [gzip(b"one "), gzip(b"two")].concat();
        assert_eq!(unpacked(&two).unwrap(), (Compression::Gzip, b"one two".to_vec()));
        let frame = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
        let two = [frame(b"one "), frame(b"two")].concat();
        assert_eq!(unpacked(&two).unwrap(), (Compression::Zstd, b"one two".to_vec()));
        let skipped = [&b"\x50\x2a\x4d\x18\x02\0\0\0xx"[..], &frame(b"two")].concat();
        assert_eq!(unpacked(&skipped).unwrap(), (Compression::Zstd, b"two".to_vec()));
        assert_eq!(unpacked(b"plain").unwrap(), (Compression::None, b"plain".to_vec()));
        assert_eq!(unpacked(b"").unwrap(), (Compression::None, Vec::new()));
    }

    #[test]
    fn what_is_cut_off_or_unknown_is_an_error() {
        let whole = gzip(&[7; 5000]);
        assert!(unpacked(&whole[..whole.len() - 5]).is_err());
        let error = unpacked(b"BZh91AY&SY").unwrap_err().to_string();
        assert_eq!(error, "is packed with bzip2; layers are tar, tar+gzip or tar+zstd");
    }

    #[test]
    fn dockers_types_and_those_of_the_oci_say_the_same() {
        let kind = |name: &str| Kind::of(&MediaType::from(name));
        for (name, expected) in [
            ("application/vnd.oci.image.manifest.v1+json", Kind::Manifest),
            (DOCKER_MANIFEST, Kind::Manifest),
            ("application/vnd.oci.image.index.v1+json", Kind::Index),
            (DOCKER_LIST, Kind::Index),
            (DOCKER_CONFIG, Kind::Config),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Kind::Layer),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Kind::Layer),
            ("application/vnd.docker.image.rootfs.diff.tar.zstd", Kind::Layer),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Kind::ForeignLayer),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Kind::ForeignLayer),
            ("application/vnd.docker.distribution.manifest.v1+prettyjws", Kind::Schema1),
            ("application/vnd.cncf.helm.config.v1+json", Kind::Other),
        ] {
            assert_eq!(kind(name), expected, "{name}");
        }
    }
}

//! Images from and to registries: the distribution API of the OCI, through oci-client.
//!
//! That library is asynchronous and nothing else here is: its futures run on a runtime of this module, and each call waits
//! for one. What comes is verified by the store, whatever the library has looked at.

mod credentials;
mod trust;

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use oci_spec::image::{Descriptor, Digest, MediaType};
use tokio::runtime::Runtime;

use super::digest;
use super::manifest::{Image, manifest_type};
use super::media::{DOCKER_LIST, DOCKER_MANIFEST, Kind};
use super::reference::ImageName;
use super::source::Source;
use super::store::{Progress, Store, Work};
use crate::error::{Error, ErrorKind, Result};

/// How long a registry may say nothing.
const SILENCE: Duration = Duration::from_secs(60);

/// How often a blob is asked for again, from where it broke off.
const TRIES: u32 = 4;

/// How much of a blob is sent at once.
const CHUNK: usize = 1 << 20;

/// A repository of a registry.
pub struct Registry {
    client: Client,
    runtime: Runtime,
    name: ImageName,
    auth: RegistryAuth,
    /// Whether it is spoken to without TLS.
    plain: bool,
}

impl Registry {
    /// Takes the repository of `name`; those at the hosts `plain_http` are spoken to without TLS.
    ///
    /// Credentials come from the file that podman and docker keep them in (containers-auth.json(5)). Errors: those of reading it.
    pub fn new(name: &ImageName, plain_http: &[String]) -> Result<Self> {
        let failed = |error: io::Error| Error::image_io(name, &error);
        let config = ClientConfig {
            protocol: ClientProtocol::HttpsExcept(plain_http.to_vec()),
            use_monolithic_push: true,
            extra_root_certificates: trust::certificates(name.registry())?,
            platform_resolver: None,
            connect_timeout: Some(SILENCE),
            read_timeout: Some(SILENCE),
            user_agent: concat!("unionfs-rs/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let client = Client::try_from(config).map_err(|error| Error::image(name, error.to_string()))?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(failed)?;
        let auth = match credentials::find(name)? {
            Some((user, password)) => RegistryAuth::Basic(user, password),
            None => RegistryAuth::Anonymous,
        };
        let plain = plain_http.iter().any(|host| host == name.registry());
        Ok(Self { client, runtime, name: name.clone(), auth, plain })
    }

    /// Returns what the name leads to: the manifest of an image, or an index of several.
    pub fn resolve(&self, store: &Store) -> Result<Descriptor> {
        let (bytes, _) = self.manifest(self.name.as_reference())?;
        let found = digest::of(&bytes).map_err(|error| Error::image_io(&self.name, &error))?;
        if self.name.digest().is_some_and(|digest| digest != found.to_string()) {
            return Err(Error::image(&self.name, format!("the registry has answered with {found}")));
        }
        let media_type = manifest_type(&bytes).map_err(|error| error.within(&self.name))?;
        store.put_blob(&found, bytes.len() as u64, &bytes[..])?;
        Ok(Descriptor::new(media_type, bytes.len() as u64, found))
    }

    fn manifest(&self, reference: &Reference) -> Result<(Vec<u8>, String)> {
        let (oci_manifest, oci_index) = (MediaType::ImageManifest.to_string(), MediaType::ImageIndex.to_string());
        let accepted = [oci_manifest.as_str(), oci_index.as_str(), DOCKER_MANIFEST, DOCKER_LIST];
        let pulled = self.runtime.block_on(self.client.pull_manifest_raw(reference, &self.auth, &accepted));
        pulled.map(|(bytes, digest)| (bytes.to_vec(), digest)).map_err(|error| {
            let unknown = [OciErrorCode::ManifestUnknown, OciErrorCode::NameUnknown, OciErrorCode::NotFound];
            match (says(&error, &unknown), reference.digest()) {
                (true, Some(digest)) => Error::image(&self.name, format!("the registry has no manifest {digest}")),
                (true, None) => Error::image(&self.name, "the registry has no such image").of_kind(ErrorKind::Absent),
                (false, _) => self.failed(&error),
            }
        })
    }

    /// Says what a registry has answered, and what to do about it.
    fn failed(&self, error: &OciDistributionError) -> Error {
        let host = self.name.registry();
        let (kind, hint) = match error {
            _ if says(error, &[OciErrorCode::Unauthorized, OciErrorCode::Denied]) => {
                (ErrorKind::Permission, format!("; log in as somebody who may (podman login {host})"))
            }
            OciDistributionError::AuthenticationFailure(_) | OciDistributionError::UnauthorizedError { .. } => {
                (ErrorKind::Permission, format!("; log in first (podman login {host})"))
            }
            OciDistributionError::RequestError(error)
                if error.status().is_some_and(|status| matches!(status.as_u16(), 401 | 403)) =>
            {
                (ErrorKind::Permission, format!("; log in first (podman login {host})"))
            }
            OciDistributionError::ImageManifestNotFoundError(_) => (ErrorKind::Absent, String::new()),
            OciDistributionError::RequestError(error) if chain(error).contains("certificate") => (
                ErrorKind::Machine,
                format!("; if you trust its authority, put that into /etc/containers/certs.d/{host}/ca.crt"),
            ),
            OciDistributionError::RequestError(error) if error.is_connect() && self.plain => {
                (ErrorKind::Machine, format!("; check that {host} runs and can be reached"))
            }
            OciDistributionError::RequestError(error) if error.is_connect() => {
                (ErrorKind::Machine, format!("; if {host} speaks no TLS, say so with --plain-http {host}"))
            }
            _ => (ErrorKind::Image, String::new()),
        };
        Error::image(&self.name, format!("{}{hint}", chain(error))).of_kind(kind)
    }

    /// Opens a blob from `offset` on; returns from where it comes, which may be from its beginning.
    fn open_from(&self, descriptor: &Descriptor, offset: u64) -> Result<(u64, Stream<'_>)> {
        let described = OciDescriptor {
            digest: descriptor.digest().to_string(),
            size: i64::try_from(descriptor.size()).unwrap_or(i64::MAX),
            urls: descriptor.urls().clone(),
            ..OciDescriptor::default()
        };
        let reference = self.name.as_reference();
        let response = self.runtime.block_on(async {
            self.client.store_auth_if_needed(reference.resolve_registry(), &self.auth).await;
            if offset == 0 {
                return self.client.pull_blob_stream(reference, &described).await.map(BlobResponse::Full);
            }
            self.client.pull_blob_stream_partial(reference, &described, offset, None).await
        });
        let (from, stream) = match response.map_err(|error| self.failed(&error))? {
            BlobResponse::Full(stream) => (0, stream),
            BlobResponse::Partial(stream) => (offset, stream),
        };
        Ok((from, Stream { runtime: &self.runtime, stream: stream.stream.fuse(), chunk: bytes::Bytes::new() }))
    }

    /// Puts `image` into the repository under the name, with what that lacks.
    ///
    /// Layers that may not be given away stay where their `urls` say. Returns the digest of the manifest.
    pub fn push(&self, store: &Store, image: &Image, progress: Arc<dyn Progress + Send>) -> Result<Digest> {
        let reference = self.name.as_reference();
        let auth = self.runtime.block_on(self.client.auth(reference, &self.auth, RegistryOperation::Push));
        auth.map_err(|error| self.failed(&error))?;
        let layers = image.layers.iter().map(|layer| &layer.blob);
        for blob in
            layers.chain([image.manifest.config()]).filter(|blob| Kind::of(blob.media_type()) != Kind::ForeignLayer)
        {
            let text = blob.digest().to_string();
            let there = self.runtime.block_on(self.client.blob_exists(reference, &text));
            if there.map_err(|error| self.failed(&error))? {
                continue;
            }
            log::info!("sending {text}");
            let file = store.open_blob(blob.digest())?;
            let stream = futures_util::stream::iter(Chunks {
                file,
                left: blob.size(),
                work: blob.into(),
                progress: Arc::clone(&progress),
            });
            let sent = self.client.push_blob_stream(reference, stream, &text, Some(blob.size()));
            self.runtime.block_on(sent).map_err(|error| self.failed(&error).within(&text))?;
            progress.done(&blob.into());
        }
        let media_type = image.descriptor.media_type().to_string();
        let content_type =
            media_type.parse().map_err(|_| Error::image("manifest", "has a type that cannot be sent"))?;
        let sent = self.client.push_manifest_raw(reference, image.manifest_bytes.clone(), content_type);
        self.runtime.block_on(sent).map_err(|error| self.failed(&error))?;
        Ok(image.descriptor.digest().clone())
    }
}

impl Source for Registry {
    fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + '_>> {
        if matches!(Kind::of(descriptor.media_type()), Kind::Manifest | Kind::Index) {
            let reference = self.name.as_reference().clone_with_digest(descriptor.digest().to_string());
            let (bytes, _) = self.manifest(&reference)?;
            return Ok(Box::new(io::Cursor::new(bytes)));
        }
        Ok(Box::new(self.open_from(descriptor, 0)?.1))
    }

    fn bring(&self, store: &Store, descriptor: &Descriptor, progress: &dyn Progress) -> Result<()> {
        let mut tries = 0;
        loop {
            tries += 1;
            let fetched = store.fetch_blob(descriptor, progress, |offset| self.open_from(descriptor, offset));
            match fetched {
                // It broke off: what has come is kept.
                Err(error) if tries < TRIES && error.kind() == ErrorKind::Machine => {
                    log::info!("{error}; trying again");
                    std::thread::sleep(Duration::from_secs(1 << tries));
                }
                done => return done,
            }
        }
    }
}

/// A blob as it comes.
struct Stream<'a> {
    runtime: &'a Runtime,
    /// Fused: the library's must not be asked again after its end.
    stream: futures_util::stream::Fuse<futures_util::stream::BoxStream<'static, io::Result<bytes::Bytes>>>,
    chunk: bytes::Bytes,
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.runtime.block_on(self.stream.next()) {
                Some(chunk) => self.chunk = chunk?,
                None => return Ok(0),
            }
        }
        let len = self.chunk.len().min(buffer.len());
        let part = self.chunk.split_to(len);
        buffer.get_mut(..len).unwrap_or_default().copy_from_slice(&part);
        Ok(len)
    }
}

/// A blob as it is sent.
struct Chunks {
    file: File,
    left: u64,
    work: Work,
    // The library wants what it sends for itself.
    progress: Arc<dyn Progress + Send>,
}

impl Iterator for Chunks {
    type Item = std::result::Result<bytes::Bytes, OciDistributionError>;

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::try_from(self.left).unwrap_or(usize::MAX).min(CHUNK);
        if len == 0 {
            return None;
        }
        let mut chunk = vec![0; len];
        Some(match self.file.read_exact(&mut chunk) {
            Ok(()) => {
                self.left -= len as u64;
                self.progress.moved(&self.work, len as u64);
                Ok(chunk.into())
            }
            Err(error) => {
                self.left = 0;
                Err(error.into())
            }
        })
    }
}

/// Returns whether a registry has answered with one of `codes`.
fn says(error: &OciDistributionError, codes: &[OciErrorCode]) -> bool {
    match error {
        OciDistributionError::RegistryError { envelope, .. } => {
            envelope.errors.iter().any(|error| codes.contains(&error.code))
        }
        _ => false,
    }
}

/// Returns an error with what has caused it, which the library's own text leaves out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

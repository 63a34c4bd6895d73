//! What was changed in a container, as a layer; and the image that has it on top.
//!
//! One upper gives one layer, byte for byte, and one image: members are sorted, times are those of the files in whole seconds,
//! as Docker writes them, and an image is as old as the last of its changes.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use flate2::GzBuilder;
use oci_spec::image::{Descriptor, Digest, ImageManifest, MediaType};
use serde_json::{Map, Value, json};

use super::changes::{Change, Compare, changes, refuse_long};
use super::digest::{Hasher, Hashing};
use super::instruction::Instruction;
use super::manifest::Image;
use super::media::Compression;
use super::save::as_oci;
use super::stack::{Object, Stack};
use super::store::{Counted, Progress, Store, Work};
use super::tar::write::Writer;
use super::tar::{Member, MemberKind, PATH_MAX};
use crate::error::{Error, Result};
use crate::layer::attr::{FileKind, Timestamp};
use crate::layer::name::{NAME_MAX, WH_PREFIX};

/// What is said of a commit in the image's history.
#[derive(Debug, Clone, Default)]
pub struct Message {
    /// The command that made the changes.
    pub created_by: String,
    /// Who made them.
    pub author: Option<String>,
    /// Why.
    pub comment: Option<String>,
    /// When, in seconds since 1970; by default when the last of the files was changed.
    pub created: Option<i64>,
    /// What is changed of how the image is run.
    pub config: Vec<Instruction>,
}

/// A layer that was written to a store.
#[derive(Debug, Clone)]
pub struct Written {
    /// The blob.
    pub blob: Descriptor,
    /// The digest of the tar.
    pub diff_id: Digest,
    /// When the last of its files was changed, in seconds since 1970.
    pub newest: i64,
}

/// Writes what differs between two trees as the tar of a layer, and returns when the last of its files was changed, in
/// seconds since 1970.
pub fn write_layer(now: &Stack, was: &Stack, out: impl Write) -> Result<i64> {
    let mut writer = Writer::new(out);
    let failed = |error: io::Error| Error::image_io("layer", &error);
    // The first name of each file that has several.
    let mut names: HashMap<((u32, u32), u64), Vec<u8>> = HashMap::new();
    let mut newest = 0;
    for change in changes(now, was, Compare::Presence)? {
        let path = member_path(&change);
        refuse_long(&change.path)?;
        let Some(object) = &change.now else {
            writer.append(&whiteout(&change.path)?, io::empty()).map_err(failed)?;
            continue;
        };
        let attr = object.attr();
        if attr.kind == FileKind::Socket {
            log::info!("{}: a socket is no part of a layer", change.path.display());
            if change.was.is_some() {
                writer.append(&whiteout(&change.path)?, io::empty()).map_err(failed)?;
            }
            continue;
        }
        let (mut member, data) = now.to_member(path.clone(), object)?;
        member.mtime.nanos = 0;
        newest = newest.max(member.mtime.secs);
        if !attr.is_dir() && attr.nlink > 1 {
            match names.get(&(attr.dev, attr.ino)) {
                Some(first) => {
                    member = member.linked_to(first.clone());
                }
                None => drop(names.insert((attr.dev, attr.ino), path)),
            }
        }
        let shown = change.path.display();
        let named = |error: io::Error| Error::image_io(format!("layer: {shown}"), &error);
        match data.filter(|_| member.kind != MemberKind::HardLink) {
            Some(data) => writer.append(&member, data).map_err(named)?,
            None => writer.append(&member, io::empty()).map_err(named)?,
        }
    }
    writer.finish().map_err(failed)?;
    Ok(newest)
}

/// Returns the path of a change as tar has it: from the root, a directory with a slash.
fn member_path(change: &Change) -> Vec<u8> {
    let mut path = relative(&change.path).to_vec();
    if path.is_empty() {
        path.push(b'.');
    }
    if matches!(change.now, Some(Object::Dir(..))) {
        path.push(b'/');
    }
    path
}

fn relative(path: &Path) -> &[u8] {
    let bytes = path.as_os_str().as_bytes();
    bytes.strip_prefix(b"/").unwrap_or(bytes)
}

/// Returns the member that says that `path` is removed from the layers below. Errors: where it would be too long to unpack.
fn whiteout(path: &Path) -> Result<Member> {
    let (dir, name) = (path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or_default());
    let mark = [WH_PREFIX.as_bytes(), name.as_bytes()].concat();
    let dir = relative(dir);
    let member = if dir.is_empty() { mark.clone() } else { [dir, b"/", &mark].concat() };
    if mark.len() > NAME_MAX || member.len() > PATH_MAX {
        let longest = NAME_MAX - WH_PREFIX.len();
        let limits = format!("a name of more than {longest} bytes or a path of more than {PATH_MAX}");
        let reason = format!("was removed, and {limits} cannot be marked as removed in a layer");
        return Err(Error::image(path.display(), reason));
    }
    Ok(Member {
        path: member,
        kind: MemberKind::File(FileKind::Regular),
        mode: 0,
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        size: 0,
        link: Vec::new(),
        rdev: (0, 0),
        xattrs: Vec::new(),
        extents: None,
    })
}

impl Store {
    /// Puts what differs between two trees into the store, as a layer.
    pub fn put_layer(
        &self,
        now: &Stack,
        was: &Stack,
        compression: Compression,
        progress: &dyn Progress,
    ) -> Result<Written> {
        let failed = |error: io::Error| Error::image_io("layer", &error);
        let mut blob = self.new_blob()?;
        let (diff_id, newest) = match compression {
            Compression::None => write_tar(now, was, &mut blob, progress)?,
            Compression::Gzip => {
                // No name, no time, no system.
                let mut packed =
                    GzBuilder::new().operating_system(255).write(&mut blob, flate2::Compression::default());
                let done = write_tar(now, was, &mut packed, progress)?;
                packed.finish().map_err(failed)?;
                done
            }
            Compression::Zstd => {
                let mut packed = zstd::Encoder::new(&mut blob, zstd::DEFAULT_COMPRESSION_LEVEL).map_err(failed)?;
                let done = write_tar(now, was, &mut packed, progress)?;
                packed.finish().map_err(failed)?;
                done
            }
        };
        let (digest, size) = blob.finish()?;
        Ok(Written { blob: Descriptor::new(compression.layer_type(), size, digest), diff_id, newest })
    }

    /// Makes the image that has `layer` on top of `base`; it has no name yet.
    pub fn put_image(&self, base: &Image, layer: &Written, message: &Message) -> Result<Image> {
        // Where nothing was changed but how it is run, it is as old as what it is made of.
        let of_base = base.config.created.as_deref().and_then(|time| time.parse::<jiff::Timestamp>().ok());
        let of_base = of_base.map_or(layer.newest, |time| time.as_second());
        let created = message.created.unwrap_or(layer.newest.max(of_base));
        let config = config_with(base, layer, message, created)?;
        let config_digest = self.put_bytes(&config)?;
        let (_, base_manifest) = as_oci(base)?;
        let mut manifest: ImageManifest = serde_json::from_slice(&base_manifest)
            .map_err(|error| Error::image("manifest", format!("cannot be read: {error}")))?;
        manifest.set_config(Descriptor::new(MediaType::ImageConfig, config.len() as u64, config_digest));
        let mut layers = manifest.layers().clone();
        layers.push(layer.blob.clone());
        manifest.set_layers(layers);
        // What was said of the image below is not said of this one.
        manifest.set_annotations(None);
        let bytes = serde_json::to_vec(&manifest).map_err(|error| Error::image_io("manifest", &error.into()))?;
        let digest = self.put_bytes(&bytes)?;
        Image::read(self, &Descriptor::new(MediaType::ImageManifest, bytes.len() as u64, digest))
    }
}

/// Writes the tar to `out`; returns its digest and when the last of its files was changed.
fn write_tar(now: &Stack, was: &Stack, out: impl Write, progress: &dyn Progress) -> Result<(Digest, i64)> {
    let out = Counted::new(out, Work { name: "layer".into(), bytes: None }, progress);
    let mut hashing = Hashing::new(io::BufWriter::with_capacity(256 * 1024, out), Hasher::sha256());
    let newest = write_layer(now, was, &mut hashing)?;
    let (mut buffered, digest, _) = hashing.finish().map_err(|error| Error::image_io("layer", &error))?;
    buffered.flush().map_err(|error| Error::image_io("layer", &error))?;
    Ok((digest, newest))
}

/// Returns the configuration of `base` with one more layer; fields that are not known here stay.
fn config_with(base: &Image, layer: &Written, message: &Message, created: i64) -> Result<Vec<u8>> {
    let unreadable = |error: serde_json::Error| Error::image("configuration", format!("cannot be read: {error}"));
    let mut config: Map<String, Value> = serde_json::from_slice(&base.config_bytes).map_err(unreadable)?;
    let time = jiff::Timestamp::from_second(created)
        .map_err(|error| Error::image("created", format!("{created} is no time: {error}")))?
        .to_string();
    let mut diff_ids: Vec<String> = base.layers.iter().map(|layer| layer.diff_id.to_string()).collect();
    diff_ids.push(layer.diff_id.to_string());
    config.insert("rootfs".into(), json!({"type": "layers", "diff_ids": diff_ids}));
    config.insert("created".into(), json!(time));
    let mut entry = Map::new();
    entry.insert("created".into(), json!(time));
    entry.insert("created_by".into(), json!(message.created_by));
    for (key, value) in [("author", &message.author), ("comment", &message.comment)] {
        if let Some(value) = value {
            entry.insert(key.into(), json!(value));
        }
    }
    if let Some(author) = &message.author {
        config.insert("author".into(), json!(author));
    }
    if !message.config.is_empty() {
        let execution = config.remove("config");
        let mut execution = execution.and_then(|value| value.as_object().cloned()).unwrap_or_default();
        message.config.iter().for_each(|instruction| instruction.apply(&mut execution));
        config.insert("config".into(), Value::Object(execution));
    }
    match config.entry("history").or_insert_with(|| json!([])) {
        Value::Array(history) => history.push(Value::Object(entry)),
        other => *other = json!([entry]),
    }
    serde_json::to_vec(&config).map_err(unreadable)
}

//! Layers and archives, and what a store shows of them.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use tar::{EntryType, Header};
use unionfs_rs::error::Error;
use unionfs_rs::image::digest;
use unionfs_rs::image::load::load_stream;
use unionfs_rs::image::manifest::{Image, Platform};
use unionfs_rs::image::source::Watch;
use unionfs_rs::image::stack::{Object, Stack};
use unionfs_rs::image::store::{Container, Store, Tree};
use unionfs_rs::layer::attr::FileKind;

/// The tar of a layer.
pub struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    /// A header whose name may be anything.
    pub fn header(path: &[u8], kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_gnu();
        assert!(path.len() <= 100, "a long name needs a member of its own");
        header.as_gnu_mut().expect("it is GNU's").name[..path.len()].copy_from_slice(path);
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(size);
        header
    }

    /// Adds a member with any header.
    pub fn raw(mut self, mut header: Header, data: &[u8]) -> Self {
        header.set_cksum();
        self.0.append(&header, data).expect("memory takes it");
        self
    }

    pub fn file(self, path: &str, data: &str) -> Self {
        let header = Self::header(path.as_bytes(), EntryType::Regular, data.len() as u64);
        self.raw(header, data.as_bytes())
    }

    pub fn dir(self, path: &str, mode: u32) -> Self {
        let mut header = Self::header(path.as_bytes(), EntryType::Directory, 0);
        header.set_mode(mode);
        self.raw(header, b"")
    }

    pub fn link(self, path: &str, kind: EntryType, target: &str) -> Self {
        let mut header = Self::header(path.as_bytes(), kind, 0);
        if header.set_link_name_literal(target).is_err() {
            return self.pax(&[("linkpath", target.as_bytes())]).raw(header, b"");
        }
        self.raw(header, b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.link(path, EntryType::Symlink, target)
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.link(path, EntryType::Link, target)
    }

    pub fn device(self, path: &str, (major, minor): (u32, u32)) -> Self {
        let mut header = Self::header(path.as_bytes(), EntryType::Char, 0);
        header.set_device_major(major).expect("GNU has devices");
        header.set_device_minor(minor).expect("GNU has devices");
        self.raw(header, b"")
    }

    /// Adds pax records, which are of the next member.
    pub fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).expect("memory takes it");
        self
    }

    pub fn tar(self) -> Vec<u8> {
        self.0.into_inner().expect("memory takes it")
    }
}

/// A docker-archive of an image with these layers, lowest first, called `name`.
pub fn docker_archive(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    docker_archive_of(name, layers, "\"config\":{},")
}

/// As [`docker_archive`], with a configuration that says `diff_ids`.
pub fn docker_archive_with(name: &str, layers: &[Vec<u8>], diff_ids: &[String]) -> Vec<u8> {
    archive_of(name, layers, diff_ids, "\"config\":{},")
}

/// As [`docker_archive`], with a configuration that begins with these members of an object in JSON.
pub fn docker_archive_of(name: &str, layers: &[Vec<u8>], members: &str) -> Vec<u8> {
    let diff_ids: Vec<String> =
        layers.iter().map(|layer| digest::of(layer).expect("it is hashed").to_string()).collect();
    archive_of(name, layers, &diff_ids, members)
}

fn archive_of(name: &str, layers: &[Vec<u8>], diff_ids: &[String], members: &str) -> Vec<u8> {
    let quoted: Vec<String> = diff_ids.iter().map(|id| format!("\"{id}\"")).collect();
    let config = format!(
        "{{{members}\"architecture\":\"amd64\",\"os\":\"linux\",\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[{}]}}}}",
        quoted.join(",")
    );
    let names: Vec<String> = (0..layers.len()).map(|n| format!("{n}.tar")).collect();
    let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    let manifest = format!("[{{\"Config\":\"c.json\",\"RepoTags\":[\"{name}\"],\"Layers\":[{}]}}]", quoted.join(","));
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |path: &str, data: &[u8]| {
        let mut header = Layer::header(path.as_bytes(), EntryType::Regular, data.len() as u64);
        header.set_cksum();
        archive.append(&header, data).expect("memory takes it");
    };
    add("c.json", config.as_bytes());
    for (name, layer) in names.iter().zip(layers) {
        add(name, layer);
    }
    add("manifest.json", manifest.as_bytes());
    archive.into_inner().expect("memory takes it")
}

/// A store of a test's own.
pub struct Shop {
    pub dir: tempfile::TempDir,
    pub store: Store,
}

impl Shop {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("there is room");
        let store = Store::open(&dir.path().join("store")).expect("it is new");
        Self { dir, store }
    }

    pub fn load(&self, archive: &[u8]) -> Result<Image, Error> {
        let mut loaded = load_stream(&self.store, archive, &Platform::here(), Watch::NOBODY)?;
        Ok(loaded.pop().expect("there is one image").image)
    }

    /// Loads an image of these layers, lowest first.
    pub fn image(&self, layers: Vec<Layer>) -> Result<Image, Error> {
        let layers: Vec<Vec<u8>> = layers.into_iter().map(Layer::tar).collect();
        self.load(&docker_archive("localhost/test:1", &layers))
    }

    /// Makes a container of an image of these layers, lowest first.
    pub fn container(&self, layers: Vec<Layer>) -> Container {
        self.container_of(&self.image(layers).expect("the layers are right"))
    }

    /// Makes a container of an image.
    pub fn container_of(&self, image: &Image) -> Container {
        let trees = self.store.trees(image, &()).expect("they are there");
        self.store.create_container(image, None, &trees, false).expect("there is room")
    }

    /// What an image shows: each path with what is there.
    pub fn shown(&self, layers: Vec<Layer>) -> BTreeMap<String, String> {
        let image = self.image(layers).unwrap_or_else(|error| panic!("{error}"));
        show(&self.stack(&image))
    }

    /// Why layers cannot be loaded; nothing of them may be left.
    pub fn refused(&self, layers: Vec<Layer>) -> String {
        let before = self.trees();
        let error = self.image(layers).expect_err("it must be refused").to_string();
        assert_eq!(self.trees(), before, "something is left of {error}");
        assert!(self.store.images().expect("it is listed").is_empty(), "{error}");
        let tmp = self.dir.path().join("store/tmp");
        assert_eq!(std::fs::read_dir(tmp).expect("it is listed").count(), 0, "{error}");
        assert!(error.contains("layer sha256:"), "{error}");
        error
    }

    pub fn stack(&self, image: &Image) -> Stack {
        let trees = self.store.trees(image, &()).expect("they are there");
        Stack::open(trees.iter().rev().map(Tree::part), self.store.keep()).expect("they can be read")
    }

    /// The names of the trees of layers.
    pub fn trees(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.dir.path().join("store/layers")).expect("it is listed");
        entries.map(|entry| entry.expect("it is listed").path()).collect()
    }
}

/// Lists a tree: `KIND MODE UID:GID CONTENT` by path.
pub fn show(stack: &Stack) -> BTreeMap<String, String> {
    let mut shown = BTreeMap::new();
    let mut todo = vec![(PathBuf::from("/"), stack.root().expect("there is a root"))];
    while let Some((path, object)) = todo.pop() {
        let attr = object.attr();
        let what = match &object {
            Object::Dir(dir, _) => {
                for (name, object) in stack.list(dir).expect("it is listed") {
                    todo.push((path.join(name), object));
                }
                "dir".to_owned()
            }
            Object::File(dir, name, attr) => match attr.kind {
                FileKind::Regular => {
                    let mut text = String::new();
                    let mut file = stack.open_file(dir, name).expect("it is readable").take(200);
                    file.read_to_string(&mut text).expect("it is text");
                    format!("file {text:?}")
                }
                FileKind::Symlink => format!("link {:?}", stack.read_link(dir, name).expect("it is a link")),
                kind => format!("{kind:?} {:?}", attr.rdev),
            },
        };
        let line = format!("{what} {:o} {}:{}", attr.mode, attr.uid, attr.gid);
        shown.insert(path.display().to_string(), line);
    }
    shown.remove("/");
    shown
}

/// What a tree should show.
pub fn tree(lines: &[(&str, &str)]) -> BTreeMap<String, String> {
    lines.iter().map(|(path, what)| ((*path).to_owned(), (*what).to_owned())).collect()
}

/// Packs bytes as gzip does.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

/// Runs a program that succeeds, and returns the lines that it prints.
pub fn lines(program: &str, arguments: &[&str]) -> Vec<String> {
    let ran = crate::support::finish(std::process::Command::new(program).args(arguments));
    assert_eq!(ran.code, Some(0), "{program} {arguments:?}: {}", ran.err);
    ran.out.lines().map(str::to_owned).collect()
}

/// Runs GNU tar, and returns the archive.
pub fn gnu_tar(dir: &Path, options: &[&str]) -> Vec<u8> {
    let ran = std::process::Command::new("tar").arg("-C").arg(dir).args(options).arg("-cf-").arg(".").output();
    let ran = ran.expect("tar is there");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    ran.stdout
}

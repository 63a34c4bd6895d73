//! Layers on disk, and unions over them.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{StatFs, statfs};
use tempfile::TempDir;
use unionfs_rs::config::{Fsync, Source, UnionConfig};
use unionfs_rs::union::{Caller, Entry, Name, NodeId, SetAttr, Union};

/// Where layers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// On a tmpfs, where there is one.
    Memory,
    /// In the temporary directory.
    Temporary,
}

impl Disk {
    /// Returns the directory.
    pub fn path(self) -> PathBuf {
        let memory = Path::new("/dev/shm");
        if self == Self::Memory && statfs(memory).is_ok_and(|stat| is_tmpfs(&stat)) {
            return memory.into();
        }
        std::env::var_os("UNIONFS_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from)
    }

    /// Returns how the names of benchmarks say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Temporary => "disk",
        }
    }
}

fn is_tmpfs(stat: &StatFs) -> bool {
    stat.f_type == 0x0102_1994 // TMPFS_MAGIC: statfs(2).
}

/// Says where the layers are, since the figures depend on it.
pub fn announce() {
    for disk in [Disk::Memory, Disk::Temporary] {
        let path = disk.path();
        let is_memory = statfs(&path).is_ok_and(|stat| is_tmpfs(&stat));
        let kind = if is_memory { "a tmpfs" } else { "no tmpfs" };
        eprintln!("layers in {}: {} ({kind})", disk.name(), path.display());
    }
}

/// Lower layers, which are removed at the end.
pub struct Stage {
    root: TempDir,
    lowers: usize,
}

impl Stage {
    /// Makes `lowers` empty layers, of which 0 is the topmost.
    pub fn new(disk: Disk, lowers: usize) -> Self {
        let root = TempDir::with_prefix_in("unionfs-bench-", disk.path()).expect("the directory can be written");
        let stage = Self { root, lowers };
        for layer in 0..lowers {
            fs::create_dir(stage.lower(layer)).expect("it is new");
        }
        stage
    }

    /// Returns where a layer is.
    pub fn lower(&self, layer: usize) -> PathBuf {
        self.root.path().join(layer.to_string())
    }

    /// Makes a file of a layer, and the directory that it is in.
    pub fn file(&self, layer: usize, path: &str, contents: impl AsRef<[u8]>) {
        write_file(&self.lower(layer).join(path), contents.as_ref());
    }

    fn lowers(&self) -> Vec<Source> {
        (0..self.lowers).map(|layer| self.lower(layer).into()).collect()
    }

    /// Builds a union of the lower layers alone.
    pub fn read_only(&self) -> Union {
        Union::builder().lowers(self.lowers()).build().expect("the layers can be used")
    }

    /// Makes an empty upper.
    pub fn upper(&self) -> Upper {
        let root = TempDir::with_prefix_in("upper-", &self.root).expect("the directory can be written");
        for name in ["upper", "work"] {
            fs::create_dir(root.path().join(name)).expect("it is new");
        }
        Upper { root }
    }

    /// Builds a union with `upper`.
    pub fn union(&self, upper: &Upper, fsync: Fsync) -> Union {
        let config = UnionConfig {
            lowers: self.lowers(),
            upper: Some(upper.path().into()),
            work: Some(upper.root.path().join("work").into()),
            fsync,
            ..UnionConfig::default()
        };
        Union::from_config(&config).expect("the layers can be used")
    }
}

/// An upper and its workdir.
pub struct Upper {
    root: TempDir,
}

impl Upper {
    /// Returns where it is.
    pub fn path(&self) -> PathBuf {
        self.root.path().join("upper")
    }

    /// Makes a file in it, and the directory that the file is in.
    pub fn file(&self, path: &str, contents: impl AsRef<[u8]>) {
        write_file(&self.path().join(path), contents.as_ref());
    }
}

fn write_file(path: &Path, contents: &[u8]) {
    // Most have their directory already.
    if fs::write(path, contents).is_err() {
        fs::create_dir_all(path.parent().expect("it is below a layer")).expect("it is ours");
        fs::write(path, contents).expect("it is ours");
    }
}

/// Makes a name of `text`.
pub fn name(text: &str) -> Name<'_> {
    Name::new(OsStr::new(text)).expect("a plain name")
}

/// Looks up what is there.
pub fn look_up(union: &Union, parent: NodeId, text: &str) -> Entry {
    union.lookup(parent, name(text)).expect("it is there")
}

/// Copies up a directory that is in the root.
pub fn copy_up_directory(union: &Union, id: NodeId) {
    let before = union.copy_ups().objects;
    let set = SetAttr { mode: Some(0o755), ..SetAttr::default() };
    union.setattr(id, set, None, Caller::current()).expect("it can be changed");
    assert_eq!(union.copy_ups().objects, before + 1, "it was below, in the root");
}

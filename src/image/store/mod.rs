//! Where images are: an OCI image layout that other tools can read, and beside it the trees of its layers.
//!
//! ```text
//! oci-layout, index.json     which images there are, by name
//! blobs/sha256/…             manifests, configurations, layers as they were packed
//! layers/…                   trees of layers, in overlay format, each once however many images share it
//! containers/…               writable layers
//! tmp/                       what is being made
//! lock, index.lock, store.json
//! ```
//!
//! Whatever enters is made in `tmp`, compared with its digest, and renamed; so what is under its final name is whole, and
//! what a crash leaves is in `tmp` alone. `lock` is held shared by everybody who has the store open, and alone by who removes
//! something: between finding that a blob is there and naming the image that needs it, nobody takes it away.

mod blobs;
mod containers;
mod gc;
mod layers;
mod names;
mod owners;
mod progress;
mod verify;

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::Errno;

use super::remove::remove_at;
use super::unpack::keep::Keep;
use crate::error::{Error, Result};
pub use blobs::{BlobWriter, DOCUMENT_MAX};
pub use containers::{Container, ContainerConfig, InUse, Server};
pub use gc::{Removed, Usage};
pub use layers::{Facts, Tree, read_layer};
pub use names::{Named, ref_name, with_ref_name};
pub use progress::{Counted, Progress, Work};
pub use verify::{Problem, Trees, Verdict};

/// The directories of a store.
const DIRS: [&str; 4] = ["blobs/sha256", "layers", "containers", "tmp"];

/// What the names of files begin with that are about to take the place of others beside them.
const UNFINISHED: &str = ".new-";

/// Room that is given up where there is none for what makes room: to take a name away, or changes back.
const SPARE: &str = "spare";

/// How much that is: a few directories, or an index of some hundred images.
const SPARE_BYTES: u64 = 128 << 10;

/// What the file `oci-layout` says.
const LAYOUT: &str = "{\"imageLayoutVersion\":\"1.0.0\"}";

/// A store of images, open.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    /// The file `lock`, locked shared.
    lock: File,
    /// How trees of layers are kept here.
    keep: Keep,
}

impl Store {
    /// Opens the store in the directory `root`, which is made where it is not there yet.
    ///
    /// Waits for a process that removes something. Errors: [`crate::error::ErrorKind::Image`] for a directory that holds
    /// something else.
    pub fn open(root: &Path) -> Result<Self> {
        let root = std::path::absolute(root).map_err(|error| Error::image_io(root.display(), &error))?;
        make_root(&root)?;
        let mut store = Self { lock: open_lock(&root.join("lock"))?, root, keep: Keep::here() };
        if !store.path("oci-layout").exists() {
            // Two that make it at once: the second finds it made, and need not wait for what the first does with it.
            while !store.lock(FlockOperation::NonBlockingLockExclusive)? && !store.path("oci-layout").exists() {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        make(&store.root)?;
        store.keep = owners::settle(&store.root)?;
        // Whoever is alone here may take away what others have left when they died.
        if store.lock(FlockOperation::NonBlockingLockExclusive)? {
            store.empty_tmp()?;
            store.remove_dead_containers();
            // While anybody needs it nobody is alone, and takes it again.
            keep_spare(&store.path(SPARE));
        }
        store.lock(FlockOperation::LockShared)?;
        Ok(store)
    }

    /// Returns the directory that the store is in.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns how trees of layers are kept here.
    pub fn keep(&self) -> Keep {
        self.keep
    }

    /// Returns the path of `name` in the store.
    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Locks the file `lock`; false where somebody else has it and it was not to wait.
    fn lock(&self, how: FlockOperation) -> Result<bool> {
        match rustix::fs::flock(&self.lock, how) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(errno) => Err(self.error("lock", &errno.into())),
        }
    }

    /// Removes what was being made by processes that are gone. The store must be locked alone.
    fn empty_tmp(&self) -> Result<()> {
        let failed = |error: io::Error| self.error("tmp", &error);
        for entry in fs::read_dir(self.path("tmp")).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // What a pull has got so far is what the next one begins with.
            if !entry.file_name().as_encoded_bytes().starts_with(blobs::PARTIAL.as_bytes()) {
                remove_or_log(&entry.path());
            }
        }
        for entry in fs::read_dir(&self.root).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if is_unfinished(&entry.file_name()) {
                remove_or_log(&entry.path());
            }
        }
        Ok(())
    }

    /// Gives up the room that is kept for what makes room; false where that was done before.
    fn give_spare(&self) -> bool {
        fs::remove_file(self.path(SPARE)).is_ok()
    }

    /// Makes a directory in `tmp`, which is removed when it is dropped.
    fn workspace(&self) -> Result<tempfile::TempDir> {
        tempfile::TempDir::new_in(self.path("tmp")).map_err(|error| self.error("tmp", &error))
    }

    /// Brings to the disk which names the directory `name` of the store has.
    fn sync_dir(&self, name: &str) -> Result<()> {
        let synced = File::open(self.path(name)).and_then(|dir| dir.sync_all());
        synced.map_err(|error| self.error(name, &error))
    }

    /// Says what the system has answered about `name` in the store.
    fn error(&self, name: &str, error: &io::Error) -> Error {
        Error::image_io(self.path(name).display(), error)
    }
}

/// Returns what makes directories that nobody else may enter: trees of layers have set-user-id programs and files that
/// anybody may write.
fn private() -> DirBuilder {
    let mut private = DirBuilder::new();
    private.recursive(true).mode(0o700);
    private
}

/// Makes the directory of a store, or refuses one that is of something else.
fn make_root(root: &Path) -> Result<()> {
    if fs::metadata(root).is_ok_and(|there| !there.is_dir()) {
        return Err(Error::image(root.display(), "is no directory; name another for the store"));
    }
    private().create(root).map_err(|error| Error::image_io(root.display(), &error))?;
    if root.join("oci-layout").exists() { Ok(()) } else { refuse_other(root) }
}

/// Makes what a store has and is not there yet.
fn make(root: &Path) -> Result<()> {
    let failed = |path: &Path, error: &io::Error| Error::image_io(path.display(), error);
    // A layout that another tool has made lacks most of them.
    for dir in DIRS {
        private().create(root.join(dir)).map_err(|error| failed(&root.join(dir), &error))?;
    }
    let layout = root.join("oci-layout");
    match fs::read(&layout) {
        Ok(text) => check_layout(root, &text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            names::create(root)?;
            owners::create(root)?;
            // Last: who finds it finds the rest.
            replace(&layout, LAYOUT.as_bytes()).map_err(|error| failed(&layout, &error))
        }
        Err(error) => Err(failed(&layout, &error)),
    }
}

fn check_layout(root: &Path, text: &[u8]) -> Result<()> {
    let version = serde_json::from_slice::<oci_spec::image::OciLayout>(text);
    match version {
        Ok(layout) if layout.image_layout_version() == "1.0.0" => Ok(()),
        Ok(layout) => {
            let version = layout.image_layout_version();
            Err(Error::image(root.display(), format!("is an OCI layout of version {version}; 1.0.0 is known here")))
        }
        Err(error) => Err(Error::image(root.display(), format!("its oci-layout cannot be read: {error}"))),
    }
}

/// Refuses a directory that holds something, none of which is a store's.
fn refuse_other(root: &Path) -> Result<()> {
    let known =
        ["lost+found", "blobs", "layers", "containers", "tmp", "lock", "index.json", "index.lock", owners::FILE];
    let entries = fs::read_dir(root).map_err(|error| Error::image_io(root.display(), &error))?;
    for entry in entries {
        let name = entry.map_err(|error| Error::image_io(root.display(), &error))?.file_name();
        if !known.iter().any(|known| name == *known) && !is_unfinished(&name) {
            let reason = format!("is no store of images, and holds {}; name an empty directory", name.display());
            return Err(Error::image(root.display(), reason));
        }
    }
    Ok(())
}

fn is_unfinished(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(UNFINISHED.as_bytes())
}

/// Sees to it that there is some room to give up, for who is alone in the store. Where there is none left, there is none to keep.
fn keep_spare(path: &Path) {
    let kept = || -> io::Result<()> {
        let file = File::create_new(path)?;
        let allocated = rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, SPARE_BYTES);
        allocated.map_err(|errno| fs::remove_file(path).err().unwrap_or_else(|| errno.into()))
    };
    let done = match fs::metadata(path) {
        Ok(spare) if spare.len() >= SPARE_BYTES => return,
        // One of a process that died before it had the room frees none.
        Ok(_) => fs::remove_file(path).and_then(|()| kept()),
        Err(_) => kept(),
    };
    if let Err(error) = done {
        log::info!("{}: {error}", path.display());
    }
}

/// Opens a file that is there to be locked.
fn open_lock(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    options.open(path).map_err(|error| Error::image_io(path.display(), &error))
}

/// Gives `path` the contents `bytes` in one step, which holds when power is lost after it.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(dir)?;
    io::Write::write_all(&mut file, bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(dir)?.sync_all()
}

/// Removes what others have left; what cannot be removed is in nobody's way.
fn remove_or_log(path: &Path) {
    if let Err(error) = remove(path) {
        log::warn!("{}: is left over and cannot be removed: {error}", path.display());
    }
}

/// Removes what is at `path`, a file or a directory with all that is in it.
fn remove(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    Ok(remove_at(File::open(parent)?.as_fd(), name)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_something_else_in_it_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.tex"), b"years").unwrap();
        let error = Store::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("thesis.tex"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_dead_process_was_making_is_taken_away_and_what_it_was_fetching_is_not() {
        let dir = tempfile::tempdir().unwrap();
        drop(Store::open(dir.path()).unwrap());
        let tmp = dir.path().join("tmp");
        fs::create_dir_all(tmp.join("tree/deep")).unwrap();
        fs::write(tmp.join("blob"), b"half").unwrap();
        let partial = format!("{}x", blobs::PARTIAL);
        fs::write(tmp.join(&partial), b"half").unwrap();
        let first = Store::open(dir.path()).unwrap();
        let left: Vec<_> = fs::read_dir(&tmp).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, [partial.as_str()]);
        // While somebody else is there, it may be theirs.
        fs::write(tmp.join("blob"), b"half").unwrap();
        drop(Store::open(dir.path()).unwrap());
        assert!(tmp.join("blob").exists());
        drop(first);
    }
}

//! What is outside of the layers, and must neither be seen nor changed through a union.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode};

use crate::support::{Layers, LowersUnchanged};

/// What the files outside hold.
pub const CANARY: &str = "the canary outside of the layers";

/// A directory beside the layers, with a file, a pipe that nobody reads or writes, and a directory.
pub struct Outside {
    dir: PathBuf,
    before: LowersUnchanged,
}

impl Outside {
    /// Makes the directory `outside` beside the layers.
    pub fn new(layers: &Layers) -> Self {
        let dir = layers.path("outside");
        fs::create_dir_all(dir.join("dir/sub")).expect("the test directory can be written");
        for name in ["secret", "f", "dir/secret", "dir/f", "dir/sub/f", "dir/.wh..wh..opq"] {
            fs::write(dir.join(name), CANARY).expect("the test directory can be written");
        }
        for name in ["pipe", "dir/pipe"] {
            rustix::fs::mknodat(CWD, dir.join(name), FileType::Fifo, Mode::from(0o666), 0).expect("a pipe can be made");
        }
        let before = LowersUnchanged::new(std::slice::from_ref(&dir));
        Self { dir, before }
    }

    /// Returns a path in it.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    /// Asserts that nothing in it has changed, the times of change included.
    pub fn check(&self) {
        self.before.check();
    }
}

/// Returns whether what was read is from outside.
pub fn is_from_outside(bytes: &[u8]) -> bool {
    bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes())
}

/// Returns the most memory that a process has ever used, in KiB (VmHWM of proc_pid_status(5)).
pub fn most_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("every process has memory");
    line.trim().trim_end_matches(" kB").parse().expect("it is a number")
}

/// Returns the number of `path` itself.
pub fn number(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap_or_else(|error| panic!("lstat {}: {error}", path.display())).ino()
}

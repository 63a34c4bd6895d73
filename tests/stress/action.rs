//! What a worker does, one action at a time.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

/// The suffix of what [`Action::Replace`] writes before it renames it.
pub const UNFINISHED: &str = ".unfinished";

/// One action.
#[derive(Clone, Debug)]
pub enum Action {
    /// Creates a file, which is not there.
    Create {
        path: PathBuf,
        seed: u64,
        len: usize,
    },
    /// Writes into a file.
    Write {
        path: PathBuf,
        offset: usize,
        seed: u64,
        len: usize,
    },
    /// Writes another file and renames it over this one.
    Replace {
        path: PathBuf,
        seed: u64,
        len: usize,
    },
    Truncate {
        path: PathBuf,
        len: usize,
    },
    Chmod {
        path: PathBuf,
        mode: u32,
    },
    Mkdir {
        path: PathBuf,
    },
    Symlink {
        path: PathBuf,
        target: PathBuf,
    },
    Link {
        from: PathBuf,
        to: PathBuf,
    },
    Unlink {
        path: PathBuf,
    },
    /// Removes a directory with all that is in it.
    RemoveTree {
        path: PathBuf,
    },
    /// Removes an empty directory.
    Rmdir {
        path: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Exchange {
        one: PathBuf,
        two: PathBuf,
    },
}

/// Does `action` below `mount`.
pub fn perform(mount: &Path, action: &Action) -> io::Result<()> {
    match action {
        Action::Create { path, seed, len } => {
            let mut file = fs::OpenOptions::new().write(true).create_new(true).open(mount.join(path))?;
            file.write_all(&pattern(*seed, *len))
        }
        Action::Write { path, offset, seed, len } => {
            use std::os::unix::fs::FileExt;
            let file = fs::OpenOptions::new().write(true).open(mount.join(path))?;
            file.write_all_at(&pattern(*seed, *len), *offset as u64)
        }
        Action::Replace { path, seed, len } => {
            let full = mount.join(path);
            let mut name = full.clone().into_os_string();
            name.push(UNFINISHED);
            fs::write(&name, pattern(*seed, *len))?;
            fs::rename(&name, full)
        }
        Action::Truncate { path, len } => {
            fs::OpenOptions::new().write(true).open(mount.join(path))?.set_len(*len as u64)
        }
        Action::Chmod { path, mode } => set_mode(&mount.join(path), *mode),
        Action::Mkdir { path } => fs::create_dir(mount.join(path)),
        Action::Symlink { path, target } => std::os::unix::fs::symlink(target, mount.join(path)),
        Action::Link { from, to } => fs::hard_link(mount.join(from), mount.join(to)),
        Action::Unlink { path } => fs::remove_file(mount.join(path)),
        Action::RemoveTree { path } => fs::remove_dir_all(mount.join(path)),
        Action::Rmdir { path } => fs::remove_dir(mount.join(path)),
        Action::Rename { from, to } => fs::rename(mount.join(from), mount.join(to)),
        Action::Exchange { one, two } => {
            renameat_with(CWD, mount.join(one), CWD, mount.join(two), RenameFlags::EXCHANGE)?;
            Ok(())
        }
    }
}

/// Sets the mode of a file or a directory.
pub fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Returns `len` bytes that follow from `seed`.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (seed.wrapping_mul(37) + i * 5 + i / 253) as u8).collect()
}

//! File systems of their own, in files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{eventually, run};

fn text(path: &Path) -> &str {
    path.to_str().expect("the test directory has a plain name")
}

/// A file system in a file, mounted until this goes.
#[derive(Debug)]
pub struct Looped {
    /// Where it is mounted.
    pub at: PathBuf,
}

impl Looped {
    /// Mounts the file system of this kind that `image` holds, with `options` as in mount(8).
    pub fn mount(kind: &str, options: &str, image: &Path, at: &Path) -> Self {
        fs::create_dir_all(at).expect("the test directory can be written");
        run("mount", &["-t", kind, "-o", &format!("loop,{options}"), text(image), text(at)]);
        Self { at: at.to_owned() }
    }

    /// Makes a file system of so many MiB in the file `image` by the program `make`, with its arguments.
    pub fn make(make: &[&str], mebibytes: u64, image: &Path) {
        fs::File::create(image)
            .and_then(|file| file.set_len(mebibytes << 20))
            .expect("there is room for a sparse file");
        run(make[0], &[&make[1..], &[text(image)]].concat());
    }

    /// Says why no file system of this kind can be had here, where none can.
    pub fn obstacle(kind: &str) -> Option<String> {
        let kinds = fs::read_to_string("/proc/filesystems").expect("/proc is mounted");
        if !kinds.split_whitespace().any(|known| known == kind) {
            return Some(format!("the kernel has no {kind}"));
        }
        (!Path::new("/dev/loop-control").exists()).then(|| "the kernel has no loop devices".to_owned())
    }
}

impl Drop for Looped {
    fn drop(&mut self) {
        // Not lazily: that would keep the disk in use, which is about to go. Whoever looks at all mounts may be in it.
        let unmounted = || {
            let tried = Command::new("umount").arg(&self.at).stderr(Stdio::null()).status();
            tried.is_ok_and(|status| status.success())
        };
        if std::thread::panicking() {
            if !unmounted() {
                eprintln!("{} cannot be unmounted", self.at.display());
            }
        } else {
            eventually("the file system of the test can be unmounted", unmounted);
        }
    }
}

//! What the kernel tells about an ext4 that is mounted: `/proc/fs/ext4` and `/proc/fs/jbd2`.

use std::io;
use std::path::Path;

/// A mounted ext4, ext3 or ext2, all of which the ext4 driver serves.
#[derive(Debug)]
pub struct Ext4 {
    /// The options that are in force, a line each.
    options: String,
    /// Whether it has a journal, and in itself.
    pub has_own_journal: bool,
}

impl Ext4 {
    /// Finds the file system on the device of this number, major and minor, as in `st_dev`.
    ///
    /// Errors: those of reading /sys/dev/block and /proc/fs/ext4, where that cannot be seen or it is none.
    pub fn on(device: (u32, u32)) -> io::Result<Self> {
        Self::told_by(device, Path::new("/sys/dev/block"), Path::new("/proc/fs"))
    }

    fn told_by((major, minor): (u32, u32), devices: &Path, proc_fs: &Path) -> io::Result<Self> {
        // The kernel calls a file system by its device.
        let link = std::fs::read_link(devices.join(format!("{major}:{minor}")))?;
        let name = link.file_name().and_then(|name| name.to_str()).ok_or(io::ErrorKind::InvalidData)?;
        let options = std::fs::read_to_string(proc_fs.join("ext4").join(name).join("options"))?;
        // A journal in the file system itself has the number of its inode after the name of the device.
        let is_own = |journal: &str| {
            let inode = journal.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
            inode.is_some_and(|inode| inode.parse::<u64>().is_ok())
        };
        let journals = std::fs::read_dir(proc_fs.join("jbd2")).into_iter().flatten().flatten();
        let mut names = journals.map(|journal| journal.file_name());
        let has_own_journal = names.any(|journal| journal.to_str().is_some_and(is_own));
        Ok(Self { options, has_own_journal })
    }

    #[cfg(test)]
    pub(crate) fn with(options: &[&str], has_own_journal: bool) -> Self {
        Self { options: options.join("\n"), has_own_journal }
    }

    /// Returns whether an option is in force: `barrier`, or `data=ordered`.
    pub fn has(&self, option: &str) -> bool {
        self.options.lines().any(|line| line == option)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn options_and_journal_are_found_by_the_device() {
        let dir = tempfile::tempdir().unwrap();
        let (devices, proc_fs) = (dir.path().join("block"), dir.path().join("fs"));
        fs::create_dir_all(&devices).unwrap();
        std::os::unix::fs::symlink("../../devices/virtual/block/dm-3", devices.join("253:3")).unwrap();
        let told = |minor| Ext4::told_by((253, minor), &devices, &proc_fs);
        assert!(told(3).is_err(), "no /proc");
        for name in ["ext4/dm-3", "jbd2/dm-30-8", "jbd2/dm-4", "jbd2/dm-3"] {
            fs::create_dir_all(proc_fs.join(name)).unwrap();
        }
        fs::write(proc_fs.join("ext4/dm-3/options"), "rw\nbarrier\ndata=ordered\n").unwrap();
        let ext4 = told(3).unwrap();
        assert!(ext4.has("barrier") && ext4.has("data=ordered") && !ext4.has("data") && !ext4.has("nobarrier"));
        assert!(!ext4.has_own_journal, "those are others', and one on another device");
        fs::create_dir(proc_fs.join("jbd2/dm-3-8")).unwrap();
        assert!(told(3).unwrap().has_own_journal);
        assert!(told(4).is_err(), "a device that nothing is known of");
    }
}

//! Disks that take no more: full ones, quotas, and such as cannot be written any more or are gone.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::io::Errno;

use super::ground::{EXT4, Ground, Kind, XFS, errno};
use crate::skip;
use crate::support::{LowersUnchanged, Mounted, OurMount, Watchdog, run};

/// Small enough to be filled.
const SMALL: Kind = Kind { mebibytes: 8, ..EXT4 };
/// With few inodes.
const FEW: Kind = Kind { make: &["mkfs.ext4", "-q", "-F", "-N", "64"], ..EXT4 };
/// Which cannot be written any more once it is found to be damaged.
const DAMAGED: Kind = Kind { options: "errors=remount-ro", ..EXT4 };
const QUOTA: Kind = Kind { options: "prjquota", ..XFS };

const SIZE: usize = 16 << 20;

/// Lower files: one that is larger than the disk of upper, and others.
fn fill(ground: &Ground) -> LowersUnchanged {
    let lower = ground.layers.lower(0);
    lower.file("big", vec![7; SIZE]).file("small", "lower").file("d/one", "one").file("d/two", "two");
    LowersUnchanged::new(ground.layers.lowers())
}

fn append(path: impl AsRef<Path>) -> io::Result<()> {
    OpenOptions::new().append(true).open(path)?.write_all(b" and more")
}

/// Writes until there is no room; returns how much there was.
fn fill_up(path: &Path) -> (usize, Errno) {
    let mut file = fs::File::create(path).expect("there is room for a name");
    let block = vec![1; 64 << 10];
    let mut written = 0;
    loop {
        match file.write(&block) {
            Ok(len) => written += len,
            Err(error) => return (written, Errno::from_io_error(&error).expect("it is of a system call")),
        }
        // What the kernel has kept back it says at a sync.
        if written % (1 << 20) == 0 {
            let _ = file.sync_data(); // The next write says it again.
        }
    }
}

/// What cannot be copied up for lack of room is as it was, and the log says why.
fn nothing_is_half_copied(union: &OurMount, wanted: Errno) {
    let at = |name: &str| union.path().join(name);
    assert_eq!(errno(append(at("big"))), wanted);
    assert_eq!(errno(fs::set_permissions(at("big"), fs::Permissions::from_mode(0o600))), wanted);
    assert_eq!(errno(fs::rename(at("big"), at("moved"))), wanted);
    assert!(fs::read(at("big")).expect("a lower file can be read") == vec![7; SIZE]);
    assert_eq!(fs::metadata(at("big")).expect("it is there").permissions().mode() & 0o7777, 0o644);
    assert!(!at("moved").exists());
    assert!(union.log().contains("\"big\""), "nothing is said of it: {}", union.log());
}

/// Fills the disk of upper, and frees it again.
fn is_full_and_goes_on(ground: &Ground, wanted: Errno) {
    let lowers = fill(ground);
    let mut union = ground.spec().mount_ours();
    let at = |name: &str| ground.layers.mnt().join(name);
    nothing_is_half_copied(&union, wanted);
    let (written, error) = fill_up(&at("filler"));
    assert_eq!(error, wanted);
    let shown = fs::metadata(at("filler")).expect("it is there").len() as usize;
    assert!(shown <= written && shown + (2 << 20) >= written, "{shown} bytes of {written} are there");
    // Whatever there is still room for: a name is removed and hidden, or it is there.
    for name in ["small", "d/one"] {
        match fs::remove_file(at(name)) {
            Ok(()) => assert!(!at(name).exists(), "{name} was removed"),
            Err(error) => {
                assert_eq!(Errno::from_io_error(&error), Some(wanted), "{name}");
                assert!(at(name).exists(), "{name} could not be removed");
            }
        }
    }
    fs::remove_file(at("filler")).expect("what fills a disk can be removed");
    append(at("d/two")).expect("there is room again");
    assert_eq!(fs::read_to_string(at("d/two")).expect("it can be read"), "two and more");
    union.unmount().expect("the union can be unmounted");
    assert_eq!(ground.unfinished(), [""; 0]);
    let mut union = ground.spec().mount_ours();
    assert_eq!(fs::read_to_string(at("d/two")).expect("it can be read"), "two and more");
    assert!(!at("filler").exists());
    union.unmount().expect("the union can be unmounted");
    lowers.check();
}

#[test]
fn a_full_disk_is_enospc_and_leaves_nothing_half_done() {
    let _watchdog = Watchdog::start();
    let Some(ground) = Ground::new(SMALL) else { return };
    is_full_and_goes_on(&ground, Errno::NOSPC);
}

#[test]
fn a_disk_without_inodes_is_enospc_and_still_hides_names() {
    let _watchdog = Watchdog::start();
    let Some(ground) = Ground::new(FEW) else { return };
    let lowers = fill(&ground);
    let mut union = ground.spec().mount_ours();
    let at = |name: &str| ground.layers.mnt().join(name);
    // The first whiteout is an inode, and the others are links of it.
    fs::remove_file(at("small")).expect("a lower file can be removed");
    let made = (0..100).take_while(|index| fs::create_dir(at(&format!("made-{index}"))).is_ok()).count();
    assert!(made > 0 && made < 100, "{made} directories were made with 64 inodes");
    assert_eq!(errno(fs::create_dir(at("more"))), Errno::NOSPC);
    assert_eq!(errno(append(at("big"))), Errno::NOSPC);
    assert_eq!(errno(append(at("d/one"))), Errno::NOSPC);
    assert_eq!(fs::read_to_string(at("d/one")).expect("a lower file can be read"), "one");
    fs::remove_file(at("big")).expect("a whiteout takes no inode");
    fs::remove_dir(at("made-0")).expect("what was made can be removed");
    fs::remove_dir(at("made-1")).expect("what was made can be removed");
    append(at("d/one")).expect("there are inodes again, for a directory and a file");
    union.unmount().expect("the union can be unmounted");
    assert_eq!(ground.unfinished(), [""; 0]);
    assert!(crate::support::Tree::at(ground.path("upper")).is_whiteout("big"));
    lowers.check();
}

#[test]
fn a_quota_of_the_file_system_is_told_and_leaves_nothing_half_done() {
    let _watchdog = Watchdog::start();
    // There where the kernel has them, and xfs is in use.
    if !Path::new("/proc/fs/xfs/xqm").exists() {
        skip!("the kernel's xfs has no quotas (CONFIG_XFS_QUOTA)");
    }
    let Some(ground) = Ground::new(QUOTA) else { return };
    let disk = ground.path("");
    let disk = disk.to_str().expect("a plain name").trim_end_matches('/');
    // Of a project: those of users do not bind root.
    let project = format!("project -s -p {disk} 42");
    run("xfs_quota", &["-x", "-c", &project, "-c", "limit -p bhard=6m 42", disk]);
    is_full_and_goes_on(&ground, Errno::NOSPC);
}

/// Reads what is there, and is refused what would change it, without the union hanging or ending.
fn reads_and_is_refused(union: &OurMount, allowed: &[Errno]) {
    let at = |name: &str| union.path().join(name);
    let refused = |what: &str, done: io::Result<()>| {
        let errno = errno(done);
        assert!(allowed.contains(&errno), "{what}: {errno}");
    };
    refused("append to a lower file", append(at("small")));
    refused("create", fs::File::create_new(at("new")).map(drop));
    refused("mkdir", fs::create_dir(at("made")));
    refused("unlink", fs::remove_file(at("d/one")));
    refused("rename", fs::rename(at("d/two"), at("d/three")));
    refused("chmod", fs::set_permissions(at("small"), fs::Permissions::from_mode(0o600)));
    // Where upper cannot even say whether it has removed the name, it does not show what is below.
    match fs::read_to_string(at("small")) {
        Ok(found) => assert_eq!(found, "lower"),
        Err(error) => assert_eq!(Errno::from_io_error(&error), Some(Errno::IO)),
    }
    assert!(union.log().contains("WARN"), "nothing is said of it");
}

#[test]
fn an_upper_that_becomes_read_only_refuses_changes_and_goes_on_reading() {
    let _watchdog = Watchdog::start();
    let Some(mut ground) = Ground::new(DAMAGED) else { return };
    let lowers = fill(&ground);
    let mut union = ground.spec().mount_ours();
    append(ground.layers.mnt().join("d/one")).expect("the union can be written");
    let stat = rustix::fs::stat(ground.path("")).expect("it is mounted");
    let device = format!("{}:{}", rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let name = fs::read_link(format!("/sys/dev/block/{device}")).expect("it is a block device");
    let name = name.file_name().expect("a device has a name").to_str().expect("of letters").to_owned();
    fs::write(format!("/sys/fs/ext4/{name}/trigger_fs_error"), "of a test").expect("ext4 has this");
    reads_and_is_refused(&union, &[Errno::ROFS, Errno::IO]);
    assert_eq!(fs::read_to_string(ground.layers.mnt().join("d/one")).expect("it can be read"), "one and more");
    union.unmount().expect("the union can be unmounted");
    ground.mount_again();
    let mut union = ground.spec().mount_ours();
    append(ground.layers.mnt().join("small")).expect("the disk can be written again");
    union.unmount().expect("the union can be unmounted");
    lowers.check();
}

fn goes_on_without(kind: Kind) {
    let _watchdog = Watchdog::start();
    let Some(mut ground) = Ground::new(kind) else { return };
    let lowers = fill(&ground);
    let mut union = ground.spec().mount_ours();
    append(ground.layers.mnt().join("d/one")).expect("the union can be written");
    run("xfs_io", &["-x", "-c", "shutdown -f", ground.path("").to_str().expect("a plain name")]);
    reads_and_is_refused(&union, &[Errno::IO, Errno::ROFS]);
    union.unmount().expect("a union whose upper is gone can be unmounted");
    ground.mount_again();
    let mut union = ground.spec().mount_ours();
    assert_eq!(fs::read_to_string(ground.layers.mnt().join("small")).expect("it can be read"), "lower");
    append(ground.layers.mnt().join("small")).expect("the next union can be written");
    union.unmount().expect("the union can be unmounted");
    assert_eq!(ground.unfinished(), [""; 0]);
    lowers.check();
}

#[test]
fn an_upper_on_ext4_that_is_gone_is_eio_and_the_next_union_works() {
    goes_on_without(EXT4);
}

#[test]
fn an_upper_on_xfs_that_is_gone_is_eio_and_the_next_union_works() {
    goes_on_without(XFS);
}

//! What cannot be an upper.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags};

use super::attempt::{USER, give_to_user, is_ours, layers, mount, mount_over, text};
use crate::support::{Io, Privilege, Tmpfs, privilege, record_skip, require_root, run, test_name};

#[test]
fn the_same_directory_as_upper_and_lower_is_refused() {
    if !is_ours() {
        return;
    }
    let layers = layers();
    let upper = layers.path("upper");
    mount_over(&layers, &upper).is_refused(&layers, &[&text(&upper), "lower"]);
    let link = layers.path("link");
    symlink(&upper, &link).expect("a link can be made");
    mount_over(&layers, &link).is_refused(&layers, &["lower"]);
    if privilege() == Privilege::Root {
        let bound = layers.path("bound");
        fs::create_dir(&bound).expect("the test directory can be written");
        rustix::mount::mount_bind(&upper, &bound).expect("root may bind");
        let attempt = std::panic::catch_unwind(|| mount_over(&layers, &bound).is_refused(&layers, &["lower"]));
        rustix::mount::unmount(&bound, UnmountFlags::DETACH).expect("it is mounted");
        attempt.expect("the attempt through a bind mount");
    }
}

#[test]
fn an_upper_inside_a_lower_and_the_other_way_round_is_refused() {
    if !is_ours() {
        return;
    }
    let layers = layers();
    let (lower, inside) = (layers.lowers()[0].clone(), layers.lower(0).path("sub"));
    let (work, at) = (layers.path("work"), layers.mnt());
    let attempt = |lower: &Path, upper: &Path, work: &Path| {
        let words =
            ["--lower".into(), text(lower), "--upper".into(), text(upper), "--work".into(), text(work), text(&at)];
        mount(words)
    };
    attempt(&lower, &inside, &work).is_refused(&layers, &[&text(&inside), &text(&lower), "inside"]);
    attempt(&inside, &lower, &work).is_refused(&layers, &[&text(&inside), &text(&lower), "inside"]);
    let upper = layers.path("upper");
    attempt(&lower, &upper, &inside).is_refused(&layers, &[&text(&inside), &text(&lower), "inside"]);
    // By another way to the same place.
    let link = layers.path("link");
    symlink(&lower, &link).expect("a link can be made");
    attempt(&lower, &link.join("sub"), &work).is_refused(&layers, &["inside"]);
}

#[test]
fn an_upper_that_is_not_there_or_no_directory_is_refused() {
    if !is_ours() {
        return;
    }
    let layers = layers();
    layers.upper().file("file", "");
    for (upper, reason) in [(layers.path("missing"), "o such"), (layers.path("upper/file"), "irectory")] {
        let words = ["--lower", &text(&layers.lowers()[0]), "--upper", &text(&upper), &text(&layers.mnt())];
        mount(words).is_refused(&layers, &[&text(&upper), reason]);
    }
}

#[test]
fn an_upper_that_can_not_be_written_is_refused() {
    if !is_ours() {
        return;
    }
    if privilege() == Privilege::UserNamespace {
        record_skip(&test_name(), "root of a user namespace writes everything it owns");
        return;
    }
    let layers = layers();
    if privilege() == Privilege::Root {
        for name in ["work", "mnt"] {
            chown(layers.path(name), Some(USER), Some(USER)).expect("root may chown");
        }
    } else {
        fs::set_permissions(layers.path("upper"), fs::Permissions::from_mode(0o555)).expect("an own directory");
    }
    let attempt = mount_over(&layers, &layers.lowers()[0]).by_a_user(&layers);
    attempt.is_refused(&layers, &[&text(&layers.path("upper")), "denied"]);
}

#[test]
fn an_upper_on_a_read_only_file_system_is_refused() {
    if !is_ours() || !require_root("a read-only mount") {
        return;
    }
    let layers = layers();
    let disk = layers.path("disk");
    let _disk = Tmpfs::mount(&disk, "mode=755").expect("a tmpfs can be mounted");
    for name in ["upper", "work"] {
        fs::create_dir(disk.join(name)).expect("a new disk has space");
    }
    rustix::mount::mount_remount(&disk, MountFlags::RDONLY, c"").expect("a tmpfs can be made read-only");
    let (upper, work) = (text(&disk.join("upper")), text(&disk.join("work")));
    let words = ["--lower", &text(&layers.lowers()[0]), "--upper", &upper, "--work", &work, &text(&layers.mnt())];
    mount(words).is_refused(&layers, &[&upper, "ead-only"]);
}

#[test]
fn what_needs_xattrs_is_refused_on_an_upper_without_them() {
    if !is_ours() || !require_root("a ramfs, which has no xattrs") {
        return;
    }
    let layers = layers();
    let disk = layers.path("disk");
    fs::create_dir(&disk).expect("the test directory can be written");
    rustix::mount::mount("ramfs", &disk, "ramfs", MountFlags::empty(), None).expect("root may mount a ramfs");
    let attempts = std::panic::catch_unwind(|| {
        for name in ["upper", "work"] {
            fs::create_dir(disk.join(name)).expect("a new disk has space");
        }
        let (upper, work) = (text(&disk.join("upper")), text(&disk.join("work")));
        for option in ["redirect-dir", "index", "metacopy"] {
            eprintln!("--- {option}");
            let words = ["--lower", &text(&layers.lowers()[0]), "--upper", &upper, "--work", &work];
            let attempt = mount(words).and([&format!("--{option}"), "on", &text(&layers.mnt())]);
            attempt.is_refused(&layers, &[&upper, "xattr"]);
        }
        for (word, xattr) in [("1", "security.fuseoverlayfs.override_stat"), ("2", "user.containers.override_stat")] {
            eprintln!("--- xattr-permissions {word}");
            let words = ["--lower", &text(&layers.lowers()[0]), "--upper", &upper, "--work", &work];
            let attempt = mount(words).and(["--xattr-permissions", word, &text(&layers.mnt())]);
            attempt.is_refused(&layers, &[&upper, xattr, "xattr_permissions="]);
        }
    });
    rustix::mount::unmount(&disk, UnmountFlags::DETACH).expect("it is mounted");
    attempts.expect("the attempts on a ramfs");
}

#[test]
fn xattr_permissions_in_a_namespace_that_the_user_may_not_write_are_refused() {
    if !is_ours() || privilege() == Privilege::UserNamespace {
        return;
    }
    let layers = layers();
    give_to_user(&layers);
    let attempt = mount_over(&layers, &layers.lowers()[0]).and(["-o", "xattr_permissions=1"]).by_a_user(&layers);
    attempt.is_refused(&layers, &[&text(&layers.path("upper")), "security.fuseoverlayfs", "xattr_permissions=2"]);
}

#[test]
fn an_upper_that_keeps_owners_in_another_xattr_is_refused() {
    if !is_ours() {
        return;
    }
    let layers = layers();
    layers.upper().xattr("", "user.containers.override_stat", "0:0:0755");
    let attempt = mount_over(&layers, &layers.lowers()[0]).and(["-o", "xattr_permissions=1"]);
    let words = ["user.containers.override_stat", "security.fuseoverlayfs.override_stat", "leave"];
    attempt.is_refused(&layers, &words);
}

#[test]
fn an_upper_that_takes_whiteouts_in_no_form_is_refused() {
    if !is_ours() || !require_root("a union in a union") {
        return;
    }
    // Neither devices 0:0, nor xattrs, nor `.wh.` names go through a union without xattrs.
    let (outer, layers) = (layers(), layers());
    let union = outer.spec(Io::Cached).args(["--no-xattrs"]).mount_ours();
    for name in ["inner", "inner-work"] {
        fs::create_dir(outer.mnt().join(name)).expect("the union can be written");
    }
    let (upper, work) = (text(&outer.mnt().join("inner")), text(&outer.mnt().join("inner-work")));
    let words = ["--lower", &text(&layers.lowers()[0]), "--upper", &upper, "--work", &work, &text(&layers.mnt())];
    mount(words).is_refused(&layers, &[&upper, "whiteouts"]);
    drop(union);
}

#[test]
fn an_upper_without_d_type_is_refused() {
    if !is_ours() || !require_root("a loop mount of an ext4 without d_type") {
        return;
    }
    let layers = layers();
    let (image, disk) = (layers.path("image"), layers.path("disk"));
    fs::File::create(&image).and_then(|file| file.set_len(8 << 20)).expect("the test directory can be written");
    fs::create_dir(&disk).expect("the test directory can be written");
    run("mkfs.ext4", &["-q", "-O", "^filetype", &text(&image)]);
    run("mount", &["-o", "loop", &text(&image), &text(&disk)]);
    let attempt = std::panic::catch_unwind(|| {
        for name in ["upper", "work"] {
            fs::create_dir(disk.join(name)).expect("a new disk has space");
        }
        let (upper, work) = (text(&disk.join("upper")), text(&disk.join("work")));
        let words = ["--lower", &text(&layers.lowers()[0]), "--upper", &upper, "--work", &work, &text(&layers.mnt())];
        mount(words).is_refused(&layers, &[&text(&disk), "d_type"]);
    });
    run("umount", &[&text(&disk)]);
    attempt.expect("the attempt on an ext4 without d_type");
}

//! The command itself: refusals, exit codes, names of any bytes.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use super::damage::Damaged;
use crate::skip;
use crate::support::{Home, Io, Layers, Mounted, Privilege, Tree, Watchdog, Who, finish, privilege, unionfs};

fn below(layers: &Layers) {
    layers.lower(1).file("file", "data");
}

#[test]
fn command_lines_that_are_wrong_exit_with_16() {
    for args in [&["fsck"][..], &["fsck", "--upper", "/"], &["fsck", "--upper", "/u", "--lower", "a::b"]] {
        let ran = unionfs(args);
        assert_eq!((ran.code, ran.out.as_str()), (Some(16), ""), "{args:?}: {ran:?}");
        assert!(ran.err.starts_with("unionfs-rs: "), "{}", ran.err);
    }
    let help = unionfs(["fsck", "--help"]);
    assert_eq!(help.code, Some(0));
    assert!(help.out.contains("Exit codes") && help.out.contains("--repair"), "{}", help.out);
}

#[test]
fn layers_that_cannot_be_checked_exit_with_8_and_are_named() {
    let layers = Layers::new(1, crate::support::Placement::OneFs);
    let (upper, lower) = (layers.path("upper"), layers.path("lower0"));
    for (upper, lower, named) in [
        (layers.path("absent"), lower.clone(), "absent: no such directory"),
        (upper.clone(), layers.path("absent"), "absent: no such directory"),
        (upper.clone(), upper.clone(), "both upper and lower"),
        (lower.clone(), lower, "both upper and lower"),
    ] {
        let words = ["fsck".as_ref(), "--upper".as_ref(), upper.as_os_str(), "--lower".as_ref(), lower.as_os_str()];
        let ran = unionfs(words);
        assert_eq!((ran.code, ran.out.as_str()), (Some(8), ""), "{ran:?}");
        assert!(ran.err.contains(named) && ran.err.contains("; "), "{}", ran.err);
    }
}

#[test]
fn an_upper_that_is_mounted_is_refused() {
    let damaged = Damaged::new(below);
    damaged.layers.upper().whiteout("stale");
    let refused = |mount: &mut dyn Mounted| {
        let ran = damaged.fsck(&["--repair"]);
        assert_eq!((ran.code, ran.out.as_str()), (Some(8), ""), "{ran:?}");
        assert!(ran.err.contains("upper: in use by ") && ran.err.contains("unmount"), "{}", ran.err);
        mount.unmount().expect("it can be unmounted");
        assert!(damaged.layers.upper().is_char_whiteout("stale"));
    };
    refused(&mut damaged.layers.spec(Io::Cached).mount_ours());
    if privilege() != Privilege::Root {
        skip!("a kernel overlay needs root");
    }
    refused(&mut damaged.layers.spec(Io::Cached).mount_kernel());
    assert_eq!(damaged.fsck(&["--repair"]).code, Some(1));
}

#[test]
fn what_will_be_done_is_said_before_what_was_done() {
    let damaged = Damaged::new(below);
    damaged.layers.upper().whiteout("stale").dir("moved").overlay_xattr("moved", "redirect", "/a/../b");
    damaged.layers.upper().file("file", "").overlay_xattr("file", "whiteout", "y");
    let ran = damaged.fsck(&["--repair"]);
    let expected = "upper:\"file\": damage: has trusted.overlay.whiteout, and shows as an empty file: its directory is not \
         marked to have such whiteouts; no repair: remove the file if it is one that was made empty; else set the overlay \
         xattr opaque=x on its directory\n\
         upper:\"moved\": damage: its redirect \"/a/../b\" is neither a name nor a path below the root: EIO; repair: make it \
         opaque and remove the redirect: it shows what is in upper\n\
         upper:\"stale\": harmless: a whiteout that hides nothing; repair: remove it\n\
         repaired: upper:\"moved\": redirect-invalid\n\
         repaired: upper:\"stale\": whiteout-of-nothing\n\
         fsck: 3 found, 2 repaired, 0 could not be repaired, 1 without a repair\n";
    assert_eq!((ran.out.as_str(), ran.code), (expected, Some(4)));
}

#[test]
fn names_of_any_bytes_stay_on_one_line() {
    let damaged = Damaged::new(below);
    let name = OsStr::from_bytes(b"a\nb\x1b[31m\xff");
    damaged.layers.upper().whiteout(name).dir("d").overlay_xattr("d", "redirect", b"/\n\xff\x1b/..");
    let ran = damaged.fsck(&[]);
    assert_eq!(ran.out.lines().count(), 3, "{}", ran.out);
    assert!(!ran.out.contains('\x1b'), "{}", ran.out);
    assert_eq!(damaged.said(&["--repair"]).0, 1);
    assert!(!damaged.layers.upper().exists(name));
    damaged.is_clean();
}

#[test]
fn a_tree_deeper_than_a_path_is_checked_to_its_end() {
    let damaged = Damaged::new(below);
    // Longer than PATH_MAX in all, and deeper than descriptors are kept.
    let name = "n".repeat(200);
    let mut dir = rustix::fs::open(damaged.layers.path("upper"), rustix::fs::OFlags::PATH, 0o0.into()).unwrap();
    for _ in 0..600 {
        rustix::fs::mkdirat(&dir, &name, 0o755.into()).unwrap();
        dir = rustix::fs::openat(&dir, &name, rustix::fs::OFlags::PATH, 0o0.into()).unwrap();
    }
    rustix::fs::mknodat(&dir, "stale", rustix::fs::FileType::CharacterDevice, 0o0.into(), 0).unwrap();
    let ran = damaged.fsck(&["--repair"]);
    assert_eq!(ran.code, Some(1), "{:?}", ran.err);
    assert_eq!(damaged.fsck(&[]).code, Some(0));
    drop(dir);
    // What is removed by path elsewhere is removed from below here.
    let ran = crate::support::finish(std::process::Command::new("rm").arg("-rf").arg(damaged.layers.path("upper")));
    assert_eq!(ran.code, Some(0));
    fs::create_dir(damaged.layers.path("upper")).unwrap();
}

#[test]
fn a_bystander_of_the_layers_is_not_touched() {
    let damaged = Damaged::new(below);
    let beside = Tree::at(damaged.layers.path("beside"));
    beside.file("x", "x");
    damaged.layers.upper().symlink("out", beside.root()).whiteout("stale");
    assert_eq!(damaged.fsck(&["--repair"]).code, Some(1));
    assert_eq!((beside.names("."), beside.read("x")), (vec!["x".into()], b"x".to_vec()));
}

#[test]
fn a_plain_user_repairs_what_is_theirs_whatever_its_mode() {
    if privilege() != Privilege::Root {
        skip!("needs root, to be somebody else");
    }
    let _watchdog = Watchdog::start();
    let home = Home::new();
    let tree = Tree::at(home.path());
    tree.dir("low").dir("work").whiteout("up/closed/stale").file("up/m/own", "own");
    tree.xattr("up/m", "user.overlay.redirect", "/a/../b");
    for name in ["low", "work", "up/closed/stale", "up/closed", "up/m/own", "up/m", "up"] {
        tree.owner(name, 1000, 1000);
    }
    tree.dir_mode("up/closed", 0o555).dir_mode("up/m", 0o500);
    let words = home.wrapper(Who::PlainUser);
    let fsck = |more: &[&str]| {
        let mut command = std::process::Command::new(&words[0]);
        command
            .args(&words[1..])
            .arg(home.binary())
            .args(["fsck", "--lower", "low", "--upper", "up", "--work", "work"]);
        finish(command.args(more).current_dir(home.path()))
    };
    let ran = fsck(&["--repair"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert_eq!((tree.mode("up/closed"), tree.mode("up/m")), (0o555, 0o500));
    assert_eq!(tree.get_xattr("up/m", "user.overlay.opaque").as_deref(), Some(&b"y"[..]));
    assert_eq!(fsck(&[]).out, "fsck: nothing found\n");
}

#[test]
fn a_repair_that_fails_is_told_and_the_others_are_done() {
    let damaged = Damaged::new(below);
    damaged.layers.upper().whiteout("d/stale").whiteout("stale");
    let dir = fs::File::open(damaged.layers.path("upper/d")).unwrap();
    if let Err(errno) = rustix::fs::ioctl_setflags(&dir, rustix::fs::IFlags::IMMUTABLE) {
        skip!("nothing can be made immutable here: {errno}");
    }
    let (code, said) = damaged.said(&["--repair"]);
    let ran = damaged.fsck(&["--repair"]);
    rustix::fs::ioctl_setflags(&dir, rustix::fs::IFlags::empty()).unwrap();
    let outcomes: Vec<&str> = said.iter().map(|(_, _, outcome)| outcome.as_str()).collect();
    assert_eq!((code, &outcomes[..]), (4, &["failed", "repaired"][..]));
    assert!(ran.out.contains("failed: upper:\"d/stale\": whiteout-of-nothing: unlinkat("), "{}", ran.out);
    assert_eq!(damaged.fsck(&["--repair"]).code, Some(1));
    damaged.is_clean();
}

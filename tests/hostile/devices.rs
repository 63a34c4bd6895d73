//! Device nodes: those that mark what is removed, and those of a plain user's mount.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::process::{Command, Stdio};

use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;

use crate::support::{Home, LowersUnchanged, Tree, Watchdog, Who, require_root};
use crate::union::{errno, trap};

#[test]
fn a_device_0_0_hides_whatever_stands_below_it_and_can_be_neither_made_nor_used() {
    trap(2, |layers| {
        layers.lower(0).whiteout("f").whiteout("d").whiteout("deep/er/x").whiteout("alone");
        layers
            .lower(1)
            .file("f", "f")
            .file("d/a/b", "b")
            .file("deep/er/x/y", "y")
            .file("deep/er/z", "z")
            .file("p", "p");
    })
    .run(|union| {
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names(""), ["deep", "p"]);
            assert_eq!(union.merged().names("deep/er"), ["z"]);
            // As a parent it is no directory, and no file either.
            for name in ["f", "d", "d/a", "d/a/b", "deep/er/x", "deep/er/x/y", "alone", "alone/x"] {
                assert_eq!(errno(fs::symlink_metadata(union.at(name))), Errno::NOENT, "{name}");
            }
            assert_eq!(errno(fs::metadata(union.at("p/x"))), Errno::NOTDIR);
            for name in ["new", "f", "deep/er/x"] {
                let made = rustix::fs::mknodat(CWD, union.at(name), FileType::CharacterDevice, Mode::from(0o666), 0);
                assert_eq!(made, Err(Errno::PERM), "{name}");
            }
            let over = rustix::fs::mknodat(CWD, union.at("p"), FileType::CharacterDevice, Mode::from(0o666), 0);
            assert!(matches!(over, Err(Errno::EXIST | Errno::PERM)), "{over:?}");
        });
        assert!(!union.upper().exists("new"));
        // What takes the place of one shows nothing of what it hid.
        fs::create_dir(union.at("d")).expect("the name is free");
        fs::create_dir(union.at("alone")).expect("the name is free");
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names("d"), Vec::<String>::new());
            assert_eq!(union.merged().names("alone"), Vec::<String>::new());
        });
    });
}

#[test]
fn a_layer_whose_root_is_a_device_or_a_pipe_is_refused() {
    let _watchdog = Watchdog::start();
    let layers = crate::support::Layers::new(1, crate::support::Placement::OneFs);
    let tree = Tree::at(layers.path(""));
    tree.whiteout("device").fifo("pipe").symlink("nowhere", "missing");
    for name in ["device", "pipe", "nowhere"] {
        for (lower, upper) in
            [(layers.path(name), layers.path("upper")), (layers.lowers()[0].clone(), layers.path(name))]
        {
            let mut spec = layers.spec(crate::support::Io::Cached);
            spec.lowers = vec![lower];
            spec.upper = Some(upper);
            if crate::support::on_kernel() {
                return;
            }
            let refused = crate::support::OurMount::start(spec).expect_err("it is no directory");
            assert!(refused.status.is_some_and(|status| !status.success()), "{name}: {refused}");
            assert!(refused.stderr.contains(name), "{refused}");
        }
    }
}

#[test]
fn devices_of_a_root_mount_work_and_the_union_opens_none_itself() {
    if !require_root("device nodes") {
        return;
    }
    trap(1, |layers| {
        for (name, minor) in [("zero", 5), ("null", 3)] {
            let device = rustix::fs::makedev(1, minor);
            let made = rustix::fs::mknodat(
                CWD,
                layers.lower(0).path(name),
                FileType::CharacterDevice,
                Mode::from(0o666),
                device,
            );
            made.expect("root may make devices");
        }
        // Of no driver: whoever opened it would be told ENXIO.
        let nothing = rustix::fs::makedev(4095, 77);
        rustix::fs::mknodat(
            CWD,
            layers.lower(0).path("nothing"),
            FileType::CharacterDevice,
            Mode::from(0o666),
            nothing,
        )
        .expect("root may make devices");
    })
    .run(|union| {
        use std::io::Read;
        let mut zeros = [1; 4];
        fs::File::open(union.at("zero")).and_then(|mut file| file.read_exact(&mut zeros)).expect("it works");
        assert_eq!(zeros, [0; 4]);
        assert_eq!(errno(fs::File::open(union.at("nothing"))), Errno::NXIO);
        for name in ["zero", "null", "nothing"] {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            fs::set_permissions(union.at(name), mode).expect("a device is copied up");
            assert!(union.upper().stat(name).file_type().is_char_device());
            fs::rename(union.at(name), union.at(format!("{name}-moved"))).expect("a device can be moved");
        }
    });
}

/// What a plain user's union has: a program of root's with set-user-id, one with capabilities, and devices.
fn home() -> Option<Home> {
    if !require_root("becoming another user") {
        return None;
    }
    let obstacle = crate::support::on_kernel().then(|| "it is mounted by root alone here".to_owned());
    if let Some(reason) = obstacle.or_else(|| Home::obstacle(Who::PlainUser)) {
        crate::support::record_skip(&crate::support::test_name(), &reason);
        return None;
    }
    let home = Home::new();
    let tree = Tree::at(home.path());
    for dir in ["lower", "upper", "work", "mnt"] {
        tree.dir(dir).owner(dir, 1000, 1000);
    }
    for name in ["id", "gid"] {
        fs::copy("/usr/bin/id", tree.path("lower").join(name)).expect("every system has id");
    }
    let mode = |name: &str, mode| {
        fs::set_permissions(tree.path("lower").join(name), std::os::unix::fs::PermissionsExt::from_mode(mode))
            .expect("root may chmod");
    };
    mode("id", 0o4755);
    mode("gid", 0o2755);
    for (name, kind, major, minor) in [
        ("null", FileType::CharacterDevice, 1, 3),
        ("block", FileType::BlockDevice, 7, 0),
        ("mem", FileType::CharacterDevice, 1, 1),
    ] {
        let device = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(CWD, tree.path("lower").join(name), kind, Mode::from(0o666), device).expect("root may");
        mode(name, 0o666);
    }
    Some(home)
}

#[test]
fn a_plain_users_union_of_roots_files_gives_neither_their_rights_nor_their_devices() {
    let Some(home) = home() else { return };
    let _watchdog = Watchdog::start();
    let lowers = LowersUnchanged::new(&[home.path().join("lower")]);
    // Outside of the union the program has the rights of its owner, so that something is shown.
    let text = "./unionfs-rs mount --lower lower --upper upper --work work mnt
        grep \" $PWD/mnt \" /proc/self/mountinfo >options
        lower/id -u >bare; mnt/id -u >through; mnt/gid -g >>through
        for device in null block mem; do
            stat -c %F mnt/$device
            head -c 1 mnt/$device 2>&1 || true
            (: >>mnt/$device) 2>&1 || true
        done >devices
        fusermount3 -u mnt";
    let words = home.wrapper(Who::PlainUser);
    let output = Command::new(&words[0])
        .args(&words[1..])
        .args(["sh", "-euxc", text])
        .env("LC_ALL", "C")
        .current_dir(home.path())
        .stdin(Stdio::null())
        .output()
        .expect("unshare and setpriv (package util-linux) are installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = |name: &str| fs::read_to_string(home.path().join(name)).expect("the script has written it");
    assert_eq!(said("bare"), "0\n", "the program has its rights where nothing takes them");
    assert_eq!(said("through"), "1000\n1000\n");
    let options = said("options");
    assert!(options.contains("nosuid") && options.contains("nodev"), "{options}");
    let devices = said("devices");
    assert_eq!(devices.matches("Permission denied").count(), 6, "{devices}");
    assert!(devices.contains("character special file") && devices.contains("block special file"), "{devices}");
    lowers.check();
}

#[test]
fn a_plain_user_cannot_ask_for_suid_and_dev_by_any_word() {
    let Some(home) = home() else { return };
    let _watchdog = Watchdog::start();
    let text = "for words in '--suid --dev' '-o suid,dev'; do
            ./unionfs-rs mount --lower lower $words mnt 2>>said || { echo refused; continue; }
            mnt/id -u; (: <mnt/null) 2>/dev/null && echo opened || echo closed; fusermount3 -u mnt
        done
        ln -s unionfs-rs fuse-overlayfs
        if ./fuse-overlayfs -o lowerdir=lower,suid,dev mnt 2>>said; then
            mnt/id -u; (: <mnt/null) 2>/dev/null && echo opened || echo closed; fusermount3 -u mnt
        else echo refused; fi";
    let words = home.wrapper(Who::PlainUser);
    let output = Command::new(&words[0])
        .args(&words[1..])
        .args(["sh", "-uc", text])
        .current_dir(home.path())
        .stdin(Stdio::null())
        .output()
        .expect("unshare and setpriv (package util-linux) are installed");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!said.contains("opened") && !said.lines().any(|line| line == "0"), "{said}");
    assert!(said.contains("refused") || said.contains("closed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

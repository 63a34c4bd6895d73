//! Layers are seen alone: nothing mounted on or inside them, our own mount least of all. And what a
//! crash leaves in the workdir.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::union::{is_ours, trap};
use crate::support::{
    Io, Layers, LowersUnchanged, Mode, OurMount, Placement, Privilege, Spec, Tmpfs, Watchdog, modes, privilege,
    record_skip, test_name,
};

/// Far more than any tree of these tests holds: a union that enters itself has no end.
const MANY: usize = 100;

/// Lists everything below a directory, sorted.
fn everything_below(dir: &Path) -> Vec<String> {
    let (mut found, mut ahead) = (Vec::new(), vec![PathBuf::new()]);
    while let Some(name) = ahead.pop() {
        assert!(found.len() < MANY, "the union enters itself: {found:?}");
        for entry in fs::read_dir(dir.join(&name)).expect("a directory can be listed") {
            let entry = entry.expect("a directory can be listed");
            let path = name.join(entry.file_name());
            found.push(path.to_string_lossy().into_owned());
            if entry.file_type().expect("the type is known").is_dir() {
                ahead.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Whether layers can be cloned privately here; where not, the test is reported as skipped.
fn can_clone_layers() -> bool {
    if privilege() == Privilege::Plain {
        record_skip(&test_name(), "cloning layers privately needs root, also of a user namespace");
    }
    privilege() != Privilege::Plain
}

/// Mounts a union on a directory in one of its own layers, and uses it.
fn works_when_mounted_on(at: impl Fn(&Layers) -> PathBuf) {
    if !can_clone_layers() {
        return;
    }
    for mode in modes() {
        eprintln!("--- {mode:?}");
        let _watchdog = Watchdog::start();
        let layers = Layers::new(2, mode.placement);
        layers.lower(0).file("inside/below", "covered").file("f", "lower");
        layers.lower(1).file("d/g", "lower").dir("inside");
        layers.upper().dir("inside").file("upper", "upper");
        let lowers = LowersUnchanged::new(layers.lowers());
        let mut mount = layers.spec(mode.io).at(at(&layers)).mount();
        let tree = mount.tree();
        let mut expected = vec!["d", "d/g", "f", "inside", "inside/below", "upper"];
        assert_eq!(everything_below(mount.path()), expected);
        tree.file("f", "changed").file("inside/below", "changed").file("inside/new", "new").file("new", "new");
        fs::remove_dir_all(tree.path("d")).expect("a directory can be removed");
        expected = vec!["f", "inside", "inside/below", "inside/new", "new", "upper"];
        assert_eq!(everything_below(mount.path()), expected);
        mount.remount();
        assert_eq!(everything_below(mount.path()), expected);
        assert_eq!(tree.read("f"), b"changed");
        assert_eq!(tree.read("inside/below"), b"changed");
        mount.unmount().expect("the union can be unmounted");
        assert_eq!(layers.upper().names(""), ["d", "f", "inside", "new", "upper"]);
        assert_eq!(layers.upper().names("inside"), ["below", "new"]);
        lowers.check();
    }
}

#[test]
fn a_union_works_when_mounted_over_its_topmost_lower() {
    works_when_mounted_on(|layers| layers.lowers()[0].clone());
}

#[test]
fn a_union_works_when_mounted_over_its_undermost_lower() {
    works_when_mounted_on(|layers| layers.lowers()[1].clone());
}

#[test]
fn a_union_works_when_mounted_inside_its_own_lower() {
    works_when_mounted_on(|layers| layers.lower(0).path("inside"));
}

#[test]
fn a_union_works_when_mounted_over_its_own_upper() {
    works_when_mounted_on(|layers| layers.upper().root().to_owned());
}

#[test]
fn a_union_works_when_mounted_inside_its_own_upper() {
    works_when_mounted_on(|layers| layers.upper().path("inside"));
}

#[test]
fn what_is_mounted_inside_a_layer_before_or_after_is_not_seen() {
    if !can_clone_layers() {
        return;
    }
    for mode in modes() {
        eprintln!("--- {mode:?}");
        let _watchdog = Watchdog::start();
        let layers = Layers::new(1, mode.placement);
        layers.lower(0).file("before/layer", "layer").file("after/layer", "layer");
        let lowers = LowersUnchanged::new(layers.lowers());
        let before = Tmpfs::mount(&layers.lower(0).path("before"), "mode=755").expect("a tmpfs can be mounted");
        layers.lower(0).file("before/mounted", "mounted");
        let mut mount = layers.spec(mode.io).mount();
        let after = Tmpfs::mount(&layers.lower(0).path("after"), "mode=755").expect("a tmpfs can be mounted");
        layers.lower(0).file("after/mounted", "mounted");
        for name in ["before", "after"] {
            assert_eq!(mount.tree().names(name), ["layer"]);
            mount.tree().file(Path::new(name).join("layer"), "changed");
            assert_eq!(mount.tree().names(name), ["layer"]);
        }
        mount.unmount().expect("the union can be unmounted");
        drop((before, after));
        lowers.check();
    }
}

#[test]
fn a_union_of_128_layers_shows_each_and_removes_what_several_have() {
    if !is_ours("mount(2) has not the space for the options of so many layers") {
        return;
    }
    const LAYERS: usize = 128;
    trap(LAYERS, |layers| {
        for index in 0..LAYERS {
            let tree = layers.lower(index);
            tree.file("shared", index.to_string()).file(format!("d/own-{index:03}"), index.to_string());
        }
        layers.lower(64).opaque("half").file("half/64", "");
        layers.lower(100).file("half/100", "");
    })
    .run(|union| {
        assert_eq!(union.merged().read("shared"), b"0");
        let names = union.merged().names("d");
        assert_eq!((names.len(), names[127].as_str()), (LAYERS, "own-127"));
        assert_eq!(union.merged().names("half"), ["64"]);
        fs::remove_file(union.at("shared")).expect("a file can be removed");
        fs::write(union.at("d/own-127"), "changed").expect("a file is copied up");
        fs::remove_file(union.at("d/own-000")).expect("a file can be removed");
        union.live_and_after_remount(|union| {
            assert_eq!(union.merged().names(""), ["d", "half"]);
            assert_eq!(union.merged().names("d").len(), LAYERS - 1);
            assert_eq!(union.merged().read("d/own-127"), b"changed");
            assert_eq!(union.merged().read("d/own-126"), b"126");
        });
    });
}

#[test]
fn what_a_volatile_mount_wrote_is_refused_once_the_system_was_started_anew() {
    if !is_ours("the kernel's mark says nothing of when it was made") {
        return;
    }
    for Mode { io, placement } in modes() {
        let _watchdog = Watchdog::start();
        let layers = Layers::new(1, placement);
        layers.lower(0).file("f", "lower");
        let lowers = LowersUnchanged::new(layers.lowers());
        let mut mount = layers.spec(io).args(["--volatile"]).mount_ours();
        fs::write(layers.mnt().join("f"), "changed").expect("a file is copied up");
        let mark = layers.work().path("work/incompat/volatile");
        assert!(mark.is_dir(), "the mark of the kernel's overlayfs");
        mount.kill();
        // In this run of the system nothing is lost with the daemon.
        let mut mount = layers.spec(io).args(["--volatile"]).mount_ours();
        assert_eq!(fs::read(layers.mnt().join("f")).expect("the file is there"), b"changed");
        crate::support::Mounted::unmount(&mut mount).expect("the union can be unmounted");
        // As an earlier run of the system would have left it.
        fs::write(mark.join("dirty"), "00000000-0000-0000-0000-000000000000\n").expect("an own file");
        for args in [&[][..], &["--volatile"]] {
            let refused = OurMount::start(layers.spec(io).args(args.iter().copied())).expect_err("the mark refuses it");
            assert!(refused.status.is_some_and(|status| !status.success()), "{refused}");
            assert!(refused.stderr.contains(&*mark.to_string_lossy()), "the message names the mark: {refused}");
        }
        fs::remove_dir_all(layers.work().path("work/incompat")).expect("the mark can be removed");
        let mut mount = layers.spec(io).mount_ours();
        assert_eq!(fs::read(layers.mnt().join("f")).expect("the file is there"), b"changed");
        crate::support::Mounted::unmount(&mut mount).expect("the union can be unmounted");
        lowers.check();
    }
}

#[test]
fn an_upper_whose_mount_is_ending_is_waited_for() {
    if !is_ours("it has no process that ends") {
        return;
    }
    let _watchdog = Watchdog::start();
    let layers = Layers::new(1, Placement::OneFs);
    layers.lower(0).file("f", "lower");
    // As the process of a mount does that is gone from the tree and has something left to do.
    let held = fs::File::open(layers.upper().root()).expect("an own directory");
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).expect("nobody else has it");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(500));
            drop(held);
        });
        let mut mount = layers.spec(Io::Cached).mount_ours();
        fs::write(layers.mnt().join("f"), "changed").expect("a file is copied up");
        crate::support::Mounted::unmount(&mut mount).expect("the union can be unmounted");
    });
    assert_eq!(layers.upper().read("f"), b"changed");
}

#[test]
fn a_durable_mount_takes_the_mark_of_a_volatile_one_away() {
    if !is_ours("the kernel's mark stays until somebody removes it") {
        return;
    }
    trap(1, |layers| {
        layers.lower(0).file("f", "lower");
    })
    .mounted(|spec| spec.args(["--volatile"]))
    .run(|union| {
        fs::write(union.at("f"), "changed").expect("a file is copied up");
        union.mount.unmount().expect("the union can be unmounted");
        assert!(union.work.exists("work/incompat/volatile"), "nothing was synced");
        let mut durable = union.layers.spec(union.io).mount();
        assert_eq!(durable.tree().read("f"), b"changed");
        assert!(!union.work.exists("work/incompat"));
        durable.unmount().expect("the union can be unmounted");
    });
}

#[test]
fn a_mount_that_was_killed_leaves_whole_files_and_the_next_one_works() {
    if !is_ours("the daemon that is killed") {
        return;
    }
    for mode in modes() {
        eprintln!("--- {mode:?}");
        let _watchdog = Watchdog::start();
        let layers = Layers::new(1, mode.placement);
        layers.lower(0).file("f", "lower").file("g", "lower");
        let lowers = LowersUnchanged::new(layers.lowers());
        let mut mount = layers.spec(mode.io).mount_ours();
        fs::write(layers.mnt().join("f"), "changed").expect("a file is copied up");
        fs::remove_file(layers.mnt().join("g")).expect("a file can be removed");
        mount.kill();
        let mut mount = layers.spec(mode.io).mount();
        assert_eq!(mount.tree().names(""), ["f"]);
        // What was only in the page cache of the union went with it; what was in the upper is whole.
        let content = mount.tree().read("f");
        assert!([&b"changed"[..], b"lower", b""].contains(&&*content), "{:?}", String::from_utf8_lossy(&content));
        mount.tree().file("f", "again");
        mount.unmount().expect("the union can be unmounted");
        assert_eq!(layers.upper().read("f"), b"again");
        lowers.check();
    }
}

#[test]
fn a_small_limit_on_open_files_is_enough_for_any_number_of_files() {
    if !is_ours("the limit is that of a process") {
        return;
    }
    const COUNT: usize = 150;
    trap(1, |layers| {
        for i in 0..COUNT {
            layers.lower(0).file(format!("d{i}/sub/f"), "lower");
        }
    })
    .mounted(|spec| Spec { wrapper: ["prlimit", "--nofile=128:128"].map(Into::into).to_vec(), ..spec })
    .run(|union| {
        for i in 0..COUNT {
            assert_eq!(union.merged().read(format!("d{i}/sub/f")), b"lower");
            union.merged().file(format!("d{i}/sub/f"), "changed").file(format!("d{i}/sub/new"), "new");
        }
        for i in 0..COUNT {
            assert_eq!(union.merged().read(format!("d{i}/sub/f")), b"changed");
        }
    });
}

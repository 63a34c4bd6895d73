//! What cannot be a workdir.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use rustix::mount::UnmountFlags;

use super::attempt::{USER, give_to_user, is_ours, layers, mount, mount_over, mounts_below, text};
use crate::support::{Io, Mounted, Privilege, Tmpfs, Tree, privilege, record_skip, require_root, test_name};

#[test]
fn a_workdir_that_is_upper_or_inside_it_is_refused() {
    if !is_ours() {
        return;
    }
    let layers = layers();
    layers.upper().dir("sub");
    layers.work().dir("sub");
    let (lower, upper, work) = (text(&layers.lowers()[0]), layers.path("upper"), layers.path("work"));
    for (upper, work) in [(&upper, &upper), (&upper, &upper.join("sub")), (&work.join("sub"), &work)] {
        let words = ["--lower", &lower, "--upper", &text(upper), "--work", &text(work), &text(&layers.mnt())];
        mount(words).is_refused(&layers, &[&text(work)]);
    }
}

#[test]
fn a_workdir_without_an_upper_is_refused() {
    if !is_ours() {
        return;
    }
    let layers = layers();
    let words = ["--lower", &text(&layers.lowers()[0]), "--work", &text(&layers.path("work")), &text(&layers.mnt())];
    mount(words).is_refused(&layers, &[&text(&layers.path("work")), "upper"]);
}

#[test]
fn an_upper_or_a_workdir_in_use_is_refused_and_the_mount_that_uses_it_goes_on() {
    if !is_ours() {
        return;
    }
    let layers = layers();
    for name in ["upper2", "work2", "mnt2"] {
        fs::create_dir(layers.path(name)).expect("the test directory can be written");
    }
    let mut first = layers.spec(Io::Cached).mount_ours();
    let lower = text(&layers.lowers()[0]);
    let attempt = |upper: &str, work: &str| {
        let (upper, work) = (text(&layers.path(upper)), text(&layers.path(work)));
        let (status, said) =
            mount(["--lower", &lower, "--upper", &upper, "--work", &work, &text(&layers.path("mnt2"))]).run();
        assert!(status.code().is_some_and(|code| code != 0), "{status}: {said}");
        assert!(said.contains("in use"), "{said}");
        said
    };
    assert!(attempt("upper", "work2").contains(&text(&layers.path("upper"))));
    assert!(attempt("upper2", "work").contains(&text(&layers.path("work"))));
    attempt("upper", "work");
    assert_eq!(mounts_below(&layers.path("mnt2")), Vec::<String>::new());
    for name in ["upper2", "work2", "mnt2"] {
        assert_eq!(Tree::at(layers.path(name)).names(""), Vec::<String>::new(), "{name}");
    }
    first.tree().file("f", "changed");
    assert_eq!(first.tree().read("f"), b"changed");
    first.unmount().expect("the union can be unmounted");
    // Free again.
    first.mount_again().expect("nobody uses it any more");
    first.unmount().expect("the union can be unmounted");
}

#[test]
fn a_workdir_on_another_file_system_is_refused() {
    if !is_ours() {
        return;
    }
    if privilege() == Privilege::Plain {
        record_skip(&test_name(), "a second file system needs the privilege to mount a tmpfs");
        return;
    }
    let layers = layers();
    let _other = Tmpfs::mount(&layers.path("other"), "mode=755").expect("a tmpfs can be mounted");
    let (lower, upper) = (text(&layers.lowers()[0]), text(&layers.path("upper")));
    let work = layers.path("other/work");
    fs::create_dir(&work).expect("a new disk has space");
    let words = ["--lower", &lower, "--upper", &upper, "--work", &text(&work), &text(&layers.mnt())];
    mount(words).is_refused(&layers, &[&text(&work), "file system"]);
    // The same file system, but another mount of it: no rename reaches it.
    if privilege() == Privilege::Root {
        let bound = layers.path("bound");
        fs::create_dir(&bound).expect("the test directory can be written");
        rustix::mount::mount_bind(layers.path("work"), &bound).expect("root may bind");
        let words = ["--lower", &lower, "--upper", &upper, "--work", &text(&bound), &text(&layers.mnt())];
        let (status, said) = mount(words).run();
        if status.success() {
            rustix::mount::unmount(layers.mnt(), UnmountFlags::DETACH).expect("it is mounted");
        }
        rustix::mount::unmount(&bound, UnmountFlags::DETACH).expect("it is mounted");
        assert!(!status.success() && said.contains(&text(&bound)), "{status}: {said}");
    }
}

#[test]
fn the_mark_of_a_volatile_kernel_mount_is_seen_by_a_plain_user_who_may_not_look_into_it() {
    if !is_ours() {
        return;
    }
    let layers = layers();
    let marks = ["work", "work/incompat", "work/incompat/volatile"];
    layers.work().dir("work/incompat/volatile").file("work/incompat/volatile/dirty", "");
    give_to_user(&layers);
    if privilege() == Privilege::Root {
        for mark in marks {
            chown(layers.work().path(mark), Some(USER), Some(USER)).expect("root may chown");
        }
    }
    // As the kernel's overlayfs leaves them.
    let set_modes = |mode: u32, marks: &mut dyn Iterator<Item = &str>| {
        for mark in marks {
            fs::set_permissions(layers.work().path(mark), fs::Permissions::from_mode(mode)).expect("an own directory");
        }
    };
    let (close, open) = (|| set_modes(0, &mut marks.into_iter().rev()), || set_modes(0o700, &mut marks.into_iter()));
    if privilege() == Privilege::Root {
        close();
    }
    let attempt = mount_over(&layers, &layers.lowers()[0]).by_a_user(&layers);
    attempt.is_refused_when(&layers, &[&text(&layers.path("work/work/incompat/volatile")), "volatile"], open, close);
    open();
    assert!(layers.work().path("work/incompat/volatile/dirty").exists());
}

#[test]
fn a_mark_that_cannot_be_looked_at_is_refused() {
    if !is_ours() || !require_root("files of somebody else") {
        return;
    }
    let layers = layers();
    layers.work().dir_mode("work", 0o700).dir("work/incompat");
    give_to_user(&layers);
    let attempt = mount_over(&layers, &layers.lowers()[0]).by_a_user(&layers);
    attempt.is_refused(&layers, &[&text(&layers.path("work/work/incompat")), "cannot be looked at"]);
}

#[test]
fn a_foreign_file_in_the_workdir_is_refused_and_stays() {
    if !is_ours() {
        return;
    }
    let layers = layers();
    layers.work().file("thesis.txt", "years of work");
    let attempt = mount_over(&layers, &layers.lowers()[0]);
    attempt.is_refused(&layers, &[&text(&layers.path("work/thesis.txt"))]);
    assert_eq!(layers.work().read("thesis.txt"), b"years of work");
}

//! Nothing is found in an upper that was written by this union, or by the kernel's overlayfs.

use super::damage::Damaged;
use super::workload;
use crate::skip;
use crate::support::{Io, LowersUnchanged, Mounted, Placement, Privilege, privilege};

/// Asserts that the workload has left every kind of note in upper, so that there was something to look at.
fn has_notes(damaged: &Damaged) {
    let upper = damaged.layers.upper();
    for (name, mark) in [("d2", "redirect"), ("newdir/e", "redirect"), ("d2/sub2", "redirect"), ("big", "metacopy")] {
        assert!(upper.get_overlay_xattr(name, mark).is_some(), "{name} has no {mark}");
    }
    for (name, mark) in [("due", "redirect"), ("tre", "metacopy"), ("h4", "nlink"), ("meta/pure", "impure")] {
        assert!(upper.get_overlay_xattr(name, mark).is_some(), "{name} has no {mark}");
    }
    assert!(upper.is_opaque("repl") && upper.is_char_whiteout("d") && upper.is_char_whiteout("deep/c"));
    assert!(damaged.layers.work().names("index").len() >= 2);
}

/// Writes an upper with a mount of ours that has `options`, and checks it.
fn ours(placement: Placement, options: &[&str], checked_with: &[&str]) {
    let damaged = Damaged::placed(placement, workload::lowers).args(checked_with);
    let lowers = LowersUnchanged::new(damaged.layers.lowers());
    let mut mount = damaged.layers.spec(Io::Cached).args(options.iter().copied()).mount_ours();
    workload::run(mount.path());
    mount.unmount().expect("it can be unmounted");
    damaged.is_clean();
    if options == ["--metacopy", "on"] {
        has_notes(&damaged);
    }
    lowers.check();
}

#[test]
fn of_ours() {
    ours(Placement::OneFs, &[], &[]);
}

#[test]
fn of_ours_with_metacopy() {
    ours(Placement::OneFs, &["--metacopy", "on"], &[]);
}

#[test]
fn of_ours_without_redirects_and_index() {
    ours(Placement::OneFs, &["--redirect-dir", "off", "--index", "off"], &[]);
}

#[test]
fn of_ours_with_each_form_of_whiteouts() {
    for form in ["char", "xattr", "dotwh"] {
        ours(Placement::OneFs, &["--whiteout", form, "--metacopy", "on"], &[]);
    }
}

#[test]
fn of_ours_with_user_xattrs() {
    let namespace = ["--xattr-namespace", "user"];
    ours(Placement::OneFs, &[&namespace[..], &["--metacopy", "on"]].concat(), &namespace);
}

#[test]
fn of_ours_with_owners_kept_in_xattrs() {
    for store in ["security", "user"] {
        let permissions = ["--xattr-permissions", store];
        ours(Placement::OneFs, &permissions, &permissions);
    }
}

#[test]
fn of_ours_on_two_file_systems() {
    if privilege() == Privilege::Plain {
        skip!("a second file system needs the privilege to mount a tmpfs");
    }
    ours(Placement::TwoFs, &["--metacopy", "on"], &[]);
}

/// Writes an upper with the kernel's overlayfs.
fn kernels(placement: Placement, features: &[(&str, &str)]) {
    let damaged = Damaged::placed(placement, workload::lowers);
    let mut spec = damaged.layers.spec(Io::Cached);
    for (name, value) in features {
        spec = spec.feature(name, value);
    }
    let mut mount = spec.mount_kernel();
    workload::run(mount.path());
    mount.unmount().expect("it can be unmounted");
    damaged.is_clean();
    if features == [("metacopy", "on")] {
        has_notes(&damaged);
    }
}

#[test]
fn of_the_kernels_overlayfs() {
    if privilege() != Privilege::Root {
        skip!("a kernel overlay needs root");
    }
    for placement in [Placement::OneFs, Placement::TwoFs] {
        kernels(placement, &[("metacopy", "on")]);
        kernels(placement, &[]);
        kernels(placement, &[("redirect_dir", "off"), ("index", "off")]);
        // Metacopy goes without it.
        kernels(placement, &[("index", "off"), ("metacopy", "on")]);
    }
    // Entries of directories, and whiteouts in the index.
    kernels(Placement::OneFs, &[("nfs_export", "on")]);
}

//! Who may use the mount.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;

use super::union::{STRANGER, Union, as_user, errno, is_ours, trap};
use crate::support::{Layers, require_root};

fn filled(layers: &Layers) {
    layers.lower(0).file("f", "secret").file_mode("d/n", "lower", 0o666).symlink("l", "f");
}

/// Fills the kernel's caches with all there is.
fn look(union: &Union) {
    for name in ["f", "d/n"] {
        assert!(!union.merged().read(name).is_empty());
        union.merged().stat(name);
    }
    assert_eq!(union.merged().names(""), ["d", "f", "l"]);
    assert_eq!(union.merged().names("d"), ["n"]);
    fs::read_link(union.at("l")).expect("root may read it");
    assert_eq!(errno(fs::metadata(union.at("missing"))), Errno::NOENT);
}

/// What the stranger is answered, to each of the ways in.
fn attempts(union: &Union) -> Vec<(&'static str, Errno)> {
    let at = |name: &str| union.at(name);
    let chdir = |path: &Path| {
        let path = CString::new(path.as_os_str().as_bytes()).expect("it has no zeros");
        rustix::process::chdir(&path).map_err(io::Error::from)
    };
    as_user(STRANGER, || {
        vec![
            ("list the root", errno(fs::read_dir(union.at("")).map(drop))),
            ("list a directory", errno(fs::read_dir(at("d")).map(drop))),
            ("stat the root", errno(fs::metadata(union.at("")))),
            ("stat", errno(fs::metadata(at("f")))),
            ("stat what is missing", errno(fs::metadata(at("missing")))),
            ("read", errno(fs::read(at("f")))),
            ("read a link", errno(fs::read_link(at("l")))),
            ("write", errno(OpenOptions::new().write(true).open(at("d/n")))),
            ("create", errno(fs::write(at("d/new"), ""))),
            ("remove", errno(fs::remove_file(at("d/n")))),
            ("enter", errno(chdir(&at("d")))),
        ]
    })
}

#[test]
fn allow_root_keeps_everybody_else_out_whatever_the_kernel_has_cached() {
    if !is_ours("who may use the mount") || !require_root("becoming another user") {
        return;
    }
    for permissions in ["--default-permissions", "--no-default-permissions"] {
        eprintln!("--- {permissions}");
        trap(1, filled).mounted(|spec| spec.args(["--allow-root", permissions])).run(|union| {
            union.merged().file("d/made", "by root");
            fs::remove_file(union.at("d/made")).expect("root may");
            for _ in 0..2 {
                look(union);
                let answers = attempts(union);
                let through: Vec<_> = answers.iter().filter(|(_, errno)| *errno != Errno::ACCESS).collect();
                assert!(through.is_empty(), "not refused: {through:?}");
            }
            assert_eq!(union.upper().names("d"), [""; 0]);
        });
    }
}

//! What the machine lacks.

use std::ffi::OsString;

use super::attempt::{give_to_user, is_ours, layers, mount, mount_over, text};
use crate::support::{Privilege, privilege, record_skip, require_root, test_name};

#[test]
fn a_machine_without_dev_fuse_is_told_how_to_get_it() {
    if !is_ours() || !require_root("a mount namespace with an empty /dev") {
        return;
    }
    let layers = layers();
    let hide = ["unshare", "--mount", "sh", "-euc", "mount -t tmpfs none /dev; : >/dev/null; exec \"$@\"", "sh"];
    let attempt = mount_over(&layers, &layers.lowers()[0]).through(hide);
    attempt.is_refused(&layers, &["/dev/fuse", "modprobe fuse"]);
    let attempt = mount_over(&layers, &layers.lowers()[0]).and(["--foreground"]).through(hide);
    attempt.is_refused(&layers, &["/dev/fuse", "modprobe fuse"]);
    // With the workdir that is made beside upper where none is named.
    let words = ["--lower", &text(&layers.lowers()[0]), "--upper", &text(&layers.path("upper")), &text(&layers.mnt())];
    mount(words).through(hide).is_refused(&layers, &["/dev/fuse", "modprobe fuse"]);
}

#[test]
fn a_user_without_fusermount3_is_told_what_to_install() {
    if !is_ours() {
        return;
    }
    if privilege() == Privilege::UserNamespace {
        record_skip(&test_name(), "root of a user namespace mounts without fusermount3");
        return;
    }
    let layers = layers();
    give_to_user(&layers);
    let mut attempt = mount_over(&layers, &layers.lowers()[0]).by_a_user(&layers);
    attempt.wrapper.extend(["env", "PATH=/nonexistent"].map(OsString::from));
    if privilege() == Privilege::Root {
        // Where it is looked for beside PATH, it must not be found either.
        attempt = attempt.through(["unshare", "--mount", "sh", "-euc", HIDE_FUSERMOUNT, "sh"]);
    }
    attempt.is_refused(&layers, &["fusermount3", "fuse3"]);
}

const HIDE_FUSERMOUNT: &str =
    "for f in /usr/bin/fusermount3 /bin/fusermount3; do test ! -e $f || mount --bind /dev/null $f; done; exec \"$@\"";

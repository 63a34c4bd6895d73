//! Options that are not known, and those that are not permitted.

use std::fs;

use super::attempt::{give_to_user, is_ours, layers, mount_over, text};
use crate::support::{LowersUnchanged, require_root};

#[test]
fn an_unknown_option_and_an_invalid_number_are_refused() {
    if !is_ours() {
        return;
    }
    let layers = layers();
    let cases = [
        (&["--no-such-flag"][..], "no-such-flag"),
        (&["-o", "no_such_option"], "no_such_option"),
        (&["--threads", "0"], "threads"),
        (&["--threads", "many"], "threads"),
        (&["-o", "threads=-1"], "threads"),
        (&["--entry-timeout", "soon"], "entry-timeout"),
        (&["-o", "attr_timeout=nan"], "attr_timeout"),
        (&["-o", "negative_timeout=-2"], "negative_timeout"),
        (&["--io", "quick"], "quick"),
        (&["-o", "redirect_dir=maybe"], "maybe"),
        (&["-o", "lowerdir"], "lowerdir"),
    ];
    for (words, named) in cases {
        let root = [layers.path("")];
        let disk = LowersUnchanged::new(&root);
        let (status, said) = mount_over(&layers, &layers.lowers()[0]).and(words).run();
        assert!(status.code().is_some_and(|code| code != 0), "{words:?}: {status}: {said}");
        assert!(said.contains(named), "{words:?}: {said}");
        disk.check();
    }
}

#[test]
fn allow_other_where_it_is_not_permitted_is_refused_and_names_the_setting() {
    if !is_ours() || !require_root("a mount namespace with another /etc/fuse.conf") {
        return;
    }
    let layers = layers();
    give_to_user(&layers);
    fs::write(layers.path("fuse.conf"), "# user_allow_other\n").expect("the test directory can be written");
    fs::create_dir(layers.path("dev")).expect("the test directory can be written");
    // With a /dev/fuse that everybody may open, whatever the machine's.
    let script = format!(
        "mount --bind {} /etc/fuse.conf; mount -t tmpfs none {dev}; mknod -m 666 {dev}/fuse c 10 229; \
         mount --bind {dev}/fuse /dev/fuse; umount -l {dev}; exec \"$@\"",
        text(&layers.path("fuse.conf")),
        dev = text(&layers.path("dev"))
    );
    for option in ["--allow-other", "--allow-root"] {
        let attempt = mount_over(&layers, &layers.lowers()[0]).and([option]).by_a_user(&layers);
        let attempt = attempt.through(["unshare", "--mount", "sh", "-euc", &script, "sh"]);
        attempt.is_refused(&layers, &["user_allow_other", "/etc/fuse.conf"]);
    }
}

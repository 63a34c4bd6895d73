//! Who may ask: the user who mounted, and root.

use std::fs;
use std::process::{Command, Stdio};

use crate::skip;
use crate::support::{Home, Tree, Who, no_mounts, on_kernel, require_root};

/// Runs `text` by sh with these words before it, in a home with layers; returns what it printed. Whatever is mounted is in
/// namespaces of its own, and goes with them.
fn script(who: Option<Who>, text: &str) -> Option<String> {
    if !require_root("becoming another user") {
        return None;
    }
    if on_kernel() {
        crate::support::record_skip(&crate::support::test_name(), "the kernel's overlayfs has no daemon to ask");
        return None;
    }
    if let Some(reason) = no_mounts().or_else(|| who.and_then(Home::obstacle)) {
        crate::support::record_skip(&crate::support::test_name(), &reason);
        return None;
    }
    let home = Home::new();
    let tree = Tree::at(home.path());
    tree.file("lower/f", "from below").dir("upper").dir("work").dir("mnt").dir_mode("run", 0o700);
    if who.is_some() {
        for name in ["lower", "lower/f", "upper", "work", "mnt", "run"] {
            tree.owner(name, 1000, 1000);
        }
    }
    // What root's script shall not do as another user: its runtime directory is the machine's, and so covered.
    let own = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"].map(Into::into).to_vec();
    let words = who.map_or(own, |who| home.wrapper(who));
    let text = format!(
        "export LC_ALL=C; union() {{ ./unionfs-rs mount --lower lower --upper upper --work work \"$@\" mnt; }}\n{text}"
    );
    let output = Command::new(&words[0])
        .args(&words[1..])
        .args(["sh", "-euc", &text])
        .current_dir(home.path())
        .env("XDG_RUNTIME_DIR", home.path().join("run"))
        .stdin(Stdio::null())
        .output()
        .expect("unshare and setpriv (package util-linux) are installed");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}: {said}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    Some(said)
}

#[test]
fn a_plain_user_asks_for_the_own_mount_in_the_own_runtime_directory() {
    for (who, unmount) in [(Who::PlainUser, "fusermount3 -u mnt"), (Who::NamespaceRoot, "umount mnt")] {
        let text = format!(
            "union; cat mnt/f >&2; ls run/unionfs-rs; stat -c %a run/unionfs-rs run/unionfs-rs/*; ./unionfs-rs status --json mnt
             {unmount}; for i in $(seq 500); do pgrep -x unionfs-rs >/dev/null || break; sleep 0.02; done; ls -A run/unionfs-rs"
        );
        let Some(said) = script(Some(who), &text) else { return };
        let mut lines = said.lines();
        assert!(lines.next().is_some_and(|name| name.starts_with("0:") && name.ends_with(".sock")), "{who:?}: {said}");
        assert_eq!([lines.next(), lines.next()], [Some("700"), Some("600")], "{who:?}: {said}");
        let rest = lines.collect::<Vec<_>>().join("\n");
        let status: serde_json::Value =
            serde_json::from_str(&rest).unwrap_or_else(|error| panic!("{who:?}: {error}: {said}"));
        let io = &status["options"]["io"];
        assert!(
            io["value"] == "cached" && io["why"].as_str().is_some_and(|why| why.contains("needs root")),
            "{who:?}: {io}"
        );
    }
}

#[test]
fn another_user_is_kept_out_of_roots_socket() {
    let text = "mount -t tmpfs none /run; union --allow-other; ls /run/unionfs-rs/*.sock; cat mnt/f >&2
         as_user() { setpriv --reuid=1000 --regid=1000 --clear-groups env -u XDG_RUNTIME_DIR \"$@\"; }
         as_user ./unionfs-rs status mnt && exit 1; echo $?; as_user ./unionfs-rs status mnt 2>&1 || :; umount mnt";
    let Some(said) = script(None, text) else { return };
    assert!(said.contains(".sock\n1\n") && said.contains("no control socket"), "{said}");
    assert!(said.contains("as the user who mounted it") && !said.contains("requests"), "{said}");
}

#[test]
fn the_daemon_itself_refuses_another_user_who_gets_as_far_as_the_socket() {
    if Command::new("python3").arg("-V").stdout(Stdio::null()).status().is_err() {
        skip!("needs python3, for a client that is not ours");
    }
    let text = "mount -t tmpfs none /run; union; s=$(ls /run/unionfs-rs/*.sock); chmod 755 /run /run/unionfs-rs; chmod 666 $s
         ask() { python3 -c 'import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.send(b\"status text\\n\")
print(s.recv(100).decode().split(\"\\n\")[0])' $s; }
         ask; export s; setpriv --reuid=1000 --regid=1000 --clear-groups sh -c \"$(printf 's=%s\\n' $s)
         python3 -c 'import socket; s = socket.socket(socket.AF_UNIX); s.connect(\\\"$s\\\"); print(s.recv(100).decode())'\"; umount mnt";
    let Some(said) = script(None, text) else { return };
    assert!(
        said.starts_with("ok ") && said.contains("error this is for user 0 and root, and not for user 1000"),
        "{said}"
    );
}

#[test]
fn root_asks_for_the_mount_of_a_plain_user() {
    let text = "mkdir -m 755 /run/user 2>/dev/null || :; mount -t tmpfs none /run/user; mkdir -m 700 /run/user/1000; chown 1000:1000 /run/user/1000
         chown -R 1000:1000 lower upper work mnt
         mkdir dev; mount -t tmpfs none dev; mknod -m 666 dev/fuse c 10 229; mount --bind dev/fuse /dev/fuse
         setpriv --reuid=1000 --regid=1000 --clear-groups env XDG_RUNTIME_DIR=/run/user/1000 \\
             ./unionfs-rs mount --lower lower --upper upper --work work mnt
         ./unionfs-rs status mnt; fusermount3 -u mnt";
    let Some(said) = script(None, text) else { return };
    assert!(said.contains("options in force") && said.contains("statistics"), "{said}");
}

#[test]
fn a_mount_goes_on_where_no_runtime_directory_can_be_had() {
    // Something else has each of the names.
    let text = "mount -t tmpfs none /run; echo >/run/unionfs-rs; rmdir run; echo >run; b=/tmp/unionfs-rs-0
         made=; [ -e $b ] || { mkdir -m 700 $b; made=1; }; mount -t tmpfs -o mode=755 none $b
         union --log-file $PWD/log; cat mnt/f; echo; ./unionfs-rs status mnt 2>&1 || :; cat log; umount mnt; umount $b; [ -z \"$made\" ] || rmdir $b";
    let Some(said) = script(None, text) else { return };
    assert!(said.starts_with("from below\n") && said.contains("its status cannot be asked for"), "{said}");
    assert!(said.contains("no control socket") && said.contains("mode 0700"), "{said}");
}

#[test]
fn what_a_mount_covers_does_not_matter() {
    // The union comes to lie over the very place of its socket, and over the way there.
    let text = "mount -t tmpfs none /run; cp -a lower/f upper/; ./unionfs-rs mount --lower lower --upper upper --work work /run
         cat /run/f; echo; ls /run; timeout 60 ./unionfs-rs status /run 2>&1 || :; ./unionfs-rs umount /run; ls upper";
    let Some(said) = script(None, text) else { return };
    assert!(said.starts_with("from below\nf\n") && said.ends_with("\nf\n"), "{said}");
    assert!(said.contains("no control socket"), "{said}");
    assert!(!fs::exists("/run/f").expect("/run can be looked at"));
}

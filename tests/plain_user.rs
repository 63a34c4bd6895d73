//! What is different for those who are not root: who may use the mount, what it may not do, and that
//! it ends as theirs do.
//!
//! The traps are run once more as these users by `traps/unprivileged.rs`. Here are shell scripts, since
//! that is how a plain user meets the program: the detached daemon, fusermount3, and the kernel's
//! overlayfs inside a user namespace, which must be able to read what we wrote.

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, lchown};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use support::{Home, LowersUnchanged, Tree, Who, on_kernel, require_root};

const USER: u32 = 1000;
const PATIENCE: Duration = Duration::from_secs(60);

/// What a test needs, or the reason why it does not run here.
fn home(who: Who) -> Option<Home> {
    if !require_root("becoming another user") {
        return None;
    }
    let obstacle = on_kernel().then(|| "the kernel's overlayfs is mounted by root alone here".to_owned());
    if let Some(reason) = obstacle.or_else(|| Home::obstacle(who)) {
        support::record_skip(&support::test_name(), &reason);
        return None;
    }
    let home = Home::new();
    let tree = Tree::at(home.path());
    tree.file("lower/d/a", "a").file("lower/d/sub/b", "b").file("lower/f", "lower").symlink("lower/l", "f");
    tree.file_mode("lower/secret", "secret", 0o600).file("top/d/top", "top").dir("upper").dir("work").dir("mnt");
    own(&tree, ".");
    Some(home)
}

/// Gives `name` and everything below it to the user.
fn own(tree: &Tree, name: &str) {
    lchown(tree.path(name), Some(USER), Some(USER)).expect("root may chown");
    if tree.stat(name).is_dir() {
        for entry in tree.names(name) {
            own(tree, &format!("{name}/{entry}"));
        }
    }
}

/// Runs a script as `who` in the home, where `mount_union` mounts the union detached.
fn script(home: &Home, who: Who, script: &str) -> Output {
    let words = home.wrapper(who);
    let text = format!(
        "export LC_ALL=C; mount_union() {{ ./unionfs-rs mount --lower top:lower --upper upper --work work \"$@\" mnt; }}\n\
         daemon_ends() {{ for i in $(seq 500); do pgrep -x unionfs-rs >/dev/null || return 0; sleep 0.02; done; return 1; }}\n\
         {script}"
    );
    let output = home.path().join("output");
    let log = fs::File::create(&output).expect("the directory can be written");
    let mut child = Command::new(&words[0])
        .args(&words[1..])
        .args(["sh", "-euxc", &text])
        .current_dir(home.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .expect("unshare and setpriv (package util-linux) are installed");
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().expect("an own child can be waited for").is_none() {
        if Instant::now() > deadline {
            // Everything it started goes with it: see `Home::wrapper`.
            child.kill().expect("an own child can be killed");
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let result = child.wait_with_output().expect("an own child can be waited for");
    let said = fs::read_to_string(&output).expect("the directory can be read");
    fs::remove_file(&output).expect("the directory can be written");
    assert!(result.status.success(), "as {who:?}: {}\n{said}", result.status);
    result
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Changes of every kind, and what they must look like afterwards.
const CHANGES: &str = "
    cat mnt/f mnt/l mnt/d/top mnt/d/a mnt/secret
    echo changed >mnt/f; echo more >>mnt/d/a; chmod 700 mnt/d/sub
    mkdir mnt/new; echo new >mnt/new/file; ln mnt/new/file mnt/new/link; ln -s file mnt/new/symlink; mkfifo mnt/new/fifo
    mv mnt/d mnt/moved; rm -r mnt/moved/sub; mkdir mnt/moved/sub; rm mnt/l
    setfattr -n user.key -v value mnt/secret; test \"$(getfattr --only-values -n user.key mnt/secret)\" = value
";

/// Prints the tree, and the contents after a line of its own.
const LOOKS: &str = "
    looks() { (cd \"$1\"; find . -mindepth 1 -printf '%P %y %m\\n' | sort; echo --
              cat f moved/a moved/top new/file new/symlink secret); }
";
const LOOKED: &str = "f f 644
moved d 755
moved/a f 644
moved/sub d 755
moved/top f 644
new d 755
new/fifo p 644
new/file f 644
new/link f 644
new/symlink l 777
secret f 600
--
changed
amore
topnew
new
secret";

fn changes_hold(who: Who, unmount: &str) {
    let Some(home) = home(who) else { return };
    let lowers = LowersUnchanged::new(&[home.path().join("lower"), home.path().join("top")]);
    let text = format!(
        "umask 022; {LOOKS} mount_union >&2; ({CHANGES}) >&2; looks mnt >live; {unmount}; daemon_ends
         mount_union >&2; looks mnt >later; {unmount}; daemon_ends; cmp live later >&2; cat live; rm live later"
    );
    assert_eq!(stdout(&script(&home, who, &text)), LOOKED);
    lowers.check();
    let upper = Tree::at(home.path().join("upper"));
    assert_eq!(upper.read("f"), b"changed\n");
    assert!(upper.is_whiteout("d") && upper.is_whiteout("l") && upper.is_opaque("moved/sub"));
    for name in ["f", "moved", "moved/a", "new/file", "new/fifo", "new/symlink"] {
        assert_eq!(upper.stat(name).uid(), USER, "{name}");
    }
    for name in ["moved", "secret"] {
        let trusted = upper.xattr_names(name).into_iter().filter(|key| key.starts_with("trusted."));
        assert_eq!(trusted.collect::<Vec<_>>(), Vec::<String>::new(), "of {name}");
    }
}

#[test]
fn a_plain_user_changes_a_union_and_finds_it_again_after_fusermount3() {
    changes_hold(Who::PlainUser, "fusermount3 -u mnt");
}

#[test]
fn root_of_a_user_namespace_changes_a_union_and_finds_it_again_after_umount() {
    changes_hold(Who::NamespaceRoot, "umount mnt");
}

#[test]
fn a_plain_users_mount_is_nosuid_and_nodev_and_theirs_alone() {
    let Some(home) = home(Who::PlainUser) else { return };
    let output = script(&home, Who::PlainUser, "mount_union >&2; grep \" $PWD/mnt \" /proc/mounts; fusermount3 -u mnt");
    let said = stdout(&output);
    let options: Vec<&str> = said.split_whitespace().nth(3).expect("a line of /proc/mounts").split(',').collect();
    for option in ["nosuid", "nodev", "rw", "user_id=1000", "group_id=1000", "default_permissions"] {
        assert!(options.contains(&option), "{option} is not among {options:?}");
    }
    assert!(!options.contains(&"allow_other"), "{options:?}");
}

#[test]
fn a_mount_whose_connection_does_not_come_back_from_the_helper_is_taken_down() {
    let Some(home) = home(Who::PlainUser) else { return };
    if let Err(error) = Command::new("strace").arg("-V").output() {
        support::record_skip(&support::test_name(), &format!("strace cannot be started ({error})"));
        return;
    }
    let text = "! strace -o /dev/null -e trace=recvmsg -e inject=recvmsg:error=EMFILE \
            ./unionfs-rs mount --foreground --lower top:lower --upper upper --work work mnt 2>said
        ! grep \" $PWD/mnt \" /proc/mounts >&2; cat said; rm said";
    let said = stdout(&script(&home, Who::PlainUser, text));
    assert!(said.contains("cannot be received from fusermount3: ") && said.contains("; "), "{said}");
    assert_eq!(Tree::at(home.path()).names("work"), Vec::<String>::new());
}

#[test]
fn a_plain_user_takes_over_a_workdir_as_the_kernels_overlayfs_leaves_it() {
    let Some(home) = home(Who::PlainUser) else { return };
    script(
        &home,
        Who::PlainUser,
        "mkdir -m 0 work/work; mount_union >&2; echo changed >mnt/f; fusermount3 -u mnt; daemon_ends; test -s upper/f",
    );
}

#[test]
fn root_of_a_namespace_with_every_id_is_not_taken_for_root() {
    let Some(home) = home(Who::PlainUser) else { return };
    // The map is written from outside, by who has all ids; what doctor exits with is not what is asked.
    let script = "mkfifo go; unshare --user sh -c 'read _ <go; exec ./unionfs-rs doctor' & pid=$!
        while [ $(readlink /proc/$pid/ns/user) = $(readlink /proc/self/ns/user) ]; do sleep 0.01; done
        for map in uid_map gid_map; do echo 0 0 4294967295 >/proc/$pid/$map; done; echo >go; wait $pid || :";
    let doctor = Command::new("sh").args(["-euc", script]).current_dir(home.path()).output().expect("sh is there");
    let said = stdout(&doctor);
    assert!(said.contains("root of a user namespace"), "{said}{}", String::from_utf8_lossy(&doctor.stderr));
}

#[test]
fn a_suid_program_in_a_plain_users_union_gives_no_rights() {
    let Some(home) = home(Who::PlainUser) else { return };
    let tree = Tree::at(home.path());
    fs::copy("/usr/bin/id", tree.path("lower/id")).expect("every system has id");
    fs::set_permissions(tree.path("lower/id"), std::os::unix::fs::PermissionsExt::from_mode(0o4755))
        .expect("an own file");
    let output = script(&home, Who::PlainUser, "mount_union >&2; mnt/id -u; fusermount3 -u mnt");
    assert_eq!(stdout(&output), "1000\n");
}

#[test]
fn a_plain_user_does_through_the_mount_only_what_they_may_do_to_the_layers() {
    let Some(home) = home(Who::PlainUser) else { return };
    let tree = Tree::at(home.path());
    tree.file_mode("lower/roots", "root's", 0o600).owner("lower/roots", 0, 0).file("lower/shown", "shown").owner(
        "lower/shown",
        0,
        0,
    );
    let lowers = LowersUnchanged::new(&[home.path().join("lower")]);
    script(
        &home,
        Who::PlainUser,
        "mount_union >&2; cat mnt/shown; ! cat mnt/roots; ! sh -c 'echo x >mnt/shown'; ! chmod 777 mnt/shown; ! chown 1000 mnt/shown
         rm -f mnt/shown; ! ls mnt/shown; fusermount3 -u mnt; daemon_ends",
    );
    lowers.check();
    assert!(Tree::at(home.path().join("upper")).is_whiteout("shown"));
}

#[test]
fn a_plain_user_makes_a_file_in_a_directory_that_cannot_be_read_with_every_way_of_syncing() {
    let Some(home) = home(Who::PlainUser) else { return };
    let tree = Tree::at(home.path());
    for how in ["auto", "strict", "0"] {
        tree.dir_mode(format!("lower/to-{how}"), 0o300).owner(format!("lower/to-{how}"), USER, USER);
    }
    let text = "for how in auto strict 0; do
                    mount_union --fsync $how >&2; echo new >mnt/to-$how/file; fusermount3 -u mnt; daemon_ends
                done; chmod 700 upper/to-*; cat upper/to-*/file";
    assert_eq!(stdout(&script(&home, Who::PlainUser, text)), "new\nnew\nnew\n");
}

#[test]
fn a_plain_user_changes_an_open_file_in_a_directory_that_was_closed() {
    let Some(home) = home(Who::PlainUser) else { return };
    // touch(1) sets the times of its standard output, and looks at nothing before.
    let text = "mount_union >&2; mkdir mnt/new; exec 3<>mnt/new/file; echo new >&3; chmod 0 mnt/new
                touch -d @1000 - >&3; chmod 700 mnt/new; stat -c %Y mnt/new/file
                exec 3>&-; fusermount3 -u mnt; daemon_ends; stat -c %Y upper/new/file";
    assert_eq!(stdout(&script(&home, Who::PlainUser, text)), "1000\n1000\n");
}

/// Changes that need no redirect: the kernel's overlayfs follows none without root (`userxattr`, since
/// Linux 5.11).
const CHANGES_WITHOUT_REDIRECT: &str = "
    echo changed >mnt/f; echo more >>mnt/d/a; mkdir mnt/new; echo new >mnt/new/file; ln -s file mnt/new/symlink
    cp -r mnt/d mnt/moved; rm -r mnt/d; mkdir mnt/d; rm mnt/l
";
const KERNEL_MOUNT: &str = "mount -t overlay overlay -o userxattr,lowerdir=top:lower,upperdir=upper,workdir=work mnt";

#[test]
fn the_kernels_overlayfs_in_a_user_namespace_reads_what_we_wrote_there() {
    let Some(home) = home(Who::NamespaceRoot) else { return };
    let text = format!(
        "umask 022; {LOOKS} mount_union >&2; ({CHANGES_WITHOUT_REDIRECT}) >&2; looks mnt >ours; umount mnt; daemon_ends
         {KERNEL_MOUNT}; looks mnt >kernels; umount mnt; diff ours kernels >&2; test -s ours; rm ours kernels"
    );
    script(&home, Who::NamespaceRoot, &text);
}

#[test]
fn we_read_what_the_kernels_overlayfs_in_a_user_namespace_wrote() {
    let Some(home) = home(Who::NamespaceRoot) else { return };
    let text = format!(
        "umask 022; {LOOKS} {KERNEL_MOUNT}; ({CHANGES_WITHOUT_REDIRECT}) >&2; looks mnt >kernels; umount mnt
         mount_union >&2; looks mnt >ours; umount mnt; daemon_ends; diff kernels ours >&2; test -s ours; rm ours kernels"
    );
    script(&home, Who::NamespaceRoot, &text);
}

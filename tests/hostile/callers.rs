//! Callers who are not the one who mounted: what they are given, and what they are not.

use std::fs;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::support::{
    Cleared, Home, Layers, LowersUnchanged, Placement, Tree, Watchdog, Who, binary, finish, mounted, require_root,
};
use crate::union::{STRANGER, as_user, is_ours, trap};

/// Sends a descriptor over a socket, as one process gives it to another, and returns what comes out.
fn passed(fd: OwnedFd) -> OwnedFd {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).expect("sockets");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut sent = SendAncillaryBuffer::new(&mut space);
    let fds = [fd.as_fd()];
    assert!(sent.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(&ours, &[IoSlice::new(b"x")], &mut sent, SendFlags::empty()).expect("there is room");
    drop(fd);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut received = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(&theirs, &mut [IoSliceMut::new(&mut byte)], &mut received, RecvFlags::CMSG_CLOEXEC).expect("it was sent");
    let message = received.drain().next().expect("a descriptor was sent");
    let RecvAncillaryMessage::ScmRights(mut fds) = message else { panic!("something else came") };
    fds.next().expect("a descriptor was sent")
}

#[test]
fn a_descriptor_that_is_handed_over_opens_what_modes_allow_and_nothing_more() {
    if !require_root("becoming another user") {
        return;
    }
    trap(2, |layers| {
        layers.lower(0).file_mode("d/open", "for all", 0o644).file_mode("d/closed", "root's", 0o600);
        layers.lower(1).file_mode("d/theirs", "theirs", 0o600).owner("d/theirs", STRANGER, STRANGER);
        layers.lower(1).dir_mode("d/private", 0o700).file("d/private/f", "private").file("d/above", "above");
        // It is reached through the descriptor alone.
        layers.lower(0).dir_mode("shut", 0o700).dir_mode("shut/in", 0o755).file("shut/in/f", "in");
    })
    .run(|union| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |name: &str, flags| rustix::fs::open(union.at(name), flags, Mode::empty()).expect("root may");
        let dirs = [open("d", flags), open("d", OFlags::PATH | OFlags::CLOEXEC)];
        let inner = passed(open("shut/in", flags));
        // Once by root first, so that the kernel has all of it in its caches.
        for name in ["d/open", "d/closed", "d/private/f", "shut/in/f"] {
            union.merged().read(name);
        }
        for dir in dirs.map(passed) {
            as_user(STRANGER, || {
                let open = |name: &str, flags| rustix::fs::openat(&dir, name, flags, Mode::from(0o644)).map(drop);
                assert_eq!(open("open", OFlags::RDONLY), Ok(()));
                assert_eq!(open("open", OFlags::RDWR), Err(Errno::ACCESS));
                assert_eq!(open("closed", OFlags::RDONLY), Err(Errno::ACCESS));
                assert_eq!(open("theirs", OFlags::RDWR), Ok(()));
                assert_eq!(open("private/f", OFlags::RDONLY), Err(Errno::ACCESS));
                assert_eq!(open("private", flags), Err(Errno::ACCESS));
                assert_eq!(open("new", OFlags::CREATE | OFlags::WRONLY), Err(Errno::ACCESS));
                assert_eq!(open("../shut/in/f", OFlags::RDONLY), Err(Errno::ACCESS));
                assert_eq!(rustix::fs::unlinkat(&dir, "theirs", AtFlags::empty()), Err(Errno::ACCESS));
                assert_eq!(rustix::fs::renameat(&dir, "theirs", &dir, "x"), Err(Errno::ACCESS));
                let chmod = rustix::fs::chmodat(&dir, "open", Mode::from(0o666), AtFlags::empty());
                assert_eq!(chmod, Err(Errno::PERM));
                let link = rustix::fs::linkat(&dir, "open", &dir, "x", AtFlags::empty());
                assert!(matches!(link, Err(Errno::ACCESS | Errno::PERM)), "{link:?}");
            });
        }
        as_user(STRANGER, || {
            let open = |name: &str| rustix::fs::openat(&inner, name, OFlags::RDONLY, Mode::empty()).map(drop);
            assert_eq!(open("f"), Ok(()), "the mode of the directory itself lets them");
            assert_eq!(open("../../d/closed"), Err(Errno::ACCESS));
        });
        // What root has opened for reading goes on being readable, and no more than that.
        let closed = passed(open("d/closed", OFlags::RDONLY));
        as_user(STRANGER, || {
            let mut data = [0; 16];
            assert_eq!(rustix::io::pread(&closed, &mut data, 0), Ok(6));
            assert_eq!(rustix::io::pwrite(&closed, b"x", 0), Err(Errno::BADF));
            assert_eq!(rustix::fs::fchmod(&closed, Mode::from(0o666)), Err(Errno::PERM));
        });
        assert!(!union.upper().exists("d/new") && !union.upper().exists("d/x"));
    });
}

/// Our binary under its names, in a directory of its own, and the layers of a mount.
struct Forms {
    _cleared: Cleared,
    layers: Layers,
    lowers: LowersUnchanged,
}

impl Forms {
    fn new() -> Self {
        let layers = Layers::new(1, Placement::OneFs);
        layers.lower(0).file_mode("closed", "root's", 0o600).file_mode("open", "for all", 0o644);
        fs::create_dir(layers.path("bin")).expect("the test directory can be written");
        for name in ["unionfs-rs", "fuse-overlayfs", "mount.fuse.unionfs-rs"] {
            symlink(binary(), layers.path("bin").join(name)).expect("the test directory can be written");
        }
        Self { _cleared: Cleared(layers.mnt()), lowers: LowersUnchanged::new(layers.lowers()), layers }
    }

    /// Mounts by `words`, `L`, `U`, `W` and `M` standing for the directories; returns the options that the kernel shows.
    fn options(&self, words: &[String]) -> String {
        let names = [
            ("{L}", self.layers.lowers()[0].clone()),
            ("{U}", self.layers.path("upper")),
            ("{W}", self.layers.path("work")),
            ("{M}", self.layers.mnt()),
        ];
        let filled = |word: &String| {
            names.iter().fold(word.clone(), |word, (name, path)| word.replace(name, &path.display().to_string()))
        };
        let mut command = Command::new(self.layers.path("bin").join(&words[0]));
        let ran = finish(command.args(words[1..].iter().map(filled)));
        assert_eq!(ran.code, Some(0), "{words:?}: {}", ran.err);
        let table = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
        let at = self.layers.mnt().display().to_string();
        let line = table.lines().rev().find(|line| line.split(' ').nth(4) == Some(&at)).expect("it is mounted");
        line.rsplit(' ').next().expect("a line ends with the options").to_owned()
    }

    fn unmount(&self) {
        let ran = finish(Command::new(binary()).arg("umount").arg(self.layers.mnt()));
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        assert_eq!(mounted(&self.layers.mnt()), None);
    }
}

#[test]
fn a_mount_for_everybody_checks_permissions_in_whatever_words_it_is_asked_not_to() {
    if !is_ours("the forms are those of our command") || !require_root("becoming another user") {
        return;
    }
    let _watchdog = Watchdog::start();
    let forms = Forms::new();
    let layers = "lowerdir={L},upperdir={U},workdir={W}";
    let words = |text: &str| text.replace("{O}", layers).split(' ').map(str::to_owned).collect::<Vec<_>>();
    let flags = "--lower {L} --upper {U} --work {W}";
    for line in [
        // For root it is for everybody unless something else is said.
        format!("unionfs-rs mount {flags} --no-default-permissions {{M}}"),
        format!("unionfs-rs mount {flags} --allow-other --no-default-permissions {{M}}"),
        format!("unionfs-rs mount {flags} --no-default-permissions --allow-other {{M}}"),
        format!("unionfs-rs mount {flags} --no-default-permissions --allow-root --allow-other {{M}}"),
        "unionfs-rs mount -o {O},allow_other,no_default_permissions {M}".into(),
        "unionfs-rs mount -o {O},no_default_permissions -o allow_other {M}".into(),
        "unionfs-rs -o {O},allow_other {M}".into(),
        "fuse-overlayfs -o {O} {M}".into(),
        "fuse-overlayfs -o {O},allow_other {M}".into(),
        "fuse-overlayfs -o {O},allow_other,no_default_permissions {M}".into(),
        "fuse-overlayfs -o {O},no_default_permissions {M}".into(),
        "mount.fuse.unionfs-rs overlay {M} -o {O},allow_other".into(),
        "mount.fuse.unionfs-rs overlay {M} -o {O},allow_other,no_default_permissions".into(),
    ] {
        eprintln!("--- {line}");
        let options = forms.options(&words(&line));
        assert!(options.contains("allow_other") && options.contains("default_permissions"), "{line}: {options}");
        let at = |name: &str| forms.layers.mnt().join(name);
        as_user(STRANGER, || {
            assert_eq!(fs::read(at("open")).expect("everybody may"), b"for all");
            assert!(fs::read(at("closed")).is_err());
            assert!(fs::write(at("open"), "x").is_err() && fs::write(at("new"), "x").is_err());
            assert!(fs::remove_file(at("open")).is_err());
        });
        forms.unmount();
    }
    assert_eq!(forms.layers.upper().names(""), [""; 0]);
    forms.lowers.check();
    // Where nobody else comes in, it is the owner's to choose.
    let options =
        forms.options(&words(&format!("unionfs-rs mount {flags} --no-allow-other --no-default-permissions {{M}}")));
    assert!(!options.contains("allow_other") && !options.contains("default_permissions"), "{options}");
    assert!(as_user(STRANGER, || fs::read(forms.layers.mnt().join("open"))).is_err());
    forms.unmount();
}

#[test]
fn a_plain_users_mount_is_closed_to_everybody_else_root_included() {
    if !require_root("becoming another user") || !is_ours("it is mounted by root alone") {
        return;
    }
    if let Some(reason) = Home::obstacle(Who::PlainUser) {
        crate::skip!("{reason}");
    }
    let _watchdog = Watchdog::start();
    let home = Home::new();
    let tree = Tree::at(home.path());
    for dir in ["lower", "mnt"] {
        tree.dir(dir).owner(dir, 1000, 1000);
    }
    tree.file("lower/f", "data");
    // Root of the same namespaces looks, where the user's own processes may.
    let text = "setpriv --reuid=1000 --regid=1000 --clear-groups ./unionfs-rs mount --lower lower mnt
        setpriv --reuid=1000 --regid=1000 --clear-groups cat mnt/f
        cat mnt/f 2>&1 || true
        setpriv --reuid=1001 --regid=1001 --clear-groups cat mnt/f 2>&1 || true
        setpriv --reuid=1000 --regid=1000 --clear-groups fusermount3 -u mnt";
    let words = home.wrapper(Who::PlainUser);
    let before_user = words.iter().position(|word| word == "setpriv").expect("the wrapper becomes the user last");
    let output = Command::new(&words[0])
        .args(&words[1..before_user])
        .args(["sh", "-euc", text])
        .env("LC_ALL", "C")
        .current_dir(home.path())
        .stdin(Stdio::null())
        .output()
        .expect("unshare and setpriv (package util-linux) are installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said.matches("data").count(), 1, "{said}");
    assert_eq!(said.matches("Permission denied").count(), 2, "{said}");
}

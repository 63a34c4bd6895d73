//! The command in place of fuse-overlayfs: every way in which runtimes and mount(8) start it really mounts, and what
//! they rely on afterwards holds.
//!
//! How the arguments are read is tested beside the parser. Here the binary runs under its other names, by the real
//! mount.fuse3 and mount(8), with a deadline on everything.

mod support;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::MountPropagationFlags;
use rustix::process::Pid;
use support::{
    Cleared, Home, Layers, LowersUnchanged, Placement, Privilege, Ran, Tmpfs, Tree, Who, binary, eventually, finish,
    mounted, no_mounts, privilege, processes_with, require_root,
};

/// The layers of a test, and our binary under each of its names in a directory of its own.
struct Stage {
    // Fields drop in order: what is mounted goes before what it is mounted on.
    _cleared: Cleared,
    layers: Layers,
    lowers: LowersUnchanged,
}

impl Stage {
    /// Makes the layers; `fact` is in the lowest one.
    fn new(lowers: usize) -> Self {
        let layers = Layers::new(lowers, Placement::OneFs);
        layers.lower(lowers - 1).file("fact", "from below");
        fs::create_dir(layers.path("bin")).expect("the test directory can be written");
        for name in ["unionfs-rs", "fuse-overlayfs", "mount.fuse.unionfs-rs"] {
            symlink(binary(), layers.path("bin").join(name)).expect("the test directory can be written");
        }
        Self { _cleared: Cleared(layers.mnt()), lowers: LowersUnchanged::new(layers.lowers()), layers }
    }

    fn program(&self, name: &str) -> PathBuf {
        self.layers.path("bin").join(name)
    }

    /// Returns the options that name the layers.
    fn options(&self) -> OsString {
        let lowers: Vec<&OsStr> = self.layers.lowers().iter().map(|lower| lower.as_os_str()).collect();
        let mut text = OsString::from("lowerdir=");
        text.push(lowers.join(OsStr::new(":")));
        for (name, dir) in [(",upperdir=", "upper"), (",workdir=", "work")] {
            text.push(name);
            text.push(self.layers.path(dir));
        }
        text
    }

    /// Runs the words with our binary first on the PATH; `O` stands for the options, `M` for the mountpoint.
    fn run(&self, words: &[&str], more: &str) -> Ran {
        let mut path = self.layers.path("bin").into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let program = self.program(words[0]);
        let mut command = Command::new(if program.exists() { program } else { PathBuf::from(words[0]) });
        for word in &words[1..] {
            command.arg(match *word {
                "O" => {
                    let mut options = self.options();
                    options.push(more);
                    options
                }
                "M" => self.layers.mnt().into(),
                word => word.into(),
            });
        }
        finish(command.env("PATH", path))
    }

    /// Mounts in the plainest form, with more options.
    fn mount(&self, more: &str) -> Ran {
        let ran = self.run(&["fuse-overlayfs", "-o", "O", "M"], more);
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        ran
    }

    /// Returns the line of mountinfo: the optional fields, the type and the source.
    fn shown(&self) -> Option<(Vec<String>, String, String)> {
        let table = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
        table.lines().rev().find_map(|line| {
            let (own, other) = line.split_once(" - ")?;
            let own: Vec<&str> = own.split(' ').collect();
            let mut other = other.split(' ').map(str::to_owned);
            let optional = own[6..].iter().map(|field| field.to_string()).collect();
            (Path::new(own[4]) == self.layers.mnt()).then_some((optional, other.next()?, other.next()?))
        })
    }

    /// Reads and writes through the mount.
    fn use_it(&self) {
        let script = "cd \"$0\" && cat fact && echo written >new && echo changed >fact";
        let ran = finish(Command::new("sh").args(["-euc", script]).arg(self.layers.mnt()));
        assert_eq!((ran.code, ran.out.as_str()), (Some(0), "from below"), "{}", ran.err);
    }

    /// Unmounts by `words`, and looks at what is left.
    fn ends_with(&self, words: &[&str]) {
        let ran = finish(Command::new(words[0]).args(&words[1..]).arg(self.layers.mnt()));
        assert_eq!(ran.code, Some(0), "{words:?}: {}", ran.err);
        assert_eq!(mounted(&self.layers.mnt()), None);
        eventually("the daemon ends", || processes_with(&self.layers.mnt()).is_empty());
        assert_eq!(self.layers.upper().read("new"), b"written\n");
        assert_eq!(self.layers.upper().read("fact"), b"changed\n");
        self.lowers.check();
    }
}

/// Whether `program` can be started.
fn is_there(program: &str) -> bool {
    Command::new(program).arg("-V").output().is_ok()
}

#[test]
fn each_argument_form_mounts_and_shows_its_type_and_source() {
    if let Some(reason) = no_mounts() {
        skip!("{reason}");
    }
    let ours = ("fuse.unionfs-rs", "unionfs-rs");
    let named = ("fuse.unionfs-rs", "overlay");
    let mut table: Vec<(&[&str], (&str, &str))> = vec![
        (&["fuse-overlayfs", "-o", "O", "M"], ("fuse.fuse-overlayfs", "fuse-overlayfs")),
        (&["fuse-overlayfs", "overlay", "M", "-o", "O"], ("fuse.fuse-overlayfs", "overlay")),
        (&["unionfs-rs", "-o", "O", "M"], ours),
        (&["unionfs-rs", "overlay", "M", "-o", "O", "-onodev", "-o", "exec"], named),
        (&["unionfs-rs", "-o", "fsname=other", "overlay", "M", "-o", "O"], ("fuse.unionfs-rs", "other")),
        (&["unionfs-rs", "-o", "O", "--", "M"], ours),
        (&["mount.fuse.unionfs-rs", "overlay", "M", "-nv", "-o", "O", "-t", "fuse.unionfs-rs"], named),
        (
            &["mount.fuse.unionfs-rs", "overlay", "M", "-o", "O", "-t", "fuse.fuse-overlayfs"],
            ("fuse.fuse-overlayfs", "overlay"),
        ),
    ];
    let by_fuse3: &[(&[&str], (&str, &str))] = &[
        (&["mount.fuse3", "overlay", "M", "-o", "O", "-t", "fuse.unionfs-rs"], named),
        (&["mount.fuse3", "overlay", "M", "-o", "O", "-t", "fuse-overlayfs"], ("fuse.fuse-overlayfs", "overlay")),
    ];
    if is_there("mount.fuse3") {
        table.extend_from_slice(by_fuse3);
    } else {
        support::record_skip(&support::test_name(), "there is no mount.fuse3: install the package fuse3");
    }
    for (words, (kind, source)) in table {
        let stage = Stage::new(2);
        let ran = stage.run(words, ",,volatile,");
        assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (Some(0), "", ""), "{words:?}");
        assert_eq!(
            stage.shown().map(|(_, kind, source)| (kind, source)),
            Some((kind.into(), source.into())),
            "{words:?}"
        );
        stage.use_it();
        stage.ends_with(&["fusermount3", "-u"]);
    }
}

#[test]
fn mount8_mounts_by_the_type() {
    if !require_root("to mount by mount(8)") {
        return;
    }
    if !Path::new("/sbin/mount.fuse").exists() {
        skip!("there is no /sbin/mount.fuse: install the package fuse3");
    }
    // mount(8) takes the PATH away from its helpers, which leaves the system's. There ours is, in a mount namespace.
    for (kind, at) in [("fuse.unionfs-rs", "/usr/local/bin"), ("fuse.fuse-overlayfs", "/usr/local/bin")] {
        let stage = Stage::new(1);
        let script = "mount --bind \"$1\" \"$2\"; mount -t \"$3\" overlay \"$4\" -o \"$5\"
            grep -F \" $4 \" /proc/self/mounts; cat \"$4/fact\"; echo written >\"$4/new\"; echo changed >\"$4/fact\"; umount \"$4\"";
        let ran = finish(
            Command::new("unshare")
                .args(["--mount", "sh", "-euc", script, "sh"])
                .args([stage.layers.path("bin").as_os_str(), at.as_ref(), kind.as_ref()])
                .args([stage.layers.mnt().as_os_str(), &stage.options()]),
        );
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{kind}: {}", ran.out);
        let begin = format!("overlay {} {kind} rw,", stage.layers.mnt().display());
        assert!(ran.out.starts_with(&begin) && ran.out.ends_with("from below"), "{}", ran.out);
        eventually("the daemon ends", || processes_with(&stage.layers.mnt()).is_empty());
        assert_eq!(stage.layers.upper().read("new"), b"written\n");
        stage.lowers.check();
    }
}

#[test]
fn whoever_unmounts_finds_everything_in_upper_and_no_process() {
    if let Some(reason) = no_mounts() {
        skip!("{reason}");
    }
    let root = privilege() == Privilege::Root;
    let ways: [(&[&str], bool); 6] = [
        (&["fusermount3", "-u"], true),
        (&["fusermount3", "-u", "-z"], true),
        (&["fusermount", "-u"], is_there("fusermount")),
        (&["umount"], root),
        (&["umount", "-l"], root),
        (&["unionfs-rs", "umount"], true),
    ];
    for (words, possible) in ways {
        if !possible {
            support::record_skip(&format!("{} {words:?}", support::test_name()), "not there, or for root alone");
            continue;
        }
        let stage = Stage::new(1);
        stage.mount(",,volatile");
        stage.use_it();
        let program = stage.program(words[0]);
        let program = if program.exists() { program.display().to_string() } else { words[0].to_owned() };
        stage.ends_with(&[&[program.as_str()], &words[1..]].concat());
    }
}

#[test]
fn the_daemon_keeps_nothing_that_it_was_started_with() {
    if let Some(reason) = no_mounts() {
        skip!("{reason}");
    }
    let stage = Stage::new(1);
    let (held, mnt) = (stage.layers.path("held"), stage.layers.mnt());
    // The pipes of `finish` are 0 to 2: it reads standard error to its end, as podman does, and so would never return.
    let script =
        "for fd in 3 4 5 6 7 8 9; do eval \"exec $fd>>\\\"$1\\\"\"; done; exec \"$0\" -o \"$2,bananas\" \"$3\"";
    let mut command = Command::new("sh");
    command.args(["-euc", script]).arg(stage.program("fuse-overlayfs")).arg(&held).arg(stage.options()).arg(&mnt);
    let ran = finish(&mut command);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert_eq!(ran.err, "unionfs-rs: warning: -o bananas: unknown option, which is ignored\n");
    let daemons = processes_with(&mnt);
    let [daemon] = daemons.as_slice() else { panic!("one daemon, not {daemons:?}") };
    let open = descriptors(*daemon);
    for standard in ["0", "1", "2"] {
        let target = open.iter().find(|(number, _)| number == standard).map(|(_, target)| target.as_path());
        assert_eq!(target, Some(Path::new("/dev/null")), "descriptor {standard}");
    }
    for (number, target) in &open {
        assert_ne!(*target, held, "descriptor {number} was inherited");
        assert!(!target.starts_with("pipe:"), "descriptor {number} is {}", target.display());
    }
    stage.use_it();
    stage.ends_with(&["fusermount3", "-u"]);
}

/// Returns what a process has open, by number.
fn descriptors(pid: Pid) -> Vec<(String, PathBuf)> {
    let listing = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_pid())).expect("the process runs");
    let entries = listing.map(|entry| entry.expect("a listing"));
    // One may be closed while we look.
    entries
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, fs::read_link(entry.path()).ok()?)))
        .collect()
}

#[test]
fn bad_input_is_refused_with_its_exit_code_and_leaves_nothing() {
    let absent = "-olowerdir=/nowhere/at/all";
    let table: &[(&[&str], &str, i32, &str)] = &[
        (&["fuse-overlayfs", "-o", "O", "M"], ",uidmapping=0:0:10:5:100:10", 2, "overlap"),
        (&["fuse-overlayfs", "-o", "O", "M"], ",gidmapping=0:4294967290:10", 2, "goes past 4294967294"),
        (&["fuse-overlayfs", "-o", "O", "M"], ",uidmapping=0:1:x", 2, "-o uidmapping=0:1:x: not a map"),
        (&["fuse-overlayfs", "-o", "O", "M"], ",context=\"a,b", 2, "has no end"),
        (&["fuse-overlayfs", "-o", "O", "M"], ",lowerdir+=/nowhere/at/all", 3, "/nowhere/at/all: no such directory"),
        (&["fuse-overlayfs", "-o", "O", "/nowhere/at/all"], "", 3, "/nowhere/at/all: "),
        (&["fuse-overlayfs", "-f", absent, "M"], "", 3, "/nowhere/at/all: no such directory"),
        (&["fuse-overlayfs", "-o", "O"], "", 2, "no mountpoint"),
        (&["fuse-overlayfs", "M"], "", 2, "-o lowerdir=DIR"),
        (&["unionfs-rs", "a", "b", "c", "-o", "O"], "", 2, "c: one operand too many"),
        (&["unionfs-rs", "--frob", "-o", "O", "M"], "", 2, "--frob: unknown flag"),
        (&["unionfs-rs", "bananas", "M"], "", 2, "bananas"),
        (&["mount.fuse.unionfs-rs", "none", "M", "-N", "/proc/1/ns/mnt", "-o", "O"], "", 2, "nsenter"),
    ];
    for (words, more, code, said) in table {
        let stage = Stage::new(1);
        let ran = stage.run(words, more);
        assert_eq!(ran.code, Some(*code), "{words:?} {more}: {ran:?}");
        assert!(ran.err.starts_with("unionfs-rs: ") && ran.err.contains(said), "{words:?} {more}: {}", ran.err);
        assert_eq!(mounted(&stage.layers.mnt()), None);
        eventually("the daemon is gone", || processes_with(&stage.layers.mnt()).is_empty());
        assert_eq!(stage.layers.upper().names(""), [""; 0]);
        stage.lowers.check();
    }
}

#[test]
fn version_help_and_a_fake_mount_mount_nothing() {
    let stage = Stage::new(1);
    let version = format!("unionfs-rs {}", env!("CARGO_PKG_VERSION"));
    for words in [&["fuse-overlayfs", "--version"][..], &["fuse-overlayfs", "-V", "-o", "O", "M"]] {
        let ran = stage.run(words, "");
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
        assert!(ran.out.starts_with(&version), "{}", ran.out);
    }
    let help = stage.run(&["fuse-overlayfs", "--help"], "");
    assert!(help.code == Some(0) && help.out.starts_with("Usage: fuse-overlayfs"), "{help:?}");
    let fake = stage.run(&["mount.fuse.unionfs-rs", "none", "M", "-f", "-o", "O"], "");
    assert_eq!((fake.code, fake.err.as_str()), (Some(0), ""));
    assert_eq!(mounted(&stage.layers.mnt()), None);
}

#[test]
fn without_an_upper_the_mount_is_read_only() {
    if let Some(reason) = no_mounts() {
        skip!("{reason}");
    }
    let stage = Stage::new(1);
    let mut lowers = OsString::from("lowerdir=");
    lowers.push(&stage.layers.lowers()[0]);
    let ran = finish(Command::new(stage.program("fuse-overlayfs")).arg("-o").arg(lowers).arg(stage.layers.mnt()));
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    let write = finish(Command::new("sh").args(["-c", "echo >\"$0/new\""]).arg(stage.layers.mnt()));
    assert!(write.code != Some(0) && write.err.contains("Read-only file system"), "{write:?}");
    stage.lowers.check();
}

#[test]
fn layers_are_found_from_the_working_directory_through_relative_links() {
    if let Some(reason) = no_mounts() {
        skip!("{reason}");
    }
    let stage = Stage::new(1);
    let root = Tree::at(stage.layers.path("overlay"));
    for (id, link) in [("base", "3YTKVZKQRYNPVGKZ5ZWLTTJJ5T"), ("app", "VCSPCB5VHNRLLCNTN5CWRTTGHT")] {
        root.file(format!("{id}/diff/{id}"), id).symlink(format!("l/{link}"), format!("../{id}/diff"));
    }
    for dir in ["top/diff", "top/work", "top/merged-by-relative-path"] {
        root.dir(dir);
    }
    let at = root.path("top/merged-by-relative-path");
    let _cleared = Cleared(at.clone());
    let options = "lowerdir=l/VCSPCB5VHNRLLCNTN5CWRTTGHT:l/3YTKVZKQRYNPVGKZ5ZWLTTJJ5T,upperdir=top/diff,workdir=top/work,,volatile";
    let mut command = Command::new(stage.program("fuse-overlayfs"));
    let ran = finish(command.args(["-o", options, "top/merged-by-relative-path"]).current_dir(root.root()));
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    let listed = finish(Command::new("sh").args(["-euc", "cd \"$0\"; cat app base; echo >new"]).arg(&at));
    assert_eq!((listed.code, listed.out.as_str()), (Some(0), "appbase"), "{}", listed.err);
    let ended = finish(Command::new("fusermount3").arg("-u").arg(&at));
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let relative = Path::new("top/merged-by-relative-path");
    eventually("the daemon ends", || processes_with(relative).is_empty());
    assert!(root.exists("top/diff/new"));
}

#[test]
fn five_hundred_layers_are_mounted() {
    if let Some(reason) = no_mounts() {
        skip!("{reason}");
    }
    let stage = Stage::new(500);
    stage.mount("");
    stage.use_it();
    stage.ends_with(&["fusermount3", "-u"]);
}

#[test]
fn a_lower_may_be_a_fuse_mount() {
    if let Some(reason) = no_mounts() {
        skip!("{reason}");
    }
    let below = Stage::new(2);
    below.mount("");
    let stage = Stage::new(1);
    let mut more = OsString::from("lowerdir=");
    more.push(below.layers.mnt());
    for (name, dir) in [(",upperdir=", "upper"), (",workdir=", "work")] {
        more.push(name);
        more.push(stage.layers.path(dir));
    }
    let ran = finish(Command::new(stage.program("fuse-overlayfs")).arg("-o").arg(more).arg(stage.layers.mnt()));
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    stage.use_it();
    stage.ends_with(&["fusermount3", "-u"]);
    assert_eq!(below.layers.upper().names(""), [""; 0], "the lower was written");
    below.use_it();
    below.ends_with(&["fusermount3", "-u"]);
}

#[test]
fn propagation_is_as_asked_for() {
    if privilege() == Privilege::Plain {
        skip!("needs the privilege to mount");
    }
    if let Some(reason) = no_mounts() {
        skip!("{reason}");
    }
    for (parent, more, expected) in [
        (MountPropagationFlags::SHARED, "", true),
        (MountPropagationFlags::SHARED, ",private", false),
        (MountPropagationFlags::SHARED, ",rslave", false),
        (MountPropagationFlags::PRIVATE, "", false),
        (MountPropagationFlags::PRIVATE, ",shared", true),
    ] {
        let stage = Stage::new(1);
        let _disk = Tmpfs::mount(&stage.layers.mnt(), "mode=755").expect("a tmpfs can be mounted");
        rustix::mount::mount_change(stage.layers.mnt(), parent).expect("an own mount");
        stage.mount(more);
        let shared =
            stage.shown().is_some_and(|(optional, _, _)| optional.iter().any(|field| field.starts_with("shared:")));
        assert_eq!(shared, expected, "{more}");
        stage.use_it();
        let ran = finish(Command::new("fusermount3").arg("-u").arg(stage.layers.mnt()));
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        eventually("the daemon ends", || processes_with(&stage.layers.mnt()).is_empty());
    }
}

#[test]
fn what_cannot_be_honoured_is_said_once_and_the_mount_is_there() {
    if let Some(reason) = no_mounts() {
        skip!("{reason}");
    }
    let stage = Stage::new(1);
    let ran = stage.mount(",plugins=/x,plugins=/y,sync_read,fast_ino=1,bananas,context=\"u:r:t:c1,c2\",xino=off");
    let lines: Vec<&str> = ran.err.lines().collect();
    assert!(lines[0].starts_with("unionfs-rs: warning: -o plugins: ignored: "), "{}", ran.err);
    assert!(lines[1].starts_with("unionfs-rs: warning: -o sync_read: ignored: "), "{}", ran.err);
    assert_eq!(lines[2], "unionfs-rs: warning: -o bananas: unknown option, which is ignored");
    if Path::new("/sys/fs/selinux").exists() {
        support::record_skip(&support::test_name(), "this kernel has SELinux, and knows what context it takes");
    } else {
        assert!(lines[3].contains("no SELinux") && lines[3].contains("u:r:t:c1,c2"), "{}", ran.err);
        assert_eq!(lines.len(), 4, "{}", ran.err);
    }
    stage.use_it();
    stage.ends_with(&["fusermount3", "-u"]);
}

#[test]
fn a_descriptor_that_the_caller_has_mounted_is_served() {
    if !require_root("to mount a descriptor") {
        return;
    }
    let attach = "exec 9<>/dev/fuse; exec 8>held
        mount -i -t fuse.callers -o fd=9,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other callers \"$1\"
        exec \"$0\" -o \"$2\" /dev/fd/9";
    let stage = Stage::new(1);
    let mnt = stage.layers.mnt();
    let mut command = Command::new("sh");
    command.args(["-euc", attach]).arg(stage.program("fuse-overlayfs")).arg(&mnt).arg(stage.options());
    let ran = finish(command.current_dir(stage.layers.path("")));
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    assert_eq!(stage.shown().map(|(_, kind, source)| (kind, source)), Some(("fuse.callers".into(), "callers".into())));
    let daemons = processes_with(&PathBuf::from(stage.options()));
    let [daemon] = daemons.as_slice() else { panic!("one daemon, not {daemons:?}") };
    let held = stage.layers.path("held");
    assert!(descriptors(*daemon).iter().all(|(_, target)| *target != held), "the others are closed");
    stage.use_it();
    stage.ends_with(&["umount"]);
    eventually("the daemon ends", || processes_with(&PathBuf::from(stage.options())).is_empty());
}

#[test]
fn a_descriptor_that_is_none_or_was_not_mounted_is_refused() {
    let stage = Stage::new(1);
    let run = |before: &str| {
        let script = format!("{before}; exec \"$0\" -o \"$1\" /dev/fd/9");
        let mut command = Command::new("sh");
        finish(command.args(["-euc", &script]).arg(stage.program("fuse-overlayfs")).arg(stage.options()))
    };
    let closed = run("exec 9>&-");
    assert!(closed.code == Some(3) && closed.err.contains("/dev/fd/9: no such descriptor"), "{closed:?}");
    // 1 is no descriptor beyond the standard ones.
    let mut standard = Command::new(stage.program("fuse-overlayfs"));
    let standard = finish(standard.arg("-fo").arg(stage.options()).arg("/dev/fd/1"));
    assert!(standard.code == Some(3) && standard.err.contains("/dev/fd/1: no such descriptor"), "{standard:?}");
    for other in ["exec 9>/dev/null", "exec 9<>/dev/fuse"] {
        let refused = run(other);
        assert!(refused.code == Some(4) && refused.err.contains("/dev/fd/9: "), "{other}: {refused:?}");
    }
    assert_eq!(stage.layers.upper().names(""), [""; 0]);
    stage.lowers.check();
}

#[test]
fn a_plain_user_and_root_of_a_user_namespace_mount_in_this_form() {
    if !require_root("becoming another user") {
        return;
    }
    // What only mount(2) can do is a warning where fusermount3 mounts.
    for (who, warnings) in [(Who::PlainUser, 1), (Who::NamespaceRoot, 0)] {
        if let Some(reason) = Home::obstacle(who) {
            support::record_skip(&format!("{} {who:?}", support::test_name()), &reason);
            continue;
        }
        let home = Home::new();
        let wrapper = home.wrapper(who);
        let script = "mkdir l u w m; echo -n 'from below' >l/fact; ln -s unionfs-rs fuse-overlayfs
            ./fuse-overlayfs -o lowerdir=l,upperdir=u,workdir=w,,private m; grep -cF \"$PWD/m fuse.fuse-overlayfs\" /proc/self/mounts
            cat m/fact; echo written >m/new; fusermount3 -u m || umount m; cat u/new";
        let mut command = Command::new(&wrapper[0]);
        let ran = finish(command.args(&wrapper[1..]).args(["sh", "-euc", script]).current_dir(home.path()));
        assert_eq!((ran.code, ran.out.as_str()), (Some(0), "1\nfrom belowwritten\n"), "{who:?}: {}", ran.err);
        assert_eq!(ran.err.matches("cannot set its propagation").count(), warnings, "{who:?}: {}", ran.err);
    }
}

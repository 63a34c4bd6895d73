//! Setups that no union can be made of: each is refused with a message that names the path, the reason
//! and what to do; the exit code is not zero, nothing is mounted, and nothing has changed on disk.
//!
//! How the command line is parsed is tested in `cli.rs`, what a corrupt layer does in `traps.rs`.

mod support;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags};
use support::{
    Io, Layers, LowersUnchanged, Mounted, Placement, Privilege, Tmpfs, binary, on_kernel, privilege, record_skip,
    require_root, test_name,
};

/// Far longer than a refusal takes.
const DEADLINE: Duration = Duration::from_secs(30);
const USER: u32 = 1000;

/// The command `mount` with its arguments, about to be refused.
struct Attempt {
    /// What runs the binary: nothing, or a command that execs what follows it.
    wrapper: Vec<OsString>,
    binary: PathBuf,
    args: Vec<OsString>,
}

fn mount<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Attempt {
    let args = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
    Attempt { wrapper: Vec::new(), binary: binary(), args }
}

/// The attempt to mount `lower` under the layers' upper.
fn mount_over(layers: &Layers, lower: &Path) -> Attempt {
    let (upper, work, at) = (layers.path("upper"), layers.path("work"), layers.mnt());
    mount([OsStr::new("--lower"), lower.as_os_str(), OsStr::new("--upper"), upper.as_os_str()]).and([
        OsStr::new("--work"),
        work.as_os_str(),
        at.as_os_str(),
    ])
}

impl Attempt {
    fn and<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    fn through<A: AsRef<OsStr>>(mut self, wrapper: impl IntoIterator<Item = A>) -> Self {
        self.wrapper = wrapper.into_iter().map(|arg| arg.as_ref().to_owned()).chain(self.wrapper).collect();
        self
    }

    /// Lets a plain user make the attempt; as root with a copy of the binary that they can reach.
    fn by_a_user(mut self, layers: &Layers) -> Self {
        if privilege() == Privilege::Plain {
            return self;
        }
        let copy = layers.path("unionfs-rs");
        fs::copy(&self.binary, &copy).expect("the binary can be copied");
        self.binary = copy;
        self.through(["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"])
    }

    fn run(&self) -> (ExitStatus, String) {
        let words: Vec<&OsStr> = self
            .wrapper
            .iter()
            .map(OsString::as_os_str)
            .chain([self.binary.as_os_str(), OsStr::new("mount")])
            .chain(self.args.iter().map(OsString::as_os_str))
            .collect();
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{words:?} cannot be started: {error}"));
        let deadline = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = child.try_wait().expect("an own child can be waited for") {
                break status;
            }
            if Instant::now() > deadline {
                child.kill().expect("an own child can be killed");
                panic!("{words:?} does not end");
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut said = Vec::new();
        let mut stderr = child.stderr.take().expect("it is piped");
        // Where it did mount against all expectation, the daemon must not hold this up.
        if !status.success() {
            stderr.read_to_end(&mut said).expect("a pipe can be read");
        }
        (status, String::from_utf8_lossy(&said).into_owned())
    }

    /// Asserts that the attempt is refused with a message that holds each of `words`, and that it has
    /// left no trace in the test's directory. Returns the message.
    fn is_refused(&self, layers: &Layers, words: &[&str]) -> String {
        let root = [layers.path("")];
        let disk = LowersUnchanged::but_for_times(&root);
        let mounts = mounts_below(&root[0]);
        let (status, said) = self.run();
        let now = mounts_below(&root[0]);
        if now.len() > mounts.len() {
            let undone = rustix::mount::unmount(layers.mnt(), UnmountFlags::DETACH);
            panic!("it was mounted ({undone:?}): {:?}", self.args);
        }
        assert!(status.code().is_some_and(|code| code != 0), "{status}: {said}");
        for word in words {
            assert!(said.contains(word), "the message does not say {word:?}: {said}");
        }
        // Path and reason before the semicolon, what to do after it.
        let advice = said.trim_end().split_once("; ").map_or("", |(_, advice)| advice);
        assert!(!advice.is_empty(), "the message does not say what to do: {said}");
        assert_eq!(now, mounts, "mounts in the test's directory");
        disk.check();
        wait_until_nobody_uses(&root[0]);
        said
    }
}

/// Returns the lines of mountinfo for mounts below `root`.
fn mounts_below(root: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let root = root.to_string_lossy().trim_end_matches('/').to_owned();
    table.lines().filter(|line| line.contains(&format!(" {root}/"))).map(str::to_owned).collect()
}

/// Waits until no process has the directory in its arguments: a refused mount leaves no daemon.
fn wait_until_nobody_uses(root: &Path) {
    let needle = root.as_os_str().as_encoded_bytes();
    let deadline = Instant::now() + DEADLINE;
    let uses = |pid: &Path| {
        // Gone in the meantime: it uses nothing.
        let line = fs::read(pid.join("cmdline")).unwrap_or_default();
        line.windows(needle.len()).any(|window| window == needle)
    };
    loop {
        let processes = fs::read_dir("/proc").expect("/proc is mounted").filter_map(Result::ok);
        let Some(user) = processes.map(|entry| entry.path()).find(|path| uses(path)) else { return };
        assert!(Instant::now() < deadline, "{} is left", user.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn layers() -> Layers {
    let layers = Layers::new(1, Placement::OneFs);
    layers.lower(0).file("f", "lower").dir("sub");
    layers
}

fn text(path: &Path) -> String {
    path.to_str().expect("the test's paths are text").to_owned()
}

/// Whether refusals can be tested here: they are ours alone.
fn is_ours() -> bool {
    if on_kernel() {
        record_skip(&test_name(), "not the kernel's: messages and exit codes");
    }
    !on_kernel()
}

/// Gives the user everything in the test's directory.
fn give_to_user(layers: &Layers) {
    if privilege() == Privilege::Root {
        for name in ["lower0", "upper", "work", "mnt", ""] {
            chown(layers.path(name), Some(USER), Some(USER)).expect("root may chown");
        }
    }
}

#[test]
fn no_lower_is_refused() {
    if !is_ours() {
        return;
    }
    let layers = layers();
    let at = layers.mnt();
    mount([OsStr::new("--upper"), layers.path("upper").as_os_str(), at.as_os_str()]).is_refused(&layers, &["lower"]);
    mount([at.as_os_str()]).is_refused(&layers, &["lower"]);
}

#[test]
fn a_lower_that_is_not_there_is_refused() {
    if !is_ours() {
        return;
    }
    let layers = layers();
    let missing = layers.path("missing");
    mount_over(&layers, &missing).is_refused(&layers, &[&text(&missing), "o such"]);
    symlink("nowhere", layers.path("dangling")).expect("a link can be made");
    let dangling = layers.path("dangling");
    mount_over(&layers, &dangling).is_refused(&layers, &[&text(&dangling), "o such"]);
    // One of several.
    let both = format!("{}:{}", text(&layers.lowers()[0]), text(&missing));
    mount_over(&layers, Path::new(&both)).is_refused(&layers, &[&text(&missing), "o such"]);
}

#[test]
fn a_lower_that_is_no_directory_is_refused() {
    if !is_ours() {
        return;
    }
    let layers = layers();
    let file = layers.lower(0).path("f");
    mount_over(&layers, &file).is_refused(&layers, &[&text(&file), "irectory"]);
}

#[test]
fn a_lower_that_can_not_be_read_is_refused() {
    if !is_ours() {
        return;
    }
    let layers = layers();
    give_to_user(&layers);
    let lower = layers.lowers()[0].clone();
    let close = |mode| fs::set_permissions(&lower, fs::Permissions::from_mode(mode)).expect("an own directory");
    if privilege() == Privilege::UserNamespace {
        record_skip(&test_name(), "root of a user namespace reads everything it owns");
        return;
    }
    close(0o000);
    mount_over(&layers, &lower).by_a_user(&layers).is_refused_when(
        &layers,
        &[&text(&lower), "denied"],
        || close(0o755),
        || close(0),
    );
    close(0o755);
}

impl Attempt {
    /// As [`Attempt::is_refused`], for a directory that must be opened to be looked at.
    fn is_refused_when(&self, layers: &Layers, words: &[&str], open: impl Fn(), close: impl Fn()) {
        if privilege() == Privilege::Root {
            self.is_refused(layers, words);
            return;
        }
        // The check itself could not look inside.
        close();
        let (status, said) = self.run();
        open();
        assert!(status.code().is_some_and(|code| code != 0), "{status}: {said}");
        for word in words {
            assert!(said.contains(word), "the message does not say {word:?}: {said}");
        }
    }
}

#[test]
fn the_same_directory_as_upper_and_lower_is_refused() {
    if !is_ours() {
        return;
    }
    let layers = layers();
    let upper = layers.path("upper");
    mount_over(&layers, &upper).is_refused(&layers, &[&text(&upper), "lower"]);
    let link = layers.path("link");
    symlink(&upper, &link).expect("a link can be made");
    mount_over(&layers, &link).is_refused(&layers, &["lower"]);
    if privilege() == Privilege::Root {
        let bound = layers.path("bound");
        fs::create_dir(&bound).expect("the test directory can be written");
        rustix::mount::mount_bind(&upper, &bound).expect("root may bind");
        let attempt = std::panic::catch_unwind(|| mount_over(&layers, &bound).is_refused(&layers, &["lower"]));
        rustix::mount::unmount(&bound, UnmountFlags::DETACH).expect("it is mounted");
        attempt.expect("the attempt through a bind mount");
    }
}

#[test]
fn an_upper_inside_a_lower_and_the_other_way_round_is_refused() {
    if !is_ours() {
        return;
    }
    let layers = layers();
    let (lower, inside) = (layers.lowers()[0].clone(), layers.lower(0).path("sub"));
    let (work, at) = (layers.path("work"), layers.mnt());
    let attempt = |lower: &Path, upper: &Path, work: &Path| {
        let words =
            ["--lower".into(), text(lower), "--upper".into(), text(upper), "--work".into(), text(work), text(&at)];
        mount(words)
    };
    attempt(&lower, &inside, &work).is_refused(&layers, &[&text(&inside), &text(&lower), "inside"]);
    attempt(&inside, &lower, &work).is_refused(&layers, &[&text(&inside), &text(&lower), "inside"]);
    let upper = layers.path("upper");
    attempt(&lower, &upper, &inside).is_refused(&layers, &[&text(&inside), &text(&lower), "inside"]);
    // By another way to the same place.
    let link = layers.path("link");
    symlink(&lower, &link).expect("a link can be made");
    attempt(&lower, &link.join("sub"), &work).is_refused(&layers, &["inside"]);
}

#[test]
fn a_lower_inside_another_lower_is_refused_as_the_kernel_does() {
    if !is_ours() {
        return;
    }
    let layers = layers();
    let (lower, inside) = (text(&layers.lowers()[0]), text(&layers.lower(0).path("sub")));
    for both in [format!("{lower}:{inside}"), format!("{inside}:{lower}")] {
        mount_over(&layers, Path::new(&both)).is_refused(&layers, &[&inside, &lower]);
    }
}

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
fn an_upper_that_is_not_there_or_no_directory_is_refused() {
    if !is_ours() {
        return;
    }
    let layers = layers();
    layers.upper().file("file", "");
    for (upper, reason) in [(layers.path("missing"), "o such"), (layers.path("upper/file"), "irectory")] {
        let words = ["--lower", &text(&layers.lowers()[0]), "--upper", &text(&upper), &text(&layers.mnt())];
        mount(words).is_refused(&layers, &[&text(&upper), reason]);
    }
}

#[test]
fn a_mountpoint_that_is_not_there_or_no_directory_is_refused() {
    if !is_ours() {
        return;
    }
    let layers = layers();
    layers.upper().file("file", "");
    for (at, reason) in [(layers.path("missing"), "o such"), (layers.path("upper/file"), "irectory")] {
        let words = ["--lower", &text(&layers.lowers()[0]), &text(&at)];
        mount(words).is_refused(&layers, &[&text(&at), reason]);
    }
}

#[test]
fn a_mountpoint_inside_a_layer_is_refused_where_layers_can_not_be_cloned_privately() {
    if !is_ours() {
        return;
    }
    if privilege() == Privilege::UserNamespace {
        record_skip(&test_name(), "root of a user namespace clones layers privately");
        return;
    }
    let layers = layers();
    give_to_user(&layers);
    layers.upper().dir("sub");
    let lower = layers.lowers()[0].clone();
    if privilege() == Privilege::Root {
        for dir in [layers.lower(0).path("sub"), layers.upper().path("sub")] {
            chown(dir, Some(USER), Some(USER)).expect("root may chown");
        }
    }
    for at in [lower.clone(), lower.join("sub"), layers.path("upper"), layers.path("upper/sub")] {
        let words =
            ["--lower", &text(&lower), "--upper", &text(&layers.path("upper")), "--work", &text(&layers.path("work"))];
        mount(words).and([&at]).by_a_user(&layers).is_refused(&layers, &[&text(&at)]);
    }
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
        assert_eq!(support::Tree::at(layers.path(name)).names(""), Vec::<String>::new(), "{name}");
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

#[test]
fn an_upper_that_can_not_be_written_is_refused() {
    if !is_ours() {
        return;
    }
    if privilege() == Privilege::UserNamespace {
        record_skip(&test_name(), "root of a user namespace writes everything it owns");
        return;
    }
    let layers = layers();
    if privilege() == Privilege::Root {
        for name in ["work", "mnt"] {
            chown(layers.path(name), Some(USER), Some(USER)).expect("root may chown");
        }
    } else {
        fs::set_permissions(layers.path("upper"), fs::Permissions::from_mode(0o555)).expect("an own directory");
    }
    let attempt = mount_over(&layers, &layers.lowers()[0]).by_a_user(&layers);
    attempt.is_refused(&layers, &[&text(&layers.path("upper")), "denied"]);
}

#[test]
fn an_upper_on_a_read_only_file_system_is_refused() {
    if !is_ours() || !require_root("a read-only mount") {
        return;
    }
    let layers = layers();
    let disk = layers.path("disk");
    let _disk = Tmpfs::mount(&disk, "mode=755").expect("a tmpfs can be mounted");
    for name in ["upper", "work"] {
        fs::create_dir(disk.join(name)).expect("a new disk has space");
    }
    rustix::mount::mount_remount(&disk, MountFlags::RDONLY, c"").expect("a tmpfs can be made read-only");
    let (upper, work) = (text(&disk.join("upper")), text(&disk.join("work")));
    let words = ["--lower", &text(&layers.lowers()[0]), "--upper", &upper, "--work", &work, &text(&layers.mnt())];
    mount(words).is_refused(&layers, &[&upper, "ead-only"]);
}

#[test]
fn what_needs_xattrs_is_refused_on_an_upper_without_them() {
    if !is_ours() || !require_root("a ramfs, which has no xattrs") {
        return;
    }
    let layers = layers();
    let disk = layers.path("disk");
    fs::create_dir(&disk).expect("the test directory can be written");
    rustix::mount::mount("ramfs", &disk, "ramfs", MountFlags::empty(), None).expect("root may mount a ramfs");
    let attempts = std::panic::catch_unwind(|| {
        for name in ["upper", "work"] {
            fs::create_dir(disk.join(name)).expect("a new disk has space");
        }
        let (upper, work) = (text(&disk.join("upper")), text(&disk.join("work")));
        for option in ["redirect-dir", "index", "metacopy"] {
            eprintln!("--- {option}");
            let words = ["--lower", &text(&layers.lowers()[0]), "--upper", &upper, "--work", &work];
            let attempt = mount(words).and([&format!("--{option}"), "on", &text(&layers.mnt())]);
            attempt.is_refused(&layers, &[&upper, "xattr"]);
        }
    });
    rustix::mount::unmount(&disk, UnmountFlags::DETACH).expect("it is mounted");
    attempts.expect("the attempts on a ramfs");
}

#[test]
fn an_upper_without_d_type_is_refused() {
    if !is_ours() || !require_root("a loop mount of an ext4 without d_type") {
        return;
    }
    let layers = layers();
    let (image, disk) = (layers.path("image"), layers.path("disk"));
    fs::File::create(&image).and_then(|file| file.set_len(8 << 20)).expect("the test directory can be written");
    fs::create_dir(&disk).expect("the test directory can be written");
    run("mkfs.ext4", &["-q", "-O", "^filetype", &text(&image)]);
    run("mount", &["-o", "loop", &text(&image), &text(&disk)]);
    let attempt = std::panic::catch_unwind(|| {
        for name in ["upper", "work"] {
            fs::create_dir(disk.join(name)).expect("a new disk has space");
        }
        let (upper, work) = (text(&disk.join("upper")), text(&disk.join("work")));
        let words = ["--lower", &text(&layers.lowers()[0]), "--upper", &upper, "--work", &work, &text(&layers.mnt())];
        mount(words).is_refused(&layers, &[&text(&disk), "d_type"]);
    });
    run("umount", &[&text(&disk)]);
    attempt.expect("the attempt on an ext4 without d_type");
}

fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).status();
    let status = status.unwrap_or_else(|error| panic!("{program} cannot be started, is it installed? {error}"));
    assert!(status.success(), "{program} {args:?}: {status}");
}

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

//! Each fallback, with what it stands in for switched off.
//!
//! The daemon runs under strace(1), which answers chosen system calls with an error, as a kernel or a file system
//! would that lacks them. Then one scenario with everything that a layer can need (copies with holes, whiteouts, an
//! opaque directory, redirects, hard links, xattrs) must give the same tree, live and after a remount, and every test
//! proves by the trace that the error was met. The calls for xattrs by directory and name, which strace does not know
//! yet, are switched off in `model/sequences.rs`. The columns of docs/KERNEL-FEATURES.md say what is expected.

mod support;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, SeekFrom, renameat_with};
use support::{
    Io, Layers, LowersUnchanged, Mounted, Placement, Spec, Tree, Watchdog, on_kernel, require_root, strace_obstacle,
};

/// A system call that fails, as `strace -e inject` has it.
#[derive(Clone, Copy, Debug)]
struct Failing {
    call: &'static str,
    errno: &'static str,
    /// Only calls whose line in a trace holds this text fail, and only while the mount is made: those are the ones by
    /// which it finds out what the file system can do. None: every call fails.
    probe: Option<&'static str>,
}

const fn always(call: &'static str, errno: &'static str) -> Failing {
    Failing { call, errno, probe: None }
}

const fn probed(call: &'static str, text: &'static str, errno: &'static str) -> Failing {
    Failing { call, errno, probe: Some(text) }
}

/// What the file system under the scenario can still do.
#[derive(Clone, Copy, Debug)]
struct Able {
    /// Tell holes from zeros.
    holes: bool,
    /// What becomes of the names of a lower file when one of them is written through.
    lower_links: LowerLinks,
    /// Link at all.
    links: bool,
    /// Make pipes.
    nodes: bool,
}

/// The names of a lower file, `one` and `two`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LowerLinks {
    /// They stay one file.
    Stay,
    /// The one that is written is a file of its own from then on.
    Part,
    /// The lower has none, because its file system knows none.
    Unknown,
}

const EVERYTHING: Able = Able { holes: true, lower_links: LowerLinks::Stay, links: true, nodes: true };

const MIB: usize = 1 << 20;

/// The lowers: everything that the scenario changes.
fn fill(layers: &Layers, able: Able) {
    let (top, bottom) = (layers.lower(0), layers.lower(layers.lowers().len() - 1));
    bottom.file("f", "f").file("gone", "gone").file("moved", "moved").file("target", "target").file("small", "small");
    bottom.file_mode("suid", "suid", 0o4755).owner("suid", 1000, 1000);
    // The owner takes the bit away (chown(2)).
    fs::set_permissions(bottom.path("suid"), fs::Permissions::from_mode(0o4755)).expect("root may chmod");
    bottom.xattr("suid", "user.k", "v");
    bottom.file("d/x", "x").file("d/sub/y", "y").file("e/z", "z").file("keep/a", "a").symlink("s", "f");
    top.file("d/top", "top").dir("e");
    bottom.sparse("holes", 3 * MIB as u64);
    let holes = fs::OpenOptions::new().write(true).open(bottom.path("holes")).expect("just made");
    holes.write_all_at(&[b'h'; 5000], MIB as u64).expect("a file can be written");
    if able.lower_links != LowerLinks::Unknown {
        bottom.file("one", "one").link("one", "two");
    }
    for tree in [&top, &bottom] {
        tree.times("d", 1_000_000);
    }
    bottom.times("suid", 1_000_001).times("small", 1_000_002).times("keep", 1_000_003);
}

fn change(union: &Tree, able: Able) {
    let at = |name: &str| union.path(name);
    let holes = fs::OpenOptions::new().write(true).open(at("holes")).expect("a lower file can be opened");
    holes.write_all_at(b"w", 2 * MIB as u64).expect("a lower file can be written");
    drop(holes);
    fs::write(at("f"), "new").expect("a lower file can be overwritten");
    union.xattr("suid", "user.l", "w");
    fs::set_permissions(at("small"), fs::Permissions::from_mode(0o600)).expect("root may chmod");
    fs::remove_file(at("gone")).expect("a lower file can be removed");
    fs::remove_dir_all(at("e")).expect("a merged directory can be removed");
    fs::create_dir(at("e")).expect("a removed directory can be made again");
    union.file("e/new", "new");
    fs::rename(at("d"), at("renamed")).expect("a merged directory can be renamed");
    fs::rename(at("moved"), at("target")).expect("a lower file can be renamed over another");
    fs::rename(at("s"), at("keep/s")).expect("a lower link can be renamed");
    renameat_with(CWD, at("keep/a"), CWD, at("renamed/x"), RenameFlags::EXCHANGE)
        .expect("lower files can be exchanged");
    union.file("made/here", "here").symlink("made/link", "here");
    if able.nodes {
        union.fifo("made/fifo");
    }
    if able.links {
        union.link("made/here", "made/there");
    }
    if able.lower_links != LowerLinks::Unknown {
        assert_eq!(union.read("two"), b"one");
        let mut one = fs::OpenOptions::new().append(true).open(at("one")).expect("a lower link can be opened");
        std::io::Write::write_all(&mut one, b" more").expect("a lower link can be written");
    }
}

/// Compares the whole tree and then what is particular.
fn check(union: &Tree, able: Able) {
    let mut names = Vec::new();
    walk(union.root(), "", &mut names);
    let mut expected: Vec<String> = [
        "e/",
        "e/new",
        "f",
        "holes",
        "keep/",
        "keep/a",
        "keep/s",
        "made/",
        "made/here",
        "made/link",
        "renamed/",
        "renamed/sub/",
        "renamed/sub/y",
        "renamed/top",
        "renamed/x",
        "small",
        "suid",
        "target",
    ]
    .map(String::from)
    .to_vec();
    expected.extend(able.nodes.then(|| "made/fifo".to_owned()));
    expected.extend(able.links.then(|| "made/there".to_owned()));
    expected.extend(["one", "two"].into_iter().filter(|_| able.lower_links != LowerLinks::Unknown).map(String::from));
    expected.sort();
    assert_eq!(names, expected);
    for (name, content) in [
        ("f", "new"),
        ("e/new", "new"),
        ("renamed/top", "top"),
        ("renamed/sub/y", "y"),
        ("renamed/x", "a"),
        ("keep/a", "x"),
        ("target", "moved"),
        ("made/here", "here"),
        ("small", "small"),
        ("suid", "suid"),
    ] {
        assert_eq!(union.read(name), content.as_bytes(), "{name}");
    }
    assert_eq!(fs::read_link(union.path("keep/s")).expect("a link can be read"), Path::new("f"));
    let suid = union.stat("suid");
    assert_eq!((suid.mode() & 0o7777, suid.uid(), suid.mtime()), (0o4755, 1000, 1_000_001));
    assert_eq!(union.xattr_names("suid"), ["user.k", "user.l"]);
    assert_eq!(union.get_xattr("suid", "user.k").as_deref(), Some(&b"v"[..]));
    assert_eq!((union.mode("small"), union.stat("small").mtime()), (0o600, 1_000_002));
    check_holes(union, able);
    if able.links {
        assert_eq!(union.stat("made/here").ino(), union.stat("made/there").ino());
        assert_eq!(union.stat("made/here").nlink(), 2);
    }
    match able.lower_links {
        LowerLinks::Stay => {
            let (one, two) = (union.stat("one"), union.stat("two"));
            assert_eq!((one.ino(), one.nlink(), two.nlink()), (two.ino(), 2, 2));
            assert_eq!((union.read("one"), union.read("two")), (b"one more".to_vec(), b"one more".to_vec()));
        }
        LowerLinks::Part => {
            assert_ne!(union.stat("one").ino(), union.stat("two").ino());
            assert_eq!((union.read("one"), union.read("two")), (b"one more".to_vec(), b"one".to_vec()));
        }
        LowerLinks::Unknown => {}
    }
}

fn check_holes(union: &Tree, able: Able) {
    let content = union.read("holes");
    let mut expected = vec![0; 3 * MIB];
    expected[MIB..MIB + 5000].fill(b'h');
    expected[2 * MIB] = b'w';
    // Not assert_eq: it would print three megabytes.
    assert!(content == expected, "the contents of a copied-up file with holes are wrong");
    if able.holes {
        let blocks = union.stat("holes").blocks();
        assert!(blocks * 512 < 200_000, "holes were filled: {blocks} blocks");
        let file = fs::File::open(union.path("holes")).expect("a file can be opened");
        let data = rustix::fs::seek(&file, SeekFrom::Data(0)).expect("data can be found");
        assert_eq!(data, MIB as u64);
    }
}

/// Collects the paths of a tree, sorted, directories with a slash.
fn walk(dir: &Path, prefix: &str, names: &mut Vec<String>) {
    for entry in fs::read_dir(dir).expect("a directory can be listed") {
        let entry = entry.expect("a directory can be listed");
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type().expect("an entry has a type").is_dir() {
            names.push(format!("{path}/"));
            walk(&entry.path(), &format!("{path}/"), names);
        } else {
            names.push(path);
        }
    }
    names.sort();
}

/// Whether the file system of the test directory shares the data of files.
fn clones_data() -> bool {
    let layers = Layers::new(1, Placement::OneFs);
    let tree = layers.lower(0);
    tree.file("from", "data").file("to", "");
    let from = fs::File::open(tree.path("from")).expect("just made");
    let to = fs::OpenOptions::new().write(true).open(tree.path("to")).expect("just made");
    rustix::fs::ioctl_ficlone(&to, &from).is_ok()
}

/// Which threads of the daemon are traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Threads {
    All,
    Main,
}

/// Returns `spec` run under strace, the trace of these calls appended to the file `trace`.
///
/// strace counts the calls of each thread, so where calls are counted the main thread alone is traced, which is the
/// one that finds out what the file system can do.
fn traced(spec: &Spec, trace: &Path, threads: Threads, calls: &[&str], injections: &[String]) -> Spec {
    let mut wrapper: Vec<OsString> = ["strace", "-A", "-o"].map(OsString::from).to_vec();
    wrapper.push(trace.into());
    if threads == Threads::All {
        wrapper.extend(["-f", "--seccomp-bpf"].map(OsString::from));
    }
    wrapper.extend(["-e".into(), format!("trace={}", calls.join(",")).into()]);
    for injection in injections {
        wrapper.extend(["-e".into(), format!("inject={injection}").into()]);
    }
    Spec { wrapper, ..spec.clone() }
}

/// Finds out which of the main thread's calls are those that `failing` means, by a mount without failures.
fn count_calls(spec: &Spec, trace: &Path, failing: &Failing, text: &str) -> Vec<usize> {
    let traced = traced(spec, trace, Threads::Main, &[failing.call], &[]);
    let mut mount = traced.mount_ours();
    // Answered only once the handshake is over.
    mount.tree().names("");
    mount.unmount().expect("the union can be unmounted");
    let log = fs::read_to_string(trace).expect("strace has written its trace");
    fs::remove_file(trace).expect("the trace is the test's own");
    let calls = log.lines().filter(|line| line.starts_with(&format!("{}(", failing.call)));
    let wanted: Vec<usize> = calls.zip(1..).filter(|(line, _)| line.contains(text)).map(|(_, number)| number).collect();
    assert!(!wanted.is_empty(), "a mount makes no {} with {text}, so there is no fallback to test", failing.call);
    wanted
}

/// Plays the scenario without what `failings` stand for.
fn holds_without(failings: &[Failing], able: Able) {
    holds_on(failings, able, Placement::OneFs);
}

fn holds_on(failings: &[Failing], able: Able, placement: Placement) {
    if !require_root("tracing the daemon, and lowers with other owners") {
        return;
    }
    if on_kernel() {
        skip!("the kernel's overlayfs cannot be traced");
    }
    if let Some(reason) = strace_obstacle() {
        skip!("{reason}");
    }
    let cloned = failings.iter().all(|failing| failing.call != "ioctl") && placement == Placement::OneFs;
    if cloned && failings.iter().any(|failing| failing.call == "copy_file_range") && clones_data() {
        skip!("the test directory is on a file system that clones data (FICLONE), so that nothing is copied");
    }
    let _watchdog = Watchdog::start();
    // The bottom one has an even number, and so with `TwoFs` a file system of its own.
    let layers = Layers::new(3, placement);
    fill(&layers, able);
    // So that each mount makes the calls that the one before it made.
    layers.work().dir("work");
    let unchanged = LowersUnchanged::new(layers.lowers());
    let (spec, trace) = (layers.spec(Io::Cached), layers.path("trace"));
    let mut injections = Vec::new();
    for failing in failings {
        match failing.probe {
            None => injections.push(format!("{}:error={}", failing.call, failing.errno)),
            Some(text) => {
                for number in count_calls(&spec, &trace, failing, text) {
                    injections.push(format!("{}:error={}:when={number}", failing.call, failing.errno));
                }
            }
        }
    }
    let calls: Vec<&str> = failings.iter().map(|failing| failing.call).collect();
    let threads = if failings.iter().any(|failing| failing.probe.is_some()) { Threads::Main } else { Threads::All };
    let mut mount = match failings {
        [] => spec.mount_ours(),
        _ => traced(&spec, &trace, threads, &calls, &injections).mount_ours(),
    };
    let union = mount.tree();
    change(&union, able);
    check(&union, able);
    mount.remount();
    check(&union, able);
    mount.unmount().expect("the union can be unmounted");
    if !failings.is_empty() {
        check_injected(&trace, failings);
    }
    unchanged.check();
    assert_eq!(layers.work().names("work"), [""; 0], "something is left in the workdir");
    // Without strace, so with everything: what the fallbacks wrote must be read the same.
    let mount = spec.mount_ours();
    check(&mount.tree(), able);
}

/// Checks that each call failed at least once: else the test would prove nothing.
fn check_injected(trace: &PathBuf, failings: &[Failing]) {
    let log = fs::read_to_string(trace).expect("strace has written its trace");
    for Failing { call, probe, .. } in failings {
        let failed = log.lines().filter(|line| line.contains("(INJECTED)") && line.contains(call));
        let failed = failed.filter(|line| probe.is_none_or(|text| line.contains(text)));
        assert!(failed.count() > 0, "no {call} failed, so nothing was tested");
    }
}

#[test]
fn the_scenario_holds_with_everything() {
    holds_without(&[], EVERYTHING);
}

#[test]
fn without_private_clones_of_the_layers() {
    holds_without(&[always("open_tree", "EPERM")], EVERYTHING);
}

#[test]
fn without_private_clones_and_openat2() {
    holds_without(&[always("open_tree", "ENOSYS"), always("openat2", "ENOSYS")], EVERYTHING);
}

#[test]
fn without_private_clones_and_openat2_which_a_filter_forbids() {
    holds_without(&[always("open_tree", "EPERM"), always("openat2", "EPERM")], EVERYTHING);
}

#[test]
fn without_read_only_clones() {
    holds_without(&[always("mount_setattr", "ENOSYS")], EVERYTHING);
}

#[test]
fn without_nameless_files() {
    holds_without(&[probed("openat", "O_TMPFILE", "EOPNOTSUPP")], EVERYTHING);
}

#[test]
fn without_renames_that_leave_a_whiteout() {
    holds_without(&[probed("renameat2", "RENAME_WHITEOUT", "EINVAL")], EVERYTHING);
}

#[test]
fn without_nameless_files_and_renames_that_leave_a_whiteout() {
    let failings = [probed("openat", "O_TMPFILE", "EOPNOTSUPP"), probed("renameat2", "RENAME_WHITEOUT", "EINVAL")];
    holds_without(&failings, EVERYTHING);
}

#[test]
fn without_copy_file_range_between_file_systems() {
    holds_on(&[always("copy_file_range", "EXDEV")], EVERYTHING, Placement::TwoFs);
}

#[test]
fn without_copy_file_range() {
    holds_without(&[always("copy_file_range", "ENOSYS")], EVERYTHING);
}

#[test]
fn without_seeking_for_holes() {
    holds_without(&[always("lseek", "EINVAL")], Able { holes: false, ..EVERYTHING });
}

#[test]
fn without_seeking_for_holes_and_copy_file_range() {
    let failings = [always("lseek", "EINVAL"), always("copy_file_range", "EOPNOTSUPP")];
    holds_without(&failings, Able { holes: false, ..EVERYTHING });
}

#[test]
fn without_file_handles() {
    holds_without(&[always("name_to_handle_at", "EOPNOTSUPP")], Able { lower_links: LowerLinks::Part, ..EVERYTHING });
}

#[test]
fn without_clones_of_data_and_the_uuid_of_the_file_system() {
    // Both are ioctls, and so is what gives a FUSE session more than one descriptor.
    holds_without(&[always("ioctl", "ENOTTY")], EVERYTHING);
}

#[test]
fn without_locks_on_files() {
    holds_without(&[always("flock", "EOPNOTSUPP")], EVERYTHING);
}

#[test]
fn without_whiteout_devices() {
    holds_without(&[always("mknodat", "EPERM")], Able { nodes: false, ..EVERYTHING });
}

#[test]
fn without_hard_links() {
    let able = Able { lower_links: LowerLinks::Unknown, links: false, ..EVERYTHING };
    holds_without(&[always("linkat", "EPERM")], able);
}

/// Copies up a file with data, an empty one and a directory that has them, and returns how often fsync(2) was called.
fn fsyncs(args: &[&str]) -> usize {
    let _watchdog = Watchdog::start();
    let layers = Layers::new(1, Placement::OneFs);
    layers.lower(0).file("d/data", "data").file("d/empty", "");
    let unchanged = LowersUnchanged::new(layers.lowers());
    let trace = layers.path("trace");
    let spec = layers.spec(Io::Cached).args(args.iter().copied());
    let mut union = traced(&spec, &trace, Threads::All, &["fsync"], &[]).mount_ours();
    for name in ["d/data", "d/empty"] {
        let changed = fs::set_permissions(union.tree().path(name), fs::Permissions::from_mode(0o600));
        changed.expect("root may chmod");
    }
    union.unmount().expect("the union can be unmounted");
    unchanged.check();
    assert_eq!(layers.upper().mode("d/data"), 0o600);
    let trace = fs::read_to_string(&trace).expect("strace has written its trace");
    trace.lines().filter(|line| line.contains("fsync(")).count()
}

#[test]
fn strictly_every_file_and_directory_that_is_copied_up_is_synced() {
    if on_kernel() || !require_root("strace of a daemon that mounts") {
        return;
    }
    if let Some(reason) = strace_obstacle() {
        skip!("{reason}");
    }
    assert_eq!(fsyncs(&["--fsync", "strict"]), 3, "the directory and both files");
    assert_eq!(fsyncs(&["--fsync", "strict", "--metacopy", "on"]), 3);
    assert_eq!(fsyncs(&["--fsync", "0"]), 0);
    assert!(fsyncs(&[]) <= 1, "the file with data, where the file system does not keep the order");
}

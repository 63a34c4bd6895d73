//! The example of a runtime, run as root and as a plain user: its whole output, and what is left of it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::{Home, LowersUnchanged, Tree, Watchdog, Who, record_skip, require_root, test_name};

const USER: u32 = 1000;

/// What the command in the union does: a change of every kind.
const SCRIPT: &str = "
    id -u; cat /keep/x
    echo more >>/keep/x
    rm -r /d; mkdir /d; echo new >/d/new
    rm -r /gone; rm /file; mkdir /file; echo in >/file/in
    mkdir -p /new/sub; echo file >/new/sub/file; ln -s sub /new/link
    mv /moved /elsewhere; echo more >>/elsewhere/z
    echo over >/hidden/over; rm /hidden/over
    chmod 700 /mode
    echo a >/made; rm /made
    exit 3
";

const OUTPUT: &str = "0
x
C /d
D /d/a
A /d/new
D /d/sub
A /elsewhere
A /elsewhere/below
A /elsewhere/z
C /file
A /file/in
D /gone
C /hidden
D /hidden/over
C /keep
C /keep/x
C /mode
D /moved
A /new
A /new/link
A /new/sub
A /new/sub/file
";

/// Returns the example, built as this test was: a run of this test alone has not built it.
fn example() -> PathBuf {
    let test = std::env::current_exe().expect("/proc is mounted");
    let profile = test.ancestors().nth(2).expect("a test is in target/PROFILE/deps");
    let name = profile.file_name().expect("a profile has a name").to_str().expect("and a plain one");
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--locked", "--example", "embed"]);
    build.args(["--profile", if name == "debug" { "dev" } else { name }]).arg("--target-dir");
    let built = build.arg(profile.parent().expect("target")).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let built = built.expect("cargo has built this test");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    profile.join("examples/embed")
}

/// Copies a program and the libraries that it needs to the same place below `root`.
fn install(root: &Tree, program: &str) {
    let found =
        Command::new("sh").args(["-c", &format!("command -v {program}")]).output().expect("every system has sh");
    let program = String::from_utf8(found.stdout).expect("its path is text").trim().to_owned();
    let libraries = Command::new("ldd").arg(&program).output().expect("ldd comes with the C library");
    let libraries = String::from_utf8(libraries.stdout).expect("paths of libraries are text");
    let words = libraries.split_whitespace().filter(|word| word.starts_with('/'));
    for path in words.chain([program.as_str()]) {
        let copy = root.path(path.trim_start_matches('/'));
        fs::create_dir_all(copy.parent().expect("it is below the root")).expect("an own directory");
        fs::copy(path, &copy).unwrap_or_else(|error| panic!("{path}: {error}"));
    }
}

/// Lays two layers and an upper.
fn lay(tree: &Tree) {
    for name in ["base", "top", "upper", "tmp"] {
        tree.dir(name);
    }
    for name in ["hidden", "gone", "mode", "keep", "moved/below"] {
        fs::create_dir_all(tree.path("base").join(name)).expect("an own directory");
    }
    tree.file("base/file", "f").file("base/hidden/over", "h").file("base/gone/y", "y").file("base/same", "s");
    tree.file("base/keep/x", "below").file("base/moved/z", "z").dir("base/d").file("base/d/a", "a").dir("base/d/sub");
    tree.file("base/d/sub/b", "b").dir("top/keep").file("top/keep/x", "x\n").dir("top/moved").dir("top/dev");
    let base = Tree::at(tree.path("base"));
    for program in ["sh", "id", "cat", "rm", "mkdir", "mv", "chmod", "ln"] {
        install(&base, program);
    }
}

fn own(path: &Path) {
    lchown(path, Some(USER), Some(USER)).expect("root may chown");
    if path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
        for entry in fs::read_dir(path).expect("an own directory") {
            own(&entry.expect("an own directory").path());
        }
    }
}

/// Runs the example by `words`, which may be those of another user, and checks everything.
fn runs(home: &Home, words: &[OsString]) {
    let lowers = LowersUnchanged::new(&[home.path().join("base"), home.path().join("top")]);
    let script = format!("export PATH={}; {SCRIPT}", std::env::var("PATH").expect("a path"));
    let arguments = ["./embed", "--lower", "top:base", "--upper", "upper", "--", "sh", "-euc", &script];
    // The example itself is the first word, where nothing comes before it.
    let words = words.iter().map(OsString::as_os_str).chain(arguments.map(OsStr::new)).collect::<Vec<_>>();
    let Output { status, stdout, stderr } = Command::new(words[0])
        .args(&words[1..])
        .current_dir(home.path())
        .env("TMPDIR", home.path().join("tmp"))
        .output()
        .expect("unshare and setpriv (package util-linux) are installed");
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert_eq!((status.code(), &*stdout), (Some(3), OUTPUT), "{stderr}");
    check_statistics(&stderr);
    lowers.check();
    let upper = Tree::at(home.path().join("upper"));
    assert_eq!(upper.read("keep/x"), b"x\nmore\n");
    let tree = Tree::at(home.path());
    assert_eq!(tree.names("tmp"), [""; 0], "the mountpoint is left");
    assert_eq!(tree.names(".upper.work/work"), [""; 0], "something is left in the workdir");
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
    assert!(!mounts.contains(&home.path().display().to_string()), "a mount is left");
}

/// Two lines and nothing else, whatever the figures are.
fn check_statistics(said: &str) {
    let lines: Vec<&str> = said.lines().collect();
    let [copied, requests] = lines[..] else { panic!("not two lines: {said}") };
    let words: Vec<&str> = copied.split(' ').map(|word| if word.parse::<u64>().is_ok() { "N" } else { word }).collect();
    assert_eq!(words.join(" "), "copied up: N objects, N bytes");
    let requests = requests.strip_prefix("requests: ").unwrap_or_else(|| panic!("{said}"));
    let counted = |entry: &str| entry.split_once(' ').is_some_and(|(_, count)| count.parse().is_ok_and(|n: u64| n > 0));
    assert!(requests.split(", ").all(counted), "{requests}");
    // Neither reads nor writes, which the kernel does by itself where it can.
    for operation in ["lookup", "mkdir", "rename", "rmdir", "symlink", "unlink"] {
        assert!(requests.split(", ").any(|entry| entry.starts_with(&format!("{operation} "))), "{requests}");
    }
}

fn home() -> Home {
    let home = Home::new();
    home.take(&example(), "embed");
    lay(&Tree::at(home.path()));
    home
}

#[test]
fn the_example_runs_a_command_for_root_and_tells_its_changes() {
    if !require_root("mounting as root") {
        return;
    }
    if let Some(reason) = Home::obstacle(Who::NamespaceRoot) {
        return record_skip(&test_name(), &reason);
    }
    let _watchdog = Watchdog::start();
    runs(&home(), &[]);
}

#[test]
fn the_example_runs_a_command_for_a_plain_user_and_tells_its_changes() {
    if !require_root("becoming another user") {
        return;
    }
    if let Some(reason) = Home::obstacle(Who::NamespaceRoot) {
        return record_skip(&test_name(), &reason);
    }
    let _watchdog = Watchdog::start();
    let home = home();
    own(home.path());
    runs(&home, &home.wrapper(Who::PlainUser));
}

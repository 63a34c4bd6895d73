//! The attempt to mount what cannot be mounted.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;

use crate::support::{
    Layers, LowersUnchanged, Placement, Privilege, binary, on_kernel, privilege, record_skip, test_name,
};

/// Far longer than a refusal takes.
const DEADLINE: Duration = Duration::from_secs(30);
/// A user who is not root.
pub const USER: u32 = 1000;

/// The command `mount` with its arguments, about to be refused.
pub struct Attempt {
    /// What runs the binary: nothing, or a command that execs what follows it.
    pub wrapper: Vec<OsString>,
    binary: PathBuf,
    args: Vec<OsString>,
}

/// The attempt to mount with these arguments.
pub fn mount<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Attempt {
    let args = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
    Attempt { wrapper: Vec::new(), binary: binary(), args }
}

/// The attempt to mount `lower` under the layers' upper.
pub fn mount_over(layers: &Layers, lower: &Path) -> Attempt {
    let (upper, work, at) = (layers.path("upper"), layers.path("work"), layers.mnt());
    mount([OsStr::new("--lower"), lower.as_os_str(), OsStr::new("--upper"), upper.as_os_str()]).and([
        OsStr::new("--work"),
        work.as_os_str(),
        at.as_os_str(),
    ])
}

impl Attempt {
    /// Adds arguments.
    pub fn and<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Lets `wrapper` run the binary, by exec of what follows it.
    pub fn through<A: AsRef<OsStr>>(mut self, wrapper: impl IntoIterator<Item = A>) -> Self {
        self.wrapper = wrapper.into_iter().map(|arg| arg.as_ref().to_owned()).chain(self.wrapper).collect();
        self
    }

    /// Lets a plain user make the attempt; as root with a copy of the binary that they can reach.
    pub fn by_a_user(mut self, layers: &Layers) -> Self {
        if privilege() == Privilege::Plain {
            return self;
        }
        let copy = layers.path("unionfs-rs");
        fs::copy(&self.binary, &copy).expect("the binary can be copied");
        self.binary = copy;
        self.through(["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"])
    }

    /// Makes the attempt; returns how it ended and, where it failed, what it said.
    pub fn run(&self) -> (ExitStatus, String) {
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
    pub fn is_refused(&self, layers: &Layers, words: &[&str]) -> String {
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

    /// As [`Attempt::is_refused`], for a directory that must be opened to be looked at.
    pub fn is_refused_when(&self, layers: &Layers, words: &[&str], open: impl Fn(), close: impl Fn()) {
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

/// Returns the lines of mountinfo for mounts below `root`.
pub fn mounts_below(root: &Path) -> Vec<String> {
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

/// One lower layer, an upper and a workdir, that nothing is wrong with.
pub fn layers() -> Layers {
    let layers = Layers::new(1, Placement::OneFs);
    layers.lower(0).file("f", "lower").dir("sub");
    layers
}

/// Returns a path as text.
pub fn text(path: &Path) -> String {
    path.to_str().expect("the test's paths are text").to_owned()
}

/// Whether refusals can be tested here: they are ours alone.
pub fn is_ours() -> bool {
    if on_kernel() {
        record_skip(&test_name(), "not the kernel's: messages and exit codes");
    }
    !on_kernel()
}

/// Gives the user everything in the test's directory.
pub fn give_to_user(layers: &Layers) {
    if privilege() == Privilege::Root {
        for name in ["lower0", "upper", "work", "mnt", ""] {
            chown(layers.path(name), Some(USER), Some(USER)).expect("root may chown");
        }
    }
}

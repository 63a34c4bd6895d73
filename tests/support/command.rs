//! Commands that are run to their end with a deadline, and what is mounted and running because of them.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};

use super::binary;
use super::mount::fuse_connections;

/// Far longer than any command here takes.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// What a finished command printed and exited with.
#[derive(Debug)]
pub struct Ran {
    /// The exit code, where no signal ended it.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub out: String,
    /// What it wrote to standard error.
    pub err: String,
}

/// Runs a command to its end, and to the end of both of its streams.
pub fn finish(command: &mut Command) -> Ran {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let out = read_all(child.stdout.take().expect("it is piped"));
    let err = read_all(child.stderr.take().expect("it is piped"));
    let code = wait(&mut child).code();
    // A daemon that keeps a stream of the command that started it is found here.
    let text = |stream: mpsc::Receiver<String>| {
        stream.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("{command:?}: a stream is still open after the exit"))
    };
    Ran { code, out: text(out), err: text(err) }
}

/// Reads a stream to its end on a thread of its own.
pub fn read_all(mut stream: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (done, read) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("a pipe can be read");
        let _ = done.send(String::from_utf8_lossy(&bytes).into_owned()); // The test may have given up waiting.
    });
    read
}

/// Waits for a child to end, and kills it at the deadline.
pub fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(status) = child.try_wait().expect("it is our child") {
            return status;
        }
        if Instant::now() > deadline {
            child.kill().expect("it is our child");
            panic!("process {} does not end", child.id());
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Runs our binary to its end.
pub fn unionfs<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Ran {
    finish(Command::new(binary()).args(args))
}

/// Polls until `holds`, at most until the deadline.
pub fn eventually(fact: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {fact}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Returns the type and the device's minor number of what is mounted on `at`.
pub fn mounted(at: &Path) -> Option<(String, u32)> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    table.lines().rev().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let kind = fields.iter().position(|field| *field == "-")? + 1;
        let minor = fields[2].split_once(':')?.1.parse().ok()?;
        (Path::new(fields[4]) == at).then(|| (fields[kind].to_owned(), minor))
    })
}

/// Returns the processes that have `word` as an argument and are not zombies.
pub fn processes_with(word: &Path) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        // A zombie has no arguments left.
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|&byte| byte == 0).any(|argument| argument == word.as_os_str().as_encoded_bytes())
    })
    .filter_map(Pid::from_raw)
    .collect()
}

/// Takes down what a failed test has left on its mount point.
pub struct Cleared(pub PathBuf);

impl Drop for Cleared {
    fn drop(&mut self) {
        if let Some((_, minor)) = mounted(&self.0) {
            let abort = fuse_connections().join(minor.to_string()).join("abort");
            let _ = fs::write(abort, "1"); // Only root may; killing the server below aborts as well.
            let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH); // As above.
        }
        for pid in processes_with(&self.0) {
            let _ = kill_process(pid, Signal::KILL); // It may just have ended.
        }
    }
}

/// Says why nothing can be mounted here, where it cannot.
pub fn no_mounts() -> Option<String> {
    let doctor = unionfs(["doctor"]);
    (doctor.code != Some(0)).then(|| format!("no FUSE mounts here:\n{}", doctor.out))
}

/// Runs a program that succeeds.
pub fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).status();
    let status = status.unwrap_or_else(|error| panic!("{program} cannot be started, is it installed? {error}"));
    assert!(status.success(), "{program} {args:?}: {status}");
}

/// Says why strace cannot be used here, where it cannot.
pub fn strace_obstacle() -> Option<String> {
    let traced = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).stderr(Stdio::null()).status();
    match traced {
        Ok(status) if status.success() => None,
        Ok(status) => Some(format!("strace cannot trace here ({status}): needs ptrace(2)")),
        Err(error) => Some(format!("strace cannot be started ({error}): install the package strace")),
    }
}

/// Returns the number that a variable of the environment says, which steers how long a test is.
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|error| panic!("{name}={value}: {error}")))
}

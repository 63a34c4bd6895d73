//! This test once more, as a process of its own under strace(1), which records its system calls and can have one of them
//! kill it or fail.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use super::test_name;

/// A name that is looked at, only for that to be seen in the trace: what is of interest comes after.
const BEGIN: &str = "what is of interest begins";
const END: &str = "what is of interest ends";

/// Runs what is of interest, where `dir` is looked at by the process that is traced.
pub fn marked<T>(dir: &Path, act: impl FnOnce() -> T) -> T {
    let look = |name| drop(fs::symlink_metadata(dir.join(name))); // It is not there.
    look(BEGIN);
    let done = act();
    look(END);
    done
}

/// How the test is run again.
pub struct Again<'a> {
    /// A variable of the environment that tells the process that it is that, and its value.
    pub told: (&'a str, &'a OsStr),
    /// Which calls are recorded, as `strace -e trace` has it; statx(2) is among them, for the marks.
    pub calls: &'a str,
    /// Where the trace goes.
    pub trace: &'a Path,
}

impl Again<'_> {
    /// Runs it, with `injection` if any, as `strace -e inject` has it; returns how it ended and its trace.
    pub fn run(&self, injection: Option<&str>) -> (ExitStatus, String) {
        let mut command = Command::new("strace");
        // Not with --seccomp-bpf, under which strace 6.1 injects no signal.
        command.args(["-f", "-e", &format!("trace={}", self.calls), "-o"]).arg(self.trace);
        if let Some(injection) = injection {
            command.args(["-e", &format!("inject={injection}")]);
        }
        command.arg(std::env::current_exe().expect("a test knows its binary")).args([&test_name(), "--exact"]);
        command.env(self.told.0, self.told.1);
        let done = command.stdin(Stdio::null()).stdout(Stdio::null()).output().expect("strace can be started");
        let trace = fs::read_to_string(self.trace).unwrap_or_else(|error| {
            panic!(
                "{command:?} has written no trace: {error}, {}: {}",
                done.status,
                String::from_utf8_lossy(&done.stderr)
            )
        });
        (done.status, trace)
    }
}

/// A system call that was recorded.
pub struct Call {
    pub name: String,
    /// Its number among the calls of this name of its thread, which is how strace counts.
    pub number: usize,
    pub arguments: String,
}

impl Call {
    /// Whether strace knows it, and so can have it fail.
    pub fn is_known(&self) -> bool {
        !self.name.starts_with("syscall_")
    }

    /// Whether it does more than open what is there.
    pub fn makes(&self) -> bool {
        self.name != "openat" || self.arguments.contains("O_CREAT") || self.arguments.contains("O_TMPFILE")
    }
}

/// Returns the calls between the two marks, without those that make the marks.
pub fn calls(trace: &str) -> Vec<Call> {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut within = false;
    let mut calls = Vec::new();
    for line in trace.lines() {
        let Some((thread, call)) = line.split_once(' ') else { continue };
        let Some((name, arguments)) = call.trim_start().split_once('(') else { continue };
        let number = counts.entry((thread, name)).or_default();
        *number += 1;
        if arguments.contains(BEGIN) {
            within = true;
        } else if arguments.contains(END) {
            within = false;
        } else if within {
            calls.push(Call { name: name.to_owned(), number: *number, arguments: arguments.to_owned() });
        }
    }
    calls
}

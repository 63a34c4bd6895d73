//! The two halves of the matrix.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use unionfs_rs::fsck::Fsck;
use unionfs_rs::union::Union;

use super::cases::{CASES, Case, config, fill};
use super::look::{View, aged, difference, is, view};
use super::subject::Subject;
use crate::support::traced::{self, Again, Call};
use crate::support::{
    Layers, LowersUnchanged, Tree, Watchdog, on_kernel, record_skip, require_root, strace_obstacle, test_name,
};

/// Holds the number of the case and the directory of its layers, for the process that is traced.
const CHILD: &str = "UNIONFS_TEST_POINT";

/// Calls that the operation does not depend on, or that fail for no other reason than a bad argument: of the memory and
/// the threads of the process, and close(2), which closes whatever it answers.
const NOT_FAILED: [&str; 18] = [
    "brk",
    "mmap",
    "munmap",
    "mprotect",
    "mremap",
    "madvise",
    "futex",
    "clock_gettime",
    "getrandom",
    "sched_yield",
    "rt_sigprocmask",
    "rt_sigaction",
    "sigaltstack",
    "gettid",
    "getpid",
    "prctl",
    "close",
    "exit_group",
];

/// What a failing disk, a full one, lack of memory, a signal, lack of descriptors and a quota answer.
const ERRNOS: [&str; 6] = ["EIO", "ENOSPC", "ENOMEM", "EINTR", "EMFILE", "EDQUOT"];

/// The calls that change something.
pub fn changes(call: &Call) -> bool {
    const CHANGES: [&str; 27] = [
        "openat",
        "openat2",
        "mkdirat",
        "mknodat",
        "symlinkat",
        "linkat",
        "unlinkat",
        "renameat",
        "renameat2",
        "setxattr",
        "lsetxattr",
        "fsetxattr",
        "removexattr",
        "lremovexattr",
        "fremovexattr",
        "fchmodat",
        "fchmod",
        "chmod",
        "fchownat",
        "utimensat",
        "pwrite64",
        "ftruncate",
        "copy_file_range",
        "fsync",
        "fdatasync",
        "sync_file_range",
        "ioctl",
    ];
    CHANGES.contains(&call.name.as_str()) && call.makes()
}

/// What has become of an operation, as the process that did it saw it.
struct Outcome {
    /// The error, if it had one.
    error: Option<String>,
    /// What the union showed then.
    live: Result<View, String>,
    /// What is left in the workdir after its end.
    left: String,
    /// Descriptors that were there after the end of the union and not before its beginning.
    leaked: i64,
}

impl Outcome {
    const SECTION: &str = "---";

    fn write(&self, to: &Path) {
        let error = self.error.as_deref().unwrap_or_default().replace('\n', " ");
        let (fine, live) = match &self.live {
            Ok(view) => ("yes", view.join("\n")),
            Err(error) => ("no", error.clone()),
        };
        let text = [&error, &self.leaked.to_string(), &self.left, fine, &*live].join(Self::SECTION);
        fs::write(to, text).expect("the test directory can be written");
    }

    fn read(from: &Path) -> Option<Self> {
        let text = fs::read_to_string(from).ok()?;
        let mut parts = text.splitn(5, Self::SECTION);
        let error = Some(parts.next()?.to_owned()).filter(|error| !error.is_empty());
        let (leaked, left) = (parts.next()?.parse().ok()?, parts.next()?.to_owned());
        let fine = parts.next()? == "yes";
        let live = parts.next()?;
        let live = if fine { Ok(live.lines().map(str::to_owned).collect()) } else { Err(live.to_owned()) };
        Some(Self { error, live, left, leaked })
    }
}

fn descriptors() -> i64 {
    fs::read_dir("/proc/self/fd").expect("proc is mounted").count() as i64
}

/// Does the operation, where this is the process that is traced; returns whether it is.
pub fn is_traced() -> bool {
    let told = std::env::var(CHILD);
    if let Ok(told) = &told {
        act(told);
    }
    told.is_ok()
}

/// Does the operation, as the process that is traced, and writes down what has become of it.
fn act(told: &str) {
    let (number, root) = told.split_once(' ').expect("the test has set the variable");
    let case = &CASES[number.parse::<usize>().expect("the test has set the variable")];
    let at = |name: &str| Path::new(root).join(name);
    // strace does not know the newer calls.
    unionfs_rs::sys::xattr::forget_at_calls();
    unionfs_rs::sys::mode::forget_call();
    let before = descriptors();
    let union = Union::from_config(&config(case, at)).unwrap_or_else(|error| panic!("{error}"));
    let done = traced::marked(Path::new("/"), || (case.act)(Subject::Union(&union)));
    let live = view(&union);
    union.end().expect("a union can be ended");
    drop(union);
    let left = names(&at("work/work"));
    let leaked = descriptors() - before;
    Outcome { error: done.err(), live, left, leaked }.write(&at("outcome"));
}

/// Lists a directory.
fn names(dir: &Path) -> String {
    Tree::at(dir).names("").join(" ")
}

fn open(case: &Case, layers: &Layers) -> Union {
    Union::from_config(&config(case, |name| layers.path(name))).unwrap_or_else(|error| panic!("{}: {error}", case.name))
}

/// Makes the layers as they are before the operation.
pub fn set(case: &Case) -> Layers {
    let layers = fill();
    let union = open(case, &layers);
    (case.before)(Subject::Union(&union)).unwrap_or_else(|error| panic!("{}: before: {error}", case.name));
    union.end().expect("a union can be ended");
    layers
}

/// Mounts anew and looks, and does the operation (once more), if that is wanted; the workdir is empty after that. What
/// fsck finds is a part of what is seen.
fn look(case: &Case, layers: &Layers, act: bool) -> Result<View, String> {
    let union = open(case, layers);
    if act {
        (case.act)(Subject::Union(&union)).map_err(|error| format!("it cannot be done any more: {error}"))?;
    }
    let seen = view(&union);
    union.end().map_err(|error| format!("the union cannot be ended: {error}"))?;
    drop(union);
    let left = names(&layers.path("work/work"));
    if !left.is_empty() {
        return Err(format!("left in the workdir after the next mount: {left}"));
    }
    let mut seen = seen?;
    let fsck = Fsck::open(&config(case, |name| layers.path(name))).map_err(|error| format!("fsck: {error}"))?;
    // What an operation leaves by itself, such as a whiteout that was asked for, is there in what comes after it, too.
    let checked = fsck.check(&mut |finding| seen.push(format!("fsck: {finding}")));
    checked.map_err(|error| format!("fsck: {error}"))?;
    Ok(seen)
}

/// Returns what the union itself shows of what [`look`] has seen.
fn shown(seen: &View) -> View {
    seen.iter().filter(|line| !line.starts_with("fsck: ")).cloned().collect()
}

/// An operation, and the union before and after it.
pub struct Point {
    number: usize,
    before: View,
    after: View,
    calls: Vec<Call>,
}

impl Point {
    pub fn new(number: usize) -> Self {
        let case = &CASES[number];
        let layers = set(case);
        let before = look(case, &layers, false).unwrap_or_else(|error| panic!("{}: {error}", case.name));
        let (status, trace) = run(number, &layers, None);
        let outcome = Outcome::read(&layers.path("outcome"));
        assert!(status.success(), "{}: {status}", case.name);
        let outcome = outcome.unwrap_or_else(|| panic!("{}: nothing is known of it", case.name));
        assert_eq!(outcome.error, None, "{}", case.name);
        assert_eq!((outcome.leaked, &*outcome.left), (0, ""), "{}", case.name);
        let after = look(case, &layers, false).unwrap_or_else(|error| panic!("{}: {error}", case.name));
        assert_ne!(before, after, "{} changes nothing", case.name);
        let live = outcome.live.unwrap_or_else(|error| panic!("{}: {error}", case.name));
        let shown = shown(&after);
        assert!(is(&live, &shown), "{}: live and after\n{}", case.name, difference(&live, &shown));
        Self { number, before, after, calls: traced::calls(&trace) }
    }

    pub fn case(&self) -> &'static Case {
        &CASES[self.number]
    }

    /// Checks that `now` is one of the two; returns whether it is the union before. What does not show, such as a
    /// copy-up, may have happened.
    fn is_old(&self, now: &View) -> Result<bool, String> {
        // The data of a metacopy is brought in place, by which it gets the time of that, until the old one is put back.
        let aged = if self.case().metacopy { aged(now) } else { now.clone() };
        match (is(now, &self.before) || is(&aged, &self.before), is(now, &self.after)) {
            (true, _) => Ok(true),
            (false, true) => Ok(false),
            (false, false) => {
                let (old, new) = (difference(now, &self.before), difference(now, &self.after));
                Err(format!("neither old nor new\n  against old:\n{old}  against new:\n{new}"))
            }
        }
    }

    /// Does the operation with `injection`, which is to end it.
    fn kill(&self, injection: &str) -> Result<(), String> {
        let layers = set(self.case());
        let lowers = LowersUnchanged::new(layers.lowers());
        let (status, _) = run(self.number, &layers, Some(injection));
        assert!(!status.success(), "{injection} has not killed it");
        self.check_next(&layers)?;
        lowers.check();
        Ok(())
    }

    /// Checks the next union on `layers`, on which the operation was done, or not; where it was not, it can be.
    pub fn check_next(&self, layers: &Layers) -> Result<(), String> {
        let now = look(self.case(), layers, false)?;
        if self.is_old(&now)? {
            let again = look(self.case(), layers, true)?;
            if self.is_old(&again).map_err(|wrong| format!("done once more: {wrong}"))? {
                return Err("done once more it changes nothing".to_owned());
            }
        }
        Ok(())
    }

    /// Does the operation with `injection`, by which a call of it fails.
    fn fail(&self, injection: &str) -> Result<(), String> {
        let layers = set(self.case());
        let lowers = LowersUnchanged::new(layers.lowers());
        let (status, _) = run(self.number, &layers, Some(injection));
        let outcome = Outcome::read(&layers.path("outcome"));
        let outcome = outcome.ok_or_else(|| format!("the process ended with {status}"))?;
        let wanted = if outcome.error.is_some() { &self.before } else { &self.after };
        let shown = shown(wanted);
        let said = outcome.error.as_deref().unwrap_or("success");
        let right = |which: &str, now: &View, wanted: &View| {
            if is(now, wanted) {
                return Ok(());
            }
            Err(format!("{said}, and {which} is another\n{}", difference(now, wanted)))
        };
        right("the union", &outcome.live.map_err(|error| format!("{said}, and then {error}"))?, &shown)?;
        right("the next union", &look(self.case(), &layers, false)?, wanted)?;
        if outcome.leaked != 0 {
            return Err(format!("{said}, and {} descriptors are lost", outcome.leaked));
        }
        if !outcome.left.is_empty() {
            return Err(format!("{said}, and left in the workdir: {}", outcome.left));
        }
        lowers.check();
        Ok(())
    }
}

/// Does the operation in a process of its own, with `injection` if any.
fn run(number: usize, layers: &Layers, injection: Option<&str>) -> (ExitStatus, String) {
    let told = format!("{number} {}", layers.path("").display());
    let trace: PathBuf = layers.path("trace");
    Again { told: (CHILD, told.as_ref()), calls: "all", trace: &trace }.run(injection)
}

/// Whether the matrix can be gone through here; says why not.
pub fn possible() -> bool {
    let obstacle =
        if on_kernel() { Some("the kernel's overlayfs cannot be killed".to_owned()) } else { strace_obstacle() };
    if let Some(reason) = &obstacle {
        record_skip(&test_name(), reason);
    }
    obstacle.is_none() && require_root("lowers with devices, and tracing")
}

/// Which points are tried.
pub struct Share {
    pub all: bool,
    met: usize,
}

impl Share {
    pub fn new() -> Self {
        Self { all: std::env::var_os("UNIONFS_POINTS").is_some_and(|points| points == "all"), met: 0 }
    }

    /// Whether the next point is tried.
    fn takes(&mut self) -> bool {
        self.met += 1;
        self.all || self.met.is_multiple_of(8)
    }
}

/// Returns the numbers of the operations that are tried.
pub fn chosen() -> impl Iterator<Item = usize> {
    let part = std::env::var("UNIONFS_POINTS_CASE").unwrap_or_default();
    (0..CASES.len()).filter(move |&number| CASES[number].name.contains(&part))
}

/// Tries the points that `each` finds for every operation, and says in the end how many there were and what was wrong.
fn try_all(what: &str, mut each: impl FnMut(&Point, &mut Share, &mut Vec<String>)) {
    if !possible() {
        return;
    }
    let _watchdog = Watchdog::start();
    let mut share = Share::new();
    let (mut wrong, mut operations, mut tried) = (Vec::new(), 0, 0);
    for number in chosen() {
        let point = Point::new(number);
        let before = wrong.len();
        let mut results = Vec::new();
        each(&point, &mut share, &mut results);
        operations += 1;
        tried += results.len();
        let failures = results.into_iter().filter(|result| !result.is_empty());
        wrong.extend(failures.map(|failure| format!("{}, {failure}", point.case().name)));
        if wrong.len() > before {
            println!("{}: {} wrong", point.case().name, wrong.len() - before);
        }
    }
    println!("{what}: {operations} operations, {tried} points of {}, {} wrong", share.met, wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(tried > 0, "no point was tried");
}

#[test]
fn a_kill_leaves_old_or_new() {
    if is_traced() {
        return;
    }
    try_all("killed", |point, share, results| {
        for call in point.calls.iter().filter(|call| changes(call)) {
            if share.takes() {
                let tried = point.kill(&format!("{}:signal=KILL:when={}", call.name, call.number));
                results.push(
                    tried
                        .err()
                        .map(|e| format!("killed before {} {}: {e}", call.name, call.arguments))
                        .unwrap_or_default(),
                );
            }
        }
    });
}

#[test]
fn a_call_that_fails_leaves_old_or_is_made_up_for() {
    if is_traced() {
        return;
    }
    let mut turn = 0;
    try_all("failed", |point, share, results| {
        for call in point.calls.iter().filter(|call| !NOT_FAILED.contains(&call.name.as_str())) {
            turn += 1;
            let errnos = if share.all { &ERRNOS[..] } else { &ERRNOS[turn % ERRNOS.len()..][..1] };
            for errno in errnos {
                if share.takes() {
                    let tried = point.fail(&format!("{}:error={errno}:when={}", call.name, call.number));
                    results.push(
                        tried
                            .err()
                            .map(|e| format!("{errno} from {} {}: {e}", call.name, call.arguments))
                            .unwrap_or_default(),
                    );
                }
            }
        }
    });
}

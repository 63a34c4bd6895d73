//! A process that is killed before each system call of an operation that changes something.
//!
//! The process is this test, started again under strace(1), which kills it; it uses the union without a mount. Afterwards
//! each name at the root is what it was before or what it is after the operation, with all below it, or absent; what the
//! operation moves is under one of its names; and no workdir keeps what was unfinished.

use std::collections::BTreeMap;
use std::path::Path;

use unionfs_rs::config::{Lacking, UnionConfig, WhiteoutFormat};
use unionfs_rs::error::Error;
use unionfs_rs::union::Union;

use super::acts::{View, link, mkdir, rename, rmdir, symlink, touch, unlink, view, write};
use crate::skip;
use crate::support::traced::{self, Again, Call};
use crate::support::{Layers, LowersUnchanged, Placement, Watchdog, on_kernel, require_root, strace_obstacle};

/// An operation, and what comes before it.
struct Case {
    name: &'static str,
    before: fn(&Union) -> Result<(), Error>,
    act: fn(&Union) -> Result<(), Error>,
    /// Names at the root of which one must show what the operation moves.
    moves: Option<(&'static str, &'static str)>,
}

const fn case(
    name: &'static str,
    before: fn(&Union) -> Result<(), Error>,
    act: fn(&Union) -> Result<(), Error>,
) -> Case {
    Case { name, before, act, moves: None }
}

const fn moving(
    (from, to): (&'static str, &'static str),
    name: &'static str,
    before: fn(&Union) -> Result<(), Error>,
    act: fn(&Union) -> Result<(), Error>,
) -> Case {
    Case { name, before, act, moves: Some((from, to)) }
}

fn nothing(_: &Union) -> Result<(), Error> {
    Ok(())
}

fn remove_f(union: &Union) -> Result<(), Error> {
    unlink(union, "f")
}

fn overwrite_f(union: &Union) -> Result<(), Error> {
    write(union, "f", "upper f")
}

/// Leaves whiteouts in `d`, and nothing that shows.
fn empty_d(union: &Union) -> Result<(), Error> {
    unlink(union, "d/x")?;
    unlink(union, "d/y")
}

fn remove_d(union: &Union) -> Result<(), Error> {
    empty_d(union)?;
    rmdir(union, "d")
}

fn make_u(union: &Union) -> Result<(), Error> {
    mkdir(union, "u")?;
    touch(union, "u/new")
}

const CASES: [Case; 23] = [
    case("unlink of a lower file", nothing, remove_f),
    case("unlink of an upper file over a lower one", overwrite_f, remove_f),
    case("a write to a lower file", nothing, overwrite_f),
    case("create onto a removed file", remove_f, |union| touch(union, "f")),
    case("mkdir onto a removed file", remove_f, |union| mkdir(union, "f")),
    case("symlink onto a removed file", remove_f, |union| symlink(union, "g", "f")),
    case("link onto a removed file", remove_f, |union| link(union, "g", "f")),
    case("link onto a removed directory", remove_d, |union| link(union, "g", "d")),
    case("rmdir of a merged directory", empty_d, |union| rmdir(union, "d")),
    case("mkdir onto a removed directory", remove_d, |union| mkdir(union, "d")),
    moving(("f", "n"), "rename of a lower file", nothing, |union| rename(union, "f", "n")),
    moving(("f", "g"), "rename of a file over another", nothing, |union| rename(union, "f", "g")),
    moving(("g", "f"), "rename of a file onto a removed one", remove_f, |union| rename(union, "g", "f")),
    moving(("g", "d"), "rename of a file onto a removed directory", remove_d, |union| rename(union, "g", "d")),
    moving(("e", "n"), "rename of a merged directory", nothing, |union| rename(union, "e", "n")),
    moving(("e", "d"), "rename of a merged directory onto a removed one", remove_d, |union| rename(union, "e", "d")),
    moving(("e", "f"), "rename of a merged directory onto a removed file", remove_f, |union| rename(union, "e", "f")),
    moving(("e", "d"), "rename of a merged directory over an empty one", empty_d, |union| rename(union, "e", "d")),
    moving(
        ("u", "d"),
        "rename of a new directory over one that is empty",
        |union| empty_d(union).and_then(|()| make_u(union)),
        |union| rename(union, "u", "d"),
    ),
    moving(
        ("u", "d"),
        "rename of a new directory onto a removed one",
        |union| remove_d(union).and_then(|()| make_u(union)),
        |union| rename(union, "u", "d"),
    ),
    moving(
        ("d", "n"),
        "rename of a directory that took the place of a removed one",
        |union| remove_d(union).and_then(|()| mkdir(union, "d")).and_then(|()| touch(union, "d/new")),
        |union| rename(union, "d", "n"),
    ),
    moving(
        ("n", "e"),
        "rename of a directory back to where it was",
        |union| rename(union, "e", "n"),
        |union| rename(union, "n", "e"),
    ),
    moving(
        ("n", "d"),
        "rename of a renamed directory over an empty one",
        |union| empty_d(union).and_then(|()| rename(union, "e", "n")),
        |union| rename(union, "n", "d"),
    ),
];

/// Where an upper lacks what, before the operation and at it.
#[derive(Clone, Copy)]
struct Ground {
    before: (Lacking, WhiteoutFormat),
    at: (Lacking, WhiteoutFormat),
}

fn fill(layers: &Layers) {
    let (top, bottom) = (layers.lower(0), layers.lower(1));
    bottom.file("f", "lower f").file("g", "lower g").file("d/x", "x").file("e/z", "z").file("e/sub/y", "y");
    top.file("d/y", "y").file("e/top", "top");
}

fn open(layers: &Layers, (lacking, whiteout_format): (Lacking, WhiteoutFormat)) -> Union {
    let config = UnionConfig {
        lowers: layers.lowers().iter().cloned().map(Into::into).collect(),
        upper: Some(layers.upper().root().into()),
        work: Some(layers.work().root().into()),
        whiteout_format,
        lacking,
        ..UnionConfig::default()
    };
    Union::from_config(&config).unwrap_or_else(|error| panic!("{error}"))
}

fn end(union: Union, layers: &Layers) {
    union.end().expect("a union can be ended");
    assert_eq!(layers.work().names("work"), [""; 0], "something is left in the workdir");
}

/// Makes the layers as they are before the operation.
fn set(case: &Case, ground: Ground) -> Layers {
    let layers = Layers::new(2, Placement::OneFs);
    fill(&layers);
    let union = open(&layers, ground.before);
    // What cannot be done on this ground, such as the rename of a merged directory without xattrs, changes nothing.
    let _ = (case.before)(&union);
    end(union, &layers);
    layers
}

/// Holds the number of the case and the directory of its layers, for the process that is killed.
const CHILD: &str = "UNIONFS_TEST_KILLED";

/// Does the operation, as the process that is killed.
fn die(ground: Ground, told: &str) {
    let (number, root) = told.split_once(' ').expect("the test has set the variable");
    let case = &CASES[number.parse::<usize>().expect("the test has set the variable")];
    let at = |name: &str| Path::new(root).join(name);
    // strace does not know the newer calls.
    unionfs_rs::sys::xattr::forget_at_calls();
    unionfs_rs::sys::mode::forget_call();
    let config = UnionConfig {
        lowers: vec![at("lower0").into(), at("lower1").into()],
        upper: Some(at("upper").into()),
        work: Some(at("work").into()),
        whiteout_format: ground.at.1,
        lacking: ground.at.0,
        ..UnionConfig::default()
    };
    let union = Union::from_config(&config).unwrap_or_else(|error| panic!("{error}"));
    let _ = traced::marked(Path::new("/"), || (case.act)(&union)); // As in `set`.
    union.end().expect("a union can be ended");
}

/// The calls that change something.
const CHANGES: &str = "openat,mkdirat,mknodat,symlinkat,linkat,unlinkat,renameat,renameat2,setxattr,lsetxattr,\
                       removexattr,lremovexattr,fchmodat,fchmod,chmod,fchownat,utimensat,pwrite64,ftruncate,\
                       copy_file_range,fsync,ioctl";

/// Runs the operation in a process of its own, with `injection` if any; returns the calls that change something.
fn run(number: usize, layers: &Layers, injection: Option<&str>) -> Vec<Call> {
    let told = format!("{number} {}", layers.path("").display());
    let calls = format!("statx,{CHANGES}");
    let again = Again { told: (CHILD, told.as_ref()), calls: &calls, trace: &layers.path("trace") };
    let (status, trace) = again.run(injection);
    assert_eq!(status.success(), injection.is_none(), "{injection:?}: {status}");
    traced::calls(&trace).into_iter().filter(|call| call.name != "statx" && call.makes()).collect()
}

/// Returns what is at `name` of the root and below it.
fn unit<'a>(view: &'a View, name: &str) -> BTreeMap<&'a str, &'a str> {
    let below = format!("{name}/");
    let of = |path: &str| path == name || path.starts_with(&below);
    view.iter().filter(|(path, _)| of(path)).map(|(path, shown)| (path.as_str(), shown.as_str())).collect()
}

fn check(case: &Case, before: &View, now: &View, after: &View) -> Result<(), String> {
    for name in now.keys().filter(|path| !path.contains('/')) {
        let shown = unit(now, name);
        if shown != unit(before, name) && shown != unit(after, name) {
            return Err(format!("{name} is neither old nor new: {shown:?}"));
        }
    }
    let untouched = |name: &&String| !name.contains('/') && unit(before, name) == unit(after, name);
    if let Some(lost) = before.keys().filter(untouched).find(|name| !now.contains_key(*name)) {
        return Err(format!("{lost} is lost"));
    }
    match case.moves {
        Some((from, to)) if unit(now, from) != unit(before, from) && unit(now, to) != unit(after, to) => {
            Err(format!("what was {from} is lost"))
        }
        _ => Ok(()),
    }
}

fn leaves_old_new_or_nothing(ground: Ground) {
    if let Ok(told) = std::env::var(CHILD) {
        return die(ground, &told);
    }
    if !require_root("lowers with whiteouts, and tracing") {
        return;
    }
    if on_kernel() {
        skip!("the kernel's overlayfs cannot be killed");
    }
    if let Some(reason) = strace_obstacle() {
        skip!("{reason}");
    }
    let _watchdog = Watchdog::start();
    let mut kills = 0;
    for (number, case) in CASES.iter().enumerate() {
        let layers = set(case, ground);
        let look = |layers: &Layers, with| {
            let union = open(layers, with);
            let seen = view(&union);
            end(union, layers);
            seen
        };
        let before = look(&layers, ground.at);
        let calls = run(number, &layers, None);
        let after = look(&layers, ground.at);
        for Call { name: call, number: count, .. } in calls {
            let layers = set(case, ground);
            let lowers = LowersUnchanged::new(layers.lowers());
            run(number, &layers, Some(&format!("{call}:signal=KILL:when={count}")));
            kills += 1;
            // By what was there, and by what has everything.
            for with in [ground.at, (Lacking::empty(), WhiteoutFormat::Auto)] {
                let now = look(&layers, with);
                check(case, &before, &now, &after).unwrap_or_else(|error| {
                    panic!("{}, killed before {call} number {count}: {error}\n{now:#?}", case.name)
                });
            }
            lowers.check();
        }
    }
    println!("killed {kills} times");
    assert!(kills > 100, "only {kills} calls were found, so hardly anything was tested");
}

const EVERYTHING: (Lacking, WhiteoutFormat) = (Lacking::empty(), WhiteoutFormat::Auto);

/// What a file system lacks that knows no flags of renameat2(2).
const FLAGS: (Lacking, WhiteoutFormat) =
    (Lacking::EXCHANGE.union(Lacking::NOREPLACE).union(Lacking::RENAME_WHITEOUT), WhiteoutFormat::Auto);

#[test]
fn a_kill_leaves_old_new_or_nothing() {
    leaves_old_new_or_nothing(Ground { before: EVERYTHING, at: EVERYTHING });
}

#[test]
fn a_kill_with_whiteouts_by_name_leaves_old_new_or_nothing() {
    let by_name = (Lacking::empty(), WhiteoutFormat::DotWh);
    leaves_old_new_or_nothing(Ground { before: by_name, at: by_name });
}

#[test]
fn a_kill_without_flags_of_rename_leaves_old_new_or_nothing() {
    leaves_old_new_or_nothing(Ground { before: FLAGS, at: FLAGS });
}

#[test]
fn a_kill_without_flags_of_rename_among_whiteout_devices_leaves_old_new_or_nothing() {
    leaves_old_new_or_nothing(Ground { before: EVERYTHING, at: FLAGS });
}

#[test]
fn a_kill_without_flags_of_rename_among_whiteouts_by_xattr_leaves_old_new_or_nothing() {
    leaves_old_new_or_nothing(Ground { before: (Lacking::empty(), WhiteoutFormat::Xattr), at: FLAGS });
}

#[test]
fn a_kill_without_hard_links_leaves_old_new_or_nothing() {
    let unlinked = (Lacking::LINKS, WhiteoutFormat::Xattr);
    leaves_old_new_or_nothing(Ground { before: unlinked, at: unlinked });
}

#[test]
fn a_kill_without_anything_leaves_old_new_or_nothing() {
    let bare = (Lacking::all(), WhiteoutFormat::Auto);
    leaves_old_new_or_nothing(Ground { before: bare, at: bare });
}

//! The scenario on uppers that lack what NFS lacks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::steps::{LINKS, STEPS, Step, copy, describe, fill};
use crate::skip;
use crate::support::{
    Io, Layers, LowersUnchanged, Mounted, Placement, Watchdog, on_kernel, require_root, strace_obstacle,
};

/// A file system over another directory, served by a process of its own until this goes.
struct Stacked {
    at: PathBuf,
    server: Child,
}

impl Stacked {
    /// Starts `command`, which serves in the foreground, and waits until it has mounted at `at`.
    fn mount(at: PathBuf, command: &mut Command) -> Self {
        fs::create_dir_all(&at).expect("the test directory can be written");
        let device = || rustix::fs::stat(&at).expect("the test directory can be read").st_dev;
        let before = device();
        let server = command.stdin(Stdio::null()).spawn().expect("it was found a moment ago");
        let stacked = Self { at: at.clone(), server };
        let deadline = Instant::now() + Duration::from_secs(10);
        while device() == before {
            assert!(Instant::now() < deadline, "{command:?} does not mount");
            std::thread::sleep(Duration::from_millis(5));
        }
        stacked
    }
}

impl Drop for Stacked {
    fn drop(&mut self) {
        if let Err(errno) = rustix::mount::unmount(&self.at, UnmountFlags::DETACH) {
            eprintln!("cannot unmount {}: {errno}", self.at.display());
        }
        let ended = self.server.wait();
        if let Err(error) = ended {
            eprintln!("the server of {}: {error}", self.at.display());
        }
    }
}

/// What upper and workdir are on.
#[derive(Clone, Copy)]
struct Ground {
    /// The program that serves it, and how it is told to; none for the file system of the test directory.
    server: Option<(&'static str, &'static [&'static str])>,
    /// System calls that fail besides, as `strace -e inject` has it.
    failing: &'static [&'static str],
    /// Whether files can be linked.
    links: bool,
    /// Whether the upper lets names be exchanged.
    exchanges: bool,
}

const BINDFS: Ground = Ground { server: Some(("bindfs", &["-f"])), failing: &[], links: true, exchanges: false };

impl Ground {
    /// Says why the scenario cannot be played here, where it cannot.
    fn obstacle(self) -> Option<String> {
        let found = |program: &str| {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).any(|dir| dir.join(program).exists())
        };
        if let Some((program, _)) = self.server
            && !found(program)
        {
            return Some(format!("{program} is not there: install the package {program}"));
        }
        if self.failing.is_empty() { None } else { strace_obstacle() }
    }

    /// Mounts what upper and workdir are to be on; returns the directory for the two.
    fn lay(self, layers: &Layers) -> (Option<Stacked>, PathBuf) {
        let Some((program, options)) = self.server else { return (None, layers.path("")) };
        let at = layers.path("ground");
        let mut command = Command::new(program);
        command.args(options);
        for branch in ["branch1", "branch2"] {
            fs::create_dir(layers.path(branch)).expect("the test directory can be written");
        }
        let (one, two) = (layers.path("branch1"), layers.path("branch2"));
        match program {
            "mergerfs" => command.arg(format!("{}:{}", one.display(), two.display())),
            _ => command.arg(&one),
        };
        command.arg(&at);
        let stacked = Stacked::mount(at.clone(), &mut command);
        for dir in ["upper", "work"] {
            fs::create_dir(at.join(dir)).expect("a fresh file system can be written");
        }
        (Some(stacked), at)
    }
}

fn compare(union: &Path, plain: &Path, when: &str) {
    let (seen, expected) = (describe(union), describe(plain));
    for (path, what) in &expected {
        assert_eq!(seen.get(path), Some(what), "{when}: {path}");
    }
    let more: Vec<_> = seen.keys().filter(|path| !expected.contains_key(*path)).collect();
    assert!(more.is_empty(), "{when}: the union shows {more:?} besides");
}

fn plays(ground: Ground) {
    if !require_root("mounting, and tracing the daemon") {
        return;
    }
    if on_kernel() {
        skip!("the kernel's overlayfs takes no upper on FUSE");
    }
    if let Some(reason) = ground.obstacle() {
        skip!("{reason}");
    }
    let _watchdog = Watchdog::start();
    let layers = Layers::new(2, Placement::OneFs);
    fill(&layers);
    let unchanged = LowersUnchanged::new(layers.lowers());
    let (_ground, dir) = ground.lay(&layers);
    let mut spec = layers.spec(Io::Cached);
    (spec.upper, spec.work) = (Some(dir.join("upper")), Some(dir.join("work")));
    if !ground.failing.is_empty() {
        spec.wrapper = ["strace", "-f", "-o", "/dev/null"].map(Into::into).to_vec();
        for failing in ground.failing {
            spec.wrapper.extend(["-e".into(), format!("inject={failing}").into()]);
        }
    }
    let mut mount = spec.mount_ours();
    let plain = layers.path("plain");
    fs::create_dir(&plain).expect("the test directory can be written");
    copy(mount.path(), &plain);
    let links: &[Step] = if ground.links { &LINKS } else { &[] };
    for (what, step) in STEPS.iter().chain(links) {
        step(&plain);
        step(mount.path());
        compare(mount.path(), &plain, what);
        mount.remount();
        compare(mount.path(), &plain, &format!("{what}, after a remount"));
    }
    for (one, two) in [("e", "k"), ("b", "f")] {
        let (one, two) = (mount.path().join(one), mount.path().join(two));
        let exchanged = renameat_with(CWD, &one, CWD, &two, RenameFlags::EXCHANGE);
        match ground.exchanges {
            true => exchanged.expect("what was made can be exchanged"),
            false => assert_eq!(exchanged, Err(Errno::INVAL)),
        }
    }
    if !ground.links {
        assert!(fs::hard_link(mount.path().join("f/in"), mount.path().join("linked")).is_err());
    }
    mount.unmount().expect("the union can be unmounted");
    unchanged.check();
    let left: Vec<_> = fs::read_dir(dir.join("work/work")).expect("the workdir can be listed").collect();
    assert!(left.is_empty(), "left in the workdir: {left:?}");
}

#[test]
fn the_scenario_holds_where_nothing_is_lacking() {
    plays(Ground { server: None, exchanges: true, ..BINDFS });
}

#[test]
fn the_scenario_holds_without_flags_of_rename() {
    plays(Ground { server: None, failing: &["renameat2:error=EINVAL"], ..BINDFS });
}

#[test]
fn the_scenario_holds_on_bindfs() {
    plays(BINDFS);
}

#[test]
fn the_scenario_holds_on_bindfs_without_xattrs() {
    plays(Ground { server: Some(("bindfs", &["-f", "--xattr-none"])), ..BINDFS });
}

#[test]
fn the_scenario_holds_on_mergerfs() {
    plays(Ground { server: Some(("mergerfs", &["-f", "-o", "use_ino,category.create=ff"])), ..BINDFS });
}

#[test]
fn the_scenario_holds_on_mergerfs_which_shows_the_names_of_a_file_as_files() {
    plays(Ground { server: Some(("mergerfs", &["-f", "-o", "category.create=ff"])), links: false, ..BINDFS });
}

#[test]
fn the_scenario_holds_on_mergerfs_with_several_branches_in_use() {
    plays(Ground { server: Some(("mergerfs", &["-f", "-o", "use_ino,category.create=rand"])), ..BINDFS });
}

#[test]
fn the_scenario_holds_on_bindfs_that_lacks_everything_else_too() {
    plays(Ground {
        server: Some(("bindfs", &["-f", "--xattr-none"])),
        failing: &[
            "linkat:error=EOPNOTSUPP",
            "mknodat:error=EPERM",
            "flock:error=EOPNOTSUPP",
            "name_to_handle_at:error=EOPNOTSUPP",
            "copy_file_range:error=EOPNOTSUPP",
        ],
        links: false,
        ..BINDFS
    });
}

//! The union that a trap is set in: layers, a mount, and what holds after every test.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use crate::support::{Io, Layers, LowersUnchanged, Mounted, Spec, Tmpfs, Tree, Watchdog, modes, on_kernel};

/// A user who is not root and owns nothing but what a test gives them.
pub const USER: u32 = 1000;

/// Another one.
pub const STRANGER: u32 = 1001;

/// A union that is to be built, in each mode in turn.
pub struct Trap<'a> {
    lowers: usize,
    disk: Option<&'static str>,
    fill: Box<dyn Fn(&Layers) + 'a>,
    adjust: Box<dyn Fn(Spec) -> Spec + 'a>,
}

/// A union in one of the modes, mounted.
pub struct Union {
    // Fields drop in order: a mount goes before what it is mounted on.
    /// The mount over the layers.
    pub mount: Box<dyn Mounted>,
    _disk: Option<Tmpfs>,
    /// The layers and the directory that they are in.
    pub layers: Layers,
    upper: Tree,
    /// The workdir.
    pub work: Tree,
    /// How it reads and writes.
    pub io: Io,
}

/// Plans a union of `lowers` lower layers, which `fill` fills.
pub fn trap<'a>(lowers: usize, fill: impl Fn(&Layers) + 'a) -> Trap<'a> {
    Trap { lowers, disk: None, fill: Box::new(fill), adjust: Box::new(|spec| spec) }
}

impl<'a> Trap<'a> {
    /// Changes how the union is mounted.
    pub fn mounted(self, adjust: impl Fn(Spec) -> Spec + 'a) -> Self {
        Self { adjust: Box::new(adjust), ..self }
    }

    /// Puts the upper and the workdir on a file system of their own, of `size` as in tmpfs(5).
    pub fn on_a_disk_of(self, size: &'static str) -> Self {
        Self { disk: Some(size), ..self }
    }

    /// Runs `test` in every mode that can run here. Afterwards the lowers are what they were and
    /// the workdir holds nothing that has content.
    pub fn run(&self, test: impl Fn(&mut Union)) {
        for mode in modes() {
            // Shown only where the test fails.
            eprintln!("--- {mode:?}");
            let _watchdog = Watchdog::start();
            let layers = Layers::new(self.lowers, mode.placement);
            (self.fill)(&layers);
            let lowers = LowersUnchanged::new(layers.lowers());
            let mut spec = layers.spec(mode.io);
            let disk = self.disk.map(|size| small_disk(&layers, size, &mut spec));
            let spec = (self.adjust)(spec);
            let tree = |path: &Option<PathBuf>, name: &str| Tree::at(path.clone().unwrap_or_else(|| layers.path(name)));
            let (upper, work) = (tree(&spec.upper, "upper"), tree(&spec.work, "work"));
            let mount = spec.mount();
            let mut union = Union { mount, _disk: disk, layers, upper, work, io: mode.io };
            test(&mut union);
            union.mount.unmount().expect("the union can be unmounted");
            lowers.check();
            union.assert_workdir_is_clean();
        }
    }
}

fn small_disk(layers: &Layers, size: &str, spec: &mut Spec) -> Tmpfs {
    let at = layers.path("disk");
    let disk = Tmpfs::mount(&at, &format!("size={size},mode=755")).expect("a tmpfs can be mounted");
    let make = |name: &str| {
        fs::create_dir(at.join(name)).expect("a new disk has space");
        Some(at.join(name))
    };
    spec.upper = make("upper");
    spec.work = make("work");
    disk
}

impl Union {
    /// Returns a path in the merged tree.
    pub fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.mount.path().join(name)
    }

    /// Returns the merged tree.
    pub fn merged(&self) -> Tree {
        self.mount.tree()
    }

    /// Returns the upper.
    pub fn upper(&self) -> Tree {
        self.upper.clone()
    }

    /// Unmounts and mounts again, so that nothing cached survives.
    pub fn remount(&mut self) {
        self.mount.remount();
    }

    /// Asserts the fact live, and again after a remount.
    pub fn live_and_after_remount(&mut self, fact: impl Fn(&Self)) {
        fact(self);
        self.remount();
        eprintln!("--- after a remount");
        fact(self);
    }

    /// Returns what is unfinished in the workdir, whiteout templates left out: those are empty.
    pub fn unfinished(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.work.path("work")) else { return Vec::new() };
        let entries = entries.map(|entry| entry.expect("the workdir can be listed"));
        // The kernel's overlayfs keeps marks of its features in `incompat`.
        let unfinished = entries.filter(|entry| {
            let meta = entry.metadata().expect("the workdir can be listed");
            meta.is_dir() || meta.size() > 0
        });
        unfinished.map(|entry| entry.path()).collect()
    }

    fn assert_workdir_is_clean(&self) {
        assert_eq!(self.unfinished(), Vec::<PathBuf>::new(), "left in the workdir");
    }
}

/// Runs `act` with the credentials of a plain user, in a thread of its own.
pub fn as_user<T: Send>(uid: u32, act: impl FnOnce() -> T + Send) -> T {
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name(name);
        let spawned = builder.spawn_scoped(scope, || {
            // rustix's calls change this thread alone; the capabilities go with the last root uid.
            rustix::thread::set_thread_groups(&[]).expect("root may drop groups");
            let gid = Gid::from_raw(uid);
            rustix::thread::set_thread_res_gid(gid, gid, gid).expect("root may take any gid");
            let uid = Uid::from_raw(uid);
            rustix::thread::set_thread_res_uid(uid, uid, uid).expect("root may take any uid");
            act()
        });
        let joined = spawned.expect("a thread can be started").join();
        joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Returns the errno of a call that must fail.
#[track_caller]
pub fn errno<T>(result: io::Result<T>) -> Errno {
    match result {
        Ok(_) => panic!("the call succeeds"),
        Err(error) => Errno::from_io_error(&error).unwrap_or_else(|| panic!("not a system call's error: {error}")),
    }
}

/// Runs a shell script in `dir`, and panics with what it said where it fails.
pub fn shell(dir: &Path, script: &str) -> String {
    let output = run(Command::new("sh").current_dir(dir).args(["-euc", script]));
    assert!(output.status.success(), "{script}: {}\n{}", output.status, text(&output.stderr));
    text(&output.stdout)
}

/// Runs xfs_io(8) (package xfsprogs) with `commands` on an open file, for what needs a mapping.
pub fn xfs_io(flags: &[&str], commands: &[&str], file: &Path) -> String {
    let mut command = Command::new("xfs_io");
    command.args(flags);
    for line in commands {
        command.args(["-c", line]);
    }
    let output = run(command.arg(file));
    let said = text(&output.stdout) + &text(&output.stderr);
    // xfs_io ends with 0 after most errors, but says nothing unless asked to where all is well.
    assert!(output.status.success() && output.stderr.is_empty(), "xfs_io {commands:?}: {}: {said}", output.status);
    said
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?} cannot be started, is it installed? {error}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whether the test states something that is ours alone; where the kernel's overlayfs is mounted
/// instead it is reported as skipped for `reason`.
pub fn is_ours(reason: &str) -> bool {
    if on_kernel() {
        crate::support::record_skip(&crate::support::test_name(), &format!("not the kernel's: {reason}"));
    }
    !on_kernel()
}

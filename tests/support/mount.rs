//! Mounts that take themselves down: ours, and the kernel's overlayfs for reference.

use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::layers::Tree;
use super::privilege::{Privilege, privilege};
use super::{binary, on_kernel, test_name};

/// How long the daemon may take to mount, and to end after it is unmounted.
const PATIENCE: Duration = Duration::from_secs(20);
const FUSECTL: &str = "/sys/fs/fuse/connections";

/// Returns whether the kernel answers so in place of a server that is dead: ECANCELED to what was under way on a ring,
/// ECONNABORTED to what was under way else, and what comes until the connection is taken down, ENOTCONN from then on.
pub fn is_of_dead_server(errno: Errno) -> bool {
    matches!(errno, Errno::CANCELED | Errno::CONNABORTED | Errno::NOTCONN)
}

/// The I/O mode of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// As the program chooses.
    Auto,
    /// Data goes through the daemon and the kernel's page cache.
    Cached,
    /// The same, and what is written stays in the page cache for a while.
    Writeback,
    /// The kernel reads and writes the real file.
    Passthrough,
}

/// A mounted union that is unmounted when it goes.
pub trait Mounted: Send + Sync {
    /// Returns the mountpoint.
    fn path(&self) -> &Path;

    /// Returns the merged tree.
    fn tree(&self) -> Tree {
        Tree::at(self.path())
    }

    /// Unmounts; everything written is in the upper afterwards and no process is left.
    fn unmount(&mut self) -> Result<(), String>;

    /// Mounts again what [`Mounted::unmount`] unmounted.
    fn mount_again(&mut self) -> Result<(), String>;

    /// Unmounts and mounts again, so that nothing cached survives.
    fn remount(&mut self) {
        self.unmount().expect("the union can be unmounted");
        self.mount_again().expect("the union can be mounted again");
    }
}

/// What to mount, where and how.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The lowers, topmost first.
    pub lowers: Vec<PathBuf>,
    /// The upper, or none for a read-only union.
    pub upper: Option<PathBuf>,
    /// The workdir, or none for the default.
    pub work: Option<PathBuf>,
    /// The mountpoint.
    pub at: PathBuf,
    /// The I/O mode.
    pub io: Io,
    /// More arguments for our binary, before the mountpoint.
    pub args: Vec<OsString>,
    /// More options for the kernel's overlayfs; they come after its own and win.
    pub kernel_options: Vec<String>,
    /// A command that runs our binary, such as setpriv(1) with its arguments; it must exec.
    pub wrapper: Vec<OsString>,
    /// Where stderr of the daemon goes.
    pub log: PathBuf,
}

impl Spec {
    /// Adds arguments for our binary.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Adds a feature for both kinds of mount, such as `("metacopy", "on")`.
    #[must_use]
    pub fn feature(self, name: &str, value: &str) -> Self {
        let mut spec = self.args([format!("--{}", name.replace('_', "-")), value.to_owned()]);
        spec.kernel_options.push(format!("{name}={value}"));
        spec
    }

    /// Leaves the upper and the workdir out.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.upper = None;
        self.work = None;
        self
    }

    /// Starts the daemon with this umask.
    #[must_use]
    pub fn umask(mut self, umask: u32) -> Self {
        let script = format!("umask {umask:03o}; exec \"$@\"");
        self.wrapper = ["sh", "-c", &script, "sh"].map(OsString::from).to_vec();
        self
    }

    /// Mounts elsewhere.
    #[must_use]
    pub fn at(mut self, at: impl Into<PathBuf>) -> Self {
        self.at = at.into();
        self
    }

    /// Returns the command that mounts this in the foreground with our binary.
    pub fn command(&self) -> Command {
        let mut words = self.wrapper.clone();
        words.push(binary().into());
        words.push("mount".into());
        for lower in &self.lowers {
            words.push("--lower".into());
            words.push(escape_colons(lower));
        }
        for (flag, path) in [("--upper", &self.upper), ("--work", &self.work)] {
            if let Some(path) = path {
                words.push(flag.into());
                words.push(path.into());
            }
        }
        words.push("--io".into());
        words.push(match self.io {
            Io::Auto => "auto".into(),
            Io::Cached => "cached".into(),
            Io::Writeback => "writeback".into(),
            Io::Passthrough => "passthrough".into(),
        });
        let chosen = self.args.iter().any(|word| word == "--transport");
        if let Some(transport) = std::env::var_os("UNIONFS_TEST_TRANSPORT").filter(|_| !chosen) {
            words.extend(["--transport".into(), transport]);
        }
        words.push("--foreground".into());
        words.extend(self.args.iter().cloned());
        words.push(self.at.as_os_str().to_owned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null());
        command
    }

    /// Mounts with our binary, or with the kernel's overlayfs under `UNIONFS_TEST_ON=kernel`.
    /// Panics with the reason where that fails.
    pub fn mount(&self) -> Box<dyn Mounted> {
        if on_kernel() { Box::new(self.mount_kernel()) } else { Box::new(self.mount_ours()) }
    }

    /// Mounts with our binary. Panics with the reason where that fails.
    pub fn mount_ours(&self) -> OurMount {
        OurMount::start(self.clone()).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Mounts the same layers with the kernel's overlayfs, redirect_dir, index and xino on.
    /// Panics with the reason where that fails.
    pub fn mount_kernel(&self) -> KernelMount {
        KernelMount::start(self.clone()).unwrap_or_else(|error| panic!("{error}"))
    }
}

fn escape_colons(path: &Path) -> OsString {
    let mut escaped = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b':' | b'\\') {
            escaped.push(b'\\');
        }
        escaped.push(*byte);
    }
    OsString::from_vec(escaped)
}

/// Why a mount of ours did not start.
#[derive(Debug)]
pub struct StartError {
    /// How the process ended; none where it hung and was killed.
    pub status: Option<ExitStatus>,
    /// What it wrote to stderr.
    pub stderr: String,
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.status {
            Some(status) => write!(f, "the mount ended with {status}: {}", self.stderr),
            None => write!(f, "the mount did not appear in {PATIENCE:?}: {}", self.stderr),
        }
    }
}

/// A mount of ours: a daemon in the foreground, as a child of the test.
#[derive(Debug)]
pub struct OurMount {
    spec: Spec,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    minor: u32,
}

impl OurMount {
    /// Starts the daemon and waits until its mount is in the table.
    pub fn start(spec: Spec) -> Result<Self, StartError> {
        let running = start(&spec)?;
        Ok(Self { spec, running: Some(running) })
    }

    /// Returns the daemon's process id while it is mounted.
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.child.id())
    }

    /// Kills the daemon as a crash does, and removes the dead mount.
    pub fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.child.kill().expect("an own child can be killed");
            running.child.wait().expect("an own child can be waited for");
            detach(&self.spec.at);
            forget(running.minor);
        }
    }

    /// Returns what the daemon has written to stderr so far.
    pub fn log(&self) -> String {
        read_log(&self.spec.log)
    }
}

fn read_log(path: &Path) -> String {
    fs::read(path)
        .map_or_else(|error| format!("(no log: {error})"), |bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn start(spec: &Spec) -> Result<Running, StartError> {
    let log =
        fs::OpenOptions::new().create(true).append(true).open(&spec.log).expect("the test directory can be written");
    let before = log.metadata().expect("an open file has attributes").len();
    let at = fs::canonicalize(&spec.at).unwrap_or_else(|_| spec.at.clone());
    // A union may be mounted over a mountpoint: ours is the one that was not there before.
    let known: Vec<u64> = mounts_at(&at, None).iter().map(|mount| mount.id).collect();
    let mut child = spec
        .command()
        .stdout(log.try_clone().expect("a descriptor can be duplicated"))
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("{} cannot be started: {error}", binary().display()));
    let deadline = Instant::now() + PATIENCE;
    let fresh_log = || read_log(&spec.log).get(before as usize..).unwrap_or_default().to_owned();
    loop {
        let new = mounts_at(&at, Some(child.id())).into_iter().find(|m| !known.contains(&m.id));
        if let Some(mount) = new {
            remember(mount.minor, &at, child.id());
            // It is in the table before it has shaken hands with the kernel; this waits for the answer, whatever it is.
            let _answer = rustix::fs::statvfs(&at);
            return Ok(Running { child, minor: mount.minor });
        }
        if let Some(status) = child.try_wait().expect("an own child can be waited for") {
            return Err(StartError { status: Some(status), stderr: fresh_log() });
        }
        if Instant::now() > deadline {
            child.kill().expect("an own child can be killed");
            child.wait().expect("an own child can be waited for");
            return Err(StartError { status: None, stderr: fresh_log() });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Mounted for OurMount {
    fn path(&self) -> &Path {
        &self.spec.at
    }

    fn unmount(&mut self) -> Result<(), String> {
        let Some(mut running) = self.running.take() else {
            return Ok(());
        };
        let unmounted = unmount_busy(&self.spec.at);
        if unmounted.is_err() {
            abort_connection(running.minor);
            detach(&self.spec.at);
        }
        let ended = wait(&mut running.child, PATIENCE);
        if ended.is_none() {
            abort_connection(running.minor);
            running.child.kill().map_err(|error| format!("kill the daemon: {error}"))?;
            running.child.wait().map_err(|error| format!("wait for the daemon: {error}"))?;
        }
        forget(running.minor);
        unmounted?;
        match ended {
            None => Err(format!("the daemon did not end in {PATIENCE:?} after the unmount")),
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(format!("the daemon ended with {status}: {}", self.log())),
        }
    }

    fn mount_again(&mut self) -> Result<(), String> {
        assert!(self.running.is_none(), "the union is still mounted");
        self.running = Some(start(&self.spec).map_err(|error| error.to_string())?);
        Ok(())
    }
}

impl Drop for OurMount {
    fn drop(&mut self) {
        let result = self.unmount();
        if std::thread::panicking() {
            eprintln!("--- log of the daemon\n{}--- end of the log", self.log());
        }
        match result {
            Err(error) if std::thread::panicking() => eprintln!("{error}"),
            Err(error) => panic!("{error}"),
            Ok(()) => {}
        }
    }
}

/// A mount of the kernel's overlayfs.
#[derive(Debug)]
pub struct KernelMount {
    spec: Spec,
    mounted: bool,
}

impl KernelMount {
    /// Mounts the kernel's overlayfs.
    pub fn start(spec: Spec) -> Result<Self, String> {
        let mut mount = Self { spec, mounted: false };
        mount.mount_again()?;
        Ok(mount)
    }
}

impl Mounted for KernelMount {
    fn path(&self) -> &Path {
        &self.spec.at
    }

    fn unmount(&mut self) -> Result<(), String> {
        if self.mounted {
            unmount_busy(&self.spec.at)?;
            self.mounted = false;
        }
        Ok(())
    }

    fn mount_again(&mut self) -> Result<(), String> {
        let join =
            |paths: &[PathBuf]| paths.iter().map(|path| escape_colons(path)).collect::<Vec<_>>().join(OsStr::new(":"));
        let mut options = OsString::from("lowerdir=");
        options.push(join(&self.spec.lowers));
        if let Some(upper) = &self.spec.upper {
            options.push(",upperdir=");
            options.push(upper);
            options.push(",workdir=");
            options.push(self.spec.work.as_ref().expect("the kernel has no default workdir"));
            options.push(",index=on");
        }
        options.push(",redirect_dir=on,xino=on");
        for option in &self.spec.kernel_options {
            options.push(",");
            options.push(option);
        }
        let data = CString::new(options.into_vec()).map_err(|error| error.to_string())?;
        let data = Some(data.as_c_str());
        rustix::mount::mount("overlay", &self.spec.at, "overlay", MountFlags::empty(), data)
            .map_err(|errno| format!("mount the kernel's overlayfs with {data:?}: {errno}"))?;
        self.mounted = true;
        Ok(())
    }
}

impl Drop for KernelMount {
    fn drop(&mut self) {
        if self.unmount().is_err() {
            detach(&self.spec.at);
        }
    }
}

/// Unmounts, waiting a little for what is still open to be closed.
fn unmount_busy(at: &Path) -> Result<(), String> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let result = unmount_once(at);
        if result.is_ok() || Instant::now() > deadline {
            return result;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn unmount_once(at: &Path) -> Result<(), String> {
    if privilege() != Privilege::Plain {
        return rustix::mount::unmount(at, UnmountFlags::NOFOLLOW)
            .map_err(|errno| format!("umount {}: {errno}", at.display()));
    }
    let output =
        Command::new("fusermount3").arg("-u").arg(at).output().map_err(|error| format!("fusermount3: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("fusermount3 -u: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Takes a mount out of the tree whatever still uses it; the last resort, so failures are shown
/// and not returned.
fn detach(at: &Path) {
    let result = if privilege() == Privilege::Plain {
        Command::new("fusermount3").args(["-u", "-z"]).arg(at).status().map(|_| ())
    } else {
        rustix::mount::unmount(at, UnmountFlags::DETACH).map_err(io::Error::from)
    };
    if let Err(error) = result {
        // EINVAL: it is not mounted any more, which is what was wanted.
        if error.raw_os_error() != Some(libc::EINVAL) {
            eprintln!("detach {}: {error}", at.display());
        }
    }
}

fn wait(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait().expect("an own child can be waited for") {
            return Some(status);
        }
        if Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A line of mountinfo, as far as the tests need it (proc_pid_mountinfo(5)).
#[derive(Debug)]
struct MountLine {
    id: u64,
    minor: u32,
}

/// Returns the FUSE mounts at `at` in the mount namespace of a process, this one's where none is
/// named.
fn mounts_at(at: &Path, pid: Option<u32>) -> Vec<MountLine> {
    let table = match pid {
        Some(pid) => fs::read(format!("/proc/{pid}/mountinfo")),
        None => fs::read("/proc/self/mountinfo"),
    };
    // The child may have ended, or may not be readable: then it has no mount to find.
    let table = table.unwrap_or_default();
    let mut found = Vec::new();
    for line in table.split(|byte| *byte == b'\n') {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let Some(dash) = fields.iter().position(|field| *field == b"-") else {
            continue;
        };
        let is_fuse = fields.get(dash + 1).is_some_and(|fs| fs.starts_with(b"fuse"));
        if !is_fuse || unescape(fields[4]) != at.as_os_str().as_bytes() {
            continue;
        }
        let number = |bytes: &[u8]| std::str::from_utf8(bytes).ok()?.parse::<u64>().ok();
        let minor = fields[2].split(|byte| *byte == b':').nth(1).and_then(number);
        if let (Some(id), Some(minor)) = (number(fields[0]), minor) {
            let minor = u32::try_from(minor).expect("a minor device number has 20 bits");
            found.push(MountLine { id, minor });
        }
    }
    found
}

/// Undoes the octal escapes of mountinfo.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// A mount of ours that is up, for the watchdog.
#[derive(Clone, Debug)]
struct Up {
    test: String,
    minor: u32,
    at: PathBuf,
    pid: u32,
}

static UP: Mutex<Vec<Up>> = Mutex::new(Vec::new());

fn remember(minor: u32, at: &Path, pid: u32) {
    let up = Up { test: test_name(), minor, at: at.to_owned(), pid };
    UP.lock().expect("nobody panics with the list held").push(up);
}

fn forget(minor: u32) {
    UP.lock().expect("nobody panics with the list held").retain(|up| up.minor != minor);
}

fn up() -> Vec<Up> {
    UP.lock().expect("nobody panics with the list held").clone()
}

/// Aborts the connections of one test, so that every call blocked in them returns.
pub(super) fn abort_of_test(test: &str) {
    for mount in up().iter().filter(|mount| mount.test == test) {
        end(mount);
    }
}

/// Aborts every connection of this process and takes the mounts down: the process is about to end.
pub(super) fn abort_all() {
    for mount in up() {
        end(&mount);
        detach(&mount.at);
    }
}

fn end(mount: &Up) {
    abort_connection(mount.minor);
    let pid = i32::try_from(mount.pid).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid
        && let Err(errno) = rustix::process::kill_process(pid, rustix::process::Signal::KILL)
    {
        eprintln!("kill {}: {errno}", mount.pid);
    }
}

/// Returns the directory of FUSE connections, which root mounts where it is missing.
pub fn fuse_connections() -> &'static Path {
    let dir = Path::new(FUSECTL);
    let is_empty = fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none());
    if is_empty && privilege() == Privilege::Root {
        // EBUSY: another test was faster. Anything else shows when the abort file is missing.
        let _already_mounted = rustix::mount::mount("fusectl", dir, "fusectl", MountFlags::empty(), None);
    }
    dir
}

fn abort_connection(minor: u32) {
    let file = fuse_connections().join(minor.to_string()).join("abort");
    if let Err(error) = fs::write(&file, "1") {
        // Only root may, and the connection may be gone; the daemon is killed afterwards, which
        // aborts as well.
        eprintln!("abort {}: {error}", file.display());
    }
}

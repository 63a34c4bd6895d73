//! Processes without root's privileges, for tests that root runs.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{binary, on_kernel, record_skip, require_root};

/// The uid and gid of the plain user.
const USER: u32 = 1000;

/// Who a process runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// A plain user, who mounts through fusermount3.
    PlainUser,
    /// Uid 0 of a user namespace that the plain user has made.
    NamespaceRoot,
}

/// A directory that belongs to the plain user, with a copy of the binary that they can run.
#[derive(Debug)]
pub struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    /// Makes the directory.
    pub fn new() -> Self {
        let dir = tempfile::TempDir::with_prefix("unionfs-rs-user-").expect("the temporary directory can be written");
        let home = Self { dir };
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(home.path(), mode).expect("an own directory");
        chown(home.path(), Some(USER), Some(USER)).expect("root may chown");
        home.take(&binary(), "unionfs-rs");
        home
    }

    /// Returns the directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the copy of the binary.
    pub fn binary(&self) -> PathBuf {
        self.path().join("unionfs-rs")
    }

    /// Copies a program into the directory, since its own place may be closed to the user.
    pub fn take(&self, program: &Path, name: &str) -> PathBuf {
        let copy = self.path().join(name);
        fs::copy(program, &copy).unwrap_or_else(|error| panic!("copy {}: {error}", program.display()));
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("an own file");
        copy
    }

    /// Returns the words that run what follows them as `who`, in namespaces of its own: no mount and no
    /// process outlives the first one, and /dev/fuse is open to everybody as udev has it.
    pub fn wrapper(&self, who: Who) -> Vec<OsString> {
        // The copies of mounts that other tests have now would stay when they unmount them.
        let script = format!(
            "umount -l -a -t fuse.unionfs-rs; d={}/dev; mkdir -p $d; mount -t tmpfs none $d; mknod -m 666 $d/fuse c 10 229; \
             mount --bind $d/fuse /dev/fuse; umount -l $d; exec \"$@\"",
            self.path().display()
        );
        let namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-euc"];
        let user = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"];
        let own_namespace = ["unshare", "--user", "--map-root-user", "--mount"];
        let words = namespaces.into_iter().chain([script.as_str(), "sh"]).chain(user);
        let words = words.chain(own_namespace.into_iter().filter(|_| who == Who::NamespaceRoot));
        words.map(OsString::from).collect()
    }

    /// Says why such processes cannot mount here, where they cannot.
    pub fn obstacle(who: Who) -> Option<String> {
        if who == Who::NamespaceRoot
            && let Ok(limit) = fs::read_to_string("/proc/sys/user/max_user_namespaces")
            && limit.trim() == "0"
        {
            return Some("user namespaces are switched off (user.max_user_namespaces)".to_owned());
        }
        None
    }
}

/// Less than the runner's own patience, so that what hangs is shown with its output.
const PATIENCE: Duration = Duration::from_secs(240);

/// Runs every test of the running one's crate as `who`, but those of modules named `unprivileged`, and shows what failed.
pub fn suite_as(who: Who) {
    if !require_root("becoming another user") {
        return;
    }
    if on_kernel() {
        crate::skip!("the kernel's overlayfs is mounted by root alone here");
    }
    if let Some(reason) = Home::obstacle(who) {
        crate::skip!("{reason}");
    }
    let home = Home::new();
    let this = std::env::current_exe().expect("/proc is mounted");
    let suite = home.take(&this, "suite");
    let words = home.wrapper(who);
    let (skips, output) = (home.path().join("skipped"), home.path().join("output"));
    let log = fs::File::create(&output).expect("the directory can be written");
    fs::write(&skips, "").expect("the directory can be written");
    std::os::unix::fs::chown(&skips, Some(1000), Some(1000)).expect("root may chown");
    eprintln!("{} as {who:?}", binary().display());
    let mut child = Command::new(&words[0])
        .args(&words[1..])
        .arg(suite)
        .args(["--skip", "unprivileged", "--test-threads", "4"])
        .env("UNIONFS_RS_BIN", home.binary())
        .env("RUST_BACKTRACE", "0")
        .env("UNIONFS_TEST_DIR", home.path())
        .env("UNIONFS_SKIP_LOG", &skips)
        .current_dir(home.path())
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a descriptor can be duplicated"))
        .stderr(log)
        .spawn()
        .expect("unshare and setpriv (package util-linux) are installed");
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().expect("an own child can be waited for") {
            break Some(status);
        }
        if Instant::now() > deadline {
            // Everything it started goes with it: see `Home::wrapper`.
            child.kill().expect("an own child can be killed");
            child.wait().expect("an own child can be waited for");
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let skipped = fs::read_to_string(&skips).expect("the directory can be read");
    // Not those of single modes, which ran as root.
    for line in skipped.lines().filter(|line| !line.contains(" Mode {")) {
        let (test, reason) = line.trim_start_matches("SKIPPED: ").split_once(": ").unwrap_or((line, ""));
        record_skip(&format!("{test} as {who:?}"), reason);
    }
    let output = fs::read_to_string(&output).expect("the directory can be read");
    let failures = output.find("\nfailures:\n").map_or(output.as_str(), |from| &output[from..]);
    let ended = status.map_or("in no time".to_owned(), |status| status.to_string());
    assert!(status.is_some_and(|status| status.success()), "the suite as {who:?} ended {ended}:\n{failures}");
    assert!(output.contains("test result: ok."), "the suite did not run:\n{output}");
}

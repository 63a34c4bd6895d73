//! `unionfs-rs doctor`: what this machine offers this user, what is missing, and how to get it.
//!
//! Whatever can be tried without leaving a trace is tried; version numbers and settings are read only
//! where trying would need a mount. What a mount cannot do without makes the command fail.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{Resource, getrlimit};
use rustix::thread::CapabilitySet;

use super::exit::Exit;
use crate::sys::caps;

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It is there.
    Works,
    /// It is not, and mounts work without it.
    Without,
    /// It is not, and no mount works.
    Missing,
}

/// One thing that was looked at.
#[derive(Debug)]
struct Finding {
    name: &'static str,
    state: State,
    detail: String,
    remedy: Option<&'static str>,
}

impl Finding {
    fn works(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, state: State::Works, detail: detail.into(), remedy: None }
    }

    fn without(name: &'static str, detail: impl Into<String>, remedy: &'static str) -> Self {
        Self { name, state: State::Without, detail: detail.into(), remedy: Some(remedy) }
    }

    fn missing(name: &'static str, detail: impl Into<String>, remedy: &'static str) -> Self {
        Self { name, state: State::Missing, detail: detail.into(), remedy: Some(remedy) }
    }
}

/// How this user's mounts are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    /// With mount(2), as root of some user namespace.
    Direct,
    /// By the setuid helper.
    Helper,
}

/// Everything that was found.
#[derive(Debug)]
pub struct Report {
    kernel: String,
    route: Route,
    findings: Vec<Finding>,
}

impl Report {
    /// Returns whether this user can mount here, as an exit code.
    pub fn exit(&self) -> Exit {
        if self.findings.iter().any(|finding| finding.state == State::Missing) { Exit::Machine } else { Exit::Done }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = match (self.route, caps::in_initial_user_namespace()) {
            (Route::Direct, true) => "root",
            (Route::Direct, false) => "root of a user namespace",
            (Route::Helper, _) => "a plain user",
        };
        writeln!(f, "unionfs-rs {} on Linux {}, as {who}", env!("CARGO_PKG_VERSION"), self.kernel)?;
        for finding in &self.findings {
            let state = match finding.state {
                State::Works => "ok",
                State::Without => "without",
                State::Missing => "MISSING",
            };
            writeln!(f, "  {state:7}  {}: {}", finding.name, finding.detail)?;
            if let Some(remedy) = finding.remedy {
                writeln!(f, "           to get it: {remedy}")?;
            }
        }
        match self.exit() {
            Exit::Done => writeln!(f, "This user can mount here."),
            _ => writeln!(f, "This user cannot mount here until what is MISSING is there."),
        }
    }
}

/// Looks at everything.
pub fn examine() -> Report {
    let route = if caps::effective(CapabilitySet::SYS_ADMIN) { Route::Direct } else { Route::Helper };
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").map_or("?".to_owned(), |text| text.trim().to_owned());
    let version = version(&kernel);
    let mut findings = vec![device(route), resolution()];
    findings.extend(match route {
        // The helper is for others here: root has no use for it, nor has anyone in a user namespace.
        Route::Direct if caps::in_initial_user_namespace() => vec![helper(State::Without), private_layers()],
        Route::Direct => vec![private_layers()],
        Route::Helper => vec![helper(State::Missing), new_privileges(), allow_other()],
    });
    findings.extend([trusted_xattrs(), user_namespaces(), passthrough(version), ring(version), open_files()]);
    Report { kernel, route, findings }
}

fn device(route: Route) -> Finding {
    const NAME: &str = "/dev/fuse";
    match File::options().read(true).write(true).open(NAME) {
        Ok(_) => Finding::works(NAME, "opens"),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && route == Route::Helper => Finding::missing(
            NAME,
            error.to_string(),
            "let every user read and write it (chmod 0666 /dev/fuse as root): fusermount3 opens it as this user",
        ),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Finding::missing(
            NAME,
            error.to_string(),
            "let this user read and write it; in a container, start it with --device /dev/fuse",
        ),
        Err(error) => {
            Finding::missing(NAME, error.to_string(), "modprobe fuse; in a container, start it with --device /dev/fuse")
        }
    }
}

/// Tries openat2(2), by which a layer is never left.
fn resolution() -> Finding {
    const NAME: &str = "confined path resolution (openat2)";
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let opened = openat2(CWD, ".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve);
    match opened {
        Ok(_) => Finding::works(NAME, "works"),
        // Where layers cannot be cloned privately either, a mount inside one is only noticed, not walled off.
        Err(errno) => Finding::without(
            NAME,
            errno.to_string(),
            "run Linux 5.6 or later; in a container, allow openat2 in its seccomp profile",
        ),
    }
}

/// Looks for fusermount3; `lack` is what it means if it is not there.
fn helper(lack: State) -> Finding {
    const NAME: &str = "fusermount3";
    let absent = |detail: String, remedy| Finding { name: NAME, state: lack, detail, remedy: Some(remedy) };
    let Some(path) = in_path(NAME) else {
        return absent("not in PATH; plain users cannot mount without it".to_owned(), "install the package fuse3");
    };
    let shown = path.display();
    match fs::metadata(&path) {
        // S_ISUID, see inode(7).
        Ok(meta) if meta.uid() == 0 && meta.mode() & 0o4000 != 0 => {
            Finding::works(NAME, format!("{shown}, set-user-id root"))
        }
        Ok(_) => absent(
            format!("{shown} is not set-user-id root, so that plain users cannot mount"),
            "chown root and chmod 4755 it",
        ),
        Err(error) => absent(format!("{shown}: {error}"), "install the package fuse3 again"),
    }
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Reads the flag that robs set-user-id programs of their effect; see PR_SET_NO_NEW_PRIVS(2const).
fn new_privileges() -> Finding {
    const NAME: &str = "set-user-id programs";
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if status.lines().any(|line| line.split_ascii_whitespace().eq(["NoNewPrivs:", "1"])) {
        Finding::missing(
            NAME,
            "without effect here (no_new_privs)",
            "mount inside `unshare -Urm`, or run without no_new_privs",
        )
    } else {
        Finding::works(NAME, "take effect")
    }
}

fn allow_other() -> Finding {
    const NAME: &str = "--allow-other and --allow-root";
    let conf = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if permits_others(&conf) {
        Finding::works(NAME, "permitted by user_allow_other in /etc/fuse.conf")
    } else {
        Finding::without(
            NAME,
            "not permitted to plain users",
            "have root write the line user_allow_other into /etc/fuse.conf",
        )
    }
}

/// Returns whether fusermount3 takes allow_other from plain users, by the text of /etc/fuse.conf.
fn permits_others(conf: &str) -> bool {
    conf.lines().any(|line| line.trim() == "user_allow_other")
}

/// Tries open_tree(2), by which each layer is seen alone.
fn private_layers() -> Finding {
    const NAME: &str = "private clones of layers (open_tree)";
    match open_tree(CWD, "/", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC) {
        Ok(_) => Finding::works(NAME, "works: a union may be mounted over its own layers"),
        // A clone would show what the mounts below hide, which their namespace has locked over it.
        Err(Errno::INVAL) => Finding::without(
            NAME,
            "works where no inherited mount is below the layers' file system; elsewhere no union on or inside its own layers",
            "mount the file system of the layers in this namespace",
        ),
        Err(errno) => Finding::without(
            NAME,
            format!("{errno}; a union cannot be mounted on or inside its own layers"),
            "run Linux 5.2 or later, with CAP_SYS_ADMIN and a seccomp profile that allows open_tree",
        ),
    }
}

fn trusted_xattrs() -> Finding {
    const NAME: &str = "trusted xattrs and device whiteouts";
    if caps::trusted_xattrs() {
        Finding::works(NAME, "available: uppers are interchangeable with the kernel's overlayfs")
    } else {
        Finding::without(
            NAME,
            "not permitted; user xattrs are written, which the kernel reads with userxattr",
            "run as root",
        )
    }
}

/// Tries to be root of a user namespace of its own.
fn user_namespaces() -> Finding {
    const NAME: &str = "user namespaces";
    const ALLOW: &str = "sysctl user.max_user_namespaces=10000; where they exist, also \
        kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0";
    let limit = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    let tried = Command::new("unshare").args(["-Ur", "true"]).stdin(Stdio::null()).output();
    match tried {
        Ok(output) if output.status.success() => Finding::works(NAME, format!("can be made (up to {})", limit.trim())),
        Ok(output) => Finding::without(NAME, String::from_utf8_lossy(output.stderr.trim_ascii()).into_owned(), ALLOW),
        Err(error) => Finding::without(NAME, format!("not tried: unshare: {error}"), "install the package util-linux"),
    }
}

/// Tells by version and privilege: FUSE_DEV_IOC_BACKING_OPEN answers on a mounted connection only.
fn passthrough(version: Option<(u32, u32)>) -> Finding {
    const NAME: &str = "--io passthrough";
    let new_enough = version >= Some((6, 9));
    match (new_enough, caps::trusted_xattrs()) {
        (true, true) => Finding::works(NAME, "offered, if the kernel was built with it"),
        (true, false) => Finding::without(NAME, "for root in the initial user namespace alone", "run as root"),
        (false, _) => Finding::without(NAME, "this kernel is too old", "run Linux 6.9 or later"),
    }
}

/// Reads the two switches of FUSE over io_uring.
fn ring(version: Option<(u32, u32)>) -> Finding {
    const NAME: &str = "FUSE over io_uring";
    let fuse = fs::read_to_string("/sys/module/fuse/parameters/enable_uring").ok();
    let uring = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
    match (fuse.as_deref().map(str::trim), uring.as_deref().map(str::trim)) {
        (None, _) if version < Some((6, 14)) => {
            Finding::without(NAME, "this kernel is too old", "run Linux 6.14 or later")
        }
        (None, _) => Finding::without(NAME, "not built into this kernel", "run one with CONFIG_FUSE_IO_URING"),
        (Some(_), Some("2")) => Finding::without(NAME, "io_uring is disabled", "sysctl kernel.io_uring_disabled=0"),
        (Some("Y"), Some("1")) => Finding::works(NAME, "on, for members of kernel.io_uring_group and CAP_SYS_ADMIN"),
        (Some("Y"), _) => Finding::works(NAME, "on"),
        (Some(_), _) => Finding::without(NAME, "switched off", "echo Y > /sys/module/fuse/parameters/enable_uring"),
    }
}

/// Reads the limit on open files, which bounds how many layer files and directories are kept open.
fn open_files() -> Finding {
    const NAME: &str = "open files";
    /// Fewer than this leave less than a few directories to each layer of a deep image.
    const ENOUGH: u64 = 4096;
    let limit = getrlimit(Resource::Nofile);
    let shown = |bound: Option<u64>| bound.map_or("unlimited".to_owned(), |bound| bound.to_string());
    let detail = format!("{}, raised to {} by each mount", shown(limit.current), shown(limit.maximum));
    if limit.maximum.is_none_or(|hard| hard >= ENOUGH) {
        Finding::works(NAME, detail)
    } else {
        Finding::without(
            NAME,
            format!("{detail}: few, so that files are often opened again"),
            "raise the hard limit (ulimit -Hn)",
        )
    }
}

/// Reads the first two numbers of a kernel release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_read() {
        let table = [("6.18.44-fc-v657", Some((6, 18))), ("5.4", Some((5, 4))), ("6.9-rc1", Some((6, 9))), ("?", None)];
        for (release, expected) in table {
            assert_eq!(version(release), expected, "{release}");
        }
    }

    #[test]
    fn a_commented_out_user_allow_other_permits_nothing() {
        assert!(!permits_others("#user_allow_other\n# user_allow_other\nmount_max = 1000\n"));
        assert!(permits_others("mount_max = 5\nuser_allow_other\n"));
    }

    #[test]
    fn a_report_fails_if_something_essential_is_missing_and_says_how_to_get_it() {
        let report = |findings| Report { kernel: "6.1".into(), route: Route::Helper, findings };
        let optional = report(vec![Finding::without("ring", "off", "switch it on")]);
        assert_eq!(optional.exit(), Exit::Done);
        let essential = report(vec![Finding::missing("/dev/fuse", "not there", "modprobe fuse")]);
        assert_eq!(essential.exit(), Exit::Machine);
        assert!(essential.to_string().contains("to get it: modprobe fuse"), "{essential}");
    }
}

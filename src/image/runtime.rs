//! What an OCI runtime is told to run of an image: its `config.json`.
//!
//! The image's configuration says what it is to run and as whom; the rest is what Docker and podman give a container by
//! default. Nothing is started here.

use std::collections::HashMap;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::manifest::Image;
use crate::error::{Error, Result};

/// Where programs are looked for, if the image does not say so.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What root may do in a container of Docker's.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// What of /proc and /sys tells of the host, and is not seen.
const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// What of /proc changes the host, and cannot be written.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The group that terminals belong to.
const TTY: u64 = 5;

/// What an image says of how it is run: `config` in its configuration.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Execution {
    /// `user[:group]`, names or numbers.
    pub user: Option<String>,
    /// `NAME=value`.
    pub env: Option<Vec<String>>,
    /// The program, and its first arguments.
    pub entrypoint: Option<Vec<String>>,
    /// Further arguments, or, without an entrypoint, the program and its arguments.
    pub cmd: Option<Vec<String>>,
    /// Where it starts.
    pub working_dir: Option<String>,
}

impl Execution {
    /// Reads what `image` says. Errors: where it is nothing that can be run.
    pub fn of(image: &Image) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Configuration {
            config: Option<Execution>,
        }
        let read: Configuration = serde_json::from_slice(&image.config_bytes)
            .map_err(|error| Error::image(image.id(), format!("its configuration cannot be run: {error}")))?;
        Ok(read.config.unwrap_or_default())
    }
}

/// Who a container's first process is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// The user's number.
    pub uid: u32,
    /// The group's.
    pub gid: u32,
    /// Those of further groups.
    pub groups: Vec<u32>,
    /// The home directory.
    pub home: Option<String>,
}

impl User {
    /// Finds who `text` is, `user[:group]`, in the container's own /etc/passwd and /etc/group. An empty text is root.
    ///
    /// Errors: [`Error::Image`] for a name that is not in them.
    pub fn find(text: &str, passwd: &str, group: &str) -> Result<Self> {
        let absent = |what: &str, name: &str| {
            Error::image(format!("user {text:?}"), format!("the image has no {what} {name:?}; give its number"))
        };
        let (user, wanted_group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        let (user, wanted_group) =
            (if user.is_empty() { "0" } else { user }, wanted_group.filter(|group| !group.is_empty()));
        let number = user.parse::<u32>().ok();
        let lines = || passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let entry = lines().find(|line| match (line.as_slice(), number) {
            ([_, _, uid, ..], Some(number)) => uid.parse() == Ok(number),
            ([name, ..], None) => *name == user,
            _ => false,
        });
        let field = |at: usize| entry.as_ref().and_then(|line| line.get(at).copied());
        let uid = number.or_else(|| field(2)?.parse().ok()).ok_or_else(|| absent("user", user))?;
        let home = field(5).filter(|home| !home.is_empty()).map(str::to_owned);
        let mut found =
            Self { uid, gid: field(3).and_then(|gid| gid.parse().ok()).unwrap_or(0), groups: Vec::new(), home };
        let groups = || group.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let number_of = |line: &Vec<&str>| line.get(2).and_then(|gid| gid.parse::<u32>().ok());
        match wanted_group {
            Some(name) => {
                let by_name = || groups().find(|line| line.first() == Some(&name)).as_ref().and_then(number_of);
                found.gid = name.parse().ok().or_else(by_name).ok_or_else(|| absent("group", name))?;
            }
            None => {
                let name = field(0);
                let member =
                    |line: &Vec<&str>| line.get(3).is_some_and(|all| all.split(',').any(|one| Some(one) == name));
                found.groups = groups().filter(member).filter_map(|line| number_of(&line)).collect();
            }
        }
        Ok(found)
    }
}

/// What the network of a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Its own, which leads nowhere.
    None,
    /// The host's.
    Host,
}

/// A directory or file of the host that the container has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// On the host.
    pub source: PathBuf,
    /// In the container, absolute.
    pub target: String,
    /// Whether it can be written there.
    pub writable: bool,
}

/// Who may hold resources of a container together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cgroup {
    /// Nobody: a plain user has no cgroup to give.
    None,
    /// One at this path.
    At(String),
}

/// What was said about one run.
#[derive(Debug, Clone)]
pub struct Wish {
    /// What takes the place of the image's command, if not empty.
    pub command: Vec<String>,
    /// What takes the place of the image's entrypoint, and of its command.
    pub entrypoint: Option<Vec<String>>,
    /// `NAME=value` beside the image's.
    pub env: Vec<String>,
    /// Where it starts.
    pub working_dir: Option<String>,
    /// What the host is called in it.
    pub hostname: String,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// Whether the root cannot be written.
    pub read_only: bool,
    /// Its network.
    pub network: Network,
    /// What it has of the host.
    pub binds: Vec<Bind>,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// How many ids there are in its user namespace.
    pub ids: u64,
}

/// Returns what the runtime is told of a bundle whose root is `rootfs`.
///
/// Errors: [`Error::Image`] where there is nothing to run.
pub fn spec(execution: &Execution, user: &User, wish: &Wish) -> Result<Value> {
    let args = args(execution, wish)?;
    let cwd = wish.working_dir.as_ref().or(execution.working_dir.as_ref());
    let cwd = cwd.map(String::as_str).filter(|cwd| !cwd.is_empty()).unwrap_or("/");
    if !cwd.starts_with('/') {
        return Err(Error::image(cwd, "is no absolute path to start in (--workdir)"));
    }
    let may: &[&str] = if user.uid == 0 { &CAPABILITIES } else { &[] };
    let mut namespaces = vec!["pid", "ipc", "uts", "mount"];
    if wish.network == Network::None {
        namespaces.push("network");
    }
    let namespaces: Vec<Value> = namespaces.into_iter().map(|kind| json!({"type": kind})).collect();
    let mut linux = json!({"namespaces": namespaces, "maskedPaths": MASKED, "readonlyPaths": READ_ONLY});
    if let (Cgroup::At(path), Some(linux)) = (&wish.cgroup, linux.as_object_mut()) {
        linux.insert("cgroupsPath".into(), json!(path));
        // The runtime allows those of /dev again.
        linux.insert("resources".into(), json!({"devices": [{"allow": false, "access": "rwm"}]}));
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": wish.terminal,
            "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups},
            "args": args,
            "env": environment(execution, user, wish),
            "cwd": cwd,
            "capabilities": {"bounding": CAPABILITIES, "effective": may, "permitted": may},
            "noNewPrivileges": false,
        },
        "root": {"path": "rootfs", "readonly": wish.read_only},
        "hostname": wish.hostname,
        "mounts": mounts(wish),
        "linux": linux,
    }))
}

fn args(execution: &Execution, wish: &Wish) -> Result<Vec<String>> {
    let (entrypoint, default) = match &wish.entrypoint {
        // Its arguments were those of the other one.
        Some(entrypoint) => (entrypoint.clone(), Vec::new()),
        None => (execution.entrypoint.clone().unwrap_or_default(), execution.cmd.clone().unwrap_or_default()),
    };
    let command = if wish.command.is_empty() { default } else { wish.command.clone() };
    let args = [entrypoint, command].concat();
    if args.is_empty() {
        return Err(Error::image("image", "names no program to run; give one after its name"));
    }
    Ok(args)
}

/// Returns the environment: of each name the last value.
fn environment(execution: &Execution, user: &User, wish: &Wish) -> Vec<String> {
    let mut all = vec![PATH.to_owned(), format!("HOME={}", user.home.as_deref().unwrap_or("/"))];
    all.push(format!("HOSTNAME={}", wish.hostname));
    if wish.terminal {
        all.push("TERM=xterm".into());
    }
    all.extend(execution.env.iter().flatten().cloned());
    all.extend(wish.env.iter().cloned());
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut env: Vec<String> = Vec::new();
    for entry in all {
        let name = entry.split('=').next().unwrap_or_default().to_owned();
        match places.get(&name).and_then(|at| env.get_mut(*at)) {
            Some(other) => *other = entry,
            None => {
                places.insert(name, env.len());
                env.push(entry);
            }
        }
    }
    env
}

fn mounts(wish: &Wish) -> Vec<Value> {
    let mount = |target: &str, kind: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": kind, "options": options});
    let mut terminals = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    if wish.ids > TTY {
        terminals.push("gid=5");
    }
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", &terminals),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ];
    let bind = |source: &str, target: &str, options: &[&str]| json!({"destination": target, "type": "bind", "source": source, "options": options});
    match wish.network {
        Network::None => mounts.push(mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"])),
        Network::Host => {
            // A sysfs can be mounted only by who owns the network.
            mounts.push(bind("/sys", "/sys", &["rbind", "nosuid", "noexec", "nodev", "ro"]));
            for file in ["/etc/resolv.conf", "/etc/hosts"] {
                if std::path::Path::new(file).exists() {
                    mounts.push(bind(file, file, &["rbind", "ro"]));
                }
            }
        }
    }
    for Bind { source, target, writable } in &wish.binds {
        mounts.push(bind(
            &source.to_string_lossy(),
            target,
            &["rbind", "rprivate", if *writable { "rw" } else { "ro" }],
        ));
    }
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:34::/srv:/bin/sh\nbroken\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nadm:x:4:syslog,www\nother:x:60:wwww\n";

    fn user(text: &str) -> Result<User> {
        User::find(text, PASSWD, GROUP)
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        let www = User { uid: 33, gid: 34, groups: vec![4], home: Some("/srv".into()) };
        assert_eq!(user("www").unwrap(), www);
        assert_eq!(user("33").unwrap(), www);
        assert_eq!(user("www:adm").unwrap(), User { gid: 4, groups: Vec::new(), ..www.clone() });
        assert_eq!(user("www:7").unwrap(), User { gid: 7, groups: Vec::new(), ..www });
        assert_eq!(user("4711").unwrap(), User { uid: 4711, ..User::default() });
        assert_eq!(user("").unwrap().home.as_deref(), Some("/root"));
        for (text, reason) in
            [("nobody", "no user \"nobody\""), ("www:nogroup", "no group \"nogroup\""), ("-1", "no user")]
        {
            let error = user(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    fn wish() -> Wish {
        Wish {
            command: Vec::new(),
            entrypoint: None,
            env: Vec::new(),
            working_dir: None,
            hostname: "h".into(),
            terminal: false,
            read_only: false,
            network: Network::None,
            binds: Vec::new(),
            cgroup: Cgroup::None,
            ids: 1,
        }
    }

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn a_command_takes_the_place_of_the_images_and_an_entrypoint_that_of_both() {
        let execution =
            Execution { entrypoint: Some(strings(&["/init"])), cmd: Some(strings(&["serve"])), ..Execution::default() };
        assert_eq!(args(&execution, &wish()).unwrap(), ["/init", "serve"]);
        let command = Wish { command: strings(&["sh", "-c"]), ..wish() };
        assert_eq!(args(&execution, &command).unwrap(), ["/init", "sh", "-c"]);
        let entrypoint = Wish { entrypoint: Some(strings(&["env"])), ..wish() };
        assert_eq!(args(&execution, &entrypoint).unwrap(), ["env"]);
        assert!(args(&Execution::default(), &wish()).is_err());
    }

    #[test]
    fn of_each_variable_the_last_value_holds() {
        let execution = Execution { env: Some(strings(&["PATH=/bin", "A=1", "A=2"])), ..Execution::default() };
        let wish = Wish { env: strings(&["A=3", "B=b=c"]), ..wish() };
        assert_eq!(
            environment(&execution, &User::default(), &wish),
            ["PATH=/bin", "HOME=/", "HOSTNAME=h", "A=3", "B=b=c"]
        );
    }

    #[test]
    fn who_is_not_root_has_no_capabilities() {
        let execution = Execution { cmd: Some(strings(&["id"])), ..Execution::default() };
        let of = |uid| {
            let spec = spec(&execution, &User { uid, ..User::default() }, &wish()).unwrap();
            spec["process"]["capabilities"]["effective"].as_array().unwrap().len()
        };
        assert_eq!((of(0), of(33)), (CAPABILITIES.len(), 0));
    }
}

//! `run`: an image's command in a container of its own, by crun or runc.
//!
//! This process serves the tree, in namespaces that nobody else sees, and the runtime is its child. So whatever ends it,
//! no mount is left; and the writable layer is removed in the end, unless it is to be kept.

use std::fs;
use std::io::{IsTerminal, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command as Process, ExitStatus, Stdio};

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use super::containers;
use super::mountpoints::MountPoints;
use super::served::Served;
use super::{namespaces, open_store, store_arg, words};
use crate::cli::exit::{Exit, Failure};
use crate::image::manifest::Image;
use crate::image::runtime::{self, Bind, Cgroup, Execution, Network, User, Wish};
use crate::image::stack::open_regular;
use crate::image::store::{Container, Store};
use crate::sys::caps;

/// What `run` exits with where the container was not run, as Docker and podman do.
const NOT_RUN: u8 = 125;

/// The most of /etc/passwd and /etc/group that is read.
const ACCOUNTS_MAX: u64 = 16 << 20;

pub fn commands() -> Vec<Command> {
    let switch =
        |name: &'static str, help: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    let value = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    vec![
        Command::new("run")
            .about("Runs a command in a container of an image, by crun or runc")
            .long_about(
                "Runs a command in a container of an image, by crun or runc, and exits as it does. What the command writes is \
                 gone with it, unless --keep. As a plain user root of the container is that user, and others are the user's \
                 subordinate ids (subuid(5)); without any there is root alone. Exits with 125 where the container could not be \
                 run.",
            )
            .after_help(
                "Examples:\n  unionfs-rs run debian cat /etc/os-release\n  unionfs-rs run -it --keep debian\n  \
                 unionfs-rs run --container 1a2b make test",
            )
            .arg(
                Arg::new("IMAGE")
                    .required(true)
                    .num_args(1..)
                    .trailing_var_arg(true)
                    .value_names(["IMAGE", "COMMAND"])
                    .help("An image, unless --container names what is run; then the command, by default the image's"),
            )
            .arg(value("container", "ID", "Run in this container, which stays").exclusive(false))
            .arg(switch("keep", "Keep the container with what was written; ps lists it, commit makes an image of it"))
            .arg(value("cidfile", "FILE", "Write the id of the container to a new file"))
            .arg(switch("interactive", "Give it standard input").short('i'))
            .arg(switch("tty", "Give it a terminal").short('t'))
            .arg(value("env", "NAME[=VALUE]", "Set a variable; without a value, as it is here").short('e').action(ArgAction::Append))
            .arg(value("workdir", "DIR", "Where it starts").short('w'))
            .arg(value("user", "USER[:GROUP]", "Who it is, by name or number").short('u'))
            .arg(value("entrypoint", "PROGRAM", "What takes the place of the image's entrypoint"))
            .arg(value("hostname", "NAME", "What the host is called in it [default: the container's id]"))
            .arg(
                value("network", "KIND", "none: its own, which leads nowhere; host: the host's")
                    .value_parser(PossibleValuesParser::new(["none", "host"]))
                    .default_value("none"),
            )
            .arg(
                value("volume", "SOURCE:TARGET[:ro]", "Give it a directory or file of the host")
                    .short('v')
                    .action(ArgAction::Append),
            )
            .arg(switch("read-only", "Let nothing be written to its root"))
            .arg(value("runtime", "PROGRAM", "The runtime [default: crun or runc, which this machine's cgroups suit]"))
            .arg(store_arg()),
    ]
}

pub fn run(matches: &ArgMatches) -> Result<Exit, Failure> {
    let not_run = |failure: Failure| Failure { exit: Exit::Other(NOT_RUN), ..failure };
    let status = try_run(matches).map_err(not_run)?;
    // As a shell does.
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(Exit::Other(u8::try_from(code).unwrap_or(NOT_RUN)))
}

fn try_run(matches: &ArgMatches) -> Result<ExitStatus, Failure> {
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    // Looked for where this process came from; that there is none is said once there is something to run.
    let runtime = find_runtime(text("runtime"));
    // How the store is kept is settled by who it belongs to, and not by the root of a namespace.
    drop(open_store(matches)?);
    namespaces::enter()?;
    let store = open_store(matches)?;
    let mut command: Vec<String> = words(matches, "IMAGE").map(str::to_owned).collect();
    if let Some(id) = text("container") {
        let container = store.container(&id)?;
        return in_container(matches, store, &container, command, runtime).map_err(|(failure, _)| failure);
    }
    // clap lets no command line without it through.
    let image = if command.is_empty() { String::new() } else { command.remove(0) };
    let container = containers::make(&store, &image, !matches.get_flag("keep"))?;
    in_container(matches, store, &container, command, runtime).map_err(|(failure, started)| {
        if started == Started::No {
            // Nobody was told of it. That it goes on being there is said by ps.
            let _ = container.remove();
        }
        failure
    })
}

/// Whether the command may have run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Started {
    No,
    Yes,
}

fn in_container(
    matches: &ArgMatches,
    store: Store,
    container: &Container,
    command: Vec<String>,
    runtime: Result<PathBuf, Failure>,
) -> Result<ExitStatus, (Failure, Started)> {
    let not = |failure: Failure| (failure, Started::No);
    let runtime = runtime.map_err(not)?;
    let bundle = Bundle { path: container.bundle() };
    let image = containers::image_of(&store, container).map_err(not)?;
    let mut served = Served::start(&store, container, &bundle.rootfs()).map_err(not)?;
    // The container is held: what the store has for it stays, and others may remove the rest.
    drop(store);
    // What one has left that a crash has ended.
    bundle.clear();
    let written = served.note().and_then(|()| bundle.write(matches, &image, container, command));
    let ran = written.and_then(|points| write_id(matches, container).map(|()| points)).map_err(not);
    let ran = ran.and_then(|points| {
        let status = guarded(matches, &runtime, &bundle, container).map_err(|failure| (failure, Started::Yes));
        points.clear();
        status
    });
    let status = ran.map(|status| bundle.told(status));
    bundle.clear();
    if let Err(failure) = served.end() {
        // What the command has ended with is what was asked for.
        log::error!("{failure}");
    }
    status
}

/// Writes the container's id to the file that is to have it.
fn write_id(matches: &ArgMatches, container: &Container) -> Result<(), Failure> {
    let Some(file) = matches.get_one::<String>("cidfile") else { return Ok(()) };
    let failed = |error| Failure::new(Exit::Failed, format!("{file}: {error}; name a new file"));
    let mut new = fs::File::create_new(file).map_err(failed)?;
    new.write_all(container.config.id.as_bytes()).map_err(failed)
}

/// Runs the command, and sees to its end.
fn guarded(
    matches: &ArgMatches,
    runtime: &Path,
    bundle: &Bundle,
    container: &Container,
) -> Result<ExitStatus, Failure> {
    let guard = Guard::start(runtime, bundle, container)?;
    let status = started(matches, runtime, bundle, container).and_then(watched);
    guard.end();
    status
}

/// What the runtime is given: the tree and what to run in it.
struct Bundle {
    path: PathBuf,
}

impl Bundle {
    fn rootfs(&self) -> PathBuf {
        self.path.join("rootfs")
    }

    /// Returns where the runtime notes the container's first process, once it has started it.
    fn pid_file(&self) -> PathBuf {
        self.path.join("pid")
    }

    /// Returns what the command has ended with, which was not run where the runtime says so.
    fn told(&self, status: ExitStatus) -> ExitStatus {
        if status.code() == Some(1) && !self.pid_file().exists() {
            return ExitStatus::from_raw(i32::from(NOT_RUN) << 8);
        }
        status
    }

    /// Returns where the runtime keeps what it knows of the container.
    fn state(&self) -> PathBuf {
        self.path.join("run")
    }

    /// Writes its config.json; returns what the runtime will make in the tree to mount on.
    fn write(
        &self,
        matches: &ArgMatches,
        image: &Image,
        container: &Container,
        command: Vec<String>,
    ) -> Result<MountPoints, Failure> {
        let execution = Execution::of(image)?;
        let root = self.rootfs();
        let text = |name: &str| matches.get_one::<String>(name).cloned();
        let who = text("user").or_else(|| execution.user.clone()).unwrap_or_default();
        let within = |error: crate::error::Error| {
            Failure::from(error.within(container.config.image_name.as_ref().unwrap_or(&container.config.image)))
        };
        let (passwd, group) = (account_file(&root, "etc/passwd")?, account_file(&root, "etc/group")?);
        let user = User::find(&who, &passwd, &group).map_err(within)?;
        let wish = Wish {
            command,
            entrypoint: text("entrypoint").map(|program| vec![program]),
            env: words(matches, "env").filter_map(variable).collect(),
            working_dir: text("workdir"),
            hostname: text("hostname").unwrap_or_else(|| container.config.id.clone()),
            terminal: matches.get_flag("tty"),
            read_only: matches.get_flag("read-only"),
            network: if text("network").as_deref() == Some("host") { Network::Host } else { Network::None },
            binds: words(matches, "volume").map(bind).collect::<Result<_, _>>()?,
            cgroup: match caps::in_initial_user_namespace() {
                true => Cgroup::At(format!("/unionfs-rs-{}", container.config.id)),
                false => Cgroup::None,
            },
            ids: caps::mapped_ids(),
        };
        let spec = runtime::spec(&execution, &user, &wish).map_err(within)?;
        let path = self.path.join("config.json");
        let failed =
            |path: &Path, error: std::io::Error| Failure::new(Exit::Failed, format!("{}: {error}", path.display()));
        fs::write(&path, spec.to_string()).map_err(|error| failed(&path, error))?;
        let targets = spec["mounts"].as_array().into_iter().flatten().filter_map(|mount| mount["destination"].as_str());
        MountPoints::lacking(&root, targets).map_err(|errno| failed(&root, errno.into()))
    }

    /// Removes what is in it but the root: a container that is kept has nothing of it.
    fn clear(&self) {
        let files = [self.path.join("config.json"), self.pid_file()];
        let removed = files.map(fs::remove_file).into_iter().chain([fs::remove_dir_all(self.state())]);
        for error in removed.filter_map(Result::err) {
            if error.kind() != std::io::ErrorKind::NotFound {
                log::warn!("{}: {error}", self.path.display());
            }
        }
    }
}

/// Reads a file of the container; one that is not there is empty. Links lead nowhere but into the container.
fn account_file(root: &Path, path: &str) -> Result<String, Failure> {
    let failed = |error: std::io::Error| Failure::new(Exit::Failed, format!("{path} of the container: {error}"));
    let open = || {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let root = rustix::fs::open(root, flags | OFlags::DIRECTORY, Mode::empty())?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let seen = rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)?;
        if FileType::from_raw_mode(rustix::fs::fstat(&seen)?.st_mode) == FileType::Fifo {
            return Err(Errno::NXIO);
        }
        open_regular(&seen)
    };
    let file = match open() {
        Ok(Some(file)) => file,
        Err(Errno::NXIO) => {
            let reason = "is a FIFO, which the runtime would open and wait at for ever; remove it (unionfs-rs mount)";
            return Err(Failure::new(Exit::Failed, format!("{path} of the container: {reason}")));
        }
        // Whatever else is there has no users in it.
        Ok(None) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(String::new()),
        Err(errno) => return Err(failed(errno.into())),
    };
    let mut bytes = Vec::new();
    file.take(ACCOUNTS_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns `NAME=value`; `None` for a name that has no value here.
fn variable(text: &str) -> Option<String> {
    if text.contains('=') {
        return Some(text.to_owned());
    }
    std::env::var(text).ok().map(|value| format!("{text}={value}"))
}

/// Reads `SOURCE:TARGET[:ro|:rw]`.
fn bind(text: &str) -> Result<Bind, Failure> {
    let wrong =
        |reason: &str| Failure::new(Exit::Usage, format!("--volume {text}: {reason}; write SOURCE:TARGET[:ro]"));
    let mut parts = text.split(':');
    let (Some(source), Some(target), how, None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(wrong("is not two paths"));
    };
    let writable = match how {
        None | Some("rw") => true,
        Some("ro") => false,
        Some(_) => return Err(wrong("the third part is neither ro nor rw")),
    };
    if !target.starts_with('/') {
        return Err(wrong("the target is not absolute"));
    }
    let source = fs::canonicalize(source).map_err(|error| wrong(&error.to_string()))?;
    if source.to_str().is_none() {
        return Err(wrong("the source is not UTF-8, as the runtime wants it"));
    }
    Ok(Bind { source, target: target.to_owned(), writable })
}

/// Finds the runtime: what was named, else the first that is there and suits this machine's cgroups.
fn find_runtime(named: Option<String>) -> Result<PathBuf, Failure> {
    let search = std::env::var_os("PATH").unwrap_or_default();
    let find = |name: &str| {
        let dirs = std::env::split_paths(&search).chain(["/usr/sbin".into(), "/sbin".into()]);
        dirs.map(|dir| dir.join(name)).find(|path| path.is_file())
    };
    if let Some(name) = named {
        let found = if name.contains('/') { fs::canonicalize(&name).ok() } else { find(&name) };
        return found.ok_or_else(|| Failure::new(Exit::Usage, format!("--runtime {name}: there is no such program")));
    }
    // crun refuses where version 1 of cgroups is mounted beside version 2.
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let order = if unified { ["crun", "runc"] } else { ["runc", "crun"] };
    order.into_iter().find_map(find).ok_or_else(|| {
        let remedy = "install one of them (Debian: apt-get install crun), or name another with --runtime";
        Failure::new(Exit::Machine, format!("neither crun nor runc is there; {remedy}"))
    })
}

fn started(matches: &ArgMatches, runtime: &Path, bundle: &Bundle, container: &Container) -> Result<Child, Failure> {
    let mut process = Process::new(runtime);
    process
        .arg("--root")
        .arg(bundle.state())
        .arg("run")
        .arg("--pid-file")
        .arg(bundle.pid_file())
        .arg("--bundle")
        .arg(&bundle.path);
    process.arg(&container.config.id);
    if matches.get_flag("tty") && !std::io::stdin().is_terminal() {
        return Err(Failure::new(Exit::Usage, "--tty: standard input is no terminal"));
    }
    if !matches.get_flag("interactive") && !matches.get_flag("tty") {
        process.stdin(Stdio::null());
    }
    process.spawn().map_err(|error| Failure::new(Exit::Machine, format!("{}: {error}", runtime.display())))
}

/// Ends the container if this process ends without having seen to it: nobody would serve its tree.
struct Guard {
    told: ChildStdin,
    process: Child,
}

impl Guard {
    fn start(runtime: &Path, bundle: &Bundle, container: &Container) -> Result<Self, Failure> {
        let mut shell = Process::new("sh");
        shell.args(["-c", r#"read -r done || exec "$0" --root "$1" delete --force "$2""#]).arg(runtime);
        shell.arg(bundle.state()).arg(&container.config.id);
        // What is typed at the terminal is not for it.
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let failed = |error| Failure::new(Exit::Machine, format!("sh: {error}"));
        let mut process = shell.spawn().map_err(failed)?;
        let told = process.stdin.take().ok_or_else(|| failed(std::io::ErrorKind::BrokenPipe.into()))?;
        Ok(Self { told, process })
    }

    fn end(mut self) {
        let told = self.told.write_all(b"done\n");
        drop(self.told);
        if let Err(error) = told.and_then(|()| self.process.wait()) {
            log::warn!("sh: {error}");
        }
    }
}

/// Waits for the runtime, and hands signals on to it.
fn watched(mut child: Child) -> Result<ExitStatus, Failure> {
    let failed = |error| Failure::new(Exit::Failed, format!("the runtime: {error}"));
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2]).map_err(failed)?;
    let handle = signals.handle();
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    // What is typed at a terminal reaches the runtime without us.
    let typed = std::io::stdin().is_terminal();
    let status = std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in signals.forever() {
                let signal = Signal::from_named_raw(number).filter(|_| !(typed && matches!(number, SIGINT | SIGQUIT)));
                if let (Some(pid), Some(signal)) = (pid, signal) {
                    let _ = rustix::process::kill_process(pid, signal); // It may have ended by itself.
                }
            }
        });
        let status = child.wait();
        handle.close();
        status
    });
    status.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_two_paths_and_perhaps_a_word() {
        let read = |text: &str| bind(text).map(|bind| (bind.target, bind.writable));
        assert_eq!(read("/:/mnt").unwrap(), ("/mnt".into(), true));
        assert_eq!(read("/:/mnt:ro").unwrap(), ("/mnt".into(), false));
        for (text, reason) in [
            ("/", "not two paths"),
            ("/:/mnt:ro:x", "not two paths"),
            ("/:mnt", "not absolute"),
            ("/:/mnt:rx", "neither ro nor rw"),
            ("/no/such/directory:/mnt", "No such file"),
        ] {
            let failure = bind(text).unwrap_err();
            assert!(failure.message.contains(reason), "{failure}");
            assert_eq!(failure.exit, Exit::Usage);
        }
    }
}

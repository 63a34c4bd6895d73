//! `cp`: files out of containers and images, and into containers.
//!
//! What an image says never leads out of it: what is copied out is read from its layers, where links are resolved from its
//! root, and what is copied in is written through a mount, in which the kernel does the same.

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Arg, ArgAction, ArgMatches, Command};
use rustix::fs::{FsWord, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::served::Served;
use super::subject::Subject;
use super::{namespaces, open_store, os_word, path_arg, store_arg};
use crate::cli::exit::{Exit, Failure};
use crate::image::export::write_tree;
use crate::image::extract::{Conflict, Extract, Owners, Tree};
use crate::image::host::{Host, HostFile};
use crate::image::resolve::Last;
use crate::image::stack::Stack;
use crate::image::store::{Container, Store};
use crate::layer::attr::FileKind;
use crate::sys::namespace::start_time;

pub fn commands() -> Vec<Command> {
    let switch = |name: &'static str, short: char, help: &'static str| {
        Arg::new(name).long(name).short(short).action(ArgAction::SetTrue).help(help)
    };
    vec![
        Command::new("cp")
            .about("Copies files out of a container or an image, or into a container")
            .long_about(
                "Copies files and directories out of a container or an image, or into a container, whether it is mounted or \
                 not. NAME:PATH is a path in one; links in it lead nowhere else. Into a directory that is there, what is \
                 copied goes under its own name; SOURCE/. is what is in a directory. Sockets are left out; of a file with \
                 several names each is a copy.",
            )
            .after_help(
                "Examples:\n  unionfs-rs cp debian:/etc/os-release .\n  unionfs-rs cp ./conf 1a2b:/etc/app\n  \
                 unionfs-rs cp 1a2b:/var/log - | tar t",
            )
            .arg(path_arg("SOURCE").help("NAME:PATH, or a path of the host"))
            .arg(path_arg("TARGET").help("CONTAINER:PATH, a path of the host, or - for a tar on standard output"))
            .arg(switch("archive", 'a', "Keep owners, set-id bits and xattrs, which else are those of who copies, or root's"))
            .arg(switch("follow-link", 'L', "Copy what a link at SOURCE leads to"))
            .arg(store_arg()),
    ]
}

/// How long who has a container in use for a moment is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// What statfs(2) calls a FUSE mount.
const FUSE_SUPER_MAGIC: FsWord = 0x6573_5546;

/// A place that the command line names.
#[derive(Debug, PartialEq, Eq)]
enum Place<'a> {
    Host(&'a Path),
    Inside { name: &'a str, path: &'a Path },
}

impl<'a> Place<'a> {
    /// Reads `NAME:PATH` or a path of the host: what begins with `/` or `.` is one of the host.
    fn parse(text: &'a OsStr) -> Self {
        let bytes = text.as_bytes();
        // The name of an image may have colons, too, though none before a slash.
        let colon =
            bytes.windows(2).position(|two| two == b":/").or_else(|| bytes.iter().rposition(|byte| *byte == b':'));
        let parted = colon.and_then(|at| Some((str::from_utf8(bytes.get(..at)?).ok()?, bytes.get(at + 1..)?)));
        match parted {
            Some((name, path)) if !name.starts_with(['/', '.']) && !name.is_empty() => {
                Self::Inside { name, path: Path::new(OsStr::from_bytes(path)) }
            }
            _ => Self::Host(Path::new(text)),
        }
    }
}

/// What is copied.
struct Source<T: Tree> {
    tree: T,
    node: T::Node,
    /// What it is called; nothing for what is in a directory.
    name: Option<OsString>,
}

pub fn cp(matches: &ArgMatches) -> Result<Exit, Failure> {
    let (source, target) = (os_word(matches, "SOURCE"), os_word(matches, "TARGET"));
    let within = |error: crate::error::Error| Failure::from(error.within(source.display()));
    let owners = |otherwise| if matches.get_flag("archive") { Owners::Kept } else { otherwise };
    let last = if matches.get_flag("follow-link") { Last::Followed } else { Last::Kept };
    match (Place::parse(source), Place::parse(target)) {
        (Place::Inside { name, path }, Place::Host(to)) => {
            let store = open_store(matches)?;
            let source = out_of(Subject::find(&store, name)?.stack(&store, name)?, path, last)?;
            if to == Path::new("-") {
                if io::stdout().is_terminal() {
                    return Err(Failure::new(Exit::Usage, "a tar is not written to a terminal"));
                }
                let name = source.name.unwrap_or_default();
                write_tree(&source.tree, &source.node, name.as_bytes(), io::stdout().lock()).map_err(within)?;
                return Ok(Exit::Done);
            }
            let how = Extract { owners: owners(Owners::Mine), conflict: Conflict::Refused };
            let (dir, name) = on_host(to, &source)?;
            put(how, &source, &dir, name.as_deref()).map_err(within)?;
        }
        (Place::Host(from), Place::Inside { name, path }) => {
            let source = of_host(from, last)?;
            let how = Extract { owners: owners(Owners::Of(0, 0)), conflict: Conflict::Refused };
            let store = open_store(matches)?;
            let (root, served) = match whereabouts(&store, name)? {
                Whereabouts::Free(container) => {
                    namespaces::enter()?;
                    let root = container.bundle().join("rootfs");
                    let served = Served::start(&store, &container, &root)?;
                    (root, Some(served))
                }
                Whereabouts::Mounted { mountpoint, pid } => {
                    namespaces::join(pid)?;
                    (mountpoint, None)
                }
            };
            let copied = inside(&root, path, &source).and_then(|(dir, name)| {
                put(how, &source, &dir, name.as_deref()).map_err(|error| error.within(target.display()).into())
            });
            let ended = served.map_or(Ok(()), Served::end);
            copied.and(ended)?;
        }
        _ => {
            let reason = "one of both must be NAME:PATH, and one a path of the host (./a:b for one with a colon)";
            return Err(Failure::new(Exit::Usage, reason));
        }
    }
    Ok(Exit::Done)
}

/// Where a container is.
enum Whereabouts {
    /// Nowhere: nobody has it in use.
    Free(Container),
    /// In the namespaces of this process.
    Mounted { mountpoint: PathBuf, pid: u32 },
}

/// Finds out where the container `name` is mounted; waits for who has it for a moment.
fn whereabouts(store: &Store, name: &str) -> Result<Whereabouts, Failure> {
    let begin = Instant::now();
    loop {
        let container = store.container(name)?;
        if container.hold()?.is_some() {
            return Ok(Whereabouts::Free(container));
        }
        let config = &container.config;
        if let (Some(mountpoint), Some(server)) = (&config.mountpoint, config.server)
            && start_time(server.pid).is_ok_and(|started| started == server.started)
        {
            return Ok(Whereabouts::Mounted { mountpoint: mountpoint.clone(), pid: server.pid });
        }
        if begin.elapsed() > PATIENCE {
            return Err(Failure::new(Exit::Setup, format!("{}: somebody else has the container in use", config.id)));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn put<T: Tree>(how: Extract, source: &Source<T>, dir: &OwnedFd, name: Option<&OsStr>) -> crate::error::Result<()> {
    match name {
        Some(name) => how.copy(&source.tree, &source.node, dir.as_fd(), name),
        None => how.copy_inside(&source.tree, &source.node, dir.as_fd()),
    }
}

fn ends_in_dot(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes == b"." || bytes == b"/" || bytes.ends_with(b"/.")
}

fn out_of(stack: Stack, path: &Path, last: Last) -> Result<Source<Stack>, Failure> {
    let contents = ends_in_dot(path);
    let last = if contents || path.as_os_str().as_bytes().ends_with(b"/") { Last::Followed } else { last };
    let absent = || Failure::new(Exit::Failed, format!("{}: there is no such file", path.display()));
    let node = stack.resolve(path, last)?.ok_or_else(absent)?;
    if contents && !node.attr().is_dir() {
        return Err(Failure::new(Exit::Failed, format!("{}: is no directory", path.display())));
    }
    // A link keeps its own name, and what one leads to, too.
    let name = path.file_name().map(OsStr::to_owned).filter(|_| !contents);
    Ok(Source { name, node, tree: stack })
}

/// Opens what is to be copied of the host.
fn of_host(path: &Path, last: Last) -> Result<Source<Host>, Failure> {
    let failed = |error: io::Error| Failure::new(Exit::Failed, format!("{}: {error}", path.display()));
    let contents = ends_in_dot(path);
    let followed = contents || last == Last::Followed || path.as_os_str().as_bytes().ends_with(b"/");
    let real = if followed { std::fs::canonicalize(path) } else { std::path::absolute(path) }.map_err(failed)?;
    let (dir, inside) = match (real.parent(), real.file_name()) {
        (Some(dir), Some(name)) if !contents => (dir, name),
        _ => (real.as_path(), OsStr::new(".")),
    };
    let node = HostFile::open(dir, inside)?;
    let own = path.file_name().or(real.file_name());
    Ok(Source { tree: Host, node, name: own.map(OsStr::to_owned).filter(|_| !contents) })
}

/// Finds the directory of the host in which the copy is made, and what it is called there.
fn on_host<T: Tree>(to: &Path, source: &Source<T>) -> Result<(OwnedFd, Option<OsString>), Failure> {
    let open = |path: &Path| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(if path.as_os_str().is_empty() { Path::new(".") } else { path }, flags, Mode::empty())
    };
    place(to, source, open)
}

/// Does as [`on_host`] for a path in the tree that is mounted at `root`.
fn inside<T: Tree>(root: &Path, to: &Path, source: &Source<T>) -> Result<(OwnedFd, Option<OsString>), Failure> {
    let failed = |errno: Errno| Failure::new(Exit::Failed, format!("{}: {errno}", root.display()));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(root, flags, Mode::empty()).map_err(failed)?;
    // Where it was unmounted meanwhile there is a directory of the host.
    if rustix::fs::fstatfs(&opened).map_err(failed)?.f_type != FUSE_SUPER_MAGIC {
        let reason = "the container is not mounted there any more, though a process has it open";
        return Err(Failure::new(Exit::Setup, format!("{}: {reason}; end that first", root.display())));
    }
    let open = |path: &Path| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut from_root = PathBuf::from("/");
        from_root.push(path);
        rustix::fs::openat2(
            &opened,
            from_root,
            flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
    };
    place(to, source, open)
}

/// Decides as cp(1) and `docker cp` do, by what `open` finds to be a directory.
fn place<T: Tree>(
    to: &Path,
    source: &Source<T>,
    open: impl Fn(&Path) -> rustix::io::Result<OwnedFd>,
) -> Result<(OwnedFd, Option<OsString>), Failure> {
    let failed = |reason: String| Failure::new(Exit::Failed, format!("{}: {reason}", to.display()));
    match open(to) {
        Ok(dir) => return Ok((dir, source.name.clone())),
        Err(Errno::NOENT | Errno::NOTDIR) => {}
        Err(errno) => return Err(failed(errno.to_string())),
    }
    // A new name, or that of a file.
    let named = to.file_name().filter(|_| {
        source.tree.kind(&source.node) == FileKind::Directory || !to.as_os_str().as_bytes().ends_with(b"/")
    });
    let Some(name) = named else { return Err(failed("there is no such directory".into())) };
    let parent = to.parent().unwrap_or(Path::new("/"));
    let dir = open(parent).map_err(|errno| failed(format!("the directory {}: {errno}", parent.display())))?;
    if source.name.is_none() {
        // What is in a directory goes into a new one.
        match rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o777)) {
            Ok(()) => return Ok((open(to).map_err(|errno| failed(errno.to_string()))?, None)),
            Err(errno) => return Err(failed(errno.to_string())),
        }
    }
    Ok((dir, Some(name.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_a_path_are_told_from_paths() {
        for (text, name, path) in [
            ("1a2b:/etc", "1a2b", "/etc"),
            ("1a2b:etc", "1a2b", "etc"),
            ("app:1:/etc/a:b", "app:1", "/etc/a:b"),
            ("host:5000/app:1:/etc", "host:5000/app:1", "/etc"),
        ] {
            assert_eq!(Place::parse(OsStr::new(text)), Place::Inside { name, path: Path::new(path) }, "{text}");
        }
        for text in ["/a:/b", "./a:b", "../a:b", "a/b", "-", ":a"] {
            assert_eq!(Place::parse(OsStr::new(text)), Place::Host(Path::new(text)), "{text}");
        }
        let (inside, outside) = (OsStr::from_bytes(b"1a2b:/\xff"), OsStr::from_bytes(b"\xff:/a"));
        let path = Path::new(OsStr::from_bytes(b"/\xff"));
        assert_eq!(Place::parse(inside), Place::Inside { name: "1a2b", path });
        assert_eq!(Place::parse(outside), Place::Host(Path::new(outside)));
    }
}

//! The client's side: from a mountpoint to what its daemon answers, without ever waiting for the mount itself.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use super::place::{self, Place};
use super::socket_name;
use crate::cli::exit::{Exit, Failure};
use crate::cli::status::Form;
use crate::cli::umount;
use crate::sys::mountinfo::Line;
use crate::sys::peer;

/// How long the daemon may take for each step.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long all may take: where a directory of sockets is on a file system that does not answer, no step ends by itself.
const DEADLINE: Duration = Duration::from_secs(15);

/// The longest answer that is read.
const ANSWER_MAX: u64 = 64 << 20;

/// Asks the daemon of the union on `mountpoint` for its status in `form`.
pub fn ask(mountpoint: &Path, form: Form) -> Result<String, Failure> {
    let (done, answer) = mpsc::channel();
    let asked = mountpoint.to_owned();
    let failed = |reason: &str| {
        let remedy = "look at the daemon (ps, its log file), or unmount";
        Failure::new(Exit::Failed, format!("{}: {reason}; {remedy}", mountpoint.display()))
    };
    let spawned = std::thread::Builder::new().spawn(move || {
        let _ = done.send(ask_now(&asked, form)); // Whoever waited has given up.
    });
    spawned.map_err(|error| failed(&format!("no thread can be started: {error}")))?;
    answer.recv_timeout(DEADLINE).unwrap_or_else(|_| Err(failed("there is no answer")))
}

fn ask_now(mountpoint: &Path, form: Form) -> Result<String, Failure> {
    let (mountpoint, line) = umount::find(mountpoint)?;
    let failed = |reason: String, remedy: &str| {
        Failure::new(Exit::Failed, format!("{}: {reason}; {remedy}", mountpoint.display()))
    };
    let name = socket_name(line.device);
    let mut tried = Vec::new();
    for (path, owner) in places(&line) {
        let connected = Place::open(&path, owner).and_then(|place| UnixStream::connect(place.address(&name)));
        match connected {
            Ok(stream) => return exchange(stream, owner, form).map_err(|(reason, remedy)| failed(reason, remedy)),
            // What another mount has left, which had the number before, is no socket of somebody else's mount.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && mounter(&line) == Some(owner) => {
                let reason = format!("its daemon is gone (nobody listens at {})", path.join(&name).display());
                return Err(failed(reason, "unmount it (unionfs-rs umount)"));
            }
            Err(error) => tried.push(format!("{}: {error}", path.join(&name).display())),
        }
    }
    let reason = format!("no control socket of its daemon is found here ({})", tried.join(", "));
    let remedy =
        "ask as the user who mounted it, in the same namespaces, or as root; SIGUSR1 has the daemon log its status";
    Err(failed(reason, remedy))
}

/// Returns the directories where the socket may be, and whose they are.
fn places(line: &Line) -> Vec<(PathBuf, u32)> {
    let own = rustix::process::geteuid();
    let mut places: Vec<_> = place::own().into_iter().map(|path| (path, own.as_raw())).collect();
    if own.is_root()
        && let Some(mounter) = mounter(line).filter(|uid| *uid != 0)
    {
        places.extend(place::of_user(mounter).map(|path| (path, mounter)));
    }
    places
}

/// Returns the user in the options of a FUSE mount.
fn mounter(line: &Line) -> Option<u32> {
    let options = line.options.to_str()?;
    options.split(',').find_map(|option| option.strip_prefix("user_id=")).and_then(|uid| uid.parse().ok())
}

/// Sends the request, and reads the answer; what went wrong is a reason and a remedy.
fn exchange(mut stream: UnixStream, owner: u32, form: Form) -> Result<String, (String, &'static str)> {
    let io = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            let reason = format!("its daemon does not answer in {} seconds", PATIENCE.as_secs());
            (reason, "it may be stopped: look at it (ps), let it go on (kill -CONT), or kill it and unmount")
        }
        // It was killed before it took the connection, or before it answered.
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => cut_short(),
        _ => (format!("its daemon cannot be asked: {error}"), "try again, or look at its log file"),
    };
    let listens = peer::uid(stream.as_fd()).map_err(io)?;
    if listens != owner {
        return Err((format!("its socket is answered by user {listens}"), "look who has put it there"));
    }
    stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.set_write_timeout(Some(PATIENCE))).map_err(io)?;
    stream.write_all(format!("status {}\n", form.word()).as_bytes()).map_err(io)?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer).map_err(io)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once('\n').unwrap_or((&answer, ""));
    if let Some(reason) = head.strip_prefix("error ") {
        return Err((format!("its daemon says: {reason}"), "ask with the version that has mounted"));
    }
    match head.strip_prefix("ok ").and_then(|len| len.parse::<usize>().ok()) {
        Some(len) if body.len() == len => Ok(body.to_owned()),
        _ => Err(cut_short()),
    }
}

fn cut_short() -> (String, &'static str) {
    ("the answer of its daemon is cut short".to_owned(), "try again; the mount may just be ending")
}

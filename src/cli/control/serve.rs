//! The daemon's side: one thread, which answers one client after another and none for long.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustix::pipe::{PipeFlags, pipe_with};

use super::{LINE_MAX, Place, socket_name};
use crate::cli::status::{Form, Subject};
use crate::sys::peer;

/// How long a client may take to ask, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Clients that wait for their turn; more are kept waiting by the kernel.
const BACKLOG: i32 = 8;

/// The control socket of a mount, and the thread that answers there.
#[derive(Debug)]
pub struct Control {
    /// Closed to end the thread.
    stop: OwnedFd,
    thread: JoinHandle<()>,
    place: Arc<Place>,
    name: String,
    /// What the socket is by device and number, so that no other of the same name is removed for it.
    made: (u64, u64),
}

impl Control {
    /// Listens in `place` for who asks about `subject`. Errors: what hinders it.
    pub fn start(place: Place, subject: Subject) -> io::Result<Self> {
        let Some(device) = subject.device() else {
            return Err(io::Error::other("the caller has mounted, and the number of the mount is not known"));
        };
        let (place, name) = (Arc::new(place), socket_name(device));
        let (listener, made) = place.alone(|| {
            remove_stale(&place, &name);
            listen(&place, &name)
        })?;
        let withdraw = |error| {
            remove(&place, &name, made);
            error
        };
        let (stopped, stop) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| withdraw(errno.into()))?;
        let work = move || answer_all(&listener, &stopped, &subject);
        let thread = std::thread::Builder::new().name("control".into()).spawn(work).map_err(withdraw)?;
        Ok(Self { stop, thread, place, name, made })
    }

    /// Answers nobody any more, and removes the socket.
    pub fn end(self) {
        let Self { stop, thread, place, name, made } = self;
        drop(stop);
        if thread.join().is_err() {
            log::error!("the thread of the control socket panicked");
        }
        remove(&place, &name, made);
    }
}

/// Makes a socket that listens as `name` in `place`, in place of one that was left there.
///
/// It has the name only when it listens, so that a name at which nobody answers is one that was left.
fn listen(place: &Place, name: &str) -> io::Result<(OwnedFd, (u64, u64))> {
    let temporary = format!(".{}-{name}", rustix::process::getpid().as_raw_nonzero());
    place.remove(&temporary)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let made = (|| {
        rustix::net::bind(&socket, &SocketAddrUnix::new(place.address(&temporary))?)?;
        rustix::fs::chmodat(place.fd(), &temporary, Mode::RUSR | Mode::WUSR, AtFlags::empty())?;
        rustix::net::listen(&socket, BACKLOG)?;
        let stat = rustix::fs::statat(place.fd(), &temporary, AtFlags::SYMLINK_NOFOLLOW)?;
        rustix::fs::renameat(place.fd(), &temporary, place.fd(), name)?;
        Ok::<_, Errno>((stat.st_dev, stat.st_ino))
    })();
    match made {
        Ok(made) => Ok((socket, made)),
        Err(errno) => {
            let _ = place.remove(&temporary); // What went wrong before says why.
            Err(errno.into())
        }
    }
}

/// Removes the socket that was made as `name`, unless a mount that came after has taken the name over.
fn remove(place: &Place, name: &str, made: (u64, u64)) {
    let removed = place.alone(|| match rustix::fs::statat(place.fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if (stat.st_dev, stat.st_ino) == made => place.remove(name),
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    });
    if let Err(error) = removed {
        log::warn!("{}: {name} is left: {error}", place.path().display());
    }
}

/// Removes what daemons that were killed have left, but for `name`, which is replaced in one step.
fn remove_stale(place: &Place, name: &str) {
    let Ok(names) = place.names() else { return };
    for stale in names.iter().filter(|other| other.ends_with(".sock") && !other.starts_with('.') && *other != name) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let refused = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .and_then(|socket| rustix::net::connect(&socket, &SocketAddrUnix::new(place.address(stale))?))
            .is_err_and(|errno| errno == Errno::CONNREFUSED);
        if refused && let Err(error) = place.remove(stale) {
            log::debug!("{}: {stale} is left: {error}", place.path().display());
        }
    }
}

/// Answers whoever connects until the other end of `stop` is closed.
fn answer_all(listener: &OwnedFd, stop: &OwnedFd, subject: &Subject) {
    loop {
        match wait(listener.as_fd(), PollFlags::IN, stop.as_fd(), None) {
            Ok(()) => {}
            Err(Waited::Stop) => return,
            Err(Waited::Failed(errno)) => return log::warn!("the control socket answers no longer: {errno}"),
            Err(Waited::Late) => continue,
        }
        match rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(client) => {
                if let Err(reason) = answer(&client, stop, subject) {
                    log::debug!("a client of the control socket was not answered: {reason}");
                }
            }
            // It has gone before its turn.
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
            Err(errno) => {
                log::debug!("a client of the control socket cannot be taken: {errno}");
                // No descriptors, say: it would come at once again.
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Answers one line.
fn answer(client: &OwnedFd, stop: &OwnedFd, subject: &Subject) -> Result<(), String> {
    let uid = peer::uid(client.as_fd()).map_err(|error| error.to_string())?;
    let own = rustix::process::geteuid().as_raw();
    let reply = if uid == own || uid == 0 {
        let line = read_line(client, stop).map_err(|waited| waited.to_string())?;
        respond(&line, subject)
    } else {
        Err(format!("this is for user {own} and root, and not for user {uid}"))
    };
    let bytes = match reply {
        Ok(text) => [format!("ok {}\n", text.len()).as_bytes(), text.as_bytes()].concat(),
        Err(reason) => format!("error {reason}\n").into_bytes(),
    };
    write(client, stop, &bytes).map_err(|waited| waited.to_string())
}

fn respond(line: &str, subject: &Subject) -> Result<String, String> {
    let form = line.strip_prefix("status ").and_then(Form::from_word);
    let form = form.ok_or("the request is not known; the daemon may be of another version")?;
    let shown = subject.look().ok_or("the mount has ended")?;
    Ok(form.write(&shown))
}

/// Why something was waited for in vain.
enum Waited {
    /// The mount ends.
    Stop,
    /// It took too long.
    Late,
    Failed(Errno),
}

impl From<Errno> for Waited {
    fn from(errno: Errno) -> Self {
        Self::Failed(errno)
    }
}

impl std::fmt::Display for Waited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stop => f.write_str("the mount ends"),
            Self::Late => f.write_str("it takes too long"),
            Self::Failed(errno) => errno.fmt(f),
        }
    }
}

/// Waits until `fd` is ready, the mount ends, or it is too late.
fn wait(fd: BorrowedFd<'_>, flags: PollFlags, stop: BorrowedFd<'_>, until: Option<Instant>) -> Result<(), Waited> {
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        let mut polled = [PollFd::from_borrowed_fd(fd, flags), PollFd::from_borrowed_fd(stop, PollFlags::IN)];
        match poll(&mut polled, left.as_ref()) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(0) => return Err(Waited::Late),
            Ok(_) if !polled[1].revents().is_empty() => return Err(Waited::Stop),
            Ok(_) => return Ok(()),
        }
    }
}

fn read_line(client: &OwnedFd, stop: &OwnedFd) -> Result<String, Waited> {
    let until = Some(Instant::now() + PATIENCE);
    let (mut line, mut bytes) = (Vec::new(), [0; LINE_MAX]);
    while line.len() < LINE_MAX && !line.contains(&b'\n') {
        wait(client.as_fd(), PollFlags::IN, stop.as_fd(), until)?;
        match rustix::io::read(client, &mut bytes) {
            Ok(0) => break,
            Ok(read) => line.extend_from_slice(bytes.get(..read).unwrap_or_default()),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let line = line.split(|&byte| byte == b'\n').next().unwrap_or_default();
    Ok(String::from_utf8_lossy(line).into_owned())
}

fn write(client: &OwnedFd, stop: &OwnedFd, mut bytes: &[u8]) -> Result<(), Waited> {
    let until = Some(Instant::now() + PATIENCE);
    while !bytes.is_empty() {
        wait(client.as_fd(), PollFlags::OUT, stop.as_fd(), until)?;
        match rustix::net::send(client, bytes, SendFlags::NOSIGNAL) {
            Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

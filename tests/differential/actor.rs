//! Who does the operations: two threads for each mount, root and a plain user, which live in the
//! mount as their root directory.
//!
//! On Linux credentials belong to a thread and, after unshare(CLONE_FS), so do the root, the working
//! directory and the umask. The user has uid 1000, group 1000 and the supplementary group 2000. What
//! hangs is given up after a while instead of hanging the run.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::thread::UnshareFlags;

use super::act::{Slots, act};
use super::op::Op;

/// How long one operation may take: a copy-up of a few megabytes, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who does an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Root,
    User,
}

/// The operation did not come back in time.
#[derive(Debug)]
pub struct Hung;

type Job = Box<dyn FnOnce() + Send>;

struct Worker {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// The two threads of one mount, and the descriptors that they hold there.
pub struct Actors {
    root: Worker,
    user: Worker,
    slots: Arc<Mutex<Slots>>,
}

impl Actors {
    /// Starts the threads in the directory `mount`.
    pub fn start(mount: &Path) -> Self {
        Self {
            root: Worker::start(mount.to_owned(), Who::Root),
            user: Worker::start(mount.to_owned(), Who::User),
            slots: Arc::default(),
        }
    }

    /// Does `op` as `who`.
    pub fn act(&self, who: Who, op: &Op) -> Result<Result<String, Errno>, Hung> {
        let (op, slots) = (op.clone(), Arc::clone(&self.slots));
        let worker = match who {
            Who::Root => &self.root,
            Who::User => &self.user,
        };
        worker.call(move || act(&op, &mut slots.lock().expect("an operation does not panic")))
    }

    /// Runs `look` as root, in the mount as its root directory.
    pub fn look<T: Send + 'static>(&self, look: impl FnOnce() -> T + Send + 'static) -> Result<T, Hung> {
        self.root.call(look)
    }

    /// Runs `look` as root on the descriptor of a slot; none where it holds none.
    pub fn look_at<T: Send + 'static>(
        &self,
        slot: usize,
        look: impl FnOnce(&OwnedFd) -> T + Send + 'static,
    ) -> Result<Option<T>, Hung> {
        let slots = Arc::clone(&self.slots);
        self.root.call(move || slots.lock().expect("an operation does not panic")[slot].as_ref().map(look))
    }

    /// Closes all descriptors and ends the threads, so that the mount is not in use any more.
    pub fn stop(mut self) -> Result<(), Hung> {
        let slots = Arc::clone(&self.slots);
        self.root.call(move || {
            *slots.lock().expect("an operation does not panic") = Slots::default();
        })?;
        for worker in [&mut self.root, &mut self.user] {
            worker.jobs = None;
            if let Some(thread) = worker.thread.take() {
                thread.join().expect("an operation does not panic");
            }
        }
        Ok(())
    }
}

impl Worker {
    fn start(mount: PathBuf, who: Who) -> Self {
        let (jobs, inbox) = channel::<Job>();
        let thread = std::thread::spawn(move || live(&mount, who, &inbox));
        Self { jobs: Some(jobs), thread: Some(thread) }
    }

    fn call<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, Hung> {
        let (answer, result) = sync_channel(1);
        let job: Job = Box::new(move || {
            // Nobody waits for an answer that comes too late.
            let _ = answer.send(job());
        });
        self.jobs.as_ref().expect("the worker was not stopped").send(job).expect("the worker lives");
        match result.recv_timeout(PATIENCE) {
            Ok(result) => Ok(result),
            Err(RecvTimeoutError::Timeout) => Err(Hung),
            Err(RecvTimeoutError::Disconnected) => panic!("an operation panicked"),
        }
    }
}

fn live(mount: &Path, who: Who, inbox: &Receiver<Job>) {
    #[expect(deprecated, reason = "unsafe only with CLONE_FILES, which is not given here")]
    rustix::thread::unshare(UnshareFlags::FS).expect("root may give a thread its own root directory");
    rustix::process::chroot(mount).expect("root may chroot");
    rustix::process::chdir("/").expect("a mount has a root");
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    if who == Who::User {
        let (uid, gid) = (Uid::from_raw(1000), Gid::from_raw(1000));
        rustix::thread::set_thread_groups(&[gid, Gid::from_raw(2000)]).expect("root sets groups");
        rustix::thread::set_thread_res_gid(gid, gid, gid).expect("root sets its group");
        rustix::thread::set_thread_res_uid(uid, uid, uid).expect("root becomes another user");
    }
    for job in inbox {
        job();
    }
}

//! A disk that records what is written to it and when it was told to keep it: a loop device over a file of a FUSE file
//! system of this process.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner,
    MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyWrite, Request, WriteFlags,
};

/// What the disk was told, in its order.
#[derive(Debug)]
pub enum Event {
    /// To write this there.
    Write { offset: u64, data: Vec<u8> },
    /// To keep what it has written, whatever comes.
    Flush,
}

const FILE: INodeNo = INodeNo(2);
const KEEP: Duration = Duration::from_secs(3600);

/// The file system with the one file `disk`.
struct Recorder {
    image: File,
    len: u64,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Recorder {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let (kind, size) = if ino == FILE { (FileType::RegularFile, self.len) } else { (FileType::Directory, 0) };
        FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    fn record(&self, event: Event) {
        self.events.lock().expect("nobody panics with the events").push(event);
    }
}

impl Filesystem for Recorder {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "disk" {
            reply.entry(&KEEP, &self.attr(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&KEEP, &self.attr(ino));
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut data = vec![0; size as usize];
        match self.image.read_at(&mut data, offset) {
            Ok(read) => reply.data(&data[..read]),
            Err(error) => reply.error(error.into()),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.image.write_all_at(data, offset) {
            Ok(()) => {
                self.record(Event::Write { offset, data: data.to_vec() });
                reply.written(data.len() as u32);
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.record(Event::Flush);
        reply.ok();
    }
}

/// The disk, until it goes.
pub struct Disk {
    at: PathBuf,
    events: Arc<Mutex<Vec<Event>>>,
    /// `None` once it has ended.
    session: Option<BackgroundSession>,
}

impl Disk {
    /// Makes a disk of `image`, whose file comes to be in the directory `at`.
    pub fn new(image: &Path, at: &Path) -> Self {
        let file = File::options().read(true).write(true).open(image).expect("the image was made a moment ago");
        let len = file.metadata().expect("an open file has attributes").len();
        let events = Arc::new(Mutex::default());
        let recorder = Recorder { image: file, len, events: Arc::clone(&events) };
        let mut config = Config::default();
        config.mount_options.push(MountOption::FSName("recorder".to_owned()));
        let session = fuser::spawn_mount(recorder, at, &config).expect("root can mount");
        Self { at: at.to_owned(), events, session: Some(session) }
    }

    /// Returns the file that is the disk.
    pub fn path(&self) -> PathBuf {
        self.at.join("disk")
    }

    /// Returns how much it was told.
    pub fn told(&self) -> usize {
        self.events.lock().expect("nobody panics with the events").len()
    }

    /// Returns the first `count` things that it was told, and ends it.
    pub fn end(mut self, count: usize) -> Vec<Event> {
        let mut events = std::mem::take(&mut *self.events.lock().expect("nobody panics with the events"));
        events.truncate(count);
        if let Some(session) = self.session.take() {
            session.umount_and_join().expect("nothing uses the disk any more");
        }
        events
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.session.take().map(BackgroundSession::umount_and_join) {
            eprintln!("{}: {error}", self.at.display());
        }
    }
}

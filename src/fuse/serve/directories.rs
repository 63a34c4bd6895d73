//! The requests about listings.

use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::io::Errno;
use zerocopy::{FromZeros, IntoBytes};

use crate::error::Error;
use crate::fuse::answer::{Answer, Served};
use crate::fuse::convert::{entry_kind, opened};
use crate::fuse::protocol::{Dirent, EntryOut, FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE, FsyncIn, ReadIn};
use crate::fuse::request::{Malformed, Request};
use crate::fuse::server::Server;
use crate::union::{DirEntry, Flow, Looked, NodeId, ReadAhead};

pub(super) fn opendir(server: &Server) -> Result<Served, Malformed> {
    // Directories are read by node, and the kernel may keep what it has read.
    Ok(if server.opens_directories {
        Answer::Opened(opened(0, FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR)).into()
    } else {
        Answer::Error(Errno::NOSYS).into()
    })
}

pub(super) fn readdir(server: &Server, mut request: Request<'_>, buffer: &mut [u8]) -> Result<Served, Malformed> {
    let read: ReadIn = request.arguments.fixed()?;
    let mut page = Page::new(buffer, read.size);
    let listed = server.union.read_dir(request.node, read.offset, |entry| page.add(&entry, &[]));
    Ok(answer(server, listed, &page).into())
}

pub(super) fn readdirplus(
    server: &Arc<Server>,
    mut request: Request<'_>,
    buffer: &mut [u8],
) -> Result<Served, Malformed> {
    let read: ReadIn = request.arguments.fixed()?;
    let mut page = Page::new(buffer, read.size);
    let mut directories = Vec::new();
    let listed = server.union.read_dir_plus(request.node, read.offset, |dirent, looked| {
        let entry = match looked {
            Looked::Up(entry) => server.entry(entry),
            // Without a node the kernel takes number and type alone, and looks the name up when it is used.
            Looked::Dots | Looked::Broken => EntryOut::new_zeroed(),
        };
        let flow = page.add(&dirent, entry.as_bytes());
        if let Looked::Up(entry) = looked
            && entry.attr.is_dir()
            && flow == Flow::More
        {
            directories.push(entry.id);
        }
        flow
    });
    note_walk(server, request.node, read.offset == 0, &directories);
    Ok(answer(server, listed, &page).into())
}

/// Notes that the directory `of` is listed, and has what comes next read meanwhile.
fn note_walk(server: &Arc<Server>, of: NodeId, begins: bool, directories: &[NodeId]) {
    let Some(walk) = &server.walk else { return };
    if walk.note(of, begins, directories) && server.union.should_prefetch() && walk.begin() {
        let server = server.clone();
        server.pool.clone().run(move || follow(&server));
    }
}

/// Prefetches what a walk comes to next.
fn follow(server: &Server) {
    let Some(walk) = &server.walk else { return };
    let goes_on = || !server.pool.is_ending();
    let prefetch = |id| match server.union.prefetch(id, goes_on) {
        Ok(any) => any,
        Err(error) => {
            // Whoever comes to it is told.
            log::debug!("prefetch: {error}");
            false
        }
    };
    walk.follow(prefetch, || server.union.has_prefetched_enough() || !goes_on());
}

/// Answers with a page of a listing, and has the rest read meanwhile.
fn answer(server: &Server, listed: Result<Option<ReadAhead>, Error>, page: &Page<'_>) -> Answer {
    Answer::buffer(listed.map(|rest| {
        if let Some(rest) = rest {
            let pool = server.pool.clone();
            server.pool.run(move || rest.run(|| !pool.is_ending()));
        }
        page.len
    }))
}

pub(super) fn fsyncdir(mut request: Request<'_>) -> Result<Served, Malformed> {
    let _: FsyncIn = request.arguments.fixed()?;
    let node = request.node;
    Ok(Served::later(move |server| Answer::done(server.union.fsync_dir(node))))
}

/// The entries of one answer.
struct Page<'a> {
    buffer: &'a mut [u8],
    len: usize,
}

impl<'a> Page<'a> {
    /// Begins an answer of at most `size` bytes.
    fn new(buffer: &'a mut [u8], size: u32) -> Self {
        let size = buffer.len().min(size as usize);
        Self { buffer: buffer.get_mut(..size).unwrap_or_default(), len: 0 }
    }

    /// Adds an entry after `before`, if there is room.
    fn add(&mut self, entry: &DirEntry<'_>, before: &[u8]) -> Flow {
        let name = entry.name.as_bytes();
        let dirent =
            Dirent { ino: entry.ino, off: entry.cookie, namelen: name.len() as u32, kind: entry_kind(entry.kind) };
        let end = before.len() + size_of::<Dirent>() + name.len();
        let Some(room) = self.buffer.get_mut(self.len..self.len + end.next_multiple_of(8)) else { return Flow::Full };
        let mut rest = room;
        for part in [before, dirent.as_bytes(), name] {
            let (here, after) = rest.split_at_mut(part.len());
            here.copy_from_slice(part);
            rest = after;
        }
        rest.fill(0);
        self.len += end.next_multiple_of(8);
        Flow::More
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;
    use crate::union::FileKind;

    #[test]
    fn entries_are_padded_and_end_where_the_room_does() {
        let mut buffer = [0xff; 70];
        let mut page = Page::new(&mut buffer, 64);
        let entry =
            |name: &'static str| DirEntry { name: OsStr::new(name), ino: 7, kind: FileKind::Regular, cookie: 9 };
        assert_eq!(page.add(&entry("abc"), &[]), Flow::More);
        assert_eq!(page.add(&entry("12345678"), &[]), Flow::More);
        assert_eq!(page.add(&entry("x"), &[]), Flow::Full);
        assert_eq!(page.len, 64);
        assert_eq!(&buffer[16..32], b"\x03\0\0\0\x08\0\0\0abc\0\0\0\0\0");
        assert_eq!(&buffer[56..66], b"12345678\xff\xff");
    }
}

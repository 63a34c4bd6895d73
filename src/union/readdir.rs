//! Reading directories: the entries of all parts merged, upper's first.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::inode::{Dir, Inode, NodeId};
use super::listing::{Item, Kept, Listing, Order};
use super::lookup::Entry;
use super::merge::{Merge, Says, Topmost};
use super::name_index::NameIndex;
use super::search::{Hit, InUpper, Stack, Top};
use super::stream::{self, ReadAhead, Stream};
use super::{FileKind, Union, dir_of};
use crate::error::Result;
use crate::layer::Layer;
use crate::layer::attr::Attr;
use crate::layer::dir::{Below, Found, LayerDir};
use crate::layer::name::{Name, WH_OPAQUE, WH_PREFIX};
use crate::layer::overlay::Marks;
use crate::sys::dents;

/// An entry of a directory.
#[derive(Debug, Clone, Copy)]
pub struct DirEntry<'a> {
    /// The name.
    pub name: &'a OsStr,
    /// The inode number that stat(2) shows.
    pub ino: u64,
    /// What it is.
    pub kind: FileKind,
    /// Where reading goes on after this entry.
    pub cookie: u64,
}

/// What looking up an entry of a listing gave.
#[derive(Debug, Clone, Copy)]
pub enum Looked<'a> {
    /// `.` or `..`, which are not looked up.
    Dots,
    /// An inode; it counts as a lookup.
    Up(&'a Entry),
    /// An entry that answers an error when it is looked up.
    Broken,
}

/// Whether a reader takes more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// The entry was taken.
    More,
    /// The entry has no room any more.
    Full,
}

impl Union {
    /// Reads the entries of `id` that come after `cookie` (0 from the beginning), `.` and `..` first.
    ///
    /// A reader sees each entry that stays at most once and at least once; one that comes or goes meanwhile, perhaps. Returns
    /// what can be read before anybody asks for it, to whom it comes first.
    pub fn read_dir(
        &self,
        id: NodeId,
        cookie: u64,
        mut each: impl FnMut(DirEntry<'_>) -> Flow,
    ) -> Result<Option<ReadAhead>> {
        let inode = self.directory(id)?;
        if let Flow::Full = self.dots(&inode, cookie, &mut each) {
            return Ok(None);
        }
        match self.listing(&inode, cookie)? {
            Kept::Listing(listing) => {
                listed(&listing, cookie).find(|&entry| each(entry) == Flow::Full);
                Ok(None)
            }
            Kept::Stream(stream) => {
                if let Some(at) = stream::place(cookie) {
                    self.prefetch.drop_known(inode.serial, Some(at));
                }
                self.read_stream(&inode, &stream, cookie, |listed| {
                    let shown = {
                        let _names = dir_of(&inode)?.lock.read();
                        self.show_below(&inode, &stream.part, listed.name, listed.kind, listed.ino)?
                    };
                    Ok(shown.map(|(ino, kind)| each(DirEntry { name: listed.name, ino, kind, cookie: listed.cookie })))
                })
            }
        }
    }

    /// Reads entries as [`Union::read_dir`], and looks each up.
    ///
    /// Each entry that was taken counts as a lookup. One that has gone since it was listed is left out.
    pub fn read_dir_plus(
        &self,
        id: NodeId,
        cookie: u64,
        mut each: impl FnMut(DirEntry<'_>, Looked<'_>) -> Flow,
    ) -> Result<Option<ReadAhead>> {
        let inode = self.directory(id)?;
        if let Flow::Full = self.dots(&inode, cookie, &mut |entry| each(entry, Looked::Dots)) {
            return Ok(None);
        }
        match self.listing(&inode, cookie)? {
            Kept::Listing(listing) => {
                if cookie == 0 {
                    // There are no attributes: it was come to.
                    self.prefetch.get(inode.serial, 0);
                }
                listed(&listing, cookie)
                    .find(|&entry| self.look_up_entry(&inode, entry, None, &mut each) == Some(Flow::Full));
                Ok(None)
            }
            Kept::Stream(stream) => {
                let known = self.prefetch.get(inode.serial, stream::place(cookie).unwrap_or(0));
                self.read_stream(&inode, &stream, cookie, |listed| {
                    let ino = self.numbers.number(stream.part.dev, listed.ino);
                    let kind = known_kind(listed.kind).unwrap_or(FileKind::Regular);
                    let entry = DirEntry { name: listed.name, ino, kind, cookie: listed.cookie };
                    let attr = known.as_ref().and_then(|known| known.attr(&listed));
                    Ok(self.look_up_entry(&inode, entry, attr, &mut each))
                })
            }
        }
    }

    /// Gives `each` an entry that was listed, and what looking it up gives; `None` where it has gone. `known` is what was
    /// read of the entry before.
    fn look_up_entry(
        &self,
        inode: &Arc<Inode>,
        listed: DirEntry<'_>,
        known: Option<&Attr>,
        each: &mut dyn FnMut(DirEntry<'_>, Looked<'_>) -> Flow,
    ) -> Option<Flow> {
        match self.look_up_item(inode, listed.name, known) {
            Ok(None) => None,
            Ok(Some(entry)) => {
                let shown = DirEntry { ino: entry.attr.ino, kind: entry.attr.kind, ..listed };
                let flow = each(shown, Looked::Up(&entry));
                if flow == Flow::Full {
                    self.forget(entry.id, 1);
                }
                Some(flow)
            }
            Err(error) => {
                // Shown, so that nobody misses it; it answers the error when it is looked up.
                log::warn!("{error}");
                Some(each(listed, Looked::Broken))
            }
        }
    }

    /// Calls `each` with the entries of `stream`, a listing of `inode`, that come after `cookie`; it returns `None` for what is
    /// not shown. Returns what can be read ahead.
    fn read_stream(
        &self,
        inode: &Arc<Inode>,
        stream: &Arc<Stream>,
        cookie: u64,
        mut each: impl FnMut(stream::Entry<'_>) -> Result<Option<Flow>>,
    ) -> Result<Option<ReadAhead>> {
        let mut shown = false;
        let mut at = stream::place(cookie).unwrap_or(0);
        let mut read_chunk = || -> Result<Flow> {
            let layer = self.lowers.layer(&stream.part);
            let chunk = stream.chunk(at).map_err(|e| layer.error("getdents", OsStr::new("."), e))?;
            let Some(chunk) = chunk else {
                stream.note_names(dir_of(inode)?);
                return Ok(Flow::Full);
            };
            for entry in chunk.from(at) {
                let flow = each(entry)?;
                shown |= flow.is_some();
                if flow == Some(Flow::Full) {
                    return Ok(Flow::Full);
                }
                at += 1;
            }
            Ok(Flow::More)
        };
        let read = loop {
            match read_chunk() {
                Ok(Flow::More) => {}
                Ok(Flow::Full) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        match read {
            // Whoever has got some entries comes to the error later; without any the answer would be the end.
            Err(error) if !shown => Err(error),
            _ => Ok(ReadAhead::of(inode, stream)),
        }
    }

    fn look_up_item(&self, inode: &Arc<Inode>, name: &OsStr, known: Option<&Attr>) -> Result<Option<Entry>> {
        let dir = dir_of(inode)?;
        let _names = dir.lock.read();
        let name = Name::known(name);
        match (known, &*dir.lower) {
            // As long as upper has nothing of the directory, it is as it was.
            (Some(&attr), [part]) if inode.is_below() => {
                let (top, lower) = (Top::Lower(part.clone()), Stack::new());
                Ok(Some(self.entry_of(inode, name, &Hit { attr, top, lower, marks: Marks::default() })?))
            }
            _ => self.find(inode, name),
        }
    }

    fn dots(&self, inode: &Arc<Inode>, cookie: u64, each: &mut dyn FnMut(DirEntry<'_>) -> Flow) -> Flow {
        let parent = inode.place().0.parent.map_or(inode.ino.0, |parent| parent.ino.0);
        for (name, ino, at) in [(".", inode.ino.0, 1), ("..", parent, 2)] {
            let entry = DirEntry { name: OsStr::new(name), ino, kind: FileKind::Directory, cookie: at };
            if cookie < at && each(entry) == Flow::Full {
                return Flow::Full;
            }
        }
        Flow::More
    }

    /// Returns a listing to read on from `cookie`: a current one at the beginning, else the one that is kept.
    pub(super) fn listing(&self, inode: &Arc<Inode>, cookie: u64) -> Result<Kept> {
        let dir = dir_of(inode)?;
        // Before it is asked whether upper has the directory, so that what comes then is not missed.
        let version = dir.version();
        // `.` and `..` may have filled the first buffer alone.
        let begins = cookie <= 2;
        let alone = match &*dir.lower {
            [part] if begins => (inode.is_below() && self.lowers.layer(part).local).then_some(part),
            [part] => stream::place(cookie).and(Some(part)),
            _ => None,
        };
        let order = if alone.is_some() { Order::Place } else { Order::Name };
        if let Some(kept) = self.listings.get(inode.serial, order)
            && (!begins || kept.version() == version)
        {
            return Ok(kept);
        }
        let listing = match alone {
            Some(part) => Kept::Stream(Arc::new(Stream::new(part.clone(), self.lowers.open_listing(part)?, version))),
            None => {
                let _names = dir.lock.read();
                Kept::Listing(Arc::new(self.list(inode)?))
            }
        };
        self.listings.insert(inode.serial, listing.clone());
        Ok(listing)
    }

    /// Returns whether the directory shows no entry; the caller holds its lock.
    pub(super) fn is_empty(&self, inode: &Arc<Inode>) -> Result<bool> {
        Ok(self.list(inode)?.is_empty())
    }

    /// Merges the entries of all parts; the caller holds the directory's lock.
    fn list(&self, inode: &Arc<Inode>) -> Result<Listing> {
        let dir = dir_of(inode)?;
        let mut listing = Listing::new(dir.version());
        if inode.place().0.unlinked {
            return Ok(listing.finish());
        }
        if dir.lower.is_empty() && !dir.impure.load(Ordering::Acquire) {
            self.list_upper_alone(inode, &mut listing)?;
            return Ok(listing.finish());
        }
        let mut merge = Merge::default();
        self.merge_upper(inode, &mut merge)?;
        self.merge_lowers(dir, &mut merge)?;
        merge.sort();
        dir.note_names(|| merge.index());
        let mut shown = Vec::with_capacity(merge.len());
        for top in merge.topmost() {
            if let Some((ino, kind)) = self.show_topmost(inode, &top)? {
                shown.push((top.hash, top.start, top.name.len(), ino, kind));
            }
        }
        Ok(Listing::sorted(listing.version, merge.into_names(), shown.into_iter()))
    }

    /// Reads which lower parts of `dir` have a name.
    pub(super) fn index_names(&self, dir: &Dir) -> Result<NameIndex> {
        let mut merge = Merge::default();
        self.merge_lowers(dir, &mut merge)?;
        merge.sort();
        Ok(merge.index())
    }

    /// Lists a directory that upper alone has, and whose entries all were made there.
    fn list_upper_alone(&self, inode: &Arc<Inode>, listing: &mut Listing) -> Result<()> {
        let upper = self.writable()?;
        let fd = self.upper_dir(inode)?;
        let failed = |e: Errno| upper.layer.error("getdents", OsStr::new("."), e);
        let dev = upper.stat(fd.as_fd(), OsStr::new(""))?.dev;
        let open = upper.layer.open_listing(fd.as_fd()).map_err(failed)?;
        let xwhiteouts = dir_of(inode)?.xwhiteouts.load(Ordering::Acquire);
        let mut unsure = Vec::new();
        dents::each(open.as_fd(), |name, kind, ino| {
            if name.starts_with(WH_PREFIX.as_bytes()) || upper.features.is_kept_open(name) {
                return;
            }
            let name = OsStr::from_bytes(name);
            match known_kind(kind) {
                // A character device may be a whiteout that was left by a rename, and a plain file stand for something else.
                Some(FileKind::Char) | None => unsure.push(name.to_owned()),
                Some(kind) if may_stand_for_other(&upper.layer, kind) => unsure.push(name.to_owned()),
                // The same for one by xattr, in a directory that a mark beside it has parted from what is below.
                Some(FileKind::Regular) if xwhiteouts => unsure.push(name.to_owned()),
                Some(kind) => listing.add(name, self.numbers.number(dev, ino), kind),
            }
        })
        .map_err(failed)?;
        for name in unsure {
            self.add_found(inode, &name, listing);
        }
        Ok(())
    }

    fn add_found(&self, inode: &Arc<Inode>, name: &OsStr, listing: &mut Listing) {
        match self.number_of(inode, Name::known(name)) {
            Ok(Some((ino, kind))) => listing.add(name, ino, kind),
            Ok(None) => {}
            // Shown, so that it can be seen, and answering when it is looked up.
            Err(error) => {
                log::warn!("{error}");
                listing.add(name, NodeId::ROOT.0, FileKind::Regular);
            }
        }
    }

    fn merge_upper(&self, inode: &Arc<Inode>, merge: &mut Merge) -> Result<()> {
        let Some(upper) = self.upper.as_ref().filter(|_| inode.is_upper()) else { return Ok(()) };
        let fd = self.upper_dir(inode)?;
        let failed = |e: Errno| upper.layer.error("getdents", OsStr::new("."), e);
        let open = upper.layer.open_listing(fd.as_fd()).map_err(failed)?;
        let mut marks = false;
        dents::each(open.as_fd(), |name, kind, ino| {
            if let Some(hidden) = name.strip_prefix(WH_PREFIX.as_bytes()) {
                marks = true;
                merge.hide(0, hidden);
            } else if !upper.features.is_kept_open(name) {
                merge.add(0, name, kind, ino);
            }
        })
        .map_err(failed)?;
        dir_of(inode)?.dotwh.record(marks);
        Ok(())
    }

    fn merge_lowers(&self, dir: &Dir, merge: &mut Merge) -> Result<()> {
        for (part, number) in dir.lower.iter().zip(1..) {
            let mut marks = false;
            self.lowers.each_entry(part, |name, kind, ino| match name.strip_prefix(WH_PREFIX.as_bytes()) {
                Some(_) if name == WH_OPAQUE.as_bytes() => {}
                Some(hidden) => {
                    marks = true;
                    merge.hide(number, hidden);
                }
                None => merge.add(number, name, kind, ino),
            })?;
            // So that nobody looks for marks where there are none.
            part.dotwh.record(marks);
        }
        Ok(())
    }

    /// Returns number and kind of a name, for which the topmost part counts; `None` where it is hidden.
    fn show_topmost(&self, inode: &Arc<Inode>, top: &Topmost<'_>) -> Result<Option<(u64, FileKind)>> {
        let Says::There(kind, ino) = top.says else { return Ok(None) };
        let dir = dir_of(inode)?;
        let Some(part) = usize::from(top.part).checked_sub(1).and_then(|at| dir.lower.get(at)) else {
            let kind = known_kind(kind.file_type());
            let hidden = match kind {
                Some(FileKind::Char) => self.is_upper_whiteout(inode, top.name)?,
                Some(FileKind::Regular) if dir.xwhiteouts.load(Ordering::Acquire) => {
                    matches!(self.in_upper(inode, top.name)?, InUpper::Whiteout)
                }
                _ => false,
            };
            // It may have been copied up, and have the number of what it was copied from.
            let kind = kind.unwrap_or(FileKind::Regular);
            return Ok((!hidden).then(|| self.settle(inode, top.name, ino, kind)));
        };
        self.show_below(inode, part, top.name, kind.file_type(), ino)
    }

    /// Returns number and kind of a name for which `part`, a lower one, counts; `None` where it is hidden. The caller holds
    /// the directory's lock.
    fn show_below(
        &self,
        inode: &Arc<Inode>,
        part: &Arc<LayerDir>,
        name: &OsStr,
        kind: FileType,
        ino: u64,
    ) -> Result<Option<(u64, FileKind)>> {
        Ok(match known_kind(kind) {
            Some(FileKind::Char) if self.lowers.is_char_whiteout(part, name)? => None,
            Some(FileKind::Regular) if part.xwhiteouts && self.is_xwhiteout(part, name)? => None,
            Some(FileKind::Directory) => Some((self.numbers.number(part.dev, ino), FileKind::Directory)),
            // A plain file may stand for something else; and without an index each name of a hard link has its own
            // number. Both take a look at the file.
            Some(kind) if self.keeps_links(part, kind) && !may_stand_for_other(self.lowers.layer(part), kind) => {
                Some((self.numbers.number(part.dev, ino), kind))
            }
            kind => Some(self.settle(inode, name, ino, kind.unwrap_or(FileKind::Regular))),
        })
    }

    fn is_upper_whiteout(&self, inode: &Arc<Inode>, name: &OsStr) -> Result<bool> {
        let Some(upper) = &self.upper else { return Ok(false) };
        let fd = self.upper_dir(inode)?;
        upper.layer.is_char_whiteout(fd.as_fd(), name)
    }

    fn is_xwhiteout(&self, part: &Arc<LayerDir>, name: &OsStr) -> Result<bool> {
        Ok(matches!(self.lowers.examine(part, name, Below::Nothing)?, Found::Whiteout))
    }

    /// Finds out the number of an entry that a listing alone does not tell: it may come from a lower layer.
    fn settle(&self, inode: &Arc<Inode>, name: &OsStr, ino: u64, kind: FileKind) -> (u64, FileKind) {
        match self.number_of(inode, Name::known(name)) {
            Ok(Some(found)) => found,
            // Gone, or corrupt: the entry answers when it is looked up.
            Ok(None) => (ino, kind),
            Err(error) => {
                log::warn!("{error}");
                (ino, kind)
            }
        }
    }
}

/// Returns the entries of `listing` that come after `cookie`.
fn listed(listing: &Listing, cookie: u64) -> impl Iterator<Item = DirEntry<'_>> {
    let entry =
        |item: &Item| DirEntry { name: listing.name(item), ino: item.ino, kind: item.kind, cookie: item.cookie };
    listing.after(cookie).iter().map(entry)
}

/// Returns whether a file that a listing shows as `kind` may be something else.
fn may_stand_for_other(layer: &Layer, kind: FileKind) -> bool {
    kind == FileKind::Regular && layer.overrides.is_some()
}

fn known_kind(kind: FileType) -> Option<FileKind> {
    Some(match kind {
        FileType::RegularFile => FileKind::Regular,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::CharacterDevice => FileKind::Char,
        FileType::BlockDevice => FileKind::Block,
        FileType::Unknown => return None,
    })
}

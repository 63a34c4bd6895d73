//! Carries one operation out on the union and on the model, and compares what it gave.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use rustix::fs::XattrFlags;
use rustix::io::Errno;
use unionfs_rs::error::Error;
use unionfs_rs::union::{
    Caller, FileKind, Flow, Name, New, NodeId, OpenFile, RenameFlags, SetAttr, SetTime, Timestamp, Union,
};

use super::layers::DEVICE;
use super::op::{At, Make, Op, Open, Set, Who};
use super::run::{Listing, Opened, Outcome, Run, name_of, settle};
use super::tree::{Id, Maker, Rename, Tree, Verdict, What};

/// A user without privileges, who makes some of the files.
const USER: Caller = Caller { uid: 1000, gid: 1000, pid: 0 };

/// Root, about whom there is nothing to find out.
pub const ROOT_USER: Caller = Caller { uid: 0, gid: 0, pid: 0 };

impl Run {
    pub(super) fn apply(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Create { path, make, mode, umask, who } => match self.parent(path)? {
                Some((dir, name)) => self.create(dir, name, *make, (*mode, *umask), *who),
                None => Ok(()),
            },
            Op::CreateIn { held, name, make } => match self.nth_held(*held).filter(|&id| self.tree.node(id).is_dir()) {
                Some(dir) => self.create(dir, name, *make, (0o777, 0o022), Who::Root),
                None => Ok(()),
            },
            Op::Unlink(path) => self.remove(path, Tree::judge_unlink, Union::unlink),
            Op::Rmdir(path) => self.remove(path, Tree::judge_rmdir, Union::rmdir),
            Op::Rename { from, to, flags } => self.rename(from, to, RenameFlags::from_bits_retain(*flags)),
            Op::Link { of, to } => self.link(of, to),
            Op::Write { at, offset, len, fill, who } => self.write(at, *offset, &vec![*fill; *len], *who),
            Op::Truncate { at, size, who } => self.truncate(at, *size, *who),
            Op::Allocate { at, punch, offset, len } => self.allocate(at, *punch, *offset, *len),
            Op::CopyRange { from, to, from_offset, to_offset, len } => {
                self.copy_range((from, *from_offset), (to, *to_offset), *len)
            }
            Op::Chmod { at, mode } => self.set_attributes(at, SetAttr { mode: Some(*mode), ..SetAttr::default() }),
            Op::Chown { at, uid, gid } => {
                self.set_attributes(at, SetAttr { uid: *uid, gid: *gid, ..SetAttr::default() })
            }
            Op::Utimes { at, secs } => {
                let mtime = Some(SetTime::To(Timestamp { secs: *secs, nanos: 5 }));
                self.set_attributes(at, SetAttr { mtime, ..SetAttr::default() })
            }
            Op::SetXattr { at, key, len, how } => self.set_xattr(at, key, &vec![b'v'; *len], *how),
            Op::RemoveXattr { at, key } => self.remove_xattr(at, key),
            Op::Hold(path) => {
                if let Some(id) = self.target(&At::Path(path.clone()))? {
                    self.keep(id);
                }
                Ok(())
            }
            Op::Forget(index) => match self.nth_held(*index).filter(|&id| self.spare(id) > 0) {
                Some(id) => self.give_back(id, 1),
                None => Ok(()),
            },
            Op::ForgetAll => self.forget_all(),
            Op::Open { at, how } => self.open(at, *how),
            Op::Close(index) => self.close(*index),
            Op::WriteHandle { handle, offset, len, fill, who } => {
                self.write_handle(*handle, *offset, &vec![*fill; *len], *who)
            }
            Op::TruncateHandle { handle, size } => self.truncate_handle(*handle, *size),
            Op::ListSome { path, entries } => self.list_some(path, *entries),
            Op::ListRest(index) => self.list_rest(*index),
            Op::Remount(end) => self.remount(*end),
        }
    }

    fn create(&mut self, dir: Id, name: &str, make: Make, (mode, umask): (u32, u32), who: Who) -> Outcome {
        let caller = if who == Who::Root { ROOT_USER } else { USER };
        let target = "some/target";
        let (new, what) = match make {
            Make::Regular => (New::Regular, What::Regular(Vec::new())),
            Make::Directory => (New::Directory, What::Directory(BTreeMap::new())),
            Make::Symlink => (New::Symlink(OsStr::new(target)), What::Symlink(target.to_owned())),
            Make::Fifo => (New::Node(FileKind::Fifo, (0, 0)), What::Special(FileKind::Fifo, (0, 0))),
            Make::Socket => (New::Node(FileKind::Socket, (0, 0)), What::Special(FileKind::Socket, (0, 0))),
            Make::Device => (New::Node(FileKind::Char, DEVICE), What::Special(FileKind::Char, DEVICE)),
            Make::Whiteout => (New::Node(FileKind::Char, (0, 0)), What::Special(FileKind::Char, (0, 0))),
        };
        // The kernel gives mkdir(2) no set-user-id and set-group-id bits to pass on.
        let mode = if make == Make::Directory { mode & 0o1777 } else { mode };
        let verdict = self.tree.judge_create(dir, name, &what);
        let made = self.union().create(self.node_of(dir)?, name_of(name)?, new, mode, umask, caller);
        if let Some(entry) = settle("create", made, &verdict)? {
            self.changes += 1;
            let id = self.tree.create(dir, name, what, Maker { mode, umask, uid: caller.uid, gid: caller.gid });
            self.borrow(id, &entry).map_err(|error| format!("what was made: {error}"))?;
        }
        self.check_name(dir, name)
    }

    fn remove(
        &mut self,
        path: &str,
        judge: fn(&Tree, Id, &str) -> Verdict,
        call: fn(&Union, NodeId, Name<'_>) -> Result<(), Error>,
    ) -> Outcome {
        let Some((dir, name)) = self.parent(path)? else { return Ok(()) };
        let verdict = judge(&self.tree, dir, name);
        if settle("removal", call(self.union(), self.node_of(dir)?, name_of(name)?), &verdict)?.is_some() {
            self.changes += 1;
            self.tree.remove(dir, name);
        }
        self.check_name(dir, name)
    }

    fn rename(&mut self, from: &str, to: &str, flags: RenameFlags) -> Outcome {
        let Some(from) = self.parent(from)? else { return Ok(()) };
        let Some(to) = self.parent(to)? else { return Ok(()) };
        let rename = Rename { from, to, flags };
        let verdict = self.tree.judge_rename(rename);
        let done =
            self.union().rename(self.node_of(from.0)?, name_of(from.1)?, self.node_of(to.0)?, name_of(to.1)?, flags);
        if settle("rename", done, &verdict)?.is_some() {
            self.changes += 1;
            self.tree.rename(rename);
        }
        self.check_name(from.0, from.1)?;
        self.check_name(to.0, to.1)
    }

    fn link(&mut self, of: &At, to: &str) -> Outcome {
        let Some(id) = self.target(of)? else { return Ok(()) };
        let Some((dir, name)) = self.parent(to)? else { return Ok(()) };
        let verdict = self.tree.judge_link(id, dir, name);
        let linked = self.union().link(self.node_of(id)?, self.node_of(dir)?, name_of(name)?);
        if let Some(entry) = settle("link", linked, &verdict)? {
            self.changes += 1;
            self.tree.link(id, dir, name);
            self.borrow(id, &entry).map_err(|error| format!("what was linked: {error}"))?;
        }
        self.check_name(dir, name)
    }

    fn write(&mut self, at: &At, offset: usize, data: &[u8], who: Who) -> Outcome {
        let Some(id) = self.target(at)? else { return Ok(()) };
        let verdict = self.tree.judge_data_change(id);
        let written = self.union().write(self.node_of(id)?, offset as u64, data, unprivileged(who));
        if let Some(count) = settle("write", written, &verdict)? {
            self.wrote(id, offset, data, count, who)?;
        }
        self.check_file(id)
    }

    fn wrote(&mut self, id: Id, offset: usize, data: &[u8], count: usize, who: Who) -> Outcome {
        if count != data.len() {
            return Err(format!("{count} of {} bytes were written", data.len()));
        }
        self.changes += 1;
        self.tree.change_data(id, who == Who::User, |old| overwrite(old, offset, data));
        Ok(())
    }

    fn truncate(&mut self, at: &At, size: usize, who: Who) -> Outcome {
        let Some(id) = self.target(at)? else { return Ok(()) };
        let verdict = self.tree.judge_data_change(id);
        let set = SetAttr { size: Some(size as u64), ..SetAttr::default() };
        let done = self.union().setattr(self.node_of(id)?, set, None, unprivileged(who).unwrap_or(ROOT_USER));
        if let Some(attr) = settle("truncate", done, &verdict)? {
            self.changes += 1;
            self.tree.change_data(id, who == Who::User, |data| data.resize(size, 0));
            self.check_attr(id, &attr)?;
        }
        self.check_file(id)
    }

    fn allocate(&mut self, at: &At, punch: bool, offset: usize, len: usize) -> Outcome {
        let Some(id) = self.target(at)? else { return Ok(()) };
        let verdict = self.tree.judge_data_change(id);
        let mode = if punch { libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE } else { 0 };
        let done = self.union().fallocate(
            self.node_of(id)?,
            None,
            mode as u32,
            offset as u64..(offset + len) as u64,
            ROOT_USER,
        );
        if settle("fallocate", done, &verdict)?.is_some() {
            self.changes += 1;
            self.tree.change_data(id, false, |data| {
                if punch {
                    let end = (offset + len).min(data.len());
                    data[offset.min(end)..end].fill(0);
                } else if data.len() < offset + len {
                    data.resize(offset + len, 0);
                }
            });
        }
        self.check_file(id)
    }

    fn copy_range(&mut self, from: (&At, usize), to: (&At, usize), len: usize) -> Outcome {
        let Some(source) = self.target(from.0)? else { return Ok(()) };
        let Some(target) = self.target(to.0)? else { return Ok(()) };
        if source == target {
            // copy_file_range(2) refuses what overlaps, on which the model has no opinion.
            return Ok(());
        }
        let mut verdict = self.tree.judge_data(source);
        verdict.errors.extend(self.tree.judge_data_change(target).errors);
        let (from, to) = ((self.node_of(source)?, from.1), (self.node_of(target)?, to.1));
        let done =
            self.union().copy_range((from.0, None, from.1 as u64), (to.0, None, to.1 as u64), len as u64, ROOT_USER);
        if matches!(&done, Err(error) if error.errno() == Errno::XDEV) {
            // Between two file systems the caller copies by itself.
            return self.check_file(target);
        }
        if let Some(count) = settle("copy_file_range", done, &verdict)? {
            let What::Regular(data) = &self.tree.node(source).what else { return Err("the model judged wrong".into()) };
            let wanted = data.get(from.1..).unwrap_or_default();
            let wanted = wanted.get(..len).unwrap_or(wanted).to_vec();
            if count > wanted.len() || count == 0 && !wanted.is_empty() {
                return Err(format!("{count} of {} bytes were copied", wanted.len()));
            }
            if count > 0 {
                self.changes += 1;
                self.tree.change_data(target, false, |old| overwrite(old, to.1, &wanted[..count]));
            }
        }
        self.check_file(target)
    }

    fn set_attributes(&mut self, at: &At, set: SetAttr) -> Outcome {
        let Some(id) = self.target(at)? else { return Ok(()) };
        let verdict = self.tree.judge_attributes(id, set.mode.is_some());
        let done = self.union().setattr(self.node_of(id)?, set, None, ROOT_USER);
        if let Some(attr) = settle("setattr", done, &verdict)? {
            self.changes += 1;
            let node = self.tree.node_mut(id);
            if set.uid.is_some() || set.gid.is_some() {
                node.change_owner(set.uid, set.gid);
            }
            node.mode = set.mode.unwrap_or(node.mode);
            if let Some(SetTime::To(time)) = set.mtime {
                node.mtime = Some(time.secs);
            }
            self.check_attr(id, &attr)?;
        }
        self.check_file(id)
    }

    fn set_xattr(&mut self, at: &At, key: &str, value: &[u8], how: Set) -> Outcome {
        let Some(id) = self.target(at)? else { return Ok(()) };
        let verdict = self.tree.judge_set_xattr(id, key, how == Set::Create, how == Set::Replace);
        let flags = match how {
            Set::Any => XattrFlags::empty(),
            Set::Create => XattrFlags::CREATE,
            Set::Replace => XattrFlags::REPLACE,
        };
        if settle(
            "setxattr",
            self.union().setxattr(self.node_of(id)?, OsStr::new(key), value, flags, ROOT_USER),
            &verdict,
        )?
        .is_some()
        {
            self.changes += 1;
            self.tree.node_mut(id).xattrs.insert(key.to_owned(), value.to_vec());
        }
        self.check_file(id)
    }

    fn remove_xattr(&mut self, at: &At, key: &str) -> Outcome {
        let Some(id) = self.target(at)? else { return Ok(()) };
        let verdict = self.tree.judge_remove_xattr(id, key);
        let done = self.union().removexattr(self.node_of(id)?, OsStr::new(key), ROOT_USER);
        if settle("removexattr", done, &verdict)?.is_some() {
            self.changes += 1;
            self.tree.node_mut(id).xattrs.remove(key);
        }
        self.check_file(id)
    }

    fn open(&mut self, at: &At, how: Open) -> Outcome {
        let Some(id) = self.target(at)? else { return Ok(()) };
        if !matches!(self.tree.node(id).what, What::Regular(_)) {
            // Opening a pipe would wait for its other end; the kernel never asks for it.
            return Ok(());
        }
        let verdict = if how == Open::Read { Verdict::default() } else { self.tree.judge_data_change(id) };
        let open = match how {
            Open::Read => OpenFile::Read,
            Open::Write => OpenFile::Write,
            Open::Truncate => OpenFile::Truncate(ROOT_USER),
        };
        if let Some(fh) = settle("open", self.union().open(self.node_of(id)?, open), &verdict)? {
            if how == Open::Truncate {
                self.changes += 1;
                self.tree.change_data(id, false, Vec::clear);
            }
            self.handles.push(Opened { fh, id, writes: how != Open::Read });
            // The kernel refers to a file for as long as it is open; see `spare`.
            if let At::Path(_) = at {
                self.keep(id);
            }
        }
        self.check_file(id)
    }

    fn close(&mut self, index: usize) -> Outcome {
        let Some(index) = index.checked_rem(self.handles.len()) else { return Ok(()) };
        let closed = self.handles.remove(index);
        self.union().close(closed.fh);
        if self.spare(closed.id) > 0 { self.give_back(closed.id, 1) } else { Ok(()) }
    }

    fn write_handle(&mut self, handle: usize, offset: usize, data: &[u8], who: Who) -> Outcome {
        let Some(index) = handle.checked_rem(self.handles.len()) else { return Ok(()) };
        let Opened { fh, id, writes } = self.handles[index];
        let verdict = Verdict::default().refuse_if(!writes, Errno::BADF);
        let written = self.union().write_handle(fh, offset as u64, data, unprivileged(who));
        if let Some(count) = settle("write through a handle", written, &verdict)? {
            self.wrote(id, offset, data, count, who)?;
        }
        self.check_file(id)
    }

    fn truncate_handle(&mut self, handle: usize, size: usize) -> Outcome {
        let Some(index) = handle.checked_rem(self.handles.len()) else { return Ok(()) };
        let Opened { fh, id, writes } = self.handles[index];
        if !writes {
            // ftruncate(2) through a descriptor for reading is refused by the kernel.
            return Ok(());
        }
        let set = SetAttr { size: Some(size as u64), ..SetAttr::default() };
        let done = self.union().setattr(self.node_of(id)?, set, Some(fh), ROOT_USER);
        if settle("truncate through a handle", done, &Verdict::default())?.is_some() {
            self.changes += 1;
            self.tree.change_data(id, false, |data| data.resize(size, 0));
        }
        self.check_file(id)
    }

    fn list_some(&mut self, path: &str, entries: usize) -> Outcome {
        let Some(dir) = self.target(&At::Path(path.to_owned()))? else { return Ok(()) };
        if !self.tree.node(dir).is_dir() {
            return Ok(());
        }
        self.keep(dir);
        let names: BTreeMap<String, Id> = self.tree.names(dir).into_iter().collect();
        let ever = names.keys().cloned().collect();
        let mut listing = Listing { dir, cookie: 0, seen: Vec::new(), stayed: names, ever };
        self.list_on(&mut listing, entries)?;
        self.listings.push(listing);
        Ok(())
    }

    fn list_rest(&mut self, index: usize) -> Outcome {
        let Some(index) = index.checked_rem(self.listings.len()) else { return Ok(()) };
        let mut listing = self.listings.remove(index);
        self.list_on(&mut listing, usize::MAX)?;
        let mut sorted = listing.seen.clone();
        sorted.sort();
        sorted.dedup();
        if sorted.len() != listing.seen.len() {
            return Err(format!("a listing has a name twice: {:?}", listing.seen));
        }
        if let Some(name) = listing.stayed.keys().find(|name| !listing.seen.contains(*name)) {
            return Err(format!("a listing left out {name:?}, which was there all the time: {:?}", listing.seen));
        }
        if let Some(name) = listing.seen.iter().find(|name| !listing.ever.contains(*name)) {
            return Err(format!("a listing has {name:?}, which never was there"));
        }
        if self.spare(listing.dir) > 0 { self.give_back(listing.dir, 1) } else { Ok(()) }
    }

    fn list_on(&mut self, listing: &mut Listing, mut entries: usize) -> Outcome {
        let node = self.node_of(listing.dir)?;
        let listed = self.union().read_dir(node, listing.cookie, |entry| {
            if entries == 0 {
                return Flow::Full;
            }
            entries -= 1;
            listing.cookie = entry.cookie;
            if entry.name != "." && entry.name != ".." {
                listing.seen.push(entry.name.to_string_lossy().into_owned());
            }
            Flow::More
        });
        listed.map(drop).map_err(|error| format!("the directory cannot be listed on: {error}"))
    }
}

fn unprivileged(who: Who) -> Option<Caller> {
    (who == Who::User).then_some(USER)
}

fn overwrite(old: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    if old.len() < offset + data.len() {
        old.resize(offset + data.len(), 0);
    }
    old[offset..offset + data.len()].copy_from_slice(data);
}

//! What to do next: operations drawn from a seed, most of them on what is there.

use rustix::fs::{Access, FallocateFlags, FileType, OFlags, RenameFlags, SeekFrom, XattrFlags};

use super::actor::Who;
use super::model::Model;
use super::op::{Follow, Op, SLOTS, Time, Value};
use super::plan::{acl, capability, is_longest, mode, owner, target, time};
use super::tree::Holes;
use crate::support::Rng;

/// One step of a run.
#[derive(Clone, Debug)]
pub enum Step {
    Do(Who, Op),
    /// Compares the whole trees.
    Look,
    /// Closes all descriptors, unmounts and mounts again.
    Remount,
    /// Each side mounts what the other one has written.
    Swap,
    /// Makes the kernel forget inodes and dentries that are not in use.
    Forget,
}

impl Step {
    /// Returns the step without the set-user-id and set-group-id bits in what chmod is given.
    ///
    /// With passthrough the kernel writes by itself, with the server's rights, so bits that are set while the file is
    /// open stay when somebody else writes (docs/SEMANTICS.md). Those that were there before are drawn with the layers.
    pub fn without_set_id(self) -> Self {
        match self {
            Self::Do(who, Op::Fchmod { slot, mode }) => Self::Do(who, Op::Fchmod { slot, mode: mode & !0o6000 }),
            Self::Do(who, Op::Chmod { at, mode }) => Self::Do(who, Op::Chmod { at, mode: mode & !0o6000 }),
            step => step,
        }
    }
}

impl Model {
    /// Returns the next step.
    pub fn next(&self, rng: &mut Rng) -> Step {
        match rng.below(1000) {
            0..8 => return Step::Look,
            8..12 => return Step::Remount,
            12..15 => return Step::Swap,
            15..17 => return Step::Forget,
            _ => {}
        }
        let who = if rng.chance(65) { Who::Root } else { Who::User };
        let op = match rng.below(100) {
            0..14 => self.on_file(rng),
            14..46 => self.on_name(rng),
            46..68 => self.on_attributes(rng),
            68..74 => self.on_directory(rng),
            74..99 => self.on_slot(rng),
            _ => umask(rng),
        };
        Step::Do(who, op)
    }

    fn on_file(&self, rng: &mut Rng) -> Op {
        match rng.below(10) {
            0..6 => {
                let (at, flags) = match rng.below(8) {
                    0 => (self.new_name(rng), OFlags::CREATE),
                    1 => (self.new_name(rng), OFlags::CREATE | OFlags::EXCL),
                    2 => (self.existing(rng, FILES), OFlags::CREATE | OFlags::EXCL),
                    3 => (self.existing(rng, FILES), OFlags::CREATE | OFlags::TRUNC),
                    4 => (self.existing(rng, FILES), OFlags::TRUNC),
                    5 => (self.existing(rng, FILES), OFlags::APPEND),
                    _ => (self.existing(rng, FILES), OFlags::empty()),
                };
                let access = if rng.chance(50) { OFlags::WRONLY } else { OFlags::RDWR };
                let (offset, len) = (offset(rng), length(rng));
                Op::WriteFile { at, flags: flags | access, mode: mode(rng), offset, len, seed: rng.next() % 100 }
            }
            6..8 => Op::ReadFile { at: self.existing(rng, FILES) },
            _ => Op::Truncate { path: self.path(rng, FILES), len: offset(rng) },
        }
    }

    fn on_name(&self, rng: &mut Rng) -> Op {
        match rng.below(100) {
            0..12 => self.mkdir(rng),
            12..18 => self.mknod(rng),
            18..24 => Op::Symlink { target: target(rng), at: self.new_name(rng) },
            24..36 => self.link(rng),
            36..48 => Op::Unlink { at: self.existing(rng, NOT_DIRS) },
            48..51 => Op::RemoveTree { at: self.existing(rng, DIRS) },
            51..58 => Op::Rmdir { at: self.existing(rng, DIRS) },
            _ => self.rename(rng),
        }
    }

    fn mknod(&self, rng: &mut Rng) -> Op {
        let (kind, device) = *rng.pick(&[
            (FileType::Fifo, (0, 0)),
            (FileType::Fifo, (0, 0)),
            (FileType::Socket, (0, 0)),
            (FileType::RegularFile, (0, 0)),
            (FileType::CharacterDevice, (1, 3)),
            (FileType::CharacterDevice, (300, 70_000)),
            // For local use, so that there is none: what is drawn opens it, and may write to it.
            (FileType::BlockDevice, (63, 9)),
            // What would be a whiteout.
            (FileType::CharacterDevice, (0, 0)),
        ]);
        Op::Mknod { at: self.new_name(rng), kind, mode: mode(rng), device }
    }

    fn rename(&self, rng: &mut Rng) -> Op {
        let dir = rng.chance(50);
        let kinds = if dir { DIRS } else { NOT_DIRS };
        let from = self.existing(rng, kinds);
        let alike = if rng.chance(75) { kinds } else { &[] };
        // Not RENAME_WHITEOUT: the kernel's overlayfs refuses it and ours does not.
        let (flags, to) = match rng.below(10) {
            0..2 => (RenameFlags::EXCHANGE, self.existing(rng, alike)),
            2 => (RenameFlags::NOREPLACE, self.existing(rng, &[])),
            3 => (RenameFlags::NOREPLACE, self.new_name(rng)),
            4..6 => (RenameFlags::empty(), self.existing(rng, alike)),
            _ => (RenameFlags::empty(), self.new_name(rng)),
        };
        if self.redirects_long_name(&from, &to) {
            let follow = Follow::No;
            return Op::Stat { at: from, follow };
        }
        let probe = rng.chance(40);
        Op::Rename { from, to, flags, probe }
    }

    fn link(&self, rng: &mut Rng) -> Op {
        let (from, to) = (self.existing(rng, NOT_DIRS), self.new_name(rng));
        let follow = if rng.chance(80) { Follow::No } else { Follow::Yes };
        if self.redirects_long_name(&from, &to) {
            return Op::Stat { at: from, follow };
        }
        Op::Link { from, to, follow }
    }

    fn mkdir(&self, rng: &mut Rng) -> Op {
        let mut at = self.new_name(rng);
        if is_longest(&at.1) {
            at.1.set_file_name("long");
        }
        Op::Mkdir { at, mode: mode(rng) }
    }

    fn on_attributes(&self, rng: &mut Rng) -> Op {
        let follow = if rng.chance(50) { Follow::Yes } else { Follow::No };
        match rng.below(100) {
            0..18 => Op::Stat { at: self.existing(rng, &[]), follow },
            18..22 => {
                let access = *rng.pick(&[Access::READ_OK, Access::WRITE_OK, Access::EXEC_OK, Access::EXISTS]);
                Op::Access { at: self.existing(rng, &[]), access }
            }
            22..28 => Op::Readlink { at: self.existing(rng, &[FileType::Symlink]) },
            28..30 => Op::Statfs { path: self.path(rng, &[]) },
            30..42 => Op::Chmod { at: self.existing(rng, &[]), mode: mode(rng) },
            42..52 => {
                let (uid, gid) = some_owner(rng);
                Op::Chown { at: self.existing(rng, &[]), uid, gid, follow }
            }
            52..62 => {
                let (atime, mtime) = (when(rng), when(rng));
                Op::Utimens { at: self.existing(rng, &[]), atime, mtime, follow }
            }
            62..76 => {
                let (name, value) = xattr(rng);
                let flags =
                    *rng.pick(&[XattrFlags::empty(), XattrFlags::empty(), XattrFlags::CREATE, XattrFlags::REPLACE]);
                Op::SetXattr { path: self.path(rng, &[]), name, value, flags, follow }
            }
            76..84 => Op::GetXattr { path: self.path(rng, &[]), name: xattr(rng).0, follow },
            84..92 => Op::ListXattr { path: self.path(rng, &[]), follow },
            _ => Op::RemoveXattr { path: self.path(rng, &[]), name: xattr(rng).0, follow },
        }
    }

    fn on_directory(&self, rng: &mut Rng) -> Op {
        let buffer = *rng.pick(&[400, 1000, 32 * 1024]);
        match rng.below(12) {
            0 => Op::ListAndUnlink { at: self.existing(rng, DIRS), buffer },
            _ => Op::List { at: self.existing(rng, DIRS), buffer },
        }
    }

    fn on_slot(&self, rng: &mut Rng) -> Op {
        let used = self.used();
        if used.is_empty() || rng.chance(25) {
            return self.open(rng);
        }
        let slot = *rng.pick(&used);
        match rng.below(100) {
            0..8 => Op::Close { slot },
            8..20 => Op::Read { slot, offset: offset(rng), len: length(rng) },
            20..34 => {
                let offset = rng.chance(50).then(|| offset(rng));
                Op::Write { slot, offset, len: length(rng), seed: rng.next() % 100 }
            }
            34..42 => Op::Ftruncate { slot, len: offset(rng) },
            42..48 => self.fallocate(rng, slot),
            48..54 => self.seek(rng, slot),
            54..58 => {
                let (offset, to_offset) = (offset(rng), offset(rng));
                Op::CopyRange { from: *rng.pick(&used), to: slot, offset, to_offset, len: length(rng) }
            }
            58..74 => Op::Fstat { slot },
            74..78 => Op::SameInode { slot, at: self.existing(rng, &[]) },
            78..82 => Op::Fchmod { slot, mode: mode(rng) },
            82..85 => {
                let (uid, gid) = some_owner(rng);
                Op::Fchown { slot, uid, gid }
            }
            85..88 => Op::Futimens { slot, mtime: when(rng) },
            88..92 => Op::Fsync { slot },
            92..95 => {
                let (name, value) = xattr(rng);
                Op::FsetXattr { slot, name, value }
            }
            95..98 => Op::FlistXattr { slot },
            _ => Op::FremoveXattr { slot, name: xattr(rng).0 },
        }
    }

    fn open(&self, rng: &mut Rng) -> Op {
        let slot = rng.below(SLOTS);
        let mode = mode(rng);
        if rng.chance(25) {
            let at = self.existing(rng, DIRS);
            return Op::Open { slot, at, flags: OFlags::RDONLY | OFlags::DIRECTORY, mode };
        }
        let (at, extra) = match rng.below(10) {
            0 => (self.new_name(rng), OFlags::CREATE),
            1 => (self.existing(rng, FILES), OFlags::CREATE | OFlags::TRUNC),
            2 => (self.existing(rng, FILES), OFlags::APPEND),
            3 => (self.existing(rng, &[]), OFlags::NOFOLLOW),
            4 => (self.existing(rng, &[]), OFlags::PATH | OFlags::NOFOLLOW),
            _ => (self.existing(rng, FILES), OFlags::empty()),
        };
        let access = *rng.pick(&[OFlags::RDONLY, OFlags::RDWR, OFlags::RDWR, OFlags::WRONLY]);
        // A FIFO must not wait for its other end.
        Op::Open { slot, at, flags: extra | access | OFlags::NONBLOCK, mode }
    }

    /// FUSE passes these modes on and answers EOPNOTSUPP to the others by itself
    /// (fs/fuse/file.c, fuse_file_fallocate), which nothing in a server can change.
    fn fallocate(&self, rng: &mut Rng, slot: usize) -> Op {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let mode = match self.holes {
            Holes::Compare => punch,
            Holes::Ignore => *rng.pick(&[
                FallocateFlags::empty(),
                FallocateFlags::KEEP_SIZE,
                punch,
                FallocateFlags::ZERO_RANGE,
                FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
            ]),
        };
        Op::Fallocate { slot, mode, offset: offset(rng), len: length(rng) as u64 }
    }

    fn seek(&self, rng: &mut Rng, slot: usize) -> Op {
        let at = offset(rng);
        let to = match rng.below(5) {
            0 | 1 if self.holes == Holes::Compare => SeekFrom::Data(at),
            2 if self.holes == Holes::Compare => SeekFrom::Hole(at),
            3 => SeekFrom::End(-(rng.below(100) as i64)),
            _ => SeekFrom::Start(at),
        };
        Op::Seek { slot, to }
    }
}

const FILES: &[FileType] = &[FileType::RegularFile];
const DIRS: &[FileType] = &[FileType::Directory];
const NOT_DIRS: &[FileType] = &[
    FileType::RegularFile,
    FileType::RegularFile,
    FileType::Symlink,
    FileType::Fifo,
    FileType::Socket,
    FileType::CharacterDevice,
    FileType::BlockDevice,
];

/// Draws a umask that leaves the group its x. A write takes the sgid bit of a file without it where the
/// writer is not in its group; FUSE leaves it (linux/fuse.h, FUSE_HANDLE_KILLPRIV_V2) and does not tell
/// a server the groups to decide by.
fn umask(rng: &mut Rng) -> Op {
    let mask = *rng.pick(&[0o022, 0, 0o007, 0o027]);
    Op::Umask { mask }
}

fn offset(rng: &mut Rng) -> u64 {
    match rng.below(10) {
        0..4 => 0,
        4 => 4096,
        5 => 100_000,
        6 => 3_000_000,
        _ => rng.below(50_000) as u64,
    }
}

fn length(rng: &mut Rng) -> usize {
    match rng.below(8) {
        0 => 0,
        1 => 4096,
        2 => 130_000,
        3 => rng.below(30_000),
        _ => 1 + rng.below(300),
    }
}

fn when(rng: &mut Rng) -> Time {
    match rng.below(6) {
        0 => Time::Now,
        1 => Time::Omit,
        _ => {
            let (seconds, nanoseconds) = time(rng);
            Time::Set(seconds, nanoseconds)
        }
    }
}

fn some_owner(rng: &mut Rng) -> (Option<u32>, Option<u32>) {
    let (uid, gid) = owner(rng);
    match rng.below(3) {
        0 => (Some(uid), None),
        1 => (None, Some(gid)),
        // Not neither: with FUSE_HANDLE_KILLPRIV_V2 that is no request (fs/fuse/dir.c, fuse_setattr),
        // so that the suid bit which the kernel's overlayfs takes away stays.
        _ => (Some(uid), Some(gid)),
    }
}

fn xattr(rng: &mut Rng) -> (String, Value) {
    let (name, value) = named_xattr(rng);
    (name, Value(value))
}

fn named_xattr(rng: &mut Rng) -> (String, Vec<u8>) {
    let value = vec![b'v'; *rng.pick(&[0, 1, 5, 30, 1500])];
    match rng.below(20) {
        0..7 => ("user.one".to_owned(), value),
        7..9 => (format!("user.{}", "n".repeat(*rng.pick(&[2, 250, 251]))), value),
        9..11 => ("trusted.two".to_owned(), value),
        11 => ("trusted.overlay.opaque".to_owned(), b"y".to_vec()),
        12 => ("trusted.overlay.foo".to_owned(), value),
        13 => ("trusted.overlay.redirect".to_owned(), b"/a".to_vec()),
        // Not `user.overlay.`, which the kernel takes for its own with userxattr alone, and ours always.
        14 => ("user.other".to_owned(), b"y".to_vec()),
        15..17 => ("system.posix_acl_access".to_owned(), acl(rng)),
        17 => ("system.posix_acl_default".to_owned(), acl(rng)),
        18 => ("security.capability".to_owned(), capability()),
        _ => (rng.pick(&["user.", "none", "nonsense.x", "trusted."]).to_string(), value),
    }
}

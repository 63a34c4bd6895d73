//! Lower layers as they are generated: planned once, then written to disk and merged into the model alike.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

/// How a layer marks what it removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marks {
    /// Character devices 0:0 and the opaque xattr, in this namespace.
    Char(Space),
    /// Whiteouts by xattr and the opaque xattr, in this namespace.
    Xattr(Space),
    /// `.wh.NAME` and `.wh..wh..opq`.
    DotWh,
}

/// A namespace of overlay xattrs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    Trusted,
    User,
}

impl Space {
    fn key(self, mark: &str) -> String {
        match self {
            Self::Trusted => format!("trusted.overlay.{mark}"),
            Self::User => format!("user.overlay.{mark}"),
        }
    }
}

/// One thing in a layer, at a path that the strategy chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thing {
    File { len: usize, fill: u8, mode: u32, owner: u32 },
    Dir { mode: u32, owner: u32 },
    OpaqueDir { mode: u32, owner: u32 },
    Symlink(&'static str),
    Fifo,
    Device,
    Whiteout,
}

/// A layer as it was generated. What contradicts an earlier entry is left out by [`Layer::plan`].
#[derive(Clone, Debug)]
pub struct Layer {
    pub marks: Marks,
    pub things: Vec<(String, Thing)>,
    /// Hard links: an existing path and another name for it.
    pub links: Vec<(String, String)>,
}

/// A layer without contradictions: names in byte order, so that parents come first.
#[derive(Debug)]
pub struct Plan {
    pub marks: Marks,
    pub names: BTreeMap<String, usize>,
    pub objects: Vec<Object>,
}

/// An object of a plan, which may have several names.
#[derive(Debug)]
pub struct Object {
    pub thing: Thing,
    pub mtime: i64,
    /// Whether it has the xattr `user.lower`.
    pub marked: bool,
    pub nlink: u32,
}

impl Layer {
    /// Settles what is in the layer: the first to claim a path has it, missing parents are made. `number` makes
    /// its times differ from those of other layers.
    pub fn plan(&self, number: usize) -> Plan {
        let mut plan = Plan { marks: self.marks, names: BTreeMap::new(), objects: Vec::new() };
        for (path, thing) in &self.things {
            if plan.has_room_for(path) {
                plan.make_parents(path, number);
                plan.add(path, *thing, number);
            }
        }
        for (from, to) in &self.links {
            let Some(&object) = plan.names.get(from) else { continue };
            let linkable =
                !matches!(plan.objects[object].thing, Thing::Dir { .. } | Thing::OpaqueDir { .. } | Thing::Whiteout);
            if linkable && plan.has_room_for(to) {
                plan.make_parents(to, number);
                plan.names.insert(to.clone(), object);
                plan.objects[object].nlink += 1;
            }
        }
        plan
    }
}

impl Plan {
    fn is_dir(&self, path: &str) -> bool {
        self.names
            .get(path)
            .is_some_and(|&object| matches!(self.objects[object].thing, Thing::Dir { .. } | Thing::OpaqueDir { .. }))
    }

    /// Whether nothing has the path and all above it are directories or missing.
    fn has_room_for(&self, path: &str) -> bool {
        !self.names.contains_key(path)
            && parents(path).all(|above| !self.names.contains_key(above) || self.is_dir(above))
    }

    fn make_parents(&mut self, path: &str, number: usize) {
        for above in parents(path) {
            if !self.names.contains_key(above) {
                self.add(above, Thing::Dir { mode: 0o755, owner: 0 }, number);
            }
        }
    }

    fn add(&mut self, path: &str, thing: Thing, number: usize) {
        let object = self.objects.len();
        let mtime = 1_000_000 + (number * 1000 + object) as i64;
        let marked =
            object % 3 == 1 && matches!(thing, Thing::File { .. } | Thing::Dir { .. } | Thing::OpaqueDir { .. });
        self.objects.push(Object { thing, mtime, marked, nlink: 1 });
        self.names.insert(path.to_owned(), object);
    }

    /// Writes the layer into the empty directory `root`; `stored` says which owner it stores for one that is shown.
    pub fn write(&self, root: &Path, stored: impl Fn(u32) -> u32) {
        let mut first: BTreeMap<usize, &str> = BTreeMap::new();
        for (path, &object) in &self.names {
            match first.get(&object) {
                Some(known) => fs::hard_link(root.join(known), root.join(path)).expect("a layer's file can be linked"),
                None => {
                    self.make(root, path, self.objects[object].thing);
                    first.insert(object, path);
                }
            }
        }
        // Contents first, then what making them would change: deepest first.
        for (&object, path) in first.iter().rev() {
            self.dress(root, path, &self.objects[object], &stored);
        }
        for (path, &object) in self.names.iter().rev() {
            if matches!(self.objects[object].thing, Thing::Dir { .. } | Thing::OpaqueDir { .. }) {
                set_mtime(&root.join(path), self.objects[object].mtime);
            }
        }
        chown(root, stored(0));
        chmod(root, 0o755);
        set_mtime(root, ROOT_MTIME);
    }

    fn make(&self, root: &Path, path: &str, thing: Thing) {
        let at = root.join(path);
        match thing {
            Thing::File { len, fill, .. } => fs::write(&at, vec![fill; len]).expect("a layer's file can be written"),
            Thing::Dir { .. } | Thing::OpaqueDir { .. } => {
                fs::create_dir(&at).expect("a layer's directory can be made")
            }
            Thing::Symlink(target) => std::os::unix::fs::symlink(target, &at).expect("a layer's link can be made"),
            Thing::Fifo => mknod(&at, FileType::Fifo, (0, 0)),
            Thing::Device => mknod(&at, FileType::CharacterDevice, DEVICE),
            Thing::Whiteout => self.whiteout(root, path),
        }
    }

    fn whiteout(&self, root: &Path, path: &str) {
        let at = root.join(path);
        let parent = at.parent().expect("a path in a layer has a parent");
        let in_opaque = parents(path)
            .last()
            .and_then(|above| self.names.get(above))
            .is_some_and(|&object| matches!(self.objects[object].thing, Thing::OpaqueDir { .. }));
        match self.marks {
            // A directory is marked either as opaque or as one that holds whiteouts by xattr.
            Marks::Xattr(space) if !in_opaque => {
                fs::write(&at, "").expect("a whiteout can be written");
                set_xattr(&at, &space.key("whiteout"), b"y");
                set_xattr(parent, &space.key("opaque"), b"x");
            }
            Marks::Char(_) | Marks::Xattr(_) => mknod(&at, FileType::CharacterDevice, (0, 0)),
            Marks::DotWh => {
                let name = at.file_name().expect("a path in a layer has a name").to_string_lossy().into_owned();
                fs::write(parent.join(format!(".wh.{name}")), "").expect("a mark can be written");
            }
        }
    }

    fn dress(&self, root: &Path, path: &str, object: &Object, stored: impl Fn(u32) -> u32) {
        let at = root.join(path);
        let (mode, owner) = match object.thing {
            Thing::Whiteout => return,
            Thing::File { mode, owner, .. } | Thing::Dir { mode, owner } | Thing::OpaqueDir { mode, owner } => {
                (mode, owner)
            }
            Thing::Symlink(_) => {
                chown(&at, stored(0));
                set_mtime(&at, object.mtime);
                return;
            }
            Thing::Fifo | Thing::Device => (SPECIAL_MODE, 0),
        };
        if object.marked {
            set_xattr(&at, LOWER_XATTR, path.as_bytes());
        }
        if let Thing::OpaqueDir { .. } = object.thing {
            match self.marks {
                Marks::Char(space) | Marks::Xattr(space) => set_xattr(&at, &space.key("opaque"), b"y"),
                Marks::DotWh => fs::write(at.join(".wh..wh..opq"), "").expect("a mark can be written"),
            }
        }
        chown(&at, stored(owner));
        chmod(&at, mode);
        set_mtime(&at, object.mtime);
    }
}

/// The device that [`Thing::Device`] stands for: 1:3, which is /dev/null.
pub const DEVICE: (u32, u32) = (1, 3);

/// The mode of pipes and devices.
pub const SPECIAL_MODE: u32 = 0o640;

/// The xattr that some things of a layer have; its value is the path that comes first.
pub const LOWER_XATTR: &str = "user.lower";

/// When the roots of the layers were changed.
pub const ROOT_MTIME: i64 = 999_999;

/// The directories above `path`, the topmost first, the layer's root left out.
pub fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

fn mknod(at: &Path, kind: FileType, (major, minor): (u32, u32)) {
    let device = rustix::fs::makedev(major, minor);
    rustix::fs::mknodat(CWD, at, kind, Mode::RUSR, device).expect("root may make nodes");
}

fn chown(at: &Path, owner: u32) {
    std::os::unix::fs::lchown(at, Some(owner), Some(owner)).expect("root may chown");
}

fn chmod(at: &Path, mode: u32) {
    rustix::fs::chmod(at, Mode::from_raw_mode(mode)).expect("root may chmod");
}

fn set_xattr(at: &Path, key: &str, value: &[u8]) {
    rustix::fs::lsetxattr(at, key, value, XattrFlags::empty()).expect("the test directory holds xattrs");
}

/// Sets the time of change, and an access time that no test compares.
pub fn set_mtime(at: &Path, secs: i64) {
    let time = Timespec { tv_sec: secs, tv_nsec: 5 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, at, &times, AtFlags::SYMLINK_NOFOLLOW).expect("an own file's times can be set");
}

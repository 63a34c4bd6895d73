//! Where a sequence plays: the directories of the layers and the union that is built on them.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};

use unionfs_rs::config::{
    Fsync, IdMap, IdRange, Lacking, Owners, Permissions, RedirectDir, UnionConfig, WhiteoutFormat, XattrNamespace,
};
use unionfs_rs::union::Union;

use super::layers::{Plan, ROOT_MTIME, set_mtime};
use super::tree::Rules;
use crate::support::{Atime, LowersUnchanged, Tmpfs};

/// A configuration of the union, as far as a test varies it.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    pub read_only: bool,
    pub redirect_dir: RedirectDir,
    pub index: bool,
    pub metacopy: bool,
    pub volatile: bool,
    pub namespace: XattrNamespace,
    pub whiteouts: WhiteoutFormat,
    /// Whether each mount writes whiteouts in another format than the one before.
    pub rotate_whiteouts: bool,
    /// Whether every second lower is on a file system of its own.
    pub two_filesystems: bool,
    /// Where the upper keeps owners and modes.
    pub permissions: Permissions,
    /// Whether the layers store other owners than the union shows.
    pub mapped: bool,
    /// What the file system of upper lacks.
    pub lacking: Lacking,
    /// Whether only every second mount lacks it, so that the others leave whiteouts in other forms.
    pub lacks_in_turn: bool,
}

/// The map of a union whose owners are mapped: all that the sequences use, each to the next.
const MAP: [IdRange; 3] = [
    IdRange { stored: 0, shown: 77, count: 1 },
    IdRange { stored: 77, shown: 1000, count: 1 },
    IdRange { stored: 1000, shown: 0, count: 1 },
];

impl Variant {
    /// What root gets who asks for nothing.
    pub const DEFAULT: Self = Self {
        read_only: false,
        redirect_dir: RedirectDir::Auto,
        index: true,
        metacopy: false,
        volatile: false,
        namespace: XattrNamespace::Auto,
        whiteouts: WhiteoutFormat::Auto,
        rotate_whiteouts: false,
        two_filesystems: false,
        permissions: Permissions::Inode,
        mapped: false,
        lacking: Lacking::empty(),
        lacks_in_turn: false,
    };

    fn map(&self) -> IdMap {
        IdMap::new(if self.mapped { MAP.to_vec() } else { Vec::new() }).expect("the ranges are apart")
    }

    /// Returns the owner that a layer stores for one that the union shows.
    pub fn stored(&self, shown: u32) -> u32 {
        self.map().stored(shown).expect("every owner of a sequence is mapped")
    }

    /// Returns what of it shows in the tree.
    pub fn rules(&self) -> Rules {
        let marks = !self.lacking.contains(Lacking::XATTRS);
        let writes = !self.read_only;
        let index = self.index && marks && !self.lacking.contains(Lacking::LINKS);
        Rules {
            read_only: self.read_only,
            redirect_dir: writes && marks && matches!(self.redirect_dir, RedirectDir::Auto | RedirectDir::On),
            keeps_links: index || self.read_only,
            // The index takes xattrs on the file itself, and `user.` ones are on files and directories alone.
            keeps_special_links: index && self.namespace != XattrNamespace::User || self.read_only,
            links: !self.lacking.contains(Lacking::LINKS) || self.read_only,
            exchanges: !self.lacking.contains(Lacking::EXCHANGE) || self.read_only,
        }
    }
}

/// The place of a test's sequences, each in a directory of its own.
#[derive(Debug)]
pub struct Theatre {
    // Fields drop in order: the mounts go before the directory that they are in.
    _first: Tmpfs,
    _second: Tmpfs,
    root: tempfile::TempDir,
}

impl Theatre {
    /// Mounts two file systems in memory: a test makes thousands of files and syncs many of them.
    pub fn open() -> Self {
        let root = match std::env::var_os("UNIONFS_TEST_DIR") {
            Some(dir) => tempfile::TempDir::with_prefix_in("unionfs-model-", dir),
            None => tempfile::TempDir::with_prefix("unionfs-model-"),
        }
        .expect("the test directory can be written");
        let mount = |name: &str| Tmpfs::mount(&root.path().join(name), "mode=755").expect("root may mount a tmpfs");
        Self { _first: mount("first"), _second: mount("second"), root }
    }

    fn at(&self, filesystem: &str) -> PathBuf {
        self.root.path().join(filesystem)
    }
}

/// The directories of one sequence.
#[derive(Debug)]
pub struct Stage {
    variant: Variant,
    lowers: Vec<PathBuf>,
    unchanged: LowersUnchanged,
    generation: usize,
    /// How often the union was built.
    builds: Cell<usize>,
    first: tempfile::TempDir,
    // Only kept until the sequence is over.
    _second: tempfile::TempDir,
}

impl Stage {
    /// Writes the layers, topmost first.
    pub fn set(theatre: &Theatre, variant: Variant, plans: &[Plan]) -> Self {
        let dir = |filesystem| tempfile::TempDir::new_in(theatre.at(filesystem)).expect("an own tmpfs can be written");
        let (first, second) = (dir("first"), dir("second"));
        let mut lowers = Vec::new();
        for (number, plan) in plans.iter().enumerate() {
            let home = if variant.two_filesystems && number % 2 == 0 { second.path() } else { first.path() };
            let path = home.join(format!("lower{number}"));
            fs::create_dir(&path).expect("an own directory can be written");
            plan.write(&path, |owner| variant.stored(owner));
            lowers.push(path);
        }
        let unchanged = LowersUnchanged::with(&lowers, Atime::Compare);
        let stage = Self { variant, lowers, unchanged, generation: 0, builds: Cell::new(0), first, _second: second };
        stage.make_upper();
        stage
    }

    fn make_upper(&self) {
        for dir in [self.upper(), self.work()] {
            fs::create_dir(&dir).expect("an own directory can be written");
            let owner = Some(self.variant.stored(0));
            std::os::unix::fs::chown(&dir, owner, owner).expect("root may chown");
            set_mtime(&dir, ROOT_MTIME);
        }
    }

    fn upper(&self) -> PathBuf {
        self.first.path().join(format!("upper{}", self.generation))
    }

    fn work(&self) -> PathBuf {
        self.first.path().join(format!("work{}", self.generation))
    }

    /// Builds the union on what is there now.
    pub fn build(&self) -> Result<Union, String> {
        let v = &self.variant;
        self.builds.set(self.builds.get() + 1);
        let formats = [v.whiteouts, WhiteoutFormat::DotWh, WhiteoutFormat::Char, WhiteoutFormat::Xattr];
        let written = if v.lacks_in_turn && self.lacks_now() {
            WhiteoutFormat::Auto
        } else if v.rotate_whiteouts {
            formats[(self.builds.get() - 1) % formats.len()]
        } else {
            v.whiteouts
        };
        let config = UnionConfig {
            lowers: self.lowers.iter().map(Into::into).collect(),
            upper: (!v.read_only).then(|| self.upper().into()),
            work: (!v.read_only).then(|| self.work().into()),
            fsync: if v.volatile { Fsync::Volatile } else { Fsync::Auto },
            redirect_dir: v.redirect_dir,
            // Where it cannot be, it is not insisted on.
            index: if v.index && v.lacking.intersects(Lacking::LINKS | Lacking::XATTRS) { None } else { Some(v.index) },
            metacopy: v.metacopy,
            xattr_namespace: v.namespace,
            whiteout_format: written,
            permissions: v.permissions,
            lacking: if self.lacks_now() { v.lacking } else { Lacking::empty() },
            owners: Owners { uids: v.map(), gids: v.map(), ..Owners::default() },
            ..UnionConfig::default()
        };
        Union::from_config(&config).map_err(|error| format!("the union cannot be built: {error}"))
    }

    /// Whether the union that was built last is on an upper that lacks something.
    fn lacks_now(&self) -> bool {
        !self.variant.lacks_in_turn || self.builds.get().is_multiple_of(2)
    }

    /// Whether names can be exchanged at the moment.
    pub fn exchanges(&self) -> bool {
        !self.lacks_now() || self.variant.rules().exchanges
    }

    /// Checks that every lower is bit by bit what it was; panics with the differences.
    pub fn check_lowers(&self) {
        self.unchanged.check();
    }

    /// Checks that nothing unfinished is left in the workdir of a union that was ended.
    pub fn check_work_is_empty(&self) -> Result<(), String> {
        if self.variant.read_only {
            return Ok(());
        }
        let mut left = names(&self.work().join("work"));
        left.retain(|name| !(self.variant.volatile && name == "incompat"));
        if left.is_empty() { Ok(()) } else { Err(format!("left in the workdir: {left:?}")) }
    }

    /// Makes what was upper the topmost lower under a fresh upper.
    pub fn restack(&mut self) {
        self.lowers.insert(0, self.upper());
        self.generation += 1;
        self.make_upper();
        self.unchanged = LowersUnchanged::with(&self.lowers, Atime::Compare);
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("the workdir can be read");
    entries.map(|entry| entry.expect("the workdir can be read").file_name().to_string_lossy().into_owned()).collect()
}

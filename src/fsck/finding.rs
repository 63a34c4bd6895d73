//! What can be found, and what a repair does about it.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::PathBuf;

use crate::error::Location;

/// What a path of a finding is below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The upper.
    Upper,
    /// The workdir.
    Work,
}

impl Side {
    /// Returns the name of the side in messages.
    pub fn label(self) -> &'static str {
        match self {
            Self::Upper => "upper",
            Self::Work => "work",
        }
    }
}

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// The union shows what it should; something is left over, or st_ino is not what it was.
    Harmless,
    /// The union shows something else than it should, answers EIO, or cannot be mounted.
    Damage,
}

impl Weight {
    /// Returns the word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Harmless => "harmless",
            Self::Damage => "damage",
        }
    }
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What the path is below.
    pub side: Side,
    /// The path; empty for the directory itself.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
    /// The inode that it was found on, which a repair looks for again.
    pub(super) ino: u64,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// A whiteout, in whichever form, hides a name that no lower layer has.
    WhiteoutOfNothing,
    /// A `.wh.NAME` stands beside something that covers what is below by itself.
    WhiteoutBeside,
    /// An empty file has the xattr of a whiteout, in a directory that is not marked to have such: it shows as a file.
    WhiteoutUnseen {
        /// The name of the xattr.
        xattr: OsString,
    },
    /// A directory is marked opaque with a value that nobody knows, and so is not.
    OpaqueUnknown {
        /// The name of the xattr.
        xattr: OsString,
        /// Its value.
        value: Vec<u8>,
    },
    /// A mark is on a file of a kind that it says nothing about.
    MarkMisplaced {
        /// The name of the xattr.
        xattr: OsString,
    },
    /// A redirect or metacopy is in a namespace that this mount does not follow: EIO.
    MarkForeign {
        /// The name of the xattr.
        xattr: OsString,
    },
    /// A redirect is neither a name nor a path below the root: EIO.
    RedirectInvalid {
        /// Its value.
        value: Vec<u8>,
    },
    /// A redirect leads to no directory of the lower layers.
    RedirectToNothing {
        /// Its value.
        value: Vec<u8>,
    },
    /// A redirect is on a directory that is opaque, and so is not followed.
    RedirectUnused,
    /// A directory leads to a lower one that shows under another name, too.
    ShownTwice {
        /// The other name, below the root of the union.
        other: PathBuf,
        /// Whether a whiteout can hide that: it is in the lower layers alone, and its directory in upper.
        hideable: bool,
    },
    /// An origin that cannot be read.
    OriginInvalid,
    /// An origin that is none of the lower layers' files.
    OriginGone,
    /// The origin of upper's root is another directory than the root of the topmost lower layer.
    OriginOfRoot,
    /// A directory has files with an origin, and no lower part and no mark that says so.
    ImpureMissing,
    /// A file has its metadata here, and its data nowhere: EIO.
    MetacopyWithoutData {
        /// Where the search ended.
        reason: String,
    },
    /// Owner and mode are kept in an xattr that cannot be read: EIO.
    OwnerInvalid,
    /// A copied-up hard link is not in the index, so that its other names do not find it.
    NotIndexed {
        /// The name that it has there.
        entry: OsString,
        /// Whether it can be put there: there is a workdir, and no other file has the name.
        possible: bool,
    },
    /// Something cannot be looked at.
    Unreadable {
        /// The call and its answer.
        error: String,
    },
    /// Something in the index whose name is no handle of a file, or a directory that has one: the kernel's overlayfs refuses the workdir.
    IndexInvalid {
        /// Whether the file has another name, so that nothing is lost with this one.
        named: bool,
    },
    /// An entry of the index for what is none of the lower layers' files.
    IndexGone,
    /// An entry of the index that no name leads to.
    IndexUnused,
    /// An entry of the index whose file says that it is a copy of another one, or of none.
    IndexOrigin,
    /// A link count in the index that cannot be.
    LinkCount {
        /// The mark; `None` where there is none.
        value: Option<Vec<u8>>,
        /// How far the number of names in the union is from that of the upper inode.
        right: i32,
    },
    /// Something unfinished is left in the workdir.
    Leftover,
    /// Something is no part of a workdir: a mount refuses it.
    NotOfWorkdir,
    /// The mark of a volatile mount of this run of the system.
    VolatileNow,
    /// The mark of a volatile mount, perhaps before the system was started anew: a mount refuses it.
    VolatileBefore,
    /// The mark of a feature that is not known: a mount refuses it.
    FeatureUnknown,
}

/// What a repair does about a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repair {
    /// Nothing can be done without losing something, or without knowing what was meant; this is the way out.
    None(String),
    /// Removes the name.
    RemoveName,
    /// Removes the overlay xattr of this name.
    RemoveXattr(OsString),
    /// Removes the origin, and the link count that goes with it.
    RemoveOrigin,
    /// Removes the redirect.
    RemoveRedirect,
    /// Makes the directory opaque and then removes its redirect.
    CloseDirectory,
    /// Puts a whiteout under this name.
    Hide(PathBuf),
    /// Marks the directory as one that has files with an origin.
    MarkImpure,
    /// Links the file into the index under this name.
    AddToIndex(OsString),
    /// Writes the origin that the name in the index says.
    WriteOrigin,
    /// Writes the link count.
    WriteLinkCount(i32),
    /// Removes the entry, and all below it, from the workdir.
    RemoveLeftover,
    /// Waits until upper's file system is on the disk, and then removes the mark.
    SettleVolatile,
}

impl Repair {
    /// Returns whether there is something that a repair does.
    pub fn is_possible(&self) -> bool {
        !matches!(self, Self::None(_))
    }

    fn none(way_out: &str) -> Self {
        Self::None(way_out.to_owned())
    }
}

impl Problem {
    /// Returns the name of the class, for programs.
    pub fn class(&self) -> &'static str {
        match self {
            Self::WhiteoutOfNothing => "whiteout-of-nothing",
            Self::WhiteoutBeside => "whiteout-beside",
            Self::WhiteoutUnseen { .. } => "whiteout-unseen",
            Self::OpaqueUnknown { .. } => "opaque-unknown",
            Self::MarkMisplaced { .. } => "mark-misplaced",
            Self::MarkForeign { .. } => "mark-foreign",
            Self::RedirectInvalid { .. } => "redirect-invalid",
            Self::RedirectToNothing { .. } => "redirect-to-nothing",
            Self::RedirectUnused => "redirect-unused",
            Self::ShownTwice { .. } => "shown-twice",
            Self::OriginInvalid => "origin-invalid",
            Self::OriginGone => "origin-gone",
            Self::OriginOfRoot => "origin-of-root",
            Self::ImpureMissing => "impure-missing",
            Self::MetacopyWithoutData { .. } => "metacopy-without-data",
            Self::OwnerInvalid => "owner-invalid",
            Self::NotIndexed { .. } => "not-indexed",
            Self::Unreadable { .. } => "unreadable",
            Self::IndexInvalid { .. } => "index-invalid",
            Self::IndexGone => "index-gone",
            Self::IndexUnused => "index-unused",
            Self::IndexOrigin => "index-origin",
            Self::LinkCount { .. } => "link-count",
            Self::Leftover => "leftover",
            Self::NotOfWorkdir => "not-of-workdir",
            Self::VolatileNow => "volatile-now",
            Self::VolatileBefore => "volatile-before",
            Self::FeatureUnknown => "feature-unknown",
        }
    }

    /// Returns how grave it is.
    pub fn weight(&self) -> Weight {
        match self {
            Self::WhiteoutOfNothing
            | Self::WhiteoutBeside
            | Self::OpaqueUnknown { .. }
            | Self::MarkMisplaced { .. }
            | Self::RedirectUnused
            | Self::OriginInvalid
            | Self::OriginGone
            | Self::OriginOfRoot
            | Self::ImpureMissing
            | Self::IndexGone
            | Self::IndexUnused
            | Self::Leftover
            | Self::VolatileNow => Weight::Harmless,
            Self::WhiteoutUnseen { .. }
            | Self::MarkForeign { .. }
            | Self::RedirectInvalid { .. }
            | Self::RedirectToNothing { .. }
            | Self::ShownTwice { .. }
            | Self::MetacopyWithoutData { .. }
            | Self::OwnerInvalid
            | Self::NotIndexed { .. }
            | Self::Unreadable { .. }
            | Self::IndexInvalid { .. }
            | Self::IndexOrigin
            | Self::LinkCount { .. }
            | Self::NotOfWorkdir
            | Self::VolatileBefore
            | Self::FeatureUnknown => Weight::Damage,
        }
    }

    /// Returns what a repair does about it.
    pub fn repair(&self) -> Repair {
        match self {
            Self::WhiteoutOfNothing | Self::WhiteoutBeside => Repair::RemoveName,
            Self::WhiteoutUnseen { .. } => Repair::none(
                "remove the file if it is one that was made empty; else set the overlay xattr opaque=x on its directory",
            ),
            Self::OpaqueUnknown { xattr, .. } | Self::MarkMisplaced { xattr } => Repair::RemoveXattr(xattr.clone()),
            Self::MarkForeign { .. } => {
                Repair::none("check and mount it with the --xattr-namespace that it was written with")
            }
            Self::RedirectInvalid { .. } | Self::RedirectToNothing { .. } => Repair::CloseDirectory,
            Self::RedirectUnused => Repair::RemoveRedirect,
            Self::ShownTwice { other, hideable: true } => Repair::Hide(other.clone()),
            Self::ShownTwice { hideable: false, .. } => {
                Repair::none("mount it, and remove or rename the one that should not be there")
            }
            Self::OriginInvalid | Self::OriginGone | Self::OriginOfRoot => Repair::RemoveOrigin,
            Self::ImpureMissing => Repair::MarkImpure,
            Self::MetacopyWithoutData { .. } => Repair::none(
                "check with the lower layers that it was written over; if they are lost so is the data: remove the file",
            ),
            Self::OwnerInvalid => Repair::none(
                "write its xattr override_stat anew (UID:GID:0MODE), as setfattr(1) does, or remove the file",
            ),
            Self::NotIndexed { entry, possible: true } => Repair::AddToIndex(entry.clone()),
            Self::NotIndexed { possible: false, .. } => Repair::none(
                "name the workdir that it was written with (--work); if that is lost, its other names show the lower file",
            ),
            Self::Unreadable { .. } => Repair::none("see to that, and check again"),
            Self::IndexInvalid { named: true } | Self::IndexGone | Self::IndexUnused => Repair::RemoveName,
            Self::IndexInvalid { named: false } => Repair::none("see what it is, and move it out of the index"),
            Self::IndexOrigin => Repair::WriteOrigin,
            Self::LinkCount { right, .. } => Repair::WriteLinkCount(*right),
            Self::Leftover => Repair::RemoveLeftover,
            Self::NotOfWorkdir => Repair::none("move it elsewhere, or name the right workdir (--work)"),
            Self::VolatileNow => Repair::SettleVolatile,
            Self::VolatileBefore => Repair::none(
                "start with a fresh upper and workdir; or, to take what is there for complete, remove this directory",
            ),
            Self::FeatureUnknown => Repair::none("mount it with what wrote it"),
        }
    }
}

/// Shows the value of an xattr that should be text.
fn shown(value: &[u8]) -> String {
    format!("\"{}\"", value.escape_ascii())
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WhiteoutOfNothing => f.write_str("a whiteout that hides nothing"),
            Self::WhiteoutBeside => f.write_str("a whiteout beside what covers the lower layers by itself"),
            Self::WhiteoutUnseen { xattr } => write!(
                f,
                "has {}, and shows as an empty file: its directory is not marked to have such whiteouts",
                xattr.display()
            ),
            Self::OpaqueUnknown { xattr, value } => {
                write!(f, "{} is {}, which nobody knows: the lower layers show", xattr.display(), shown(value))
            }
            Self::MarkMisplaced { xattr } => {
                write!(f, "{} says nothing about a file of this kind", xattr.display())
            }
            Self::MarkForeign { xattr } => write!(f, "{} is not followed by this mount: EIO", xattr.display()),
            Self::RedirectInvalid { value } => {
                write!(f, "its redirect {} is neither a name nor a path below the root: EIO", shown(value))
            }
            Self::RedirectToNothing { value } => {
                write!(f, "its redirect {} leads to no directory of the lower layers", shown(value))
            }
            Self::RedirectUnused => f.write_str("it is opaque, and has a redirect that is not followed"),
            Self::ShownTwice { other, .. } => write!(f, "shows the same lower directory as {other:?}"),
            Self::OriginInvalid => f.write_str("its origin cannot be read: st_ino is not that of the lower file"),
            Self::OriginGone => f.write_str("its origin is no file of the lower layers: st_ino may be that of another"),
            Self::OriginOfRoot => {
                f.write_str("it was written over another topmost lower layer: the kernel refuses it with index=on")
            }
            Self::ImpureMissing => {
                f.write_str("it has copied-up files, and no mark that says so: their st_ino changes")
            }
            Self::MetacopyWithoutData { reason } => write!(f, "it has its metadata alone, {reason}: EIO"),
            Self::OwnerInvalid => f.write_str("its owner and mode are kept in an xattr that cannot be read: EIO"),
            Self::NotIndexed { .. } => f.write_str(
                "a hard link of the lower layers that is not in the index: its other names show the lower file",
            ),
            Self::Unreadable { error } => write!(f, "cannot be looked at: {error}"),
            Self::IndexInvalid { .. } => f.write_str("is no entry of an index: the kernel refuses the workdir"),
            Self::IndexGone => f.write_str("is for no file of the lower layers"),
            Self::IndexUnused => f.write_str("no name leads to it"),
            Self::IndexOrigin => f.write_str("its file has another origin than its name says"),
            Self::LinkCount { value: None, right } => write!(f, "has no link count; it should be U{right:+}"),
            Self::LinkCount { value: Some(value), right } => {
                write!(f, "its link count {} cannot be; it should be U{right:+}", shown(value))
            }
            Self::Leftover => f.write_str("is left unfinished"),
            Self::NotOfWorkdir => f.write_str("is no part of a workdir: a mount refuses it"),
            Self::VolatileNow => f.write_str("a volatile mount has written to upper since the system was started"),
            Self::VolatileBefore => f.write_str(
                "a volatile mount has written to upper, perhaps not all of it to the disk: a mount refuses it",
            ),
            Self::FeatureUnknown => f.write_str("the mark of a feature that is not known here: a mount refuses it"),
        }
    }
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None(way_out) => f.write_str(way_out),
            Self::RemoveName => f.write_str("remove it"),
            Self::RemoveXattr(xattr) => write!(f, "remove {}", xattr.display()),
            Self::RemoveOrigin => f.write_str("remove the origin"),
            Self::RemoveRedirect => f.write_str("remove the redirect"),
            Self::CloseDirectory => f.write_str("make it opaque and remove the redirect: it shows what is in upper"),
            Self::Hide(other) => write!(f, "put a whiteout under {other:?}"),
            Self::MarkImpure => f.write_str("mark it as impure"),
            Self::AddToIndex(_) => f.write_str("link it into the index"),
            Self::WriteOrigin => f.write_str("write the origin that the name says"),
            Self::WriteLinkCount(right) => write!(f, "write U{right:+}"),
            Self::RemoveLeftover => f.write_str("remove it and all below it"),
            Self::SettleVolatile => f.write_str("bring upper to the disk, and remove the mark"),
        }
    }
}

impl Finding {
    /// Returns what a repair does about it.
    pub fn repair(&self) -> Repair {
        self.problem.repair()
    }

    /// Returns what it is about, for messages.
    pub fn location(&self) -> Location {
        let own = self.path.as_os_str().is_empty();
        Location::new(self.side.label(), if own { OsStr::new(".") } else { self.path.as_os_str() })
    }
}

impl fmt::Display for Finding {
    /// One line: the place, what is wrong, and what a repair does or the person can do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (location, problem, repair) = (self.location(), &self.problem, self.repair());
        write!(f, "{location}: {}: {problem}; ", problem.weight().word())?;
        if repair.is_possible() { write!(f, "repair: {repair}") } else { write!(f, "no repair: {repair}") }
    }
}

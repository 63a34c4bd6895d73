//! What a union is made of and which options are in force, with the reason where that is not what was asked for.

use std::path::PathBuf;

use super::Union;
use crate::config::{Fsync, Permissions, RedirectDir, UnionConfig, WhiteoutFormat, XattrNamespace, Xino};
use crate::layer::Layer;
use crate::layer::dir::Lowers;
use crate::layer::durability::Durability;
use crate::layer::overlay::Namespace;
use crate::layer::override_stat::Store;
use crate::layer::upper::Upper;
use crate::layer::whiteout::Format;

/// What a directory is to a union.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// The writable layer.
    Upper,
    /// A read-only layer.
    Lower,
    /// The workdir.
    Work,
}

impl Role {
    /// Returns its name, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Upper => "upper",
            Self::Lower => "lower",
            Self::Work => "work",
        }
    }
}

/// A directory that a union is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerStatus {
    /// What it is to the union.
    pub role: Role,
    /// Its path as it was given.
    pub path: PathBuf,
    /// Whether it was cloned out of its mount, so that nothing that is mounted in it is entered.
    pub private: bool,
}

/// An option as it is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct InForce {
    /// Its name, as in `-o`.
    pub option: &'static str,
    /// Its value, in the words of the command line.
    pub value: String,
    /// Why it is so: that it was asked for, what it was chosen by, or why a wish could not be met.
    pub why: String,
}

impl InForce {
    /// Makes the record of one option.
    pub fn new(option: &'static str, value: impl ToString, why: impl Into<String>) -> Self {
        Self { option, value: value.to_string(), why: why.into() }
    }
}

/// The reason of what was asked for.
pub const ASKED: &str = "as asked for";

/// The reason of what nobody has said anything about.
const DEFAULT: &str = "the default";

/// Returns the record of a switch, which is off unless it was asked for.
fn switch(option: &'static str, on: bool, default: bool) -> InForce {
    InForce::new(option, if on { "on" } else { "off" }, if on == default { DEFAULT } else { ASKED })
}

impl Union {
    /// Returns what the union is made of: upper and workdir where there are any, then the lowers, topmost first.
    pub fn layers(&self) -> Vec<LayerStatus> {
        let layer = |role, layer: &Layer| LayerStatus { role, path: layer.path.clone(), private: layer.is_private() };
        let upper = self.upper.iter().flat_map(|upper| {
            let private = upper.layer.is_private();
            let work = LayerStatus { role: Role::Work, path: upper.work.path().to_owned(), private };
            [layer(Role::Upper, &upper.layer), work]
        });
        upper.chain(self.lowers.layers().iter().map(|lower| layer(Role::Lower, lower))).collect()
    }

    /// Returns the options in force, each with the reason why.
    pub fn in_force(&self) -> &[InForce] {
        &self.in_force
    }
}

/// Collects the options in force of a union that was opened as `config` says.
pub(super) fn in_force(
    config: &UnionConfig,
    upper: Option<&Upper>,
    lowers: &Lowers,
    namespace: Namespace,
    redirect_dir: RedirectDir,
) -> Vec<InForce> {
    let mut all = vec![
        redirects(config, upper, redirect_dir),
        index(config, upper, lowers),
        switch("metacopy", config.metacopy, false),
        InForce::new(
            "xino",
            match config.xino {
                Xino::Auto => "auto",
                Xino::On => "on",
                Xino::Off => "off",
            },
            if config.xino == Xino::Auto { DEFAULT } else { ASKED },
        ),
        xattr_namespace(config, namespace),
    ];
    all.extend(upper.map(|upper| whiteouts(config, upper)));
    all.extend(durability(config, upper));
    all.push(permissions(config, upper));
    all.extend([
        switch("acl", config.acls && config.xattrs, true),
        switch("xattrs", config.xattrs, true),
        switch("static_nlink", config.static_nlink, false),
        switch("ino32_t", config.ino32, false),
        switch("atime", config.atime, false),
    ]);
    all
}

fn redirects(config: &UnionConfig, upper: Option<&Upper>, in_force: RedirectDir) -> InForce {
    let value = match in_force {
        RedirectDir::Auto | RedirectDir::On => "on",
        RedirectDir::Follow => "follow",
        RedirectDir::NoFollow => "nofollow",
    };
    let why = match (config.redirect_dir, in_force, upper) {
        (RedirectDir::Auto, _, None) => "there is no upper that could be written",
        (RedirectDir::Auto, RedirectDir::On, _) => "upper can hold the xattr",
        (RedirectDir::Auto, ..) => "upper cannot hold overlay xattrs",
        _ => ASKED,
    };
    InForce::new("redirect_dir", value, why)
}

fn index(config: &UnionConfig, upper: Option<&Upper>, lowers: &Lowers) -> InForce {
    let on = upper.is_some_and(|upper| upper.work.index().is_some());
    let why = match (config.index, upper) {
        (_, None) => "there is no upper that could be written".to_owned(),
        (Some(_), _) if on == (config.index == Some(true)) => ASKED.to_owned(),
        (_, Some(upper)) if !upper.features.links => "upper's file system has no hard links".to_owned(),
        (_, Some(upper)) if !upper.features.xattrs => "upper cannot hold overlay xattrs".to_owned(),
        _ => match lowers.layers().iter().find(|layer| !layer.handles) {
            None => "upper can hold it".to_owned(),
            // Links of files there part.
            Some(layer) => format!("upper can hold it; not for {}, which has no file handles", layer.path.display()),
        },
    };
    InForce::new("index", if on { "on" } else { "off" }, why)
}

fn xattr_namespace(config: &UnionConfig, in_force: Namespace) -> InForce {
    let (value, able) = match in_force {
        Namespace::Trusted => ("trusted", "auto: CAP_SYS_ADMIN in the initial user namespace"),
        Namespace::User => ("user", "auto: trusted needs CAP_SYS_ADMIN in the initial user namespace"),
    };
    let why = if config.xattr_namespace == XattrNamespace::Auto { able } else { ASKED };
    InForce::new("xattr_namespace", value, why)
}

fn whiteouts(config: &UnionConfig, upper: &Upper) -> InForce {
    let (value, able) = match upper.whiteouts.format() {
        Format::Char => ("char", "auto: upper takes 0:0 devices"),
        Format::Xattr => ("xattr", "auto: upper takes no 0:0 devices from this user"),
        Format::DotWh if !upper.features.exchange => ("dotwh", "auto: upper cannot exchange two names"),
        Format::DotWh => ("dotwh", "auto: upper takes neither 0:0 devices nor overlay xattrs"),
    };
    let why = if config.whiteout_format == WhiteoutFormat::Auto { able } else { ASKED };
    InForce::new("whiteout", value, why)
}

fn durability(config: &UnionConfig, upper: Option<&Upper>) -> [InForce; 2] {
    let value = match config.fsync {
        Fsync::Auto => "auto",
        Fsync::Strict => "strict",
        Fsync::Volatile => "volatile",
        Fsync::Never => "0",
    };
    let why = match upper.map(|upper| upper.durability) {
        None => "there is no upper, so that nothing waits for the disk",
        Some(Durability::None) => "asked for: nothing waits for the disk",
        Some(Durability::Strict) => "asked for: each copy is synced",
        Some(Durability::Ordered) => {
            "copies wait for their data alone: the journal of upper's file system keeps the order"
        }
        Some(Durability::Synced) => {
            "copies are synced: the journal of upper's file system is not known to keep the order"
        }
    };
    let volatile = config.fsync == Fsync::Volatile;
    [InForce::new("fsync", value, why), switch("volatile", volatile, false)]
}

fn permissions(config: &UnionConfig, upper: Option<&Upper>) -> InForce {
    let asked = config.permissions != Permissions::Inode;
    let (value, why) = match upper.and_then(|upper| upper.layer.overrides) {
        None if asked && upper.is_some() => {
            ("off", "asked for, but upper holds files already, whose owners and modes are with them")
        }
        None if asked => ("off", "there is no upper"),
        None => ("off", DEFAULT),
        Some(store) => {
            let value = if store == Store::Security { "security" } else { "user" };
            (value, if asked { ASKED } else { "upper keeps owners and modes there already" })
        }
    };
    InForce::new("xattr_permissions", value, why)
}

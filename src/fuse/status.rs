//! What is mounted, how, and why so.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::confine::Confinement;
use super::handshake::{Agreed, Wishes};
use super::server::Server;
use super::statistics::Statistics;
use crate::config::{Access, MountConfig};
use crate::union::{InForce, LayerStatus};

/// What is mounted, how and why, and what it holds and has done.
///
/// ```no_run
/// # fn shown(mount: unionfs_rs::fuse::MountHandle) {
/// for option in mount.status().in_force {
///     println!("{}={} ({})", option.option, option.value, option.why);
/// }
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// What the union is made of: upper and workdir where there are any, then the lowers, topmost first.
    pub layers: Vec<LayerStatus>,
    /// The options in force, those of the mount first.
    pub in_force: Vec<InForce>,
    /// The time since the mount has shaken hands with the kernel.
    pub age: Duration,
    /// What it holds and has done.
    pub statistics: Statistics,
}

/// Looks at a mount from any thread, and keeps nothing of it from ending.
#[derive(Debug, Clone)]
pub struct Observer(Weak<Server>);

impl Observer {
    pub(super) fn of(server: &Arc<Server>) -> Self {
        Self(Arc::downgrade(server))
    }

    /// Returns what is mounted, and what it has done; `None` once it has ended.
    pub fn status(&self) -> Option<Status> {
        self.0.upgrade().map(|server| server.status())
    }
}

/// Collects the options in force of the mount itself, after the handshake.
pub(super) fn in_force(
    config: &MountConfig,
    wishes: &Wishes,
    agreed: &Agreed,
    confinement: &Confinement,
) -> Vec<InForce> {
    let said = |on: bool, yes: &'static str, no: &'static str| if on { yes } else { no };
    let mut all = agreed.in_force(wishes);
    all.push(confinement.in_force());
    let access = match config.access {
        Access::Owner => ("owner", "who mounted it alone may use it"),
        Access::Root => ("allow_root", "root may use it, which is checked request by request"),
        Access::All => ("allow_other", "every user may use it"),
    };
    all.push(InForce::new("access", access.0, access.1));
    let checked = said(config.default_permissions, "the kernel checks modes and ACLs", "nobody checks modes and ACLs");
    all.push(InForce::new("default_permissions", said(config.default_permissions, "on", "off"), checked));
    let written = said(config.read_only, "asked for, or there is no upper", "there is an upper");
    all.push(InForce::new("ro", said(config.read_only, "on", "off"), written));
    for (option, timeout) in [
        ("entry_timeout", config.entry_timeout),
        ("attr_timeout", config.attr_timeout),
        ("negative_timeout", config.negative_timeout),
    ] {
        let (timeout, why) = if wishes.checks_callers {
            (Duration::ZERO, "allow_root: what the kernel keeps it would give to anybody")
        } else {
            (timeout, "how long the kernel may keep it, in seconds")
        };
        all.push(InForce::new(option, timeout.as_secs_f64(), why));
    }
    all
}

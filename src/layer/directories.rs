//! The directories of a union, opened, and refused where no union can be made of them.

use std::collections::HashMap;

use super::directory::Directory;
use crate::config::UnionConfig;
use crate::error::{Error, Result};

/// The most layers that a union can have.
const LAYERS_MAX: usize = 500;

/// The directories that a configuration names, none of which is where it must not be.
#[derive(Debug)]
pub struct Directories {
    /// Topmost first, at least one.
    pub lowers: Vec<Directory>,
    /// The writable layer.
    pub upper: Option<Directory>,
    /// The workdir that is named; only where there is an upper.
    pub work: Option<Directory>,
}

impl Directories {
    /// Opens what `config` names.
    ///
    /// Errors: [`Error::Setup`], for the person who named it.
    pub fn open(config: &UnionConfig) -> Result<Self> {
        if config.lowers.is_empty() {
            return Err(Error::setup("", "no lower layer was named", "name at least one with --lower"));
        }
        if config.lowers.len() > LAYERS_MAX {
            let reason = format!("{} lower layers, more than {LAYERS_MAX}", config.lowers.len());
            return Err(Error::setup("", reason, "merge some of them"));
        }
        if let (None, Some(work)) = (&config.upper, &config.work) {
            let work = work.name();
            return Err(Error::setup(work, "a workdir without an upper", "name an upper, or leave the workdir out"));
        }
        let lowers = config.lowers.iter().map(Directory::open).collect::<Result<Vec<_>>>()?;
        let open = |source: Option<&_>| source.map(Directory::open).transpose();
        let (upper, work) = (open(config.upper.as_ref())?, open(config.work.as_ref())?);
        let directories = Self { lowers, upper, work };
        directories.check_lowers_apart()?;
        directories.check_upper_apart()?;
        Ok(directories)
    }

    /// Refuses a lower layer that is another one or inside it: one file would show under two names and not be linked.
    fn check_lowers_apart(&self) -> Result<()> {
        let refused = |inner: &Directory, outer: &Directory| {
            let reason = format!("is {} or inside it, which is a lower layer too", outer.name().display());
            Err(Error::setup(inner.name(), reason, "name each layer once, and none that is inside another"))
        };
        let mut known = HashMap::with_capacity(self.lowers.len());
        for lower in &self.lowers {
            if let Some(own) = lower.way_up().first()
                && let Some(other) = known.insert(own, lower)
            {
                return refused(lower, other);
            }
        }
        for lower in &self.lowers {
            if let Some(outer) = lower.way_up().iter().skip(1).find_map(|above| known.get(above)) {
                return refused(lower, outer);
            }
        }
        Ok(())
    }

    /// Refuses an upper or a workdir that has anything in common with a lower layer.
    fn check_upper_apart(&self) -> Result<()> {
        let Some(upper) = &self.upper else { return Ok(()) };
        for lower in &self.lowers {
            if lower.is(upper) {
                return Err(Error::setup(upper.name(), "is both upper and lower", "name another directory as upper"));
            }
            if upper.is_inside(lower) {
                let reason = format!("is inside the lower layer {}, which must not change", lower.name().display());
                return Err(Error::setup(upper.name(), reason, "keep upper outside the lower layers"));
            }
            if lower.is_inside(upper) {
                let reason = format!("is inside upper {}, which is written", upper.name().display());
                return Err(Error::setup(lower.name(), reason, "keep the lower layers outside upper"));
            }
            if let Some(work) = self.work.as_ref().filter(|work| work.is_inside(lower)) {
                let reason = format!("is inside the lower layer {}, which must not change", lower.name().display());
                return Err(Error::setup(work.name(), reason, "keep the workdir outside the lower layers"));
            }
        }
        Ok(())
    }
}

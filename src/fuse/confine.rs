//! Landlock: whoever serves requests reaches the layers and nothing else.
//!
//! Every name is resolved one component at a time below a layer; should that ever fail, the kernel itself refuses what is
//! elsewhere. It binds the threads that serve requests, and those that they start; the others unmount, which nobody who is
//! bound may (landlock(7)), and do no request.

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError, RulesetStatus,
};

use crate::config::Sandbox;
use crate::union::{InForce, Reach, Union};

/// The newest rules that are used where the kernel knows them.
const NEWEST: ABI = ABI::V5;

/// The rules that a thread is bound by.
pub(super) struct Confinement {
    rules: Option<RulesetCreated>,
    /// Why there are none.
    obstacle: Option<String>,
}

impl Confinement {
    /// Makes rules for the layers of `union`, where that is wanted and the kernel can keep them.
    pub(super) fn of(union: &Union, sandbox: Sandbox) -> Self {
        if sandbox == Sandbox::Off {
            return Self { rules: None, obstacle: Some("it was asked for".to_owned()) };
        }
        match rules(union) {
            Ok(rules) => Self { rules: Some(rules), obstacle: None },
            Err(error) => {
                log::info!("the threads that serve requests are not confined by Landlock: {error}");
                Self { rules: None, obstacle: Some(error.to_string()) }
            }
        }
    }

    /// Binds this thread, and those that it starts, for good.
    pub(super) fn enter(&self) {
        let Some(rules) = &self.rules else { return };
        let entered = rules.try_clone().map_err(|error| error.to_string());
        match entered.and_then(|rules| rules.restrict_self().map_err(|error| error.to_string())) {
            Ok(status) if status.ruleset != RulesetStatus::NotEnforced => {}
            Ok(_) => log::warn!("a thread that serves requests is not confined by Landlock: the kernel ignores it"),
            Err(error) => log::warn!("a thread that serves requests is not confined by Landlock: {error}"),
        }
    }

    /// Says what is in force.
    pub(super) fn in_force(&self) -> InForce {
        match &self.obstacle {
            None => {
                InForce::new("sandbox", "landlock", "threads that serve requests reach the layers and nothing else")
            }
            Some(why) => InForce::new("sandbox", "off", why),
        }
    }
}

fn rules(union: &Union) -> Result<RulesetCreated, RulesetError> {
    let all = AccessFs::from_all(NEWEST);
    let mut rules = Ruleset::default()
        // Without it, before Linux 5.19, nothing could be moved from one directory to another.
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::Refer)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .create()?;
    // Executing too: a file that is passed through is run as if by whoever gave it to the kernel.
    let read = AccessFs::from_read(NEWEST);
    for (dir, reach) in union.directories() {
        rules = rules.add_rule(PathBeneath::new(dir, if reach == Reach::Write { all } else { read }))?;
    }
    // What callers may do besides, and files by the descriptors that are open.
    match PathFd::new("/proc") {
        Ok(proc) => rules.add_rule(PathBeneath::new(proc, read)),
        Err(_) => Ok(rules),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::ErrorKind;

    use super::*;
    use crate::union::{Caller, Name, New, NodeId, RenameFlags, SetAttr};

    #[test]
    fn a_thread_that_is_confined_works_on_the_layers_and_opens_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["lower/d", "upper"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        for name in ["lower/d/file", "lower/other", "outside"] {
            fs::write(at(name), name).unwrap();
        }
        let union = Union::builder().lower(at("lower")).upper(at("upper")).build().unwrap();
        let confinement = Confinement::of(&union, Sandbox::Auto);
        if let Some(obstacle) = &confinement.obstacle {
            eprintln!("SKIPPED: no Landlock here: {obstacle}");
            return;
        }
        let name = |name: &'static str| Name::new(name.as_ref()).unwrap();
        let outside = at("outside");
        std::thread::scope(|scope| {
            let confined = scope.spawn(|| {
                confinement.enter();
                for path in [outside.as_path(), "/etc/passwd".as_ref()] {
                    assert_eq!(fs::read(path).unwrap_err().kind(), ErrorKind::PermissionDenied, "{}", path.display());
                }
                assert_eq!(fs::write(&outside, "x").unwrap_err().kind(), ErrorKind::PermissionDenied);
                // What is in a lower cannot be written, whoever asks for it.
                assert_eq!(fs::write(at("lower/other"), "x").unwrap_err().kind(), ErrorKind::PermissionDenied);
                let d = union.lookup(NodeId::ROOT, name("d")).unwrap().id;
                let file = union.lookup(d, name("file")).unwrap().id;
                union.write(file, 0, b"UPPER", None).unwrap();
                let caller = Caller::current();
                union.create(d, name("made"), New::Directory, 0o755, 0, caller).unwrap();
                union.rename(d, name("file"), NodeId::ROOT, name("moved"), RenameFlags::empty()).unwrap();
                union.link(file, d, name("linked")).unwrap();
                let cut = SetAttr { size: Some(2), mode: Some(0o600), ..SetAttr::default() };
                let other = union.lookup(NodeId::ROOT, name("other")).unwrap().id;
                union.setattr(other, cut, None, caller).unwrap();
                union.unlink(NodeId::ROOT, name("other")).unwrap();
                union.rmdir(d, name("made")).unwrap();
            });
            confined.join().unwrap();
        });
        assert_eq!(fs::read(at("upper/moved")).unwrap(), b"UPPER/d/file");
        // The others are free.
        assert_eq!(fs::read(at("outside")).unwrap(), b"outside");
        union.end().unwrap();
    }
}

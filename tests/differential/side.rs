//! One side of a run: what is mounted, and who acts in it.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;

use crate::support::{Io, KernelMount, Layers, Mounted, OurMount, Spec};

use super::actor::{Actors, Hung};
use super::generate::Step;
use super::observe::errno;
use super::run::{Case, Metacopy, Subject};
use super::tree::{Holes, Tree, walk};

enum Mount {
    Kernel(KernelMount),
    Ours(OurMount),
}

impl Mount {
    fn unmount(&mut self) -> Result<(), String> {
        match self {
            Self::Kernel(mount) => mount.unmount(),
            Self::Ours(mount) => mount.unmount(),
        }
    }

    /// Gets blocked threads back.
    fn abort(&mut self) {
        if let Self::Ours(mount) = self {
            mount.kill();
        }
    }
}

/// Mounts the kernel's overlayfs. A mount namespace that another process made a moment ago has a copy of
/// a mount that was taken down here, and the upper is busy until it has gone there too.
fn mount_kernel(spec: &Spec) -> Result<KernelMount, String> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match KernelMount::start(spec.clone()) {
            Err(error) if error.contains("os error 16") && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

/// One of the two mounts.
pub struct Side {
    pub subject: Subject,
    /// What is mounted here with either upper.
    pub specs: [Spec; 2],
    // The threads go before the mount that they stand in.
    actors: Option<Actors>,
    mount: Option<Mount>,
}

impl Side {
    /// A side on which `subject` will mount one of `specs`, which differ in the upper.
    pub fn new(subject: Subject, specs: [Spec; 2]) -> Self {
        Self { subject, specs, actors: None, mount: None }
    }

    pub fn mount(&mut self, upper: usize) -> Result<(), String> {
        let spec = self.specs[upper].clone();
        let path = spec.at.clone();
        let named = |error: &dyn fmt::Display| format!("{:?} mounts upper {upper}: {error}", self.subject);
        let mount = match self.subject {
            Subject::Kernel => Mount::Kernel(mount_kernel(&spec).map_err(|e| named(&e))?),
            _ => Mount::Ours(OurMount::start(spec).map_err(|e| named(&e))?),
        };
        self.mount = Some(mount);
        self.actors = Some(Actors::start(&path));
        Ok(())
    }

    pub fn unmount(&mut self) -> Result<(), String> {
        if let Some(actors) = self.actors.take() {
            actors.stop().map_err(|hung| self.hung(hung))?;
        }
        match self.mount.take() {
            Some(mut mount) => mount.unmount().map_err(|e| format!("{:?}: {e}", self.subject)),
            None => Ok(()),
        }
    }

    fn actors(&self) -> &Actors {
        self.actors.as_ref().expect("the side is mounted")
    }

    fn hung(&mut self, Hung: Hung) -> String {
        if let Some(mount) = &mut self.mount {
            mount.abort();
        }
        format!("{:?} hangs", self.subject)
    }

    pub fn tree(&mut self, holes: Holes) -> Result<Tree, String> {
        self.actors().look(move || walk(holes)).map_err(|hung| self.hung(hung))
    }

    pub fn look_at<T: Send + 'static>(
        &mut self,
        slot: usize,
        look: impl FnOnce(&OwnedFd) -> T + Send + 'static,
    ) -> Result<Option<T>, String> {
        self.actors().look_at(slot, look).map_err(|hung| self.hung(hung))
    }

    pub fn act(&mut self, step: &Step) -> Result<String, String> {
        let Step::Do(who, op) = step else { unreachable!("only operations are done by one side") };
        match self.actors().act(*who, op) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Ok(errno(error)),
            Err(hung) => Err(self.hung(hung)),
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // A failed run ends here. The daemon goes first: what still hangs in it comes back.
        if let Some(mount) = &mut self.mount {
            mount.abort();
        }
        if let Some(actors) = self.actors.take()
            && actors.stop().is_err()
        {
            eprintln!("a thread still hangs in {:?}", self.subject);
        }
    }
}

pub fn spec(case: &Case, layers: &Layers, subject: &Subject, upper: &Path, work: &Path, at: &Path) -> Spec {
    let io = match subject {
        Subject::Ours(io) => *io,
        Subject::Kernel | Subject::FuseOverlayfs => Io::Cached,
    };
    let mut spec = layers.spec(io).at(at);
    spec.upper = Some(upper.to_owned());
    spec.work = Some(work.to_owned());
    if case.metacopy == Metacopy::On {
        spec = spec.feature("metacopy", "on");
    }
    spec = spec.feature("xino", "on");
    if *subject == Subject::FuseOverlayfs {
        spec.wrapper = ["sh", "-c", FUSE_OVERLAYFS, "sh"].map(Into::into).to_vec();
    }
    spec
}

/// Turns the arguments of our binary into those of fuse-overlayfs.
const FUSE_OVERLAYFS: &str = r#"
    shift 2
    while [ $# -gt 1 ]; do
        case $1 in
        --lower) lower=$lower${lower:+:}$2; shift 2 ;;
        --upper) upper=$2; shift 2 ;;
        --work) work=$2; shift 2 ;;
        --foreground) shift ;;
        *) shift 2 ;;
        esac
    done
    exec fuse-overlayfs -f -o "lowerdir=$lower,upperdir=$upper,workdir=$work,allow_other" "$1"
"#;

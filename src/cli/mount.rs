//! `unionfs-rs mount`: from settings to a mount that is served.
//!
//! A mountpoint `/dev/fd/N` is libfuse's way to say that descriptor N is a /dev/fuse that the caller has mounted
//! already, as apptainer does, whose containers let nobody else mount.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use super::control::{Control, Place};
use super::daemon::{self, Reporter, Side};
use super::exit::{Exit, Failure};
use super::image::{Held, Layers};
use super::logging;
use super::settings::Settings;
use super::stats::Report;
use super::status::Subject;
use crate::config::{Access, Permissions, Source};
use crate::error::Error;
use crate::fuse::{Mount, Unmounter};
use crate::sys::daemon::Inherited;
use crate::sys::{caps, signals};
use crate::union::Union;

/// Mounts, and returns once the mount answers; in the foreground, once it has ended.
pub fn run(mut settings: Settings) -> Result<Exit, Failure> {
    if settings.union.lowers.is_empty() {
        return Err(Failure::new(Exit::Usage, "no lower layer is given; name at least one with --lower DIR"));
    }
    Report::check(&settings)?;
    settings.make_absolute()?;
    let number = descriptor(&settings.mount.mountpoint);
    if settings.foreground && number.is_none() {
        return stay(&settings, None);
    }
    let mut inherited = Inherited::take()
        .map_err(|error| Failure::new(Exit::Machine, format!("/proc/self/fd: {error}; mount proc on /proc")))?;
    let device = number.map(|number| inherited.keep(number).ok_or_else(|| not_inherited(&settings))).transpose()?;
    if settings.foreground {
        // The others stay open until it ends: a process in front is its starter's, who may wait for it by a pipe.
        return stay(&settings, device);
    }
    match daemon::split(inherited)? {
        Side::Command(waiter) => {
            // While it is open here, the kernel would wait for a daemon that has died.
            drop(device);
            waiter.wait()?;
            tell(&settings)
        }
        Side::Daemon(reporter) => Ok(serve(&settings, device, reporter)),
    }
}

/// Prints the id of the container that was mounted, if one was.
fn tell(settings: &Settings) -> Result<Exit, Failure> {
    match settings.container.as_ref().filter(|container| !container.config.ephemeral) {
        Some(container) => super::print(format!("{}\n", container.config.id).as_bytes()),
        None => Ok(Exit::Done),
    }
}

/// Returns the number in a mountpoint `/dev/fd/N`.
fn descriptor(mountpoint: &Path) -> Option<u32> {
    mountpoint.strip_prefix("/dev/fd").ok()?.to_str()?.parse().ok()
}

fn not_inherited(settings: &Settings) -> Failure {
    let shown = settings.mount.mountpoint.display();
    Failure::new(Exit::Setup, format!("{shown}: no such descriptor was inherited; open and mount a /dev/fuse as it"))
}

/// Serves in front.
fn stay(settings: &Settings, device: Option<OwnedFd>) -> Result<Exit, Failure> {
    daemon::clear_umask();
    // As for a daemon: the machine was good enough to mount, so whatever ends it is a failure.
    let started = start(settings, device)?;
    tell(settings)?;
    serve_to_end(started).map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    Ok(Exit::Done)
}

/// Is the daemon: mounts, reports, and serves until the end. Its exit code is for whoever traces it.
fn serve(settings: &Settings, device: Option<OwnedFd>, reporter: Reporter) -> Exit {
    daemon::clear_umask();
    let started = match start(settings, device) {
        Ok(started) => started,
        Err(failure) => {
            // Without a reader there is nobody to tell.
            if let Err(error) = reporter.failed(&failure) {
                log::error!("{failure} (the command is gone: {error})");
            }
            return failure.exit;
        }
    };
    let unmounter = started.mount.unmounter();
    if let Err(error) = reporter.ready() {
        log::error!("the command that asked for the mount is gone: {error}; unmounting");
        // What the caller has mounted itself (/dev/fd/N) is not ours to unmount, and is served until it is.
        end(&unmounter);
    }
    match serve_to_end(started) {
        Ok(()) => Exit::Done,
        Err(error) => {
            log::error!("{error}");
            Exit::Failed
        }
    }
}

/// Serves until the mount has ended, also where it ends by a failure, and then reports what was done.
fn serve_to_end(started: Started) -> Result<(), Error> {
    let Started { mount, report, held, control } = started;
    let (served, statistics) = mount.run_counted();
    if let Some(control) = control {
        control.end();
    }
    if let Some(report) = report {
        report.write(&statistics);
    }
    if let Some(held) = held {
        held.end();
    }
    served
}

/// A mount that is to be served.
struct Started {
    mount: Mount,
    /// What is reported to in the end.
    report: Option<Report>,
    /// The container that the layers are of.
    held: Option<Held>,
    /// Where its status can be asked for.
    control: Option<Control>,
}

/// Opens the layers and mounts; signals that end a process end the mount from here on.
///
/// What the caller has mounted as `device` is the caller's to unmount: there signals end the process, which leaves a mount
/// that nobody answers for, as with every program on libfuse.
fn start(settings: &Settings, device: Option<OwnedFd>) -> Result<Started, Failure> {
    logging::start(settings.log_file.as_deref(), settings.log_level)?;
    let report = Report::open(settings)?;
    caps::raise_open_files();
    let held = settings.container.as_ref().map(Held::take).transpose()?;
    // Before the mount, which may come to cover where it is.
    let place = Place::make();
    let union = Union::from_config(&settings.union)?;
    // Before the mount: a signal that comes while it is made is kept, and ends it when it is.
    let ending: &[i32] = if device.is_some() { &[] } else { &[SIGTERM, SIGINT, SIGHUP] };
    signals::block(SIGUSR1).map_err(|error| no_signals(&error))?;
    let signals = Signals::new(ending.iter().chain([&SIGUSR1])).map_err(|error| no_signals(&error))?;
    let mount = match device {
        Some(device) => {
            if settings.mount.context.is_some() || settings.mount.propagation.is_some() {
                log::warn!("the caller has mounted, and alone can give the mount a context or propagation");
            }
            Mount::attach(union, device, &settings.mount)?
        }
        None => Mount::new(union, &settings.mount)?,
    };
    let (subject, unmounter) = (Subject::new(&mount, &settings.mount.mountpoint), mount.unmounter());
    let asked = subject.clone();
    let spawned = std::thread::Builder::new().name("signals".into()).spawn(move || obey(signals, &unmounter, &asked));
    if let Err(error) = spawned {
        mount.withdraw();
        return Err(no_signals(&error));
    }
    let mut held = held;
    if let Some(held) = held.as_mut().filter(|_| subject.device().is_some())
        && let Err(failure) = held.note(&settings.mount.mountpoint)
    {
        mount.withdraw();
        return Err(failure);
    }
    let control = control(place, subject, &settings.mount.mountpoint);
    Ok(Started { mount, report, held, control })
}

/// Makes the control socket; a mount is as good without one.
fn control(place: Result<Place, String>, subject: Subject, mountpoint: &Path) -> Option<Control> {
    if subject.device().is_none() {
        // A runtime that has mounted expects no word about it.
        log::info!("{}: mounted by the caller: its status cannot be asked for, SIGUSR1 logs it", mountpoint.display());
        return None;
    }
    let made = place.and_then(|place| Control::start(place, subject).map_err(|error| error.to_string()));
    made.inspect_err(|reason| {
        log::warn!("{}: its status cannot be asked for, SIGUSR1 logs it: {reason}", mountpoint.display());
    })
    .ok()
}

fn no_signals(error: &io::Error) -> Failure {
    Failure::new(
        Exit::Failed,
        format!("signals cannot be handled: {error}; raise the limits on threads and open files"),
    )
}

/// Unmounts at each of the signals that end a process: should it fail once, the next one tries again; once done, it is not
/// done twice. At SIGUSR1, which comes to this thread alone, it logs the status.
fn obey(mut signals: Signals, unmounter: &Unmounter, subject: &Subject) {
    if let Err(error) = signals::unblock(SIGUSR1) {
        log::warn!("SIGUSR1 cannot be taken: {error}");
    }
    for signal in signals.forever() {
        if signal == SIGUSR1 {
            subject.log();
            continue;
        }
        log::info!("{}: unmounting", signal_hook::low_level::signal_name(signal).unwrap_or("signal"));
        end(unmounter);
    }
}

fn end(unmounter: &Unmounter) {
    if let Err(error) = unmounter.unmount() {
        log::error!("{error}");
    }
}

impl Settings {
    /// Refuses layers beside those of a container.
    pub fn refuse_layers(&self) -> Result<(), Failure> {
        if !self.union.lowers.is_empty() || self.union.upper.is_some() || self.union.work.is_some() {
            let reason =
                "layers are given, and an image or a container; --lower, --upper and --work are for directories";
            return Err(Failure::new(Exit::Usage, reason));
        }
        Ok(())
    }

    /// Takes the layers of a container in place of directories.
    pub fn take_layers(&mut self, layers: Layers) -> Result<(), Failure> {
        let Layers { lowers, container, owners_apart, .. } = layers;
        if lowers.is_empty() {
            let image = container.config.image_name.as_ref().unwrap_or(&container.config.image);
            return Err(Failure::new(Exit::Failed, format!("{image}: has no layers, so there is nothing to show")));
        }
        self.union.lowers = lowers.into_iter().map(Source::Path).collect();
        if !self.mount.read_only {
            (self.union.upper, self.union.work) = (Some(container.upper().into()), Some(container.work().into()));
        }
        // A layer has no place for what the index knows: there, names of a lower file that is changed part, as in Docker.
        self.union.index.get_or_insert(false);
        if owners_apart {
            self.union.permissions = Permissions::User;
            // All of it is this user's in truth, and nobody else comes in: what the modes say is for those who get the image.
            self.mount.default_permissions &= self.mount.access != Access::Owner;
        }
        self.container = Some(container);
        Ok(())
    }

    /// Makes every path independent of the working directory, which a daemon leaves.
    fn make_absolute(&mut self) -> Result<(), Failure> {
        let layers = self.union.lowers.iter_mut().chain(&mut self.union.upper).chain(&mut self.union.work);
        let named = layers.filter_map(|layer| match layer {
            Source::Path(path) => Some(path),
            Source::Fd(_) => None,
        });
        for path in named.chain(&mut self.log_file).chain([&mut self.mount.mountpoint]) {
            *path = absolute(path)?;
        }
        Ok(())
    }
}

fn absolute(path: &PathBuf) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| {
        let shown = path.display();
        Failure::new(
            Exit::Setup,
            format!("{shown}: the working directory is not known: {error}; give an absolute path"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mountpoint_that_is_a_descriptor_is_told_from_a_path() {
        for (path, expected) in [
            ("/dev/fd/3", Some(3)),
            ("/dev/fd/107", Some(107)),
            ("/dev/fd", None),
            ("/dev/fd/", None),
            ("/dev/fd/-1", None),
            ("/dev/fd/3/x", None),
            ("/dev/fd/x", None),
            ("/mnt/dev/fd/3", None),
        ] {
            assert_eq!(descriptor(Path::new(path)), expected, "{path}");
        }
    }
}

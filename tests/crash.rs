//! A daemon that is killed at a random moment of a heavy load of writes and copy-ups leaves nothing
//! half done: what it had answered is there, what it had not is done whole or not at all, the next
//! mount succeeds, and nothing unfinished is left in the workdir.
//!
//! Environment: `UNIONFS_CRASH_ROUNDS` (how often the daemon is killed, 5), `UNIONFS_CRASH_SEED`.

mod support;

mod stress {
    pub mod action;
    #[allow(dead_code, reason = "the stress test uses the rest")]
    pub mod world;
}

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use stress::action::{Action, perform};
use stress::world::{Mix, World};
use support::{
    Io, Layers, LowersUnchanged, Mode, Mounted, OurMount, Placement, Rng, Watchdog, is_of_dead_server, number,
    on_kernel, record_skip, test_name,
};

const WORKERS: usize = 4;
/// The files in the lowers: long enough that a kill falls into the middle of their copy-up.
const FILE_LEN: usize = 2_000_000;

/// Where a worker was when the daemon died: what it believes, and what it was just doing.
struct Interrupted {
    world: World,
    action: Action,
}

/// Works until the mount is dead.
fn work(mut world: World, mount: &Path, rng: &mut Rng) -> Result<Interrupted, String> {
    loop {
        let action = world.draw(rng, Mix::Atomic);
        match perform(mount, &action) {
            Ok(()) => world.apply(&action),
            Err(error) if is_dead(mount, &error) => return Ok(Interrupted { world, action }),
            Err(error) => return Err(format!("{action:?}: {error}")),
        }
    }
}

/// Whether an error comes from the death of the server, or is an EIO where a page could not be read or written any more.
/// An EIO of a server that still answers is its own.
fn is_dead(mount: &Path, error: &std::io::Error) -> bool {
    let from_death = Errno::from_io_error(error).is_some_and(|errno| errno == Errno::IO || is_of_dead_server(errno));
    // The question itself may be under way at that moment.
    from_death && rustix::fs::statfs(mount).is_err_and(is_of_dead_server)
}

/// Kills the daemon after `delay` of work and returns where the workers were.
fn crash(mount: &mut OurMount, worlds: Vec<World>, seed: u64, delay: Duration) -> Vec<Interrupted> {
    // By a descriptor: the dead mount is taken out of the tree, and its path is then what it covered.
    let root = fs::File::open(mount.path()).expect("the mount can be opened");
    let path = PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd()));
    std::thread::scope(|scope| {
        let workers: Vec<_> = worlds
            .into_iter()
            .enumerate()
            .map(|(index, world)| {
                let path = &path;
                let seed = seed * 100 + index as u64;
                scope.spawn(move || work(world, path, &mut Rng::new(seed)))
            })
            .collect();
        std::thread::sleep(delay);
        mount.kill();
        let results = workers.into_iter().map(|worker| worker.join().expect("a worker does not panic"));
        results.map(|result| result.unwrap_or_else(|error| panic!("before the crash: {error}"))).collect()
    })
}

/// Returns the world that the mount shows: that before the interrupted action, or that after it.
fn recover(interrupted: Interrupted, mount: &Path) -> World {
    let Interrupted { world, action } = interrupted;
    let Err(not_before) = world.verify(mount) else {
        return world;
    };
    let mut done = world;
    done.apply(&action);
    let Err(not_after) = done.verify(mount) else {
        return done;
    };
    panic!("{action:?} was under way.\nIt is not undone: {not_before}\nIt is not done: {not_after}");
}

/// Removes what the workers themselves had not finished; the world does not count it.
fn clean(dir: &Path) {
    for entry in fs::read_dir(dir).expect("the tree can be listed") {
        let entry = entry.expect("the tree can be listed");
        let path = entry.path();
        if entry.file_type().expect("a listing has types").is_dir() {
            clean(&path);
        } else if World::is_unfinished(&path) {
            fs::remove_file(&path).expect("what is listed can be removed");
        }
    }
}

/// Returns what stands in the workdir's `work`, which is for what is unfinished.
fn leftovers(layers: &Layers) -> Vec<PathBuf> {
    let dir = layers.work().path("work");
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => panic!("list {}: {error}", dir.display()),
    };
    entries.map(|entry| entry.expect("the workdir can be listed").path()).collect()
}

fn rounds(mode: Mode) {
    let rounds = number("UNIONFS_CRASH_ROUNDS", 5);
    let mut rng = Rng::new(number("UNIONFS_CRASH_SEED", 1));
    let _watchdog = Watchdog::with(Duration::from_secs(120 + 20 * rounds));
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let layers = Layers::new(2, mode.placement);
    let mut worlds: Vec<World> = (0..WORKERS).map(|i| World::initial(&format!("w{i}"), FILE_LEN)).collect();
    for world in &worlds {
        world.lay([&layers.lowers()[0], &layers.lowers()[1]]).expect("the lowers can be written");
    }
    let lowers = LowersUnchanged::new(layers.lowers());
    let mut mount = layers.spec(mode.io).mount_ours();
    for round in 0..rounds {
        let delay = Duration::from_millis(20 + rng.below(700) as u64);
        let interrupted = crash(&mut mount, worlds, rng.next() % 1_000_000, delay);
        mount.mount_again().unwrap_or_else(|error| panic!("round {round}: mount after a crash: {error}"));
        worlds = interrupted.into_iter().map(|at| recover(at, mount.path())).collect();
        clean(mount.path());
        for world in &worlds {
            world.verify(mount.path()).unwrap_or_else(|error| panic!("round {round}: {error}"));
        }
    }
    mount.unmount().expect("the union can be unmounted");
    let left = leftovers(&layers);
    assert!(left.is_empty(), "the workdir holds {left:?}");
    lowers.check();
}

fn run(mode: Mode) {
    if on_kernel() {
        record_skip(&test_name(), "the kernel's overlayfs has no daemon to kill");
    } else if let Some(reason) = mode.obstacle() {
        record_skip(&test_name(), &reason);
    } else {
        rounds(mode);
    }
}

#[test]
fn kill_of_the_daemon_leaves_every_file_old_or_new() {
    run(Mode { io: Io::Cached, placement: Placement::OneFs });
}

#[test]
fn kill_of_the_daemon_with_passthrough_on_two_file_systems_leaves_every_file_old_or_new() {
    run(Mode { io: Io::Passthrough, placement: Placement::TwoFs });
}

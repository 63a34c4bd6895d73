//! Stress: eight processes at once on one mount, and trees that are deep, wide and tall.
//!
//! Environment: `UNIONFS_STRESS_SECONDS` (how long the processes work, 10), `UNIONFS_STRESS_SEED`,
//! `UNIONFS_STRESS_RESIDENT_KIB` (how much a daemon's memory may grow, 24576),
//! `UNIONFS_FULL=1` (the whole sizes: a directory of 100,000 entries and 300,000 inodes; otherwise a
//! tenth).

mod support;

mod stress {
    pub mod action;
    mod counts;
    pub mod daemon;
    pub mod scale;
    mod walks;
    #[allow(dead_code, reason = "the crash test uses the rest")]
    pub mod world;
}

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use stress::action::perform;
use stress::daemon::{AnyMount, Usage, forget_inodes};
use stress::world::{Mix, World};
use support::{Io, Layers, LowersUnchanged, Mode, Placement, Rng, Watchdog, number, record_skip, test_name};

const WORKERS: usize = 8;
/// The name of the test function that is a worker.
const WORKER: &str = "worker_process";
/// What a worker's test is to do, in its environment.
const ORDER: &str = "UNIONFS_STRESS_WORKER";

/// A process that works on its part of a mount, and answers on its stdout.
struct Worker {
    name: String,
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    fn start(name: &str, mount: &std::path::Path, seconds: u64, seed: u64) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this is a program"))
            .args(["--exact", WORKER, "--ignored", "--nocapture", "--test-threads=1"])
            .env(ORDER, format!("{name}:{seconds}:{seed}:{}", mount.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program can be started again");
        let orders = child.stdin.take().expect("stdin is a pipe");
        let answers = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        Self { name: name.to_owned(), child, orders, answers }
    }

    /// Waits for the next answer, between what libtest prints.
    fn answer(&mut self) -> Result<(), String> {
        loop {
            let mut line = String::new();
            let read = self.answers.read_line(&mut line).map_err(|error| error.to_string())?;
            if read == 0 {
                return Err(format!("{}: the process ended", self.name));
            }
            if let Some((_, answer)) = line.split_once("ANSWER ") {
                return match answer.trim_end() {
                    "ok" => Ok(()),
                    wrong => Err(format!("{}: {wrong}", self.name)),
                };
            }
        }
    }

    fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").expect("a worker reads its orders");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        let _ = self.child.kill();
        if let Err(error) = self.child.wait() {
            eprintln!("wait for {}: {error}", self.name);
        }
    }
}

#[test]
#[ignore = "a process of the stress test, which starts it"]
fn worker_process() {
    let Ok(order) = std::env::var(ORDER) else {
        record_skip(&test_name(), "it is a process of the stress test");
        return;
    };
    let mut fields = order.splitn(4, ':');
    let mut field = || fields.next().expect("name:seconds:seed:mount");
    let name = field().to_owned();
    let seconds: u64 = field().parse().expect("a number of seconds");
    let seed: u64 = field().parse().expect("a seed");
    let mount = PathBuf::from(field());
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let mut world = World::initial(&name, FILE_LEN);
    let until = Instant::now() + Duration::from_secs(seconds);
    println!("\nANSWER {}", shown(&work(&mut world, &mount, &mut Rng::new(seed), until)));
    for order in std::io::stdin().lines() {
        assert_eq!(order.expect("orders are text"), "verify");
        println!("\nANSWER {}", shown(&world.verify(&mount)));
    }
}

/// The length of the files in the lowers.
const FILE_LEN: usize = 6000;

fn shown(result: &Result<(), String>) -> String {
    match result {
        Ok(()) => "ok".to_owned(),
        Err(error) => error.replace('\n', " "),
    }
}

fn work(world: &mut World, mount: &std::path::Path, rng: &mut Rng, until: Instant) -> Result<(), String> {
    let mut done = 0_u64;
    while Instant::now() < until {
        let action = world.draw(rng, Mix::All);
        perform(mount, &action).map_err(|error| format!("action {done}, {action:?}: {error}"))?;
        world.apply(&action);
        done += 1;
        if done.is_multiple_of(100) {
            world.verify(mount).map_err(|error| format!("after {done} actions: {error}"))?;
        }
    }
    world.verify(mount).map_err(|error| format!("after {done} actions: {error}"))
}

fn eight_processes(mode: Mode) {
    let seconds = number("UNIONFS_STRESS_SECONDS", 10);
    let seed = number("UNIONFS_STRESS_SEED", 1);
    let _watchdog = Watchdog::with(Duration::from_secs(seconds + 180));
    let layers = Layers::new(2, mode.placement);
    let names: Vec<String> = (0..WORKERS).map(|index| format!("w{index}")).collect();
    for name in &names {
        let world = World::initial(name, FILE_LEN);
        world.lay([&layers.lowers()[0], &layers.lowers()[1]]).expect("the lowers can be written");
    }
    let lowers = LowersUnchanged::new(layers.lowers());
    let mut mount = AnyMount::start(layers.spec(mode.io));
    // What a daemon needs once is not a leak: every part of the tree has been used before it is measured.
    for name in &names {
        World::initial(name, FILE_LEN).verify(mount.path()).expect("the tree is what the lowers hold");
    }
    forget_inodes();
    let before = mount.usage();
    let mut workers: Vec<Worker> = names
        .iter()
        .enumerate()
        .map(|(index, name)| Worker::start(name, mount.path(), seconds, seed * 1000 + index as u64))
        .collect();
    let results: Vec<_> = workers.iter_mut().map(Worker::answer).collect();
    all_ok("while all worked", results);
    verify(&mut workers, "after all had worked");
    forget_inodes();
    Usage::settles(&before, || mount.usage());
    mount.remount();
    verify(&mut workers, "after a remount");
    drop(workers);
    mount.unmount();
    lowers.check();
}

fn verify(workers: &mut [Worker], when: &str) {
    workers.iter_mut().for_each(|worker| worker.order("verify"));
    all_ok(when, workers.iter_mut().map(Worker::answer).collect());
}

fn all_ok(when: &str, results: Vec<Result<(), String>>) {
    let wrong: Vec<String> = results.into_iter().filter_map(Result::err).collect();
    assert!(wrong.is_empty(), "{when}:\n{}", wrong.join("\n"));
}

fn run(mode: Mode) {
    match mode.obstacle() {
        None => eight_processes(mode),
        Some(reason) => record_skip(&test_name(), &reason),
    }
}

#[test]
fn eight_processes_find_what_they_wrote() {
    run(Mode { io: Io::Cached, placement: Placement::OneFs });
}

#[test]
fn eight_processes_find_what_they_wrote_with_passthrough_on_two_file_systems() {
    run(Mode { io: Io::Passthrough, placement: Placement::TwoFs });
}

//! The share of the matrix that is gone through with a mount: the daemon is killed before a call that changes something.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::matrix::{Point, Share, changes, chosen, is_traced, possible, set};
use super::subject::Subject;
use crate::support::traced::{self, Call};
use crate::support::{Io, Layers, LowersUnchanged, Mounted, OurMount, Watchdog, eventually, is_of_dead_server};

/// A mount, and strace(1) at its daemon.
struct Traced {
    mount: OurMount,
    tracer: Child,
}

impl Traced {
    /// Mounts `layers`, and then has the daemon traced, with `injection` if any: what it did before does not count.
    fn new(point: &Point, layers: &Layers, injection: Option<&str>) -> Self {
        let mut spec = layers.spec(Io::Cached).args(["--index", "on", "--redirect-dir", "on", "--threads", "1"]);
        if point.case().metacopy {
            spec = spec.args(["--metacopy", "on"]);
        }
        let mount = spec.mount_ours();
        let daemon = mount.pid().expect("it was just mounted").to_string();
        let mut command = Command::new("strace");
        command.args(["-f", "-p", &daemon, "-o"]).arg(layers.path("trace"));
        if let Some(injection) = injection {
            command.args(["-e", &format!("inject={injection}")]);
        }
        let tracer = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("strace can be started");
        let tasks = PathBuf::from(format!("/proc/{daemon}/task"));
        eventually("every thread of the daemon is traced", || {
            let mut tasks = fs::read_dir(&tasks).expect("the daemon is there").filter_map(Result::ok);
            tasks.all(|task| {
                let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
                !status.contains("TracerPid:\t0\n")
            })
        });
        Self { mount, tracer }
    }

    /// Does the operation, of which the daemon may die; returns whether it has.
    fn act(mut self, point: &Point) -> Result<bool, String> {
        let at = self.mount.path().to_owned();
        let done = traced::marked(&at, || (point.case().act)(Subject::Mount(&at)));
        let died = rustix::fs::statfs(&at).is_err_and(is_of_dead_server);
        let ended = if died {
            self.mount.kill();
            Ok(())
        } else {
            self.mount.unmount().and(done)
        };
        self.tracer.wait().expect("an own child can be waited for");
        ended.map(|()| died)
    }
}

/// Returns the calls of the daemon that change something, for the operation.
fn calls(point: &Point) -> Vec<Call> {
    let layers = set(point.case());
    let died = Traced::new(point, &layers, None).act(point);
    assert_eq!(died, Ok(false), "{}", point.case().name);
    let trace = fs::read_to_string(layers.path("trace")).expect("strace has written its trace");
    traced::calls(&trace).into_iter().filter(|call| changes(call) && call.is_known()).collect()
}

/// Has the daemon killed; returns whether it was.
fn kill(point: &Point, call: &Call) -> Result<bool, String> {
    let layers = set(point.case());
    let lowers = LowersUnchanged::new(layers.lowers());
    let injection = format!("{}:signal=KILL:when={}", call.name, call.number);
    let died = Traced::new(point, &layers, Some(&injection)).act(point)?;
    point.check_next(&layers)?;
    lowers.check();
    Ok(died)
}

#[test]
fn a_daemon_that_is_killed_leaves_old_or_new() {
    if is_traced() || !possible() {
        return;
    }
    let _watchdog = Watchdog::start();
    let all = Share::new().all;
    let (mut killed, mut missed, mut wrong) = (0, 0, Vec::new());
    for number in chosen().filter(|number| all || number % 7 == 3) {
        let point = Point::new(number);
        for (at, call) in calls(&point).iter().enumerate().filter(|(at, _)| all || at % 4 == 1) {
            // Which of its threads is asked may differ from time to time.
            let tried = (0..3).map(|_| kill(&point, call)).find(|tried| tried != &Ok(false));
            match tried.unwrap_or(Ok(false)) {
                Ok(true) => killed += 1,
                Ok(false) => missed += 1,
                Err(error) => wrong.push(format!(
                    "{}, {at}: killed before {} {}: {error}",
                    point.case().name,
                    call.name,
                    call.arguments
                )),
            }
        }
    }
    println!("killed {killed} daemons, {missed} went on, {} wrong", wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(killed > missed, "of {} daemons {killed} were killed", killed + missed);
}

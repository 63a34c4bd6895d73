//! Programs that run from the union, and their files: ETXTBSY either way.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::union::{Union, errno, shell, trap};
use crate::support::on_kernel;

/// A program that runs until it is dropped.
struct Running(Child);

impl Running {
    /// Starts a copy of cat(1), and returns when it has begun.
    fn start(program: &Path) -> Self {
        let child = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        Self(child.unwrap_or_else(|error| panic!("run {program:?}: {error}")))
    }

    /// Ends the program as it ends by itself, which it can do while its file is whole.
    fn end(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().expect("an own child can be waited for").success(), "the program was disturbed");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails once it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Tries everything that would change the contents of a file by its name.
fn attempts(path: &Path) -> Vec<(&'static str, std::io::Result<()>)> {
    let open = |options: &mut OpenOptions| options.open(path).map(drop);
    let truncate = i32::try_from(OFlags::TRUNC.bits()).expect("an open flag");
    vec![
        ("O_WRONLY", open(OpenOptions::new().write(true))),
        ("O_RDWR", open(OpenOptions::new().read(true).write(true))),
        ("O_APPEND", open(OpenOptions::new().append(true))),
        ("O_WRONLY|O_TRUNC", open(OpenOptions::new().write(true).truncate(true))),
        ("O_RDONLY|O_TRUNC", open(OpenOptions::new().read(true).custom_flags(truncate))),
        ("truncate(2)", truncate_by_name(path)),
    ]
}

/// Calls truncate(2), for which neither std nor rustix has a function.
fn truncate_by_name(path: &Path) -> std::io::Result<()> {
    let mut command = Command::new("perl");
    let status = command.args(["-e", "truncate($ARGV[0], 1) or exit $!"]).arg(path).status();
    match status.expect("perl (package perl-base) is installed").code() {
        Some(0) => Ok(()),
        code => Err(std::io::Error::from_raw_os_error(code.expect("perl ends by itself"))),
    }
}

/// Opens for writing what the kernel may for a moment count as running.
fn soon_writable(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while let Err(error) = OpenOptions::new().write(true).open(path) {
        assert!(Instant::now() < deadline, "{path:?} cannot be written after its program has ended: {error}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn chmod(union: &Union, name: &str, mode: u32) {
    fs::set_permissions(union.at(name), PermissionsExt::from_mode(mode)).expect("chmod");
}

#[test]
fn the_file_of_a_running_program_can_be_neither_written_nor_truncated() {
    trap(1, |layers| {
        for name in ["lower", "copied-up"] {
            fs::copy("/bin/cat", layers.lower(0).path(name)).expect("every system has /bin/cat");
        }
    })
    .run(|union| {
        chmod(union, "copied-up", 0o700);
        // In a process of its own: a child of another test may hold a descriptor of this one for a moment.
        shell(union.mount.path(), "cp lower new");
        let content = fs::read("/bin/cat").expect("every system has /bin/cat");
        for name in ["new", "copied-up", "lower"] {
            let path = union.at(name);
            let running = Running::start(&path);
            for (how, tried) in attempts(&path) {
                assert_eq!(errno(tried), Errno::TXTBSY, "{name}: {how}");
            }
            // The kernel's overlayfs truncates a lower file before it looks.
            if on_kernel() && name == "lower" {
                continue;
            }
            assert!(fs::read(&path).expect("read") == content, "{name} has changed");
            running.end();
            assert!(Command::new(&path).stdin(Stdio::null()).status().expect("it runs again").success());
        }
        assert!(on_kernel() || !union.upper().exists("lower"));
        for name in ["new", "copied-up", "lower"] {
            soon_writable(&union.at(name));
            fs::write(union.at(name), "written").expect("nothing runs any more");
        }
        union.live_and_after_remount(|union| {
            for name in ["new", "copied-up", "lower"] {
                assert_eq!(union.upper().read(name), b"written");
            }
        });
    });
}

#[test]
fn a_lower_program_that_is_copied_up_while_it_runs_cannot_be_written_either() {
    trap(1, |layers| {
        fs::copy("/bin/cat", layers.lower(0).path("cat")).expect("every system has /bin/cat");
    })
    .run(|union| {
        let content = fs::read("/bin/cat").expect("every system has /bin/cat");
        let running = Running::start(&union.at("cat"));
        chmod(union, "cat", 0o700);
        for _ in 0..2 {
            // Who reads it now has upper's file, and the program the lower's.
            assert!(union.merged().read("cat") == content);
            for (how, tried) in attempts(&union.at("cat")) {
                assert_eq!(errno(tried), Errno::TXTBSY, "{how}");
            }
        }
        assert!(union.merged().read("cat") == content && union.upper().read("cat") == content);
        running.end();
        soon_writable(&union.at("cat"));
        fs::write(union.at("cat"), "written").expect("nothing runs any more");
        union.live_and_after_remount(|union| assert_eq!(union.merged().read("cat"), b"written"));
    });
}

#[test]
fn a_file_that_is_open_for_writing_is_not_run() {
    trap(1, |layers| {
        fs::copy("/bin/true", layers.lower(0).path("lower")).expect("every system has /bin/true");
        fs::copy("/bin/true", layers.lower(0).path("read")).expect("every system has /bin/true");
    })
    .run(|union| {
        shell(union.mount.path(), "cp lower new");
        // With a reader of the lower file, which passthrough keeps apart from the writer.
        let reader = fs::File::open(union.at("read")).expect("the file is there");
        for name in ["new", "lower", "read"] {
            let path = union.at(name);
            let run = || Command::new(&path).status();
            let mut writer = Command::new("sh");
            writer.args(["-c", "exec 3>>\"$1\"; echo open; read -r line", "sh"]).arg(&path);
            let mut writer =
                writer.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("every system has a shell");
            let mut said = String::new();
            BufReader::new(writer.stdout.take().expect("it is piped")).read_line(&mut said).expect("it can be heard");
            assert_eq!(said, "open\n");
            assert_eq!(errno(run()), Errno::TXTBSY, "{name}");
            drop(writer.stdin.take());
            writer.wait().expect("an own child can be waited for");
            assert!(run().expect("nobody writes any more").success(), "{name}");
        }
        drop(reader);
    });
}

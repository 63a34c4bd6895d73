//! The command line as a person or a program meets it: what it prints, and what it exits with.
//!
//! How options are parsed is tested beside the parser. Here the binary itself runs; the mount is
//! looked at through processes with a deadline, so that a mount that hangs fails its test and no more.

mod support;

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{Pid, Signal, kill_process};
use support::{
    Cleared, DEADLINE, Io, Layers, Placement, Privilege, Ran, Tmpfs, binary, eventually, finish, mounted, no_mounts,
    privilege, processes_with, read_all, unionfs, wait,
};

#[test]
fn version_names_the_program_and_the_version() {
    let ran = unionfs(["--version"]);
    assert_eq!((ran.code, ran.out), (Some(0), format!("unionfs-rs {}\n", env!("CARGO_PKG_VERSION"))));
}

/// Every flag that `mount` promises.
const FLAGS: &str = "--lower --upper --work --ro --rw --volatile --redirect-dir --index --metacopy --xino \
    --xattr-namespace --whiteout --allow-other --allow-root --no-allow-other --default-permissions \
    --uid-mapping --gid-mapping --squash-uid --squash-gid --xattr-permissions --no-acl --no-xattrs --static-nlink --ino32 \
    --context --propagation --max-write --no-default-permissions --suid --nosuid --dev --nodev --exec --noexec --atime --relatime --strictatime \
    --noatime --io --entry-timeout --attr-timeout --negative-timeout --threads --foreground --fsname --log-file \
    --log-level -o -f";

#[test]
fn help_of_mount_shows_every_option_and_the_exit_codes() {
    let ran = unionfs(["mount", "--help"]);
    assert_eq!(ran.code, Some(0));
    let words: Vec<&str> = ran.out.split([' ', ',', '\n']).collect();
    for flag in FLAGS.split_ascii_whitespace() {
        assert!(words.contains(&flag), "{flag} is not in\n{}", ran.out);
    }
    assert!(ran.out.contains("Exit codes:") && ran.out.contains("Examples:"), "{}", ran.out);
}

#[test]
fn help_names_every_command() {
    let ran = unionfs(["--help"]);
    assert_eq!(ran.code, Some(0));
    for command in ["mount", "umount", "doctor", "completions", "man"] {
        assert!(ran.out.contains(&format!("\n  {command} ")), "{command} is not in\n{}", ran.out);
    }
}

#[test]
fn man_page_holds_every_command_and_option() {
    let ran = unionfs(["man"]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    for heading in [".TH unionfs-rs 8", ".SH \"MOUNT\"", ".SH \"UMOUNT\"", ".SH \"DOCTOR\"", "Exit codes:"] {
        assert!(ran.out.contains(heading), "{heading} is not in\n{}", ran.out);
    }
    // In roff a dash of a flag is escaped.
    let plain = ran.out.replace('\\', "");
    for flag in FLAGS.split_ascii_whitespace() {
        assert!(plain.contains(&format!("fB{flag}fR")), "{flag} is not in\n{plain}");
    }
}

#[test]
fn completions_are_printed_for_each_shell_and_that_shell_reads_them() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = unionfs(["completions", shell]);
        assert_eq!(ran.code, Some(0), "{shell}");
        assert!(ran.out.contains("redirect-dir") && ran.out.contains("passthrough"), "{shell}: {}", ran.out);
        let dir = tempfile::tempdir().expect("a temporary directory");
        let script = dir.path().join(shell);
        fs::write(&script, &ran.out).expect("it is ours");
        match Command::new(shell).arg("-n").arg(&script).output() {
            Ok(output) => assert!(output.status.success(), "{shell}: {}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => {
                support::record_skip(&support::test_name(), &format!("the syntax is not checked: {shell}: {error}"))
            }
        }
    }
    assert_eq!(unionfs(["completions", "csh"]).code, Some(2));
}

/// A directory with the completions of one shell as `script`, two directories `layer1` and `layer2`, and `unionfs-rs`.
fn completing(shell: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let ran = unionfs(["completions", shell]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{shell}");
    fs::write(dir.path().join("script"), ran.out).expect("it is ours");
    for name in ["layer1", "layer2"] {
        fs::create_dir(dir.path().join(name)).expect("it is ours");
    }
    std::os::unix::fs::symlink(binary(), dir.path().join("unionfs-rs")).expect("it is ours");
    dir
}

/// Runs a shell in the directory of its completions, or says why it does not run.
fn shell_in(dir: &Path, shell: &str, args: &[&str]) -> Result<Ran, String> {
    // Asked first: to be started is what a shell that is not there fails at.
    Command::new(shell).args(["-c", "true"]).output().map_err(|error| format!("{shell}: {error}"))?;
    Ok(finish(Command::new(shell).args(args).current_dir(dir).env("HOME", dir).env("TERM", "dumb")))
}

#[test]
fn bash_completes_commands_options_and_values() {
    let dir = completing("bash");
    // What readline does: the function that `complete` names, with the words up to the cursor.
    let ask = r#"
        source ./script || exit
        spec=$(complete -p unionfs-rs) || exit
        spec=${spec##*-F }
        while read -ra words; do
            COMP_WORDS=("${words[@]}") COMP_CWORD=$((${#words[@]} - 1)) COMPREPLY=()
            [ "${words[-1]}" != _ ] || COMP_WORDS[COMP_CWORD]=
            "${spec%% *}" unionfs-rs "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
            echo "${COMPREPLY[*]}"
        done
    "#;
    let table = [
        ("mo", "mount"),
        ("mount --red", "--redirect-dir"),
        ("mount --io _", "cached passthrough"),
        ("mount --lower / --redirect-dir no", "nofollow"),
        ("umount --l", "--lazy"),
        ("completions z", "zsh"),
        ("doctor --h", "--help"),
    ];
    let lines: String = table.map(|(line, _)| format!("unionfs-rs {line}\n")).concat();
    fs::write(dir.path().join("lines"), lines).expect("it is ours");
    let ran = shell_in(dir.path(), "bash", &["--norc", "-c", &format!("exec <lines\n{ask}")]).expect("bash is there");
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    let expected: Vec<&str> = table.iter().map(|(_, replies)| *replies).collect();
    assert_eq!(ran.out.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn zsh_completes_commands_options_and_lists_of_layers() {
    let dir = completing("zsh");
    // An interactive shell on a terminal of its own, in which Tab completes, writes down the line and empties it.
    let zshrc = "PS1=; path=($PWD $path); autoload -U compinit; compinit -u -D; source ./script\n\
        tell() { zle complete-word; print -r -- $BUFFER >>told; BUFFER= }; zle -N tell; bindkey '^I' tell\n";
    fs::write(dir.path().join(".zshrc"), zshrc).expect("it is ours");
    let ask = "zmodload zsh/zpty || exit; zpty shell 'ZDOTDIR=$PWD zsh -d -i'\n\
        while read -r line; do zpty -w -n shell $line$'\\t'; done <lines; zpty -w shell exit\n\
        while zpty -r shell; do :; done";
    let table = [
        ("mou", "mount"),
        ("mount --redi", "--redirect-dir="),
        ("mount --io pa", "passthrough"),
        ("mount --upper lay", "layer"),
        ("mount --lower lay", "layer"),
        ("mount --lower layer1:lay", "layer1:layer"),
        ("umount --l", "--lazy"),
        ("completions fi", "fish"),
    ];
    let lines: String = table.map(|(line, _)| format!("unionfs-rs {line}\n")).concat();
    fs::write(dir.path().join("lines"), lines).expect("it is ours");
    let ran = match shell_in(dir.path(), "zsh", &["-f", "-c", ask]) {
        Ok(ran) => ran,
        Err(reason) => skip!("{reason}"),
    };
    let told = fs::read_to_string(dir.path().join("told")).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    let told: Vec<&str> = told.lines().filter_map(|line| line.split_ascii_whitespace().last()).collect();
    let expected: Vec<&str> = table.iter().map(|(_, word)| *word).collect();
    assert_eq!(told, expected, "{ran:?}");
    assert!(!ran.out.contains("command not found"), "{}", ran.out);
}

#[test]
fn fish_completes_commands_options_and_lists_of_layers() {
    let dir = completing("fish");
    let ask = "source ./script; while read line; complete -C $line | string replace -r '\\t.*' '' | string join ' '; end <lines; true";
    let table = [
        ("mou", "mount"),
        ("mount --redi", "--redirect-dir"),
        ("mount --io ", "cached passthrough"),
        ("mount --lower lay", "layer1/ layer2/"),
        ("mount --lower layer1:lay", "layer1:layer1/ layer1:layer2/"),
        ("umount --l", "--lazy"),
        ("completions fi", "fish"),
    ];
    let lines: String = table.map(|(line, _)| format!("unionfs-rs {line}\n")).concat();
    fs::write(dir.path().join("lines"), lines).expect("it is ours");
    let ran = match shell_in(dir.path(), "fish", &["--no-config", "-c", ask]) {
        Ok(ran) => ran,
        Err(reason) => skip!("{reason}"),
    };
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    let expected: Vec<&str> = table.iter().map(|(_, words)| *words).collect();
    assert_eq!(ran.out.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn output_that_nobody_reads_is_no_failure() {
    let pipeline = "\"$1\" man | head -c 1 >/dev/null; echo ${PIPESTATUS[0]}";
    let ran = finish(Command::new("bash").args(["-c", pipeline, "bash"]).arg(binary()));
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("0\n", ""));
}

#[test]
fn doctor_exits_with_4_exactly_if_something_is_missing() {
    let ran = unionfs(["doctor"]);
    for name in ["/dev/fuse", "fusermount3", "user namespaces", "--io passthrough", "io_uring", "open files"] {
        assert!(ran.out.contains(name), "{name} is not in\n{}", ran.out);
    }
    let expected = if ran.out.contains("MISSING") { 4 } else { 0 };
    assert_eq!(ran.code, Some(expected), "{}", ran.out);
}

#[test]
fn doctor_tells_a_plain_user_without_fusermount3_how_to_get_it() {
    if privilege() != Privilege::Root {
        skip!("needs root, to become another user");
    }
    let layers = Layers::new(0, Placement::OneFs);
    let copy = copy_for_others(&layers);
    let ran = finish(Command::new(copy).arg("doctor").env("PATH", "/nonexistent").uid(NOBODY).gid(NOBODY));
    assert_eq!(ran.code, Some(4), "{}", ran.out);
    assert!(ran.out.contains("MISSING  fusermount3"), "{}", ran.out);
    assert!(ran.out.contains("install the package fuse3"), "{}", ran.out);
}

/// The user that owns nothing.
const NOBODY: u32 = 65534;

/// Copies the binary to where every user can run it.
fn copy_for_others(layers: &Layers) -> PathBuf {
    let copy = layers.path("unionfs-rs");
    fs::copy(binary(), &copy).expect("the test directory can be written");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("it is ours");
    copy
}

#[test]
fn usage_errors_exit_with_2_and_name_the_option() {
    let table: &[(&[&str], &str)] = &[
        (&["mount", "/mnt"], "--lower DIR"),
        (&["mount", "--lower", "/"], "MOUNTPOINT"),
        (&["mount", "--lower", "/", "--frobnicate", "/mnt"], "--frobnicate"),
        (&["mount", "--lower", "/", "-o", "redirectdir=on", "/mnt"], "did you mean redirect_dir?"),
        (&["mount", "--lower", "/", "--threads", "many", "/mnt"], "--threads many"),
        (&["mount", "--lower", "/", "--attr-timeout", "-1", "/mnt"], "--attr-timeout -1"),
        (&["mount", "--lower", "/", "-o", "io=fast", "/mnt"], "give one of cached, passthrough"),
        (&["mount", "--lower", "/", "--io", "fast", "/mnt"], "cached, passthrough"),
        (&["mount", "--lower", "/a::/b", "/mnt"], "--lower /a::/b: an element of the list is empty"),
        (&["unmount", "/mnt"], "unmount"),
        (&["umount"], "MOUNTPOINT"),
    ];
    for (args, named) in table {
        let ran = unionfs(*args);
        assert_eq!(ran.code, Some(2), "{args:?}: {ran:?}");
        assert!(ran.err.starts_with("unionfs-rs: ") && ran.err.contains(named), "{args:?}: {}", ran.err);
        assert_eq!(ran.out, "", "{args:?}");
    }
    assert_eq!(unionfs::<&str>([]).code, Some(2), "no command at all");
}

#[test]
fn a_lower_that_cannot_be_used_exits_with_3_names_it_and_leaves_nothing() {
    let layers = Layers::new(1, Placement::OneFs);
    let mnt = layers.mnt();
    let _cleared = Cleared(mnt.clone());
    fs::write(layers.path("file"), "").expect("it is ours");
    for lower in ["absent", "file"] {
        for more in [&[] as &[&str], &["--foreground"]] {
            let ran =
                finish(Command::new(binary()).arg("mount").arg("--lower").arg(layers.path(lower)).args(more).arg(&mnt));
            assert_eq!(ran.code, Some(3), "{ran:?}");
            let begin = format!("unionfs-rs: {}: ", layers.path(lower).display());
            assert!(ran.err.starts_with(&begin) && ran.err.contains("; "), "{}", ran.err);
            assert_eq!(ran.err.lines().count(), 1, "said once: {}", ran.err);
            assert_eq!(mounted(&mnt), None);
            eventually("the daemon is gone", || processes_with(&mnt).is_empty());
        }
    }
}

#[test]
fn umount_of_what_is_no_union_exits_with_3_and_leaves_it() {
    let layers = Layers::new(0, Placement::OneFs);
    let ran = finish(Command::new(binary()).arg("umount").arg(layers.mnt()));
    let expected = format!("unionfs-rs: {}: nothing is mounted there; ", layers.mnt().display());
    assert!(ran.code == Some(3) && ran.err.starts_with(&expected), "{ran:?}");
    let ran = unionfs(["umount", "/proc"]);
    assert!(ran.code == Some(3) && ran.err.contains("a mount of type proc"), "{ran:?}");
    assert_eq!(mounted(Path::new("/proc")).map(|(kind, _)| kind).as_deref(), Some("proc"));
}

#[test]
fn umount_of_somebody_elses_fuse_mount_exits_with_3_and_leaves_it() {
    if privilege() != Privilege::Root {
        skip!("needs root, to mount what nobody serves");
    }
    if let Some(reason) = no_mounts() {
        skip!("{reason}");
    }
    let layers = Layers::new(0, Placement::OneFs);
    let mnt = layers.mnt();
    let _cleared = Cleared(mnt.clone());
    let device = fs::File::options().read(true).write(true).open("/dev/fuse").expect("root may open it");
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let data = std::ffi::CString::new(data).expect("it has no zeros");
    rustix::mount::mount("other", &mnt, "fuse.other", MountFlags::empty(), Some(&*data)).expect("root may mount");
    for lazy in [&[] as &[&str], &["--lazy"]] {
        let ran = finish(Command::new(binary()).arg("umount").args(lazy).arg(&mnt));
        assert!(ran.code == Some(3) && ran.err.contains("a mount of type fuse.other"), "{ran:?}");
        assert_eq!(mounted(&mnt).map(|(kind, _)| kind).as_deref(), Some("fuse.other"));
    }
}

#[test]
fn mount_returns_when_the_mount_answers_and_leaves_a_daemon_that_holds_nothing() {
    if let Some(reason) = no_mounts() {
        skip!("{reason}");
    }
    let layers = Layers::new(1, Placement::OneFs);
    layers.lower(0).file("fact", "from below");
    let mnt = layers.mnt();
    let _cleared = Cleared(mnt.clone());
    // Descriptor 9 is inherited, and the paths depend on the working directory.
    let ran = finish(
        Command::new("sh")
            .args(["-c", "umask 077; exec 9>held; exec \"$0\" mount --lower lower0 --upper upper \"$1\""])
            .arg(binary())
            .arg(&mnt)
            .current_dir(layers.path("")),
    );
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (Some(0), "", ""));
    assert_eq!(mounted(&mnt).map(|(kind, _)| kind).as_deref(), Some("fuse.unionfs-rs"));
    let read = finish(Command::new("cat").arg(mnt.join("fact")));
    assert_eq!((read.code, read.out.as_str()), (Some(0), "from below"), "{}", read.err);

    let daemons = processes_with(&mnt);
    let [daemon] = daemons.as_slice() else { panic!("one daemon, not {daemons:?}") };
    let proc = PathBuf::from(format!("/proc/{}", daemon.as_raw_pid()));
    for standard in 0..=2 {
        let link = fs::read_link(proc.join(format!("fd/{standard}"))).expect("the daemon runs");
        assert_eq!(link, Path::new("/dev/null"), "descriptor {standard}");
    }
    let held = layers.path("held");
    for entry in fs::read_dir(proc.join("fd")).expect("the daemon runs") {
        let fd = entry.expect("a listing").path();
        // A descriptor may be closed while we look.
        assert_ne!(fs::read_link(&fd).ok().as_ref(), Some(&held), "{} was inherited", fd.display());
    }
    assert_eq!(fs::read_link(proc.join("cwd")).expect("the daemon runs"), Path::new("/"));
    let status = fs::read_to_string(proc.join("status")).expect("the daemon runs");
    assert!(status.contains("Umask:\t0000\n"), "{status}");
    let stat = fs::read_to_string(proc.join("stat")).expect("the daemon runs");
    // Fields after the name in parentheses: state, parent, group, session.
    let session = stat.rsplit(')').next().and_then(|fields| fields.split_ascii_whitespace().nth(3));
    assert_eq!(session, Some(daemon.as_raw_pid().to_string().as_str()), "{stat}");

    let umount = finish(Command::new(binary()).arg("umount").arg(&mnt));
    assert_eq!((umount.code, umount.err.as_str()), (Some(0), ""));
    assert_eq!(mounted(&mnt), None);
    eventually("the daemon ends", || processes_with(&mnt).is_empty());
}

#[test]
fn umount_refuses_a_mount_in_use_and_detaches_it_with_lazy() {
    if let Some(reason) = no_mounts() {
        skip!("{reason}");
    }
    let layers = Layers::new(1, Placement::OneFs);
    let mnt = layers.mnt();
    let _cleared = Cleared(mnt.clone());
    let ran = finish(Command::new(binary()).arg("mount").arg("--lower").arg(&layers.lowers()[0]).arg(&mnt));
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let mut user = Command::new("sleep").arg("60").current_dir(&mnt).spawn().expect("sleep runs");

    let refused = finish(Command::new(binary()).arg("umount").arg(&mnt));
    let still = mounted(&mnt);
    let detached = finish(Command::new(binary()).args(["umount", "--lazy"]).arg(&mnt));
    user.kill().expect("it is our child");
    wait(&mut user);
    assert_eq!(refused.code, Some(1), "{}", refused.err);
    assert!(refused.err.contains(&*mnt.to_string_lossy()) && refused.err.contains("--lazy"), "{}", refused.err);
    assert!(still.is_some());
    assert_eq!((detached.code, mounted(&mnt)), (Some(0), None), "{}", detached.err);
    eventually("the daemon ends with the last user", || processes_with(&mnt).is_empty());
}

#[test]
fn signals_end_a_mount_in_the_foreground_cleanly() {
    if let Some(reason) = no_mounts() {
        skip!("{reason}");
    }
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let layers = Layers::new(1, Placement::OneFs);
        let mnt = layers.mnt();
        let _cleared = Cleared(mnt.clone());
        let mut child = layers.spec(Io::Cached).command().stderr(Stdio::piped()).spawn().expect("the binary runs");
        let err = read_all(child.stderr.take().expect("it is piped"));
        eventually("the mount is there", || mounted(&mnt).is_some() || matches!(child.try_wait(), Ok(Some(_))));
        let pid = Pid::from_child(&child);
        kill_process(pid, signal).expect("it is our child");
        let status = wait(&mut child);
        let err = err.recv_timeout(DEADLINE).expect("the stream ends with the process");
        assert_eq!(status.code(), Some(0), "{signal:?}: {status}: {err}");
        assert_eq!(mounted(&mnt), None, "{signal:?}");
    }
}

/// A union in the foreground, on a directory of a tmpfs whose mounts nobody else sees.
struct Signalled {
    // Fields drop in order: what is mounted goes before what it is mounted on.
    _cleared: Cleared,
    _disk: Tmpfs,
    layers: Layers,
    at: PathBuf,
    child: Child,
}

impl Signalled {
    /// Mounts over what `prepare` mounts on the directory.
    fn start(prepare: impl FnOnce(&Path)) -> Option<Self> {
        let obstacle = (privilege() == Privilege::Plain).then(|| "needs the privilege to mount".to_owned());
        if let Some(reason) = obstacle.or_else(no_mounts) {
            support::record_skip(&support::test_name(), &reason);
            return None;
        }
        let layers = Layers::new(1, Placement::OneFs);
        let disk = layers.path("disk");
        let _disk = Tmpfs::mount(&disk, "mode=755").expect("a tmpfs can be mounted");
        rustix::mount::mount_change(&disk, MountPropagationFlags::PRIVATE).expect("an own mount");
        let at = disk.join("at");
        fs::create_dir(&at).expect("a new disk has space");
        prepare(&at);
        let _cleared = Cleared(at.clone());
        let log = fs::File::create(layers.path("log")).expect("the test directory can be written");
        let spec = layers.spec(Io::Cached).at(&at).args(["--log-level", "info"]);
        let child = spec.command().stderr(log).spawn().expect("the binary runs");
        eventually("the mount is there", || kind_at(&at) == UNION);
        // It is there before it has shaken hands; this waits for an answer.
        let listed = finish(Command::new("ls").arg(&at));
        assert_eq!(listed.code, Some(0), "{}", listed.err);
        Some(Self { _cleared, _disk, layers, at, child })
    }

    fn log(&self) -> String {
        fs::read_to_string(self.layers.path("log")).expect("it was made")
    }

    /// Sends SIGTERM, and waits until the log says `times` times what became of such signals.
    fn terminate(&self, said: &str, times: usize) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("it is our child");
        eventually(said, || self.log().matches(said).count() == times);
    }

    fn ends(&mut self) {
        let status = wait(&mut self.child);
        assert_eq!(status.code(), Some(0), "{}", self.log());
    }
}

/// Mounts a tmpfs on `at`.
fn cover(at: &Path) {
    rustix::mount::mount("tmpfs", at, "tmpfs", MountFlags::empty(), None).expect("a tmpfs can be mounted");
}

const UNION: &str = "fuse.unionfs-rs";

fn kind_at(at: &Path) -> String {
    mounted(at).map(|(kind, _)| kind).unwrap_or_default()
}

#[test]
fn a_second_signal_leaves_what_was_below_the_mount() {
    let Some(mut union) = Signalled::start(cover) else { return };
    let mut user = Command::new("sleep").arg("60").current_dir(&union.at).spawn().expect("sleep runs");
    union.terminate("SIGTERM: unmounting", 1);
    eventually("it is detached", || kind_at(&union.at) == "tmpfs");
    eventually("the log says that it is in use", || union.log().contains("detached while in use"));
    union.terminate("SIGTERM: unmounting", 2);
    // What an unmount takes, many times over; there is nothing to wait for where nothing is done.
    thread::sleep(Duration::from_millis(300));
    let kind = kind_at(&union.at);
    user.kill().expect("it is our child");
    wait(&mut user);
    assert_eq!(kind, "tmpfs", "{}", union.log());
    union.ends();
    rustix::mount::unmount(&union.at, UnmountFlags::DETACH).expect("it is mounted");
}

#[test]
fn a_signal_leaves_what_covers_the_mount_and_says_so() {
    let Some(mut union) = Signalled::start(|_| ()) else { return };
    cover(&union.at);
    union.terminate("something else is mounted over it", 1);
    assert_eq!(kind_at(&union.at), "tmpfs", "{}", union.log());
    rustix::mount::unmount(&union.at, UnmountFlags::empty()).expect("it is mounted");
    assert_eq!(kind_at(&union.at), UNION);
    union.terminate("SIGTERM: unmounting", 2);
    union.ends();
    assert_eq!(mounted(&union.at), None);
}

#[test]
fn a_signal_unmounts_a_mount_that_was_moved() {
    let Some(mut union) = Signalled::start(|_| ()) else { return };
    let moved = union.at.with_file_name("moved");
    fs::create_dir(&moved).expect("a new disk has space");
    rustix::mount::mount_move(&union.at, &moved).expect("may mount");
    let _cleared = Cleared(moved.clone());
    union.terminate("SIGTERM: unmounting", 1);
    union.ends();
    assert_eq!((mounted(&union.at), mounted(&moved)), (None, None), "{}", union.log());
}

#[test]
fn a_mount_that_cannot_be_served_is_taken_down() {
    if privilege() == Privilege::Plain {
        skip!("the message is that of a mount which this user may make");
    }
    if let Some(reason) = no_mounts() {
        skip!("{reason}");
    }
    if let Err(error) = Command::new("strace").arg("-V").output() {
        skip!("strace cannot be started ({error}): install the package strace");
    }
    // The main thread starts, in this order, the one for signals, and two that serve.
    for (failing, said) in [(1, "signals cannot be handled"), (2, "serving ended"), (3, "serving ended")] {
        let layers = Layers::new(1, Placement::OneFs);
        let mnt = layers.mnt();
        let _cleared = Cleared(mnt.clone());
        let mut spec = layers.spec(Io::Cached).args(["--volatile", "--threads", "2"]);
        let inject = format!("inject=clone3:error=EAGAIN:when={failing}");
        spec.wrapper = ["strace", "-o", "/dev/null", "-e", "trace=clone3", "-e", &inject].map(Into::into).to_vec();
        let ran = finish(&mut spec.command());
        assert!(ran.code == Some(1) && ran.err.contains(said), "{failing}: {ran:?}");
        assert_eq!(mounted(&mnt), None, "{failing}");
        let left = layers.path("work/work");
        // The mark stays where there was a mount, however short.
        let names = if left.exists() { layers.work().names("work") } else { Vec::new() };
        assert!(names.iter().all(|name| failing > 1 && name == "incompat"), "{failing}: {names:?} is left");
        // The upper can be used again.
        drop(layers.spec(Io::Cached).mount_ours());
    }
}

#[test]
fn log_file_holds_what_the_level_lets_through() {
    if let Some(reason) = no_mounts() {
        skip!("{reason}");
    }
    let layers = Layers::new(1, Placement::OneFs);
    let mnt = layers.mnt();
    let _cleared = Cleared(mnt.clone());
    let log = layers.path("log");
    let ran = finish(
        Command::new(binary())
            .args(["mount", "--log-level", "trace", "--log-file"])
            .arg(&log)
            .arg("--lower")
            .arg(&layers.lowers()[0])
            .arg(&mnt),
    );
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert_eq!(finish(Command::new(binary()).arg("umount").arg(&mnt)).code, Some(0));
    eventually("the daemon ends", || processes_with(&mnt).is_empty());
    assert_ne!(fs::metadata(&log).expect("the log was made").size(), 0);
    let ran = finish(Command::new(binary()).args(["mount", "--log-file", "/proc/no/log", "--lower", "/"]).arg(&mnt));
    assert!(ran.code == Some(3) && ran.err.starts_with("unionfs-rs: /proc/no/log: "), "{ran:?}");
}

//! A daemon that may open few files, and clients that have many open.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::skip;
use crate::support::{
    Io, Layers, LowersUnchanged, Mode, Mounted, OurMount, Placement, Watchdog, eventually, on_kernel, record_skip,
    require_root, test_name, wait,
};

/// What the daemon may have open.
const LIMIT: usize = 256;
const IN_A_DIRECTORY: usize = 500;

fn count() -> usize {
    if std::env::var_os("UNIONFS_FULL").is_some() { 100_000 } else { 20_000 }
}

fn name(index: usize) -> String {
    format!("d{}/f{index}", index / IN_A_DIRECTORY)
}

/// Lets this process have so many files open.
fn raise_to(most: usize) {
    let most = most as u64;
    let now = getrlimit(Resource::Nofile);
    let limit = Rlimit { current: Some(most), maximum: now.maximum.map(|maximum| maximum.max(most)) };
    setrlimit(Resource::Nofile, limit).unwrap_or_else(|error| panic!("{most} open files, with {now:?}: {error}"));
}

fn mount(layers: &Layers, io: Io) -> OurMount {
    let mut spec = layers.spec(io);
    spec.wrapper = vec!["prlimit".into(), format!("--nofile={LIMIT}:{LIMIT}").into()];
    spec.mount_ours()
}

fn descriptors(union: &OurMount) -> usize {
    let pid = union.pid().expect("the daemon lives");
    fs::read_dir(format!("/proc/{pid}/fd")).expect("the daemon lives").count()
}

fn possible() -> bool {
    if on_kernel() {
        record_skip(&test_name(), "the kernel's overlayfs has no descriptors");
        return false;
    }
    require_root("many open files")
}

/// Holds the mountpoint and which files a process of the test has open.
const CHILD: &str = "UNIONFS_TEST_HOLDS";

/// Files that one process has open: less than what processes usually may.
const EACH: usize = 10_000;

/// Is a process that has files open: reads a part of each, says so, and reads the rest when it is told to.
fn hold(told: &str) {
    let [from, at, ready] = told.split(' ').collect::<Vec<_>>()[..] else { panic!("{CHILD}={told}") };
    let from: usize = from.parse().expect("the test has set the variable");
    raise_to(EACH + 100);
    let open = |index| File::options().read(true).write(index % 10 == 0).open(Path::new(at).join(name(index)));
    let files: Vec<(usize, File)> =
        (from..from + EACH).map(|index| (index, open(index).unwrap_or_else(|e| panic!("{index}: {e}")))).collect();
    let read = |(index, file): &(usize, File), expected: &str| {
        let mut content = vec![0; 32];
        let len = file.read_at(&mut content, 0).unwrap_or_else(|error| panic!("{index}: {error}"));
        assert_eq!(String::from_utf8_lossy(&content[..len]), format!("{expected} {index}"));
    };
    files.iter().rev().step_by(7).for_each(|file| read(file, "lower"));
    fs::write(ready, "").expect("the test directory can be written");
    std::io::stdin().read_line(&mut String::new()).expect("the test tells");
    for (index, file) in &files {
        if index % 10 == 0 {
            file.write_all_at(b"UPPER", 0).unwrap_or_else(|error| panic!("{index}: {error}"));
        }
    }
    files.iter().for_each(|file| read(file, if file.0 % 10 == 0 { "UPPER" } else { "lower" }));
}

#[test]
fn few_descriptors_are_enough_for_any_number_of_files_in_use() {
    if let Ok(told) = std::env::var(CHILD) {
        return hold(&told);
    }
    if !possible() {
        return;
    }
    let _watchdog = Watchdog::with(Duration::from_secs(400));
    let count = count();
    let layers = Layers::new(1, Placement::OneFs);
    for index in 0..count {
        layers.lower(0).file(name(index), format!("lower {index}"));
    }
    let lowers = LowersUnchanged::new(layers.lowers());
    let mut union = mount(&layers, Io::Cached);
    let ready = |from: usize| layers.path(format!("ready-{from}"));
    let mut clients: Vec<Child> = (0..count)
        .step_by(EACH)
        .map(|from| {
            let mut command = Command::new(std::env::current_exe().expect("a test knows its binary"));
            command
                .args([&test_name(), "--exact", "--nocapture"])
                .env(CHILD, format!("{from} {} {}", union.path().display(), ready(from).display()));
            command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("this test can be started again")
        })
        .collect();
    eventually("all files are open", || {
        clients.iter_mut().for_each(|client| assert!(matches!(client.try_wait(), Ok(None)), "a client has ended"));
        (0..count).step_by(EACH).all(|from| ready(from).exists())
    });
    let now = descriptors(&union);
    assert!(now <= LIMIT, "the daemon has {now} descriptors");
    clients.iter_mut().for_each(|client| drop(client.stdin.take()));
    for mut client in clients {
        assert!(wait(&mut client).success(), "a client could not use what it had open");
    }
    for index in (0..count).step_by(1000) {
        let content = fs::read_to_string(union.path().join(name(index))).expect("any may be read");
        assert_eq!(content, format!("UPPER {index}"));
    }
    println!("{count} files were in use, with {now} descriptors");
    union.unmount().expect("the union can be unmounted");
    lowers.check();
}

/// What lost its name while in use takes a descriptor; where there are no more, it keeps its name.
#[test]
fn what_cannot_be_kept_open_keeps_its_name() {
    if !possible() {
        return;
    }
    let _watchdog = Watchdog::start();
    let layers = Layers::new(1, Placement::OneFs);
    let mut union = mount(&layers, Io::Cached);
    let at = |index: usize| union.path().join(format!("f{index}"));
    let files: Vec<File> = (0..2 * LIMIT)
        .map(|index| {
            fs::write(at(index), format!("new {index}")).expect("the union can be written");
            File::open(at(index)).expect("any may be opened")
        })
        .collect();
    let mut kept = 0;
    for (index, file) in files.iter().enumerate() {
        match fs::remove_file(at(index)) {
            Ok(()) => assert!(!at(index).exists()),
            Err(error) => {
                assert_eq!(Errno::from_io_error(&error), Some(Errno::MFILE), "{error}");
                assert!(at(index).exists());
                kept += 1;
            }
        }
        let mut content = vec![0; 16];
        let len = file.read_at(&mut content, 0).expect("what is open can be read");
        assert_eq!(content[..len], *format!("new {index}").as_bytes());
    }
    drop(files);
    // What is not in use any more goes, once the kernel has said so.
    eventually("what is not in use can be removed", || {
        (0..2 * LIMIT).all(|index| fs::remove_file(at(index)).is_ok() || !at(index).exists())
    });
    println!("{kept} of {} kept their names", 2 * LIMIT);
    assert!(kept > 0, "there were descriptors enough, and nothing was tried");
    union.unmount().expect("the union can be unmounted");
    assert_eq!(layers.upper().names(""), [""; 0]);
}

/// What is passed through the kernel keeps open itself.
#[test]
fn a_client_that_never_closes_takes_no_descriptors_of_others() {
    let mode = Mode { io: Io::Passthrough, placement: Placement::OneFs };
    if !possible() {
        return;
    }
    if let Some(reason) = mode.obstacle() {
        skip!("{reason}");
    }
    let _watchdog = Watchdog::start();
    const FILES: usize = 4 * LIMIT;
    raise_to(FILES + 100);
    let layers = Layers::new(1, Placement::OneFs);
    for index in 0..FILES {
        layers.lower(0).file(name(index), format!("lower {index}"));
    }
    layers.lower(0).file("other/file", "other");
    let mut union = mount(&layers, Io::Passthrough);
    let before = descriptors(&union);
    let opened: Vec<_> = (0..FILES).map(|index| File::open(union.path().join(name(index)))).collect();
    for (index, opened) in opened.iter().enumerate() {
        let file = opened.as_ref().unwrap_or_else(|error| panic!("{index}: {error}"));
        let mut content = vec![0; 32];
        let len = file.read_at(&mut content, 0).expect("what is open can be read");
        assert_eq!(content[..len], *format!("lower {index}").as_bytes());
    }
    let now = descriptors(&union);
    assert!(now < FILES / 4, "the daemon has {now} descriptors for {FILES} open files");
    others_are_served(union.path());
    drop(opened);
    eventually("all descriptors are given back", || descriptors(&union) <= before + 48);
    assert_eq!(fs::read_to_string(union.path().join("other/file")).expect("it can be read"), "other");
    union.unmount().expect("the union can be unmounted");
}

fn others_are_served(at: &Path) {
    let listed = fs::read_dir(at.join("other")).expect("a directory can be listed").count();
    assert_eq!(listed, 1);
    assert_eq!(fs::metadata(at.join("other/file")).expect("it can be looked at").len(), 5);
    fs::create_dir(at.join("other/made")).expect("a directory can be made");
    fs::rename(at.join("other/made"), at.join("other/moved")).expect("a directory can be moved");
}

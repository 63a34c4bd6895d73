//! Power that is lost at any moment leaves the lower file or the whole copy in upper, on the file systems whose journal is
//! relied upon for it (`src/layer/durability.rs`), and on some that are synced.
//!
//! Files are copied up on a disk that records what it is told, while a thread syncs an unrelated file all the time, so that
//! the journal is written at every moment. Afterwards the disk is put into states that it may have been left in: all
//! that it was told to keep, and any blocks of what it was told since. In each of them the file system is mounted, which
//! recovers it, and no copy may have other data than the lower file.
//!
//! Environment: `UNIONFS_POWER_CUTS` (how often power is lost on each file system, 30), `UNIONFS_POWER_SEED` (of the moments
//! and what is lost; what the disk is told depends on time as well).

mod support;

mod power_cut {
    pub mod disk;
    pub mod states;
}

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use power_cut::disk::{Disk, Event};
use power_cut::states::{States, copy_image};
use support::{
    Io, Layers, Looped, LowersUnchanged, Mounted, Placement, Rng, Tmpfs, Tree, Watchdog, number, record_skip,
    require_root, run, strace_obstacle, test_name,
};

/// Around what is copied at once, a page, and what is written back in one piece. The largest has a hole.
const SIZES: [usize; 8] = [1, 4095, 4096, 5000, 70_000, 131_072, 300_000, 1_000_000];
const HOLE: std::ops::Range<usize> = 300_000..700_000;
const FILES: usize = 96;
/// How often power is lost on each file system.
const CUTS: u64 = 30;
/// Of the moments, and of what is lost.
const SEED: u64 = 1;
/// Files of this one of the sizes have a second name.
const LINKED: usize = 5;

/// A file system under test.
#[derive(Clone, Copy)]
struct Ground {
    /// The program that makes it, with its arguments.
    make: &'static [&'static str],
    kind: &'static str,
    /// The options that it is mounted with.
    options: &'static str,
    mebibytes: u64,
    /// How the union is mounted besides.
    args: &'static [&'static str],
    /// A system call that the daemon has not.
    lacks: Option<&'static str>,
    lower: Lower,
    /// Whether its journal is expected to be relied upon.
    keeps_order: bool,
}

/// Where the lower layer is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lower {
    /// On another file system than upper.
    Apart,
    /// On the same, which may share data between the two.
    Beside,
}

const EXT4: Ground = Ground {
    make: &["mkfs.ext4", "-q", "-F"],
    kind: "ext4",
    options: "rw",
    mebibytes: 96,
    args: &[],
    lacks: None,
    lower: Lower::Apart,
    keeps_order: true,
};
const XFS: Ground = Ground { make: &["mkfs.xfs", "-q", "-f"], kind: "xfs", mebibytes: 320, ..EXT4 };

fn text(path: &Path) -> &str {
    path.to_str().expect("the test directory has a plain name")
}

/// Returns the data of file `index`: no block of it is like another, and none is zeros, but for the hole.
fn content(index: usize) -> Vec<u8> {
    let size = SIZES[index % SIZES.len()];
    let mut rng = Rng::new(index as u64 + 1);
    let mut data: Vec<u8> = (0..size.div_ceil(8)).flat_map(|_| (rng.next() | 1).to_le_bytes()).take(size).collect();
    if let Some(hole) = data.get_mut(HOLE) {
        hole.fill(0);
    }
    data
}

/// Makes the files in `lower`.
fn fill(lower: &Tree) {
    for index in 0..FILES {
        let data = content(index);
        lower.file_mode(name(index), "", 0o644);
        let file = fs::File::options().write(true).open(lower.path(name(index))).expect("it was made a moment ago");
        let written = file.set_len(data.len() as u64).and_then(|()| {
            file.write_all_at(&data[..data.len().min(HOLE.start)], 0)?;
            file.write_all_at(data.get(HOLE.end..).unwrap_or_default(), HOLE.end as u64)
        });
        written.expect("the lower can be written");
        if index % SIZES.len() == LINKED {
            lower.link(name(index), format!("{}-link", name(index)));
        }
    }
}

fn name(index: usize) -> String {
    format!("d{}/f{index}", index % 6)
}

/// Copies every file up: by its mode alone, or by writing what is there already.
fn copy_all_up(union: &Path) {
    for index in 0..FILES {
        let path = union.join(name(index));
        if index % 3 < 2 {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        }
        if index % 3 > 0 {
            let file = fs::File::options().write(true).open(&path).expect("the file can be written");
            file.write_all_at(&content(index)[..1], 0).expect("write");
        }
    }
}

/// Says that it is over, also to those who wait for a thread that panics.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Has the journal written again and again until `done`, and nothing of the union with it.
fn sync_elsewhere(disk: &Path, done: &AtomicBool) {
    let mut file = fs::File::create(disk.join("unrelated")).expect("the disk has room");
    while !done.load(Ordering::Relaxed) {
        file.write_all(b"x").and_then(|()| file.sync_all()).expect("the disk takes it");
        std::thread::sleep(Duration::from_micros(300));
    }
}

/// Copies all files up on a disk like `ground` and returns what the disk was told until then, and how much of it before
/// that began; `image` is what was on it before the first event.
fn record(ground: Ground, layers: &Layers, image: &Path) -> (Vec<Event>, usize) {
    let now = image.with_extension("now");
    copy_image(image, &now);
    let at = layers.path("device");
    fs::create_dir(&at).expect("the test directory can be written");
    let disk = Disk::new(&now, &at);
    let looped = Looped::mount(ground.kind, ground.options, &disk.path(), &layers.path("disk"));
    let mut spec = layers.spec(Io::Cached).args(["--log-level", "info"]).args(ground.args.iter().copied());
    let (upper, work, lower) = (looped.at.join("upper"), looped.at.join("work"), looped.at.join("lower"));
    for dir in [&upper, &work, &lower] {
        fs::create_dir(dir).expect("a new disk has room");
    }
    (spec.upper, spec.work) = (Some(upper), Some(work));
    if ground.lower == Lower::Beside {
        fill(&Tree::at(&lower));
        run("sync", &["-f", text(&lower)]);
        spec.lowers = vec![lower];
    }
    let trace = layers.path("trace");
    if let Some(call) = ground.lacks {
        let (traced, inject) = (format!("trace={call}"), format!("inject={call}:error=ENOSYS"));
        let words = ["strace", "-f", "-qq", "-o", text(&trace), "-e", &traced, "-e", &inject, "--"];
        spec.wrapper = words.map(Into::into).to_vec();
    }
    let mut union = spec.mount_ours();
    let relied = union.log().contains("keeps data before names");
    assert_eq!(relied, ground.keeps_order, "{} with {:?}: {}", ground.kind, ground.args, union.log());
    let begin = disk.told();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _over = Over(&done);
        scope.spawn(|| sync_elsewhere(&looped.at, &done));
        copy_all_up(union.path());
        // The journal is written once more, with the last name in it.
        std::thread::sleep(Duration::from_millis(20));
    });
    let end = disk.told();
    union.unmount().expect("the union can be unmounted");
    if let Some(call) = ground.lacks {
        let trace = fs::read_to_string(&trace).expect("strace has written it");
        assert!(trace.contains("(INJECTED)"), "{call} was never called");
    }
    drop(looped);
    let events = disk.end(end);
    fs::remove_file(&now).expect("the image is there");
    (events, begin)
}

/// What upper was found to hold.
#[derive(Debug, Default)]
struct Found {
    /// Copies with all of their data.
    whole: usize,
    damaged: Vec<String>,
}

/// Looks at every copy in `upper`.
fn look(upper: &Path, found: &mut Found) {
    let tree = Tree::at(upper);
    for index in 0..FILES {
        let name = name(index);
        if !tree.exists(&name) {
            continue;
        }
        // Its data is below still.
        if tree.get_overlay_xattr(&name, "metacopy").is_some() {
            continue;
        }
        let (data, mode) = (tree.read(&name), tree.mode(&name));
        let expected = content(index);
        if data == expected && matches!(mode, 0o600 | 0o644) {
            found.whole += 1;
        } else {
            let same = data.iter().zip(&expected).take_while(|(a, b)| a == b).count();
            found.damaged.push(format!(
                "{name}: {} of {} bytes, {same} as they were, mode {mode:o}",
                data.len(),
                expected.len()
            ));
        }
    }
}

/// Loses power again and again, and returns what was found.
fn lose_power(ground: Ground) -> Found {
    let cuts = number("UNIONFS_POWER_CUTS", CUTS);
    let _watchdog = Watchdog::with(Duration::from_secs(120 + 2 * cuts));
    let layers = Layers::new(1, Placement::OneFs);
    fill(&layers.lower(0));
    let lowers = LowersUnchanged::new(layers.lowers());
    let memory = layers.path("memory");
    let _memory = Tmpfs::mount(&memory, "mode=700").expect("a tmpfs can be mounted");
    let image = memory.join("image");
    Looped::make(ground.make, ground.mebibytes, &image);
    let (events, begin) = record(ground, &layers, &image);
    lowers.check();
    let mut rng = Rng::new(number("UNIONFS_POWER_SEED", SEED));
    let mut moments: Vec<usize> = (0..cuts).map(|_| begin + rng.below(events.len() - begin) + 1).collect();
    moments.sort_unstable();
    let mut states = States::new(image, &events);
    let (state, at) = (memory.join("state"), layers.path("recovered"));
    let mut found = Found::default();
    for moment in moments {
        states.write(moment, &mut rng, &state);
        let recovered = Looped::mount(ground.kind, ground.options, &state, &at);
        let before = found.damaged.len();
        look(&recovered.at.join("upper"), &mut found);
        for damaged in &mut found.damaged[before..] {
            damaged.push_str(&format!(", after {moment} of {} events", events.len()));
        }
    }
    let flushes = events[begin..].iter().filter(|event| matches!(event, Event::Flush)).count();
    // Names and data come to the disk at different moments, or nothing would be found out.
    assert!(flushes > FILES / 4, "the disk was told to keep what it has {flushes} times");
    found
}

/// Says what is missing here for a test on `ground`, if anything is.
fn obstacle(ground: Ground) -> Option<String> {
    Looped::obstacle(ground.kind).or_else(|| ground.lacks.and_then(|_| strace_obstacle()))
}

/// Returns those of `grounds` that can be had here; the others are reported as skipped.
fn possible(grounds: impl IntoIterator<Item = Ground>) -> impl Iterator<Item = Ground> {
    let root = require_root("loop mounts");
    grounds.into_iter().filter(move |_| root).filter(|&ground| {
        let obstacle = obstacle(ground);
        if let Some(reason) = &obstacle {
            record_skip(&format!("{} on {}", test_name(), ground.kind), reason);
        }
        obstacle.is_none()
    })
}

/// Power that is lost on any of `grounds` damages nothing.
fn nothing_is_damaged(grounds: impl IntoIterator<Item = Ground>) {
    for ground in possible(grounds) {
        let found = lose_power(ground);
        let Found { whole, damaged } = &found;
        let seed = number("UNIONFS_POWER_SEED", SEED);
        assert!(
            damaged.is_empty(),
            "{:?} -o {} {:?}, seed {seed}: {damaged:#?}",
            ground.make,
            ground.options,
            ground.args
        );
        // On the average half of all copies are there.
        assert!(*whole as u64 > number("UNIONFS_POWER_CUTS", CUTS), "no more than {whole} copies were seen");
    }
}

#[test]
fn power_cut_on_ext4_leaves_whole_copies() {
    nothing_is_damaged([EXT4]);
}

#[test]
fn power_cut_on_xfs_leaves_whole_copies() {
    nothing_is_damaged([XFS]);
}

#[test]
fn power_cut_leaves_whole_copies_of_files_beside_them() {
    nothing_is_damaged([EXT4, XFS].map(|ground| Ground { lower: Lower::Beside, ..ground }));
}

#[test]
fn power_cut_on_other_kinds_of_ext4_leaves_whole_copies() {
    let made: [&'static [&'static str]; 3] = [
        &["mkfs.ext4", "-q", "-F", "-O", "inline_data"],
        &["mkfs.ext4", "-q", "-F", "-O", "bigalloc"],
        &["mkfs.ext4", "-q", "-F", "-O", "^extent,^64bit,^metadata_csum"],
    ];
    let made = made.map(|make| Ground { make, ..EXT4 });
    let options = ["nodelalloc", "dioread_lock", "noauto_da_alloc"].map(|options| Ground { options, ..EXT4 });
    let synced = ["data=journal", "data=writeback"].map(|options| Ground { options, keeps_order: false, ..EXT4 });
    nothing_is_damaged(made.into_iter().chain(options).chain(synced));
}

#[test]
fn power_cut_leaves_whole_copies_where_data_comes_late_and_where_it_is_synced() {
    let metacopy = |ground: Ground| Ground { args: &["--metacopy", "on"], ..ground };
    let strict = Ground { args: &["--fsync", "strict"], keeps_order: false, ..EXT4 };
    let lacking = Ground { lacks: Some("sync_file_range"), ..EXT4 };
    nothing_is_damaged([metacopy(EXT4), metacopy(XFS), strict, lacking]);
}

#[test]
fn power_cut_damages_what_is_not_waited_for() {
    for ground in possible([EXT4, XFS]) {
        let found = lose_power(Ground { args: &["--fsync", "volatile"], keeps_order: false, ..ground });
        assert!(!found.damaged.is_empty(), "{}: this test would not find damage", ground.kind);
    }
}

//! The file system of upper goes down at random moments of a load: what was synced is there, and what has a name is whole.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use super::ground::{EXT4, Ground, Kind, XFS};
use crate::support::{LowersUnchanged, Mounted, Rng, Watchdog, number, run};

/// Lower files, of which each is changed at most once.
const LOWER: usize = 400;

fn lower_content(index: usize) -> String {
    format!("lower {index} ").repeat(300)
}

fn new_content(index: usize) -> String {
    format!("new {index} ").repeat(100 + index % 2000)
}

/// What must be there, by path: the contents, or that it is gone.
type Promised = Mutex<BTreeMap<String, Option<String>>>;

/// Changes the union until that fails, and notes what was synced.
///
/// ext4 and xfs may answer success to an fsync that runs just when they are taken down, and lose what it was for: without a
/// union too, in 9 and in 1 of 150 rounds of such a load. So it counts where the file system was there afterwards, which
/// changing `probe`, a file of its own, tells.
fn load(union: &Path, probe: &Path, promised: &Promised) -> io::Result<()> {
    let sync_dir = |dir: &str| fs::File::open(union.join(dir))?.sync_all();
    let promise = |path: String, content: Option<String>| {
        fs::write(probe, "")?;
        promised.lock().expect("nobody panics").insert(path, content);
        io::Result::Ok(())
    };
    for index in 0.. {
        // A new file.
        let (name, content) = (format!("new-{index}"), new_content(index));
        let mut file = fs::File::create_new(union.join(&name))?;
        file.write_all(content.as_bytes())?;
        if index % 3 > 0 {
            file.sync_all()?;
            promise(name.clone(), Some(content.clone()))?;
        }
        // One that replaces another, as editors do.
        let (temporary, target) = (format!("temporary-{index}"), format!("saved-{}", index % 7));
        let mut file = fs::File::create_new(union.join(&temporary))?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        // From here on it is one or the other.
        promised.lock().expect("nobody panics").remove(&target);
        fs::rename(union.join(&temporary), union.join(&target))?;
        sync_dir("")?;
        promise(target, Some(content.clone()))?;
        // A lower file that is changed, and one that is removed.
        if index < LOWER / 2 {
            let (changed, removed) = (format!("d/lower-{index}"), format!("d/lower-{}", LOWER - 1 - index));
            let mut file = fs::File::options().append(true).open(union.join(&changed))?;
            file.write_all(b"and more")?;
            file.sync_all()?;
            fs::remove_file(union.join(&removed))?;
            sync_dir("d")?;
            promise(changed, Some(lower_content(index) + "and more"))?;
            promise(removed, None)?;
        }
    }
    Ok(())
}

/// Checks what `union` shows after that.
///
/// When an ext4 goes down with its journal written between a write at the end of a file and its fsync, the file may have its new
/// length, and zeros for what was written: without a union too, in 7 of 30 rounds of a load that waits 4 ms in between.
fn check(union: &Path, promised: &BTreeMap<String, Option<String>>, kind: Kind, when: &str) {
    for (path, content) in promised {
        let found = fs::read_to_string(union.join(path));
        match content {
            Some(content) => {
                let found = found.unwrap_or_else(|error| panic!("{when}: {path} was synced, and now: {error}"));
                assert!(
                    &found == content,
                    "{when}: {path} was synced, and has {} bytes of {}",
                    found.len(),
                    content.len()
                );
            }
            None => {
                let error = found.expect_err(&format!("{when}: the removal of {path} was synced, and it is there"));
                assert_eq!(error.kind(), io::ErrorKind::NotFound, "{when}: {path}");
            }
        }
    }
    for index in 0..LOWER {
        let path = format!("d/lower-{index}");
        if let Ok(found) = fs::read_to_string(union.join(&path)) {
            let (old, new) = (lower_content(index), lower_content(index) + "and more");
            let unsynced = lower_content(index) + &"\0".repeat("and more".len());
            let tail = found.strip_prefix(&old).unwrap_or_default();
            assert!(
                found == old || found == new || kind.name == EXT4.name && found == unsynced,
                "{when}: {path} is neither the old one nor the new one: {} bytes of {}, {tail:?} after the old ones",
                found.len(),
                new.len()
            );
        } else {
            assert!(index >= LOWER / 2, "{when}: {path} was never removed, and cannot be read");
        }
    }
}

fn what_was_synced_is_there(kind: Kind) {
    let rounds = number("UNIONFS_SHUTDOWNS", 3);
    let _watchdog = Watchdog::with(Duration::from_secs(120 + 10 * rounds));
    let mut rng = Rng::new(7);
    let mut promises = 0;
    for round in 0..rounds {
        let Some(mut ground) = Ground::new(kind) else { return };
        for index in 0..LOWER {
            ground.layers.lower(0).file(format!("d/lower-{index}"), lower_content(index));
        }
        let lowers = LowersUnchanged::new(ground.layers.lowers());
        let mut union = ground.spec().mount_ours();
        let (promised, probe) = (Promised::default(), ground.path("probe"));
        let delay = Duration::from_millis(20 + rng.below(400) as u64);
        // With the journal as it is on the disk, and in every other round with what it was about to write.
        let down = if round % 2 == 0 { "shutdown" } else { "shutdown -f" };
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| load(union.path(), &probe, &promised));
            std::thread::sleep(delay);
            run("xfs_io", &["-x", "-c", down, ground.path("").to_str().expect("a plain name")]);
            let ended = worker.join().expect("the load does not panic");
            assert!(ended.is_err(), "the load went on without its disk");
        });
        union.unmount().expect("a union without its disk can be unmounted");
        ground.mount_again();
        let when = format!("{} after {delay:?}, {down}", kind.name);
        let promised = promised.into_inner().expect("nobody panics");
        promises += promised.len();
        let mut union = ground.spec().mount_ours();
        check(union.path(), &promised, kind, &when);
        fs::write(union.path().join("d/after"), "after").expect("the next union can be written");
        union.unmount().expect("the next union can be unmounted");
        assert_eq!(ground.unfinished(), [""; 0], "{when}");
        lowers.check();
    }
    println!("{}: went down {rounds} times, {promises} files were promised", kind.name);
    assert!(promises as u64 > rounds, "only {promises} files were synced in {rounds} rounds");
}

#[test]
fn what_was_synced_is_there_after_an_ext4_went_down() {
    what_was_synced_is_there(EXT4);
}

#[test]
fn what_was_synced_is_there_after_an_xfs_went_down() {
    what_was_synced_is_there(XFS);
}

//! Directories that are listed while they are still being read.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

use unionfs_rs::config::{UnionConfig, XattrNamespace};
use unionfs_rs::union::{Caller, Entry, Flow, Looked, Name, New, NodeId, ReadAhead, Union};

use crate::support::{Layers, Placement, Watchdog};

/// More than are read at once.
const FILES: usize = 10_000;

fn union(layers: &Layers) -> Union {
    let builder = Union::builder().lowers(layers.lowers()).upper(layers.upper().root()).work(layers.work().root());
    builder.build().expect("the layers are good")
}

fn large(layers: &Layers) {
    let tree = layers.lower(0);
    tree.dir("large");
    for i in 0..FILES {
        tree.file(format!("large/f{i}"), "");
    }
}

fn look_up(union: &Union, parent: NodeId, name: &str) -> Option<Entry> {
    union.lookup(parent, Name::new(name.as_ref()).expect("it is a name")).ok()
}

/// A reader of a directory.
#[derive(Default)]
struct Reader {
    cookie: u64,
    /// Each name with its number.
    seen: BTreeMap<OsString, u64>,
    ahead: Option<ReadAhead>,
}

impl Reader {
    /// Reads on, at most `entries`; returns whether there were any.
    fn read(&mut self, union: &Union, dir: NodeId, entries: usize) -> bool {
        let mut taken = 0;
        let ahead = union.read_dir(dir, self.cookie, |entry| {
            if taken == entries {
                return Flow::Full;
            }
            taken += 1;
            self.cookie = entry.cookie;
            let before = self.seen.insert(entry.name.to_owned(), entry.ino);
            assert_eq!(before, None, "{:?} is told of twice", entry.name);
            Flow::More
        });
        self.ahead = self.ahead.take().or(ahead.expect("it can be read"));
        taken > 0
    }

    fn read_all(&mut self, union: &Union, dir: NodeId, entries: usize) {
        while self.read(union, dir, entries) {}
    }
}

#[test]
fn each_entry_is_told_of_once_whoever_reads_ahead() {
    let _watchdog = Watchdog::start();
    let layers = Layers::new(1, Placement::OneFs);
    large(&layers);
    let union = union(&layers);
    let dir = look_up(&union, NodeId::ROOT, "large").expect("it is there").id;
    let mut first = Reader::default();
    assert!(first.read(&union, dir, 10));
    let ahead = first.ahead.take().expect("there is more to be read");
    let mut second = Reader::default();
    assert!(second.read(&union, dir, 10) && second.ahead.is_none(), "one reads ahead");
    std::thread::scope(|scope| {
        scope.spawn(|| ahead.run(|| true));
        scope.spawn(|| first.read_all(&union, dir, 77));
        second.read_all(&union, dir, 1000);
    });
    assert_eq!(first.seen.len(), FILES + 2);
    assert_eq!(first.seen, second.seen);
    for i in (0..FILES).step_by(501) {
        let name = format!("f{i}");
        let entry = look_up(&union, dir, &name).expect("it is there");
        assert_eq!(first.seen[&OsString::from(name)], entry.attr.ino);
    }
    // The layer is not asked for a name that was not listed: it would have it by now.
    layers.lower(0).file("large/late", "");
    assert!(look_up(&union, dir, "late").is_none());
}

#[test]
fn who_has_begun_goes_on_after_the_directory_has_changed_and_its_listing_is_gone() {
    let _watchdog = Watchdog::start();
    let layers = Layers::new(1, Placement::OneFs);
    large(&layers);
    // One more than listings are kept of.
    for i in 0..4096 {
        layers.lower(0).dir(format!("others/d{i}"));
    }
    let union = union(&layers);
    let dir = look_up(&union, NodeId::ROOT, "large").expect("it is there").id;
    let mut early = Reader::default();
    assert!(early.read(&union, dir, FILES / 2));
    let gone = OsString::from("f7");
    let name = |name: &'static str| Name::new(name.as_ref()).expect("it is a name");
    union.unlink(dir, name("f7")).expect("a whiteout can be made");
    union.create(dir, name("new"), New::Regular, 0o644, 0, Caller::current()).expect("it can be made");
    let others = look_up(&union, NodeId::ROOT, "others").expect("it is there").id;
    for i in 0..4096 {
        let other = look_up(&union, others, &format!("d{i}")).expect("it is there").id;
        Reader::default().read_all(&union, other, 10);
    }
    early.read_all(&union, dir, 100);
    for i in (0..FILES).map(|i| OsString::from(format!("f{i}"))).filter(|name| *name != gone) {
        assert!(early.seen.contains_key(&i), "{i:?} is missing");
    }
    let mut late = Reader::default();
    late.read_all(&union, dir, 100);
    assert_eq!(late.seen.len(), FILES + 2);
    assert!(late.seen.contains_key(&OsString::from("new")) && !late.seen.contains_key(&gone));
}

/// Lists `dir` a few entries at a time, and calls `meanwhile` after the first of them. Returns the sizes of all files.
fn sizes(union: &Union, dir: NodeId, meanwhile: impl FnOnce()) -> BTreeMap<OsString, u64> {
    let (mut cookie, mut sizes, mut meanwhile) = (0, BTreeMap::new(), Some(meanwhile));
    loop {
        let mut looked_up = Vec::new();
        let listed = union.read_dir_plus(dir, cookie, |entry, looked| {
            if looked_up.len() == 2 {
                return Flow::Full;
            }
            cookie = entry.cookie;
            if let Looked::Up(found) = looked {
                looked_up.push(found.id);
                sizes.insert(entry.name.to_owned(), found.attr.size);
            }
            Flow::More
        });
        listed.expect("it can be listed");
        looked_up.iter().for_each(|&id| union.forget(id, 1));
        if looked_up.is_empty() {
            return sizes;
        }
        if let Some(meanwhile) = meanwhile.take() {
            meanwhile();
        }
    }
}

#[test]
fn what_was_prefetched_is_used_soon_and_once() {
    let _watchdog = Watchdog::start();
    let layers = Layers::new(1, Placement::OneFs);
    let tree = layers.lower(0);
    tree.file("dir/a", "").file("dir/b", "").dir("dir/c");
    let union = union(&layers);
    let dir = look_up(&union, NodeId::ROOT, "dir").expect("it is there").id;
    let size_after = |wait: Duration| {
        tree.file("dir/a", "");
        union.prefetch(dir, || true).expect("it can be read");
        // Against all advice: so it is seen who was asked.
        tree.file("dir/a", "changed");
        std::thread::sleep(wait);
        sizes(&union, dir, || ())[&OsString::from("a")]
    };
    // A machine may take longer than what was prefetched lives.
    assert!((0..20).any(|_| size_after(Duration::ZERO) == 0), "what was prefetched is not used");
    assert_eq!(sizes(&union, dir, || ())[&OsString::from("a")], 7, "it was used before");
    assert_eq!(size_after(Duration::from_millis(150)), 7, "it is too old");
}

#[test]
fn what_was_prefetched_is_not_used_of_what_has_changed() {
    let _watchdog = Watchdog::start();
    let layers = Layers::new(1, Placement::OneFs);
    for i in 0..4 {
        layers.lower(0).file(format!("dir/f{i}"), "");
    }
    let union = union(&layers);
    let dir = look_up(&union, NodeId::ROOT, "dir").expect("it is there").id;
    union.prefetch(dir, || true).expect("it can be read");
    // Whoever has begun goes on in the lower directory.
    let sizes = sizes(&union, dir, || {
        for i in 0..4 {
            let file = look_up(&union, dir, &format!("f{i}")).expect("it is there").id;
            union.write(file, 0, b"written", None).expect("it can be written");
            union.forget(file, 1);
        }
    });
    assert_eq!(sizes.len(), 4);
    assert_eq!(
        sizes.values().filter(|&&size| size == 0).count(),
        2,
        "{sizes:?}: all but the first two were written before"
    );
}

#[test]
fn what_was_prefetched_hides_what_the_layers_hide() {
    let _watchdog = Watchdog::start();
    let layers = Layers::new(1, Placement::OneFs);
    layers.lower(0).file("dir/shown", "12345").file("dir/hidden", "").file("dir/.wh.other", "");
    let mark = layers.lower(0).root().join("dir");
    let Ok(()) = rustix::fs::setxattr(&mark, "user.overlay.opaque", b"x", rustix::fs::XattrFlags::empty()) else {
        panic!("the file system of the tests has user xattrs");
    };
    rustix::fs::setxattr(mark.join("hidden"), "user.overlay.whiteout", b"", rustix::fs::XattrFlags::empty())
        .expect("a mark can be set");
    let lowers = layers.lowers().iter().map(Into::into).collect();
    let config = UnionConfig { lowers, xattr_namespace: XattrNamespace::User, ..UnionConfig::default() };
    let union = Union::from_config(&config).expect("the layers are good");
    let dir = look_up(&union, NodeId::ROOT, "dir").expect("it is there").id;
    union.prefetch(dir, || true).expect("it can be read");
    assert_eq!(sizes(&union, dir, || ()), BTreeMap::from([(OsString::from("shown"), 5)]));
}

#[test]
fn what_was_prefetched_of_several_layers_is_not_used_of_what_has_changed() {
    let _watchdog = Watchdog::start();
    let layers = Layers::new(2, Placement::OneFs);
    layers.lower(0).file("dir/both", "top").file("dir/.wh.hidden", "");
    layers.lower(1).file("dir/both", "").file("dir/hidden", "").file("dir/below", "1");
    let union = union(&layers);
    let dir = look_up(&union, NodeId::ROOT, "dir").expect("it is there").id;
    let shown = |sizes: BTreeMap<OsString, u64>| -> Vec<_> {
        sizes.into_iter().map(|(name, size)| (name.into_string().expect("it is ASCII"), size)).collect()
    };
    let named =
        |entries: &[(&str, u64)]| -> Vec<_> { entries.iter().map(|&(name, size)| (name.into(), size)).collect() };
    union.prefetch(dir, || true).expect("it can be read");
    assert_eq!(shown(sizes(&union, dir, || ())), named(&[("below", 1), ("both", 3)]));
    union.prefetch(dir, || true).expect("it can be read");
    let name = |name: &'static str| Name::new(name.as_ref()).expect("it is a name");
    union.unlink(dir, name("below")).expect("a whiteout can be made");
    union.create(dir, name("new"), New::Regular, 0o644, 0, Caller::current()).expect("it can be made");
    assert_eq!(shown(sizes(&union, dir, || ())), named(&[("both", 3), ("new", 0)]));
}

//! A run: the same steps on two mounts over the same lowers, compared as it goes.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::support::{Atime, Io, Layers, LowersUnchanged, Placement, Spec};

use super::actor::Who;
use super::departures::{Then, explain, without_mtime};
use super::generate::Step;
use super::model::Model;
use super::op::{At, Follow, Op, Time};
use super::plan::{Layer, build};
use super::readers::{Readers, contents, has_copy, only_reads};
use super::side::{Side, spec};
use super::tree::{Holes, Renumbered, Tree, differences, faults, renumbered};
use crate::support::Rng;

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The kernel's overlayfs.
    Kernel,
    /// Our binary.
    Ours(Io),
    /// The fuse-overlayfs of the distribution, to show that a run finds differences.
    FuseOverlayfs,
}

/// Whether both mounts copy up metadata alone where that is enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metacopy {
    On,
    Off,
}

/// All that decides a run but its steps.
#[derive(Clone, Debug)]
pub struct Case {
    pub layers: Vec<Layer>,
    /// What the kernel's overlayfs does to the topmost layer, over the others, before it is a lower
    /// as well: layers are what unions leave.
    pub prelude: Vec<Step>,
    pub placement: Placement,
    pub holes: Holes,
    pub metacopy: Metacopy,
    pub subjects: [Subject; 2],
}

/// Where the steps come from.
pub enum Source<'a> {
    Random(Rng, usize),
    Script(&'a [Step]),
}

/// The first thing that was not the same, or not right.
#[derive(Debug)]
pub struct Failure {
    /// The step; none where it was found before the first or after the last.
    pub at: Option<usize>,
    pub what: String,
}

/// What a run did, as far as it came.
pub struct Played {
    pub steps: Vec<Step>,
    /// What the first side said to each step.
    pub answers: Vec<String>,
    pub failure: Option<Failure>,
}

/// Runs the steps of `source`, and compares: the results of each operation; the trees at every
/// [`Step::Look`] and at the end; the trees with themselves after a remount and after each side has
/// mounted the other's upper; and the lowers with what they were.
pub fn play(case: &Case, source: Source<'_>) -> Played {
    let layers = Layers::new(case.layers.len(), case.placement);
    for (dir, layer) in layers.lowers().iter().zip(&case.layers) {
        build(dir, layer);
    }
    if !case.prelude.is_empty() {
        let source = Source::Script(&case.prelude);
        prelude(case, &layers, source).expect("the kernel's overlayfs can be mounted");
    }
    let lowers = LowersUnchanged::with(layers.lowers(), Atime::Ignore);
    let mut played = Played { steps: Vec::new(), answers: Vec::new(), failure: None };
    let mut at = None;
    let result = Pair::start(case, &layers)
        .and_then(|mut pair| {
            pair.follow(source, &mut played, &mut at)?;
            at = None;
            pair.finish()
        })
        .and_then(|()| {
            catch_unwind(AssertUnwindSafe(|| lowers.check())).map_err(|panic| {
                let text = panic.downcast_ref::<String>().map_or("the lowers changed", |s| s);
                text.to_owned()
            })
        });
    played.failure = result.err().map(|what| Failure { at, what });
    played
}

/// Makes `count` steps of a prelude for `case`.
pub fn draw_prelude(case: &Case, rng: Rng, count: usize) -> Vec<Step> {
    let layers = Layers::new(case.layers.len(), case.placement);
    for (dir, layer) in layers.lowers().iter().zip(&case.layers) {
        build(dir, layer);
    }
    let source = Source::Random(rng, count);
    prelude(case, &layers, source).expect("the kernel's overlayfs can be mounted")
}

/// Does the steps of `source` on a kernel overlay whose upper is the topmost of `layers`.
fn prelude(case: &Case, layers: &Layers, source: Source<'_>) -> Result<Vec<Step>, String> {
    let (upper, lowers) = layers.lowers().split_first().expect("there are layers");
    // Beside the upper, which may have a file system of its own.
    let work = upper.with_extension("work");
    let at = layers.path("mnt-prelude");
    for dir in [&work, &at] {
        std::fs::create_dir(dir).map_err(|e| format!("mkdir {}: {e}", dir.display()))?;
    }
    let mut spec = spec(case, layers, &Subject::Kernel, upper, &work, &at);
    spec.lowers = lowers.to_vec();
    let specs = [spec.clone(), spec];
    let mut side = Side::new(Subject::Kernel, specs);
    side.mount(0)?;
    let mut model = Model::new(&side.tree(Holes::Ignore)?, case.holes, case.metacopy);
    let mut steps = Vec::new();
    let (mut rng, script, count) = source.parts();
    for index in 0..count {
        let step = script.get(index).cloned().unwrap_or_else(|| model.next(&mut rng));
        if let Step::Do(_, op) = &step {
            if side.act(&step)?.starts_with('E') {
                model.failed(op);
            } else {
                model.did(op);
            }
            steps.push(step);
        }
    }
    side.unmount()?;
    Ok(steps)
}

impl<'a> Source<'a> {
    fn parts(self) -> (Rng, &'a [Step], usize) {
        match self {
            Self::Random(rng, count) => (rng, &[], count),
            Self::Script(script) => (Rng::new(0), script, script.len()),
        }
    }
}

struct Pair {
    sides: [Side; 2],
    /// Whether each side has the other's upper.
    swapped: bool,
    placement: Placement,
    holes: Holes,
    metacopy: Metacopy,
    lower_inos: BTreeSet<u64>,
    /// Who reads a lower file on the side that is ours with passthrough.
    readers: Readers,
}

impl Pair {
    fn start(case: &Case, layers: &Layers) -> Result<Self, String> {
        let uppers = ["upper-0", "upper-1"].map(|name| layers.path(name));
        let works = ["work-0", "work-1"].map(|name| layers.path(name));
        let mounts = ["mnt-0", "mnt-1"].map(|name| layers.path(name));
        for dir in uppers.iter().chain(&works).chain(&mounts) {
            std::fs::create_dir(dir).map_err(|e| format!("mkdir {}: {e}", dir.display()))?;
        }
        for upper in &uppers {
            // The upper's root is the root of the tree; both sides start with the same.
            build_root(upper);
        }
        let side = |index: usize| {
            let subject = case.subjects[index].clone();
            let specs = [0, 1].map(|upper| spec(case, layers, &subject, &uppers[upper], &works[upper], &mounts[index]));
            Side::new(subject, specs)
        };
        let mut pair = Self {
            sides: [side(0), side(1)],
            swapped: false,
            placement: case.placement,
            holes: case.holes,
            metacopy: case.metacopy,
            lower_inos: lower_inos(layers),
            readers: Readers::default(),
        };
        pair.mount()?;
        Ok(pair)
    }

    fn mount(&mut self) -> Result<(), String> {
        let swapped = usize::from(self.swapped);
        self.sides[0].mount(swapped)?;
        self.sides[1].mount(1 - swapped)
    }

    fn unmount(&mut self) -> Result<(), String> {
        self.sides[0].unmount()?;
        self.sides[1].unmount()
    }

    fn trees(&mut self) -> Result<[Tree; 2], String> {
        let mut trees = [self.sides[0].tree(self.holes)?, self.sides[1].tree(self.holes)?];
        if self.metacopy == Metacopy::On {
            for entry in trees.iter_mut().flat_map(Tree::values_mut) {
                entry.facts = without_mtime(&entry.facts);
            }
        }
        Ok(trees)
    }

    /// Compares the trees of both sides and returns them.
    fn look(&mut self, when: &str) -> Result<[Tree; 2], String> {
        let trees = self.trees()?;
        let names = [&self.sides[0].subject, &self.sides[1].subject];
        let mut found = differences(&trees[0], &trees[1]);
        if self.placement == Placement::OneFs {
            // What a lower has keeps the lower's number on one file system, so that the number is
            // the same under both; what is new has a new one, and which is chance.
            let lowers = |number: &Renumbered<'_>| {
                let known = |ino| self.lower_inos.contains(&ino);
                known(number.one) || known(number.two)
            };
            let numbers = renumbered(&trees[0], &trees[1]).into_iter();
            let wrong = numbers.filter(|number| lowers(number) && !number.is_root());
            found.extend(wrong.take(5).map(|number| format!("st_ino of a lower: {number}")));
        }
        for (side, tree) in self.sides.iter().zip(&trees) {
            // The kernel's own only explain what else was found.
            if matches!(side.subject, Subject::Ours(_)) || !found.is_empty() {
                let of = |fault| format!("{:?} at {fault}", side.subject);
                found.extend(faults(tree).into_iter().map(of));
            }
        }
        if found.is_empty() {
            return Ok(trees);
        }
        Err(format!("{when}: the trees differ; first is {:?}, second {:?}\n{}", names[0], names[1], found.join("\n")))
    }

    /// Unmounts, mounts again (each side with the other's upper where asked) and compares each tree
    /// with what it was.
    fn remount(&mut self, swap: Swap) -> Result<[Tree; 2], String> {
        let [first, second] = self.trees()?;
        self.unmount()?;
        self.readers = Readers::default();
        let (when, before, numbers) = match swap {
            Swap::No => ("after a remount", [first, second], true),
            Swap::Yes => {
                self.swapped = !self.swapped;
                // Numbers of two file systems are composed in a way that each keeps to itself.
                let numbers = self.placement == Placement::OneFs;
                ("after the other side has mounted the upper", [second, first], numbers)
            }
        };
        self.mount()?;
        let after = self.look(when)?;
        for (index, before) in before.iter().enumerate() {
            let mut found = differences(before, &after[index]);
            if numbers && found.is_empty() {
                let numbers = renumbered(before, &after[index]).into_iter();
                let wrong = numbers.filter(|number| matches!(swap, Swap::No) || !number.is_root());
                found.extend(wrong.take(5).map(|number| format!("st_ino: {number}")));
            }
            if !found.is_empty() {
                let subject = &self.sides[index].subject;
                return Err(format!(
                    "{when}: the tree that {subject:?} shows is not what it was; first is before, second after\n{}",
                    found.join("\n")
                ));
            }
        }
        Ok(after)
    }

    /// Returns which side is ours with passthrough.
    fn passed_through(&self) -> Option<usize> {
        self.sides.iter().position(|side| matches!(side.subject, Subject::Ours(Io::Passthrough)))
    }

    /// Notes what a descriptor reads that `op` has just opened on both sides, where ours has a lower file open.
    fn note_reader(&mut self, op: &Op) -> Result<(), String> {
        let (Some(ours), &Op::Open { slot, flags, .. }) = (self.passed_through(), op) else { return Ok(()) };
        self.readers.set(slot, None);
        if !only_reads(flags) {
            return Ok(());
        }
        let ino = self.sides[ours].look_at(slot, |file| rustix::fs::fstat(file).map_or(0, |stat| stat.st_ino))?;
        let is_lower = |ino: &u64| self.lower_inos.contains(ino);
        let upper = if ours == 0 { self.swapped } else { !self.swapped };
        let Spec { upper: Some(upper), work: Some(work), .. } = &self.sides[ours].specs[usize::from(upper)] else {
            unreachable!("each side has an upper")
        };
        if let Some(ino) = ino.filter(is_lower)
            && !has_copy(upper, work, ino)
        {
            // What the other side reads, since both must read the same now.
            let read = self.sides[1 - ours].look_at(slot, contents)?;
            self.readers.set(slot, read.flatten());
        }
        Ok(())
    }

    fn follow(&mut self, source: Source<'_>, played: &mut Played, at: &mut Option<usize>) -> Result<(), String> {
        let [tree, _] = self.look("at the start")?;
        let mut model = Model::new(&tree, self.holes, self.metacopy);
        let (mut rng, script, count) = source.parts();
        let passed_through = self.passed_through().is_some();
        for index in 0..count {
            let drawn = script.get(index).cloned().unwrap_or_else(|| model.next(&mut rng));
            let step = if passed_through { drawn.without_set_id() } else { drawn };
            *at = Some(index);
            played.steps.push(step.clone());
            let answer = self.step(&step, &mut model)?;
            played.answers.push(answer);
        }
        Ok(())
    }

    fn step(&mut self, step: &Step, model: &mut Model) -> Result<String, String> {
        match step {
            Step::Do(_, op) => {
                let answers = [self.sides[0].act(step)?, self.sides[1].act(step)?];
                let departure = self.compare(op, &answers)?;
                self.forget_failed_rename(op, &answers)?;
                self.note_reader(op)?;
                if answers[0].starts_with('E') {
                    model.failed(op);
                } else {
                    model.did(op);
                }
                let [answer, other] = answers;
                return Ok(match departure {
                    None => answer,
                    Some(why) => format!("{answer} (and {}: {why})", shown(&other)),
                });
            }
            Step::Look => {
                let [tree, _] = self.look("in the middle")?;
                model.learn(&tree);
            }
            Step::Remount | Step::Swap => {
                let swap = if matches!(step, Step::Swap) { Swap::Yes } else { Swap::No };
                let [tree, _] = self.remount(swap)?;
                model.learn(&tree);
                model.closed();
            }
            Step::Forget => std::fs::write("/proc/sys/vm/drop_caches", "2")
                .map_err(|error| format!("/proc/sys/vm/drop_caches: {error}"))?,
        }
        Ok(String::new())
    }

    /// Gives the parents of a rename that said ENOTEMPTY (or EEXIST, as xfs does) the same times on both sides. The kernel has then
    /// touched them already, and ours has not: what failed leaves nothing behind.
    fn forget_failed_rename(&mut self, op: &Op, answers: &[String; 2]) -> Result<(), String> {
        let Op::Rename { from, to, .. } = op else { return Ok(()) };
        if !matches!(&*answers[0], "ENOTEMPTY" | "EEXIST") || answers[1] != "ENOTEMPTY" {
            return Ok(());
        }
        for At(slot, path) in [from, to] {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let at = At(*slot, parent.unwrap_or(Path::new(".")).to_owned());
            let (atime, mtime) = (Time::Omit, Time::Set(1_222_222_222, 0));
            let touch = Step::Do(Who::Root, Op::Utimens { at, atime, mtime, follow: Follow::Yes });
            for side in &mut self.sides {
                side.act(&touch)?;
            }
        }
        Ok(())
    }

    /// Returns why two different answers are accepted; none where they are the same.
    fn compare(&mut self, op: &Op, answers: &[String; 2]) -> Result<Option<&'static str>, String> {
        if answers[0] == answers[1] {
            return Ok(None);
        }
        if self.metacopy == Metacopy::On && without_mtime(&answers[0]) == without_mtime(&answers[1]) {
            return Ok(Some("metacopy"));
        }
        if let Some(ours) = self.passed_through()
            && self.readers.explain(op, &answers[ours])
        {
            return Ok(Some("a lower file that was opened before its copy-up"));
        }
        if let Some(departure) = explain(op, &answers[0], &answers[1]) {
            if let (Then::CloseSlot, Some(slot)) = (departure.then, op.slot()) {
                let close = Step::Do(Who::Root, Op::Close { slot });
                for side in &mut self.sides {
                    side.act(&close)?;
                }
                self.readers.set(slot, None);
            }
            return Ok(Some(departure.why));
        }
        Err(format!(
            "the results differ:\n  {:?} {}\n  {:?} {}",
            self.sides[0].subject,
            shown(&answers[0]),
            self.sides[1].subject,
            shown(&answers[1])
        ))
    }

    fn finish(&mut self) -> Result<(), String> {
        self.look("at the end")?;
        self.remount(Swap::No)?;
        if self.sides.iter().all(|side| side.subject != Subject::FuseOverlayfs) {
            self.remount(Swap::Yes)?;
        }
        self.unmount()
    }
}

#[derive(Clone, Copy)]
enum Swap {
    Yes,
    No,
}

/// Returns an answer as a report shows it.
pub fn shown(answer: &str) -> &str {
    if answer.is_empty() { "ok" } else { answer }
}

fn build_root(dir: &Path) {
    build(dir, &[]);
    let mode = rustix::fs::Mode::from_raw_mode(0o777);
    rustix::fs::chmod(dir, mode).expect("a directory of our own");
}

fn lower_inos(layers: &Layers) -> BTreeSet<u64> {
    fn visit(path: &Path, inos: &mut BTreeSet<u64>) {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::symlink_metadata(path).expect("a layer of our own");
        inos.insert(meta.ino());
        if meta.is_dir() {
            for entry in std::fs::read_dir(path).expect("a layer of our own") {
                visit(&entry.expect("a layer of our own").path(), inos);
            }
        }
    }
    let mut inos = BTreeSet::new();
    for lower in layers.lowers() {
        visit(lower, &mut inos);
    }
    inos
}

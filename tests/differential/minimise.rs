//! Makes a failing run small: drops steps, and then entries of the layers, while a failure persists.

use std::fmt::Write as _;
use std::time::Instant;

use super::generate::Step;
use super::run::{Case, Played, Source, play, shown};

/// Drops what can be dropped until nothing more can, or until `deadline`. Returns the smallest case
/// that still fails, and its run.
pub fn minimise(mut case: Case, failed: Played, deadline: Instant) -> (Case, Played) {
    let mut best = failed;
    let wanted = kind(&best);
    loop {
        let before = size(&case, &best);
        drop_parts(best.steps.clone(), deadline, |steps: &[Step]| {
            let played = play(&case, Source::Script(steps));
            let fails = kind(&played) == wanted;
            if fails {
                best = played;
            }
            fails
        });
        drop_parts(case.prelude.clone(), deadline, |prelude| {
            let smaller = Case { prelude: prelude.to_vec(), ..case.clone() };
            let played = play(&smaller, Source::Script(&best.steps));
            let fails = kind(&played) == wanted;
            if fails {
                best = played;
                case = smaller;
            }
            fails
        });
        let numbered: Vec<(usize, _)> = case
            .layers
            .iter()
            .enumerate()
            .flat_map(|(index, layer)| layer.iter().map(move |item| (index, item.clone())))
            .collect();
        drop_parts(numbered, deadline, |items| {
            let mut smaller = case.clone();
            for (index, layer) in smaller.layers.iter_mut().enumerate() {
                *layer = items.iter().filter(|(of, _)| *of == index).map(|(_, item)| item.clone()).collect();
            }
            let played = play(&smaller, Source::Script(&best.steps));
            let fails = kind(&played) == wanted;
            if fails {
                best = played;
                case = smaller;
            }
            fails
        });
        if size(&case, &best) == before || Instant::now() > deadline {
            return (case, best);
        }
    }
}

/// Returns what kind of failure a run ended in, so that a smaller one shows the same: the operation and
/// the first word that differs, without its value.
fn kind(played: &Played) -> Option<String> {
    let failure = played.failure.as_ref()?;
    let step = failure.at.and_then(|at| played.steps.get(at));
    let operation = match step {
        Some(Step::Do(_, op)) => format!("{op:?}").split(' ').next().map(str::to_owned),
        // Where a tree was compared is chance.
        _ => None,
    };
    let pair = failure.what.lines().skip_while(|line| !line.starts_with("  ")).take(2);
    let pair: Vec<Vec<&str>> = pair.map(|line| line.split_whitespace().skip(1).collect()).collect();
    let word = match pair.as_slice() {
        [one, two] => {
            let differs = (0..one.len().max(two.len())).find(|at| one.get(*at) != two.get(*at));
            let word = |words: &[&str]| differs.and_then(|at| Some(key(words.get(at)?)));
            format!("{:?} {:?}", word(one), word(two))
        }
        _ => key(failure.what.lines().nth(1).unwrap_or(&failure.what).rsplit(": ").next()?),
    };
    Some(format!("{operation:?} {word}"))
}

fn key(word: &str) -> String {
    let key = word.split('=').next().unwrap_or(word);
    key.chars().filter(|c| !c.is_ascii_digit()).collect()
}

fn size(case: &Case, played: &Played) -> usize {
    let items: usize = case.layers.iter().map(Vec::len).sum();
    items + case.prelude.len() + played.steps.len()
}

/// Takes ever smaller parts out of `all` as long as the rest still `fails`.
fn drop_parts<T: Clone>(mut all: Vec<T>, deadline: Instant, mut fails: impl FnMut(&[T]) -> bool) {
    let mut part = all.len().div_ceil(2);
    while part > 0 {
        // From the end: what came last is what the rest depends on least.
        let mut end = all.len();
        while end > 0 {
            if Instant::now() > deadline {
                return;
            }
            let start = end.saturating_sub(part);
            let rest: Vec<T> = [&all[..start], &all[end..]].concat();
            if fails(&rest) {
                all = rest;
            }
            end = start.min(all.len());
        }
        part = if part == 1 { 0 } else { part.div_ceil(2) };
    }
}

/// Returns what a person needs to see the failure.
pub fn report(case: &Case, played: &Played) -> String {
    let mut text = format!("metacopy {:?}, layers {:?}, holes {:?}\n", case.metacopy, case.placement, case.holes);
    let mut line = |line: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{line}");
    };
    for (index, layer) in case.layers.iter().enumerate() {
        line(format!("lower {index}:"));
        for item in layer {
            line(format!("    {item:?}"));
        }
    }
    for step in &case.prelude {
        line(format!("made with the kernel's overlayfs in lower 0: {step:?}"));
    }
    for (index, step) in played.steps.iter().enumerate() {
        let answer = played.answers.get(index).map_or("<- here", |answer| shown(answer));
        line(format!("{index:4} {step:?} = {answer}"));
    }
    if let Some(failure) = &played.failure {
        let at = failure.at.map_or("before or after the steps".to_owned(), |at| format!("at step {at}"));
        line(format!("{at}: {}", failure.what));
    }
    text
}

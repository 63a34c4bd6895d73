//! Makes a failing run small: drops steps, and then entries of the layers, while a failure persists.

use std::fmt::Write as _;
use std::time::Instant;

use super::generate::Step;
use super::run::{Case, Played, Source, play, shown};

/// Drops what can be dropped until nothing more can, or until `deadline`. Returns the smallest case
/// that still fails, and its run.
pub fn minimise(mut case: Case, failed: Played, deadline: Instant) -> (Case, Played) {
    let mut best = failed;
    loop {
        let before = size(&case, &best);
        drop_parts(best.steps.clone(), deadline, |steps: &[Step]| {
            let played = play(&case, Source::Script(steps));
            let fails = played.failure.is_some();
            if fails {
                best = played;
            }
            fails
        });
        drop_parts(case.prelude.clone(), deadline, |prelude| {
            let smaller = Case { prelude: prelude.to_vec(), ..case.clone() };
            let played = play(&smaller, Source::Script(&best.steps));
            let fails = played.failure.is_some();
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
            let fails = played.failure.is_some();
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
    let mut text = format!("features {:?}, layers {:?}, holes {:?}\n", case.features, case.placement, case.holes);
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

//! What may be on a disk when power is lost: all that it was told to keep, and any part of what it was told since.
//!
//! What was told before a flush counts as kept. A real disk may lose what was under way and not yet answered when the flush
//! came; the recorder answers one thing after the other, so that this is not tried.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::disk::Event;
use crate::support::Rng;

/// What is written whole or not at all, in bytes; what is larger may be torn.
const BLOCK: usize = 4096;

/// The states of a disk that began as an image, at one moment after the other.
pub struct States<'a> {
    events: &'a [Event],
    /// What is kept for certain, as of event `kept`.
    image: PathBuf,
    kept: usize,
}

impl<'a> States<'a> {
    /// Begins with `image`, which changes from then on.
    pub fn new(image: PathBuf, events: &'a [Event]) -> Self {
        Self { events, image, kept: 0 }
    }

    /// Makes `state` what may be on the disk when power is lost before the event `moment`, which comes after those asked for
    /// so far.
    pub fn write(&mut self, moment: usize, rng: &mut Rng, state: &Path) {
        let told = &self.events[..moment];
        let flushed = told.iter().rposition(|event| matches!(event, Event::Flush)).map_or(0, |at| at + 1);
        let open = |path: &Path| File::options().write(true).open(path).expect("the image can be written");
        let image = open(&self.image);
        for event in &told[self.kept.min(flushed)..flushed] {
            write(&image, event, |_| true);
        }
        self.kept = flushed.max(self.kept);
        copy_image(&self.image, state);
        // A disk loses nothing, all, or something of what it had not been told to keep.
        let chance = [0, 50, 50, 90, 100][rng.below(5)];
        let state = open(state);
        for event in &told[flushed..] {
            write(&state, event, |_| rng.below(100) < chance);
        }
    }
}

/// Copies an image, its holes as holes.
pub fn copy_image(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("--sparse=always").args([from, to]).status();
    assert!(copied.is_ok_and(|status| status.success()), "{} can be copied", from.display());
}

/// Writes those blocks of a write that `stays`.
fn write(image: &File, event: &Event, mut stays: impl FnMut(usize) -> bool) {
    let Event::Write { offset, data } = event else { return };
    for (index, block) in data.chunks(BLOCK).enumerate() {
        if stays(index) {
            image.write_all_at(block, offset + (index * BLOCK) as u64).expect("the image can be written");
        }
    }
}

//! What is said of requests that fail: enough to know what is wrong, and no more, since a program may try for ever.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::error::Error;

/// The lines that are written in one [`SPAN`] at most.
const MOST: u32 = 50;

/// How long lines are counted together.
const SPAN: Duration = Duration::from_secs(10);

/// The lines of a span, for all mounts of this process.
///
/// A leaf: nothing else is locked while held.
static SAID: Mutex<Span> = Mutex::new(Span { since: None, said: 0, kept_back: 0 });

#[derive(Debug)]
struct Span {
    since: Option<Instant>,
    said: u32,
    kept_back: u64,
}

/// What becomes of a line.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    /// It is written, after so many that were not.
    Written(u64),
    /// It is the first that is not.
    First,
    KeptBack,
}

impl Span {
    fn line(&mut self, now: Instant) -> Line {
        let mut missed = 0;
        if self.since.is_none_or(|since| now.duration_since(since) >= SPAN) {
            missed = self.kept_back;
            *self = Self { since: Some(now), said: 0, kept_back: 0 };
        }
        if self.said < MOST {
            self.said += 1;
            return Line::Written(missed);
        }
        self.kept_back += 1;
        if self.kept_back == 1 { Line::First } else { Line::KeptBack }
    }
}

/// Logs what `error` says that whoever looks after the layers should know.
pub(super) fn note(error: &Error) {
    let worth_knowing = match error {
        Error::Corrupt { .. } | Error::NotFollowed { .. } => true,
        // What fails at a disk, or for a limit, is not the program's to mend, which may not even have asked for data to be
        // copied.
        Error::Call { errno, .. } => matches!(
            *errno,
            Errno::IO | Errno::NOSPC | Errno::DQUOT | Errno::ROFS | Errno::MFILE | Errno::NFILE | Errno::NOMEM
        ),
        _ => false,
    };
    if !worth_knowing {
        log::debug!("{error}");
        return;
    }
    let line = SAID.lock().line(Instant::now());
    match line {
        Line::Written(0) => log::warn!("{error}"),
        Line::Written(missed) => log::warn!("{error} ({missed} errors before it were not logged)"),
        Line::First => log::warn!("many requests fail: for some seconds no more errors are logged"),
        Line::KeptBack => log::debug!("{error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_said_to_be() {
        let begin = Instant::now();
        let mut span = Span { since: None, said: 0, kept_back: 0 };
        for _ in 0..MOST {
            assert_eq!(span.line(begin), Line::Written(0));
        }
        assert_eq!(span.line(begin), Line::First);
        assert_eq!(span.line(begin + SPAN / 2), Line::KeptBack);
        assert_eq!(span.line(begin + SPAN), Line::Written(2));
        assert_eq!(span.line(begin + SPAN), Line::Written(0));
    }
}

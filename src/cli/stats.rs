//! `--stats`: what a mount has done, reported when it has ended.
//!
//! The report goes past the log, so that no level holds it back, and in one write, so that mounts which share a log file
//! do not mix their lines.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::PathBuf;

use super::args;
use super::exit::{Exit, Failure};
use super::logging;
use super::settings::Settings;
use crate::fuse::{Operation, Statistics};
use crate::union::{Caches, CopyUps, Usage};

/// Where the report goes.
pub struct Report {
    to: Box<dyn Write>,
    mountpoint: PathBuf,
}

impl Report {
    /// Refuses a report that nobody could read: a daemon without a log file has let go of standard error.
    pub fn check(settings: &Settings) -> Result<(), Failure> {
        if settings.stats && !settings.foreground && settings.log_file.is_none() {
            // In the form of fuse-overlayfs there is no flag for the second.
            let message =
                "--stats: a daemon has nowhere to report to; add --foreground, or --log-file FILE (-o log_file=FILE)";
            return Err(Failure::new(Exit::Usage, message));
        }
        Ok(())
    }

    /// Opens what `settings` have the report go to; `None` where they want none.
    ///
    /// It is opened before the mount is made: at its end there would be nobody to tell that it cannot be.
    pub fn open(settings: &Settings) -> Result<Option<Self>, Failure> {
        let to: Box<dyn Write> = match &settings.log_file {
            _ if !settings.stats => return Ok(None),
            Some(path) if !settings.foreground => Box::new(logging::open(path)?),
            _ => Box::new(io::stderr()),
        };
        Ok(Some(Self { to, mountpoint: settings.mount.mountpoint.clone() }))
    }

    /// Writes it.
    pub fn write(mut self, statistics: &Statistics) {
        let table = table(statistics, When::End);
        let text = format!("{}: {}: statistics of the mount\n{table}", args::NAME, self.mountpoint.display());
        if let Err(error) = self.to.write_all(text.as_bytes()) {
            log::error!("the statistics of {} cannot be written: {error}", self.mountpoint.display());
        }
    }
}

/// When the figures are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// The mount is served.
    Now,
    /// It has ended.
    End,
}

/// Returns the figures, one a line; of the operations those that were asked for, the most frequent first.
pub fn table(statistics: &Statistics, when: When) -> String {
    let Statistics { usage, copy_ups, caches, absences, requests, .. } = statistics;
    figures(requests.iter(), usage, copy_ups, caches, *absences, when)
}

fn figures(
    requests: impl IntoIterator<Item = (Operation, u64)>,
    usage: &Usage,
    copy_ups: &CopyUps,
    caches: &Caches,
    absences: u64,
    when: When,
) -> String {
    let mut requests: Vec<(Operation, u64)> = requests.into_iter().filter(|(_, count)| *count > 0).collect();
    // What is equal stays in the order of the protocol.
    requests.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let total = requests.iter().map(|(_, count)| count).sum();

    let mut lines = vec![("requests".to_owned(), total)];
    lines.extend(requests.into_iter().map(|(operation, count)| (format!("  {}", operation.name()), count)));
    lines.push(("objects copied up".into(), copy_ups.objects));
    lines.push(("bytes copied up".into(), copy_ups.bytes));
    lines.push(("milliseconds of copying up".into(), u64::try_from(copy_ups.time.as_millis()).unwrap_or(u64::MAX)));
    let then = match when {
        When::Now => "",
        When::End => " at the end",
    };
    // A handle can share the descriptor of a file that is kept open, so the last three have no sum.
    for (what, count) in [
        ("inodes known", usage.inodes),
        ("directories open", usage.directories),
        ("files open", usage.files),
        ("handles open", usage.handles),
    ] {
        lines.push((format!("{what}{then}"), count as u64));
    }
    for (what, hits) in [
        ("directories of upper needed, and open", caches.upper_directories),
        ("directories of lowers needed, and open", caches.lower_directories),
        ("files needed, and open", caches.files),
        ("names asked of an index, and in a layer", caches.names),
    ] {
        lines.push((what.to_owned(), hits.hits));
        lines.push(("  and not".to_owned(), hits.misses));
    }
    lines.push(("names not there, for the kernel to remember".into(), absences));

    let width = lines.iter().map(|(what, _)| what.len()).max().unwrap_or_default();
    let digits = lines.iter().map(|(_, count)| count.to_string().len()).max().unwrap_or_default();
    lines.into_iter().fold(String::new(), |mut text, (what, count)| {
        let _ = writeln!(text, "  {what:<width$}  {count:>digits$}"); // A String takes everything.
        text
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::union::Hits;

    #[test]
    fn operations_that_came_are_listed_by_their_number_and_the_others_not() {
        let usage = Usage { inodes: 300, directories: 12, files: 7, handles: 0, kept_at_most: 48 };
        let copy_ups = CopyUps { objects: 3, bytes: 1_048_576, time: Duration::from_millis(7) };
        let files = Hits { hits: 5, misses: 2 };
        let caches = Caches { files, ..Caches::default() };
        let requests = [
            (Operation::Lookup, 4),
            (Operation::Forget, 0),
            (Operation::Getattr, 90),
            (Operation::Read, 4),
            (Operation::CopyFileRange, 1),
        ];
        let expected = "
  requests                                          99
    getattr                                         90
    lookup                                           4
    read                                             4
    copy_file_range                                  1
  objects copied up                                  3
  bytes copied up                              1048576
  milliseconds of copying up                         7
  inodes known at the end                          300
  directories open at the end                       12
  files open at the end                              7
  handles open at the end                            0
  directories of upper needed, and open              0
    and not                                          0
  directories of lowers needed, and open             0
    and not                                          0
  files needed, and open                             5
    and not                                          2
  names asked of an index, and in a layer            0
    and not                                          0
  names not there, for the kernel to remember        4
";
        assert_eq!(figures(requests, &usage, &copy_ups, &caches, 4, When::End), expected[1..]);
    }

    #[test]
    fn a_mount_that_nobody_used_has_a_table_without_operations() {
        let usage = Usage { inodes: 1, directories: 0, files: 0, handles: 0, kept_at_most: 48 };
        let none = Operation::ALL.map(|operation| (operation, 0));
        let text = figures(none, &usage, &CopyUps::default(), &Caches::default(), 0, When::Now);
        let words: Vec<&str> = text.split_whitespace().take(5).collect();
        assert_eq!(words, ["requests", "0", "objects", "copied", "up"], "{text}");
        assert!(!text.contains("at the end"), "{text}");
    }

    #[test]
    fn a_report_needs_somebody_who_can_read_it() {
        let settings = |stats, foreground, log_file: Option<&str>| {
            let log_file = log_file.map(PathBuf::from);
            Settings { stats, foreground, log_file, ..Settings::new("/m") }
        };
        let refused = Report::check(&settings(true, false, None)).expect_err("there is no reader");
        assert_eq!(refused.exit, Exit::Usage);
        assert!(refused.message.contains("--foreground") && refused.message.contains("--log-file"));
        for readable in [settings(true, true, None), settings(true, false, Some("log")), settings(false, false, None)] {
            assert_eq!(Report::check(&readable), Ok(()));
        }
    }
}

//! Tables, sizes and ages as podman and docker print them.

use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};
use std::ops::ControlFlow;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::cli::exit::{Exit, Failure};

/// The narrowest column, and the spaces after the widest word of one, as podman has them.
const COLUMN_MIN: usize = 12;
const COLUMN_GAP: usize = 2;

/// Prints rows whose columns stand below each other; the first may be a heading.
pub fn table(rows: &[Vec<String>]) -> Result<Exit, Failure> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        let words = rows.iter().filter_map(|row| row.get(column));
        words.map(|word| word.chars().count() + COLUMN_GAP).max().unwrap_or_default().max(COLUMN_MIN)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (at, (word, width)) in row.iter().zip(&widths).enumerate() {
            let last = at + 1 == row.len();
            text.push_str(word);
            if !last {
                text.extend(std::iter::repeat_n(' ', width - word.chars().count()));
            }
        }
        text.push('\n');
    }
    print(text.as_bytes())
}

/// Writes to standard output; a reader that has seen enough is no failure.
pub fn print(text: &[u8]) -> Result<Exit, Failure> {
    if io::stdout().is_terminal() {
        return crate::cli::print(printable(text).as_bytes());
    }
    crate::cli::print(text)
}

/// Returns `text` without what a terminal would take for a command: images have names of anybody's choice.
pub fn printable(text: &[u8]) -> String {
    let mut shown = String::with_capacity(text.len());
    for chunk in text.utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                '\n' | '\t' => shown.push(letter),
                letter if letter.is_control() || turns(letter) => shown.extend(letter.escape_default()),
                letter => shown.push(letter),
            }
        }
        push_bytes(&mut shown, chunk.invalid());
    }
    shown
}

/// Returns a name as text: a byte that is no UTF-8 as `\xNN`, so that two such names differ.
pub fn name(name: &[u8]) -> String {
    let mut shown = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        shown.push_str(chunk.valid());
        push_bytes(&mut shown, chunk.invalid());
    }
    shown
}

fn push_bytes(text: &mut String, bytes: &[u8]) {
    bytes.iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
}

/// Returns whether a letter is not seen itself, and changes how others are: in which direction, or in which line.
fn turns(letter: char) -> bool {
    matches!(letter, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// Standard output, line by line, for what is long.
#[derive(Debug)]
pub struct Lines(BufWriter<StdoutLock<'static>>);

impl Lines {
    pub fn new() -> Self {
        Self(BufWriter::new(io::stdout().lock()))
    }

    /// Writes a line; breaks where nobody reads on.
    pub fn line(&mut self, text: &str) -> Result<ControlFlow<()>, Failure> {
        match writeln!(self.0, "{text}") {
            Ok(()) => Ok(ControlFlow::Continue(())),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
            Err(error) => Err(crate::cli::no_output(&error)),
        }
    }

    /// Writes what is left of it.
    pub fn end(mut self) -> Result<Exit, Failure> {
        match self.0.flush() {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(crate::cli::no_output(&error)),
            _ => Ok(Exit::Done),
        }
    }
}

/// Prints JSON, for people to read.
pub fn json(value: &serde_json::Value) -> Result<Exit, Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new(Exit::Failed, format!("the answer is no JSON: {error}")))?;
    // JSON has an escape of its own for them, and for control characters; those stand in strings alone.
    let mut shown = String::with_capacity(text.len() + 1);
    for letter in text.chars() {
        match letter {
            letter if turns(letter) || (letter.is_control() && letter != '\n') => {
                shown.push_str(&format!("\\u{:04x}", u32::from(letter)))
            }
            letter => shown.push(letter),
        }
    }
    shown.push('\n');
    print(shown.as_bytes())
}

/// Returns a number of bytes with `digits` digits that count, in powers of 1000.
pub fn size(bytes: u64, digits: usize) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let (mut value, mut at) = (bytes as f64, 0);
    while value >= 1000.0 && at + 1 < units.len() {
        value /= 1000.0;
        at += 1;
    }
    format!("{} {}", significant(value, digits), units.get(at).unwrap_or(&"B"))
}

/// Returns a number below 1000 as C's `%.Ng` has it: so many digits, without zeros at the end.
fn significant(value: f64, digits: usize) -> String {
    let whole = if value >= 100.0 {
        3
    } else if value >= 10.0 {
        2
    } else {
        1
    };
    let text = format!("{value:.*}", digits.saturating_sub(whole));
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Returns how long ago `time`, in seconds since 1970, was.
pub fn ago(time: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    format!("{} ago", duration(u64::try_from(now.saturating_sub(time)).unwrap_or_default()))
}

/// Returns a time in the words of docker's units.
fn duration(seconds: u64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    let plural = |count: u64, unit: &str| format!("{count} {unit}");
    match () {
        () if seconds < 1 => "Less than a second".into(),
        () if seconds == 1 => "1 second".into(),
        () if seconds < 60 => plural(seconds, "seconds"),
        () if minutes == 1 => "About a minute".into(),
        () if minutes < 60 => plural(minutes, "minutes"),
        () if hours == 1 => "About an hour".into(),
        () if hours < 48 => plural(hours, "hours"),
        () if hours < 24 * 7 * 2 => plural(hours / 24, "days"),
        () if hours < 24 * 30 * 2 => plural(hours / 24 / 7, "weeks"),
        () if hours < 24 * 365 * 2 => plural(hours / 24 / 30, "months"),
        () => plural(hours / 24 / 365, "years"),
    }
}

/// Reads a time as configurations have it, in seconds since 1970.
pub fn seconds(text: &str) -> Option<i64> {
    text.parse::<jiff::Timestamp>().ok().map(|time| time.as_second())
}

/// How much of a command is shown, as podman's `history` does.
const COMMAND_MAX: usize = 45;

/// Cuts a command off, where it is long.
pub fn shortened(text: &str) -> String {
    let text = text.replace('\t', " ");
    if text.chars().count() <= COMMAND_MAX {
        return text;
    }
    text.chars().take(COMMAND_MAX - 3).chain("...".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_sent_no_command() {
        assert_eq!(printable("safe\u{202e}gpj.exe".as_bytes()), "safe\\u{202e}gpj.exe");
        let text = "a\tb\n\u{1b}[31mred\u{9b}2J é\r".as_bytes();
        assert_eq!(printable(&[text, b"\xff\x9b"].concat()), "a\tb\n\\u{1b}[31mred\\u{9b}2J é\\r\\xff\\x9b");
    }

    #[test]
    fn sizes_are_written_as_by_podman() {
        for (bytes, digits, expected) in [
            (0, 3, "0 B"),
            (999, 3, "999 B"),
            (1000, 3, "1 kB"),
            (1536, 3, "1.54 kB"),
            (125_460_000, 3, "125 MB"),
            (1_234_567_890, 3, "1.23 GB"),
            (12_345, 4, "12.35 kB"),
            (3_584, 3, "3.58 kB"),
        ] {
            assert_eq!(size(bytes, digits), expected);
        }
    }

    #[test]
    fn ages_are_written_as_by_docker() {
        for (seconds, expected) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (3_599, "59 minutes"),
            (3_600, "About an hour"),
            (5_400, "2 hours"),
            (47 * 3_600, "47 hours"),
            (48 * 3_600, "2 days"),
            (15 * 86_400, "2 weeks"),
            (61 * 86_400, "2 months"),
            (800 * 86_400, "2 years"),
        ] {
            assert_eq!(duration(seconds), expected, "{seconds}");
        }
    }
}

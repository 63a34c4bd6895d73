//! The processors of the machine.

use std::io;

const POSSIBLE: &str = "/sys/devices/system/cpu/possible";

/// Returns how many processors there may ever be, those that are off included.
///
/// Errors: those of reading /sys, where that cannot be seen.
pub fn possible() -> io::Result<u16> {
    let list = std::fs::read_to_string(POSSIBLE)?;
    count(&list).ok_or_else(|| io::Error::other(format!("{POSSIBLE} does not say which there are")))
}

/// How many numbers a list like `0-3,8-11` stands for.
fn count(list: &str) -> Option<u16> {
    let counts = list.trim().split(',').map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        last.parse::<u16>().ok()?.checked_sub(first.parse().ok()?)?.checked_add(1)
    });
    counts.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processors_of_all_ranges_count() {
        assert_eq!(count("0-1\n"), Some(2));
        assert_eq!(count("0\n"), Some(1));
        assert_eq!(count("0-3,8-11\n"), Some(8));
        assert_eq!(count("0,2,4-5"), Some(4));
        assert_eq!([count(""), count("3-1"), count("a")], [None; 3]);
        assert!(possible().unwrap() >= 1);
    }
}

//! The processors of the machine.

use std::io;

const POSSIBLE: &str = "/sys/devices/system/cpu/possible";

/// Returns how many processors there may ever be, those that are off included: the kernel counts them from 0.
///
/// Errors: those of reading /sys, where that cannot be seen.
pub fn possible() -> io::Result<u16> {
    let list = std::fs::read_to_string(POSSIBLE)?;
    let last = last(&list).ok_or_else(|| io::Error::other(format!("{POSSIBLE} does not say which there are")))?;
    Ok(last.saturating_add(1))
}

/// The last number of a list like `0-3,8-11`.
fn last(list: &str) -> Option<u16> {
    list.trim().rsplit([',', '-']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_processor_of_a_list_counts() {
        assert_eq!(last("0-1\n"), Some(1));
        assert_eq!(last("0\n"), Some(0));
        assert_eq!(last("0-3,8-11\n"), Some(11));
        assert_eq!(last(""), None);
        assert!(possible().unwrap() >= 1);
    }
}

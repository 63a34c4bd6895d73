//! Pax records: `LENGTH KEYWORD=VALUE\n`, the length counting itself.

use std::collections::BTreeMap;
use std::io;

use super::super::digest::invalid;
use crate::layer::attr::Timestamp;

/// What a pax header says: values by keyword. Sparse maps of format 0.0 repeat keywords, and are kept apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Records {
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    /// `GNU.sparse.offset` and `GNU.sparse.numbytes` in the order in which they come.
    pub sparse: Vec<u64>,
}

impl Records {
    /// Adds the records in `bytes`, which hold over those before. Errors: `InvalidData` for what are none.
    pub fn extend(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let garbled = || invalid("has a pax header that cannot be read");
        // Some writers fill up with zeros.
        while bytes.first().is_some_and(|byte| *byte != 0) {
            let space = bytes.iter().take(12).position(|byte| *byte == b' ').ok_or_else(garbled)?;
            let (length, _) = bytes.split_at(space);
            let length: usize = digits(length).and_then(|n| usize::try_from(n).ok()).ok_or_else(garbled)?;
            let record = bytes.get(space + 1..length).ok_or_else(garbled)?;
            let record = record.strip_suffix(b"\n").ok_or_else(garbled)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(garbled)?;
            let (keyword, value) = (&record[..equals], &record[equals + 1..]);
            match keyword {
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                    self.sparse.push(digits(value).ok_or_else(garbled)?);
                }
                _ => drop(self.values.insert(keyword.to_vec(), value.to_vec())),
            }
            bytes = bytes.get(length..).unwrap_or_default();
        }
        Ok(())
    }

    /// Returns the value of `keyword`; `None` also for an empty one, which takes back that of the header.
    pub fn get(&self, keyword: &str) -> Option<&[u8]> {
        self.values.get(keyword.as_bytes()).map(Vec::as_slice).filter(|value| !value.is_empty())
    }

    /// Returns the value of `keyword`, a whole number. Errors: `InvalidData` for what is none, or is more than anything here
    /// can have.
    pub fn number(&self, keyword: &str) -> io::Result<Option<u64>> {
        let number = |value| digits(value).filter(|number| *number < NUMBER_MAX);
        let value = self.get(keyword);
        value
            .map(|value| number(value).ok_or_else(|| invalid(format!("its {keyword} is no number that can be"))))
            .transpose()
    }

    /// Returns the value of `keyword`, a time. Errors: `InvalidData` for what is none.
    pub fn time(&self, keyword: &str) -> io::Result<Option<Timestamp>> {
        let value = self.get(keyword);
        value.map(|value| time(value).ok_or_else(|| invalid(format!("its {keyword} is no time")))).transpose()
    }

    /// Returns the extended attributes by name.
    pub fn xattrs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.values.iter().filter_map(|(key, value)| key.strip_prefix(XATTR).map(|name| (name, value.as_slice())))
    }
}

/// Beyond this nothing can be right, and sums would overflow.
pub const NUMBER_MAX: u64 = 1 << 62;

/// What a keyword of an extended attribute begins with, as star, GNU tar and all container tools write it.
pub const XATTR: &[u8] = b"SCHILY.xattr.";

/// Reads decimal digits alone.
pub fn digits(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    text.parse().ok()
}

/// Reads seconds since 1970, which may be negative and have a fraction.
fn time(text: &[u8]) -> Option<Timestamp> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let secs = i64::try_from(digits(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    // More digits than nanoseconds have are cut off, as a file system would.
    let kept = fraction.get(..9).unwrap_or(fraction);
    digits(fraction.get(9..).unwrap_or_default().get(..1).unwrap_or(b"0"))?;
    let scale = 10_u32.pow(9 - u32::try_from(kept.len()).ok()?);
    let nanos = if kept.is_empty() { 0 } else { u32::try_from(digits(kept)?).ok()? * scale };
    Some(match (negative, nanos) {
        (false, nanos) => Timestamp { secs, nanos },
        (true, 0) => Timestamp { secs: -secs, nanos },
        (true, nanos) => Timestamp { secs: -secs - 1, nanos: 1_000_000_000 - nanos },
    })
}

/// Adds one record to `records`.
pub fn push(records: &mut Vec<u8>, keyword: &[u8], value: &[u8]) {
    // The length counts its own digits.
    let rest = keyword.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    length = rest + length.to_string().len();
    records.extend_from_slice(length.to_string().as_bytes());
    for part in [b" ", keyword, b"=", value, b"\n"] {
        records.extend_from_slice(part);
    }
}

/// Returns `time` as a record has it.
pub fn time_text(time: Timestamp) -> String {
    let (sign, secs, nanos) = match (time.secs < 0, time.nanos) {
        (true, 0) => ("-", time.secs.unsigned_abs(), 0),
        (true, nanos) => ("-", (time.secs + 1).unsigned_abs(), 1_000_000_000 - nanos),
        (false, nanos) => ("", time.secs.unsigned_abs(), nanos),
    };
    let text = format!("{sign}{secs}.{nanos:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_they_are_written() {
        let mut bytes = Vec::new();
        for len in [0_usize, 1, 88, 89, 90, 91, 990, 991, 992, 9_985, 9_990, 70_000] {
            push(&mut bytes, format!("SCHILY.xattr.user.{len}").as_bytes(), &vec![b'\n'; len]);
        }
        let mut records = Records::default();
        records.extend(&bytes).unwrap();
        let lens: Vec<(String, usize)> =
            records.xattrs().map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.len())).collect();
        assert_eq!(lens.len(), 12);
        assert!(lens.iter().all(|(name, len)| *name == format!("user.{len}")));
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for bytes in [
            &b"12"[..],
            b"x path=a\n",
            b"99 path=a\n",
            b"8 path=a\n",
            b"3 \n",
            b"8 patha\n",
            b"18446744073709551616 a=b\n",
            b"0 a=b\n",
            b"2 a=b\n",
        ] {
            assert!(Records::default().extend(bytes).is_err(), "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn times_have_fractions_and_signs() {
        let stamp = |secs, nanos| Some(Timestamp { secs, nanos });
        for (text, expected) in [
            ("0", stamp(0, 0)),
            ("1700000000.5", stamp(1_700_000_000, 500_000_000)),
            ("1.000000001", stamp(1, 1)),
            ("1.0000000019", stamp(1, 1)),
            ("-1", stamp(-1, 0)),
            ("-0.25", stamp(-1, 750_000_000)),
            ("-1.5", stamp(-2, 500_000_000)),
            ("1.", stamp(1, 0)),
            ("", None),
            ("-", None),
            ("1e3", None),
            ("+1", None),
            ("1.2.3", None),
            ("9223372036854775808", None),
        ] {
            assert_eq!(time(text.as_bytes()), expected, "{text}");
        }
        for time_ in [(0, 0), (1, 1), (-1, 750_000_000), (-2, 500_000_000), (-1, 0), (i64::MAX, 999_999_999)] {
            let stamp = Timestamp { secs: time_.0, nanos: time_.1 };
            assert_eq!(time(time_text(stamp).as_bytes()), Some(stamp), "{}", time_text(stamp));
        }
    }
}

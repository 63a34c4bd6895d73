//! Text of mount options: the syntax, and nothing of what the options mean.
//!
//! The syntax is the kernel overlayfs's, since that is what container runtimes write: options are
//! parted by commas, a backslash takes the meaning from the character after it, and the directories
//! of `lowerdir` are parted by colons. To that comes mount(8)'s quoting: a value that begins with a
//! double quote ends at the next one, and holds its commas.
//!
//! Everything here is a pure function over bytes: paths need not be UTF-8. What an option does stands
//! in [`super::settings`], so that other argument forms can share this file.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use crate::config::{IdMap, IdMapError, IdRange};

/// More threads than this serve nobody; a number above is a slip of the finger.
const MAX_THREADS: usize = 1024;

/// About 31 years, in seconds. The kernel turns timeouts into a signed count of jiffies.
const MAX_SECONDS: f64 = 1e9;

/// The last user or group there is: the number after it means none.
const LAST_ID: u32 = u32::MAX - 1;

/// One option of a `-o` string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// What stands before the first `=`.
    pub name: OsString,
    /// What stands after it, without quotes and with its backslashes; `None` without `=`.
    pub value: Option<OsString>,
}

/// Text that does not follow the syntax.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyntaxError {
    /// A quoted value that does not end.
    OpenQuote,
    /// Something follows a closing quote that is not a comma.
    AfterQuote,
    /// A backslash with nothing after it.
    LoneBackslash,
    /// A list of directories with nothing between two colons, or at an end.
    EmptyElement,
    /// An empty path.
    EmptyPath,
    /// Not a whole number between 1 and [`MAX_THREADS`].
    NotACount,
    /// Not a number of seconds between 0 and [`MAX_SECONDS`].
    NotSeconds,
    /// Text that would break the option list of /proc/mounts.
    NotALabel,
    /// Not a user or group.
    NotAnId,
    /// Not groups of three numbers.
    NotAMap,
    /// Numbers that no map can be made of.
    BadMap(IdMapError),
    /// Not a whole number of bytes of one or more.
    NotBytes,
    /// Not a number of bytes or of other things, with or without a unit.
    NotASize,
    /// Text that would end the quotes of a context, or cannot be one.
    NotAContext,
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OpenQuote => f.write_str("the quoted value has no end; close it with \""),
            Self::AfterQuote => {
                f.write_str("text follows the closing quote; put a comma there, or quote the whole value")
            }
            Self::LoneBackslash => f.write_str(r"it ends in a lone backslash; write \\ for a backslash"),
            Self::EmptyElement => f.write_str(
                r"an element of the list is empty; remove the extra colon, or write \: for one that belongs to a name",
            ),
            Self::EmptyPath => f.write_str("the path is empty; give one"),
            Self::NotACount => write!(f, "not a whole number of threads; give one from 1 to {MAX_THREADS}"),
            Self::NotSeconds => write!(f, "not a number of seconds; give one from 0 to {MAX_SECONDS}, as 1 or 0.5"),
            Self::NotALabel => {
                f.write_str("not a name that /proc/mounts can show; give text without commas and control characters")
            }
            Self::NotAnId => write!(f, "not the number of a user or group; give one from 0 to {LAST_ID}"),
            Self::NotAMap => {
                write!(f, "not a map; give STORED:SHOWN:COUNT, or several joined by colons, of numbers up to {LAST_ID}")
            }
            Self::BadMap(error) => error.fmt(f),
            Self::NotBytes => f.write_str("not a whole number of bytes; give one of 4096 or more"),
            Self::NotASize => {
                f.write_str("not a whole number of one or more; give one, with K, M, G or T for 1024 and its powers")
            }
            Self::NotAContext => {
                f.write_str("not a context; give text without double quotes, backslashes and control characters")
            }
        }
    }
}

/// Parts a `-o` string into its options; empty ones, as in `a,,b,`, are left out.
pub fn split_options(text: &OsStr) -> Result<Vec<Item>, SyntaxError> {
    let mut rest = text.as_bytes();
    let mut items = Vec::new();
    while !rest.is_empty() {
        let (item, after) = next_option(rest)?;
        items.extend(item);
        rest = after;
    }
    Ok(items)
}

/// Takes one option and the comma after it off `text`.
fn next_option(text: &[u8]) -> Result<(Option<Item>, &[u8]), SyntaxError> {
    let name_end = find_unescaped(text, b"=,").unwrap_or(text.len());
    let (name, rest) = text.split_at(name_end);
    let Some(rest) = rest.strip_prefix(b"=") else {
        let item = (!name.is_empty()).then(|| Item { name: os(name), value: None });
        return Ok((item, rest.strip_prefix(b",").unwrap_or(rest)));
    };
    let (value, rest) = match rest.strip_prefix(b"\"") {
        Some(quoted) => {
            let end = find_unescaped(quoted, b"\"").ok_or(SyntaxError::OpenQuote)?;
            let (value, rest) = quoted.split_at(end);
            (value, rest.strip_prefix(b"\"").unwrap_or(rest))
        }
        None => rest.split_at(find_unescaped(rest, b",").unwrap_or(rest.len())),
    };
    let rest = match rest {
        [] => rest,
        [b',', after @ ..] => after,
        [..] => return Err(SyntaxError::AfterQuote),
    };
    Ok((Some(Item { name: os(name), value: Some(os(value)) }), rest))
}

/// Parts a colon-separated list of directories, `\:` and `\\` standing for the bare characters.
pub fn split_lowers(list: &OsStr) -> Result<Vec<PathBuf>, SyntaxError> {
    let mut rest = list.as_bytes();
    let mut paths = Vec::new();
    loop {
        let end = find_unescaped(rest, b":").unwrap_or(rest.len());
        let (element, after) = rest.split_at(end);
        if element.is_empty() {
            return Err(SyntaxError::EmptyElement);
        }
        paths.push(PathBuf::from(unescape(&os(element))?));
        match after.strip_prefix(b":") {
            Some(after) => rest = after,
            None => return Ok(paths),
        }
    }
}

/// Takes the backslashes off a value: each stands for the character after it.
pub fn unescape(value: &OsStr) -> Result<OsString, SyntaxError> {
    let mut bytes = value.as_bytes().iter();
    let mut plain = Vec::with_capacity(value.len());
    while let Some(&byte) = bytes.next() {
        plain.push(if byte == b'\\' { *bytes.next().ok_or(SyntaxError::LoneBackslash)? } else { byte });
    }
    Ok(OsString::from_vec(plain))
}

/// Reads a path, which may be anything but empty.
pub fn path(value: &OsStr) -> Result<PathBuf, SyntaxError> {
    if value.is_empty() { Err(SyntaxError::EmptyPath) } else { Ok(PathBuf::from(value)) }
}

/// Reads a number of threads.
pub fn count(value: &OsStr) -> Result<NonZeroUsize, SyntaxError> {
    digits(value, b"")
        .and_then(|text| text.parse().ok())
        .filter(|number: &NonZeroUsize| number.get() <= MAX_THREADS)
        .ok_or(SyntaxError::NotACount)
}

/// Reads a number of seconds, which may have a fraction.
pub fn seconds(value: &OsStr) -> Result<Duration, SyntaxError> {
    digits(value, b".")
        .and_then(|text| text.parse().ok())
        .filter(|seconds: &f64| *seconds <= MAX_SECONDS)
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or(SyntaxError::NotSeconds)
}

/// Reads the name that /proc/mounts shows as the source of the mount.
///
/// A comma would end the option in the text that fusermount3 is given, and begin another.
pub fn label(value: &OsStr) -> Result<String, SyntaxError> {
    match value.to_str() {
        Some(text) if !text.is_empty() && !text.chars().any(|c| c == ',' || c == '\\' || c.is_control()) => {
            Ok(text.to_owned())
        }
        _ => Err(SyntaxError::NotALabel),
    }
}

/// Reads the number of a user or group.
pub fn id(value: &OsStr) -> Result<u32, SyntaxError> {
    number(value).filter(|id| *id <= LAST_ID).ok_or(SyntaxError::NotAnId)
}

/// Reads a number of bytes.
pub fn bytes(value: &OsStr) -> Result<NonZeroU32, SyntaxError> {
    number(value).and_then(NonZeroU32::new).ok_or(SyntaxError::NotBytes)
}

/// Reads a whole number that may end in K, M, G or T, which are 1024 and its powers.
pub fn size(value: &OsStr) -> Result<u64, SyntaxError> {
    let text = value.to_str().ok_or(SyntaxError::NotASize)?;
    let (number, power) = match text.char_indices().next_back() {
        Some((at, unit @ ('K' | 'k' | 'M' | 'm' | 'G' | 'g' | 'T' | 't'))) => {
            let power = match unit.to_ascii_uppercase() {
                'K' => 1,
                'M' => 2,
                'G' => 3,
                _ => 4,
            };
            (text.get(..at).unwrap_or_default(), power)
        }
        _ => (text, 0),
    };
    let number = digits(OsStr::new(number), b"").and_then(|number| number.parse::<u64>().ok());
    let size = number.and_then(|number| number.checked_mul(1 << (10 * power)));
    size.filter(|size| *size > 0).ok_or(SyntaxError::NotASize)
}

/// Reads a map of ids: groups of three numbers, as fuse-overlayfs(1) has them.
///
/// Between the numbers are colons; its manual parts the groups by commas, and container runtimes begin with a colon.
pub fn id_map(value: &OsStr) -> Result<IdMap, SyntaxError> {
    let text = value.to_str().ok_or(SyntaxError::NotAMap)?;
    let numbers: Option<Vec<u32>> =
        text.strip_prefix(':').unwrap_or(text).split([':', ',']).map(|part| number(OsStr::new(part))).collect();
    let numbers = numbers.ok_or(SyntaxError::NotAMap)?;
    let groups = numbers.chunks(3).map(|group| match *group {
        [stored, shown, count] => Ok(IdRange { stored, shown, count }),
        _ => Err(SyntaxError::NotAMap),
    });
    IdMap::new(groups.collect::<Result<_, _>>()?).map_err(SyntaxError::BadMap)
}

/// Reads an SELinux context.
///
/// It goes to the kernel in double quotes, which keep its commas.
pub fn context(value: &OsStr) -> Result<String, SyntaxError> {
    match value.to_str() {
        Some(text) if !text.is_empty() && !text.chars().any(|c| c == '"' || c == '\\' || c.is_control()) => {
            Ok(text.to_owned())
        }
        _ => Err(SyntaxError::NotAContext),
    }
}

/// Reads a whole number.
fn number(value: &OsStr) -> Option<u32> {
    digits(value, b"")?.parse().ok()
}

/// Returns `value` as text if it has digits and characters of `also` alone: Rust's own number parsers
/// take signs, `inf` and exponents, which are slips here.
fn digits<'a>(value: &'a OsStr, also: &[u8]) -> Option<&'a str> {
    value.to_str().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit() || also.contains(&byte)))
}

/// Returns the place of the first byte of `wanted` that has no backslash before it.
fn find_unescaped(text: &[u8], wanted: &[u8]) -> Option<usize> {
    let mut escaped = false;
    text.iter().position(|byte| {
        let found = !escaped && wanted.contains(byte);
        escaped = !escaped && *byte == b'\\';
        found
    })
}

/// Copies bytes of a command line, which are what an `OsStr` is on Unix.
fn os(bytes: &[u8]) -> OsString {
    OsStr::from_bytes(bytes).to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns the options of `text` as `name` or `name=value`, to keep the tables readable.
    fn split(text: &str) -> Result<Vec<String>, SyntaxError> {
        let items = split_options(OsStr::new(text))?;
        Ok(items
            .iter()
            .map(|item| match &item.value {
                Some(value) => format!("{}={}", item.name.display(), value.display()),
                None => item.name.display().to_string(),
            })
            .collect())
    }

    #[test]
    fn options_are_parted_at_commas_that_are_neither_quoted_nor_escaped() {
        let table: &[(&str, &[&str])] = &[
            ("", &[]),
            ("ro", &["ro"]),
            ("ro,noatime", &["ro", "noatime"]),
            (",,ro,,noatime,", &["ro", "noatime"]),
            ("workdir=w,,volatile", &["workdir=w", "volatile"]),
            ("workdir=", &["workdir="]),
            ("fsname=a=b", &["fsname=a=b"]),
            (r#"context="u:r:t:c1,c2",ro"#, &["context=u:r:t:c1,c2", "ro"]),
            (r#"context="""#, &["context="]),
            (r#"upperdir=a"b,ro"#, &[r#"upperdir=a"b"#, "ro"]),
            (r"upperdir=a\,b,ro", &[r"upperdir=a\,b", "ro"]),
            (r"lowerdir=a\:b:c\\,ro", &[r"lowerdir=a\:b:c\\", "ro"]),
        ];
        for (text, expected) in table {
            assert_eq!(
                split(text).as_deref(),
                Ok(&expected.iter().map(|s| s.to_string()).collect::<Vec<_>>()[..]),
                "{text}"
            );
        }
    }

    #[test]
    fn broken_quotes_are_refused() {
        assert_eq!(split(r#"context="a,b"#), Err(SyntaxError::OpenQuote));
        assert_eq!(split(r#"context="a"b,ro"#), Err(SyntaxError::AfterQuote));
    }

    #[test]
    fn lowers_are_parted_at_bare_colons_and_unescaped() {
        let table: &[(&str, &[&str])] = &[
            ("a", &["a"]),
            ("a:b:c", &["a", "b", "c"]),
            (r"a\:b:c", &["a:b", "c"]),
            (r"a\\:b", &[r"a\", "b"]),
            (r"a\\\:b", &[r"a\:b"]),
            (r"a\,b", &["a,b"]),
            ("/with space:/x", &["/with space", "/x"]),
        ];
        for (list, expected) in table {
            let expected = expected.iter().map(PathBuf::from).collect();
            assert_eq!(split_lowers(OsStr::new(list)), Ok(expected), "{list}");
        }
    }

    #[test]
    fn a_list_of_lowers_with_an_empty_element_is_refused() {
        for list in ["", ":", "a:", ":a", "a::b"] {
            assert_eq!(split_lowers(OsStr::new(list)), Err(SyntaxError::EmptyElement), "{list:?}");
        }
        assert_eq!(split_lowers(OsStr::new(r"a\")), Err(SyntaxError::LoneBackslash));
    }

    #[test]
    fn paths_that_are_not_utf8_survive() {
        let list = OsStr::from_bytes(b"lowerdir=/\xff:/\xfe");
        let items = split_options(list).expect("the syntax is right");
        let value = items[0].value.clone().expect("there is a value");
        let lowers = split_lowers(&value).expect("the list is right");
        assert_eq!(lowers, [PathBuf::from(OsStr::from_bytes(b"/\xff")), PathBuf::from(OsStr::from_bytes(b"/\xfe"))]);
    }

    #[test]
    fn seconds_take_fractions_and_nothing_that_is_not_a_plain_number() {
        let table = [
            ("0", 0),
            ("1", 1000),
            ("0.5", 500),
            (".25", 250),
            ("86400.", 86_400_000),
            ("1000000000", 1_000_000_000_000),
        ];
        for (text, millis) in table {
            assert_eq!(seconds(OsStr::new(text)), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", ".", "-1", "+1", "1e3", "inf", "nan", "1s", "1.2.3", "1000000001", "0x10", " 1"] {
            assert_eq!(seconds(OsStr::new(text)), Err(SyntaxError::NotSeconds), "{text:?}");
        }
    }

    #[test]
    fn threads_are_whole_and_within_reason() {
        assert_eq!(count(OsStr::new("4")).map(NonZeroUsize::get), Ok(4));
        for text in ["", "0", "-1", "+4", "1.5", "four", "1025", "99999999999999999999"] {
            assert_eq!(count(OsStr::new(text)), Err(SyntaxError::NotACount), "{text:?}");
        }
    }

    #[test]
    fn sizes_have_units_of_1024() {
        for (text, expected) in
            [("1", 1), ("4096", 4096), ("3K", 3072), ("2m", 2 << 20), ("5G", 5 << 30), ("1T", 1 << 40)]
        {
            assert_eq!(size(OsStr::new(text)), Ok(expected), "{text}");
        }
        for text in ["", "0", "0K", "K", "-1", "+1", "1.5G", "1KB", "1 K", "99999999999T", "G1"] {
            assert_eq!(size(OsStr::new(text)), Err(SyntaxError::NotASize), "{text:?}");
        }
    }

    #[test]
    fn a_label_cannot_smuggle_an_option_in() {
        assert_eq!(label(OsStr::new("my root")).as_deref(), Ok("my root"));
        for text in ["", "a,suid", "a\nb", r"a\b"] {
            assert_eq!(label(OsStr::new(text)), Err(SyntaxError::NotALabel), "{text:?}");
        }
        assert_eq!(label(OsStr::from_bytes(b"\xff")), Err(SyntaxError::NotALabel));
    }

    #[test]
    fn a_map_is_groups_of_three_and_may_begin_with_a_colon() {
        let range = |stored, shown, count| IdRange { stored, shown, count };
        let table: &[(&str, &[IdRange])] = &[
            ("0:1000:1", &[range(0, 1000, 1)]),
            (":0:1000:5000", &[range(0, 1000, 5000)]),
            ("0:1000:1:1:110000:65536", &[range(0, 1000, 1), range(1, 110_000, 65_536)]),
            (":0:1000:1:1:110000:65536", &[range(0, 1000, 1), range(1, 110_000, 65_536)]),
            ("0:1000:1,1:110000:65536", &[range(0, 1000, 1), range(1, 110_000, 65_536)]),
            ("0:4294967294:1", &[range(0, u32::MAX - 1, 1)]),
        ];
        for (text, ranges) in table {
            let expected = IdMap::new(ranges.to_vec()).expect("the ranges are apart");
            assert_eq!(id_map(OsStr::new(text)), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_map_that_is_garbled_overflows_or_overlaps_is_refused() {
        for text in [
            "",
            ":",
            "::0:1:2",
            "0:1",
            "0:1:2:3",
            "0:1:2:",
            "a:b:c",
            "0:-1:2",
            "0: 1:2",
            "0:1:4294967296",
            "0x0:1:2",
            "0:1:2;3:4:5",
        ] {
            assert_eq!(id_map(OsStr::new(text)), Err(SyntaxError::NotAMap), "{text:?}");
        }
        let refused = |text: &str| id_map(OsStr::new(text)).expect_err("no map can be made of it").to_string();
        assert!(refused("0:1000:0").contains("the range 0:1000:0 is empty"));
        assert!(refused("0:4294967295:1").contains("goes past 4294967294"));
        assert!(refused("1:1:4294967295").contains("goes past 4294967294"));
        assert!(refused("0:1000:10:5:2000:1").contains("the ranges 0:1000:10 and 5:2000:1 overlap"));
        assert_eq!(id_map(OsStr::from_bytes(b"0:1:\xff")), Err(SyntaxError::NotAMap));
    }

    #[test]
    fn ids_and_bytes_are_whole_and_within_reason() {
        assert_eq!(id(OsStr::new("0")), Ok(0));
        assert_eq!(id(OsStr::new("4294967294")), Ok(u32::MAX - 1));
        for text in ["", "-1", "+1", "4294967295", "root", "1.0"] {
            assert_eq!(id(OsStr::new(text)), Err(SyntaxError::NotAnId), "{text:?}");
        }
        assert_eq!(bytes(OsStr::new("131072")).map(NonZeroU32::get), Ok(131_072));
        for text in ["", "0", "-1", "1k", "4294967296"] {
            assert_eq!(bytes(OsStr::new(text)), Err(SyntaxError::NotBytes), "{text:?}");
        }
    }

    #[test]
    fn a_context_cannot_leave_its_quotes() {
        assert_eq!(context(OsStr::new("u:r:t:c1,c2")).as_deref(), Ok("u:r:t:c1,c2"));
        for text in ["", "a\",suid", "a\nb", r"a\", "a\0"] {
            assert_eq!(context(OsStr::new(text)), Err(SyntaxError::NotAContext), "{text:?}");
        }
    }

    /// Writes options so that [`split_options`] reads them as they are.
    fn write(items: &[Item]) -> OsString {
        let mut text = Vec::new();
        for item in items {
            text.extend_from_slice(item.name.as_bytes());
            if let Some(value) = item.value.as_ref().map(|value| value.as_bytes()) {
                let quotes: &[u8] = if find_unescaped(value, b",").is_some() { b"\"" } else { b"" };
                text.extend_from_slice(&[b"=", quotes, value, quotes].concat());
            }
            text.push(b',');
        }
        // What ends in a lone backslash is the last one, and would take a comma's meaning away.
        text.pop();
        OsString::from_vec(text)
    }

    /// Bytes of which the syntax is made, and others.
    fn text() -> impl Strategy<Value = OsString> {
        let byte = prop_oneof![
            3 => proptest::sample::select(&b",=:\\\"+"[..]),
            2 => proptest::sample::select(&b"0123456789."[..]),
            2 => proptest::sample::select(&b"aelort_dw"[..]),
            1 => any::<u8>(),
        ];
        proptest::collection::vec(byte, 0..40).prop_map(OsString::from_vec)
    }

    proptest! {
        #[test]
        fn options_that_were_read_are_read_again_as_they_are_written(text in text()) {
            if let Ok(items) = split_options(&text) {
                prop_assert_eq!(split_options(&write(&items)), Ok(items));
            }
        }

        #[test]
        fn lowers_that_were_read_are_read_again_as_they_are_written(list in text()) {
            if let Ok(paths) = split_lowers(&list) {
                let escaped = paths.iter().map(|path| {
                    let bytes = path.as_os_str().as_bytes();
                    bytes.iter().flat_map(|byte| [b'\\', *byte]).collect::<Vec<u8>>()
                });
                let list = escaped.collect::<Vec<_>>().join(&b':');
                prop_assert_eq!(split_lowers(OsStr::from_bytes(&list)), Ok(paths));
            }
        }

        #[test]
        fn values_of_any_bytes_are_read_or_refused(value in text()) {
            let _ = (path(&value), count(&value), seconds(&value), label(&value), id(&value), bytes(&value));
            let _ = (context(&value), unescape(&value), id_map(&value)); // That it returns is the fact.
        }
    }
}

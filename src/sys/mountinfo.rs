//! The table of mounts that this process sees: /proc/self/mountinfo, as proc_pid_mountinfo(5) describes it.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The number of the mount, as statx(2) has it.
    pub id: u64,
    /// The number of the device, major and minor, as in `st_dev`.
    pub device: (u32, u32),
    /// What it is mounted on.
    pub path: PathBuf,
    /// Whether it shows other owners than are stored (mount_setattr(2), MOUNT_ATTR_IDMAP).
    pub idmapped: bool,
    /// The type of the file system.
    pub kind: OsString,
    /// The options of the file system, whichever of its mounts this is.
    pub options: OsString,
}

/// Reads the table. Mounts on one path are in the order in which they were made, the one that covers the others last.
pub fn read() -> io::Result<Vec<Line>> {
    std::fs::read("/proc/self/mountinfo").map(|table| parse(&table))
}

fn parse(table: &[u8]) -> Vec<Line> {
    table.split(|&byte| byte == b'\n').filter_map(line).collect()
}

fn line(line: &[u8]) -> Option<Line> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let (major, minor) = std::str::from_utf8(fields.nth(1)?).ok()?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let path = PathBuf::from(unescape(fields.nth(1)?));
    let idmapped = fields.next()?.split(|&byte| byte == b',').any(|option| option == b"idmapped");
    // Optional fields end at a dash; type, source and options are next.
    let mut fields = fields.skip_while(|field| *field != b"-");
    let kind = unescape(fields.nth(1)?);
    let options = unescape(fields.nth(1).unwrap_or_default());
    Some(Line { id, device, path, idmapped, kind, options })
}

/// Reads `\040` and its like, which stand for white space and backslashes.
fn unescape(field: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| byte == b'\\') {
            Some(escaped) => {
                plain.push(escaped);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                plain.push(byte);
                rest = after;
            }
        }
    }
    OsString::from_vec(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_and_what_is_none_is_left_out() {
        let table = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            30 22 0:40 / /mnt/a\\040b rw shared:2 master:1 - tmpfs tmpfs rw\n\
            31 30 0:41 / /mnt/a\\040b rw,idmapped - fuse.unionfs-rs unionfs-rs rw,user_id=0\n\
            32 22 0:42 / /mnt/c\\134d rw - fuse.x x rw\n\
            short line\n";
        let lines: Vec<_> = parse(table)
            .into_iter()
            .map(|line| (line.id, line.device, line.path.display().to_string(), line.idmapped, line.kind, line.options))
            .collect();
        let expected = [
            (22, (8, 1), "/", false, "ext4", "rw"),
            (30, (0, 40), "/mnt/a b", false, "tmpfs", "rw"),
            (31, (0, 41), "/mnt/a b", true, "fuse.unionfs-rs", "rw,user_id=0"),
            (32, (0, 42), r"/mnt/c\d", false, "fuse.x", "rw"),
        ];
        let expected = expected.map(|(id, device, path, idmapped, kind, options)| {
            (id, device, path.to_owned(), idmapped, OsString::from(kind), OsString::from(options))
        });
        assert_eq!(lines, expected);
    }
}

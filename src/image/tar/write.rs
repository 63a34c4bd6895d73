//! Writing a tar so that equal members give equal bytes: ustar headers, and pax records, sorted, where those have no room.

use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;

use super::super::digest::invalid;
use super::header::{self, Field, USTAR};
use super::{BLOCK, Member, MemberKind, pax};
use crate::layer::attr::FileKind;

/// Writes members to a stream.
#[derive(Debug)]
pub struct Writer<W> {
    stream: W,
}

impl<W: Write> Writer<W> {
    /// Writes to `stream`.
    pub fn new(stream: W) -> Self {
        Self { stream }
    }

    /// Writes a member, and `member.size` bytes of `data` for a regular file; extents are not looked at.
    ///
    /// Errors: `UnexpectedEof` where `data` is shorter, `InvalidInput` for a socket, and those of the two streams.
    pub fn append(&mut self, member: &Member, data: impl Read) -> io::Result<()> {
        let mut contents = self.begin(member)?;
        io::copy(&mut data.take(contents.left), &mut contents)?;
        contents.finish()
    }

    /// Writes the headers of a member; its data, of a regular file, is to be written to what is returned.
    pub fn begin(&mut self, member: &Member) -> io::Result<Contents<'_, W>> {
        let (header, records) = encode(member)?;
        if !records.is_empty() {
            let size = records.len() as u64;
            self.stream.write_all(&pax_header(&member.path, size))?;
            self.stream.write_all(&records)?;
            self.pad(size)?;
        }
        self.stream.write_all(&header)?;
        let left = if member.kind == MemberKind::File(FileKind::Regular) { member.size } else { 0 };
        Ok(Contents { writer: self, size: left, left })
    }

    /// Writes the end, and returns the stream.
    pub fn finish(mut self) -> io::Result<W> {
        self.stream.write_all(&[0; 2 * BLOCK])?;
        self.stream.flush()?;
        Ok(self.stream)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let len = size.next_multiple_of(BLOCK as u64) - size;
        let zeros = [0; BLOCK];
        self.stream.write_all(zeros.get(..usize::try_from(len).unwrap_or_default()).unwrap_or_default())
    }
}

/// The data of a member that is being written: as many bytes as its header says.
#[derive(Debug)]
pub struct Contents<'a, W> {
    writer: &'a mut Writer<W>,
    size: u64,
    left: u64,
}

impl<W: Write> Contents<'_, W> {
    /// Ends the member. Errors: `UnexpectedEof` where bytes are missing.
    pub fn finish(self) -> io::Result<()> {
        if self.left > 0 {
            let reason = format!("has become shorter, from {} to {} bytes", self.size, self.size - self.left);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason));
        }
        self.writer.pad(self.size)
    }
}

impl<W: Write> Write for Contents<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("has more than {} bytes", self.size)));
        }
        let len = self.writer.stream.write(bytes)?;
        self.left -= len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.stream.flush()
    }
}

/// A header that is being written.
struct Block([u8; BLOCK]);

impl Block {
    fn new() -> Self {
        let mut block = Self([0; BLOCK]);
        block.put(header::MAGIC, USTAR);
        block
    }

    /// Writes `bytes` to the beginning of a field; false where they are too long.
    fn put(&mut self, Field(start, len): Field, bytes: &[u8]) -> bool {
        match self.0.get_mut(start..start + len.min(bytes.len())) {
            Some(field) if bytes.len() <= len => {
                field.copy_from_slice(bytes);
                true
            }
            _ => false,
        }
    }

    /// Writes a number in octal digits with a zero at their end; false where there is no room.
    fn put_number(&mut self, field: Field, number: u64) -> bool {
        let digits = format!("{number:0width$o}", width = field.1 - 1);
        digits.len() < field.1 && self.put(field, digits.as_bytes())
    }

    /// Writes the sum over all, and returns the block.
    fn finish(mut self) -> [u8; BLOCK] {
        self.put(header::CHECKSUM, b"        ");
        let sum: u32 = self.0.iter().map(|byte| u32::from(*byte)).sum();
        self.put(header::CHECKSUM, format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

/// Makes the header of a member, and the pax records that must come before it, sorted by keyword.
fn encode(member: &Member) -> io::Result<([u8; BLOCK], Vec<u8>)> {
    let mut block = Block::new();
    let mut records: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut record = |keyword: &str, value: &[u8]| records.push((keyword.into(), value.to_vec()));
    let ascii = member.path.is_ascii();
    if !(ascii && put_path(&mut block, &member.path)) {
        record("path", &member.path);
        block.put(header::NAME, member.path.get(..header::NAME.1).unwrap_or(&member.path));
    }
    if !(member.link.is_ascii() && block.put(header::LINK, &member.link)) {
        record("linkpath", &member.link);
        block.put(header::LINK, member.link.get(..header::LINK.1).unwrap_or(&member.link));
    }
    for (keyword, field, id) in [("uid", header::UID, member.uid), ("gid", header::GID, member.gid)] {
        if !block.put_number(field, u64::from(id)) {
            record(keyword, id.to_string().as_bytes());
            block.put_number(field, 0);
        }
    }
    if !block.put_number(header::SIZE, member.size) {
        record("size", member.size.to_string().as_bytes());
        block.put_number(header::SIZE, 0);
    }
    let secs = u64::try_from(member.mtime.secs).ok();
    let plain = secs.is_some_and(|secs| member.mtime.nanos == 0 && block.put_number(header::MTIME, secs));
    if !plain {
        record("mtime", pax::time_text(member.mtime).as_bytes());
        if !block.put_number(header::MTIME, secs.unwrap_or_default()) {
            block.put_number(header::MTIME, 0);
        }
    }
    block.put_number(header::MODE, u64::from(member.mode & 0o7777));
    block.put(header::TYPE, &[type_of(member)?]);
    if matches!(member.kind, MemberKind::File(FileKind::Char | FileKind::Block)) {
        let (major, minor) = member.rdev;
        // Linux has 12 bits for one and 20 for the other, and the fields have 21.
        block.put_number(header::DEV_MAJOR, u64::from(major));
        block.put_number(header::DEV_MINOR, u64::from(minor));
    }
    for (name, value) in &member.xattrs {
        records.push(([pax::XATTR, name.as_bytes()].concat(), value.clone()));
    }
    records.sort();
    let mut bytes = Vec::new();
    for (keyword, value) in &records {
        pax::push(&mut bytes, keyword, value);
    }
    Ok((block.finish(), bytes))
}

/// Writes a path, parted at a slash where it is too long for one field; false where that does not help either.
fn put_path(block: &mut Block, path: &[u8]) -> bool {
    if block.put(header::NAME, path) {
        return true;
    }
    let slashes = path.iter().enumerate().filter(|(at, byte)| **byte == b'/' && *at > 0 && *at + 1 < path.len());
    let fits = |at: &usize| *at <= header::PREFIX.1 && path.len() - at - 1 <= header::NAME.1;
    let Some(at) = slashes.map(|(at, _)| at).find(fits) else { return false };
    let (prefix, name) = path.split_at(at);
    block.put(header::PREFIX, prefix) && block.put(header::NAME, name.get(1..).unwrap_or_default())
}

fn type_of(member: &Member) -> io::Result<u8> {
    Ok(match member.kind {
        MemberKind::HardLink => b'1',
        MemberKind::File(FileKind::Regular) => b'0',
        MemberKind::File(FileKind::Symlink) => b'2',
        MemberKind::File(FileKind::Char) => b'3',
        MemberKind::File(FileKind::Block) => b'4',
        MemberKind::File(FileKind::Directory) => b'5',
        MemberKind::File(FileKind::Fifo) => b'6',
        MemberKind::File(FileKind::Socket) => return Err(invalid("is a socket, which tar does not have")),
    })
}

/// Makes the header of the records of the member with `path`, with a name as POSIX proposes it.
fn pax_header(path: &[u8], size: u64) -> [u8; BLOCK] {
    let name = path.strip_suffix(b"/").unwrap_or(path).rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let name = [b"PaxHeaders.0/", name].concat();
    let mut block = Block::new();
    block.put(header::NAME, name.get(..header::NAME.1).unwrap_or(&name));
    block.put(header::TYPE, b"x");
    block.put_number(header::MODE, 0o644);
    for field in [header::UID, header::GID, header::MTIME] {
        block.put_number(field, 0);
    }
    block.put_number(header::SIZE, size);
    block.finish()
}

#[cfg(test)]
mod tests {
    use super::super::read::Members;
    use super::*;
    use crate::layer::attr::Timestamp;

    fn member(path: &str, kind: FileKind) -> Member {
        Member {
            path: path.into(),
            kind: MemberKind::File(kind),
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Timestamp { secs: 1_700_000_000, nanos: 0 },
            size: 0,
            link: Vec::new(),
            rdev: (0, 0),
            xattrs: Vec::new(),
            extents: None,
        }
    }

    fn samples() -> Vec<(Member, Vec<u8>)> {
        let file = |path: &str, data: &[u8]| {
            (Member { size: data.len() as u64, ..member(path, FileKind::Regular) }, data.to_vec())
        };
        let other = |path: &str, kind| (member(path, kind), Vec::new());
        let mut list = vec![
            other("d/", FileKind::Directory),
            file("d/empty", b""),
            file("d/full", &[7; 1500]),
            file(&format!("{}/{}", "p".repeat(150), "n".repeat(99)), b"x"),
            file(&"deep/".repeat(400), b"x"),
            file(&"l".repeat(255), b"x"),
            file("ümlaut", b"x"),
            other("pipe", FileKind::Fifo),
        ];
        list.push((Member { link: "target/of/it".into(), ..member("link", FileKind::Symlink) }, Vec::new()));
        list.push((Member { link: "t".repeat(300).into(), ..member("long", FileKind::Symlink) }, Vec::new()));
        let hard = Member { kind: MemberKind::HardLink, link: "d/full".into(), ..member("hard", FileKind::Regular) };
        list.push((hard, Vec::new()));
        list.push((Member { rdev: (8, 1_000_000), ..member("block", FileKind::Block) }, Vec::new()));
        let mut odd = member("odd", FileKind::Regular);
        (odd.uid, odd.gid, odd.mode) = (4_000_000_000, 1 << 21, 0o6755);
        odd.mtime = Timestamp { secs: -2, nanos: 500_000_000 };
        odd.xattrs = vec![("security.capability".into(), vec![0, 10, 61, 255]), ("user.x".into(), Vec::new())];
        list.push((odd, Vec::new()));
        list
    }

    fn written() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        for (member, data) in samples() {
            writer.append(&member, &data[..]).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn members_are_read_as_they_were_written() {
        let bytes = written();
        assert_eq!(bytes, written());
        let mut members = Members::new(&bytes[..]);
        for (expected, data) in samples() {
            assert_eq!(members.next_member().unwrap().as_ref(), Some(&expected));
            let mut read = Vec::new();
            members.data().read_to_end(&mut read).unwrap();
            assert_eq!(read, data);
        }
        assert_eq!(members.next_member().unwrap(), None);
    }

    #[test]
    fn an_archive_that_is_cut_off_in_a_member_is_refused() {
        let bytes = written();
        for end in (1..bytes.len() - 1024).filter(|end| end % 512 != 0) {
            let mut members = Members::new(&bytes[..end]);
            let mut read = || -> io::Result<Vec<(Member, Vec<u8>)>> {
                let mut all = Vec::new();
                while let Some(member) = members.next_member()? {
                    let mut data = Vec::new();
                    members.data().read_to_end(&mut data)?;
                    all.push((member, data));
                }
                Ok(all)
            };
            // What is cut off of its padding alone has lost nothing.
            if let Ok(all) = read() {
                assert_eq!(all, samples()[..all.len()], "cut off at {end}");
                assert!(bytes[end..end.next_multiple_of(512)].iter().all(|byte| *byte == 0), "cut off at {end}");
            }
        }
    }

    #[test]
    fn data_that_has_become_shorter_is_an_error() {
        let mut writer = Writer::new(Vec::new());
        let (file, _) = &samples()[2];
        assert_eq!(writer.append(file, &b"short"[..]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}

//! Members of a tar, one after the other, from a stream.

use std::ffi::OsString;
use std::io::{self, BufRead, Read};
use std::os::unix::ffi::OsStringExt;

use super::super::digest::invalid;
use super::header::{self, Field, Header};
use super::pax::{NUMBER_MAX, Records};
use super::{BLOCK, Member, MemberKind, PATH_MAX, sparse};
use crate::layer::attr::{FileKind, Timestamp};

/// The most bytes of headers that belong to one member, and of those that belong to all.
const HEADERS_MAX: u64 = 2 << 20;

/// Reads members from a stream.
#[derive(Debug)]
pub struct Members<R> {
    stream: R,
    /// How many bytes were read.
    at: u64,
    /// How many bytes of the current member's data were not read yet.
    left: u64,
    /// How many bytes follow them up to the next header.
    padding: u64,
}

/// What headers before the one of the member say.
#[derive(Default)]
struct Before {
    records: Records,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    bytes: u64,
}

impl<R: Read> Members<R> {
    /// Reads `stream` from where it is.
    pub fn new(stream: R) -> Self {
        Self { stream, at: 0, left: 0, padding: 0 }
    }

    /// Returns the stream, behind what was read of it.
    pub fn into_inner(self) -> R {
        self.stream
    }

    /// Returns how many bytes of the stream were read.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Returns the next member; `None` at the end, which is two empty blocks, one, or the end of the stream.
    ///
    /// Errors: `InvalidData` for what no layer has, and those of the stream.
    pub fn next_member(&mut self) -> io::Result<Option<Member>> {
        self.skip()?;
        let mut before = Before::default();
        loop {
            let start = self.at;
            let Some(header) = self.header()? else {
                return if before.bytes == 0 { Ok(None) } else { Err(cut_off()) };
            };
            if header.is_empty() {
                return Ok(None);
            }
            if !header.is_sound() {
                return Err(invalid(format!("byte {start} begins no tar header")));
            }
            if self.is_of_next(&header, &mut before)? {
                continue;
            }
            return self.member(&header, before).map(Some);
        }
    }

    /// Returns the data of the current member: as it is stored, for a sparse file its extents alone.
    pub fn data(&mut self) -> Data<'_, R> {
        Data(self)
    }

    /// Goes to the next header.
    fn skip(&mut self) -> io::Result<()> {
        let (left, padding) = (std::mem::take(&mut self.left), std::mem::take(&mut self.padding));
        let bytes = left.saturating_add(padding);
        let skipped = io::copy(&mut self.stream.by_ref().take(bytes), &mut io::sink())?;
        self.at += skipped;
        // The last member may have none behind it, as `umoci insert` writes it.
        if skipped < left { Err(cut_off()) } else { Ok(()) }
    }

    /// Reads a block; `None` at the end of the stream.
    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.stream.read(rest) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(cut_off()),
                Ok(len) => filled += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.at += BLOCK as u64;
        Ok(Some(Header(block)))
    }

    /// Reads a block that must be there.
    fn block(&mut self) -> io::Result<Header> {
        self.header()?.ok_or_else(cut_off)
    }

    /// Reads what `header` says of the member after it; false where it is that of a member itself.
    fn is_of_next(&mut self, header: &Header, before: &mut Before) -> io::Result<bool> {
        match header.text(header::TYPE) {
            b"x" => {
                let bytes = self.small(header, &mut before.bytes)?;
                before.records.extend(&bytes)?;
            }
            // Of all members at once, as Docker and containers/storage do: it means nothing in a layer.
            b"g" => {
                let size = size(header)?;
                (self.left, self.padding) = (size, padding(size));
                self.skip()?;
            }
            b"L" => before.path = Some(header::up_to_zero(&self.small(header, &mut before.bytes)?).to_vec()),
            b"K" => before.link = Some(header::up_to_zero(&self.small(header, &mut before.bytes)?).to_vec()),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Reads the data of a header that belongs to others; `sum` is how much such data there was before.
    fn small(&mut self, header: &Header, sum: &mut u64) -> io::Result<Vec<u8>> {
        let size = size(header)?;
        *sum = sum.saturating_add(size).saturating_add(BLOCK as u64);
        if *sum > HEADERS_MAX {
            return Err(invalid(format!("has more than {HEADERS_MAX} bytes of headers")));
        }
        (self.left, self.padding) = (size, padding(size));
        let mut bytes = Vec::new();
        self.data().read_to_end(&mut bytes)?;
        self.skip()?;
        Ok(bytes)
    }

    /// Makes the member that `header` is the header of.
    fn member(&mut self, header: &Header, before: Before) -> io::Result<Member> {
        let records = before.records;
        let stored = match records.number("size")? {
            Some(size) => size,
            None => size(header)?,
        };
        let path = [records.get("GNU.sparse.name"), records.get("path")].into_iter().flatten().next();
        let path = path.map(<[u8]>::to_vec).or(before.path).unwrap_or_else(|| header.path());
        let link = records.get("linkpath").map(<[u8]>::to_vec).or(before.link);
        let link = link.unwrap_or_else(|| header.text(header::LINK).to_vec());
        check_name(&path, "path")?;
        let kind = kind(header, &path).map_err(|error| named(&path, error))?;
        let regular = kind == MemberKind::File(FileKind::Regular);
        let stored = if regular { stored } else { 0 };
        (self.left, self.padding) = (stored, padding(stored));
        let make = || -> io::Result<Member> {
            let links = matches!(kind, MemberKind::HardLink | MemberKind::File(FileKind::Symlink));
            if links {
                check_name(&link, "target")?;
            }
            let (extents, size) = if regular { self.map(header, &records, stored)? } else { (None, 0) };
            let device = matches!(kind, MemberKind::File(FileKind::Char | FileKind::Block));
            let rdev = if device {
                (unsigned(header, header::DEV_MAJOR, "device")?, unsigned(header, header::DEV_MINOR, "device")?)
            } else {
                (0, 0)
            };
            Ok(Member {
                path: path.clone(),
                kind,
                mode: u32::try_from(header.number(header::MODE, "mode")? & 0o7777).unwrap_or_default(),
                uid: id(&records, header, ("uid", header::UID))?,
                gid: id(&records, header, ("gid", header::GID))?,
                mtime: match records.time("mtime")? {
                    Some(time) => time,
                    None => Timestamp { secs: header.number(header::MTIME, "mtime")?, nanos: 0 },
                },
                size,
                link: if links { link } else { Vec::new() },
                rdev,
                xattrs: xattrs(&records)?,
                extents,
            })
        };
        make().map_err(|error| named(&path, error))
    }

    /// Returns where the data of a regular file is, for a sparse one, and how long the file is.
    fn map(&mut self, header: &Header, records: &Records, stored: u64) -> io::Result<(Option<sparse::Extents>, u64)> {
        if header.text(header::TYPE) == b"S" {
            let extents = self.old_map(header)?;
            // Blocks with more extents stand before the data, and do not count as it.
            (self.left, self.padding) = (stored, padding(stored));
            let size = unsigned_long(header, header::SPARSE_SIZE, "size")?;
            return Ok((Some(sparse::checked(extents, size, stored)?), size));
        }
        let real = match records.number("GNU.sparse.realsize")? {
            Some(size) => Some(size),
            None => records.number("GNU.sparse.size")?,
        };
        let Some(size) = real else { return Ok((None, stored)) };
        if records.get("GNU.sparse.major") == Some(b"1") {
            let (extents, taken) = {
                let mut left = stored;
                sparse::before_data(|| {
                    left = left.checked_sub(BLOCK as u64).ok_or_else(cut_off)?;
                    self.block().map(|block| block.0)
                })?
            };
            self.left = stored - taken; // No more than `stored` was taken, as counted above.
            return Ok((Some(sparse::checked(extents, size, self.left)?), size));
        }
        match sparse::of_records(records)? {
            Some(extents) => Ok((Some(sparse::checked(extents, size, stored)?), size)),
            None => Err(invalid("is sparse, and has no map of its holes")),
        }
    }

    /// Reads the map of GNU's old form: four extents in the header, and 21 in each block after it.
    fn old_map(&mut self, header: &Header) -> io::Result<sparse::Extents> {
        const MORE: Field = Field(504, 1);
        let mut extents = Vec::new();
        sparse::add_old(&mut extents, old_extents(header, header::SPARSE))?;
        let mut more = header.bytes(header::SPARSE_MORE) != [0];
        while more {
            let block = self.block()?;
            sparse::add_old(&mut extents, old_extents(&block, Field(0, 504)))?;
            more = block.bytes(MORE) != [0];
        }
        Ok(extents)
    }
}

/// The data of a member.
#[derive(Debug)]
pub struct Data<'a, R>(&'a mut Members<R>);

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.0.left).unwrap_or(usize::MAX).min(buffer.len());
        let Some(buffer) = buffer.get_mut(..most).filter(|buffer| !buffer.is_empty()) else { return Ok(0) };
        let len = self.0.stream.read(buffer)?;
        if len == 0 {
            return Err(cut_off());
        }
        self.0.at += len as u64;
        self.0.left -= len as u64;
        Ok(len)
    }
}

impl<R: BufRead> BufRead for Data<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.0.left == 0 {
            return Ok(&[]);
        }
        let bytes = self.0.stream.fill_buf()?;
        let most = usize::try_from(self.0.left).unwrap_or(usize::MAX).min(bytes.len());
        if most == 0 { Err(cut_off()) } else { Ok(bytes.get(..most).unwrap_or_default()) }
    }

    fn consume(&mut self, len: usize) {
        let len = u64::try_from(len).unwrap_or(u64::MAX).min(self.0.left);
        self.0.stream.consume(usize::try_from(len).unwrap_or_default());
        self.0.at += len;
        self.0.left -= len;
    }
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "is cut off")
}

/// Says which member it is that `error` is about.
fn named(path: &[u8], error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("member {:?}: {error}", String::from_utf8_lossy(path)))
}

fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64).saturating_sub(size)
}

/// The size that a header says.
fn size(header: &Header) -> io::Result<u64> {
    unsigned_long(header, header::SIZE, "size")
}

fn unsigned_long(header: &Header, field: Field, what: &str) -> io::Result<u64> {
    let number = header.number(field, what)?;
    u64::try_from(number)
        .ok()
        .filter(|size| *size < NUMBER_MAX)
        .ok_or_else(|| invalid(format!("has the {what} {number}")))
}

fn unsigned(header: &Header, field: Field, what: &str) -> io::Result<u32> {
    let number = header.number(field, what)?;
    u32::try_from(number).map_err(|_| invalid(format!("has the {what} {number}")))
}

/// The id of an owner: of the records, else of the header. The highest number means "none" to chown(2).
fn id(records: &Records, header: &Header, (keyword, field): (&str, Field)) -> io::Result<u32> {
    let number = match records.number(keyword)? {
        Some(number) => i128::from(number),
        None => i128::from(header.number(field, keyword)?),
    };
    u32::try_from(number)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| invalid(format!("has the {keyword} {number}")))
}

/// Checks a path or a target: not empty, not too long, without zeros.
fn check_name(name: &[u8], what: &str) -> io::Result<()> {
    if name.is_empty() {
        return Err(invalid(format!("has an empty {what}")));
    }
    if name.len() > PATH_MAX {
        return Err(invalid(format!("has a {what} of {} bytes, and {PATH_MAX} are possible", name.len())));
    }
    if name.contains(&0) { Err(invalid(format!("has a {what} with a zero in it"))) } else { Ok(()) }
}

fn kind(header: &Header, path: &[u8]) -> io::Result<MemberKind> {
    let kind = match header.bytes(header::TYPE) {
        // Archives older than POSIX know a directory by its name alone.
        b"\0" if path.ends_with(b"/") => FileKind::Directory,
        b"0" | b"\0" | b"7" => FileKind::Regular,
        b"S" if header.is_gnu() => FileKind::Regular,
        b"1" => return Ok(MemberKind::HardLink),
        b"2" => FileKind::Symlink,
        b"3" => FileKind::Char,
        b"4" => FileKind::Block,
        b"5" => FileKind::Directory,
        b"6" => FileKind::Fifo,
        other => {
            let shown = String::from_utf8_lossy(other).into_owned();
            return Err(invalid(format!("is of the type {shown:?}, which layers do not have")));
        }
    };
    Ok(MemberKind::File(kind))
}

fn xattrs(records: &Records) -> io::Result<Vec<(OsString, Vec<u8>)>> {
    let name = |name: &[u8]| {
        // XATTR_NAME_MAX
        let right = !name.is_empty() && name.len() <= 255 && !name.contains(&0);
        right.then(|| OsString::from_vec(name.to_vec())).ok_or_else(|| invalid("has an xattr with an impossible name"))
    };
    records.xattrs().map(|(key, value)| Ok((name(key)?, value.to_vec()))).collect()
}

/// Reads pairs of octal fields of twelve bytes, up to the first empty one.
fn old_extents(header: &Header, Field(start, len): Field) -> impl Iterator<Item = io::Result<(u64, u64)>> {
    let fields = (start..start + len - 23).step_by(24).take_while(|at| header.bytes(Field(*at, 1)) != [0]);
    fields.map(|at| {
        let number = |at| unsigned_long(header, Field(at, 12), "map of holes");
        Ok((number(at)?, number(at + 12)?))
    })
}

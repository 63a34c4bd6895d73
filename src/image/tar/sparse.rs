//! Where the data of a sparse file is, in the four forms that GNU tar has written.
//!
//! The old form has a map in the header and in blocks after it; 0.0 has it in repeated pax records, 0.1 in one; 1.0 has it
//! before the data.

use std::io;

use super::super::digest::invalid;
use super::pax::{Records, digits};

/// The most extents of one file: what a file of 16 GiB has where every other page is a hole.
const EXTENTS_MAX: usize = 1 << 21;

/// Where data is: offset and length in bytes.
pub type Extents = Vec<(u64, u64)>;

/// Checks that extents ascend, do not overlap, end within `size`, and together have `stored` bytes; drops empty ones.
pub fn checked(extents: Extents, size: u64, stored: u64) -> io::Result<Extents> {
    let garbled = || invalid("has a map of holes that is wrong");
    let (mut end, mut sum) = (0_u64, 0_u64);
    for &(offset, length) in &extents {
        if offset < end {
            return Err(garbled());
        }
        end = offset.checked_add(length).ok_or_else(garbled)?;
        sum += length; // No more than `end`.
    }
    if end > size || sum != stored {
        return Err(garbled());
    }
    Ok(extents.into_iter().filter(|(_, length)| *length > 0).collect())
}

/// Returns the map of the forms 0.0 and 0.1, which are in pax records.
pub fn of_records(records: &Records) -> io::Result<Option<Extents>> {
    let garbled = || invalid("has a map of holes that cannot be read");
    let numbers = match records.get("GNU.sparse.map") {
        Some(map) => map.split(|byte| *byte == b',').map(digits).collect::<Option<Vec<_>>>().ok_or_else(garbled)?,
        None if records.sparse.is_empty() => return Ok(None),
        None => records.sparse.clone(),
    };
    pairs(&numbers).map(Some)
}

fn pairs(numbers: &[u64]) -> io::Result<Extents> {
    if !numbers.len().is_multiple_of(2) || numbers.len() / 2 > EXTENTS_MAX {
        return Err(invalid("has a map of holes that cannot be read"));
    }
    Ok(numbers.chunks_exact(2).filter_map(|pair| Some((*pair.first()?, *pair.last()?))).collect())
}

/// Reads the map of form 1.0, which stands before the data in whole blocks: a number a line, the count of extents first.
///
/// `next` gives the next block. Returns the map and how many bytes it has taken.
pub fn before_data(mut next: impl FnMut() -> io::Result<[u8; super::BLOCK]>) -> io::Result<(Extents, u64)> {
    let garbled = || invalid("has a map of holes that cannot be read");
    let (mut numbers, mut line, mut taken) = (Vec::new(), Vec::new(), 0);
    let mut wanted = None;
    loop {
        let block = next()?;
        taken += super::BLOCK as u64;
        for byte in block {
            if byte != b'\n' {
                line.push(byte);
                if line.len() > 20 {
                    return Err(garbled());
                }
                continue;
            }
            let number = digits(&line).filter(|_| !line.is_empty()).ok_or_else(garbled)?;
            line.clear();
            if wanted.is_some() {
                numbers.push(number);
            } else {
                let count = usize::try_from(number).ok().filter(|count| *count <= EXTENTS_MAX).ok_or_else(garbled)?;
                wanted = Some(count * 2);
            }
            if wanted == Some(numbers.len()) {
                return Ok((pairs(&numbers)?, taken));
            }
        }
    }
}

/// Adds the extents of one block of the old form: pairs of fields of twelve bytes, of which an empty one is the last.
pub fn add_old(extents: &mut Extents, numbers: impl Iterator<Item = io::Result<(u64, u64)>>) -> io::Result<()> {
    for extent in numbers {
        extents.push(extent?);
    }
    if extents.len() > EXTENTS_MAX { Err(invalid("has more holes than a file can have")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_that_overlaps_or_ends_elsewhere_is_refused() {
        assert_eq!(checked(vec![(0, 5), (5, 0), (10, 2)], 20, 7).unwrap(), [(0, 5), (10, 2)]);
        for (extents, size, stored) in [
            (vec![(0, 5), (4, 2)], 20, 7),
            (vec![(10, 2), (0, 5)], 20, 7),
            (vec![(0, 5)], 4, 5),
            (vec![(0, 5)], 20, 6),
            (vec![(u64::MAX, 2)], u64::MAX, 2),
        ] {
            assert!(checked(extents.clone(), size, stored).is_err(), "{extents:?} {size} {stored}");
        }
    }

    #[test]
    fn the_map_before_the_data_may_span_blocks() {
        let mut text = b"60\n".to_vec();
        for n in 0..60_u64 {
            text.extend_from_slice(format!("{}\n{}\n", n * 4096, 100).as_bytes());
        }
        text.resize(text.len().next_multiple_of(512), 0);
        let mut blocks = text.chunks_exact(512).map(|block| Ok(block.try_into().unwrap()));
        let (map, taken) = before_data(|| blocks.next().unwrap()).unwrap();
        assert_eq!((map.len(), map[59], taken), (60, (59 * 4096, 100), text.len() as u64));
        for garbage in [&b"x\n"[..], b"99999999999999999999999\n", b"9999999\n", b"1\n\n"] {
            let mut block = [b'\n'; 512];
            block[..garbage.len()].copy_from_slice(garbage);
            assert!(before_data(|| Ok(block)).is_err(), "{garbage:?}");
        }
    }
}

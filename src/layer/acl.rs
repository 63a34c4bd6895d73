//! POSIX ACLs as xattrs hold them, and how a new file inherits its directory's default ACL.

use rustix::io::Errno;

/// The xattr of the ACL that a directory's new entries get.
pub const DEFAULT: &str = "system.posix_acl_default";

/// The xattr of the ACL that is checked.
pub const ACCESS: &str = "system.posix_acl_access";

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Debug, Clone, Copy)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

/// What a new file gets from a default ACL.
#[derive(Debug, PartialEq, Eq)]
pub struct Inherited {
    /// The permission bits, in place of those that were asked for.
    pub mode: u32,
    /// The access ACL; `None` where the mode says it all.
    pub access: Option<Vec<u8>>,
}

/// Works out the mode and access ACL of a file made with `mode` under the default ACL `value`, as acl(5) says.
///
/// Errors: EINVAL for a value that is no ACL.
pub fn inherit(value: &[u8], mode: u32) -> Result<Inherited, Errno> {
    let mut entries = parse(value)?;
    let mut granted = mode & !0o777;
    let masked = entries.iter().any(|e| e.tag == MASK);
    let mut extended = false;
    for entry in &mut entries {
        let shift = match entry.tag {
            USER_OBJ => 6,
            OTHER => 0,
            // With a mask, it takes the group's bits and the owning group's entry stays as it is.
            MASK => 3,
            GROUP_OBJ if !masked => 3,
            GROUP_OBJ => continue,
            USER | GROUP => {
                extended = true;
                continue;
            }
            _ => return Err(Errno::INVAL),
        };
        entry.perm &= ((mode >> shift) & 7) as u16;
        granted |= u32::from(entry.perm) << shift;
    }
    let access = (extended || masked).then(|| format(&entries));
    Ok(Inherited { mode: granted, access })
}

fn parse(value: &[u8]) -> Result<Vec<Entry>, Errno> {
    let (version, entries) = value.split_first_chunk().ok_or(Errno::INVAL)?;
    if u32::from_le_bytes(*version) != VERSION || entries.len() % 8 != 0 {
        return Err(Errno::INVAL);
    }
    let entry = |e: &[u8]| match *e {
        [t0, t1, p0, p1, i0, i1, i2, i3] => Entry {
            tag: u16::from_le_bytes([t0, t1]),
            perm: u16::from_le_bytes([p0, p1]),
            id: u32::from_le_bytes([i0, i1, i2, i3]),
        },
        // chunks_exact(8) gives nothing else.
        _ => Entry { tag: 0, perm: 0, id: 0 },
    };
    Ok(entries.chunks_exact(8).map(entry).collect())
}

fn format(entries: &[Entry]) -> Vec<u8> {
    let mut value = VERSION.to_le_bytes().to_vec();
    for e in entries {
        value.extend_from_slice(&e.tag.to_le_bytes());
        value.extend_from_slice(&e.perm.to_le_bytes());
        value.extend_from_slice(&e.id.to_le_bytes());
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        format(&entries.iter().map(|&(tag, perm, id)| Entry { tag, perm, id }).collect::<Vec<_>>())
    }

    #[test]
    fn a_minimal_default_acl_becomes_the_mode() {
        let value = acl(&[(USER_OBJ, 7, u32::MAX), (GROUP_OBJ, 5, u32::MAX), (OTHER, 1, u32::MAX)]);
        assert_eq!(inherit(&value, 0o666), Ok(Inherited { mode: 0o640, access: None }));
        assert_eq!(inherit(&value, 0o1777), Ok(Inherited { mode: 0o1751, access: None }));
    }

    #[test]
    fn a_mask_takes_the_group_bits() {
        let value = acl(&[
            (USER_OBJ, 7, u32::MAX),
            (USER, 7, 1000),
            (GROUP_OBJ, 7, u32::MAX),
            (MASK, 7, u32::MAX),
            (OTHER, 0, u32::MAX),
        ]);
        let expected = acl(&[
            (USER_OBJ, 6, u32::MAX),
            (USER, 7, 1000),
            (GROUP_OBJ, 7, u32::MAX),
            (MASK, 4, u32::MAX),
            (OTHER, 0, u32::MAX),
        ]);
        assert_eq!(inherit(&value, 0o644), Ok(Inherited { mode: 0o640, access: Some(expected) }));
    }

    #[test]
    fn garbage_is_no_acl() {
        assert_eq!(inherit(b"", 0), Err(Errno::INVAL));
        assert_eq!(inherit(&[1, 0, 0, 0], 0), Err(Errno::INVAL));
        assert_eq!(inherit(&[2, 0, 0, 0, 1], 0), Err(Errno::INVAL));
    }
}

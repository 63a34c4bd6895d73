//! POSIX ACLs as xattrs hold them, and how a new file inherits its directory's default ACL.

use std::collections::HashSet;
use std::ffi::OsStr;

use rustix::io::Errno;

use crate::config::NOBODY;

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

/// Returns whether the xattr `name` is an ACL.
pub fn is_acl(name: &OsStr) -> bool {
    name == ACCESS || name == DEFAULT
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

/// An ACL, as acl(5) describes it.
#[derive(Debug, Clone)]
pub struct Acl {
    entries: Vec<Entry>,
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
    let mut acl = Acl::parse(value)?;
    let mut granted = mode & !0o777;
    let mut extended = false;
    let masked = acl.is_masked();
    for entry in &mut acl.entries {
        match shift(entry.tag, masked)? {
            Some(shift) => {
                entry.perm &= ((mode >> shift) & 7) as u16;
                granted |= u32::from(entry.perm) << shift;
            }
            None => extended = true,
        }
    }
    let access = extended.then(|| acl.to_bytes());
    Ok(Inherited { mode: granted, access })
}

/// Returns where in the mode the permissions of an entry stand, if there: with a mask, it takes the place of the owning
/// group, whose entry stays as it is.
fn shift(tag: u16, masked: bool) -> Result<Option<u32>, Errno> {
    match tag {
        USER_OBJ => Ok(Some(6)),
        MASK => Ok(Some(3)),
        GROUP_OBJ if !masked => Ok(Some(3)),
        OTHER => Ok(Some(0)),
        GROUP_OBJ | USER | GROUP => Ok(None),
        _ => Err(Errno::INVAL),
    }
}

impl Acl {
    /// Reads the value of an xattr. Errors: EINVAL for garbage.
    pub fn parse(value: &[u8]) -> Result<Self, Errno> {
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
        Ok(Self { entries: entries.chunks_exact(8).map(entry).collect() })
    }

    /// Returns the value of the xattr.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        for e in &self.entries {
            value.extend_from_slice(&e.tag.to_le_bytes());
            value.extend_from_slice(&e.perm.to_le_bytes());
            value.extend_from_slice(&e.id.to_le_bytes());
        }
        value
    }

    fn is_masked(&self) -> bool {
        self.entries.iter().any(|e| e.tag == MASK)
    }

    /// Returns the permission bits that the ACL says. Errors: EINVAL for an entry of no known kind.
    pub fn mode(&self) -> Result<u32, Errno> {
        let masked = self.is_masked();
        let mut mode = 0;
        for entry in &self.entries {
            if let Some(shift) = shift(entry.tag, masked)? {
                mode |= u32::from(entry.perm & 7) << shift;
            }
        }
        Ok(mode)
    }

    /// Makes the ACL say the permission bits `mode`, as chmod(2) does. Errors: EINVAL as [`Acl::mode`].
    pub fn set_mode(&mut self, mode: u32) -> Result<(), Errno> {
        let masked = self.is_masked();
        for entry in &mut self.entries {
            if let Some(shift) = shift(entry.tag, masked)? {
                entry.perm = ((mode >> shift) & 7) as u16;
            }
        }
        Ok(())
    }

    /// Replaces the users and groups that are named, for those who look at the ACL; one that is replaced by none is nobody,
    /// and may do nothing.
    pub fn show_ids(&mut self, user: impl Fn(u32) -> Option<u32>, group: impl Fn(u32) -> Option<u32>) {
        for entry in &mut self.entries {
            let shown = match entry.tag {
                USER => user(entry.id),
                GROUP => group(entry.id),
                _ => continue,
            };
            (entry.id, entry.perm) = shown.map_or((NOBODY, 0), |id| (id, entry.perm));
        }
        // acl_valid(3): each is named once.
        let mut named = HashSet::new();
        self.entries.retain(|entry| !matches!(entry.tag, USER | GROUP) || named.insert((entry.tag, entry.id)));
    }

    /// Replaces the users and groups that are named. Errors: EINVAL for one that is replaced by none.
    pub fn map_ids(
        &mut self,
        user: impl Fn(u32) -> Option<u32>,
        group: impl Fn(u32) -> Option<u32>,
    ) -> Result<(), Errno> {
        for entry in &mut self.entries {
            match entry.tag {
                USER => entry.id = user(entry.id).ok_or(Errno::INVAL)?,
                GROUP => entry.id = group(entry.id).ok_or(Errno::INVAL)?,
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        Acl { entries: entries.iter().map(|&(tag, perm, id)| Entry { tag, perm, id }).collect() }.to_bytes()
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

    #[test]
    fn the_mode_is_the_mask_and_not_the_owning_group() {
        let none = u32::MAX;
        let value = acl(&[(USER_OBJ, 6, none), (USER, 7, 9), (GROUP_OBJ, 1, none), (MASK, 5, none), (OTHER, 4, none)]);
        let mut read = Acl::parse(&value).expect("an ACL");
        assert_eq!(read.mode(), Ok(0o654));
        assert_eq!(read.set_mode(0o4720), Ok(()));
        let set = acl(&[(USER_OBJ, 7, none), (USER, 7, 9), (GROUP_OBJ, 1, none), (MASK, 2, none), (OTHER, 0, none)]);
        assert_eq!(read.to_bytes(), set);
        let plain = acl(&[(USER_OBJ, 0, none), (GROUP_OBJ, 5, none), (OTHER, 4, none)]);
        assert_eq!(Acl::parse(&plain).and_then(|acl| acl.mode()), Ok(0o054));
    }

    #[test]
    fn named_users_and_groups_are_mapped_and_nobody_else() {
        let none = u32::MAX;
        let value = acl(&[(USER_OBJ, 7, none), (USER, 7, 9), (GROUP, 5, 8), (MASK, 7, none), (OTHER, 0, none)]);
        let mut read = Acl::parse(&value).expect("an ACL");
        read.map_ids(|id| Some(id + 1000), |id| Some(id + 2000)).expect("all are mapped");
        let mapped = acl(&[(USER_OBJ, 7, none), (USER, 7, 1009), (GROUP, 5, 2008), (MASK, 7, none), (OTHER, 0, none)]);
        assert_eq!(read.to_bytes(), mapped);
        assert_eq!(read.map_ids(|_| None, Some), Err(Errno::INVAL));
        read.show_ids(|_| None, |id| Some(id - 2000));
        let shown = acl(&[(USER_OBJ, 7, none), (USER, 0, NOBODY), (GROUP, 5, 8), (MASK, 7, none), (OTHER, 0, none)]);
        assert_eq!(read.to_bytes(), shown, "an entry for nobody lets nobody in");
        let value = acl(&[(USER_OBJ, 7, none), (USER, 7, 9), (USER, 5, 10), (MASK, 7, none), (OTHER, 0, none)]);
        let mut read = Acl::parse(&value).expect("an ACL");
        read.show_ids(|_| None, Some);
        assert_eq!(read.to_bytes(), acl(&[(USER_OBJ, 7, none), (USER, 0, NOBODY), (MASK, 7, none), (OTHER, 0, none)]));
    }
}

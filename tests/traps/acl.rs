//! POSIX ACLs in the form of their xattrs (`include/uapi/linux/posix_acl_xattr.h`).

/// The xattr of the ACL that guards a file.
pub const ACCESS: &str = "system.posix_acl_access";

/// The xattr of the ACL that new entries of a directory get.
pub const DEFAULT: &str = "system.posix_acl_default";

const VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;

/// Returns an ACL of owner, one named user, group, mask and others.
pub fn acl(owner: u16, user: (u32, u16), group: u16, mask: u16, other: u16) -> Vec<u8> {
    let (named, permissions) = user;
    let entries = [
        (0x01, owner, NO_ID),
        (0x02, permissions, named),
        (0x04, group, NO_ID),
        (0x10, mask, NO_ID),
        (0x20, other, NO_ID),
    ];
    let mut bytes = VERSION.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        let tag: u16 = tag;
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

//! Names of directory entries.

use std::ffi::OsStr;
use std::fmt;
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt;

use rustix::io::Errno;

/// The longest name, in bytes (NAME_MAX).
pub const NAME_MAX: usize = 255;

/// The prefix of names that mark what was removed, in layers that images are unpacked to.
pub const WH_PREFIX: &str = ".wh.";

/// The entry that makes its directory opaque, in such layers.
pub const WH_OPAQUE: &str = ".wh..wh..opq";

/// One component of a path: not empty, not `.` or `..`, without `/` and NUL, 255 bytes at most.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name<'a>(&'a OsStr);

impl<'a> Name<'a> {
    /// Checks `name`.
    ///
    /// Errors: ENAMETOOLONG, ENOENT for an empty name, EINVAL for anything else that is no name.
    pub fn new(name: &'a OsStr) -> Result<Self, Errno> {
        let bytes = name.as_bytes();
        match bytes {
            b"" => Err(Errno::NOENT),
            b"." | b".." => Err(Errno::INVAL),
            _ if bytes.len() > NAME_MAX => Err(Errno::NAMETOOLONG),
            _ if bytes.iter().any(|&b| b == b'/' || b == 0) => Err(Errno::INVAL),
            _ => Ok(Self(name)),
        }
    }

    /// Wraps a name that a directory listing or an existing entry has given.
    pub(crate) fn known(name: &'a OsStr) -> Self {
        Self(name)
    }

    /// Returns the name as the type that paths are made of.
    pub fn as_os_str(self) -> &'a OsStr {
        self.0
    }

    /// Returns whether the name belongs to the whiteouts of image layers: it can neither be seen nor made.
    pub fn is_reserved(self) -> bool {
        self.0.as_bytes().starts_with(WH_PREFIX.as_bytes())
    }
}

impl Deref for Name<'_> {
    type Target = OsStr;

    fn deref(&self) -> &OsStr {
        self.0
    }
}

impl fmt::Debug for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_single_components_are_names() {
        let long = "n".repeat(256);
        for (name, expected) in [
            ("a", Ok(())),
            ("...", Ok(())),
            (&long[..255], Ok(())),
            (&long[..], Err(Errno::NAMETOOLONG)),
            ("", Err(Errno::NOENT)),
            (".", Err(Errno::INVAL)),
            ("..", Err(Errno::INVAL)),
            ("a/b", Err(Errno::INVAL)),
            ("a\0", Err(Errno::INVAL)),
        ] {
            assert_eq!(Name::new(OsStr::new(name)).map(drop), expected, "{name:?}");
        }
    }
}

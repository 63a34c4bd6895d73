//! A name as an inode keeps it: in place where it is short, as nearly all are.

use std::ffi::OsStr;
use std::fmt;
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

/// The longest name that is kept in place, in bytes: as many as make no difference to the size.
const HERE: usize = 22;

/// A name, cheap to clone.
#[derive(Clone)]
pub enum ShortName {
    /// Its bytes, of which so many count.
    Here(u8, [u8; HERE]),
    /// A longer one.
    There(Arc<OsStr>),
}

impl From<&OsStr> for ShortName {
    fn from(name: &OsStr) -> Self {
        let mut bytes = [0; HERE];
        match bytes.get_mut(..name.len()) {
            Some(here) => {
                here.copy_from_slice(name.as_bytes());
                Self::Here(name.len() as u8, bytes)
            }
            None => Self::There(name.into()),
        }
    }
}

impl Deref for ShortName {
    type Target = OsStr;

    fn deref(&self) -> &OsStr {
        match self {
            Self::Here(len, bytes) => OsStr::from_bytes(bytes.get(..usize::from(*len)).unwrap_or_default()),
            Self::There(name) => name,
        }
    }
}

impl fmt::Debug for ShortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_length_come_back() {
        assert_eq!(size_of::<ShortName>(), 24);
        for len in [0, 1, HERE - 1, HERE, HERE + 1, 255] {
            let name = "n".repeat(len);
            assert_eq!(&*ShortName::from(OsStr::new(&name)), OsStr::new(&name));
        }
    }
}

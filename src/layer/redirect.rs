//! The value of a redirect xattr: where the rest of a renamed directory is, in the layers below.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::name::Name;

/// A redirect that has been checked: its components are names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redirect {
    /// Another name in the same parent directory.
    Sibling(OsString),
    /// A path from the root of the layers.
    Absolute(Vec<OsString>),
}

impl Redirect {
    /// Parses the value of the xattr.
    ///
    /// Returns the reason when it is empty, is neither a name nor an absolute path, or would leave the layer.
    pub fn parse(value: &[u8]) -> Result<Self, &'static str> {
        if let Some(path) = value.strip_prefix(b"/") {
            let parts: Result<Vec<_>, _> = path.split(|&b| b == b'/').map(component).collect();
            return parts.map(Self::Absolute);
        }
        component(value).map(Self::Sibling)
    }

    /// Returns the value of the xattr.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Sibling(name) => name.as_bytes().to_vec(),
            Self::Absolute(parts) => parts.iter().flat_map(|p| [b"/", p.as_bytes()].concat()).collect(),
        }
    }
}

fn component(part: &[u8]) -> Result<OsString, &'static str> {
    match Name::new(OsStr::from_bytes(part)) {
        Ok(_) => Ok(OsString::from_vec(part.to_vec())),
        Err(_) => Err("the redirect is not a name or an absolute path without `.` and `..`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_that_leave_the_layer_are_refused() {
        for bad in [&b""[..], b"/", b"..", b"a/b", b"/a/../b", b"/a//b", b"/a/", b"a\0", b"/."] {
            assert!(Redirect::parse(bad).is_err(), "{bad:?}");
        }
        for good in [&b"a"[..], b"/a", b"/a/b c/d", b"..."] {
            assert_eq!(Redirect::parse(good).unwrap().to_bytes(), good);
        }
    }
}

//! What images are called: `registry/repository:tag`, with `docker.io/library/` and `:latest` where they are left out.

use std::fmt;

use oci_spec::distribution::{ParseError, Reference};

use crate::error::{Error, Result};

/// The host in the name of an image that was made here.
pub const LOCAL: &str = "localhost";

/// The name of an image, whole.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageName(Reference);

impl ImageName {
    /// Reads a name as people write it. Errors: [`crate::error::ErrorKind::Image`] with what is wrong with it.
    pub fn parse(text: &str) -> Result<Self> {
        // It stands before the name in what other tools print and take.
        let name = text.strip_prefix("docker://").unwrap_or(text);
        let hint = if name.chars().any(char::is_uppercase) { "; a repository has no capital letters" } else { "" };
        let refused =
            |error: ParseError| Error::image(format!("{text:?}"), format!("is no name of an image: {error}{hint}"));
        let parsed: Reference = name.parse().map_err(refused)?;
        // The parser takes `Team/app` for a host before a repository, and then for a repository at Docker's registry.
        if parsed.repository().chars().any(char::is_uppercase) {
            return Err(refused(ParseError::NameContainsUppercase));
        }
        Ok(Self(parsed))
    }

    /// Reads the name of an image that is made here: without a host it is of this machine, as podman has it.
    pub fn local(text: &str) -> Result<Self> {
        let mut candidates = Self::candidates(text)?.into_iter();
        candidates.next().map_or_else(|| Self::parse(text), Ok)
    }

    /// Returns the name, if it is one that can be given to any image: one by a digest belongs to what has that digest.
    pub fn tagged(self) -> Result<Self> {
        match (self.tag(), self.digest()) {
            (Some(_), None) => Ok(self),
            _ => Err(Error::image(&self, "has a digest, and a name that is given has a tag")),
        }
    }

    /// Returns the host, with its port.
    pub fn registry(&self) -> &str {
        self.0.registry()
    }

    /// Returns the path at the registry.
    pub fn repository(&self) -> &str {
        self.0.repository()
    }

    /// Returns the tag, if it is called by one.
    pub fn tag(&self) -> Option<&str> {
        self.0.tag()
    }

    /// Returns the digest of the manifest, if it is called by that.
    pub fn digest(&self) -> Option<&str> {
        self.0.digest()
    }

    /// Returns the name without tag and digest.
    pub fn base(&self) -> String {
        format!("{}/{}", self.registry(), self.repository())
    }

    /// Returns the reference as the distribution API has it.
    pub fn as_reference(&self) -> &Reference {
        &self.0
    }

    /// Returns the other names that `text` may stand for, most likely first: of a short name, those of images that were made
    /// here and of Docker's registry, as podman looks for them.
    pub fn candidates(text: &str) -> Result<Vec<Self>> {
        let whole = Self::parse(text)?;
        let local = if is_short(text) { Self::parse(&format!("{LOCAL}/{text}")).ok() } else { None };
        Ok(local.into_iter().chain([whole]).collect())
    }
}

/// Returns whether a name has no host before its first slash.
fn is_short(text: &str) -> bool {
    match text.split_once('/') {
        None => true,
        Some((first, _)) => !(first.contains(['.', ':']) || first == LOCAL),
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_whole() {
        for (text, expected) in [
            ("debian", "docker.io/library/debian:latest"),
            ("debian:12", "docker.io/library/debian:12"),
            ("user/app", "docker.io/user/app:latest"),
            ("localhost/app:1", "localhost/app:1"),
            ("127.0.0.1:5000/t/app:1", "127.0.0.1:5000/t/app:1"),
            ("docker://quay.io/x/y:z", "quay.io/x/y:z"),
        ] {
            assert_eq!(ImageName::parse(text).unwrap().to_string(), expected, "{text}");
        }
        let digest = format!("quay.io/x/y@sha256:{}", "0".repeat(64));
        assert_eq!(ImageName::parse(&digest).unwrap().to_string(), digest);
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in ["", "Debian", "Team/app", "a b", "a:b:c", "x@sha256:12", "../x", "/x", "x:", &"x".repeat(300)] {
            let error = ImageName::parse(text).unwrap_err();
            assert!(error.to_string().contains("is no name of an image"), "{error}");
        }
        assert!(ImageName::parse("Debian").unwrap_err().to_string().ends_with("no capital letters"));
    }

    #[test]
    fn a_short_name_may_be_of_this_machine() {
        let shown = |text| ImageName::candidates(text).unwrap().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(shown("base:1"), ["localhost/base:1", "docker.io/library/base:1"]);
        assert_eq!(shown("quay.io/base:1"), ["quay.io/base:1"]);
        assert_eq!(shown("localhost/base"), ["localhost/base:latest"]);
    }
}

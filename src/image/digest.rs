//! Digests, and streams that are compared with the digest and size that they should have.
//!
//! Nothing that comes from outside is used before its digest was seen: a [`Verified`] stream says so at its end, and whoever
//! reads one publishes nothing before that.

use std::fmt::Write as _;
use std::io::{self, BufRead, Read, Write};

pub use oci_spec::image::{Digest, DigestAlgorithm};
use sha2::{Digest as _, Sha256, Sha384, Sha512};

/// Computes a digest.
#[derive(Debug, Clone)]
pub enum Hasher {
    /// SHA-256, which images use.
    Sha256(Sha256),
    /// SHA-384.
    Sha384(Sha384),
    /// SHA-512.
    Sha512(Sha512),
}

impl Hasher {
    /// Begins a digest of SHA-256.
    pub fn sha256() -> Self {
        Self::Sha256(Sha256::new())
    }

    /// Begins a digest of the algorithm of `digest`; `None` for one that is not known here.
    pub fn like(digest: &Digest) -> Option<Self> {
        match digest.algorithm() {
            DigestAlgorithm::Sha256 => Some(Self::sha256()),
            DigestAlgorithm::Sha384 => Some(Self::Sha384(Sha384::new())),
            DigestAlgorithm::Sha512 => Some(Self::Sha512(Sha512::new())),
            _ => None,
        }
    }

    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha384(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    /// Returns the digest as it is written, `sha256:…`.
    pub fn text(self) -> String {
        match self {
            Self::Sha256(hash) => text("sha256", &hash.finalize()),
            Self::Sha384(hash) => text("sha384", &hash.finalize()),
            Self::Sha512(hash) => text("sha512", &hash.finalize()),
        }
    }

    /// Returns the digest. Errors: none that a digest made here can have.
    pub fn digest(self) -> io::Result<Digest> {
        Digest::try_from(self.text()).map_err(io::Error::other)
    }
}

fn text(algorithm: &str, bytes: &[u8]) -> String {
    let mut text = format!("{algorithm}:");
    for byte in bytes {
        let _ = write!(text, "{byte:02x}"); // A String takes everything.
    }
    text
}

/// Returns the SHA-256 digest of `bytes`. Errors: none that a digest made here can have.
pub fn of(bytes: &[u8]) -> io::Result<Digest> {
    let mut hasher = Hasher::sha256();
    hasher.update(bytes);
    hasher.digest()
}

/// Returns the first twelve digits of `digest`, by which people name things.
pub fn short(digest: &Digest) -> &str {
    let hex = digest.digest();
    hex.get(..12).unwrap_or(hex)
}

/// Reads a stream and computes its digest and length meanwhile.
#[derive(Debug)]
pub struct Hashed<R> {
    inner: R,
    hasher: Hasher,
    bytes: u64,
}

impl<R: Read> Hashed<R> {
    /// Wraps `inner`.
    pub fn new(inner: R, hasher: Hasher) -> Self {
        Self { inner, hasher, bytes: 0 }
    }

    /// Reads what is left, and returns digest and length in bytes of the whole.
    pub fn finish(self) -> io::Result<(Digest, u64)> {
        self.finish_parts().map(|(_, digest, bytes)| (digest, bytes))
    }

    /// Reads what is left, and returns also what was wrapped.
    pub fn finish_parts(mut self) -> io::Result<(R, Digest, u64)> {
        io::copy(&mut self, &mut io::sink())?;
        Ok((self.inner, self.hasher.digest()?, self.bytes))
    }

    /// Returns what was wrapped, behind what has been read of it.
    pub fn into_inner(self) -> R {
        self.inner
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buffer)?;
        self.hasher.update(buffer.get(..len).unwrap_or_default());
        self.bytes += len as u64;
        Ok(len)
    }
}

impl<R: BufRead> BufRead for Hashed<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, len: usize) {
        // What is buffered is given again without reading; were it not, the digest would be another, and nothing worse.
        let bytes = self.inner.fill_buf().ok().and_then(|bytes| bytes.get(..len)).unwrap_or_default();
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        self.inner.consume(len);
    }
}

/// Reads a stream that should have a certain digest and length, of which nothing is taken past that length.
#[derive(Debug)]
pub struct Verified<R> {
    stream: Hashed<io::Take<R>>,
    digest: Digest,
    size: u64,
}

impl<R: Read> Verified<R> {
    /// Wraps `inner`. Errors: `InvalidData` for a digest whose algorithm is not known.
    pub fn new(inner: R, digest: &Digest, size: u64) -> io::Result<Self> {
        let hasher = Hasher::like(digest)
            .ok_or_else(|| invalid(format!("its digest is by {}, which is not known here", digest.algorithm())))?;
        // One more byte is asked for, to tell a stream that is too long.
        let stream = Hashed::new(inner.take(size.saturating_add(1)), hasher);
        Ok(Self { stream, digest: digest.clone(), size })
    }

    /// Reads what is left and compares. Errors: `InvalidData` where digest or length are others.
    pub fn finish(self) -> io::Result<()> {
        let found = self.stream.finish()?;
        compare((&found.0, found.1), (&self.digest, self.size))
    }
}

/// Compares digest and length of what was read with those that it should have. Errors: `InvalidData`.
pub(super) fn compare((digest, bytes): (&Digest, u64), (expected, size): (&Digest, u64)) -> io::Result<()> {
    if bytes > size {
        return Err(invalid(format!("is longer than the {size} bytes that it should have")));
    }
    if bytes < size {
        return Err(invalid(format!("ends after {bytes} of {size} bytes")));
    }
    if digest != expected {
        return Err(invalid(format!("has the digest {digest}")));
    }
    Ok(())
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

/// Writes a stream and computes its digest and length meanwhile.
#[derive(Debug)]
pub struct Hashing<W> {
    inner: W,
    hasher: Hasher,
    bytes: u64,
}

impl<W: Write> Hashing<W> {
    /// Wraps `inner`.
    pub fn new(inner: W, hasher: Hasher) -> Self {
        Self { inner, hasher, bytes: 0 }
    }

    /// Returns what was wrapped.
    pub fn get_ref(&self) -> &W {
        &self.inner
    }

    /// Returns what was wrapped, with digest and length in bytes of what went through.
    pub fn finish(self) -> io::Result<(W, Digest, u64)> {
        Ok((self.inner, self.hasher.digest()?, self.bytes))
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.inner.write(bytes)?;
        self.hasher.update(bytes.get(..len).unwrap_or_default());
        self.bytes += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// An error about what a stream holds.
pub(super) fn invalid(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-2, appendix B.1.
    const ABC: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_digest_is_that_of_the_standard() {
        assert_eq!(of(b"abc").unwrap().to_string(), ABC);
        assert_eq!(short(&of(b"abc").unwrap()), "ba7816bf8f01");
        // Appendix C.1.
        let long = "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";
        let digest = Digest::try_from(long).unwrap();
        assert!(Verified::new(&b"abc"[..], &digest, 3).unwrap().finish().is_ok());
    }

    #[test]
    fn a_stream_that_is_another_is_refused_with_what_is_wrong() {
        let digest = Digest::try_from(ABC).unwrap();
        let verify = |bytes: &[u8], size| Verified::new(bytes, &digest, size).unwrap().finish();
        assert!(verify(b"abc", 3).is_ok());
        let refused = |bytes: &[u8], size| verify(bytes, size).unwrap_err().to_string();
        assert_eq!(refused(b"ab", 3), "ends after 2 of 3 bytes");
        assert_eq!(refused(b"abcd", 3), "is longer than the 3 bytes that it should have");
        assert!(refused(b"abd", 3).starts_with("has the digest sha256:"));
        let unknown = Digest::try_from("md5:900150983cd24fb0d6963f7d28e17f72").unwrap();
        assert!(Verified::new(&b"abc"[..], &unknown, 3).is_err());
    }

    #[test]
    fn no_more_is_read_than_one_byte_too_many() {
        let digest = Digest::try_from(ABC).unwrap();
        let mut verified = Verified::new(io::repeat(b'a'), &digest, 3).unwrap();
        assert_eq!(io::copy(&mut verified, &mut io::sink()).unwrap(), 4);
        assert!(verified.finish().is_err());
    }
}

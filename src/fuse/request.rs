//! A request, taken out of the bytes that the kernel has sent.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use zerocopy::FromBytes;

use super::protocol::{InHeader, Opcode};
use crate::union::{Caller, NodeId};

/// A request whose bytes are not as the protocol has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// A request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    /// What the answer is known by.
    pub(super) unique: u64,
    /// What is asked for; `None` for what is not answered here.
    pub(super) opcode: Option<Opcode>,
    /// The inode that it is about.
    pub(super) node: NodeId,
    /// Who asks.
    pub(super) caller: Caller,
    /// What the operation is told besides.
    pub(super) arguments: Arguments<'a>,
}

impl<'a> Request<'a> {
    /// Takes a request apart that came in one piece, as read(2) from /dev/fuse brings it.
    pub(super) fn whole(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, rest) = InHeader::read_from_prefix(bytes).map_err(|_| Malformed)?;
        if header.len as usize != bytes.len() {
            return Err(Malformed);
        }
        Ok(Self::new(&header, Arguments { fixed: None, rest }))
    }

    /// Takes a request apart whose header, fixed part and rest lie each by itself, as a ring brings it.
    pub(super) fn parted(header: &'a [u8], fixed: &'a [u8], rest: &'a [u8]) -> Result<Self, Malformed> {
        let (header, _) = InHeader::read_from_prefix(header).map_err(|_| Malformed)?;
        Ok(Self::new(&header, Arguments { fixed: Some(fixed), rest }))
    }

    fn new(header: &InHeader, arguments: Arguments<'a>) -> Self {
        Self {
            unique: header.unique,
            opcode: Opcode::from_code(header.opcode),
            node: NodeId(header.nodeid),
            caller: Caller { uid: header.uid, gid: header.gid, pid: header.pid },
            arguments,
        }
    }
}

/// What a request says besides its header: a fixed part, and then names and data, one after the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arguments<'a> {
    /// The fixed part, where it lies by itself.
    fixed: Option<&'a [u8]>,
    /// The fixed part if it does not, and what follows.
    rest: &'a [u8],
}

impl<'a> Arguments<'a> {
    /// Takes the fixed part.
    pub(super) fn fixed<T: FromBytes>(&mut self) -> Result<T, Malformed> {
        if let Some(fixed) = self.fixed.take() {
            return T::read_from_prefix(fixed).map(|(value, _)| value).map_err(|_| Malformed);
        }
        self.next()
    }

    /// Takes a value out of what follows the fixed part.
    pub(super) fn next<T: FromBytes>(&mut self) -> Result<T, Malformed> {
        let (value, rest) = T::read_from_prefix(self.rest).map_err(|_| Malformed)?;
        self.rest = rest;
        Ok(value)
    }

    /// Takes what comes before the next zero.
    pub(super) fn string(&mut self) -> Result<&'a OsStr, Malformed> {
        let end = self.rest.iter().position(|&byte| byte == 0).ok_or(Malformed)?;
        let (string, rest) = self.rest.split_at_checked(end).ok_or(Malformed)?;
        self.rest = rest.get(1..).unwrap_or_default();
        Ok(OsStr::from_bytes(string))
    }

    /// Takes `len` bytes.
    pub(super) fn bytes(&mut self, len: u32) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.rest.split_at_checked(len as usize).ok_or(Malformed)?;
        self.rest = rest;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;
    use crate::fuse::protocol::MkdirIn;

    fn message(opcode: u32, arguments: &[&[u8]]) -> Vec<u8> {
        let arguments = arguments.concat();
        let header = InHeader {
            len: (size_of::<InHeader>() + arguments.len()) as u32,
            opcode,
            unique: 7,
            nodeid: 1,
            uid: 2,
            gid: 3,
            pid: 4,
            extensions: 0,
            padding: 0,
        };
        [header.as_bytes(), &arguments].concat()
    }

    #[test]
    fn a_request_is_taken_apart() {
        let bytes = message(9, &[MkdirIn { mode: 0o755, umask: 0o22 }.as_bytes(), b"name\0"]);
        let mut request = Request::whole(&bytes).unwrap();
        assert_eq!((request.unique, request.opcode, request.node), (7, Some(Opcode::Mkdir), NodeId(1)));
        assert_eq!((request.caller.uid, request.caller.gid, request.caller.pid), (2, 3, 4));
        let made: MkdirIn = request.arguments.fixed().unwrap();
        assert_eq!((made.mode, made.umask), (0o755, 0o22));
        assert_eq!(request.arguments.string().unwrap(), "name");
        assert_eq!(request.arguments.string(), Err(Malformed));
    }

    #[test]
    fn what_is_cut_short_is_malformed_and_never_a_panic() {
        let whole = message(9, &[MkdirIn { mode: 0o755, umask: 0o22 }.as_bytes(), b"name\0"]);
        for len in 0..whole.len() {
            assert!(Request::whole(&whole[..len]).is_err(), "{len}");
        }
        let mut request = Request::whole(&whole).unwrap();
        assert_eq!(request.arguments.bytes(u32::MAX), Err(Malformed));
        let unknown = message(4711, &[]);
        let mut request = Request::whole(&unknown).unwrap();
        assert_eq!(request.opcode, None);
        assert_eq!(request.arguments.fixed::<MkdirIn>().unwrap_err(), Malformed);
    }
}

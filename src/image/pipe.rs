//! A stream that is read by a thread of its own, while what it gave before is used.
//!
//! Unpacking a layer costs about as much in reading, decompression and digests as in system calls; with one thread for each,
//! a layer alone keeps two processors busy. What waits between the two is bounded.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

/// How much goes over at once, in bytes.
const CHUNK: usize = 128 * 1024;

/// How many chunks may wait.
const WAITING: usize = 2;

/// The reading end.
#[derive(Debug)]
pub struct Chunks {
    come: Receiver<io::Result<Chunk>>,
    /// Chunks that were used up, to be filled again.
    used: Sender<Chunk>,
    chunk: Chunk,
    at: usize,
}

/// A buffer, of which the first `len` bytes are what was read.
#[derive(Debug, Default)]
struct Chunk {
    bytes: Vec<u8>,
    len: usize,
}

/// The thread that reads, and what it gives back.
pub struct Feeder<'scope, R>(ScopedJoinHandle<'scope, R>);

/// Reads `stream` in a thread of `scope`. What it gives comes out of the first that is returned; what is left of it, when that
/// has been dropped, out of the second.
pub fn pipe<'scope, R: Read + Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    stream: R,
) -> io::Result<(Chunks, Feeder<'scope, R>)> {
    let (give, come) = sync_channel(WAITING);
    let (used, again) = channel();
    let builder = std::thread::Builder::new().name("unpack".into());
    let feeder = builder.spawn_scoped(scope, move || feed(stream, &give, &again))?;
    Ok((Chunks { come, used, chunk: Chunk::default(), at: 0 }, Feeder(feeder)))
}

impl<R> Feeder<'_, R> {
    /// Waits until the thread has ended, and returns the stream. Errors: that the thread panicked.
    pub fn finish(self) -> io::Result<R> {
        self.0.join().map_err(|_| io::Error::other("the thread that reads it has panicked"))
    }
}

/// Gives what `stream` has, to its end, to an error, or until nobody takes it.
fn feed<R: Read>(mut stream: R, give: &SyncSender<io::Result<Chunk>>, again: &Receiver<Chunk>) -> R {
    loop {
        let mut chunk = again.try_recv().unwrap_or_else(|_| Chunk { bytes: vec![0; CHUNK], len: 0 });
        let filled = chunk.fill(&mut stream);
        let end = chunk.len == 0;
        let taken = end || give.send(Ok(chunk)).is_ok();
        match filled {
            Err(error) => {
                let _ = give.send(Err(error)); // Nobody takes it any more, and wants no error either.
                return stream;
            }
            Ok(()) if end || !taken => return stream,
            Ok(()) => {}
        }
    }
}

impl Chunk {
    /// Reads until half of it is full or the stream ends: one read more for a few bytes is worth none.
    fn fill(&mut self, stream: &mut impl Read) -> io::Result<()> {
        self.len = 0;
        while self.len < self.bytes.len() / 2 {
            match stream.read(self.bytes.get_mut(self.len..).unwrap_or_default()) {
                Ok(0) => break,
                Ok(len) => self.len += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at >= self.chunk.len {
            // The other end is gone when the stream has ended, or has panicked, which `Feeder::finish` tells.
            let next = self.come.recv().unwrap_or_else(|_| Ok(Chunk::default()))?;
            let used = std::mem::replace(&mut self.chunk, next);
            self.at = 0;
            if !used.bytes.is_empty() {
                let _ = self.used.send(used); // The thread may have ended already.
            }
        }
        Ok(self.chunk.bytes.get(self.at..self.chunk.len).unwrap_or_default())
    }

    fn consume(&mut self, len: usize) {
        self.at = self.at.saturating_add(len).min(self.chunk.len);
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.fill_buf()?.read(buffer)?;
        self.consume(len);
        Ok(len)
    }
}

/// Reads what is left of a stream; returns how many bytes that was.
pub fn drain(stream: &mut (impl BufRead + ?Sized)) -> io::Result<u64> {
    let mut sum = 0;
    loop {
        match stream.fill_buf() {
            Ok([]) => return Ok(sum),
            Ok(bytes) => {
                let len = bytes.len();
                sum += len as u64;
                stream.consume(len);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives bytes in pieces of a few, and then ends or fails.
    struct Pieces {
        left: usize,
        fails: bool,
    }

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let len = self.left.min(buffer.len()).min(1 + self.left % 70_000);
            if len == 0 && self.fails {
                return Err(io::Error::other("it breaks off"));
            }
            for (at, byte) in buffer[..len].iter_mut().enumerate() {
                *byte = u8::try_from((self.left - at) % 251).unwrap();
            }
            self.left -= len;
            Ok(len)
        }
    }

    #[test]
    fn what_goes_in_comes_out_and_an_error_comes_last() {
        let mut wanted = Vec::new();
        Pieces { left: 3_000_000, fails: false }.read_to_end(&mut wanted).unwrap();
        for fails in [false, true] {
            std::thread::scope(|scope| {
                let (mut chunks, feeder) = pipe(scope, Pieces { left: 3_000_000, fails }).unwrap();
                let mut got = Vec::new();
                let end = chunks.read_to_end(&mut got);
                assert!(got == wanted && end.is_err() == fails, "{end:?}");
                assert_eq!(chunks.read(&mut [0; 9]).unwrap(), 0);
                assert_eq!(feeder.finish().unwrap().left, 0);
            });
        }
    }

    #[test]
    fn who_stops_reading_gets_the_rest_of_the_stream() {
        std::thread::scope(|scope| {
            let (mut chunks, feeder) = pipe(scope, Pieces { left: 9_000_000, fails: false }).unwrap();
            chunks.read_exact(&mut [0; 1000]).unwrap();
            drop(chunks);
            let mut rest = feeder.finish().unwrap();
            assert!(rest.left > 4_000_000, "more was read ahead than may wait: {}", rest.left);
            io::copy(&mut rest, &mut io::sink()).unwrap();
        });
    }

    #[test]
    fn all_that_is_left_is_drained() {
        let mut bytes = &[7; 1000][..];
        assert_eq!(drain(&mut bytes).unwrap(), 1000);
        assert_eq!(drain(&mut bytes).unwrap(), 0);
    }
}

//! Streams of bytes on their way into a layer: counted, hashed, decompressed.

use crate::digest::Digest;
use sha2::{Digest as _, Sha256};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

/// Hashes and counts what is read through it.
pub(crate) struct Hashing<R> {
    inner: R,
    seen: Seen,
}

/// What went through a [`Hashing`] so far.
#[derive(Clone, Default)]
pub(crate) struct Seen(Rc<RefCell<(Sha256, u64)>>);

impl Seen {
    /// Digest and number of the bytes so far.
    pub(crate) fn take(&self) -> (Digest, u64) {
        let (hash, bytes) = &*self.0.borrow();
        (Digest::finish(hash.clone()), *bytes)
    }
}

impl<R: Read> Hashing<R> {
    pub(crate) fn new(inner: R) -> (Self, Seen) {
        let seen = Seen::default();
        (Self { inner, seen: seen.clone() }, seen)
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let (hash, bytes) = &mut *self.seen.0.borrow_mut();
        hash.update(&buffer[..count]);
        *bytes += count as u64;
        Ok(count)
    }
}

/// A limit was reached. Travels inside an [`io::Error`].
#[derive(Debug)]
pub(crate) struct LimitReached;

impl fmt::Display for LimitReached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("more bytes than the limit allows")
    }
}

impl std::error::Error for LimitReached {}

/// Fails when more bytes are read through it than are left.
pub(crate) struct Limited<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Limited<R> {
    pub(crate) fn new(inner: R, left: u64) -> Self {
        Self { inner, left: Rc::new(Cell::new(left)) }
    }
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        match self.left.get().checked_sub(count as u64) {
            Some(left) => self.left.set(left),
            None => return Err(io::Error::other(LimitReached)),
        }
        Ok(count)
    }
}

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
    /// Known, but not supported.
    Other(&'static str),
}

/// By the first bytes: names and media types are not to be trusted.
pub(crate) fn sniff(head: &[u8]) -> Compression {
    match head {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        // A skippable frame (RFC 8878, 3.1.2).
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Other("xz"),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Compression::Other("bzip2"),
        _ => Compression::None,
    }
}

/// Looks at the beginning of `reader` and undoes its compression.
pub(crate) fn decompress<'r>(mut reader: impl Read + 'r) -> io::Result<(Compression, Box<dyn Read + 'r>)> {
    let mut head = [0; 6];
    let mut length = 0;
    while length < head.len() {
        match reader.read(&mut head[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let compression = sniff(&head[..length]);
    let whole = io::Cursor::new(head).take(length as u64).chain(reader);
    let buffered = BufReader::with_capacity(128 << 10, whole);
    let plain: Box<dyn Read + 'r> = match compression {
        Compression::None => Box::new(buffered),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(buffered)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(buffered)?),
        Compression::Other(name) => {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is compressed with {name}")));
        }
    };
    Ok((compression, plain))
}

/// Reads on to the end, so that what was hashed is the whole.
pub(crate) fn drain(reader: &mut dyn Read) -> io::Result<()> {
    io::copy(reader, &mut io::sink()).map(drop)
}

/// Bytes that may be passed over without reading them.
pub(crate) trait Skip: Read {
    /// Passes over `count` bytes; `UnexpectedEof` if there are fewer.
    fn skip(&mut self, count: u64) -> io::Result<()>
    where
        Self: Sized,
    {
        match io::copy(&mut self.by_ref().take(count), &mut io::sink())? {
            skipped if skipped == count => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl<R: Read + ?Sized> Skip for Box<R> {}
impl<R: Read> Skip for Limited<R> {}
impl<R: Read> Skip for Hashing<R> {}

/// A part of a file. Several of them read one open file at once.
#[derive(Debug, Clone)]
pub(crate) struct Slice {
    file: Rc<File>,
    position: u64,
    end: u64,
}

impl Slice {
    pub(crate) fn new(file: Rc<File>, position: u64, length: u64) -> Self {
        Self { file, position, end: position.saturating_add(length) }
    }
}

impl Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.end - self.position).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..most], self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Skip for Slice {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        if count > self.end - self.position {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += count;
        Ok(())
    }
}

//! Reading of tar archives: ustar, GNU and pax, sparse files of all kinds, with every size bounded.
//!
//! The archive is hostile. Numbers are checked, descriptions of an entry take at most [`MAX_DESCRIPTION`] bytes of
//! memory, and binary attribute values are read by their length as pax wants it, not by lines.

use crate::stream::Skip;
use std::fmt;
use std::io;

const BLOCK: usize = 512;
/// The most that long names and pax records of one entry may take, in bytes.
const MAX_DESCRIPTION: u64 = 1 << 20;
/// The most pieces that one sparse file may have.
const MAX_SEGMENTS: usize = 1 << 17;

/// Why an archive cannot be read on.
#[derive(Debug)]
pub(crate) enum Error {
    /// The bytes could not be got, or not be decompressed.
    Read(io::Error),
    /// They are no tar archive.
    Malformed(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(error) if error.kind() == io::ErrorKind::UnexpectedEof => f.write_str("it is cut off"),
            Self::Read(error) => error.fmt(f),
            Self::Malformed(why) => f.write_str(why),
        }
    }
}

fn malformed<T>(why: impl Into<String>) -> Result<T, Error> {
    Err(Error::Malformed(why.into()))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
    /// Says nothing about a file: a global pax header, a volume label.
    Meta,
    Unknown(u8),
}

/// One entry.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    /// As the archive has it.
    pub(crate) name: Vec<u8>,
    /// Of a link, as the archive has it.
    pub(crate) target: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Seconds and nanoseconds since 1970.
    pub(crate) modified: (i64, i64),
    pub(crate) device: (u64, u64),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Size of the file, holes included.
    pub(crate) size: u64,
    /// Where its data begins, from the start of the archive.
    position: u64,
    /// Bytes of data in the archive.
    stored: u64,
    /// Offset and length of the pieces that are stored; `None` = all of it.
    segments: Option<Vec<(u64, u64)>>,
}

impl Member {
    /// Where its bytes lie in the archive; `None` if they are not there in one piece, or it has none.
    pub(crate) fn span(&self) -> Option<(u64, u64)> {
        (self.kind == Kind::File && self.segments.is_none()).then_some((self.position, self.size))
    }
}

/// The entries of an archive, one after the other.
pub(crate) struct Members<R> {
    reader: R,
    /// Bytes read or passed over so far.
    position: u64,
    /// Where the next header is.
    next: u64,
}

/// What precedes an entry and describes it.
#[derive(Default)]
struct Description {
    bytes: u64,
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    modified: Option<(i64, i64)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: PaxSparse,
}

/// GNU.sparse.* records: formats 0.0 and 0.1 have the map here, 1.0 at the beginning of the data.
#[derive(Default)]
struct PaxSparse {
    major: Option<u64>,
    size: Option<u64>,
    name: Option<Vec<u8>>,
    map: Vec<u64>,
}

impl<R: Skip> Members<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { reader, position: 0, next: 0 }
    }

    /// The stream behind the archive's end.
    pub(crate) fn into_inner(self) -> R {
        self.reader
    }

    /// The next entry; `None` at the end. What was not read of the one before is passed over.
    pub(crate) fn next(&mut self) -> Result<Option<Member>, Error> {
        let mut description = Description::default();
        loop {
            self.advance(self.next)?;
            let Some(header) = self.header()? else {
                return match description.bytes {
                    0 => Ok(None),
                    _ => malformed("it ends with the description of an entry that is not there"),
                };
            };
            let stored = header.number(124, 12, "size")?;
            match header.0[156] {
                b'L' => description.name = Some(until_nul(self.describe(&mut description, stored)?)),
                b'K' => description.target = Some(until_nul(self.describe(&mut description, stored)?)),
                b'x' => {
                    let records = self.describe(&mut description, stored)?;
                    description.read_pax(&records)?;
                }
                _ => return self.member(&header, description, stored).map(Some),
            }
        }
    }

    fn member(&mut self, header: &Header, description: Description, stored: u64) -> Result<Member, Error> {
        let mut name = description.name.unwrap_or_else(|| header.name());
        let kind = match header.0[156] {
            // Old archives mark directories by a slash only.
            b'0' | 0 | b'7' if name.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'g' | b'V' => Kind::Meta,
            other => Kind::Unknown(other),
        };
        let mut stored = description.size.unwrap_or(stored);
        if !matches!(kind, Kind::File | Kind::Meta | Kind::Unknown(_)) {
            // Only these carry data, whatever the size field says (as Go's archive/tar reads it).
            stored = 0;
        }
        let mut segments = None;
        let mut size = stored;
        let mut map_blocks = 0;
        if header.0[156] == b'S' {
            let (map, real) = self.gnu_map(header)?;
            (segments, size) = (Some(map), real);
        } else if kind == Kind::File && (description.sparse.major.is_some() || !description.sparse.map.is_empty()) {
            let sparse = description.sparse;
            let Some(real) = sparse.size else { return malformed("a sparse file has no size") };
            name = sparse.name.unwrap_or(name);
            let numbers = match sparse.major {
                Some(1) => {
                    let numbers = self.map_in_data(stored)?;
                    map_blocks = numbers.1;
                    numbers.0
                }
                Some(0) | None => sparse.map,
                Some(other) => return malformed(format!("a sparse file has the unknown format {other}")),
            };
            if numbers.len() % 2 != 0 {
                return malformed("the map of a sparse file is cut off");
            }
            segments = Some(numbers.chunks(2).map(|pair| (pair[0], pair[1])).collect());
            size = real;
        }
        let data = stored.checked_sub(map_blocks).ok_or(Error::Malformed("a sparse file's map is too long".into()))?;
        if let Some(segments) = &segments {
            check_segments(segments, size, data)?;
        }
        let position = self.position;
        let padded = data.checked_next_multiple_of(BLOCK as u64).and_then(|padded| position.checked_add(padded));
        let Some(next) = padded else { return malformed("an entry's size is impossible") };
        self.next = next;
        Ok(Member {
            name,
            target: description.target.unwrap_or_else(|| until_nul(header.0[157..257].to_vec())),
            kind,
            mode: header.number(100, 8, "mode")? as u32 & 0o7777,
            uid: description.uid.map_or_else(|| header.number(108, 8, "uid"), Ok)?,
            gid: description.gid.map_or_else(|| header.number(116, 8, "gid"), Ok)?,
            modified: description.modified.map_or_else(|| header.signed(136, 12, "mtime").map(|s| (s, 0)), Ok)?,
            device: match kind {
                Kind::CharDevice | Kind::BlockDevice => {
                    (header.number(329, 8, "device number")?, header.number(337, 8, "device number")?)
                }
                _ => (0, 0),
            },
            xattrs: description.xattrs,
            size,
            position,
            stored: data,
            segments,
        })
    }

    /// Gives the data of `member`, which must be the newest, to `sink` piece by piece, each with its offset in the
    /// file. What lies between the pieces is zeros. The inner error is the sink's.
    pub(crate) fn data<E>(
        &mut self,
        member: &Member,
        mut sink: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<Result<(), E>, Error> {
        let mut buffer = vec![0; 64 << 10];
        let whole = [(0, member.stored)];
        for &(offset, length) in member.segments.as_deref().unwrap_or(&whole) {
            let mut done = 0;
            while done < length {
                let most = buffer.len().min(usize::try_from(length - done).unwrap_or(usize::MAX));
                self.fill(&mut buffer[..most])?;
                if let Err(error) = sink(offset + done, &buffer[..most]) {
                    return Ok(Err(error));
                }
                done += most as u64;
            }
        }
        Ok(Ok(()))
    }

    /// The next header; `None` at the end, marked by a block of zeros or not.
    fn header(&mut self) -> Result<Option<Header>, Error> {
        let mut block = [0; BLOCK];
        let mut length = 0;
        while length < BLOCK {
            match self.reader.read(&mut block[length..]) {
                Ok(0) if length == 0 => return Ok(None),
                Ok(0) => return Err(Error::Read(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => length += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Read(error)),
            }
        }
        self.position += BLOCK as u64;
        self.next = self.position;
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let header = Header(block);
        let sum = header.0.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u64::from(*b) });
        if header.number(148, 8, "checksum")? != sum.sum::<u64>() {
            return malformed("a header's checksum is wrong");
        }
        Ok(Some(header))
    }

    /// Reads the data of an entry that describes the next one.
    fn describe(&mut self, description: &mut Description, length: u64) -> Result<Vec<u8>, Error> {
        description.bytes = description.bytes.saturating_add(length).saturating_add(BLOCK as u64);
        if description.bytes > MAX_DESCRIPTION {
            return malformed(format!("the name and attributes of an entry take more than {MAX_DESCRIPTION} bytes"));
        }
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes)?;
        self.next = self.position.next_multiple_of(BLOCK as u64);
        Ok(bytes)
    }

    /// The map of an old GNU sparse file: four pieces in the header, more in blocks behind it.
    fn gnu_map(&mut self, header: &Header) -> Result<(Vec<(u64, u64)>, u64), Error> {
        if header.0[257..263] != *b"ustar " {
            return malformed("a sparse file has no GNU header");
        }
        let mut map = Vec::new();
        let mut read = |block: &Header, start: usize, count: usize| -> Result<(), Error> {
            for at in (0..count).map(|i| start + i * 24).take_while(|at| block.0[*at] != 0) {
                map.push((block.number(at, 12, "sparse offset")?, block.number(at + 12, 12, "sparse length")?));
            }
            if map.len() > MAX_SEGMENTS { malformed("a sparse file has too many pieces") } else { Ok(()) }
        };
        read(header, 386, 4)?;
        let mut more = header.0[482] != 0;
        while more {
            let mut block = [0; BLOCK];
            self.fill(&mut block)?;
            more = block[504] != 0;
            read(&Header(block), 0, 21)?;
        }
        Ok((map, header.number(483, 12, "sparse size")?))
    }

    /// The map of a pax sparse file of format 1.0: decimal lines, padded to a block. Also returns the bytes it took.
    fn map_in_data(&mut self, stored: u64) -> Result<(Vec<u64>, u64), Error> {
        let mut numbers: Vec<u64> = Vec::new();
        let mut wanted = None;
        let mut line = Vec::new();
        let mut bytes = 0;
        loop {
            bytes += BLOCK as u64;
            if bytes > stored || bytes > MAX_DESCRIPTION {
                return malformed("the map of a sparse file is too long");
            }
            let mut block = [0; BLOCK];
            self.fill(&mut block)?;
            for byte in block {
                if byte != b'\n' {
                    line.push(byte);
                    continue;
                }
                let number =
                    decimal(&line).ok_or(Error::Malformed("the map of a sparse file has no numbers".into()))?;
                line.clear();
                match wanted {
                    None if number as usize > MAX_SEGMENTS => return malformed("a sparse file has too many pieces"),
                    None => wanted = Some(number as usize * 2),
                    Some(_) => numbers.push(number),
                }
                if wanted == Some(numbers.len()) {
                    return Ok((numbers, bytes));
                }
            }
        }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        self.reader.read_exact(buffer).map_err(Error::Read)?;
        self.position += buffer.len() as u64;
        Ok(())
    }

    fn advance(&mut self, to: u64) -> Result<(), Error> {
        if let Some(count) = to.checked_sub(self.position).filter(|count| *count > 0) {
            self.reader.skip(count).map_err(Error::Read)?;
            self.position = to;
        }
        Ok(())
    }
}

impl Description {
    /// Records `LENGTH KEY=VALUE\n` (pax(1)); the length counts the whole record.
    fn read_pax(&mut self, mut records: &[u8]) -> Result<(), Error> {
        while !records.is_empty() {
            let record = (|| {
                let space = records.iter().position(|b| *b == b' ')?;
                let length = usize::try_from(decimal(&records[..space])?).ok()?;
                let record = records.get(space + 1..length)?.strip_suffix(b"\n")?;
                let equals = record.iter().position(|b| *b == b'=')?;
                records = &records[length..];
                Some((&record[..equals], &record[equals + 1..]))
            })();
            let Some((key, value)) = record else { return malformed("a pax record is malformed") };
            let number = || {
                let name = String::from_utf8_lossy(key);
                decimal(value).ok_or_else(|| Error::Malformed(format!("the pax record {name} is not a number")))
            };
            match key {
                b"path" => self.name = Some(value.to_vec()),
                b"linkpath" => self.target = Some(value.to_vec()),
                b"size" => self.size = Some(number()?),
                b"uid" => self.uid = Some(number()?),
                b"gid" => self.gid = Some(number()?),
                b"mtime" => {
                    let time = pax_time(value);
                    self.modified = Some(time.ok_or(Error::Malformed("the pax record mtime is not a time".into()))?);
                }
                b"GNU.sparse.major" => self.sparse.major = Some(number()?),
                b"GNU.sparse.name" => self.sparse.name = Some(value.to_vec()),
                b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.size = Some(number()?),
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse.map.push(number()?),
                b"GNU.sparse.map" => {
                    let map: Option<_> = value.split(|b| *b == b',').map(decimal).collect();
                    self.sparse.map = map.ok_or(Error::Malformed("the map of a sparse file has no numbers".into()))?;
                }
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }
}

fn check_segments(segments: &[(u64, u64)], size: u64, stored: u64) -> Result<(), Error> {
    let mut end = 0u64;
    let mut bytes = 0u64;
    for &(offset, length) in segments {
        let after = offset.checked_add(length).filter(|after| offset >= end && *after <= size);
        let Some(after) = after else { return malformed("the pieces of a sparse file overlap or lie outside of it") };
        end = after;
        bytes += length;
    }
    if bytes > stored { malformed("a sparse file has more pieces than data") } else { Ok(()) }
}

struct Header([u8; BLOCK]);

impl Header {
    fn name(&self) -> Vec<u8> {
        let name = until_nul(self.0[..100].to_vec());
        let prefix = until_nul(self.0[345..500].to_vec());
        if self.0[257..263] == *b"ustar\0" && !prefix.is_empty() { [&prefix[..], b"/", &name].concat() } else { name }
    }

    fn number(&self, at: usize, length: usize, what: &str) -> Result<u64, Error> {
        let number = self.signed(at, length, what)?;
        u64::try_from(number).or_else(|_| malformed(format!("a header's {what} is negative")))
    }

    /// Octal digits, or GNU's base 256 when the first bit is set. An empty field is 0.
    fn signed(&self, at: usize, length: usize, what: &str) -> Result<i64, Error> {
        let field = &self.0[at..at + length];
        let bad = || Error::Malformed(format!("a header's {what} is not a number"));
        if field[0] & 0x80 != 0 {
            let negative = field[0] & 0x40 != 0;
            let mut value: i128 = if negative { -1 } else { 0 };
            for (i, byte) in field.iter().enumerate() {
                let byte = if i == 0 && !negative { byte & 0x7f } else { *byte };
                value = (value << 8) | i128::from(byte);
            }
            return i64::try_from(value).map_err(|_| bad());
        }
        let text: Vec<u8> =
            field.iter().copied().skip_while(|b| *b == b' ').take_while(|b| !b" \0".contains(b)).collect();
        text.iter().try_fold(0i64, |value, digit| match digit {
            b'0'..=b'7' => value.checked_mul(8).and_then(|v| v.checked_add(i64::from(digit - b'0'))).ok_or_else(bad),
            _ => Err(bad()),
        })
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

fn decimal(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok().filter(|t| !t.starts_with('+')).and_then(|t| t.parse().ok())
}

/// Decimal seconds with a fraction, maybe negative.
fn pax_time(text: &[u8]) -> Option<(i64, i64)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanoseconds: i64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    if whole.starts_with('-') && nanoseconds > 0 {
        Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds))
    } else {
        Some((seconds, nanoseconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::Limited;
    use proptest::prelude::*;

    #[test]
    fn a_binary_value_with_a_line_break_is_read_whole() {
        let mut description = Description::default();
        description.read_pax(b"26 SCHILY.xattr.user.a=\n\0\n12 path=a\nb\n").unwrap();
        assert_eq!(description.xattrs, [(b"user.a".to_vec(), b"\n\0".to_vec())]);
        assert_eq!(description.name.unwrap(), b"a\nb");
    }

    #[test]
    fn malformed_pax_records_are_errors() {
        for bad in
            [&b"5 a=b"[..], b"0 a=b\n", b"99 a=b\n", b"x a=b\n", b"6 abc\n", b"9 size=x\n", b"3 \n", b"10 size=-1\n"]
        {
            assert!(Description::default().read_pax(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn numbers_are_octal_or_base_256() {
        let mut header = Header([0; BLOCK]);
        header.0[124..136].copy_from_slice(b"00000001750\0");
        assert_eq!(header.number(124, 12, "size").unwrap(), 1000);
        header.0[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
        assert_eq!(header.number(124, 12, "size").unwrap(), 1 << 32);
        header.0[124..136].copy_from_slice(&[0xff; 12]);
        assert_eq!(header.signed(124, 12, "mtime").unwrap(), -1);
        assert!(header.number(124, 12, "size").is_err());
        header.0[124..136].copy_from_slice(&[0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        assert!(header.number(124, 12, "size").is_err());
    }

    #[test]
    fn pieces_that_overlap_or_overrun_are_errors() {
        assert!(check_segments(&[(0, 5), (10, 5)], 20, 10).is_ok());
        for (segments, size, stored) in
            [(&[(0, 5), (4, 5)][..], 20, 10), (&[(0, 30)], 20, 30), (&[(u64::MAX, 2)], u64::MAX, 2), (&[(0, 5)], 5, 4)]
        {
            assert!(check_segments(segments, size, stored).is_err(), "{segments:?}");
        }
    }

    proptest! {
        #[test]
        fn any_headers_are_read_or_refused(
            blocks in proptest::collection::vec((any::<u8>(), proptest::collection::vec((0..512usize, any::<u8>()), 0..40)), 0..8)
        ) {
            let mut archive = Vec::new();
            for (kind, changes) in blocks {
                let mut block = [0u8; BLOCK];
                block[..4].copy_from_slice(b"name");
                block[124..135].copy_from_slice(b"00000000017");
                block[257..263].copy_from_slice(b"ustar ");
                block[156] = b"01234567SLKxgV"[usize::from(kind) % 14];
                for (at, byte) in changes {
                    block[at] = byte;
                }
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                archive.extend(block);
                archive.extend([b'1'; BLOCK]);
            }
            let mut members = Members::new(Limited::new(&archive[..], u64::MAX));
            let mut last = 0;
            while let Ok(Some(member)) = members.next() {
                prop_assert!(member.position > last && member.position <= archive.len() as u64);
                last = member.position;
                let mut end = 0;
                let read = members.data(&member, |offset, bytes| {
                    assert!(offset >= end, "pieces in order");
                    end = offset + bytes.len() as u64;
                    Ok::<(), ()>(())
                });
                prop_assert!(end <= member.size);
                if read.is_err() {
                    break;
                }
            }
        }
    }

    #[test]
    fn times_have_fractions_and_signs() {
        assert_eq!(pax_time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(pax_time(b"-0.25"), Some((-1, 750_000_000)));
        assert_eq!(pax_time(b"1e9"), None);
    }
}

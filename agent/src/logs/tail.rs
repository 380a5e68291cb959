//! Reads the log of one instance from any point, over its rotated files and the one that is written, without ever
//! losing or repeating a line.
//!
//! Rotation renames `ID.log` to `ID.log.1`, that to `ID.log.2` and so on. The files that are there are opened the
//! newest first: one that is renamed meanwhile is seen twice (and known by its inode), never not at all. An open file
//! stays readable when rotation deletes it.

use super::record;
use bytes::{Buf, Bytes};
use fsb_host::logfile::{Base, MOST_FILES, base_path, numbered};
use fsb_proto::fastpath::LogLine;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Read at a time, in bytes, and what of a log waits for a reader who does not read on. The keeper's longest line fits,
/// 16 KiB of text with its head; a longer one is cut.
const BLOCK_BYTES: usize = (16 << 10) + 256;
/// How often files are opened that are rotated meanwhile.
const TRIES: u32 = 100;
/// Enough of a line to see whether it is complete.
const HEAD: usize = 128;

struct Open {
    file: File,
    inode: (u64, u64),
    at: u64,
    /// Where it begins in the whole log.
    base: u64,
    /// So much of the log between the file before it and this one was never seen.
    skipped: u64,
}

impl Open {
    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// With the oldest line that is there.
    Oldest,
    /// With the last so many lines.
    Last(u64),
    /// At this place of the whole log.
    At(u64),
}

/// Lines that were read.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Chunk {
    pub(crate) lines: Vec<LogLine>,
    /// The place of their first byte in the whole log, and that after their last one.
    pub(crate) begin: u64,
    pub(crate) end: u64,
    /// Bytes before them that were rotated away before they were read.
    pub(crate) skipped: u64,
}

/// A place in a log.
pub(crate) struct Tail {
    path: PathBuf,
    /// What is to be read, the oldest first; the last one is being written.
    files: VecDeque<Open>,
    /// A line over the limit is being skipped over.
    cut: bool,
    since_ns: i64,
    last_ns: i64,
    /// What was skipped and not told yet.
    skipped: u64,
    /// Grows with every file that is opened.
    opened: u64,
    /// As [`in_place`](Self::in_place).
    in_place: bool,
}

impl Tail {
    /// In the log at `path`; only lines at or after `since_ms`.
    pub(crate) fn open(path: PathBuf, start: Start, since_ms: i64) -> io::Result<Self> {
        let files = files(&path)?;
        let since_ns = since_ms.saturating_mul(1_000_000);
        let mut tail = Self { path, files, cut: false, since_ns, last_ns: 0, skipped: 0, opened: 1, in_place: false };
        match start {
            Start::Oldest => {}
            Start::Last(lines) => tail.skip_to_last(lines)?,
            Start::At(place) => tail.skip_to(place)?,
        }
        Ok(tail)
    }

    /// The file that is being written, as far as it was found, and a number that is another one for another file.
    pub(crate) fn current(&self) -> Option<(&File, u64)> {
        self.files.back().map(|open| (&open.file, self.opened))
    }

    /// Whether the newest file that was found still had the log's own name when there were no more lines.
    pub(crate) fn in_place(&self) -> bool {
        self.in_place
    }

    /// The place in the whole log up to which it was read.
    pub(crate) fn position(&self) -> u64 {
        self.files.front().map_or(0, |open| open.base + open.at)
    }

    /// The next lines, a block at most. `None` = there are no more for now.
    pub(crate) fn read(&mut self) -> io::Result<Option<Chunk>> {
        loop {
            let Some(open) = self.files.front_mut() else {
                self.files = files(&self.path)?;
                self.opened += 1;
                if self.files.is_empty() {
                    return Ok(None);
                }
                continue;
            };
            let begin = open.base + open.at;
            let mut block = vec![0; BLOCK_BYTES];
            let n = open.file.read_at(&mut block, open.at)?;
            block.truncate(n);
            // A line whose end is not there yet is read again when it is.
            let whole = match block.iter().rposition(|byte| *byte == b'\n') {
                Some(end) => end + 1,
                None if n == BLOCK_BYTES => n,
                None => 0,
            };
            open.at += whole as u64;
            let end = begin + whole as u64;
            if whole > 0 {
                let lines = self.take_in(Bytes::from(block).slice(..whole));
                if !lines.is_empty() {
                    return Ok(Some(Chunk { lines, begin, end, skipped: std::mem::take(&mut self.skipped) }));
                }
            } else if !self.next_file()? {
                let named = std::fs::metadata(&self.path).ok().map(|named| (named.dev(), named.ino()));
                self.in_place = self.files.back().is_some_and(|open| Some(open.inode) == named);
                let skipped = std::mem::take(&mut self.skipped);
                return Ok((skipped > 0).then(|| Chunk { begin, end, skipped, ..Chunk::default() }));
            }
        }
    }

    /// At the end of a file: goes on with the next newer one. `false` = there is none.
    fn next_file(&mut self) -> io::Result<bool> {
        if self.files.len() == 1 {
            let newer = newer(&self.path, &self.files[0])?;
            if newer.is_empty() {
                return Ok(false);
            }
            self.files.extend(newer);
            self.opened += 1;
            // What was written between the end we saw and the rotation comes first.
            return Ok(true);
        }
        self.files.pop_front();
        self.skipped += self.files[0].skipped;
        self.cut = false;
        Ok(true)
    }

    /// The lines of a block, which ends with a line; one that is longer than the block is cut off at its end.
    fn take_in(&mut self, mut block: Bytes) -> Vec<LogLine> {
        let mut lines = Vec::new();
        while !block.is_empty() {
            let end = block.iter().position(|byte| *byte == b'\n');
            let line = block.split_to(end.unwrap_or(block.len()));
            if end.is_some() {
                block.advance(1);
            }
            // What follows is the rest of a line without an end, and no line.
            if !std::mem::replace(&mut self.cut, end.is_none()) {
                self.push(&line, &mut lines);
            }
        }
        lines
    }

    fn push(&mut self, line: &Bytes, lines: &mut Vec<LogLine>) {
        let parsed = match record::parse(line) {
            Some(record) => {
                self.last_ns = record.time_ns;
                LogLine {
                    stream: record.stream.into(),
                    time_ns: record.time_ns,
                    text: line.slice_ref(record.text),
                    partial: record.partial,
                }
            }
            None if line.is_empty() => return,
            // Not ours, or cut off by a power failure: shown as it is.
            None => LogLine { stream: 0, time_ns: self.last_ns, text: line.clone(), partial: false },
        };
        if parsed.time_ns >= self.since_ns {
            lines.push(parsed);
        }
    }

    /// Moves to a place of the whole log, or to the nearest that is there.
    fn skip_to(&mut self, place: u64) -> io::Result<()> {
        while self.files.len() > 1 && self.files[1].base <= place {
            self.files.pop_front();
        }
        if let Some(open) = self.files.front_mut() {
            self.skipped = open.base.saturating_sub(place);
            open.at = place.saturating_sub(open.base).min(open.length()?);
        }
        Ok(())
    }

    /// Moves to the last `wanted` lines. The parts of a split line count as one.
    fn skip_to_last(&mut self, wanted: u64) -> io::Result<()> {
        let mut seen = 0;
        for index in (0..self.files.len()).rev() {
            let open = &mut self.files[index];
            let length = open.file.metadata()?.len();
            let mut start = length;
            if wanted == 0 {
                open.at = length;
                self.files.drain(..index);
                return Ok(());
            }
            let found = backwards(&open.file, length, |offset, head| {
                let partial = record::parse(head).is_some_and(|record| record.partial);
                if !partial && seen >= wanted {
                    return true;
                }
                // Parts belong to the line whose end was seen; the last line may have no end yet.
                if !partial || seen == 0 {
                    seen += 1;
                }
                start = offset;
                false
            })?;
            if found {
                self.files[index].at = start;
                self.files.drain(..index);
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Shows each line of a file, the last one first: where it begins, and its first bytes. Ends early when `visit` says so.
fn backwards(file: &File, length: u64, mut visit: impl FnMut(u64, &[u8]) -> bool) -> io::Result<bool> {
    let mut end = length;
    let mut head: Vec<u8> = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK_BYTES as u64);
        let mut block = vec![0; (end - start) as usize];
        file.read_exact_at(&mut block, start)?;
        let fresh = block.len();
        block.extend_from_slice(&head);
        let mut line_end = block.len();
        for at in (0..fresh).rev().filter(|at| block[*at] == b'\n').collect::<Vec<_>>() {
            let line = &block[at + 1..line_end];
            line_end = at;
            if !line.is_empty() && visit(start + at as u64 + 1, line) {
                return Ok(true);
            }
        }
        block.truncate(line_end.min(HEAD));
        head = block;
        end = start;
    }
    Ok(!head.is_empty() && visit(0, &head))
}

/// All files of a log, the oldest first.
fn files(path: &Path) -> io::Result<VecDeque<Open>> {
    for _ in 0..TRIES {
        let (mut files, _) = generations(path, None)?;
        if let Some(first) = first_base(path, &files)? {
            place(&mut files, first)?;
            return Ok(files);
        }
    }
    Err(io::Error::other("its files are rotated faster than they can be opened"))
}

/// How many bytes a log has had in all.
pub(super) fn end(path: &Path) -> io::Result<u64> {
    match files(path)?.back() {
        Some(last) => Ok(last.base + last.length()?),
        None => Ok(0),
    }
}

/// The files of a log that are newer than `known`, the oldest first; all of them if it is not among them any more.
fn newer(path: &Path, known: &Open) -> io::Result<VecDeque<Open>> {
    let (mut files, found) = generations(path, Some(known.inode))?;
    let end = known.base + known.length()?;
    if found {
        place(&mut files, end)?;
        return Ok(files);
    }
    let mut files = self::files(path)?;
    if let Some(first) = files.front_mut() {
        first.skipped = first.base.saturating_sub(end);
    }
    Ok(files)
}

/// Says of each file where it begins, from where the first one does.
fn place(files: &mut VecDeque<Open>, first: u64) -> io::Result<()> {
    let mut base = first;
    for open in files {
        open.base = base;
        // The last one grows: nothing begins at its end.
        base += open.length()?;
    }
    Ok(())
}

/// Where the first of all files begins. `None`: others were written meanwhile.
fn first_base(path: &Path, files: &VecDeque<Open>) -> io::Result<Option<u64>> {
    let Some(base) = Base::read(path)? else {
        // Nothing of it has gone; or this is being written for the first time.
        return Ok((!base_path(path).exists()).then_some(0));
    };
    let mut before = 0;
    for open in files {
        if open.inode.1 == base.inode {
            return Ok(Some(base.at.saturating_sub(before)));
        }
        before += open.length()?;
    }
    Ok(files.is_empty().then_some(0))
}

/// The files that are there, the oldest first: those that are newer than `known`, and whether that is there.
fn generations(path: &Path, known: Option<(u64, u64)>) -> io::Result<(VecDeque<Open>, bool)> {
    let mut files: VecDeque<Open> = VecDeque::new();
    let mut missing = false;
    for n in 0..MOST_FILES {
        let file = match File::open(numbered(path, n)) {
            Ok(file) => file,
            // Between two renames of a rotation one name is free for a moment: two of them are the end.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !missing => {
                missing = true;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        };
        missing = false;
        let meta = file.metadata()?;
        let inode = (meta.dev(), meta.ino());
        if known == Some(inode) {
            return Ok((files, true));
        }
        if files.iter().all(|open| open.inode != inode) {
            files.push_front(Open { file, inode, at: 0, base: 0, skipped: 0 });
        }
    }
    Ok((files, false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    struct Log(tempfile::TempDir, u64);

    impl Log {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap(), 0)
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("x.log")
        }

        fn write(&mut self, lines: &[&str]) {
            let mut file = File::options().append(true).create(true).open(self.path()).unwrap();
            for line in lines {
                self.1 += 1;
                let (tag, line) = line.strip_prefix('~').map_or(("F", *line), |line| ("P", line));
                writeln!(file, "1970-01-01T00:00:{:02}Z stdout {tag} {line}", self.1).unwrap();
            }
        }

        fn rotate(&self) {
            for n in (1..9).rev() {
                let _ = std::fs::rename(
                    self.0.path().join(format!("x.log.{n}")),
                    self.0.path().join(format!("x.log.{}", n + 1)),
                );
            }
            std::fs::rename(self.path(), self.0.path().join("x.log.1")).unwrap();
        }

        fn open(&self, lines: Option<u64>) -> Tail {
            Tail::open(self.path(), lines.map_or(Start::Oldest, Start::Last), 0).unwrap()
        }
    }

    /// As the keeper drops the oldest file.
    fn drop_oldest(log: &Log) {
        let oldest = (0..).take_while(|n| numbered(&log.path(), *n).exists()).last().unwrap();
        let path = |n| numbered(&log.path(), n);
        let before = Base::read(&log.path()).unwrap().map_or(0, |base| base.at);
        let at = before + path(oldest).metadata().unwrap().len();
        let base = Base { inode: path(oldest - 1).metadata().unwrap().ino(), at };
        std::fs::write(base_path(&log.path()), base.to_text()).unwrap();
        std::fs::remove_file(path(oldest)).unwrap();
    }

    /// A line of `Log::write` with a text of one byte.
    const LINE: u64 = "1970-01-01T00:00:01Z stdout F a\n".len() as u64;

    #[test]
    fn a_reader_knows_its_place_and_what_was_rotated_away_before_it_came() {
        let mut log = Log::new();
        log.write(&["a"]);
        let mut tail = log.open(None);
        let chunk = tail.read().unwrap().unwrap();
        assert_eq!((chunk.begin, chunk.end, chunk.skipped, tail.position()), (0, LINE, 0, LINE));
        for line in ["b", "c", "d", "e", "f"] {
            log.rotate();
            log.write(&[line]);
        }
        drop_oldest(&log);
        let at = |place| Tail::open(log.path(), Start::At(place), 0).unwrap();
        let first = |tail: &mut Tail| {
            let chunk = tail.read().unwrap().unwrap();
            (String::from_utf8(chunk.lines[0].text.to_vec()).unwrap(), chunk.begin, chunk.skipped)
        };
        assert_eq!(first(&mut at(0)), ("b".into(), LINE, LINE));
        assert_eq!(first(&mut at(LINE)), ("b".into(), LINE, 0));
        assert_eq!(first(&mut at(2 * LINE)), ("c".into(), 2 * LINE, 0));
        drop_oldest(&log);
        drop_oldest(&log);
        assert_eq!(first(&mut at(2 * LINE)), ("d".into(), 3 * LINE, LINE));
        assert_eq!(first(&mut tail), ("d".into(), 3 * LINE, 2 * LINE), "b and c, which it never saw");
        assert_eq!(all(&mut tail), ["e", "f"]);
        assert_eq!((tail.position(), end(&log.path()).unwrap()), (6 * LINE, 6 * LINE));
        assert_eq!(at(99 * LINE).read().unwrap(), None, "beyond its end");
        log.write(&["g"]);
        assert_eq!(first(&mut tail), ("g".into(), 6 * LINE, 0));
    }

    fn all(tail: &mut Tail) -> Vec<String> {
        let mut texts = Vec::new();
        loop {
            let Some(chunk) = tail.read().unwrap() else { return texts };
            texts.extend(chunk.lines.into_iter().map(|line| String::from_utf8_lossy(&line.text).into_owned()));
        }
    }

    #[test]
    fn reading_goes_on_over_any_number_of_rotations() {
        let mut log = Log::new();
        log.write(&["a", "b"]);
        let mut tail = log.open(None);
        assert_eq!(all(&mut tail), ["a", "b"]);
        log.write(&["c"]);
        log.rotate();
        log.write(&["d"]);
        log.rotate();
        log.write(&["e"]);
        assert_eq!(all(&mut tail), ["c", "d", "e"]);
        log.rotate();
        assert_eq!(all(&mut tail), [] as [&str; 0]);
        log.write(&["f"]);
        assert_eq!(all(&mut tail), ["f"]);
        assert_eq!(all(&mut log.open(None)), ["a", "b", "c", "d", "e", "f"]);
    }

    #[test]
    fn a_reader_that_is_behind_and_comes_in_the_middle_of_a_rotation_misses_nothing() {
        let mut log = Log::new();
        log.write(&["a"]);
        let mut tail = log.open(None);
        assert_eq!(all(&mut tail), ["a"]);
        for line in ["b", "c"] {
            log.rotate();
            log.write(&[line]);
        }
        let name = |n: u32| log.0.path().join(format!("x.log.{n}"));
        std::fs::rename(name(2), name(3)).unwrap();
        std::fs::rename(name(1), name(2)).unwrap();
        assert_eq!(all(&mut tail), ["b", "c"]);
        assert_eq!(all(&mut log.open(None)), ["a", "b", "c"]);
        std::fs::rename(log.path(), name(1)).unwrap();
        log.write(&["d"]);
        assert_eq!(all(&mut tail), ["d"]);
    }

    #[test]
    fn as_many_files_as_a_writer_may_have_are_read() {
        let mut log = Log::new();
        // LOG_MAX_FILES is 1,000 at most; the last words of a program may take one more, which is begun before one goes.
        for n in (0..1002).rev() {
            log.write(&["a"]);
            std::fs::rename(log.path(), log.0.path().join("written")).unwrap();
            std::fs::rename(log.0.path().join("written"), numbered(&log.path(), n)).unwrap();
        }
        assert_eq!(all(&mut log.open(None)).len(), 1002);
    }

    #[test]
    fn the_last_lines_are_found_over_rotated_files_and_split_lines_count_once() {
        let mut log = Log::new();
        log.write(&["a", "~b", "~b", "b"]);
        log.rotate();
        log.write(&["c", "d"]);
        assert_eq!(all(&mut log.open(Some(0))), [] as [&str; 0]);
        assert_eq!(all(&mut log.open(Some(1))), ["d"]);
        assert_eq!(all(&mut log.open(Some(2))), ["c", "d"]);
        assert_eq!(all(&mut log.open(Some(3))), ["b", "b", "b", "c", "d"]);
        assert_eq!(all(&mut log.open(Some(4))).len(), 6);
        assert_eq!(all(&mut log.open(Some(99))).len(), 6);
        log.write(&["~e"]);
        assert_eq!(all(&mut log.open(Some(1))), ["e"]);
        assert_eq!(all(&mut log.open(Some(2))), ["d", "e"]);
    }

    #[test]
    fn the_last_lines_are_found_over_block_boundaries() {
        let mut log = Log::new();
        let long = "y".repeat(9000);
        for _ in 0..50 {
            log.write(&[&long]);
        }
        for n in [1, 7, 8, 15, 49, 50] {
            assert_eq!(all(&mut log.open(Some(n))).len() as u64, n);
        }
    }

    #[test]
    fn since_leaves_older_lines_out() {
        let mut log = Log::new();
        log.write(&["a", "b", "c"]);
        assert_eq!(all(&mut Tail::open(log.path(), Start::Oldest, 2000).unwrap()), ["b", "c"]);
    }

    #[test]
    fn a_line_is_shown_when_it_is_complete_and_never_twice() {
        let mut log = Log::new();
        log.write(&["a"]);
        let mut tail = log.open(None);
        let mut file = File::options().append(true).open(log.path()).unwrap();
        file.write_all(b"1970-01-01T00:00:09Z stdout F half").unwrap();
        assert_eq!(all(&mut tail), ["a"]);
        file.write_all(b" whole\n").unwrap();
        assert_eq!(all(&mut tail), ["half whole"]);
    }

    #[test]
    fn hostile_bytes_are_bounded_and_harmless() {
        let log = Log::new();
        let mut bytes = vec![b'x'; 3 * BLOCK_BYTES];
        bytes.extend_from_slice(b"\n\n\0\xff garbage\n1970-01-01T00:00:09Z stdout F good\n");
        std::fs::write(log.path(), bytes).unwrap();
        let texts = all(&mut log.open(None));
        assert_eq!(texts.len(), 3);
        assert_eq!(texts[0].len(), BLOCK_BYTES);
        assert_eq!(texts[2], "good");
        assert_eq!(all(&mut log.open(Some(1))), ["good"]);
    }
}

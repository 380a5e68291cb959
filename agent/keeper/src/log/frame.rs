//! Bytes of a pipe → lines of the CRI log format. Pure.
//!
//! ```text
//! 2026-01-02T03:04:05.000000006Z stdout F a whole line
//! 2026-01-02T03:04:05.000000006Z stdout P the part of a line that goes on in the next record of the same stream
//! ```
//!
//! `F` ends a line, `P` does not: a text longer than [`MAX_TEXT`] comes in parts, and so does a line that stays open
//! (a prompt, or the last one of a process that ended without a newline). Joined in order, with a newline after each
//! `F`, the texts are exactly the bytes of the pipe. Nothing but `\n` is looked at: everything else is kept as it is.
//!
//! Source: the kubelet's log reader, `pkg/kubelet/kuberuntime/logs`; containerd's `cio/log`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The most bytes of text in one record, as containerd has it.
pub(crate) const MAX_TEXT: usize = 16 << 10;
/// Bytes that a record has beyond its text.
#[cfg(test)]
const OVERHEAD: usize = HEAD + 1;
/// `2026-01-02T03:04:05.000000006Z`
const STAMP: usize = 30;
/// A stamp, a stream and a tag.
const HEAD: usize = STAMP + " stdout F ".len();

/// Where bytes came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static [u8; 8] {
        match self {
            Self::Stdout => b" stdout ",
            Self::Stderr => b" stderr ",
        }
    }
}

/// A point in time as RFC 3339 with nanoseconds, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp([u8; STAMP]);

impl Stamp {
    /// `since` the Unix epoch; years 1970 to 9999.
    pub(crate) fn at(since: Duration) -> Self {
        let seconds = since.as_secs();
        let (year, month, day) = date(seconds / 86_400);
        let rest = seconds % 86_400;
        let mut text = *b"0000-00-00T00:00:00.000000000Z";
        put(&mut text[0..4], year);
        put(&mut text[5..7], month);
        put(&mut text[8..10], day);
        put(&mut text[11..13], rest / 3600);
        put(&mut text[14..16], rest / 60 % 60);
        put(&mut text[17..19], rest % 60);
        let mut stamp = Self(text);
        stamp.set_nanoseconds(since.subsec_nanos());
        stamp
    }

    fn set_nanoseconds(&mut self, nanoseconds: u32) {
        put(&mut self.0[20..29], u64::from(nanoseconds));
    }
}

/// The present as a stamp. All but the fraction is formatted once a second.
#[derive(Debug)]
pub(crate) struct Clock {
    second: u64,
    stamp: Stamp,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { second: 0, stamp: Stamp::at(Duration::ZERO) }
    }

    pub(crate) fn now(&mut self) -> Stamp {
        self.at(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    fn at(&mut self, since: Duration) -> Stamp {
        if self.second == since.as_secs() {
            self.stamp.set_nanoseconds(since.subsec_nanos());
        } else {
            self.second = since.as_secs();
            self.stamp = Stamp::at(since);
        }
        self.stamp
    }
}

fn put(digits: &mut [u8], mut number: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Year, month and day of the `days`th day after 1970-01-01: Howard Hinnant's `civil_from_days`, in years that begin
/// in March, so that the leap day is the last of its year.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

/// Cuts one stream into records.
#[derive(Debug)]
pub(crate) struct Framer {
    stream: Stream,
    /// Text of the open line that is in no record yet; never longer than [`MAX_TEXT`].
    open: Vec<u8>,
}

impl Framer {
    /// Of an empty stream.
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, open: Vec::new() }
    }

    /// Whether there is text that is in no record yet.
    pub(crate) fn holds_text(&self) -> bool {
        !self.open.is_empty()
    }

    /// Appends records for the beginning of `input` to `out`, until `out` has `enough` bytes or all is consumed.
    /// Returns how much was. `out` grows by one record beyond `enough` at most.
    pub(crate) fn frame(&mut self, input: &[u8], stamp: &Stamp, enough: usize, out: &mut Vec<u8>) -> usize {
        let whole = self.head(b'F', stamp);
        let mut used = 0;
        while used < input.len() && out.len() < enough {
            let rest = &input[used..];
            // One more than fits: a newline right behind a full record makes it whole.
            let window = &rest[..rest.len().min(MAX_TEXT - self.open.len() + 1)];
            match memchr::memchr(b'\n', window) {
                Some(end) => {
                    out.extend_from_slice(&whole);
                    self.close_line(out);
                    out.extend_from_slice(&rest[..=end]);
                    used += end + 1;
                }
                None if self.open.len() + window.len() > MAX_TEXT => {
                    self.part(&window[..window.len() - 1], stamp, out);
                    used += window.len() - 1;
                }
                None => {
                    self.open.extend_from_slice(window);
                    used += window.len();
                }
            }
        }
        used
    }

    /// Appends what there is of the open line, with tag `P`.
    pub(crate) fn flush(&mut self, stamp: &Stamp, out: &mut Vec<u8>) {
        if self.holds_text() {
            self.part(&[], stamp, out);
        }
    }

    fn part(&mut self, text: &[u8], stamp: &Stamp, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head(b'P', stamp));
        self.close_line(out);
        out.extend_from_slice(text);
        out.push(b'\n');
    }

    fn close_line(&mut self, out: &mut Vec<u8>) {
        if self.holds_text() {
            out.extend_from_slice(&self.open);
            // Open lines are rare: their memory goes, so that a thousand quiet pipes stay small.
            self.open = Vec::new();
        }
    }

    fn head(&self, tag: u8, stamp: &Stamp) -> [u8; HEAD] {
        let mut head = [b' '; HEAD];
        head[..STAMP].copy_from_slice(&stamp.0);
        head[STAMP..STAMP + 8].copy_from_slice(self.stream.name());
        head[HEAD - 2] = tag;
        head
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const AT: Duration = Duration::new(1_767_323_045, 6);

    fn text(records: &[u8]) -> String {
        String::from_utf8_lossy(records).replace("2026-01-02T03:04:05.000000006Z ", "")
    }

    fn framed(framer: &mut Framer, input: &[u8]) -> String {
        let mut out = Vec::new();
        assert_eq!(framer.frame(input, &Stamp::at(AT), usize::MAX, &mut out), input.len());
        text(&out)
    }

    /// What a reader makes of records: the bytes of the pipe.
    fn joined(records: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for record in records.split_inclusive(|byte| *byte == b'\n') {
            let record = record.strip_suffix(b"\n").unwrap();
            let text = &record[OVERHEAD - 1..];
            assert!(text.len() <= MAX_TEXT);
            bytes.extend_from_slice(text);
            if record[OVERHEAD - 3] == b'F' {
                bytes.push(b'\n');
            }
        }
        bytes
    }

    #[test]
    fn times_are_written_with_nanoseconds() {
        let cases = [
            (AT, "2026-01-02T03:04:05.000000006Z"),
            (Duration::ZERO, "1970-01-01T00:00:00.000000000Z"),
            (Duration::new(951_782_400, 0), "2000-02-29T00:00:00.000000000Z"),
            (Duration::new(4_107_542_399, 999_999_999), "2100-02-28T23:59:59.999999999Z"),
            (Duration::new(4_107_542_400, 0), "2100-03-01T00:00:00.000000000Z"),
        ];
        for (at, expected) in cases {
            assert_eq!(std::str::from_utf8(&Stamp::at(at).0).unwrap(), expected);
        }
    }

    #[test]
    fn whole_lines_are_full_records() {
        let mut framer = Framer::new(Stream::Stdout);
        assert_eq!(framed(&mut framer, b"one\n\ntwo\n"), "stdout F one\nstdout F \nstdout F two\n");
        assert!(!framer.holds_text());
    }

    #[test]
    fn a_line_in_pieces_is_one_record() {
        let mut framer = Framer::new(Stream::Stderr);
        assert_eq!(framed(&mut framer, b"on"), "");
        assert_eq!(framed(&mut framer, b"e"), "");
        assert_eq!(framed(&mut framer, b"\n"), "stderr F one\n");
    }

    #[test]
    fn an_open_line_is_flushed_as_a_part_and_its_end_completes_it() {
        let mut framer = Framer::new(Stream::Stdout);
        framed(&mut framer, b"name? ");
        let mut out = Vec::new();
        framer.flush(&Stamp::at(AT), &mut out);
        framer.flush(&Stamp::at(AT), &mut out);
        assert_eq!(text(&out), "stdout P name? \n");
        assert_eq!(framed(&mut framer, b"\n"), "stdout F \n");
    }

    #[test]
    fn a_line_as_long_as_a_record_is_whole_and_a_longer_one_is_split() {
        let mut framer = Framer::new(Stream::Stdout);
        let exact = "a".repeat(MAX_TEXT);
        assert_eq!(framed(&mut framer, format!("{exact}\n").as_bytes()), format!("stdout F {exact}\n"));
        let split = format!("stdout P {exact}\nstdout F b\n");
        assert_eq!(framed(&mut framer, format!("{exact}b\n").as_bytes()), split);
        assert_eq!(framed(&mut framer, exact.as_bytes()), "");
        assert_eq!(framed(&mut framer, b"b\n"), split);
    }

    #[test]
    fn a_flood_of_newlines_is_framed_in_bounded_pieces() {
        let mut framer = Framer::new(Stream::Stdout);
        let mut out = Vec::new();
        let used = framer.frame(&[b'\n'; 60_000], &Stamp::at(AT), 1000, &mut out);
        assert!(used < 60_000 && out.len() < 1000 + OVERHEAD, "{used} {}", out.len());
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_or_changed_whatever_the_pieces(
            pieces in prop::collection::vec(
                (prop::collection::vec(prop_oneof![3 => any::<u8>(), 1 => Just(b'\n')], 0..2000), 1usize..20, any::<bool>()),
                0..12,
            ),
            enough in 1usize..40_000,
        ) {
            let mut framer = Framer::new(Stream::Stdout);
            let (mut input, mut out) = (Vec::new(), Vec::new());
            for (piece, times, flush) in pieces {
                let piece = piece.repeat(times);
                let mut used = 0;
                while used < piece.len() {
                    let mut batch = Vec::new();
                    used += framer.frame(&piece[used..], &Stamp::at(AT), enough, &mut batch);
                    out.extend(batch);
                }
                if flush {
                    framer.flush(&Stamp::at(AT), &mut out);
                }
                input.extend(piece);
            }
            framer.flush(&Stamp::at(AT), &mut out);
            prop_assert_eq!(joined(&out), input);
        }
    }
}

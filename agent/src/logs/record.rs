//! One line of a log file in the CRI format: `RFC3339Nano stdout|stderr F|P text`. Pure, and safe for any bytes.

use fsb_proto::fastpath::LogStream;

/// A line, or a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    /// Unix nanoseconds.
    pub(crate) time_ns: i64,
    pub(crate) stream: LogStream,
    /// The line goes on in the next record of the same stream.
    pub(crate) partial: bool,
    pub(crate) text: &'a [u8],
}

/// Reads a line without its newline. `None` = it is not in the format.
pub(crate) fn parse(line: &[u8]) -> Option<Record<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time_ns = parse_time(parts.next()?)?;
    let stream = match parts.next()? {
        b"stdout" => LogStream::Stdout,
        b"stderr" => LogStream::Stderr,
        _ => return None,
    };
    let partial = match parts.next()? {
        b"F" => false,
        b"P" => true,
        _ => return None,
    };
    Some(Record { time_ns, stream, partial, text: parts.next().unwrap_or_default() })
}

/// Unix nanoseconds of `2006-01-02T15:04:05.999999999Z`, or with an offset (`+02:00`) instead of `Z`.
pub(crate) fn parse_time(text: &[u8]) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range)?;
        digits.iter().all(u8::is_ascii_digit).then(|| digits.iter().fold(0, |n, d| n * 10 + i64::from(d - b'0')))
    };
    let byte = |at: usize| text.get(at).copied();
    if [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')].iter().any(|(at, want)| byte(*at) != Some(*want)) {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut at = 19;
    let mut nanos = 0;
    if byte(at) == Some(b'.') {
        let digits = text[at + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if !(1..=9).contains(&digits) {
            return None;
        }
        nanos = number(at + 1..at + 1 + digits)? * 10i64.pow(9 - digits as u32);
        at += 1 + digits;
    }
    let offset = match text.get(at..)? {
        b"Z" => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let seconds = number(at + 1..at + 3)? * 3600 + number(at + 4..at + 6)? * 60;
            if *sign == b'+' { seconds } else { -seconds }
        }
        _ => return None,
    };
    let seconds = days(year, month, day) * 86400 + hour * 3600 + minute * 60 + second - offset;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanos)
}

/// Days since 1970-01-01 of a date of the Gregorian calendar, after Howard Hinnant's `days_from_civil`.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_of_the_keeper_is_understood() {
        let record = parse(b"2026-11-22T23:46:01.000000123Z stderr P a b  c").unwrap();
        assert_eq!(record.time_ns % 1_000_000_000, 123);
        assert_eq!((record.stream, record.partial, record.text), (LogStream::Stderr, true, &b"a b  c"[..]));
        assert_eq!(parse(b"1970-01-01T00:00:01Z stdout F ").unwrap().time_ns, 1_000_000_000);
        assert_eq!(parse(b"1970-01-01T00:00:01Z stdout F").unwrap().text, b"");
    }

    #[test]
    fn times_are_unix_times() {
        assert_eq!(parse_time(b"2000-03-01T00:00:00Z"), Some(951_868_800_000_000_000));
        assert_eq!(parse_time(b"2024-02-29T12:00:00.5+02:00"), Some(1_709_200_800_500_000_000));
        for bad in ["", "2000-13-01T00:00:00Z", "2000-01-01 00:00:00Z", "2000-01-01T00:00:00", "2000-01-01T00:00:00.Z"]
        {
            assert_eq!(parse_time(bad.as_bytes()), None, "{bad}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn no_bytes_make_the_reader_panic(line in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse(&line);
        }

        #[test]
        fn nothing_near_the_format_makes_the_reader_panic(
            line in "[0-9]{0,5}-[0-9]{1,2}-[0-9]{1,2}T[0-9:.+Z-]{0,24} ?(stdout|stderr|x)? ?[FPx]? ?.{0,10}"
        ) {
            let _ = parse(line.as_bytes());
        }

        #[test]
        fn text_comes_out_as_it_went_in(text in prop::collection::vec(any::<u8>().prop_filter("newline", |b| *b != b'\n'), 0..200)) {
            let mut line = b"2026-11-22T23:46:01.5Z stdout F ".to_vec();
            line.extend_from_slice(&text);
            prop_assert_eq!(parse(&line).unwrap().text, &text[..]);
        }
    }
}

//! Time as it is written down: Unix milliseconds, and RFC 3339 with its nanoseconds.
//!
//! The wall clock may be set at any moment, by hours or by years. So whatever decides when something may happen goes by
//! [`Instant`], and the wall clock is only for people, and for what was written before this process began.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The wall clock of a controller. Tests set it.
#[derive(Debug, Default)]
pub struct Clock {
    ahead_ms: AtomicI64,
}

impl Clock {
    /// Now, in Unix milliseconds.
    pub fn now_ms(&self) -> i64 {
        now_ms().saturating_add(self.ahead_ms.load(Ordering::Relaxed))
    }

    /// As if somebody had set the machine's clock so far ahead of the right time; less than 0 = behind.
    pub fn set_ahead(&self, ms: i64) {
        self.ahead_ms.store(ms, Ordering::Relaxed);
    }

    /// When the wall clock will show `unix_ms`, as it stands now; what is past is now. To be asked once, when the time
    /// becomes known: from then on setting the clock changes nothing.
    pub fn due(&self, unix_ms: i64) -> Instant {
        let left = unix_ms.saturating_sub(self.now_ms());
        Instant::now() + Duration::from_millis(u64::try_from(left).unwrap_or(0))
    }

    /// When the wall clock showed `unix_ms`, as it stands now, but no longer ago than `most`, and not in the future.
    pub fn since(&self, unix_ms: i64, most: Duration) -> Instant {
        let past = u64::try_from(self.now_ms().saturating_sub(unix_ms)).unwrap_or(0);
        let now = Instant::now();
        now.checked_sub(Duration::from_millis(past).min(most)).unwrap_or(now)
    }
}

/// Now, in Unix milliseconds.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// An RFC 3339 time in Unix nanoseconds. `None` where it is none.
pub fn parse_rfc3339(text: &str) -> Option<i128> {
    let bytes = text.as_bytes();
    let number = |from: usize, len: usize| -> Option<i64> {
        let digits = text.get(from..from + len)?;
        if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
    };
    let separators = [(4, b"-"), (7, b"-"), (13, b":"), (16, b":")];
    if bytes.len() < 20 || separators.iter().any(|(at, sign)| !sign.contains(&bytes[*at])) {
        return None;
    }
    if !b"Tt ".contains(&bytes[10]) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
    let (hour, minute, second) = (number(11, 2)?, number(14, 2)?, number(17, 2)?);
    // 60 is a leap second, which counts as the first of the next minute.
    if !(1..=12).contains(&month) || day < 1 || day > days_in(year, month) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut at = 19;
    let mut nanos: i128 = 0;
    if bytes[at] == b'.' {
        let digits = text[at + 1..].bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 {
            return None;
        }
        let fraction: String = text[at + 1..at + 1 + digits].chars().chain("000000000".chars()).take(9).collect();
        nanos = fraction.parse().ok()?;
        at += 1 + digits;
    }
    let offset = match text.get(at..)? {
        "Z" | "z" => 0,
        zone => {
            let sign = match zone.as_bytes().first()? {
                b'+' => 1,
                b'-' => -1,
                _ => return None,
            };
            if zone.len() != 6 || zone.as_bytes()[3] != b':' {
                return None;
            }
            let (hours, minutes) = (number(at + 1, 2)?, number(at + 4, 2)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            sign * (hours * 3600 + minutes * 60)
        }
    };
    let seconds = days_since_epoch(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset;
    Some(i128::from(seconds) * 1_000_000_000 + nanos)
}

/// Unix milliseconds as RFC 3339 in UTC.
pub fn format_rfc3339(ms: i64) -> String {
    let time = UNIX_EPOCH + Duration::from_millis(ms.max(0) as u64);
    humantime::format_rfc3339_millis(time).to_string()
}

fn leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Howard Hinnant's days_from_civil: years begin in March, so that the leap day comes last.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_compared_with_its_nanoseconds_and_its_zone() {
        assert_eq!(parse_rfc3339("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(parse_rfc3339("2024-02-29T12:30:01.000000001Z"), Some(1_709_209_801_000_000_001));
        assert_eq!(parse_rfc3339("2024-02-29T14:30:01.000000001+02:00"), Some(1_709_209_801_000_000_001));
        assert!(parse_rfc3339("2024-01-01T00:00:00.1Z") > parse_rfc3339("2024-01-01T00:00:00.099999999Z"));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for bad in [
            "",
            "now",
            "2024-01-01",
            "2024-13-01T00:00:00Z",
            "2023-02-29T00:00:00Z",
            "2024-01-01T00:00:00",
            "2024-01-01T00:00:00.Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:00:00+0200",
            "2024-01-01T00:00:00Zx",
            "+024-01-01T00:00:00Z",
            "2024-01-01T00:00:0ßZ",
        ] {
            assert_eq!(parse_rfc3339(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let ms = 1_709_209_801_123;
        assert_eq!(parse_rfc3339(&format_rfc3339(ms)), Some(i128::from(ms) * 1_000_000));
    }
}

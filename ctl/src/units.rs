//! Amounts and times as people write them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `10s`, `1h30m`, or a number of seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text).map_err(|_| "not a duration; write it like 90s, 10m or 1h30m".to_owned())
}

/// Whole seconds of a duration, as the wire takes them.
pub(crate) fn seconds(text: &str) -> Result<i32, String> {
    let duration = duration(text)?;
    if duration.subsec_nanos() != 0 {
        return Err("must be whole seconds".into());
    }
    i32::try_from(duration.as_secs()).map_err(|_| "too long".into())
}

/// A point in time: RFC 3339, or a distance from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    At(SystemTime),
    Distance(Duration),
    Never,
}

/// `2026-01-02T03:04:05Z`, `10m`, `never` or `0`.
pub(crate) fn moment(text: &str) -> Result<Moment, String> {
    if matches!(text, "never" | "0") {
        return Ok(Moment::Never);
    }
    if let Some(time) = rfc3339(text) {
        return Ok(Moment::At(time));
    }
    let wrong = "neither a duration like 10m nor a time like 2026-01-02T03:04:05Z";
    duration(text).map(Moment::Distance).map_err(|_| wrong.to_owned())
}

impl Moment {
    /// The Unix second it means when it looks forward; 0 = never. Rounded up: it never comes early.
    pub(crate) fn ahead(self, now: SystemTime) -> i64 {
        let at = match self {
            Self::Never => return 0,
            Self::At(time) => time,
            Self::Distance(distance) => now.checked_add(distance).unwrap_or(now),
        };
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        (since.as_secs() + u64::from(since.subsec_nanos() > 0)) as i64
    }

    /// The Unix millisecond it means when it looks back; 0 = from the beginning.
    pub(crate) fn back(self, now: SystemTime) -> i64 {
        let at = match self {
            Self::Never => return 0,
            Self::At(time) => time,
            Self::Distance(distance) => now.checked_sub(distance).unwrap_or(UNIX_EPOCH),
        };
        at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64
    }
}

/// RFC 3339 with `Z` or an offset.
pub(crate) fn rfc3339(text: &str) -> Option<SystemTime> {
    let split = text.len().checked_sub(6).and_then(|at| text.split_at_checked(at));
    // The two characters tell an offset from the end of a date.
    let Some((time, offset)) = split.filter(|(_, end)| end.starts_with(['+', '-']) && end.as_bytes()[3] == b':') else {
        return humantime::parse_rfc3339_weak(text).ok();
    };
    let time = humantime::parse_rfc3339_weak(time).ok()?;
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let (hours, minutes) = (hours.parse::<u64>().ok()?, minutes.parse::<u64>().ok()?);
    if hours > 23 || minutes > 59 {
        return None;
    }
    let distance = Duration::from_secs(hours * 3600 + minutes * 60);
    match offset.as_bytes()[0] {
        b'+' => time.checked_sub(distance),
        b'-' => time.checked_add(distance),
        _ => None,
    }
}

/// A time with its nanoseconds, in RFC 3339.
pub(crate) fn rfc3339_nanos(time: SystemTime) -> String {
    humantime::format_rfc3339_nanos(time).to_string()
}

/// Bytes as Docker takes them: `256m`, `1g`; every suffix is a power of 1024.
pub(crate) fn bytes(text: &str) -> Result<i64, String> {
    let lower = text.to_ascii_lowercase();
    let number = lower.trim_end_matches('b').trim_end_matches('i');
    scaled(number, &[("k", 10), ("m", 20), ("g", 30), ("t", 40)].map(|(unit, bits)| (unit, 1u64 << bits)))
        .ok_or_else(|| format!("{text:?} is not an amount; write it like 256m or 1g"))
}

/// Bytes as Kubernetes takes them: `256Mi`, `1G`.
pub(crate) fn quantity(text: &str) -> Result<i64, String> {
    let units = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
    ];
    scaled(text, &units).ok_or_else(|| format!("{text:?} is not an amount; write it like 256Mi or 1Gi"))
}

/// Cores: `0.5`, `2` or `500m`, in thousandths.
pub(crate) fn cpus(text: &str) -> Result<i64, String> {
    let wrong = || format!("{text:?} is not a number of cores; write it like 0.5 or 500m");
    let millis = match text.strip_suffix('m') {
        Some(millis) => millis.parse::<i64>().map_err(|_| wrong())?,
        None => {
            let cores = text.parse::<f64>().map_err(|_| wrong())?;
            if !cores.is_finite() || cores.abs() > 1e6 {
                return Err(wrong());
            }
            (cores * 1000.0).round() as i64
        }
    };
    if millis <= 0 { Err(format!("{text:?} must be more than nothing")) } else { Ok(millis) }
}

/// A decimal number with one of the units, or none.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<i64> {
    let (number, factor) =
        units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor))).unwrap_or((text, 1));
    if let Ok(whole) = number.parse::<i64>() {
        return whole.checked_mul(factor as i64).filter(|bytes| *bytes > 0);
    }
    let value = number.parse::<f64>().ok()? * factor as f64;
    (value.is_finite() && value >= 1.0 && value < i64::MAX as f64).then_some(value as i64)
}

/// How long ago, in one unit: `12s`, `5m`, `3h`, `2d`.
pub(crate) fn age(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// How long something took: `870 µs`, `1.34 ms`, `2.1 s`.
pub(crate) fn took(duration: Duration) -> String {
    let micros = duration.as_micros();
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => format!("{:.2} ms", micros as f64 / 1e3),
        _ => format!("{:.1} s", micros as f64 / 1e6),
    }
}

/// Bytes for people: `4.2 MiB`.
pub(crate) fn human_bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_of_memory_are_read_as_docker_reads_them() {
        for (text, value) in [("256m", 256 << 20), ("1g", 1 << 30), ("1GiB", 1 << 30), ("4096", 4096), ("1.5k", 1536)] {
            assert_eq!(bytes(text), Ok(value), "{text}");
        }
        for bad in ["", "m", "-1m", "0", "x", "99999999999g", "nan"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, value) in [("256Mi", 256 << 20), ("1G", 1_000_000_000), ("12", 12)] {
            assert_eq!(quantity(text), Ok(value), "{text}");
        }
        assert!(quantity("500m").is_err());
    }

    #[test]
    fn cores_become_thousandths() {
        for (text, value) in [("0.5", 500), ("2", 2000), ("250m", 250)] {
            assert_eq!(cpus(text), Ok(value), "{text}");
        }
        for bad in ["0", "-1", "many", "inf"] {
            assert!(cpus(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_moment_is_a_time_a_distance_or_never() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        assert_eq!(moment("10m").unwrap().ahead(now), 1_000_600);
        assert_eq!(moment("10m").unwrap().back(now), 999_400_000);
        assert_eq!(moment("never").unwrap().ahead(now), 0);
        assert_eq!(moment("1970-01-01T00:00:10Z").unwrap().ahead(now), 10);
        assert_eq!(moment("1970-01-01T02:00:10.5+02:00").unwrap().back(now), 10_500);
        assert_eq!(moment("1970-01-01T00:00:00.000000001Z").unwrap().ahead(now), 1);
        for bad in ["yesterday", "", "1970-01-01T00:00:10+99:00", "ä+ö:ü"] {
            assert!(moment(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_grace_period_is_whole_seconds() {
        assert_eq!(seconds("1m"), Ok(60));
        assert_eq!(seconds("5"), Ok(5));
        assert!(seconds("1500ms").is_err());
        assert!(seconds("1000years").is_err());
    }
}

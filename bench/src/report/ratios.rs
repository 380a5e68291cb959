//! How cells compare with the floors of their run, with confidence intervals.

use super::{Row, rounded};
use crate::bootstrap::Resampled;
use crate::payload::Payload;

/// posix_spawn of the same program.
pub const SPAWN: &str = "floor-spawn";
/// A container written by hand, nothing prepared.
pub const COLD: &str = "floor-cold";
/// What is resampled.
const PERCENTS: [usize; 2] = [50, 99];
const P50: usize = 0;
const P99: usize = 1;

/// Adds to each row with samples the intervals of its p50 and p99, and its ratios to the rows called `spawn` and `cold`
/// of the same payload with theirs.
pub fn add(rows: &mut [Row], spawn: &str, cold: &str) {
    let resampled: Vec<Resampled> =
        rows.iter().enumerate().map(|(stream, row)| Resampled::of(&row.samples_ns, &PERCENTS, stream as u64)).collect();
    let find = |rows: &[Row], name: &str, payload: Option<Payload>| {
        rows.iter().position(|row| row.name == name && row.payload == payload && row.summary.is_some())
    };
    for index in 0..rows.len() {
        let payload = rows[index].payload;
        let Some(own) = rows[index].summary else { continue };
        let mut values = Vec::new();
        for (key, percent) in [("p50", P50), ("p99", P99)] {
            if let Some(interval) = resampled[index].interval(percent) {
                values.push((format!("{key}_low_us"), interval.low / 1e3));
                values.push((format!("{key}_high_us"), interval.high / 1e3));
            }
        }
        let mut ratio = |key: &str, floor: usize, percent: usize, ratio: f64| {
            values.push((key.to_owned(), ratio));
            if let Some(interval) = resampled[index].ratio(&resampled[floor], percent).filter(|_| floor != index) {
                values.push((format!("{key}_low"), interval.low));
                values.push((format!("{key}_high"), interval.high));
            }
        };
        if let Some((floor, by)) = find(rows, spawn, payload).and_then(|i| Some((i, rows[i].summary?))) {
            ratio("spawn_p50_ratio", floor, P50, own.p50_us / by.p50_us);
            ratio("spawn_p99_ratio", floor, P99, own.p99_us / by.p99_us);
        }
        if let Some((floor, by)) = find(rows, cold, payload).and_then(|i| Some((i, rows[i].summary?))) {
            ratio("cold_p50_ratio", floor, P50, own.p50_us / by.p50_us);
        }
        rows[index].values.extend(values.into_iter().map(|(key, value)| (key, rounded(value, 3))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_to_the_floors_of_the_same_payload() {
        let row = |name: &str, payload, us: u64| Row {
            name: name.into(),
            payload: Some(payload),
            ..Row::of_samples((0..300).map(|n| us * 1000 + n % 7).collect())
        };
        let mut rows = vec![
            row("floor-spawn", Payload::Tiny, 100),
            row("floor-cold", Payload::Tiny, 800),
            row("agent-cast", Payload::Tiny, 1200),
            row("floor-spawn", Payload::Libc, 400),
            row("path", Payload::Libc, 600),
        ];
        add(&mut rows, SPAWN, COLD);
        assert_eq!(rows[2].number("spawn_p50_ratio"), Some(12.0));
        assert_eq!(rows[2].number("cold_p50_ratio"), Some(1.5));
        assert_eq!(rows[4].number("spawn_p50_ratio"), Some(1.5));
        assert_eq!(rows[4].number("cold_p50_ratio"), None);
        for key in ["spawn_p50_ratio", "spawn_p99_ratio"] {
            let number = |suffix: &str| rows[2].number(&format!("{key}{suffix}")).unwrap();
            assert!(number("_low") <= number("") && number("") <= number("_high"), "{key}");
        }
        assert_eq!(rows[0].number("spawn_p50_ratio"), Some(1.0));
        assert_eq!(rows[0].number("spawn_p50_ratio_low"), None, "a floor is not compared with itself");
        assert!(rows[0].number("p99_low_us").unwrap() <= rows[0].number("p99_high_us").unwrap());
    }
}

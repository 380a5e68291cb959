//! What has changed from one report to another, and whether that is more than chance.

use super::table::{Grid, table};
use super::{Report, Row};
use crate::bootstrap::Interval;
use crate::machine::Machine;
use anyhow::{Context, bail};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// A change below so many percent is none, whatever the intervals say: machines drift by more from run to run.
const DRIFT: f64 = 3.0;
/// The same for figures without an interval.
const NOISE: f64 = 15.0;

/// Whether less of it is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Less,
    More,
}

/// What is compared, by its name.
const FIGURES: [(&str, Wanted); 20] = [
    ("p50_us", Wanted::Less),
    ("p99_us", Wanted::Less),
    ("spawn_p50_ratio", Wanted::Less),
    ("spawn_p99_ratio", Wanted::Less),
    ("cold_p50_ratio", Wanted::Less),
    ("last_us", Wanted::Less),
    ("spawn_last_ratio", Wanted::Less),
    ("refill_cpu_us", Wanted::Less),
    ("rate_per_s", Wanted::More),
    ("leaked", Wanted::Less),
    ("kib", Wanted::Less),
    ("pss_kib", Wanted::Less),
    ("ns_per_op", Wanted::Less),
    ("mb_per_s", Wanted::More),
    ("cpu_ms_per_mb", Wanted::Less),
    ("stall_ms", Wanted::Less),
    ("cpu_us", Wanted::Less),
    ("serving_ms", Wanted::Less),
    ("lost", Wanted::Less),
    ("failed", Wanted::Less),
];
/// Of these every single one counts.
const COUNTS: [&str; 3] = ["leaked", "lost", "failed"];

/// How a figure has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Better,
    Worse,
    None,
}

/// Reads both, files or folders, and returns what has changed, in words.
pub fn text(a: &Path, b: &Path) -> anyhow::Result<String> {
    let (old, new) = (read(a)?, read(b)?);
    let mut text = String::new();
    for (scenario, old) in &old {
        match new.get(scenario) {
            Some(new) => text.push_str(&of_scenario(old, new)),
            None => {
                let _ = writeln!(text, "{scenario}: not in {}", b.display());
            }
        }
    }
    for scenario in new.keys().filter(|scenario| !old.contains_key(*scenario)) {
        let _ = writeln!(text, "{scenario}: not in {}", a.display());
    }
    Ok(text)
}

/// The reports in a file or in a folder's `.json` files, by scenario.
fn read(path: &Path) -> anyhow::Result<BTreeMap<String, Report>> {
    let mut files = Vec::new();
    if path.is_dir() {
        for entry in std::fs::read_dir(path).with_context(|| path.display().to_string())? {
            let file = entry?.path();
            if file.extension().is_some_and(|extension| extension == "json") {
                files.push(file);
            }
        }
    } else {
        files.push(path.to_owned());
    }
    let mut reports = BTreeMap::new();
    for file in files {
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let report: Report =
            serde_json::from_str(&text).with_context(|| format!("{} is not a report of fsb-bench", file.display()))?;
        reports.insert(report.scenario.clone(), report);
    }
    if reports.is_empty() {
        bail!("there is no report in {}\nhint: write one with fsb-bench all --json DIR", path.display());
    }
    Ok(reports)
}

fn of_scenario(old: &Report, new: &Report) -> String {
    let mut text = format!("{}\n", old.scenario);
    for note in notes(&old.machine, &new.machine) {
        let _ = writeln!(text, "note: {note}");
    }
    let titles = ["payload", "cell", "figure", "before", "after", "change", "verdict"].map(str::to_owned).to_vec();
    let mut grid = Grid { titles, rows: Vec::new() };
    for row in &old.cells {
        if let Some(other) = new.row(&row.name, row.payload) {
            grid.rows.extend(FIGURES.iter().filter_map(|(key, wanted)| line(row, other, key, *wanted)));
        }
    }
    let _ = writeln!(text, "{}", table(&grid));
    let gone = |from: &Report, to: &Report| {
        let missing = from.cells.iter().filter(|row| to.row(&row.name, row.payload).is_none());
        missing.map(|row| row.name.clone()).collect::<Vec<_>>().join(", ")
    };
    for (what, names) in [("only before", gone(old, new)), ("only after", gone(new, old))] {
        if !names.is_empty() {
            let _ = writeln!(text, "{what}: {names}");
        }
    }
    text
}

/// What makes two runs hard to compare.
fn notes(old: &Machine, new: &Machine) -> Vec<String> {
    let mut notes = Vec::new();
    let same =
        (&old.cpu_model, old.cpus, &old.cgroups, &old.disk) == (&new.cpu_model, new.cpus, &new.cgroups, &new.disk);
    if !same || old.memory_mib.abs_diff(new.memory_mib) > old.memory_mib / 10 {
        notes.push("the machines differ: compare ratios only".to_owned());
    }
    if old.kernel != new.kernel {
        notes.push(format!("the kernels differ: {} and {}", old.kernel, new.kernel));
    }
    let busy = |machine: &Machine| machine.load_before > machine.cpus as f64 * 0.75 || machine.steal_percent > 1.0;
    if busy(old) || busy(new) {
        notes.push("a machine was busy with other things".to_owned());
    }
    notes
}

fn line(old: &Row, new: &Row, key: &str, wanted: Wanted) -> Option<Vec<String>> {
    let (before, after) = (old.figure(key)?, new.figure(key)?);
    if COUNTS.contains(&key) && before == 0.0 && after == 0.0 {
        return None;
    }
    let verdict = match change(key, (before, interval(old, key)), (after, interval(new, key)), wanted) {
        Change::Better => "better",
        Change::Worse => "worse",
        Change::None => "no difference",
    };
    let percent = match before {
        0.0 => String::new(),
        _ => format!("{:+.1} %", (after / before - 1.0) * 100.0),
    };
    let shown = |value: f64, row: &Row| match interval(row, key) {
        Some(all) => format!("{} [{}–{}]", short(value), short(all.low), short(all.high)),
        None => short(value),
    };
    let payload = old.payload.map_or("", |payload| payload.name()).to_owned();
    let (before, after) = (shown(before, old), shown(after, new));
    Some(vec![payload, old.name.clone(), key.to_owned(), before, after, percent, verdict.to_owned()])
}

fn change(key: &str, old: (f64, Option<Interval>), new: (f64, Option<Interval>), wanted: Wanted) -> Change {
    let percent = if old.0 == 0.0 { f64::INFINITY } else { ((new.0 / old.0 - 1.0) * 100.0).abs() };
    let real = match (old.1, new.1) {
        _ if old.0 == new.0 => false,
        _ if COUNTS.contains(&key) => true,
        (Some(a), Some(b)) => a.apart(&b) && percent > DRIFT,
        _ => percent > NOISE,
    };
    match (real, (new.0 < old.0) == (wanted == Wanted::Less)) {
        (false, _) => Change::None,
        (true, true) => Change::Better,
        (true, false) => Change::Worse,
    }
}

/// The interval that the row gives for a figure: `p50_us` has `p50_low_us`, a ratio has `…_low`.
fn interval(row: &Row, key: &str) -> Option<Interval> {
    let end = |end: &str| match key.strip_suffix("_us") {
        Some(stem) => row.number(&format!("{stem}_{end}_us")),
        None => row.number(&format!("{key}_{end}")),
    };
    Some(Interval { low: end("low")?, high: end("high")? })
}

fn short(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        _ if value.fract() == 0.0 => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::Payload;

    fn row(p50: f64, low: f64, high: f64) -> Row {
        let values = [("p50_us", p50), ("p50_low_us", low), ("p50_high_us", high), ("failed", 0.0)];
        let row = Row::of_values("path", values.map(|(key, value)| (key, value.into())));
        Row { payload: Some(Payload::Tiny), ..row }
    }

    fn report(row: Row) -> Report {
        Report { scenario: "start".into(), machine: Machine::default(), cells: vec![row] }
    }

    #[test]
    fn a_change_counts_only_if_the_intervals_are_apart() {
        let old = report(row(100.0, 95.0, 105.0));
        for (new, verdict) in [
            (row(80.0, 75.0, 85.0), "better"),
            (row(120.0, 115.0, 125.0), "worse"),
            (row(108.0, 102.0, 112.0), "no difference"),
            (row(97.5, 90.0, 94.0), "no difference"),
        ] {
            let text = of_scenario(&old, &report(new.clone()));
            let lines: Vec<&str> = text.lines().filter(|line| line.contains("p50_us")).collect();
            assert_eq!(lines.len(), 1, "{text}");
            assert!(lines[0].trim_end().ends_with(verdict), "{verdict}: {text}");
        }
    }

    #[test]
    fn without_an_interval_a_change_has_to_be_large_and_of_what_is_lost_every_one_counts() {
        let of = |key: &str, old: f64, new: f64, wanted| change(key, (old, None), (new, None), wanted);
        assert_eq!(of("mb_per_s", 100.0, 110.0, Wanted::More), Change::None);
        assert_eq!(of("mb_per_s", 100.0, 130.0, Wanted::More), Change::Better);
        assert_eq!(of("kib", 100.0, 130.0, Wanted::Less), Change::Worse);
        assert_eq!(of("lost", 0.0, 1.0, Wanted::Less), Change::Worse);
        assert_eq!(of("lost", 0.0, 0.0, Wanted::Less), Change::None);
    }

    #[test]
    fn files_and_folders_are_read_and_what_is_no_report_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(text(dir.path(), dir.path()).unwrap_err().to_string().contains("there is no report"));
        let file = dir.path().join("start.json");
        let saved = Row { name: "path".into(), ..Row::of_samples(vec![1000; 30]) };
        report(saved).save(&file).unwrap();
        assert!(text(dir.path(), &file).unwrap().contains("no difference"));
        std::fs::write(dir.path().join("other.json"), "[]").unwrap();
        assert!(format!("{:#}", text(dir.path(), &file).unwrap_err()).contains("is not a report of fsb-bench"));
    }

    #[test]
    fn different_machines_and_busy_ones_are_noted() {
        let other = Machine { cpus: 64, kernel: "7.0".into(), load_before: 100.0, ..Machine::default() };
        assert_eq!(notes(&Machine { cpus: 2, ..Machine::default() }, &other).len(), 3);
        assert!(
            notes(&Machine { cpus: 2, ..Machine::default() }, &Machine { cpus: 2, ..Machine::default() }).is_empty()
        );
    }
}

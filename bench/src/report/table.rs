//! A report as tables.

use super::{Report, Row};
use crate::cell::Source;
use comfy_table::{CellAlignment, Table, presets};
use std::fmt::Write;

/// Cells of a table, as text. Columns without any text are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grid {
    pub titles: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// A report for a terminal.
pub fn text(report: &Report) -> String {
    let mut text = format!("{}: {}\n{}\n", report.scenario, place(report), circumstances(report));
    let timed = timed(report);
    if !timed.rows.is_empty() {
        let _ = writeln!(text, "{}", table(&timed));
    }
    for row in report.cells.iter().filter(|row| row.summary.is_none()) {
        let _ = writeln!(text, "{}: {}", row.name, plain(row));
    }
    text.push_str(&super::targets::text(report));
    for warning in &report.machine.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    text
}

/// What was measured on.
pub fn place(report: &Report) -> String {
    let machine = &report.machine;
    format!(
        "{} CPUs ({}), {} MiB, Linux {}, cgroups {}, layers on {}",
        machine.cpus, machine.cpu_model, machine.memory_mib, machine.kernel, machine.cgroups, machine.disk
    )
}

/// How busy the machine was with other things.
pub fn circumstances(report: &Report) -> String {
    let machine = &report.machine;
    format!(
        "load {:.2} before, {:.2} after; {:.1} % of the time stolen",
        machine.load_before, machine.load_after, machine.steal_percent
    )
}

/// A row without a distribution: its figures in one line.
pub fn plain(row: &Row) -> String {
    let values: Vec<String> = row.values.iter().map(|(key, value)| format!("{key} {value}")).collect();
    values.join(", ")
}

/// What a column shows of a row.
type Show = fn(&Row) -> String;

/// Columns with a title of their own; whatever else rows have follows by its name.
const COLUMNS: [(&str, Show); 17] = [
    ("payload", |row| row.payload.map_or("", |payload| payload.name()).to_owned()),
    ("cell", |row| row.name.clone()),
    ("per s", |row| whole(row, "rate_per_s")),
    ("n", |row| row.summary.map_or(String::new(), |all| all.n.to_string())),
    ("p50 µs", |row| whole(row, "p50_us")),
    ("p90", |row| whole(row, "p90_us")),
    ("p99", |row| whole(row, "p99_us")),
    ("max", |row| whole(row, "max_us")),
    ("last µs", |row| whole(row, "last_us")),
    ("p50 ×spawn", |row| interval(row, "spawn_p50_ratio")),
    ("p99 ×spawn", |row| interval(row, "spawn_p99_ratio")),
    ("last ×spawn", |row| interval(row, "spawn_last_ratio")),
    ("×cold", |row| interval(row, "cold_p50_ratio")),
    ("containers", sources),
    ("refill CPU µs", |row| whole(row, "refill_cpu_us")),
    ("failed", |row| whole(row, "failed")),
    ("retried", |row| whole(row, "retried")),
];
/// What those columns show.
const SHOWN: [&str; 14] = [
    "rate_per_s",
    "last_us",
    "spawn_p50_ratio",
    "spawn_p99_ratio",
    "spawn_last_ratio",
    "cold_p50_ratio",
    "stock",
    "cast",
    "libcontainer",
    "refill_cpu_us",
    "failed",
    "retried",
    "leaves_out",
    "late_max_us",
];

/// The rows with distributions.
pub fn timed(report: &Report) -> Grid {
    let rows: Vec<&Row> = report.cells.iter().filter(|row| row.summary.is_some()).collect();
    let mut others: Vec<&str> = Vec::new();
    for key in rows.iter().flat_map(|row| row.values.keys()) {
        let end_of_interval = ["_low", "_high", "_low_us", "_high_us"].iter().any(|end| key.ends_with(end));
        if !end_of_interval && !SHOWN.contains(&key.as_str()) && !others.contains(&key.as_str()) {
            others.push(key);
        }
    }
    let mut columns: Vec<(String, Vec<String>)> =
        COLUMNS.iter().map(|(title, show)| ((*title).to_owned(), rows.iter().map(|row| show(row)).collect())).collect();
    for key in others {
        let show = |row: &&Row| row.values.get(key).map_or(String::new(), |value| word(value).to_owned());
        columns.push((key.to_owned(), rows.iter().map(show).collect()));
    }
    let leaves_out = |row: &&Row| row.values.get("leaves_out").map(word).unwrap_or_default();
    columns.push(("leaves out".to_owned(), rows.iter().map(leaves_out).collect()));
    columns.retain(|(_, cells)| cells.iter().any(|cell| !cell.is_empty()));
    let at = |index: usize| columns.iter().map(|(_, cells)| cells[index].clone()).collect();
    Grid { titles: columns.iter().map(|(title, _)| title.clone()).collect(), rows: (0..rows.len()).map(at).collect() }
}

/// A grid for a terminal: what begins like a number stands on the right.
pub fn table(grid: &Grid) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(&grid.titles);
    for row in &grid.rows {
        table.add_row(row);
    }
    for index in 0..grid.titles.len() {
        let numbers = grid.rows.iter().all(|row| {
            row[index].is_empty() || row[index].starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '+')
        });
        if let Some(column) = table.column_mut(index).filter(|_| numbers) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn word(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn whole(row: &Row, key: &str) -> String {
    row.figure(key).map_or(String::new(), |value| format!("{value:.0}"))
}

/// A ratio with its confidence interval, as far as they are there.
fn interval(row: &Row, key: &str) -> String {
    let Some(value) = row.number(key) else { return String::new() };
    let end = |suffix: &str| row.number(&format!("{key}{suffix}"));
    match (end("_low"), end("_high")) {
        (Some(low), Some(high)) => format!("{value:.2} [{low:.2}–{high:.2}]"),
        _ => format!("{value:.2}"),
    }
}

/// Where containers came from, as shares.
fn sources(row: &Row) -> String {
    let shares: Vec<(&str, f64)> = [Source::Stock, Source::Cast, Source::Libcontainer]
        .into_iter()
        .filter_map(|source| Some((source.name(), row.number(source.name())?)))
        .filter(|(_, count)| *count > 0.0)
        .collect();
    let total: f64 = shares.iter().map(|(_, count)| count).sum();
    let share = |(key, count): &(&str, f64)| format!("{key} {:.0} %", count * 100.0 / total);
    shares.iter().map(share).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::payload::Payload;

    #[test]
    fn a_table_has_ratios_with_intervals_shares_and_no_empty_columns() {
        let mut row =
            Row { name: "agent-stock".into(), payload: Some(Payload::Tiny), ..Row::of_samples(vec![1000, 2000]) };
        for (key, value) in [("spawn_p50_ratio", 1.8), ("spawn_p50_ratio_low", 1.72), ("spawn_p50_ratio_high", 1.88)] {
            row.values.insert(key.into(), value.into());
        }
        for (key, value) in [("stock", 3), ("cast", 1), ("failed", 0), ("rounds", 7)] {
            row.values.insert(key.into(), value.into());
        }
        let report = Report { scenario: "start".into(), machine: Machine::default(), cells: vec![row] };
        let grid = timed(&report);
        let cell =
            |title: &str| grid.titles.iter().position(|one| one == title).map(|index| grid.rows[0][index].as_str());
        assert_eq!(cell("p50 ×spawn"), Some("1.80 [1.72–1.88]"));
        assert_eq!(cell("containers"), Some("stock 75 %, cast 25 %"));
        assert_eq!((cell("failed"), cell("rounds"), cell("×cold")), (Some("0"), Some("7"), None));
        assert!(text(&report).contains("load 0.00 before"));
    }
}

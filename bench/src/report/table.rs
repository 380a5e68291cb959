//! A report as a table.

use super::{Report, Row};
use comfy_table::{CellAlignment, Table, presets};
use std::fmt::Write;

/// A report for a terminal.
pub fn text(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{}: {} CPUs ({}), {} MiB, Linux {}, cgroups {}, layers on {}",
        report.scenario,
        machine.cpus,
        machine.cpu_model,
        machine.memory_mib,
        machine.kernel,
        machine.cgroups,
        machine.disk
    );
    let _ = writeln!(
        text,
        "load {:.2} before, {:.2} after; {:.1} % of the time stolen",
        machine.load_before, machine.load_after, machine.steal_percent
    );
    let (timed, plain): (Vec<&Row>, Vec<&Row>) = report.cells.iter().partition(|row| row.summary.is_some());
    if !timed.is_empty() {
        let _ = writeln!(text, "{}", distributions(&timed));
    }
    for row in plain {
        let values: Vec<String> = row.values.iter().map(|(key, value)| format!("{key} {value}")).collect();
        let _ = writeln!(text, "{}: {}", row.name, values.join(", "));
    }
    text.push_str(&super::targets::text(report));
    for warning in &machine.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    text
}

fn distributions(rows: &[&Row]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let titles = [
        "payload",
        "cell",
        "n",
        "p50 µs",
        "p90",
        "p99",
        "max",
        "p50 ×spawn",
        "p99 ×spawn",
        "×cold",
        "containers",
        "failed",
        "retried",
        "leaves out",
    ];
    table.set_header(titles);
    for row in rows {
        let Some(summary) = row.summary else { continue };
        let number = |value: f64| format!("{value:.0}");
        let ratio = |key: &str| interval(row, key);
        let count = |key: &str| row.number(key).unwrap_or(0.0);
        table.add_row(vec![
            row.payload.map_or("", |payload| payload.name()).to_owned(),
            row.name.clone(),
            summary.n.to_string(),
            number(summary.p50_us),
            number(summary.p90_us),
            number(summary.p99_us),
            number(summary.max_us),
            ratio("spawn_p50_ratio"),
            ratio("spawn_p99_ratio"),
            ratio("cold_p50_ratio"),
            sources(row),
            number(count("failed")),
            number(count("retried")),
            row.values.get("leaves_out").and_then(|v| v.as_str()).unwrap_or("").to_owned(),
        ]);
    }
    for column in 2..10 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
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
    let shares: Vec<(&str, f64)> = ["stock", "cast", "libcontainer"]
        .into_iter()
        .filter_map(|key| Some((key, row.number(key)?)))
        .filter(|(_, count)| *count > 0.0)
        .collect();
    let total: f64 = shares.iter().map(|(_, count)| count).sum();
    let share = |(key, count): &(&str, f64)| format!("{key} {:.0} %", count * 100.0 / total);
    shares.iter().map(share).collect::<Vec<_>>().join(", ")
}

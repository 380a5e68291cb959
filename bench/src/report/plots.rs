//! Which plots a report has.

use super::plot::{Axis, Bar, Line, Plot, Shape};
use super::{Report, Row};
use crate::payload::Payload;
use std::collections::BTreeMap;

/// Points of a distribution's line at most.
const POINTS: usize = 250;

/// The plots of a report, in the order in which they are shown.
pub fn of(report: &Report) -> Vec<Plot> {
    let mut plots = distributions(report);
    let ratio = "times posix_spawn of the same program";
    for (payload, rows) in by_payload(report) {
        let title = |what: &str| match payload {
            Some(payload) => format!("{}: {what}, {}", report.scenario, payload.name()),
            None => format!("{}: {what}", report.scenario),
        };
        plots.extend(bars(title("medians"), Axis::log(ratio), &rows, "spawn_p50_ratio"));
        plots.extend(bars(title("99th percentiles"), Axis::log(ratio), &rows, "spawn_p99_ratio"));
        let last = Axis::linear("time to the last stamp, times posix_spawn");
        plots.extend(bars(title("the last of a burst"), last, &rows, "spawn_last_ratio"));
    }
    let rows: Vec<&Row> = report.cells.iter().collect();
    match report.scenario.as_str() {
        "churn" => plots.extend(churn(report)),
        "density" => plots.extend(density(report)),
        "schedule" => plots.extend(schedule(report)),
        "logs" => {
            plots.extend(bars("logs: throughput".into(), Axis::linear("MB/s"), &rows, "mb_per_s"));
            plots.extend(bars("logs: processor time".into(), Axis::linear("ms per MB"), &rows, "cpu_ms_per_mb"));
        }
        "recover" => {
            plots.extend(bars("recover: serving again".into(), Axis::linear("ms"), &rows, "serving_ms"));
        }
        "rpc" => plots.extend(bars("rpc: processor time of a call".into(), Axis::linear("µs"), &rows, "cpu_us")),
        _ => {}
    }
    plots
}

/// Cumulative distributions, cells that belong together in one plot: those of a payload, and of a number at the end of
/// their names.
fn distributions(report: &Report) -> Vec<Plot> {
    let mut groups: BTreeMap<(Option<Payload>, Option<u64>), Vec<Line>> = BTreeMap::new();
    for row in report.cells.iter().filter(|row| !row.samples_ns.is_empty()) {
        let mut sorted: Vec<f64> = row.samples_ns.iter().map(|ns| *ns as f64 / 1e3).collect();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len() - 1;
        let steps = last.clamp(1, POINTS);
        let point = |step: usize| (sorted[step * last / steps], step as f64 * 100.0 / steps as f64);
        let line = Line { name: row.name.clone(), points: (0..=steps).map(point).collect() };
        groups.entry((row.payload, number_of(&row.name))).or_default().push(line);
    }
    let plot = |((payload, number), lines): ((Option<Payload>, Option<u64>), Vec<Line>)| {
        let mut title = format!("{}: share of starts that are not slower", report.scenario);
        title.extend(payload.map(|payload| format!(", {}", payload.name())));
        title.extend(number.map(|number| format!(", {number}")));
        Plot {
            title,
            x: Axis::log("µs to the first act of the program"),
            y: Axis::linear("%"),
            shape: Shape::Lines(lines),
        }
    };
    groups.into_iter().map(plot).collect()
}

fn by_payload(report: &Report) -> BTreeMap<Option<Payload>, Vec<&Row>> {
    let mut groups: BTreeMap<Option<Payload>, Vec<&Row>> = BTreeMap::new();
    for row in &report.cells {
        groups.entry(row.payload).or_default().push(row);
    }
    groups
}

fn bars(title: String, x: Axis, rows: &[&Row], key: &str) -> Option<Plot> {
    let bars: Vec<Bar> = rows
        .iter()
        .filter_map(|row| {
            let end = |suffix: &str| row.number(&format!("{key}{suffix}"));
            let interval = end("_low").zip(end("_high"));
            Some(Bar { name: row.name.clone(), value: row.figure(key)?, interval })
        })
        .collect();
    (!bars.is_empty()).then(|| Plot { title, x, y: Axis::linear(""), shape: Shape::Bars(bars) })
}

/// The number at the end of a name: `rate-400`.
fn number_of(name: &str) -> Option<u64> {
    name.rsplit_once('-')?.1.parse().ok()
}

/// A line through the rows called `prefix` and a number.
fn line(report: &Report, name: &str, prefix: &str, key: &str) -> Option<Line> {
    let mut points: Vec<(f64, f64)> = report
        .cells
        .iter()
        .filter(|row| row.name.starts_with(prefix))
        .filter_map(|row| Some((number_of(&row.name)? as f64, row.figure(key)?)))
        .collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    (!points.is_empty()).then(|| Line { name: name.to_owned(), points })
}

fn lines(title: &str, x: Axis, y: Axis, lines: impl IntoIterator<Item = Option<Line>>) -> Option<Plot> {
    let lines: Vec<Line> = lines.into_iter().flatten().collect();
    (!lines.is_empty()).then(|| Plot { title: title.to_owned(), x, y, shape: Shape::Lines(lines) })
}

fn churn(report: &Report) -> Option<Plot> {
    let of = |key| line(report, key, "rate-", &format!("{key}_us"));
    let title = "churn: time to the first act at rising rates";
    lines(title, Axis::linear("create-run-delete per second"), Axis::log("µs"), ["p50", "p90", "p99", "max"].map(of))
}

fn density(report: &Report) -> Option<Plot> {
    let of = |(name, prefix, key)| line(report, name, prefix, key);
    let all = [
        ("paused, MemAvailable", "paused-", "kib"),
        ("paused, PSS", "paused-", "pss_kib"),
        ("running, MemAvailable", "running-", "kib"),
        ("running, PSS", "running-", "pss_kib"),
    ];
    lines("density: memory of each", Axis::log("sandboxes"), Axis::linear("KiB each"), all.map(of))
}

fn schedule(report: &Report) -> Option<Plot> {
    let of = |(name, key)| line(report, name, "agents-", key);
    let all = [("p50", "ns_per_op"), ("p99", "p99_ns_per_op")];
    lines("schedule: cost of a decision", Axis::log("agents"), Axis::linear("ns"), all.map(of))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;

    fn report(scenario: &str, cells: Vec<Row>) -> Report {
        Report { scenario: scenario.into(), machine: Machine::default(), cells }
    }

    #[test]
    fn cells_that_are_compared_share_a_plot() {
        let row = |name: &str| Row {
            name: name.into(),
            payload: Some(Payload::Tiny),
            ..Row::of_samples(vec![1000, 2000, 9000])
        };
        let plots = of(&report("contention", ["stock-2", "spawn-2", "stock-4", "spawn-4"].map(row).into()));
        assert_eq!(plots.len(), 2);
        let Shape::Lines(lines) = &plots[0].shape else { panic!("{plots:?}") };
        assert_eq!(lines.iter().map(|line| line.name.as_str()).collect::<Vec<_>>(), ["stock-2", "spawn-2"]);
        assert_eq!((lines[0].points[0], lines[0].points[2]), ((1.0, 0.0), (9.0, 100.0)));
    }

    #[test]
    fn every_kind_of_report_has_its_plots() {
        let row = |name: &str, key: &str| Row::of_values(name, [(key, 5.into())]);
        for (scenario, row) in [
            ("churn", row("rate-100", "p99_us")),
            ("density", row("paused-100", "kib")),
            ("schedule", row("agents-100", "ns_per_op")),
            ("logs", row("ours-50", "mb_per_s")),
            ("recover", row("sandboxes-200", "serving_ms")),
            ("rpc", row("noop", "cpu_us")),
            ("start", row("crun", "spawn_p50_ratio")),
        ] {
            assert_eq!(of(&report(scenario, vec![row])).len(), 1, "{scenario}");
            assert_eq!(of(&report(scenario, vec![])).len(), 0, "{scenario}");
        }
    }
}

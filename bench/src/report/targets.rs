//! What figures should be, and whether they are.

use super::{Report, Row};
use crate::bootstrap::{Interval, Resampled};
use crate::payload::Payload::{self, Libc, Tiny};
use std::fmt::Write;

/// One figure of a row.
#[derive(Debug, Clone, Copy)]
struct Figure {
    row: &'static str,
    payload: Option<Payload>,
    key: &'static str,
}

#[derive(Debug, Clone, Copy)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

/// A figure, or the ratio of two of the same run.
#[derive(Debug, Clone, Copy)]
struct Target {
    scenario: &'static str,
    words: &'static str,
    figure: Figure,
    by: Option<Figure>,
    unit: &'static str,
    bound: Bound,
    /// What a first version was to reach.
    first: Option<f64>,
}

/// A target of a report that has its figures.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    pub words: &'static str,
    /// What was measured, with its unit and its confidence interval.
    pub measured: String,
    /// What is wanted, in words.
    pub wanted: String,
    pub met: bool,
    /// `met`, or `missed by …`; whether chance may have decided it.
    pub verdict: String,
}

const P50: &str = "p50_us";
const P99: &str = "p99_us";

const fn of(row: &'static str, payload: Payload, key: &'static str) -> Figure {
    Figure { row, payload: Some(payload), key }
}

const fn plain(row: &'static str, key: &'static str) -> Figure {
    Figure { row, payload: None, key }
}

/// How much slower than a floor of the run it may be.
const fn slower(words: &'static str, figure: Figure, by: Figure, most: f64, first: Option<f64>) -> Target {
    Target { scenario: "start", words, figure, by: Some(by), unit: "×", bound: Bound::AtMost(most), first }
}

/// How many times as long as the whole path a peer takes.
const fn faster(words: &'static str, peer: &'static str, least: f64, first: Option<f64>) -> Target {
    let by = Some(of("path", Tiny, P50));
    let bound = Bound::AtLeast(least);
    Target { scenario: "start", words, figure: of(peer, Tiny, P50), by, unit: "×", bound, first }
}

const fn value(
    scenario: &'static str,
    words: &'static str,
    figure: Figure,
    unit: &'static str,
    bound: Bound,
) -> Target {
    Target { scenario, words, figure, by: None, unit, bound, first: None }
}

const fn ratio(scenario: &'static str, words: &'static str, figure: Figure, by: Figure, bound: Bound) -> Target {
    Target { scenario, words, figure, by: Some(by), unit: "×", bound, first: None }
}

const TARGETS: [Target; 26] = [
    slower("agent-stock / posix_spawn", of("agent-stock", Tiny, P50), of("floor-spawn", Tiny, P50), 1.2, Some(1.3)),
    slower(
        "agent-stock / posix_spawn, p99",
        of("agent-stock", Tiny, P99),
        of("floor-spawn", Tiny, P99),
        1.2,
        Some(2.0),
    ),
    slower("agent-stock / posix_spawn, libc", of("agent-stock", Libc, P50), of("floor-spawn", Libc, P50), 1.05, None),
    slower(
        "agent-stock / posix_spawn, libc, p99",
        of("agent-stock", Libc, P99),
        of("floor-spawn", Libc, P99),
        1.2,
        None,
    ),
    slower("agent-cast / cold floor", of("agent-cast", Tiny, P50), of("floor-cold", Tiny, P50), 1.4, Some(2.0)),
    slower("path / posix_spawn", of("path", Tiny, P50), of("floor-spawn", Tiny, P50), 5.0, None),
    slower("path / posix_spawn, libc", of("path", Libc, P50), of("floor-spawn", Libc, P50), 1.6, Some(2.0)),
    faster("crun / path", "crun", 10.0, Some(6.0)),
    faster("runc / path", "runc", 25.0, Some(18.0)),
    faster("containerd / path", "containerd", 60.0, None),
    ratio(
        "burst",
        "last of 100 from stock / 100 × posix_spawn",
        of("ours-100", Tiny, "last_us"),
        of("spawn-100", Tiny, "last_us"),
        Bound::AtMost(1.5),
    ),
    value("burst", "failed of a burst of 100", of("ours-100", Tiny, "failed"), "", Bound::AtMost(0.0)),
    ratio(
        "contention",
        "agent-stock / posix_spawn beside 4 loops, p99",
        of("stock-4", Tiny, P99),
        of("spawn-4", Tiny, P99),
        Bound::AtMost(0.5),
    ),
    value("churn", "sustained create-run-delete", plain("sustained", "rate_per_s"), "/s", Bound::AtLeast(400.0)),
    value("churn", "p99 at the sustained rate", plain("sustained", P99), " µs", Bound::AtMost(10_000.0)),
    value("churn", "leaked", plain("sustained", "leaked"), "", Bound::AtMost(0.0)),
    value("churn", "cycles before the look for leaks", plain("sustained", "cycles"), "", Bound::AtLeast(100_000.0)),
    value("density", "MemAvailable per paused cast", plain("paused-slope", "kib"), " KiB", Bound::AtMost(256.0)),
    value("schedule", "one decision at 10,000 agents", plain("agents-10000", "ns_per_op"), " ns", Bound::AtMost(300.0)),
    ratio(
        "schedule",
        "a decision at 10,000 / at 100 agents",
        plain("agents-10000", "ns_per_op"),
        plain("agents-100", "ns_per_op"),
        Bound::AtMost(3.0),
    ),
    ratio(
        "logs",
        "MB/s of 50 writers / of the plain copier",
        plain("ours-50", "mb_per_s"),
        plain("plain-50", "mb_per_s"),
        Bound::AtLeast(0.9),
    ),
    ratio(
        "logs",
        "CPU per MB of 50 writers / of the plain copier",
        plain("ours-50", "cpu_ms_per_mb"),
        plain("plain-50", "cpu_ms_per_mb"),
        Bound::AtMost(1.3),
    ),
    value("logs", "lost lines of 50 writers", plain("ours-50", "lost"), "", Bound::AtMost(0.0)),
    value(
        "recover",
        "serving again, 1,000 sandboxes",
        plain("sandboxes-1000", "serving_ms"),
        " ms",
        Bound::AtMost(300.0),
    ),
    value("recover", "lost of 1,000 sandboxes", plain("sandboxes-1000", "lost"), "", Bound::AtMost(0.0)),
    value("recover", "serving again, 200 sandboxes", plain("sandboxes-200", "serving_ms"), " ms", Bound::AtMost(500.0)),
];

impl Bound {
    fn limit(self) -> f64 {
        match self {
            Bound::AtMost(limit) | Bound::AtLeast(limit) => limit,
        }
    }

    fn with_limit(self, limit: f64) -> Self {
        match self {
            Bound::AtMost(_) => Bound::AtMost(limit),
            Bound::AtLeast(_) => Bound::AtLeast(limit),
        }
    }

    fn met(self, value: f64) -> bool {
        match self {
            Bound::AtMost(most) => value <= most,
            Bound::AtLeast(least) => value >= least,
        }
    }

    /// By how much of the limit it is missed, in percent; `None` for a limit of 0.
    fn missed_by(self, value: f64) -> Option<f64> {
        let limit = self.limit();
        (limit != 0.0).then(|| ((value / limit - 1.0) * 100.0).abs())
    }

    fn words(self, unit: &str) -> String {
        match self {
            Bound::AtMost(most) => format!("at most {most}{unit}"),
            Bound::AtLeast(least) => format!("at least {least}{unit}"),
        }
    }
}

impl Figure {
    fn row(self, report: &Report) -> Option<&Row> {
        // Scenarios with one payload need not name it.
        report.row(self.row, self.payload).or_else(|| report.row(self.row, None))
    }

    fn value(self, report: &Report) -> Option<f64> {
        self.row(report)?.figure(self.key)
    }

    fn resampled(self, report: &Report, stream: u64) -> Option<Resampled> {
        let percent = match self.key {
            P50 => 50,
            P99 => 99,
            _ => return None,
        };
        let samples = &self.row(report)?.samples_ns;
        (!samples.is_empty()).then(|| Resampled::of(samples, &[percent], stream))
    }
}

impl Target {
    fn verdict(&self, report: &Report) -> Option<Verdict> {
        if report.scenario != self.scenario {
            return None;
        }
        let own = self.figure.value(report)?;
        let value = match self.by {
            Some(by) => own / by.value(report).filter(|by| *by > 0.0)?,
            None => own,
        };
        let interval = self.interval(report);
        let met = self.bound.met(value);
        let mut verdict = match (met, self.bound.missed_by(value)) {
            (true, _) => "met".to_owned(),
            (false, Some(percent)) => format!("missed by {percent:.0} %"),
            (false, None) => "missed".to_owned(),
        };
        // The other end of the interval would have decided otherwise.
        if interval.is_some_and(|all| self.bound.met(all.low) != self.bound.met(all.high)) {
            verdict.push_str(", within chance");
        }
        if let Some(first) = self.first.filter(|_| !met) {
            let word = if self.bound.with_limit(first).met(value) { "met" } else { "missed" };
            let _ = write!(verdict, "; the first one ({}) {word}", self.bound.with_limit(first).words(self.unit));
        }
        let mut measured = format!("{}{}", number(value), self.unit);
        if let Some(interval) = interval {
            let _ = write!(measured, " [{}–{}]", number(interval.low), number(interval.high));
        }
        Some(Verdict { words: self.words, measured, wanted: self.bound.words(self.unit), met, verdict })
    }

    fn interval(&self, report: &Report) -> Option<Interval> {
        let own = self.figure.resampled(report, 0);
        match self.by {
            Some(by) => match (own, by.resampled(report, 1)) {
                (Some(own), Some(by)) => own.ratio(&by, 0),
                // Of a burst's last stamps, whose rounds are not in the report.
                _ => {
                    let row = self.figure.row(report).filter(|_| self.figure.key == "last_us")?;
                    let end = |key| row.number(key);
                    Some(Interval { low: end("spawn_last_ratio_low")?, high: end("spawn_last_ratio_high")? })
                }
            },
            None => own?.interval(0).map(|interval| Interval { low: interval.low / 1e3, high: interval.high / 1e3 }),
        }
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ if value.fract() == 0.0 => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

/// The targets that this report has the figures of.
pub fn verdicts(report: &Report) -> Vec<Verdict> {
    TARGETS.iter().filter_map(|target| target.verdict(report)).collect()
}

/// A line for each.
pub(super) fn text(report: &Report) -> String {
    let mut text = String::new();
    for one in verdicts(report) {
        let Verdict { words, measured, wanted, verdict, .. } = one;
        let _ = writeln!(text, "target {words:<46} {measured:>20}  ({wanted}): {verdict}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::stats::Summary;

    fn report(scenario: &str, cells: Vec<Row>) -> Report {
        Report { scenario: scenario.into(), machine: Machine::default(), cells }
    }

    #[test]
    fn a_target_is_met_or_missed_by_so_much_and_left_out_without_figures() {
        let row = |name: &str, us: u64| Row {
            name: name.into(),
            payload: Some(Tiny),
            summary: Summary::of(&[us * 1000]),
            ..Row::default()
        };
        let cells = vec![row("floor-spawn", 200), row("agent-stock", 300), row("path", 500), row("crun", 4000)];
        let report = report("start", cells);
        let found = verdicts(&report);
        assert_eq!(found.len(), 4, "{found:?}");
        assert_eq!((found[0].measured.as_str(), found[0].met), ("1.50×", false));
        assert_eq!(found[0].verdict, "missed by 25 %; the first one (at most 1.3×) missed");
        assert_eq!(found[1].verdict, "missed by 25 %; the first one (at most 2×) met");
        assert!(found[2].met && found[2].verdict == "met");
        assert_eq!(
            (found[3].measured.as_str(), found[3].verdict.as_str()),
            ("8×", "missed by 20 %; the first one (at least 6×) met")
        );
        assert_eq!(text(&report).lines().count(), 4);
    }

    #[test]
    fn a_verdict_that_chance_may_have_decided_says_so() {
        let row = |name: &str, samples_ns: Vec<u64>| Row {
            name: name.into(),
            payload: Some(Tiny),
            ..Row::of_samples(samples_ns)
        };
        let wide = |middle: u64| (0..100).map(|n| middle - 50_000 + n * 1000).collect::<Vec<_>>();
        let cells = vec![row("floor-spawn", wide(100_000)), row("agent-stock", wide(119_000))];
        let found = verdicts(&report("start", cells));
        assert!(found[0].verdict.starts_with("met, within chance"), "{found:?}");
        assert!(found[0].measured.contains('–'), "{found:?}");
    }

    #[test]
    fn plain_figures_of_every_scenario_are_judged_and_nothing_lost_means_nothing() {
        let row = Row::of_values("sandboxes-1000", [("serving_ms", 250.into()), ("lost", 1.into())]);
        let found = verdicts(&report("recover", vec![row]));
        assert_eq!(found.iter().map(|one| one.met).collect::<Vec<_>>(), [true, false]);
        assert_eq!(found[1].verdict, "missed");
        for scenario in ["start", "burst", "contention", "churn", "density", "schedule", "logs", "recover"] {
            assert!(TARGETS.iter().any(|target| target.scenario == scenario), "{scenario}");
        }
    }
}

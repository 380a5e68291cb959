//! What a start should cost at most, as ratios of one run, and whether it does.

use super::Report;
use crate::payload::Payload::{self, Libc, Tiny};
use crate::stats::Summary;
use std::fmt::Write;

/// One figure of a cell.
#[derive(Debug, Clone, Copy)]
struct Figure(&'static str, Payload, fn(&Summary) -> f64);

/// `figure` divided by `by` is at most `most`.
#[derive(Debug, Clone, Copy)]
struct Target {
    words: &'static str,
    figure: Figure,
    by: Figure,
    most: f64,
}

fn p50(summary: &Summary) -> f64 {
    summary.p50_us
}

fn p99(summary: &Summary) -> f64 {
    summary.p99_us
}

const TARGETS: [Target; 7] = [
    Target {
        words: "agent-stock / posix_spawn",
        figure: Figure("agent-stock", Tiny, p50),
        by: Figure("floor-spawn", Tiny, p50),
        most: 1.3,
    },
    Target {
        words: "agent-stock / posix_spawn, p99",
        figure: Figure("agent-stock", Tiny, p99),
        by: Figure("floor-spawn", Tiny, p99),
        most: 2.0,
    },
    Target {
        words: "agent-cast / cold floor",
        figure: Figure("agent-cast", Tiny, p50),
        by: Figure("floor-cold", Tiny, p50),
        most: 2.0,
    },
    Target {
        words: "path / posix_spawn",
        figure: Figure("path", Tiny, p50),
        by: Figure("floor-spawn", Tiny, p50),
        most: 5.0,
    },
    Target {
        words: "path / posix_spawn, libc",
        figure: Figure("path", Libc, p50),
        by: Figure("floor-spawn", Libc, p50),
        most: 2.0,
    },
    Target { words: "path / crun", figure: Figure("path", Tiny, p50), by: Figure("crun", Tiny, p50), most: 1.0 / 6.0 },
    Target { words: "path / runc", figure: Figure("path", Tiny, p50), by: Figure("runc", Tiny, p50), most: 1.0 / 18.0 },
];

impl Figure {
    fn of(self, report: &Report) -> Option<f64> {
        report.row(self.0, Some(self.1))?.summary.as_ref().map(self.2)
    }
}

/// A line for each target that this report has both figures of.
pub(super) fn text(report: &Report) -> String {
    let mut text = String::new();
    for target in TARGETS {
        let (Some(figure), Some(by)) = (target.figure.of(report), target.by.of(report)) else { continue };
        let ratio = figure / by;
        // How many times faster reads better than a small fraction.
        let (ratio_text, most) = if target.most < 1.0 {
            (format!("{:.1}× faster", 1.0 / ratio), format!("at least {:.0}×", 1.0 / target.most))
        } else {
            (format!("{ratio:.2}×"), format!("at most {:.1}×", target.most))
        };
        let verdict = if ratio <= target.most {
            "met".to_owned()
        } else {
            format!("missed by {:.0} %", (ratio / target.most - 1.0) * 100.0)
        };
        let _ = writeln!(text, "target {:<32} {ratio_text:>13}  ({most}): {verdict}", target.words);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::report::Row;

    #[test]
    fn a_target_is_met_or_missed_by_so_much_and_left_out_without_figures() {
        let row = |name: &str, us: u64| Row {
            name: name.into(),
            payload: Some(Tiny),
            summary: Summary::of(&[us * 1000]),
            ..Row::default()
        };
        let cells = vec![row("floor-spawn", 200), row("agent-stock", 300), row("path", 500), row("crun", 4000)];
        let text = text(&Report { scenario: "start".into(), machine: Machine::default(), cells });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[0].ends_with("1.50×  (at most 1.3×): missed by 15 %"), "{text}");
        assert!(lines[1].ends_with("1.50×  (at most 2.0×): met"), "{text}");
        assert!(lines[3].ends_with("8.0× faster  (at least 6×): met"), "{text}");
    }
}

//! Takes the samples of a scenario: cells and payloads interleaved in one run, one start at a time. Scenarios differ in
//! their cells and in their pace.

use crate::cell::{Cell, Source};
use crate::payload::Payload;
use crate::plan::Plan;
use crate::progress::Progress;
use crate::report::{Row, ratios, rounded};
use crate::stats::Summary;
use crate::{clock, interrupt, machine};
use anyhow::Context;
use std::collections::BTreeMap;
use std::time::Duration;

/// Samples of each cell and payload that are taken first and thrown away.
const WARM_UP: usize = 5;
/// So many failures in a row switch a cell off.
const HOPELESS: usize = 10;
/// A helper is asked so long before a sample is due: it waits for the moment itself.
const AHEAD_NS: u64 = 3_000_000;

/// When samples begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// So long after the end of the one before, and later while something else still runs.
    Rest(Duration),
    /// One each so long, whatever the one before did: latency counts from the intended moment, so that a sample which
    /// is held up by another one says so.
    Every(Duration),
}

/// One cell with one payload, and what was found.
#[derive(Debug)]
pub struct Unit {
    cell: usize,
    /// Its row's name, if not the cell's.
    label: Option<String>,
    payload: Payload,
    samples: usize,
    took_ns: Vec<u64>,
    late_ns: Vec<u64>,
    sources: BTreeMap<Source, u64>,
    failed: u64,
    retried: u64,
    in_a_row: usize,
    first_error: Option<String>,
}

/// The cells of a run and their samples.
pub struct Sampler {
    cells: Vec<Box<dyn Cell>>,
    units: Vec<Unit>,
    /// What a reader must know before believing a figure.
    pub warnings: Vec<String>,
}

impl Sampler {
    /// Of these cells.
    pub fn new(cells: Vec<Box<dyn Cell>>) -> Self {
        Self { cells, units: Vec::new(), warnings: Vec::new() }
    }

    /// The cells, in the order in which they were given.
    pub fn cells(&mut self) -> &mut [Box<dyn Cell>] {
        &mut self.cells
    }

    /// Asks for `samples` samples of a cell (by its position) with a payload; `label` is the row's name if it is not
    /// to be the cell's.
    pub fn add(&mut self, cell: usize, label: Option<String>, payload: Payload, samples: usize) {
        self.units.push(Unit::new(cell, label, payload, samples));
    }

    /// Takes some samples of each and throws them away.
    pub fn warm_up(&mut self) -> anyhow::Result<()> {
        for unit in &self.units {
            for _ in 0..WARM_UP {
                interrupt::check()?;
                let cell = &mut self.cells[unit.cell];
                if let Err(error) = cell.start(unit.payload, None) {
                    self.warnings.push(format!("{} {}: {error:#}", cell.name(), unit.payload.name()));
                    break;
                }
            }
        }
        Ok(())
    }

    /// Takes all samples, in an order that `seed` decides.
    pub fn run(&mut self, seed: u64, pace: Pace) -> anyhow::Result<()> {
        let plan = Plan::new(self.units.iter().map(|unit| unit.samples).collect(), seed);
        let mut progress = Progress::new(plan.total());
        let begin = clock::now_ns();
        let mut due = begin;
        for round in plan.rounds() {
            for unit in round {
                interrupt::check()?;
                let unit = &mut self.units[unit];
                let cell = self.cells[unit.cell].as_mut();
                match pace {
                    Pace::Rest(gap) => {
                        machine::rest(gap);
                        unit.sample(cell, None);
                    }
                    Pace::Every(interval) => {
                        due += interval.as_nanos() as u64;
                        clock::wait_until(due.saturating_sub(AHEAD_NS));
                        unit.sample(cell, Some(due));
                    }
                }
                progress.step(cell.name());
            }
        }
        progress.end();
        for unit in &self.units {
            self.warnings.extend(unit.warning(self.cells[unit.cell].name()));
        }
        Ok(())
    }

    /// What was found, by payload, with ratios to the floors of the same run.
    /// `spawn` and `cold` are the names of the floors' rows. The cells are free for other samples then.
    pub fn take_rows(&mut self, spawn: &str, cold: &str) -> Vec<Row> {
        let mut rows = Vec::with_capacity(self.units.len());
        for unit in std::mem::take(&mut self.units) {
            let cell = &mut self.cells[unit.cell];
            let mut row = unit.row(cell.as_ref());
            if let Some(us) = cell.refill_us() {
                row.values.insert("refill_cpu_us".into(), rounded(us, 1));
            }
            rows.push(row);
        }
        rows.sort_by_key(|row| row.payload);
        ratios::add(&mut rows, spawn, cold);
        rows
    }

    /// A row per cell of ours that says where the time of its starts went, in mean microseconds.
    pub fn stages(&mut self) -> Vec<Row> {
        let mut rows = Vec::new();
        for cell in &mut self.cells {
            let stages = cell.stages();
            if !stages.is_empty() {
                let values = stages.iter().map(|(stage, us)| (stage.as_str(), rounded(*us, 1)));
                rows.push(Row::of_values(&format!("{}-stages-us", cell.name()), values));
            }
        }
        rows
    }
}

impl Unit {
    fn new(cell: usize, label: Option<String>, payload: Payload, samples: usize) -> Self {
        Self {
            cell,
            label,
            payload,
            samples,
            took_ns: Vec::with_capacity(samples),
            late_ns: Vec::new(),
            sources: BTreeMap::new(),
            failed: 0,
            retried: 0,
            in_a_row: 0,
            first_error: None,
        }
    }

    /// Takes one sample. A start that fails is counted and tried once more; a second try of a sample that was due at a
    /// moment is still counted from that moment.
    fn sample(&mut self, cell: &mut dyn Cell, due_ns: Option<u64>) {
        if self.in_a_row >= HOPELESS {
            return;
        }
        for attempt in 0..2 {
            self.retried += attempt;
            let started = cell.start(self.payload, due_ns);
            match started.and_then(|s| Ok((s.took_ns(due_ns).context("a stamp from before the call")?, s))) {
                Ok((took_ns, started)) => {
                    self.in_a_row = 0;
                    self.took_ns.push(took_ns);
                    self.late_ns.extend(due_ns.map(|due| started.called_ns.saturating_sub(due)));
                    if let Some(source) = started.source {
                        *self.sources.entry(source).or_default() += 1;
                    }
                    return;
                }
                Err(error) => {
                    self.failed += 1;
                    self.in_a_row += 1;
                    self.first_error.get_or_insert_with(|| format!("{error:#}"));
                }
            }
        }
    }

    fn warning(&self, name: &str) -> Option<String> {
        let error = self.first_error.as_ref()?;
        let hopeless = if self.in_a_row >= HOPELESS { ", given up" } else { "" };
        Some(format!(
            "{name} {}: {} starts failed{hopeless}, the first with: {error}",
            self.payload.name(),
            self.failed
        ))
    }

    fn row(&self, cell: &dyn Cell) -> Row {
        let mut row = Row {
            name: self.label.clone().unwrap_or_else(|| cell.name().to_owned()),
            payload: Some(self.payload),
            ..Row::of_samples(self.took_ns.clone())
        };
        row.values.insert("failed".into(), self.failed.into());
        row.values.insert("retried".into(), self.retried.into());
        row.put_sources(&self.sources);
        if let Some(late) = Summary::of(&self.late_ns) {
            row.values.insert("late_p50_us".into(), rounded(late.p50_us, 1));
            row.values.insert("late_max_us".into(), rounded(late.max_us, 1));
        }
        if !cell.leaves_out().is_empty() {
            row.values.insert("leaves_out".into(), cell.leaves_out().into());
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Started;
    use anyhow::bail;

    struct Flaky(u32);

    impl Cell for Flaky {
        fn name(&self) -> &'static str {
            "flaky"
        }

        fn start(&mut self, _: Payload, due_ns: Option<u64>) -> anyhow::Result<Started> {
            self.0 += 1;
            let called_ns = due_ns.unwrap_or(0) + 1000;
            match self.0 % 3 {
                0 => bail!("no"),
                1 => Ok(Started { called_ns, stamp_ns: called_ns + 3000, source: Some(Source::Cast) }),
                _ => Ok(Started { called_ns, stamp_ns: called_ns - 1000, source: None }),
            }
        }
    }

    #[test]
    fn failed_and_retried_starts_are_counted_and_never_timed() {
        let mut unit = Unit::new(0, None, Payload::Tiny, 10);
        let mut cell = Flaky(0);
        for _ in 0..3 {
            unit.sample(&mut cell, None);
        }
        // 1 works, 2 (a stamp before its call) and 3 fail, 4 works.
        let row = unit.row(&cell);
        assert_eq!((row.summary.unwrap().n, row.number("failed"), row.number("retried")), (2, Some(2.0), Some(1.0)));
        assert_eq!((row.number("cast"), row.number("stock")), (Some(2.0), Some(0.0)));
        assert!(unit.warning("flaky").unwrap().contains("the first with: a stamp"));
    }

    #[test]
    fn a_sample_that_was_due_counts_from_that_moment_and_says_how_late_it_began() {
        let mut unit = Unit::new(0, Some("late".into()), Payload::Tiny, 1);
        unit.sample(&mut Flaky(0), Some(50_000));
        let row = unit.row(&Flaky(0));
        assert_eq!((row.name.as_str(), row.summary.unwrap().p50_us), ("late", 4.0));
        assert_eq!(row.number("late_p50_us"), Some(1.0));
    }
}

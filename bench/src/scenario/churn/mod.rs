//! Create, run, delete, again and again, through controller and agent, on a node as a user has it.
//!
//! The loop is open: cycles begin when they are due, whether those before have ended or not, and a start is counted
//! from the time at which it was due to the program's own stamp. A rate is sustained if no cycle fails, the p99 of
//! the starts is within the bound, and the last cycle has ended a second after the last one began. At the end the
//! node must look as it did before.

mod drive;
mod footprint;

use crate::agent::{Agent, Stock, runtime};
use crate::image::{Image, REFERENCE};
use crate::interrupt;
use crate::machine::Watch;
use crate::node::Node;
use crate::report::{Report, Row, rounded};
use crate::stats::Summary;
use crate::workspace::Workspace;
use drive::{Driver, Stage};
use footprint::Footprint;
use std::path::PathBuf;
use std::time::Duration;

/// How long the node may take to look as before.
const SETTLE: Duration = Duration::from_secs(30);
/// The share of what was done at most that a soak asks for where no rate was sustained.
const SOAK: f64 = 0.7;
/// Cycles that make the node what it is at work: connections, threads, buffers.
const WARM_UP: (u32, usize) = (50, 100);

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Rates to try, in cycles per second, rising; the search ends after two that are too much
    #[arg(long, value_delimiter = ',', default_values_t = [50, 100, 200, 300, 400, 500, 600, 800], value_name = "N,…")]
    pub rates: Vec<u32>,
    /// Seconds at each rate
    #[arg(long, default_value_t = 4, value_name = "S")]
    pub seconds: u32,
    /// Seconds at the highest rate that was sustained, to confirm it
    #[arg(long, default_value_t = 15, value_name = "S")]
    pub confirm: u32,
    /// A soak after that, at the confirmed rate, until there were so many cycles in all
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub cycles: usize,
    /// The most seconds that the soak takes, however many cycles it has done
    #[arg(long, default_value_t = 3600, value_name = "S")]
    pub soak_seconds: usize,
    /// Bound of the p99 of create to stamp, in milliseconds
    #[arg(long, default_value_t = 10, value_name = "MS")]
    pub bound_ms: u64,
    /// Where the private node and all files are kept while it runs [default: /tmp]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
}

/// Runs it.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let workspace = Workspace::create(options.root.as_deref())?;
    let image = Image::create(&workspace.path().join("image"))?;
    let watch = Watch::begin(workspace.path());
    let mut warnings = Vec::new();
    let node = Node::up(&workspace)?;
    let runtime = runtime()?;
    let mut agent = Agent::connect(&runtime, &node.agent()?)?;
    agent.import(&image.archive, REFERENCE)?;
    agent.warm(REFERENCE)?;
    let mut stock = Stock::default();
    let root = workspace.path().join("node");
    let driver = runtime.block_on(Driver::connect(&node.controller()?, &root.join("log")))?;
    let mut cells = Vec::new();
    let mut bench = Bench { options, warnings: &mut warnings };

    stock.wait(|| agent.paused())?;
    runtime.block_on(driver.run(WARM_UP.0, WARM_UP.1))?;
    stock.wait(|| agent.paused())?;
    let before = Footprint::settled(&root, &mut agent, SETTLE, None)?;

    let (mut sustained, mut cycles, mut too_much, mut most_done) = (Vec::new(), 0, 0, 0.0f64);
    for &rate in &options.rates {
        interrupt::check()?;
        stock.wait(|| agent.paused())?;
        let stage = runtime.block_on(driver.run(rate, (rate * options.seconds) as usize))?;
        cycles += stage.done();
        most_done = most_done.max(stage.done_per_s());
        cells.push(bench.row(&format!("rate-{rate}"), &stage));
        if bench.sustained(&stage) {
            (too_much, sustained) = (0, [sustained, vec![rate]].concat());
        } else {
            too_much += 1;
        }
        if too_much == 2 {
            break;
        }
    }
    let mut confirmed = None;
    while let Some(rate) = sustained.pop() {
        interrupt::check()?;
        stock.wait(|| agent.paused())?;
        let stage = runtime.block_on(driver.run(rate, (rate * options.confirm) as usize))?;
        cycles += stage.done();
        let row = bench.row("sustained", &stage);
        if bench.sustained(&stage) || sustained.is_empty() {
            confirmed = Some((row, bench.sustained(&stage).then_some(rate)));
            break;
        }
        bench.warnings.push(format!("{rate} per second were sustained for {} s only", options.seconds));
    }
    let (mut row, held) = confirmed.unwrap_or_else(|| (Row::of_values("sustained", []), None));
    if cycles < options.cycles {
        // Where no rate was sustained, one that leaves the node some air.
        let rate = held.unwrap_or((most_done * SOAK) as u32).max(1);
        let count = (options.cycles - cycles).min(rate as usize * options.soak_seconds);
        let stage = runtime.block_on(driver.run(rate, count))?;
        cycles += stage.done();
        cells.push(bench.row("soak", &stage));
    }
    stock.wait(|| agent.paused())?;
    let after = Footprint::settled(&root, &mut agent, SETTLE, Some(&before))?;
    let leaks = after.more_than(&before);
    if held.is_none() {
        row.values.insert("rate_per_s".into(), 0.into());
        bench.warnings.push("no rate was sustained".into());
    }
    row.values.insert("cycles".into(), cycles.into());
    row.values.insert("leaked".into(), leaks.iter().map(|(_, count)| *count).sum::<u64>().into());
    for (what, count) in &leaks {
        bench.warnings.push(format!("{count} {what} more than before"));
    }
    for (daemon, kib) in after.growth_kib(&before) {
        row.values.insert(format!("{daemon}_growth_kib"), kib.into());
    }
    cells.push(row);
    cells.push(before.row("before"));
    cells.push(after.row("after"));
    drop(driver);
    Ok(Report { scenario: "churn".into(), machine: watch.end(warnings), cells })
}

struct Bench<'a> {
    options: &'a Options,
    warnings: &'a mut Vec<String>,
}

impl Bench<'_> {
    fn sustained(&self, stage: &Stage) -> bool {
        let bound_us = self.options.bound_ms as f64 * 1e3;
        stage.failed == 0 && stage.in_time && Summary::of(&stage.starts_ns).is_some_and(|all| all.p99_us <= bound_us)
    }

    fn row(&mut self, name: &str, stage: &Stage) -> Row {
        let cycle = Summary::of(&stage.cycles_ns);
        let answer = Summary::of(&stage.answers_ns);
        let values = [
            ("rate_per_s", stage.rate.into()),
            ("done_per_s", rounded(stage.done_per_s(), 1)),
            ("sustained", self.sustained(stage).into()),
            ("failed", stage.failed.into()),
            ("answer_p50_us", rounded(answer.map_or(0.0, |all| all.p50_us), 1)),
            ("answer_p99_us", rounded(answer.map_or(0.0, |all| all.p99_us), 1)),
            ("cycle_p50_us", rounded(cycle.map_or(0.0, |all| all.p50_us), 1)),
            ("cycle_p99_us", rounded(cycle.map_or(0.0, |all| all.p99_us), 1)),
        ];
        if let Some(error) = &stage.error {
            self.warnings.push(format!("{name}: {} cycles failed, the last with: {error}", stage.failed));
        }
        Row { summary: Summary::of(&stage.starts_ns), ..Row::of_values(name, values) }
    }
}

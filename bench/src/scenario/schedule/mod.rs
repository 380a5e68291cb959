//! What one placement decision of the controller's registry costs, and how good it is.
//!
//! One operation is what the controller does for a sandbox over its life: choose an agent, book the slot and the
//! ports on it, and give both back (what comes of it is the agent's place in the index; its connection is a look-up
//! of its own). It is timed in steady state: half of all slots are taken, each new reservation is
//! followed by the end of the oldest one, and stock that was used up is reported again between two timings.
//! Quality is the share of decisions that chose the best class of section 6 (stock, image, any), and by how many
//! sandboxes the chosen agent was fuller than the emptiest one of that class, both against a look at every agent.

mod world;

use crate::interrupt;
use crate::machine::{CpuTime, Machine, load};
use crate::report::{Report, Row, rounded};
use anyhow::bail;
use std::path::Path;
use world::World;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Numbers of agents
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000, 10_000, 100_000], value_name = "N,…")]
    pub agents: Vec<usize>,
    /// Timed operations per number of agents
    #[arg(long, default_value_t = 400_000, value_name = "N")]
    pub n: usize,
    /// Decisions that are compared with the exact best
    #[arg(long, default_value_t = 2000, value_name = "N")]
    pub compared: usize,
    /// Seed of everything that is drawn
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
}

/// Runs it.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    if options.agents.contains(&0) || options.n == 0 {
        bail!("there is nothing to measure with no agents or no operations");
    }
    let mut machine = Machine::here(Path::new("/tmp"));
    let before = CpuTime::now();
    let mut cells = Vec::new();
    for &agents in &options.agents {
        cells.push(cell(agents, options)?);
    }
    machine.load_after = load();
    machine.steal_percent = rounded(CpuTime::now().steal_since(&before), 1).as_f64().unwrap_or(0.0);
    Ok(Report { scenario: "schedule".into(), machine, cells })
}

fn cell(agents: usize, options: &Options) -> anyhow::Result<Row> {
    let mut world = World::new(agents, options.seed);
    // Every reservation has been replaced once: what is timed is memory as a long life leaves it.
    let batch = (world.reservations() / 8).min(options.n).clamp(1, 4096);
    for _ in 0..world.reservations() / batch {
        world.turn_over(batch)?;
    }
    let mut times = Vec::with_capacity(options.n / batch + 1);
    for _ in 0..options.n.div_ceil(batch) {
        interrupt::check()?;
        times.push(world.turn_over(batch)?);
    }
    let per_op = |pick: fn(&world::Took) -> u64, percent: usize| {
        let mut values: Vec<u64> = times.iter().map(pick).collect();
        values.sort_unstable();
        let value = crate::stats::percentile(&values, percent).unwrap_or(0);
        rounded(value as f64 / batch as f64, 1)
    };
    let quality = world.compare(options.compared)?;
    Ok(Row::of_values(
        &format!("agents-{agents}"),
        [
            ("ns_per_op", per_op(|took| took.place_ns + took.release_ns, 50)),
            ("p99_ns_per_op", per_op(|took| took.place_ns + took.release_ns, 99)),
            ("place_ns", per_op(|took| took.place_ns, 50)),
            ("release_ns", per_op(|took| took.release_ns, 50)),
            ("ops", (times.len() * batch).into()),
            ("best_class_percent", rounded(quality.best_class * 100.0, 2)),
            ("excess_load", rounded(quality.excess, 2)),
            ("excess_load_at_random", rounded(quality.excess_at_random, 2)),
            ("compared", quality.compared.into()),
        ],
    ))
}

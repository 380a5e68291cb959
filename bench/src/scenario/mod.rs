//! What is measured.

pub mod all;
pub mod burst;
pub mod churn;
pub mod contention;
pub mod density;
pub mod logs;
pub mod recover;
pub mod rpc;
pub mod schedule;
pub mod staggered;
pub mod start;

use crate::report::Report;
use std::path::Path;

/// A scenario with its options.
#[derive(Debug, clap::Subcommand)]
pub enum Scenario {
    /// From the call to the first act of the user's program
    Start(start::Options),
    /// One start each 200 ms, counted from the moment when it was to begin
    Staggered(staggered::Options),
    /// Many starts at once
    Burst(burst::Options),
    /// Starts beside busy loops
    Contention(contention::Options),
    /// Create, run, delete through the whole path: the highest rate that is sustained, and what it leaves behind
    Churn(churn::Options),
    /// What a sandbox costs in memory, paused and running
    #[command(alias = "memory")]
    Density(density::Options),
    /// What the keeper's logs cost, beside a plain copier
    Logs(logs::Options),
    /// What a call costs that does nothing
    Rpc(rpc::Options),
    /// What one decision of the controller costs and how good it is
    Schedule(schedule::Options),
    /// How long an agent is away after its server was killed
    Recover(recover::Options),
}

impl Scenario {
    /// Runs it.
    pub fn run(&self) -> anyhow::Result<Report> {
        match self {
            Scenario::Start(options) => start::run(options),
            Scenario::Staggered(options) => staggered::run(options),
            Scenario::Burst(options) => burst::run(options),
            Scenario::Contention(options) => contention::run(options),
            Scenario::Churn(options) => churn::run(options),
            Scenario::Density(options) => density::run(options),
            Scenario::Logs(options) => logs::run(options),
            Scenario::Rpc(options) => rpc::run(options),
            Scenario::Schedule(options) => schedule::run(options),
            Scenario::Recover(options) => recover::run(options),
        }
    }

    /// Where it keeps its files.
    pub fn root(&self) -> Option<&Path> {
        match self {
            Scenario::Start(options) => options.root.as_deref(),
            Scenario::Staggered(options) => options.root.as_deref(),
            Scenario::Burst(options) => options.root.as_deref(),
            Scenario::Contention(options) => options.root.as_deref(),
            Scenario::Churn(options) => options.root.as_deref(),
            Scenario::Density(options) => options.root.as_deref(),
            Scenario::Logs(options) => options.root.as_deref(),
            Scenario::Rpc(options) => options.root.as_deref(),
            Scenario::Schedule(_) => None,
            Scenario::Recover(options) => options.root.as_deref(),
        }
    }
}

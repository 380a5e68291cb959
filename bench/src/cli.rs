//! The command line.

use crate::report::{Report, table};
use crate::scenario::{burst, churn, contention, density, logs, recover, rpc, schedule, staggered, start};
use crate::{busy, interrupt, launcher, lib_cells, paused, workspace};
use anyhow::bail;
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Measures Fast Sandbox beside the kernel's floors and other container runtimes, in one interleaved run.
#[derive(Debug, Parser)]
#[command(name = "fsb-bench", version, subcommand_required = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Also write the result to this file, as JSON
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// From the call to the first act of the user's program
    Start(start::Options),
    /// What a sandbox costs in memory, paused and running
    #[command(alias = "memory")]
    Density(density::Options),
    /// Create, run, delete through the whole path: the highest rate that is sustained, and what it leaves behind
    Churn(churn::Options),
    /// What a call costs that does nothing
    Rpc(rpc::Options),
    /// How long an agent is away after its server was killed
    Recover(recover::Options),
    /// What one decision of the controller costs and how good it is
    Schedule(schedule::Options),
    /// What the keeper's logs cost, beside a plain copier
    Logs(logs::Options),
    /// One start each 200 ms, counted from the moment when it was to begin
    Staggered(staggered::Options),
    /// Many starts at once
    Burst(burst::Options),
    /// Starts beside busy loops
    Contention(contention::Options),
    #[command(hide = true)]
    Busy(busy::Args),
    #[command(hide = true)]
    Launcher(launcher::Args),
    #[command(hide = true)]
    Paused(paused::Args),
    #[command(hide = true)]
    AgentCells(lib_cells::Args),
}

/// Runs what was asked for.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let report = match cli.command {
        // Helpers first: they are to be single-threaded for as long as they can.
        Command::Launcher(args) => return launcher::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Paused(args) => return paused::run(&args).map(|()| ExitCode::SUCCESS),
        Command::AgentCells(args) => return lib_cells::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Busy(args) => {
            busy::run(&args);
            return Ok(ExitCode::SUCCESS);
        }
        Command::Staggered(options) => measured(options.root.as_deref(), || staggered::run(&options))?,
        Command::Burst(options) => measured(options.root.as_deref(), || burst::run(&options))?,
        Command::Contention(options) => measured(options.root.as_deref(), || contention::run(&options))?,
        Command::Start(options) => measured(options.root.as_deref(), || start::run(&options))?,
        Command::Density(options) => measured(options.root.as_deref(), || density::run(&options))?,
        Command::Churn(options) => measured(options.root.as_deref(), || churn::run(&options))?,
        Command::Rpc(options) => measured(options.root.as_deref(), || rpc::run(&options))?,
        Command::Recover(options) => measured(options.root.as_deref(), || recover::run(&options))?,
        Command::Logs(options) => measured(options.root.as_deref(), || logs::run(&options))?,
        Command::Schedule(options) => measured(None, || schedule::run(&options))?,
    };
    print!("{}", table::text(&report));
    if let Some(path) = &cli.json {
        report.save(path)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn measured(root: Option<&Path>, scenario: impl FnOnce() -> anyhow::Result<Report>) -> anyhow::Result<Report> {
    if !nix::unistd::Uid::effective().is_root() {
        bail!("namespaces, mounts and cgroups need root\nhint: sudo fsb-bench …");
    }
    interrupt::listen()?;
    workspace::sweep_stale(root);
    scenario()
}

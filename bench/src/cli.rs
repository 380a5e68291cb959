//! The command line.

use crate::report::{compare, html, table};
use crate::scenario::{Scenario, all};
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
    /// Also write the result to this file, as JSON; for `all` a folder with a file for each scenario and report.html
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write the result to this file, as a page with plots that needs no network
    #[arg(long, global = true, value_name = "FILE")]
    html: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Scenario(Scenario),
    /// All of these, within 45 minutes on two processors
    All(all::Options),
    /// What has changed from one result to another, and whether it is more than chance
    Compare {
        /// A JSON file, or a folder of them
        #[arg(value_name = "BEFORE")]
        before: PathBuf,
        /// The same, later
        #[arg(value_name = "AFTER")]
        after: PathBuf,
    },
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
    match cli.command {
        // Helpers first: they are to be single-threaded for as long as they can.
        Command::Launcher(args) => launcher::run(&args)?,
        Command::Paused(args) => paused::run(&args)?,
        Command::AgentCells(args) => lib_cells::run(&args)?,
        Command::Busy(args) => busy::run(&args),
        Command::Compare { before, after } => print!("{}", compare::text(&before, &after)?),
        Command::All(options) => {
            prepare(options.root.as_deref())?;
            let reports = all::run(&options, cli.json.as_deref())?;
            if let Some(path) = &cli.html {
                html::save(&reports, path)?;
            }
        }
        Command::Scenario(scenario) => {
            prepare(scenario.root())?;
            let report = scenario.run()?;
            print!("{}", table::text(&report));
            if let Some(path) = &cli.json {
                report.save(path)?;
            }
            if let Some(path) = &cli.html {
                html::save(&[report], path)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What comes before anything that measures.
fn prepare(root: Option<&Path>) -> anyhow::Result<()> {
    if !nix::unistd::Uid::effective().is_root() {
        bail!("namespaces, mounts and cgroups need root\nhint: sudo fsb-bench …");
    }
    interrupt::listen()?;
    workspace::sweep_stale(root);
    Ok(())
}

//! The command line.

use crate::{completion, delete, doctor, image, list, local, logs, reset, run, update};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

const AFTER: &str = "\
Settings come from flags, then FSB_ENDPOINT, FSB_NAMESPACE, FSB_TOKEN, FSB_ROOT, FSB_CONFIG, FSB_EDITOR, then
./.fsb/config.json, then ~/.fsb/config.json (keys: endpoint, namespace, editor).
Exit codes: 0 done, 1 failed, 2 wrong usage; `run --wait` passes on the sandbox's own.";

/// Starts, shows and removes sandboxes.
#[derive(Parser)]
#[command(name = "fsb-ctl", version, about, after_help = AFTER, subcommand_required = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Args, Clone, Default)]
pub(crate) struct Global {
    /// The controller: HOST:PORT or unix:PATH [default: the local node's socket if it is there, else localhost:9090]
    #[arg(long, global = true, value_name = "ADDRESS", help_heading = "Global options")]
    pub(crate) endpoint: Option<String>,
    /// Namespace [default: default]
    #[arg(short, long, global = true, value_name = "NAME", help_heading = "Global options")]
    pub(crate) namespace: Option<String>,
    /// Bearer token for the controller [default: of the local node's own file, where there is one]
    #[arg(long, global = true, value_name = "TOKEN", help_heading = "Global options")]
    pub(crate) token: Option<String>,
    /// Use this configuration file and no other
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub(crate) config: Option<PathBuf>,
    /// The local node below this directory, instead of the machine's own
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub(crate) root: Option<PathBuf>,
    /// Say what is done, on stderr
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub(crate) verbose: bool,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Start a sandbox
    Run(Box<run::Args>),
    /// Show the sandboxes of a namespace
    #[command(visible_alias = "ls")]
    List(list::ListArgs),
    /// Show one sandbox
    Get(list::GetArgs),
    /// Show what a sandbox has written
    Logs(logs::Args),
    /// Delete sandboxes
    #[command(visible_alias = "delete")]
    Rm(delete::Args),
    /// Change the expiry, the policies or the labels of a sandbox
    Update(update::Args),
    /// Stop the instance of a sandbox and start a new one
    #[command(visible_alias = "restart")]
    Reset(reset::Args),
    /// The images of the local node
    Image(image::Args),
    /// The local node: controller and agents on this machine, without Kubernetes
    Local(local::Args),
    /// Check what this machine needs to run sandboxes
    Doctor(doctor::Args),
    /// Print a script that completes commands in a shell
    Completion(completion::Args),
}

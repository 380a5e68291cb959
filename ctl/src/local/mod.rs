//! `local`: controller and agents on this machine, without Kubernetes.
//!
//! ```text
//! fsb-ctl local serve        the supervisor: restarts the controller, and a dead keeper as an empty agent
//!  ├─ fsb-controller         on the host
//!  └─ unshare ── fsb-keeper  PID 1 of its own pid namespace, with an own mount namespace and /proc
//! ```
//!
//! Everything that must outlive the supervisor is in `RUN/node.json`: processes are known by pid and start time, so
//! that `down`, `status` and a second `up` work when it was killed.

mod agents;
mod capacity;
mod cgroups;
mod controller;
pub(crate) mod dirs;
mod down;
mod environment;
mod firewall;
mod global;
mod keeper;
mod lock;
mod mounts;
mod network;
pub(crate) mod place;
mod process;
pub(crate) mod program;
mod record;
mod resolvers;
mod spawn_time;
mod status;
mod subnets;
mod supervisor;
mod sweep;
mod tcp;
mod tear_down;
pub(crate) mod up;

use crate::config::Settings;
use crate::error::{Failure, Result};
use crate::output::FormatArg;
use clap::Subcommand;
use dirs::Dirs;

/// The local node: controller and agents on this machine, without Kubernetes.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Start it; done when every agent is ready
    #[command(after_help = environment::HELP)]
    Up(agents::Flags),
    /// Stop it: sandboxes get SIGTERM and up to 10 s; images, claims and logs stay
    Down {
        /// Leave nothing: end sandboxes at once, remove images, claims and logs too
        #[arg(long)]
        purge: bool,
    },
    /// Show its processes, sockets and agents
    Status {
        #[command(flatten)]
        format: FormatArg,
    },
    /// Start it and stay in the foreground
    #[command(after_help = environment::HELP)]
    Serve {
        #[command(flatten)]
        flags: agents::Flags,
        /// Leave the terminal and the session of whoever started it
        #[arg(long, hide = true)]
        detached: bool,
    },
    /// Measure this machine's own fork and exec
    #[command(hide = true)]
    SpawnTime {
        /// How often
        #[arg(default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        count: u32,
        #[command(flatten)]
        format: FormatArg,
    },
}

pub(crate) fn run(args: Args, settings: &Settings) -> Result<u8> {
    let dirs = Dirs::of(settings.root.as_deref());
    match args.what {
        What::Up(flags) => up::run(&flags, &dirs, settings),
        What::Down { purge } => down::run(&dirs, purge),
        What::Status { format } => status::run(&dirs, settings, format),
        What::Serve { flags, detached } => supervisor::run(&flags, &dirs, detached),
        What::SpawnTime { count, format } => spawn_time::run(count, format),
    }
}

/// Namespaces, mounts and cgroups need root.
fn need_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::new("the local node needs root: it makes namespaces, mounts and cgroups").hint("sudo fsb-ctl local …"))
}

/// Whether processes of the node live, also where their supervisor was killed.
pub(crate) fn lives(dirs: &Dirs) -> bool {
    is_served(dirs) || record::Node::read(dirs).is_some_and(|node| node.lives())
}

/// Agents of the node whose containers libcontainer makes, and why no mould does.
pub(crate) fn without_moulds(dirs: &Dirs) -> Vec<(String, String)> {
    let node = record::Node::read(dirs);
    let agents = node.iter().flat_map(|node| node.without_moulds(dirs));
    agents.map(|(agent, why)| (agent.to_owned(), why)).collect()
}

/// Whether the node has a supervisor.
pub(crate) fn is_served(dirs: &Dirs) -> bool {
    lock::holder(&dirs.lock()).is_some()
}

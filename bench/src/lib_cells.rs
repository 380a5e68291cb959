//! Our agent without RPC: `agent-stock`, `agent-cast`, `agent-libcontainer`.

use crate::helper::Helper;
use crate::image::Image;
use crate::workspace::Workspace;
use anyhow::bail;
use std::path::PathBuf;

/// What it is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The bench's socket.
    #[arg(long)]
    pub connect: PathBuf,
}

/// Starts the helper of one cell.
pub fn start(_: &Workspace, _: &Image, name: &str) -> anyhow::Result<Helper> {
    bail!("{name} needs the agent's library, which does not offer starts yet")
}

/// Serves the bench until it hangs up.
pub fn run(_: &Args) -> anyhow::Result<()> {
    bail!("the agent's library does not offer starts yet")
}

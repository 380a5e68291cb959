//! What is left of an agent after its keeper has died: the processes are gone with the pid namespace, the rest is
//! removed here. Logs stay.

use super::dirs::Dirs;
use super::record::{Agent, Keeper, Node};
use super::{cgroups, mounts};
use crate::error::{Context, Failure, Result};
use nix::sys::signal::Signal;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const END: Duration = Duration::from_secs(10);

/// Makes sure that both processes of a keeper are gone; with them the kernel ends the whole pid namespace.
pub(crate) fn end(keeper: &Keeper) -> Result<()> {
    keeper.keeper.signal(Signal::SIGKILL);
    keeper.unshare.signal(Signal::SIGKILL);
    if keeper.keeper.wait(END) && keeper.unshare.wait(END) {
        return Ok(());
    }
    Err(Failure::new(format!("the keeper (process {}) does not die", keeper.keeper.pid)))
}

/// Removes the cgroups, writable layers and run files of an agent.
pub(crate) fn agent(dirs: &Dirs, node: &Node, agent: &Agent) -> Result<()> {
    cgroups::remove(&node.cgroups, &dirs.agent_cgroup(&agent.name))?;
    let (state, run) = (dirs.state.join(&agent.name), dirs.run.join(&agent.name));
    for directory in [&state, &run] {
        mounts::unmount_below(directory)?;
        remove(directory)?;
    }
    remove(&dirs.agent_socket(&agent.name))
}

/// Removes a file or a directory with all that is in it, if it is there. What somebody has mounted there, or below it, is
/// emptied and stays mounted.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        // rm(1): std's takes stack and a descriptor for each level, and a sandbox chooses how many there are.
        Ok(metadata) if metadata.is_dir() => rm(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(_) if is_bare(path) => Ok(()),
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn rm(directory: &Path) -> std::io::Result<()> {
    let output = Command::new("rm").args(["-rf", "--"]).arg(directory).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(std::io::Error::other(said.trim().to_owned())) }
}

/// Whether nothing is left but what somebody has mounted, and the directories that lead there.
fn is_bare(directory: &Path) -> bool {
    let is_bare = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.is_ok_and(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()) && is_bare(&entry.path()))
    };
    std::fs::read_dir(directory).is_ok_and(|mut entries| entries.all(is_bare))
}

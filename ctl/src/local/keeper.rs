//! Starting a keeper as PID 1 of a pid namespace of its own.

use super::dirs::Dirs;
use super::environment;
use super::process::{self, Process};
use super::program;
use super::record::{Agent, Keeper, Node};
use crate::error::{Context, Failure, Result};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

const FORK: Duration = Duration::from_secs(5);

/// Starts the keeper of an agent. The child is `unshare`; it ends when the keeper ends.
pub(crate) fn start(dirs: &Dirs, node: &Node, agent: &Agent) -> Result<(Child, Keeper)> {
    let unshare = program::on_path("unshare").ok_or_else(|| program::missing("unshare"))?;
    let keeper = program::ours("fsb-keeper")?;
    let mut child = Command::new(unshare)
        // Slave: what the host mounts later is seen inside, nothing of inside leaks back.
        .args(["--fork", "--pid", "--mount", "--mount-proc", "--propagation", "slave", "--kill-child=SIGKILL", "--"])
        .arg(&keeper)
        .env_clear()
        .envs(environment::of_keeper(dirs, node, agent))
        .current_dir("/")
        // Ctrl-C at a supervisor in the foreground is for the supervisor alone.
        .process_group(0)
        .stdin(Stdio::null())
        .spawn()
        .context(|| format!("cannot start {}", keeper.display()))?;
    let pid = child.id().unwrap_or_default() as i32;
    let until = Instant::now() + FORK;
    loop {
        let pair = Process::of(pid).zip(process::child(pid).and_then(Process::of));
        if let Some((unshare, keeper)) = pair {
            return Ok((child, Keeper { unshare, keeper }));
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(Failure::new(format!("the keeper of {} did not start: {status}", agent.name)));
        }
        if Instant::now() > until {
            let _ = child.start_kill();
            return Err(Failure::new(format!("the keeper of {} did not start within {FORK:?}", agent.name)));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

//! The orderly end: SIGTERM to all, grace, SIGKILL, and nothing left.

use crate::keeper::Keeper;
use crate::sweep;
use fsb_host::wire::Stage;
use fsb_host::{pidfd, process};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{info, warn};

/// How long killed processes may take to end and their logs to be finished.
const LAST: Duration = Duration::from_secs(2);
/// The wait between two looks at killed children.
const LOOK: Duration = Duration::from_millis(5);

/// Ends everything. Sandboxes have their own grace period, but not more than the stop timeout, and so has the agent.
pub(crate) async fn run(keeper: &Rc<Keeper>) {
    keeper.stopping.set(true);
    let began = Instant::now();
    let agent = keeper.agent.daemon.borrow().clone();
    if let Some(agent) = &agent {
        agent.kill(Signal::SIGTERM);
    }
    let mut grace = Duration::ZERO;
    for entry in keeper.table.borrow().entries().filter(|entry| entry.alive) {
        let Some(binding) = &entry.record.binding else { continue };
        grace = grace.max(Duration::from_secs(binding.grace_seconds.into()));
        let _ = pidfd::kill(&*entry.handles.pidfd, Signal::SIGTERM);
    }
    let limit = began + keeper.settings.stop_timeout;
    info!(running = bound(keeper), grace_s = grace.as_secs(), "stopping");
    let _ = timeout_at(limit.min(began + grace), until(keeper, || bound(keeper) == 0)).await;
    for entry in keeper.table.borrow().entries().filter(|entry| entry.alive) {
        let _ = pidfd::kill(&*entry.handles.pidfd, Signal::SIGKILL);
    }
    let finished = until(keeper, || keeper.table.borrow().entries().all(|entry| is_ended(&entry.record.stage)));
    let _ = timeout_at(Instant::now() + LAST, finished).await;
    if let Some(agent) = &agent {
        let _ = timeout_at(limit, agent.died()).await;
    }
    kill_all().await;
    sweep::at_stop(&keeper.paths, &keeper.tree);
    info!("stopped");
}

/// Kills every child until there is none; the reaper task reaps them meanwhile.
async fn kill_all() {
    let end = Instant::now() + LAST;
    loop {
        let children = match process::children() {
            Ok(children) if children.is_empty() => return,
            Ok(children) => children,
            Err(error) => {
                warn!(%error, "children cannot be listed");
                Vec::new()
            }
        };
        if Instant::now() >= end {
            warn!(pids = ?children, "killed children do not end");
            return;
        }
        for pid in children {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        sleep(LOOK).await;
    }
}

/// Instances that somebody owns and whose end is not known.
fn bound(keeper: &Keeper) -> usize {
    let table = keeper.table.borrow();
    table.entries().filter(|entry| entry.record.binding.is_some() && !is_ended(&entry.record.stage)).count()
}

fn is_ended(stage: &Stage) -> bool {
    matches!(stage, Stage::Ended(_))
}

/// Looks again whenever a record has changed.
async fn until(keeper: &Keeper, is_so: impl Fn() -> bool) {
    while !is_so() {
        keeper.ended.notified().await;
    }
}

//! Stopping: SIGTERM, the grace period, SIGKILL. Whoever asks is answered at once.

use crate::Agent;
use crate::instance::{Instance, Phase};
use crate::monotonic_ms;
use fsb_host::pidfd;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Begins to stop a running instance; `None` = after its own grace period, zero = SIGKILL at once. A second stop may
/// shorten the wait of the first, never lengthen it. What is being created or has ended is left as it is.
pub(crate) fn begin(agent: &Arc<Agent>, instance: &Arc<Instance>, grace: Option<Duration>) {
    let first = {
        let mut state = instance.state();
        if !matches!(state.phase, Phase::Running | Phase::Stopping) || state.end.is_some() {
            return;
        }
        let kill_at = Instant::now() + grace.unwrap_or_else(|| state.grace());
        let first = state.phase == Phase::Running;
        if !first && state.kill_at.is_some_and(|at| at <= kill_at) {
            return;
        }
        state.phase = Phase::Stopping;
        state.kill_at = Some(kill_at);
        state.binding.kill_at_ms =
            monotonic_ms() + kill_at.saturating_duration_since(Instant::now()).as_millis() as i64;
        if first {
            // Before the signal, and so before its end.
            agent.publish_state(&mut state);
        }
        if let Some(pidfd) = &state.pidfd {
            if kill_at <= Instant::now() {
                kill_now(pidfd);
            } else if first {
                signal(pidfd, Signal::SIGTERM);
            }
        }
        first
    };
    instance.changed();
    if first {
        agent.tracker.spawn(see_through(agent.clone(), instance.clone()));
    } else {
        agent.tracker.spawn(keep_binding(agent.clone(), instance.clone()));
    }
}

/// A newer generation of its claim is to start here: the instance is killed, or its start broken off.
pub(crate) fn give_way(agent: &Arc<Agent>, instance: &Arc<Instance>) {
    {
        let mut state = instance.state();
        if state.phase == Phase::Creating {
            // The start path sees it, at the latest when it would commit.
            state.removal.get_or_insert_default();
        }
    }
    instance.changed();
    begin(agent, instance, Some(Duration::ZERO));
}

/// Sends SIGKILL when it is due; a stop that was begun by an agent before this one goes on here, too.
pub(crate) async fn see_through(agent: Arc<Agent>, instance: Arc<Instance>) {
    // A restarted agent goes on with the stop.
    keep_binding(agent.clone(), instance.clone()).await;
    loop {
        let due = instance.state().kill_at;
        let Some(due) = due else { return };
        tokio::select! {
            () = tokio::time::sleep_until(due) => break,
            over = instance.until(|state| match (&state.end, state.kill_at) {
                (Some(_), _) => Some(true),
                (None, at) if at != Some(due) => Some(false),
                _ => None,
            }) => if over { return },
            () = agent.shutdown.cancelled() => return,
        }
    }
    let state = instance.state();
    if let (Some(pidfd), None) = (&state.pidfd, &state.end) {
        tracing::debug!(instance = %state.id, "grace period over");
        kill_now(pidfd);
    }
}

/// Has the keeper remember what was decided about an instance.
pub(crate) async fn keep_binding(agent: Arc<Agent>, instance: Arc<Instance>) {
    let (id, binding) = {
        let state = instance.state();
        (state.id.clone(), state.binding.clone())
    };
    if let Err(error) = agent.keeper.rebind(&id, binding).await {
        tracing::warn!(instance = %id, %error, "the record could not be changed");
    }
}

/// SIGKILL.
pub(crate) fn kill_now(pidfd: &OwnedFd) {
    signal(pidfd, Signal::SIGKILL);
}

fn signal(fd: &OwnedFd, signal: Signal) {
    match pidfd::kill(fd.as_fd(), signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => tracing::error!(%error, %signal, "a signal could not be sent"),
    }
}

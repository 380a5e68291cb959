//! The stream of one agent: kept open for ever, noticed when it is silent.

use super::{Agent, Client, Link, Target, report};
use crate::backoff;
use crate::core::Core;
use fsb_proto::agent;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// First and longest pause before connecting again. Short: an agent's server is back within milliseconds.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Watches the agent behind `target` until the controller stops.
pub async fn watch(core: Arc<Core>, target: Target, client: Client) {
    let mut failures = 0;
    let mut known = None;
    loop {
        let mut agent = None;
        let ended = tokio::select! {
            () = core.stop.cancelled() => return,
            ended = session(&core, &target, &client, &mut known, &mut agent) => ended,
        };
        if let Some((agent, lost)) = agent {
            failures = 0;
            tracing::warn!(agent = %agent.name, address = %target, why = ended, "the agent's stream ended");
            down(&core, &agent, lost);
        } else {
            failures += 1;
            if failures == 1 || failures % 64 == 0 {
                tracing::warn!(address = %target, why = ended, "an agent cannot be reached");
            }
        }
        let pause = backoff::delay(RECONNECT.0, RECONNECT.1, failures.max(1));
        tokio::select! {
            () = core.stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// One stream from its beginning to its end; says why it ended. `known` is the name that this address reported last;
/// `agent` gets the agent once it has reported, and
/// whether it fell silent for so long that it is lost.
async fn session(
    core: &Arc<Core>,
    target: &Target,
    client: &Client,
    known: &mut Option<Arc<str>>,
    agent: &mut Option<(Arc<Agent>, bool)>,
) -> String {
    let lost_after = core.timing.agent_lost_after;
    let began = Instant::now();
    let mut stream = match client.watch(format!("fsb-controller {}", std::process::id())).await {
        Ok(stream) => stream,
        Err(status) => return status.message().to_owned(),
    };
    let snapshot = match tokio::time::timeout(lost_after, stream.message()).await {
        Ok(Ok(Some(agent::Event { event: Some(agent::event::Event::Snapshot(snapshot)) }))) => snapshot,
        Ok(Ok(_)) => return "its first message is no snapshot".into(),
        Ok(Err(status)) => return status.message().to_owned(),
        Err(_) => return format!("it sent no snapshot within {lost_after:?}"),
    };
    let Some(name) = snapshot.agent.as_ref().map(|agent| agent.name.clone()).filter(|name| !name.is_empty()) else {
        return "its snapshot does not say its name".into();
    };
    let Some(reported) = core.agents.insert(target, client, snapshot, began, known.is_none()) else {
        return format!("another address has an agent of the same name, {name:?}; give each agent its own POD_NAME");
    };
    if let Some(before) = known.replace(reported.name.clone()).filter(|before| *before != reported.name) {
        // Another agent serves at this address now: the one of before is no more.
        core.registry.remove(&before);
        core.wake_agent(&before);
    }
    tracing::info!(agent = %name, address = %target, "the agent reports");
    *agent = Some((reported.clone(), false));
    report::snapshot(core, &reported);
    core.agents.note_complete();
    // Silence first takes it out of the choice, then makes it lost.
    let mut quiet = false;
    loop {
        match tokio::time::timeout(lost_after / 2, stream.message()).await {
            Ok(Ok(Some(event))) => {
                if std::mem::take(&mut quiet) {
                    core.registry.set_healthy(&name, true);
                }
                report::event(core, &reported, event);
            }
            Ok(Ok(None)) => return "the agent closed it".into(),
            Ok(Err(status)) => return status.message().to_owned(),
            Err(_) if !quiet => {
                quiet = true;
                core.registry.set_healthy(&name, false);
            }
            Err(_) => {
                *agent = Some((reported, true));
                return format!("nothing came for {lost_after:?}");
            }
        }
    }
}

/// The stream is gone; the agent is lost when it does not come back in time.
fn down(core: &Arc<Core>, agent: &Arc<Agent>, lost: bool) {
    core.registry.set_healthy(&agent.name, false);
    agent.view().link = Link::Down;
    if lost {
        return declare_lost(core, agent);
    }
    let (core, agent) = (core.clone(), agent.clone());
    let down_since = Instant::now();
    core.clone().tracker.spawn(async move {
        let stop: CancellationToken = core.stop.clone();
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(core.timing.agent_lost_after) => {}
        }
        let still_down = {
            let view = agent.view();
            view.link == Link::Down && view.began <= down_since
        };
        // The agent may have come back and gone again meanwhile: then a later watch of it counts.
        if still_down && core.agents.get(&agent.name).is_some_and(|known| Arc::ptr_eq(&known, &agent)) {
            declare_lost(&core, &agent);
        }
    });
}

fn declare_lost(core: &Arc<Core>, agent: &Arc<Agent>) {
    agent.view().link = Link::Lost { since: Instant::now() };
    core.metrics.agents_lost.inc();
    tracing::error!(agent = %agent.name, address = %agent.target, "the agent is lost");
    core.wake_agent(&agent.name);
}

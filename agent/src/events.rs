//! What the keeper says without being asked, taken in one after the other. Nothing here waits.

use crate::Agent;
use crate::instance::Phase;
use crate::keeper::Event;
use crate::lock;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Takes events in until the keeper is gone.
pub(crate) async fn run(agent: Arc<Agent>, mut events: mpsc::Receiver<Event>) {
    while let Some(event) = events.recv().await {
        match event {
            Event::Started { id, at_ms } => started(&agent, &id, at_ms),
            Event::Ended { id, end } => ended(&agent, &id, end),
            Event::Unclaimed(paused) => {
                if let Some(paused) = agent.pool.put(paused) {
                    tracing::debug!(instance = paused.made.id, "a container that nobody waits for");
                    agent.discard(paused);
                }
            }
            Event::Unusable { id, cgroups } => agent.discard_unusable(id, cgroups),
            Event::Lost { id } => {
                if let Some(instance) = lock(&agent.instances).get(id.as_str()).cloned() {
                    instance.state().in_keeper = false;
                    instance.changed();
                }
            }
            Event::SpawnerRestarted => tracing::warn!("the spawner was restarted"),
        }
    }
}

fn started(agent: &Arc<Agent>, id: &str, at_ms: i64) {
    let Some(instance) = lock(&agent.instances).get(id).cloned() else { return };
    {
        let mut state = instance.state();
        state.seen_started = true;
        if state.started_at_ms == 0 {
            state.started_at_ms = at_ms;
        }
    }
    instance.changed();
}

fn ended(agent: &Arc<Agent>, id: &str, end: fsb_host::wire::End) {
    let Some(instance) = lock(&agent.instances).get(id).cloned() else {
        if let Some(paused) = agent.pool.remove(id) {
            tracing::warn!(instance = id, "a paused container died");
            agent.reap_remains(id.to_owned(), paused.made.cgroups);
        }
        return;
    };
    let running = {
        let mut state = instance.state();
        if state.end.is_some() {
            return;
        }
        state.end = Some(end);
        // While it is being created the start path decides.
        matches!(state.phase, Phase::Running | Phase::Stopping)
    };
    instance.changed();
    tracing::debug!(instance = id, ?end, "ended");
    if running {
        agent.reap(instance);
    }
}

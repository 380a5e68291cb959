//! An agent that no controller watches any more stops its AutoRecreate sandboxes itself, after as long as the
//! controller waits before it starts them elsewhere: so none runs twice.
//!
//! The controller counts from ten seconds after the connection broke, the agent from when it has noticed, which a silent
//! connection may put off by seven (its pings). What is left is too short for most grace periods: a sandbox that is to
//! run elsewhere must be gone.

use crate::Agent;
use crate::instance::{Instance, Phase};
use crate::{lock, stop};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long such a sandbox may take to end by itself.
const GRACE: Duration = Duration::from_secs(2);

/// Waits for controllers to go and to come back, until the agent stops. An agent that no controller ever
/// watched stops nothing.
pub(crate) async fn run(agent: Arc<Agent>) {
    let mut watched = agent.hub.watched();
    loop {
        let since = *watched.borrow_and_update();
        let next = since.and_then(|since| next_stop(&agent, since));
        let due = match next {
            Some((due, instance)) if due <= Instant::now() => {
                tracing::warn!(instance = %instance.id(), "no controller for too long: stopping it");
                instance.state().binding.cut_off = true;
                // Before the signal: should this agent die right after it, the next one still knows why it ended.
                stop::keep_binding(agent.clone(), instance.clone()).await;
                let grace = instance.state().grace().min(GRACE);
                stop::begin(&agent, &instance, Some(grace));
                continue;
            }
            Some((due, _)) => due,
            // Looks again when a controller comes or goes; what is created without one counts from then on.
            None => Instant::now() + Duration::from_secs(if since.is_some() { 10 } else { 86_400 }),
        };
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            changed = watched.changed() => if changed.is_err() { return },
            () = agent.shutdown.cancelled() => return,
        }
    }
}

/// The AutoRecreate sandbox that is to be stopped first, and when.
fn next_stop(agent: &Agent, since: Instant) -> Option<(Instant, Arc<Instance>)> {
    let instances: Vec<Arc<Instance>> = lock(&agent.instances).values().cloned().collect();
    let due = |instance: Arc<Instance>| {
        let seconds = {
            let state = instance.state();
            (state.phase == Phase::Running && state.end.is_none()).then_some(state.binding.recreate_after_seconds)?
        };
        (seconds > 0).then(|| (since + Duration::from_secs(seconds.into()), instance))
    };
    instances.into_iter().filter_map(due).min_by_key(|(due, _)| *due)
}

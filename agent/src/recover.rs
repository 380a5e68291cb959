//! What an agent finds when it comes up: the keeper's records, and what nobody has a record of.

use crate::Agent;
use crate::admission::Ticket;
use crate::instance::{Instance, Phase, Removal, source_of};
use crate::keeper::Known;
use crate::{lock, monotonic_ms, order, stop, undo};
use fsb_host::wire::{Binding, Overlay, Recipe, Stage};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A hand-off that was sent by an agent that died right after it is through by then.
const SETTLE: Duration = Duration::from_millis(250);
/// No machine has been up for so long (32 years).
const OF_THE_WALL_CLOCK_MS: i64 = 1_000_000_000_000;
/// Containers that were asked for by an agent before this one have come by then.
const SWEEP_AFTER: Duration = Duration::from_secs(10);

/// Takes over what the keeper knows: stock becomes stock again, what runs is adopted with its slot, ports, names and
/// stop timers, what was in the middle of its start is undone, what has ended is cleaned up.
pub(crate) fn adopt(agent: &Arc<Agent>, mut known: Vec<Known>) {
    // The newest of a name comes last and is the one that counts.
    known.sort_by_key(|known| known.record.binding.as_ref().map(|binding| (binding.created_at_ms, binding.generation)));
    for known in known {
        match known.record.binding.clone() {
            Some(binding) => bound(agent, known, binding),
            None => unbound(agent, known),
        }
    }
}

fn unbound(agent: &Arc<Agent>, known: Known) {
    let made = known.record.made;
    match (known.record.stage, known.paused) {
        (Stage::Paused, Some(paused)) => {
            let left = if restock(agent, &made.recipe) { agent.pool.put(paused) } else { Some(paused) };
            if let Some(paused) = left {
                agent.discard(paused);
            }
        }
        _ => {
            stop::kill_now(&known.pidfd);
            agent.reap_remains(made.id, made.cgroups);
        }
    }
}

/// Whether containers of this recipe are still what a start would ask for; if so, it has a shelf afterwards.
fn restock(agent: &Agent, recipe: &Recipe) -> bool {
    let store = &agent.images.store;
    let Ok(Some(image)) = store.resolve(&recipe.image) else { return false };
    if image.lowers != recipe.lowers || recipe.plugins != agent.images.plugins() || recipe.overlay != Overlay::Disk {
        return false;
    }
    let Ok(pin) = store.pin(&image.digest) else { return false };
    agent.pool.shelf(recipe.clone(), image.references.first().unwrap_or(&image.digest), pin);
    true
}

fn bound(agent: &Arc<Agent>, known: Known, binding: Binding) {
    let made = known.record.made;
    let id: Arc<str> = made.id.as_str().into();
    let instance = Arc::new(Instance::new(binding.clone()));
    {
        let mut state = instance.state();
        state.id = id.clone();
        state.source = source_of(&binding.source);
        state.cgroups = made.cgroups.clone();
        state.pidfd = Some(Arc::new(known.pidfd));
        state.pin = agent.images.store.pin(&made.recipe.image).ok();
        state.in_keeper = true;
        state.removal = binding.remove.then_some(Removal { logs: binding.remove_logs });
    }
    lock(&agent.instances).insert(id.clone(), instance.clone());
    let (uid, generation, hash) = (&binding.claim_uid, binding.generation, order::known_hash(binding.spec_hash));
    if let Stage::Ended(end) = known.record.stage {
        lock(&agent.ledger).remember_ended(uid, generation, hash, &binding.alias, instance.clone());
        {
            let mut state = instance.state();
            state.end = Some(end);
            state.started_at_ms = end.started_at_ms;
            state.phase = Phase::Ended;
        }
        agent.reap(instance);
        return;
    }
    let ports = binding.ports.iter().copied();
    let grant = lock(&agent.ledger).adopt(uid, generation, hash, &binding.alias, ports, instance.clone());
    instance.state().ticket = Some(Ticket::new(grant, agent.ledger.clone()));
    if binding.recreate_after_seconds > 0 {
        agent.hub.missed();
    }
    match known.record.stage {
        Stage::Started { at_ms } => {
            running(&instance, at_ms);
            go_on_stopping(agent, &instance);
        }
        _ => {
            agent.tracker.spawn(settle(agent.clone(), instance));
        }
    }
}

fn running(instance: &Instance, at_ms: i64) {
    {
        let mut state = instance.state();
        state.phase = Phase::Running;
        state.seen_started = true;
        state.started_at_ms = at_ms;
    }
    instance.changed();
}

fn go_on_stopping(agent: &Arc<Agent>, instance: &Arc<Instance>) {
    let due = {
        let mut state = instance.state();
        if state.binding.kill_at_ms == 0 {
            // Its agent died before it had begun the stop that it noted.
            state.binding.cut_off = false;
            return;
        }
        let left = match state.binding.kill_at_ms {
            // An agent of an earlier version wrote Unix milliseconds.
            OF_THE_WALL_CLOCK_MS.. => state.grace(),
            at => Duration::from_millis(u64::try_from(at - monotonic_ms()).unwrap_or(0)),
        };
        let due = Instant::now() + left;
        state.phase = Phase::Stopping;
        state.kill_at = Some(due);
        due
    };
    tracing::debug!(instance = %instance.id(), ?due, "going on with its stop");
    agent.tracker.spawn(stop::see_through(agent.clone(), instance.clone()));
}

/// A start that an agent was killed in: either its program runs, then it is adopted, or it never did and is undone.
async fn settle(agent: Arc<Agent>, instance: Arc<Instance>) {
    let verdict = instance.until(|state| match (state.seen_started, state.end.is_some()) {
        (true, over) => Some(Some(over)),
        (false, true) => Some(None),
        (false, false) => None,
    });
    match tokio::time::timeout(SETTLE, verdict).await {
        Ok(Some(over)) => {
            let at_ms = instance.state().started_at_ms;
            running(&instance, at_ms);
            agent.publish(&instance);
            let removal = instance.state().removal.is_some();
            match (over, removal) {
                (true, _) => agent.reap(instance),
                // Asked for while it was not known whether it runs.
                (false, true) => stop::begin(&agent, &instance, Some(Duration::ZERO)),
                (false, false) => go_on_stopping(&agent, &instance),
            }
        }
        _ => undo::undo_adopted(agent, instance).await,
    }
}

/// Removes layers and cgroups that no record speaks of. What was there at the start and still has no owner when all
/// answers to an agent before this one must have come belongs to nobody.
pub(crate) async fn sweep(agent: Arc<Agent>) {
    let before = found(&agent).await;
    if before.is_empty() {
        return;
    }
    tokio::select! {
        () = tokio::time::sleep(SWEEP_AFTER) => {}
        () = agent.shutdown.cancelled() => return,
    }
    let still = found(&agent).await;
    let mut owned: HashSet<String> = lock(&agent.instances).keys().map(|id| id.to_string()).collect();
    owned.extend(agent.pool.ids());
    owned.extend(agent.keeper.in_flight());
    for id in orphans(&before, &still, &owned) {
        let cgroups = agent.config.cgroups.as_ref().map(|tree| tree.sandbox(&id)).unwrap_or_default();
        // A cgroup with a process in it stays for the next agent.
        match agent.clear(&id, cgroups, false).await {
            Ok(()) => tracing::info!(instance = id, "removed what nobody has a record of"),
            Err(error) => tracing::warn!(instance = id, error, "left what nobody has a record of"),
        }
    }
}

fn orphans(before: &HashSet<String>, still: &HashSet<String>, owned: &HashSet<String>) -> Vec<String> {
    before.iter().filter(|id| still.contains(*id) && !owned.contains(*id)).cloned().collect()
}

async fn found(agent: &Agent) -> HashSet<String> {
    let (layers, tree) = (agent.config.paths.layers(), agent.config.cgroups.clone());
    let look = move || {
        let entries = std::fs::read_dir(layers).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let cgroups = tree.map(|tree| tree.list()).unwrap_or_default();
        names.chain(cgroups).filter(|name| crate::is_instance_id(name)).collect()
    };
    tokio::task::spawn_blocking(look).await.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_there_before_and_has_no_owner_is_swept() {
        let set = |ids: &[&str]| ids.iter().map(|id| id.to_string()).collect::<HashSet<_>>();
        let before = set(&["lost", "adopted", "gone"]);
        let still = set(&["lost", "adopted", "new"]);
        assert_eq!(orphans(&before, &still, &set(&["adopted"])), ["lost"]);
    }
}

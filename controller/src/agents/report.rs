//! What an agent's report does to its view, to the registry and to the claims.

use super::{Agent, view};
use crate::backoff;
use crate::claims::{Claim, Entry, Key, Phase};
use crate::core::Core;
use crate::reconcile::{Verdict, judge};
use crate::registry::Holder;
use fsb_proto::agent::{self, InstancePhase, event::Event as Kind};
use std::sync::{Arc, PoisonError};

/// A whole report. The view has been replaced already.
pub(super) fn snapshot(core: &Arc<Core>, agent: &Arc<Agent>) {
    let (pool, facts, instances) = {
        let view = agent.view();
        (view.pool(), view.facts(), view.instances().cloned().collect::<Vec<_>>())
    };
    core.registry.report(&agent.name, &pool, &facts);
    for instance in &instances {
        consider(core, agent, instance);
    }
    core.wake_agent(&agent.name);
}

/// One change.
pub(super) fn event(core: &Arc<Core>, agent: &Arc<Agent>, event: agent::Event) {
    match event.event {
        Some(Kind::Snapshot(whole)) => {
            {
                let mut view = agent.view();
                *view = super::View::new(whole, view.began);
            }
            snapshot(core, agent);
        }
        Some(Kind::Instance(instance)) => {
            let instance = Arc::new(instance);
            agent.view().merge(instance.clone());
            let holder = view::holder(&instance);
            if instance.phase() == InstancePhase::Ended {
                core.registry.vacated(&agent.name, &holder);
            } else {
                core.registry.occupied(&agent.name, &holder, &view::ports(&instance));
            }
            consider(core, agent, &instance);
        }
        Some(Kind::Removed(removed)) => gone(core, agent, removed),
        Some(Kind::Images(images)) => {
            core.registry.set_images(&agent.name, &images.references);
            agent.view().images = images.references;
        }
        Some(Kind::Stock(report)) => {
            let stock = view::stock(report.stock);
            core.registry.set_stock(&agent.name, &stock);
            agent.view().stock = stock;
        }
        Some(Kind::Heartbeat(heartbeat)) => {
            core.registry.heartbeat(&agent.name);
            agent.view().no_room = heartbeat.no_room;
        }
        None => {}
    }
}

fn gone(core: &Arc<Core>, agent: &Arc<Agent>, removed: agent::Removed) {
    let known = agent.view().instance(&removed.instance_id, removed.claim.as_ref()).cloned();
    let holder = known.as_deref().map(view::holder).or_else(|| {
        let claim = removed.claim.as_ref()?;
        Some(Holder { uid: claim.uid.as_str().into(), generation: claim.generation })
    });
    if let Some(holder) = &holder {
        core.registry.vacated(&agent.name, holder);
    }
    let claim = removed.claim.or_else(|| known.as_ref()?.claim.clone());
    let Some(claim) = claim.filter(|claim| !claim.name.is_empty()) else {
        agent.view().remove(&removed.instance_id, None);
        return;
    };
    let key = Key::new(&claim.namespace, &claim.name);
    // An end that no claim has taken over yet stays in the view until it has.
    let unread = known.as_ref().is_some_and(|known| known.phase() == InstancePhase::Ended)
        && core.table.with_uid(&key, &claim.uid, |entry| entry.claim.status.phase.alive()).unwrap_or(false);
    if !unread {
        agent.view().remove(&removed.instance_id, Some(&claim));
        core.table.with_uid(&key, &claim.uid, |entry| {
            if entry.claim.holds(claim.generation) || entry.claim.status.generation == claim.generation {
                entry.gone.push(claim.generation);
            }
            entry.purged |= entry.purging && entry.claim.status.generation == claim.generation;
            entry.not_before = None;
            entry.failures = 0;
        });
    }
    core.wakeups.now(&key);
}

/// Has another look at every instance that goes by this name: the claim that had it is gone.
pub fn rescan(core: &Arc<Core>, key: &Key) {
    for agent in core.agents.list() {
        let named: Vec<_> = {
            let view = agent.view();
            let same = |claim: &agent::Claim| *claim.name == *key.name && *claim.namespace == *key.namespace;
            view.instances().filter(|instance| instance.claim.as_ref().is_some_and(same)).cloned().collect()
        };
        for instance in named {
            consider(core, &agent, &instance);
        }
    }
}

/// What the instance means for the claims.
fn consider(core: &Arc<Core>, agent: &Arc<Agent>, instance: &agent::Instance) {
    let Some(reported) = &instance.claim else { return };
    let key = Key::new(&reported.namespace, &reported.name);
    let existing = core.table.get(&key).map(|(claim, _)| claim);
    // Asked after the table: a claim is entombed before it leaves the table.
    let entombed = core.queue.entombed(&reported.uid);
    let (reference, namespace) = {
        let view = agent.view();
        (view.reference.clone(), view.info.namespace.clone())
    };
    match judge(instance, &reference, &namespace, existing.as_deref(), entombed) {
        Verdict::Ignore => {
            if existing.is_some_and(|claim| claim.status.phase == Phase::Terminating) {
                core.table.with(&key, |entry| entry.contested = true);
            }
        }
        Verdict::Look(key) => {
            if instance.phase() == InstancePhase::Creating && !instance.reason.is_empty() {
                note_progress(core, &key, instance);
            }
            core.wakeups.now(&key);
        }
        Verdict::Adopt(claim) => adopt(core, *claim, agent),
        // One that has no id yet is looked at again when it has one.
        Verdict::Evict { .. } | Verdict::Forget if instance.instance_id.is_empty() => {}
        Verdict::Evict { reason } => evict(core, agent, &instance.instance_id, reason),
        Verdict::Forget => forget(core, agent, &instance.instance_id),
    }
}

/// Says why a start takes its time (PullingImage), while it is under way.
fn note_progress(core: &Arc<Core>, key: &Key, instance: &agent::Instance) {
    let generation = instance.claim.as_ref().map_or(0, |claim| claim.generation);
    core.table.with(key, |entry| {
        let status = &entry.claim.status;
        if status.phase == Phase::Bound && status.generation == generation && status.reason != instance.reason {
            let mut claim = (*entry.claim).clone();
            claim.status.reason = instance.reason.clone();
            claim.status.message = instance.message.clone();
            core.set(entry, claim);
        }
    });
}

fn adopt(core: &Arc<Core>, claim: Claim, agent: &Arc<Agent>) {
    let key = claim.key.clone();
    let adopted = Arc::new(claim);
    let inserted = core.table.insert(&key, Entry::new(adopted.clone(), false, &core.timing.clock), |entry| {
        let status = &entry.claim.status;
        let same = entry.claim.uid == adopted.uid && !entry.busy();
        let newer = adopted.status.generation > status.generation;
        if same && (newer || status.phase == Phase::Pending) {
            let mut claim = (*adopted).clone();
            claim.deletion = entry.claim.deletion.clone();
            core.commit(entry, claim, false);
            return true;
        }
        false
    });
    match inserted {
        Ok(()) => {
            drop(core.queue.put(adopted.clone(), false));
        }
        Err(true) => {}
        Err(false) => {
            // Another claim took the name between the judgement and now, by a report of another agent: judged again.
            if core.table.with(&key, |entry| entry.claim.uid != adopted.uid) == Some(true) {
                rescan(core, &key);
            }
            return core.wakeups.now(&key);
        }
    }
    core.metrics.adopted.inc();
    tracing::warn!(sandbox = %key, instance = adopted.status.instance_id, agent = %agent.name,
        "a running sandbox was adopted whose claim was not written");
    core.wakeups.now(&key);
}

/// Tells the agent to remove an instance, until it is gone or the agent is. A later report starts over.
fn evict(core: &Arc<Core>, agent: &Arc<Agent>, instance_id: &str, reason: &'static str) {
    if !agent.evicting.lock().unwrap_or_else(PoisonError::into_inner).insert(instance_id.to_owned()) {
        return;
    }
    core.metrics.evicting(reason);
    tracing::warn!(instance = instance_id, agent = %agent.name, reason, "an instance without a claim is removed");
    let (core, agent, id) = (core.clone(), agent.clone(), instance_id.to_owned());
    core.clone().tracker.spawn(async move {
        let mut tries = 0;
        while agent.healthy() && agent.view().instance(&id, None).is_some() {
            let request = agent::DeleteRequest {
                instance_id: id.clone(),
                // A copy that must not run beside another one is not given time.
                grace_period_seconds: (reason == "OldGeneration").then_some(0),
                remove_logs: reason == "Removed",
                ..Default::default()
            };
            match agent.client.delete(request).await {
                Ok(true) => {
                    if let Some(instance) = agent.view().remove(&id, None) {
                        core.registry.vacated(&agent.name, &view::holder(&instance));
                    }
                    break;
                }
                Ok(false) => {}
                Err(_) => {
                    core.metrics.agent_call_errors.inc();
                }
            }
            tries += 1;
            let pause = backoff::delay(core.timing.retry_least, core.timing.retry_most, tries);
            tokio::select! {
                () = core.stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        agent.evicting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    });
}

fn forget(core: &Arc<Core>, agent: &Arc<Agent>, instance_id: &str) {
    let (agent, id) = (agent.clone(), instance_id.to_owned());
    core.tracker.spawn(async move {
        // The agent forgets it by itself after a while.
        if agent.client.forget(vec![id.clone()]).await.is_ok() {
            agent.view().remove(&id, None);
        }
    });
}

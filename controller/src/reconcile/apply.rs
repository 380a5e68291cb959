//! Carries out what [`decide`](super::decide) says, one step at a time, for one claim at a time.

use super::decide::{Facts, Standing, Step, Which, decide};
use crate::agents::Agent;
use crate::backoff;
use crate::claims::{AttachedReader, Claim, Entry, Key, Leftover, Phase, Turn};
use crate::core::Core;
use crate::registry::Holder;
use crate::start::{self, Failure};
use fsb_proto::{Refusal, agent};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Steps that one look may take before others get their turn.
const STEPS: usize = 32;
/// How long the removal of a sandbox waits for a reader that takes nothing.
const READER: Duration = Duration::from_secs(10);
/// How soon a call is tried again that found no room among the calls to its agent.
const CROWDED: Duration = Duration::from_millis(50);

/// Looks at claims when they want it, until the controller stops.
pub async fn run(core: Arc<Core>) {
    loop {
        let key = tokio::select! {
            () = core.stop.cancelled() => return,
            key = core.wakeups.next() => key,
        };
        let Some(turn) = core.table.begin(&key) else { continue };
        let core = core.clone();
        core.clone().tracker.spawn(async move { look(&core, &key, turn).await });
    }
}

/// Steps until there is nothing to do for now.
async fn look(core: &Arc<Core>, key: &Key, turn: Turn) {
    let mut left = STEPS;
    while let Some((claim, step)) = next(core, key) {
        if left == 0 {
            core.wakeups.now(key);
            break;
        }
        left -= 1;
        let go_on = match step {
            Step::Wait { until } => {
                if let Some(until) = until {
                    core.wakeups.at(key, until);
                }
                false
            }
            Step::Change(next) => {
                change(core, key, &claim, *next);
                true
            }
            Step::Drop { entomb } => {
                tracing::info!(sandbox = %key, instance = claim.status.instance_id, "the sandbox is gone");
                core.drop_claim(key, &claim.uid, entomb);
                return;
            }
            Step::Start => begin(core, key, &claim).await,
            Step::Remove(which) => remove(core, key, &claim, which).await,
            Step::Forget => forget(core, key, &claim).await,
            Step::Push => push(core, key, &claim).await,
        };
        if !go_on {
            break;
        }
    }
    if turn.end() {
        core.wakeups.now(key);
    }
}

/// The claim and its next step, from all that is known now.
fn next(core: &Arc<Core>, key: &Key) -> Option<(Arc<Claim>, Step)> {
    let known = core.table.with(key, |entry| Known::of(entry))?;
    let claim = known.claim.clone();
    let status = &claim.status;
    let current = status.agent.as_ref().map(|agent| {
        let gone = known.gone.contains(&status.generation);
        core.agents.standing(agent, &claim.uid, status.generation, gone, known.confirmed)
    });
    let leftovers: Vec<Standing> = status
        .leftovers
        .iter()
        .map(|left| {
            let gone = known.gone.contains(&left.generation);
            // That a report does not have it proves nothing: its create may be on the way. The agent is asked.
            core.agents.standing(&left.agent, &claim.uid, left.generation, gone, Some(Instant::now()))
        })
        .collect();
    hold(core, key, &claim, current.as_ref());
    let lost_since = lost_since(core, key, &claim, current.as_ref());
    let removal = removal(&known);
    let pushed = known.pushed.or_else(|| told(core, &claim));
    let facts = Facts {
        claim: &claim,
        durable: known.durable,
        refused: known.refused.as_ref().map(|(since, why)| (*since, why.as_str())),
        current,
        leftovers: &leftovers,
        pushed: pushed.as_ref(),
        confirmed_gone: known.purged,
        lost_since,
        expires: known.expires,
        removal,
        now: Instant::now(),
        wall_ms: core.timing.clock.now_ms(),
        orphan_timeout: core.timing.orphan_timeout,
    };
    let step = decide(&facts);
    if matches!(step, Step::Start | Step::Remove(_) | Step::Push | Step::Forget)
        && let Some(later) = known.not_before.filter(|at| *at > Instant::now())
    {
        core.wakeups.at(key, later);
        // What else is due, a deadline for instance, must not wait for the next try.
        if let Some(expires) = known.expires.filter(|_| claim.status.phase.alive()) {
            core.wakeups.at(key, expires);
        }
        return None;
    }
    Some((claim, step))
}

/// An entry without its lock.
struct Known {
    claim: Arc<Claim>,
    durable: bool,
    refused: Option<(Instant, String)>,
    gone: Vec<i64>,
    purged: bool,
    confirmed: Option<Instant>,
    pushed: Option<crate::claims::Policy>,
    not_before: Option<Instant>,
    expires: Option<Instant>,
    finished: Option<Instant>,
    reader: AttachedReader,
}

impl Known {
    fn of(entry: &Entry) -> Self {
        Self {
            claim: entry.claim.clone(),
            durable: entry.durable,
            refused: entry.refused.as_ref().map(|refused| (refused.since, refused.message.clone())),
            gone: entry.gone.clone(),
            purged: entry.purged,
            confirmed: entry.confirmed,
            pushed: entry.pushed.clone(),
            not_before: entry.not_before,
            expires: entry.expires,
            finished: entry.finished,
            reader: entry.reader,
        }
    }
}

/// When a claim that has ended is removed: when its time is over and its reader, if it has one, has all of the output or
/// has taken nothing for long.
fn removal(known: &Known) -> Option<Instant> {
    let policy = &known.claim.policy;
    let finished = known.finished?;
    let due = finished + Duration::from_secs(policy.ttl_after_finished_seconds?.into());
    if !policy.attached || known.reader.done {
        return Some(due);
    }
    Some(due.max(known.reader.seen.map_or(finished, |seen| seen.max(finished)) + READER))
}

/// Since when the claim's agent is lost or retired, remembered for as long as it is.
fn lost_since(core: &Core, key: &Key, claim: &Arc<Claim>, current: Option<&Standing>) -> Option<Instant> {
    let reported = claim.status.agent.as_ref().is_some_and(|agent| core.agents.get(&agent.name).is_some());
    let note = |entry: &mut Entry| {
        if Arc::ptr_eq(&entry.claim, claim) {
            let before = entry.lost_since;
            entry.lost_since = match current {
                Some(Standing::Unknown) => before,
                Some(Standing::Lost { since }) if reported => Some(*since),
                // Not heard of since this process began: one before it may have seen the loss.
                Some(Standing::Lost { since }) => Some(before.map_or(*since, |before| before.min(*since))),
                Some(Standing::Retired) => before.or_else(|| Some(Instant::now())),
                _ => None,
            };
        }
        entry.lost_since
    };
    core.table.with_uid(key, &claim.uid, note).flatten()
}

/// Takes the slot of a sandbox that was there before this controller.
fn hold(core: &Core, key: &Key, claim: &Claim, current: Option<&Standing>) {
    let (Some(Standing::Present(_)), Some(agent)) = (current, &claim.status.agent) else { return };
    let generation = claim.status.generation;
    if !claim.holds(generation) {
        return;
    }
    let missing = core.table.with_uid(key, &claim.uid, |entry| {
        !entry.reservations.iter().any(|reservation| reservation.generation() == generation)
    });
    if missing == Some(true)
        && let Some(reservation) =
            core.registry.hold(&agent.name, Holder { uid: claim.uid.clone(), generation }, &claim.spec.ports)
    {
        core.table.with_uid(key, &claim.uid, |entry| {
            if entry.claim.holds(generation) {
                entry.reservations.push(reservation);
            }
        });
    }
}

/// The policy in the document that the agent has of a running sandbox.
fn told(core: &Core, claim: &Claim) -> Option<crate::claims::Policy> {
    if claim.status.phase != Phase::Running {
        return None;
    }
    let agent = core.agents.get(&claim.status.agent.as_ref()?.name)?;
    let document = agent.view().of_claim(&claim.uid, claim.status.generation)?.claim_document.clone();
    Some(Claim::from_document(&document).ok()?.policy)
}

/// Makes `next` the claim, unless it changed since it was looked at; then the next step starts from what it is now.
fn change(core: &Arc<Core>, key: &Key, seen: &Arc<Claim>, next: Claim) {
    let (from, to) = (seen.status.phase, next.status.phase);
    let changed = core.table.with_uid(key, &seen.uid, |entry| {
        if !Arc::ptr_eq(&entry.claim, seen) {
            return false;
        }
        entry.failures = 0;
        entry.not_before = None;
        drop(core.commit(entry, next, false));
        true
    });
    if changed == Some(true) && from != to {
        tracing::info!(sandbox = %key, instance = seen.status.instance_id, %from, %to, "the sandbox changes its phase");
    }
}

/// Starts an instance that no client waits for.
async fn begin(core: &Arc<Core>, key: &Key, claim: &Arc<Claim>) -> bool {
    let deadline = Instant::now() + core.timing.create_deadline;
    if claim.abridged {
        let why = "its command, arguments and environment are not known any more".to_owned();
        change(core, key, claim, failed(claim, why, core.timing.clock.now_ms()));
        return true;
    }
    let failure = match start::start(core, key, &claim.uid, deadline).await {
        Ok(claim) => {
            core.table.with_uid(key, &claim.uid, |entry| {
                entry.failures = 0;
                drop(core.queue.put(entry.claim.clone(), false));
            });
            tracing::info!(sandbox = %key, instance = claim.status.instance_id,
                generation = claim.status.generation, "the sandbox runs");
            return true;
        }
        Err(failure) => failure,
    };
    let sentence = failure.to_status().message().to_owned();
    match failure {
        Failure::Cancelled => return true,
        Failure::Refused(..) if failure.is_final() => {
            let Some((now, _)) = core.table.get(key) else { return true };
            change(core, key, &now, failed(&now, sentence, core.timing.clock.now_ms()));
            return true;
        }
        // The agent may have it: the next generation waits until this one is certainly gone.
        Failure::Unknown(_) => {
            core.table.with_uid(key, &claim.uid, |entry| {
                let mut next = (*entry.claim).clone();
                if let Some(agent) = next.status.agent.take() {
                    let generation = next.status.generation;
                    next.status.leftovers.push(Leftover { agent, instance_id: String::new(), generation });
                    next.status.generation += 1;
                    next.status.phase = if next.deletion.is_some() { Phase::Terminating } else { Phase::Pending };
                }
                drop(core.commit(entry, next, false));
            });
        }
        Failure::Refused(..) | Failure::NoPlace(_) => {
            core.table.with_uid(key, &claim.uid, |entry| {
                if entry.claim.status.message != sentence {
                    let mut next = (*entry.claim).clone();
                    next.status.reason = "Unschedulable".into();
                    next.status.message = sentence;
                    drop(core.commit(entry, next, false));
                }
            });
        }
    }
    later(core, key, &claim.uid);
    true
}

fn failed(claim: &Claim, message: String, wall_ms: i64) -> Claim {
    let mut next = claim.clone();
    next.status.phase = Phase::Failed;
    next.status.reason = "StartError".into();
    next.status.message = message;
    next.status.finished_at_ms = wall_ms;
    next.status.released = true;
    next
}

/// Asks the agent to remove an instance.
async fn remove(core: &Arc<Core>, key: &Key, claim: &Arc<Claim>, which: Which) -> bool {
    let (agent, instance_id, generation, with_logs) = match which {
        Which::Current { with_logs } => {
            let Some(agent) = &claim.status.agent else { return false };
            (agent.clone(), claim.status.instance_id.clone(), claim.status.generation, with_logs)
        }
        Which::Leftover(index) => {
            let Some(left) = claim.status.leftovers.get(index) else { return true };
            (left.agent.clone(), left.instance_id.clone(), left.generation, false)
        }
    };
    let Some(agent) = core.agents.get(&agent.name) else { return false };
    let grace = match (&claim.deletion, which) {
        (Some(deletion), _) => deletion.grace_seconds,
        (None, _) => None,
    };
    let mut request = agent::DeleteRequest {
        grace_period_seconds: grace.map(|seconds| seconds as i32),
        remove_logs: with_logs,
        ..Default::default()
    };
    if with_logs {
        request.log_instance_ids =
            [Some(&claim.status.instance_id), claim.status.previous.as_ref().map(|p| &p.instance_id)]
                .into_iter()
                .flatten()
                .filter(|id| !id.is_empty())
                .cloned()
                .collect();
    }
    // By its claim, which also keeps a create of this generation away that is still on its way. An older instance on
    // an agent that knows a newer one goes by its id.
    let by_id = agent::DeleteRequest { instance_id: instance_id.clone(), ..request.clone() };
    request.claim = Some(claim.to_agent(generation));
    let ask = async {
        match agent.client.delete(request).await {
            Err(status) if Refusal::of(&status) == Some(Refusal::Stale) => match instance_id.is_empty() {
                true => Ok(true),
                false => agent.client.delete(by_id).await,
            },
            other => other,
        }
    };
    let is_gone = |entry: &Entry| entry.gone.contains(&generation);
    let was_gone = core.table.with_uid(key, &claim.uid, |entry| is_gone(entry)).unwrap_or(false);
    let Some(answer) = call(core, key, &agent, ask).await else { return false };
    match answer {
        Ok(true) => {
            core.table.with_uid(key, &claim.uid, |entry| {
                entry.gone.push(generation);
                entry.purged |= with_logs && entry.claim.status.generation == generation;
                entry.failures = 0;
            });
            true
        }
        Ok(false) => {
            // The agent works on it and says Removed when it is done, which may be before this answer is read.
            let done = core.table.with_uid(key, &claim.uid, |entry| {
                entry.purging |= with_logs && entry.claim.status.generation == generation;
                let done = !was_gone && is_gone(entry);
                entry.purged |= done && entry.purging;
                done
            });
            if done != Some(true) {
                // Asking again is for when that word is missed.
                later(core, key, &claim.uid);
            }
            true
        }
        Err(status) => {
            tracing::warn!(sandbox = %key, agent = %agent.name, error = status.message(), "a removal failed and is tried again");
            core.metrics.agent_call_errors.inc();
            later(core, key, &claim.uid);
            true
        }
    }
}

/// The end is written down: the agent may forget it.
async fn forget(core: &Arc<Core>, key: &Key, claim: &Arc<Claim>) -> bool {
    let Some(agent) = claim.status.agent.as_ref().and_then(|agent| core.agents.get(&agent.name)) else { return false };
    let id = claim.status.instance_id.clone();
    let Some(answer) = call(core, key, &agent, agent.client.forget(vec![id.clone()])).await else { return false };
    match answer {
        Ok(()) => {
            agent.view().remove(&id, None);
            core.table.with_uid(key, &claim.uid, |entry| entry.failures = 0);
        }
        Err(_) => {
            core.metrics.agent_call_errors.inc();
            later(core, key, &claim.uid);
        }
    }
    true
}

/// Tells the agent the policy that has changed.
async fn push(core: &Arc<Core>, key: &Key, claim: &Arc<Claim>) -> bool {
    let Some(agent) = claim.status.agent.as_ref().and_then(|agent| core.agents.get(&agent.name)) else { return false };
    let request = agent::UpdateRequest {
        claim: Some(claim.to_agent(claim.status.generation)),
        failure_policy: claim.policy.failure.to_wire(),
        recovery_timeout_seconds: claim.policy.recovery_seconds as i32,
        claim_document: claim.to_travel_document(),
    };
    let Some(answer) = call(core, key, &agent, agent.client.update(request)).await else { return false };
    match answer {
        Ok(()) => {
            core.table.with_uid(key, &claim.uid, |entry| {
                entry.pushed = Some(claim.policy.clone());
                entry.failures = 0;
            });
        }
        Err(status) => {
            tracing::warn!(sandbox = %key, agent = %agent.name, error = status.message(), "a policy could not be sent and is tried again");
            core.metrics.agent_call_errors.inc();
            later(core, key, &claim.uid);
        }
    }
    true
}

/// A call that nobody waits for. `None` where too many are under way to this agent: looked at again soon.
async fn call<T>(core: &Core, key: &Key, agent: &Agent, call: impl Future<Output = T>) -> Option<T> {
    match agent.background.try_acquire() {
        Ok(_permit) => Some(call.await),
        Err(_) => {
            core.wakeups.at(key, Instant::now() + CROWDED);
            None
        }
    }
}

/// No other try before a pause that grows with every failure.
fn later(core: &Core, key: &Key, uid: &Arc<str>) {
    core.table.with_uid(key, uid, |entry| {
        entry.failures += 1;
        let pause = backoff::delay(core.timing.retry_least, core.timing.retry_most, entry.failures);
        entry.not_before = Some(Instant::now() + pause);
    });
}

//! What happens to a claim next: data in, one step out. No clock, no network, no lock.
//!
//! The caller carries the step out and asks again, until the answer is to wait. A step that changes the claim is only
//! that; a step that calls an agent changes nothing by itself, what it brings to light comes back as facts.

use crate::claims::{AgentRef, Claim, Deletion, Leftover, Phase, Policy, Previous};
use fsb_proto::domain::FailurePolicy;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is known of an agent and of one instance on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Out of reach, but not for long enough to be lost; or not heard of since the controller's start.
    Unknown,
    /// Lost.
    Lost {
        /// When it was declared lost.
        since: Instant,
    },
    /// No agent of this name belongs to this controller any more.
    Retired,
    /// Another incarnation answers under its name: nothing of before is left.
    Restarted,
    /// In reach; nothing certain is known of the instance yet.
    Unreported,
    /// In reach; the instance is not there.
    Missing,
    /// In reach, and this is the instance.
    Present(Observed),
}

impl Standing {
    /// Nothing of the instance can be left.
    fn proven_gone(&self) -> bool {
        matches!(self, Standing::Restarted | Standing::Missing)
    }

    fn in_reach(&self) -> bool {
        matches!(self, Standing::Unreported | Standing::Missing | Standing::Present(_))
    }
}

/// Where an instance is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It is being made.
    Creating,
    /// It runs, or somebody has asked it to stop.
    Running,
    /// It is over.
    Ended,
}

/// An agent's report of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Its id.
    pub instance_id: String,
    /// Where it is in its life.
    pub life: Life,
    /// 0-255, or 128 + signal.
    pub exit_code: Option<i32>,
    /// A word.
    pub reason: String,
    /// A sentence.
    pub message: String,
    /// Unix milliseconds.
    pub started_at_ms: i64,
    /// Unix milliseconds.
    pub finished_at_ms: i64,
}

/// All that the decision is made from.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// The claim.
    pub claim: &'a Claim,
    /// The store has the claim in exactly this state.
    pub durable: bool,
    /// The store will never take it: since when, and its words.
    pub refused: Option<(Instant, &'a str)>,
    /// The claim's agent and current instance; `None` where no agent is assigned.
    pub current: Option<Standing>,
    /// The same for each leftover, in order.
    pub leftovers: &'a [Standing],
    /// The policy that the agent was told, where it was told one.
    pub pushed: Option<&'a Policy>,
    /// An agent has said that nothing of the current instance is left, logs included.
    pub confirmed_gone: bool,
    /// Since when the claim's agent is lost or retired, if it is.
    pub lost_since: Option<Instant>,
    /// When the claim expires.
    pub expires: Option<Instant>,
    /// When a claim that has ended is removed, if ever.
    pub removal: Option<Instant>,
    /// All that waits, waits by this.
    pub now: Instant,
    /// The wall clock, Unix milliseconds: it is written down, and decides nothing.
    pub wall_ms: i64,
    /// How long a refused claim's sandbox may run.
    pub orphan_timeout: Duration,
}

/// Which instance an agent is asked to remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The current one.
    Current {
        /// Its logs and those of the one before go too.
        with_logs: bool,
    },
    /// The leftover at this place.
    Leftover(usize),
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing until something happens, or until this time.
    Wait {
        /// See above.
        until: Option<Instant>,
    },
    /// This is the claim now.
    Change(Box<Claim>),
    /// Choose an agent and start an instance.
    Start,
    /// Ask an agent to remove an instance, again and again until it says that it is gone.
    Remove(Which),
    /// Tell the agent that it may forget the ended instance.
    Forget,
    /// Tell the agent the policy.
    Push,
    /// The claim itself goes. `entomb`: an instance may be left out of reach.
    Drop {
        /// See above.
        entomb: bool,
    },
}

/// The decision.
pub fn decide(facts: &Facts<'_>) -> Step {
    let claim = facts.claim;
    if claim.deletion.is_some() {
        return delete(facts);
    }
    if let Some((since, why)) = facts.refused {
        let until = since + facts.orphan_timeout;
        if facts.now >= until {
            return Step::Change(Box::new(refused(claim, why, facts.wall_ms)));
        }
        return earliest(live(facts), until);
    }
    // A reset that was asked for before goes first, where it is carried out.
    let is_reset = claim.reset_due() && claim.status.phase != Phase::Expired;
    if let Some(at) = facts.removal.filter(|_| !is_reset) {
        if facts.now >= at {
            let deletion = Deletion { requested_at_ms: facts.wall_ms, grace_seconds: None };
            return change(claim, |claim| claim.deletion = Some(deletion));
        }
        return earliest(if claim.status.phase == Phase::Expired { expired(facts) } else { live(facts) }, at);
    }
    if claim.status.phase == Phase::Expired {
        return expired(facts);
    }
    match facts.expires {
        Some(at) if claim.status.phase.alive() && facts.now >= at => Step::Change(Box::new(expire(claim))),
        Some(at) if claim.status.phase.alive() => earliest(live(facts), at),
        _ => live(facts),
    }
}

/// A wait ends no later than `end`.
fn earliest(step: Step, end: Instant) -> Step {
    match step {
        Step::Wait { until } => Step::Wait { until: Some(until.map_or(end, |at| at.min(end))) },
        other => other,
    }
}

fn change(claim: &Claim, how: impl FnOnce(&mut Claim)) -> Step {
    let mut claim = claim.clone();
    how(&mut claim);
    Step::Change(Box::new(claim))
}

const WAIT: Step = Step::Wait { until: None };

/// Rule 1: the agent first; only a confirmed removal, or an agent that is proven dead, ends the claim.
fn delete(facts: &Facts<'_>) -> Step {
    let claim = facts.claim;
    if claim.status.phase != Phase::Terminating {
        return change(claim, |claim| claim.status.phase = Phase::Terminating);
    }
    if let Some(step) = tidy_leftovers(facts) {
        return step;
    }
    if facts.leftovers.contains(&Standing::Unknown) {
        return WAIT;
    }
    let entomb = !claim.status.leftovers.is_empty();
    match &facts.current {
        None | Some(Standing::Restarted) => Step::Drop { entomb },
        Some(_) if facts.confirmed_gone => Step::Drop { entomb },
        Some(Standing::Retired) => Step::Drop { entomb: true },
        Some(Standing::Lost { .. }) if claim.status.released => Step::Drop { entomb },
        Some(Standing::Unknown | Standing::Lost { .. }) => WAIT,
        // Also where the instance is known to be gone: its logs are not.
        Some(_) => Step::Remove(Which::Current { with_logs: true }),
    }
}

/// Rule 3: the container goes, the claim stays.
fn expired(facts: &Facts<'_>) -> Step {
    let claim = facts.claim;
    if let Some(step) = tidy_leftovers(facts) {
        return step;
    }
    if claim.status.released {
        return match &facts.current {
            Some(Standing::Present(seen)) if seen.life == Life::Ended && facts.durable => Step::Forget,
            _ => WAIT,
        };
    }
    match &facts.current {
        None => WAIT,
        Some(standing) if standing.proven_gone() || facts.confirmed_gone => change(claim, |claim| {
            claim.status.released = true;
            claim.status.finished_at_ms = facts.wall_ms;
        }),
        Some(Standing::Present(seen)) if seen.life == Life::Ended => change(claim, |claim| {
            claim.status.released = true;
            claim.status.exit_code = seen.exit_code;
            claim.status.finished_at_ms = seen.finished_at_ms;
        }),
        Some(standing) if standing.in_reach() => Step::Remove(Which::Current { with_logs: false }),
        Some(_) => WAIT,
    }
}

fn expire(claim: &Claim) -> Claim {
    let mut claim = claim.clone();
    claim.status.phase = Phase::Expired;
    claim.status.reason = "Expired".into();
    claim.status.message = "its expire time has passed".into();
    claim
}

fn refused(claim: &Claim, why: &str, wall_ms: i64) -> Claim {
    let mut claim = claim.clone();
    claim.status.reason = "ClaimRefused".into();
    claim.status.message = format!("the claim could not be written: {why}");
    claim.deletion = Some(Deletion { requested_at_ms: wall_ms, grace_seconds: None });
    claim
}

/// Phases Pending to Lost.
fn live(facts: &Facts<'_>) -> Step {
    if let Some(step) = tidy_leftovers(facts) {
        return step;
    }
    let claim = facts.claim;
    let between = claim.status.phase == Phase::Bound && claim.status.agent_lost_at_ms.is_none();
    if claim.reset_due() && !between {
        return Step::Change(Box::new(reset(claim, facts.current.as_ref())));
    }
    match claim.status.phase {
        // An older instance whose agent may still be asked goes first.
        Phase::Pending if facts.leftovers.iter().any(|at| !matches!(at, Standing::Lost { .. } | Standing::Retired)) => {
            WAIT
        }
        Phase::Pending => Step::Start,
        Phase::Bound => bound(facts),
        Phase::Running => running(facts),
        Phase::Lost => lost(facts),
        Phase::Succeeded | Phase::Failed => match &facts.current {
            Some(Standing::Present(seen)) if seen.life == Life::Ended && facts.durable => Step::Forget,
            _ => WAIT,
        },
        Phase::Expired | Phase::Terminating => WAIT,
    }
}

/// Older instances: asked to go where their agent can be asked, forgotten where they are proven gone.
fn tidy_leftovers(facts: &Facts<'_>) -> Option<Step> {
    for (index, standing) in facts.leftovers.iter().enumerate() {
        if standing.proven_gone() {
            return Some(change(facts.claim, |claim| {
                claim.status.leftovers.remove(index);
            }));
        }
        if standing.in_reach() {
            return Some(Step::Remove(Which::Leftover(index)));
        }
    }
    None
}

/// Rule 4: the old instance becomes a leftover, the next generation waits for an agent.
fn reset(claim: &Claim, current: Option<&Standing>) -> Claim {
    let mut next = claim.clone();
    next.status.accepted_reset_revision = next.reset_revision.clone();
    if claim.status.phase == Phase::Pending {
        return next;
    }
    let certainly_gone = claim.status.released || current.is_some_and(Standing::proven_gone);
    begin_next_generation(&mut next, !certainly_gone);
    next.status.reason = "Reset".into();
    next.status.message = "a reset was asked for".into();
    next
}

/// Takes the claim off its agent and back to Pending. `leftover`: the old instance may still be there.
fn begin_next_generation(claim: &mut Claim, leftover: bool) {
    let status = &mut claim.status;
    if let Some(agent) = status.agent.take() {
        let instance_id = std::mem::take(&mut status.instance_id);
        if !instance_id.is_empty() {
            status.previous = Some(Previous { agent: agent.clone(), instance_id: instance_id.clone() });
        }
        if leftover {
            status.leftovers.push(Leftover { agent, instance_id, generation: status.generation });
        }
    }
    status.generation += 1;
    status.phase = Phase::Pending;
    status.released = false;
    status.exit_code = None;
    status.started_at_ms = 0;
    status.finished_at_ms = 0;
    status.agent_lost_at_ms = None;
}

/// Chosen and asked, and nobody waits for the answer any more: the controller was started anew, or the call broke.
fn bound(facts: &Facts<'_>) -> Step {
    let claim = facts.claim;
    match &facts.current {
        None => change(claim, |claim| claim.status.phase = Phase::Pending),
        Some(Standing::Present(seen)) if seen.life == Life::Creating => match seen.reason == claim.status.reason {
            true => WAIT,
            false => change(claim, |claim| claim.status.reason = seen.reason.clone()),
        },
        Some(Standing::Present(seen)) => change(claim, |claim| started(claim, seen)),
        Some(standing) if standing.proven_gone() => change(claim, |claim| begin_next_generation(claim, false)),
        Some(Standing::Lost { .. } | Standing::Retired) => recover(facts),
        Some(_) => WAIT,
    }
}

fn started(claim: &mut Claim, seen: &Observed) {
    let status = &mut claim.status;
    status.phase = Phase::Running;
    status.instance_id = seen.instance_id.clone();
    status.started_at_ms = seen.started_at_ms;
    status.reason = String::new();
    status.message = String::new();
    status.agent_lost_at_ms = None;
}

fn running(facts: &Facts<'_>) -> Step {
    let claim = facts.claim;
    match &facts.current {
        // A claim that runs has an agent; one that lost it in a damaged document starts anew.
        None => change(claim, |claim| begin_next_generation(claim, false)),
        Some(Standing::Present(seen)) if seen.life == Life::Ended => match stopped_by_its_agent(facts, seen) {
            true => change(claim, |claim| {
                begin_next_generation(claim, true);
                claim.status.reason = "AgentLost".into();
                claim.status.message = "its agent was cut off and had stopped it".into();
            }),
            false => change(claim, |claim| ended(claim, seen)),
        },
        Some(Standing::Present(seen)) => {
            if claim.status.agent_lost_at_ms.is_some() || claim.status.instance_id != seen.instance_id {
                return change(claim, |claim| started(claim, seen));
            }
            if facts.pushed.is_some_and(|pushed| !same_to_agent(pushed, &claim.policy)) {
                return Step::Push;
            }
            WAIT
        }
        Some(Standing::Restarted | Standing::Missing) => change(claim, restarted),
        Some(Standing::Lost { .. } | Standing::Retired) => recover(facts),
        Some(Standing::Unknown | Standing::Unreported) => WAIT,
    }
}

/// What an agent has to know of a policy.
fn same_to_agent(a: &Policy, b: &Policy) -> bool {
    (a.failure, a.recovery_seconds) == (b.failure, b.recovery_seconds)
}

/// An agent that is cut off stops its AutoRecreate sandboxes when their recovery timeout is over. That is no end of
/// the sandbox, whatever its process makes of the signal: it goes on elsewhere. The agent's word is what counts: to
/// guess it from times would compare two machines' clocks.
fn stopped_by_its_agent(facts: &Facts<'_>, seen: &Observed) -> bool {
    facts.claim.policy.failure == FailurePolicy::AutoRecreate && seen.reason == "AgentLost"
}

fn ended(claim: &mut Claim, seen: &Observed) {
    let status = &mut claim.status;
    status.phase = if seen.exit_code == Some(0) && matches!(&*seen.reason, "" | "Exited") {
        Phase::Succeeded
    } else {
        Phase::Failed
    };
    status.instance_id = seen.instance_id.clone();
    status.exit_code = seen.exit_code;
    status.reason = if seen.reason.is_empty() { "Exited".into() } else { seen.reason.clone() };
    status.message = seen.message.clone();
    status.started_at_ms = if seen.started_at_ms != 0 { seen.started_at_ms } else { status.started_at_ms };
    status.finished_at_ms = seen.finished_at_ms;
    status.agent_lost_at_ms = None;
    status.released = true;
}

/// Rule 5: the agent is back without the instance.
fn restarted(claim: &mut Claim) {
    let message = "its agent came back without it";
    match claim.policy.failure {
        FailurePolicy::Manual => {
            claim.status.phase = Phase::Lost;
            claim.status.released = true;
            claim.status.agent_lost_at_ms = None;
        }
        FailurePolicy::AutoRecreate => begin_next_generation(claim, false),
    }
    claim.status.reason = "AgentRestarted".into();
    claim.status.message = message.into();
}

/// Rule 5: the agent is lost.
fn recover(facts: &Facts<'_>) -> Step {
    let claim = facts.claim;
    let since = facts.lost_since.unwrap_or(facts.now);
    if claim.status.agent_lost_at_ms.is_none() {
        return change(claim, |claim| {
            let ago = facts.now.saturating_duration_since(since).as_millis() as i64;
            claim.status.agent_lost_at_ms = Some(facts.wall_ms.saturating_sub(ago));
            claim.status.reason = "AgentLost".into();
            claim.status.message = lost_message(claim.status.agent.as_ref());
            if claim.policy.failure == FailurePolicy::Manual && claim.status.phase == Phase::Running {
                claim.status.phase = Phase::Lost;
            }
        });
    }
    if claim.policy.failure == FailurePolicy::Manual {
        return match claim.status.phase {
            // The policy was changed while it waited.
            Phase::Running => change(claim, |claim| claim.status.phase = Phase::Lost),
            _ => WAIT,
        };
    }
    let until = since + Duration::from_secs(claim.policy.recovery_seconds.into());
    if facts.now < until {
        return Step::Wait { until: Some(until) };
    }
    change(claim, |claim| {
        begin_next_generation(claim, true);
        claim.status.reason = "AgentLost".into();
        claim.status.message = "its agent did not come back in time".into();
    })
}

fn lost_message(agent: Option<&Arc<AgentRef>>) -> String {
    format!("agent {} is out of reach", agent.map_or("", |agent| &*agent.name))
}

/// Policy Manual: it runs again when its agent is back with it; nothing else happens by itself.
fn lost(facts: &Facts<'_>) -> Step {
    let claim = facts.claim;
    match &facts.current {
        Some(Standing::Present(seen)) if seen.life != Life::Creating && !claim.status.released => {
            change(claim, |claim| started(claim, seen))
        }
        Some(Standing::Restarted | Standing::Missing) if !claim.status.released => change(claim, |claim| {
            claim.status.released = true;
            claim.status.agent_lost_at_ms = None;
            claim.status.reason = "AgentRestarted".into();
            claim.status.message = "its agent came back without it".into();
        }),
        _ => WAIT,
    }
}

#[cfg(test)]
mod tests;

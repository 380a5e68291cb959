//! What an agent's report of an instance means for the claims: known, new, too old, or somebody else's.

use super::decide::{Life, Observed};
use crate::claims::{AgentRef, Claim, Key, Phase};
use fsb_proto::agent;
use std::sync::Arc;

/// What to do about a reported instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is no claim's, or it is too early to say.
    Ignore,
    /// It belongs to a claim that is known: have a look at that one.
    Look(Key),
    /// A claim is started that nobody wrote down, or in a later state than was written down: this is its state.
    Adopt(Box<Claim>),
    /// It must not run: tell the agent to remove it.
    Evict {
        /// A word: Removed, OldGeneration, DuplicateName.
        reason: &'static str,
    },
    /// It is over, and of no interest to any claim: the agent may forget it.
    Forget,
}

/// The report of an instance as facts.
pub fn observed(instance: &agent::Instance) -> Observed {
    Observed {
        instance_id: instance.instance_id.clone(),
        life: match instance.phase() {
            agent::InstancePhase::Ended => Life::Ended,
            agent::InstancePhase::Running | agent::InstancePhase::Stopping => Life::Running,
            agent::InstancePhase::Creating | agent::InstancePhase::PhaseUnknown => Life::Creating,
        },
        exit_code: instance.exit_code,
        reason: instance.reason.clone(),
        message: instance.message.clone(),
        started_at_ms: instance.started_at_ms,
        finished_at_ms: instance.finished_at_ms,
    }
}

/// Judges the report `instance` of the agent `agent`, which stands in `namespace`. `existing`: the claim that has the
/// name now. `entombed`: the claim of this UID was removed.
pub fn judge(
    instance: &agent::Instance,
    agent: &Arc<AgentRef>,
    namespace: &str,
    existing: Option<&Claim>,
    entombed: bool,
) -> Verdict {
    let Some(reported) = &instance.claim else { return Verdict::Ignore };
    let seen = observed(instance);
    // Made over the agent's own interface, by somebody who keeps no claims with us.
    if reported.uid.is_empty() || reported.name.is_empty() {
        return Verdict::Ignore;
    }
    if let Some(claim) = existing.filter(|claim| *claim.uid == *reported.uid) {
        return known(claim, reported.generation, instance, agent, seen);
    }
    if entombed {
        return if seen.life == Life::Ended { Verdict::Forget } else { Verdict::Evict { reason: "Removed" } };
    }
    let Some(claim) = document(instance, reported) else { return Verdict::Ignore };
    // A sandbox is never anybody's whose namespace is not the agent's.
    if *claim.key.namespace != *namespace || seen.life == Life::Creating {
        return Verdict::Ignore;
    }
    match existing {
        None => Verdict::Adopt(Box::new(adopted(claim, agent, seen))),
        // The name is about to be free; then this one is looked at again.
        Some(existing) if existing.status.phase == Phase::Terminating => Verdict::Ignore,
        Some(_) if seen.life == Life::Ended => Verdict::Forget,
        Some(_) => Verdict::Evict { reason: "DuplicateName" },
    }
}

fn known(claim: &Claim, generation: i64, instance: &agent::Instance, agent: &Arc<AgentRef>, seen: Observed) -> Verdict {
    let left_over =
        claim.status.leftovers.iter().any(|left| left.generation == generation && left.agent.name == agent.name);
    // Written before it was started (strong), and the controller ended between the two.
    if generation == claim.status.generation && claim.status.phase == Phase::Pending && seen.life != Life::Creating {
        let mut started = claim.clone();
        if claim.deletion.is_none() {
            started = adopted(started, agent, seen);
            return Verdict::Adopt(Box::new(started));
        }
    }
    if generation == claim.status.generation || left_over {
        // Two agents with the same generation: the one that the claim names is right.
        let elsewhere = claim.status.agent.as_ref().is_some_and(|named| named.name != agent.name) && !left_over;
        return match (elsewhere, seen.life) {
            (true, Life::Ended) => Verdict::Forget,
            (true, _) => Verdict::Evict { reason: "OldGeneration" },
            (false, _) => Verdict::Look(claim.key.clone()),
        };
    }
    if generation < claim.status.generation {
        return match seen.life {
            Life::Ended => Verdict::Forget,
            _ => Verdict::Evict { reason: "OldGeneration" },
        };
    }
    // A controller before this one started it and could not write that down.
    let newer = instance.claim.as_ref().and_then(|reported| document(instance, reported));
    match newer {
        Some(mut newer) if seen.life != Life::Creating && claim.deletion.is_none() => {
            if newer.abridged {
                newer.spec = claim.spec.clone();
                newer.abridged = claim.abridged;
            }
            Verdict::Adopt(Box::new(adopted(newer, agent, seen)))
        }
        Some(_) | None if claim.deletion.is_some() => Verdict::Evict { reason: "Removed" },
        _ => Verdict::Ignore,
    }
}

/// The claim that travelled with the instance, if it is the one that the agent names.
fn document(instance: &agent::Instance, reported: &agent::Claim) -> Option<Claim> {
    let claim = Claim::from_document(&instance.claim_document).ok()?;
    (*claim.uid == *reported.uid && *claim.key.name == *reported.name && *claim.key.namespace == *reported.namespace)
        .then_some(claim)
}

/// The claim as it is once its instance was seen. It runs: if it is over, the next look says so.
fn adopted(mut claim: Claim, agent: &Arc<AgentRef>, seen: Observed) -> Claim {
    claim.status.phase = Phase::Running;
    claim.status.agent = Some(agent.clone());
    claim.status.instance_id = seen.instance_id;
    claim.status.started_at_ms = seen.started_at_ms;
    claim.status.reason = String::new();
    claim.status.message = String::new();
    claim.status.released = false;
    claim.status.agent_lost_at_ms = None;
    claim
}

#[cfg(test)]
mod tests;

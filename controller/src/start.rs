//! Starting an instance of a claim: choose an agent, ask it, and on a refusal that left nothing ask the next.

use crate::agents::Agent;
use crate::claims::{Claim, Key, Phase};
use crate::core::Core;
use crate::registry::{Holder, NoPlace, Reservation, Wanted};
use fsb_proto::{Refusal, agent};
use std::sync::Arc;
use std::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

/// The most agents that one start asks.
const CANDIDATES: usize = 8;

/// Why an instance was not started.
#[derive(Debug)]
pub enum Failure {
    /// No agent could be chosen. Nothing is left.
    NoPlace(NoPlace),
    /// An agent refused. Nothing is left.
    Refused(Refusal, Status),
    /// The call broke, or its time was over: whether something was started is not known. The claim still names the
    /// agent.
    Unknown(Status),
    /// Somebody asked for the claim's end meanwhile. As unknown.
    Cancelled,
}

/// Starts the current generation of the claim, which the caller has the turn of. On success the claim is Running.
pub async fn start(core: &Core, key: &Key, uid: &Arc<str>, deadline: Instant) -> Result<Arc<Claim>, Failure> {
    let (mut claim, cancel) = core
        .table
        .with_uid(key, uid, |entry| {
            let cancel = entry.cancel.get_or_insert_with(CancellationToken::new).clone();
            (entry.claim.clone(), cancel)
        })
        .ok_or(Failure::Cancelled)?;
    let pool = claim.pool_key();
    let holder = Holder { uid: uid.clone(), generation: claim.status.generation };
    let mut refused: Vec<Arc<str>> = Vec::new();
    let mut last = None;
    loop {
        let wanted = Wanted { image: &claim.spec.image, ports: &claim.spec.ports, holder: &holder, except: &refused };
        let reservation = match core.registry.place(&pool, &wanted) {
            Ok(reservation) if refused.len() < CANDIDATES => reservation,
            Err(NoPlace::NoSuchPool { .. }) if core.registry.pools().is_empty() => {
                return Err(Failure::NoPlace(NoPlace::NoHealthyAgent));
            }
            // The agent's own words say more than the registry's.
            Ok(_) => return Err(last.unwrap_or(Failure::NoPlace(NoPlace::NoHealthyAgent))),
            Err(no_place) => return Err(last.unwrap_or(Failure::NoPlace(no_place))),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::Unknown(Status::deadline_exceeded("no time was left to ask an agent")));
        }
        core.metrics.placed(reservation.class());
        // Gone since it was chosen: the next choice does without it.
        let Some(name) = reservation.agent() else { continue };
        let Some(agent) = core.agents.get(&name) else {
            refused.push(name);
            continue;
        };
        claim = bind(core, key, uid, &agent, reservation).ok_or(Failure::Cancelled)?;
        let request = create_request(&claim);
        let answer = tokio::select! {
            answer = agent.client.create(request, left) => answer,
            () = cancel.cancelled() => return Err(Failure::Cancelled),
        };
        match answer {
            Ok(answer) => return confirm(core, key, uid, answer).ok_or(Failure::Cancelled),
            Err(status) => {
                let Some(refusal) = Refusal::of(&status) else { return Err(Failure::Unknown(status)) };
                unbind(core, key, uid);
                if !refusal.elsewhere() {
                    return Err(Failure::Refused(refusal, status));
                }
                if refusal == Refusal::Full {
                    core.registry.refused_full(&agent.name);
                }
                core.metrics.replacements.inc();
                refused.push(agent.name.clone());
                last = Some(Failure::Refused(refusal, status));
            }
        }
    }
}

/// The claim is this agent's from here on; its report of the instance finds the claim.
fn bind(core: &Core, key: &Key, uid: &Arc<str>, agent: &Agent, reservation: Reservation) -> Option<Arc<Claim>> {
    let reference = agent.reference();
    core.table
        .with_uid(key, uid, |entry| {
            if entry.claim.deletion.is_some() {
                return None;
            }
            let mut claim = (*entry.claim).clone();
            claim.status.phase = Phase::Bound;
            claim.status.agent = Some(reference);
            entry.reservations.push(reservation);
            core.set(entry, claim);
            Some(entry.claim.clone())
        })
        .flatten()
}

/// The agent refused: the claim is nobody's again, slot and ports are free.
fn unbind(core: &Core, key: &Key, uid: &Arc<str>) {
    core.table.with_uid(key, uid, |entry| {
        let mut claim = (*entry.claim).clone();
        if claim.deletion.is_none() {
            claim.status.phase = Phase::Pending;
        }
        claim.status.agent = None;
        claim.status.reason = String::new();
        claim.status.message = String::new();
        core.set(entry, claim);
    });
}

/// The agent says that it runs.
fn confirm(core: &Core, key: &Key, uid: &Arc<str>, answer: agent::CreateResponse) -> Option<Arc<Claim>> {
    core.table
        .with_uid(key, uid, |entry| {
            let mut claim = (*entry.claim).clone();
            claim.status.instance_id = answer.instance_id;
            claim.status.started_at_ms = answer.started_at_ms;
            entry.confirmed = Some(Instant::now());
            let deleted = claim.deletion.is_some();
            if !deleted {
                claim.status.phase = Phase::Running;
                claim.status.reason = String::new();
                claim.status.message = String::new();
            }
            let policy = claim.policy.clone();
            core.set(entry, claim);
            entry.pushed = Some(policy);
            (!deleted).then(|| entry.claim.clone())
        })
        .flatten()
}

fn create_request(claim: &Claim) -> agent::CreateRequest {
    let (spec, policy) = (&claim.spec, &claim.policy);
    agent::CreateRequest {
        claim: Some(claim.to_agent(claim.status.generation)),
        image: spec.image.clone(),
        command: spec.command.clone(),
        args: spec.args.clone(),
        envs: spec.envs.clone(),
        working_dir: spec.working_dir.clone(),
        exposed_ports: spec.ports.iter().map(|port| i32::from(*port)).collect(),
        resources: Some(spec.resources.to_wire()),
        user: spec.user.clone(),
        pull_policy: policy.pull.to_wire(),
        grace_period_seconds: Some(policy.grace_seconds as i32),
        failure_policy: policy.failure.to_wire(),
        recovery_timeout_seconds: policy.recovery_seconds as i32,
        claim_document: claim.to_travel_document(),
        alias: String::new(),
        request_id: claim.request_id.clone(),
        attached: policy.attached,
    }
}

impl Failure {
    /// Nothing of the start is left anywhere.
    pub fn left_nothing(&self) -> bool {
        matches!(self, Failure::NoPlace(_) | Failure::Refused(..))
    }

    /// Another try would end the same way.
    pub fn is_final(&self) -> bool {
        matches!(self, Failure::Refused(refusal, _) if !refusal.elsewhere())
    }

    /// What a client is told.
    pub fn to_status(&self) -> Status {
        match self {
            Failure::NoPlace(no_place) => no_place_status(no_place),
            Failure::Refused(_, status) => Status::new(status.code(), status.message()),
            Failure::Unknown(status) => match status.code() {
                Code::DeadlineExceeded | Code::Cancelled => Status::deadline_exceeded(
                    "the sandbox did not start in time; what may have been started is removed; hint: give the call \
                     more time, or pull the image first",
                ),
                Code::Unavailable | Code::Unknown => Status::unavailable(format!(
                    "the agent went away during the start ({}); what may have been started is removed; hint: try again",
                    status.message()
                )),
                code => Status::new(code, status.message()),
            },
            Failure::Cancelled => Status::aborted("the sandbox was deleted while it was being started"),
        }
    }
}

fn no_place_status(no_place: &NoPlace) -> Status {
    let sentence = no_place.to_string();
    match no_place {
        NoPlace::NoSuchPool { .. } => Status::not_found(format!("{sentence}; hint: choose one with --pool")),
        NoPlace::NoHealthyAgent => {
            Status::unavailable(format!("{sentence}; hint: see `fsb-ctl local status`, and try again"))
        }
        NoPlace::AllCordoned { .. } => Status::unavailable(sentence),
        NoPlace::Full { .. } => {
            Status::resource_exhausted(format!("{sentence}; hint: delete a sandbox, or add an agent"))
        }
        NoPlace::PortsTaken { .. } => {
            Status::failed_precondition(format!("{sentence}; hint: choose another port, or delete what uses it"))
        }
    }
}

//! CreateSandbox: one call in, one decision, one call out, the answer; everything else comes after it.

use super::retry;
use crate::claims::{Claim, Deletion, Entry, Key, Outcome, Phase, Policy, new_uid};
use crate::config::Consistency;
use crate::core::Core;
use crate::names;
use crate::start::{self, Failure};
use fsb_proto::bounds::{Bounded, MAX_DOCUMENT_BYTES};
use fsb_proto::domain::{
    DEFAULT_GRACE_SECONDS, DEFAULT_RECOVERY_SECONDS, FailurePolicy, PullPolicy, validate_dns_name,
};
use fsb_proto::{Invalid, SandboxSpec, fastpath};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::oneshot;
use tonic::Status;

/// Names tried before a generated one is given up.
const ATTEMPTS: u32 = 16;

/// The last second of the year 9999, Unix: RFC 3339 writes no later time.
const LAST_SECOND: i64 = 253_402_300_799;

/// A create that is known to be right.
struct Wanted {
    namespace: String,
    /// Empty = generated.
    name: String,
    request_id: String,
    spec: Arc<SandboxSpec>,
    policy: Policy,
    /// When it expires: by the wall clock as it stood when the request came.
    expires: Option<Instant>,
    labels: BTreeMap<String, String>,
}

/// What the caller is told.
type Answer = Result<Arc<Claim>, Status>;

/// Who has the name.
enum Taken {
    /// The same, being created: its end is ours too.
    Joined(oneshot::Receiver<Answer>),
    /// The same, alive.
    Same(Arc<Claim>),
    /// Somebody else's generated name.
    TryAnother,
    Refused(Status),
}

/// Creates a sandbox and answers through `answer`. Runs to its end whether the client still waits or not.
pub async fn run(
    core: Arc<Core>,
    namespace: String,
    request: fastpath::CreateRequest,
    deadline: Instant,
    answer: oneshot::Sender<Answer>,
) {
    let began = Instant::now();
    let result = create(&core, namespace, request, deadline, answer).await;
    core.metrics.created(result, began.elapsed().as_secs_f64());
}

/// The code of the answer, once everything that follows the answer is done too.
async fn create(
    core: &Arc<Core>,
    namespace: String,
    request: fastpath::CreateRequest,
    deadline: Instant,
    answer: oneshot::Sender<Answer>,
) -> tonic::Code {
    let reply = |answer: oneshot::Sender<Answer>, result: Answer| {
        let code = result.as_ref().map_or_else(Status::code, |_| tonic::Code::Ok);
        // The client may have gone.
        let _ = answer.send(result);
        code
    };
    let wanted = match validate(core, namespace, request) {
        Ok(wanted) => wanted,
        Err(invalid) => return reply(answer, Err(Status::invalid_argument(invalid.to_string()))),
    };
    if let Err(status) = wait_ready(core, deadline).await {
        return reply(answer, Err(status));
    }
    let (key, uid) = match admit(core, &wanted) {
        Ok(admitted) => admitted,
        Err(Taken::Same(claim)) => return reply(answer, Ok(claim)),
        Err(Taken::Joined(end)) => {
            let result = match tokio::time::timeout_at(deadline.into(), end).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(Status::internal("the create that was under way ended without an answer")),
                Err(_) => Err(Status::deadline_exceeded("another call creates this sandbox and has not ended in time")),
            };
            return reply(answer, result);
        }
        Err(Taken::TryAnother) => {
            return reply(answer, Err(Status::already_exists("no free name was found; hint: give one")));
        }
        Err(Taken::Refused(status)) => return reply(answer, Err(status)),
    };
    let turn = core.table.turn(&key, &uid);
    let result = match written_first(core, &key, &uid, wanted.policy.strong, deadline).await {
        Ok(()) => start::start(core, &key, &uid, deadline).await,
        Err(failure) => Err(failure),
    };
    match result {
        Ok(claim) => {
            let code = reply(answer, Ok(claim.clone()));
            let joiners = core.table.with_uid(&key, &uid, |entry| {
                // As it is by now: it may have changed since.
                drop(core.queue.put(entry.claim.clone(), false));
                std::mem::take(&mut entry.joiners)
            });
            for joiner in joiners.into_iter().flatten() {
                let _ = joiner.send(Ok(claim.clone()));
            }
            turn.end();
            core.wakeups.now(&key);
            tracing::info!(sandbox = %key, instance = claim.status.instance_id,
                agent = claim.status.agent.as_ref().map_or("", |agent| &*agent.name), request_id = claim.request_id,
                "the sandbox runs");
            code
        }
        Err(failure) => {
            let status = failure.to_status();
            let joiners = undo(core, &key, &uid, &failure);
            let code = reply(answer, Err(status.clone()));
            for joiner in joiners {
                let _ = joiner.send(Err(status.clone()));
            }
            turn.end();
            core.wakeups.now(&key);
            tracing::warn!(sandbox = %key, request_id = wanted.request_id, code = ?code, error = status.message(),
                "a create failed");
            code
        }
    }
}

fn validate(core: &Core, namespace: String, request: fastpath::CreateRequest) -> Result<Wanted, Invalid> {
    let spec = SandboxSpec::from_fastpath(&request)?;
    if !request.name.is_empty() {
        validate_dns_name("name", &request.name)?;
    }
    request.check()?;
    let expire_at_seconds = expire_time(request.expire_time_seconds)?;
    if expire_at_seconds.is_some_and(|at| at.saturating_mul(1000) <= core.timing.clock.now_ms()) {
        return Err(Invalid::new("expire_time_seconds", "must be in the future"));
    }
    let strong = match fastpath::ConsistencyMode::try_from(request.consistency_mode) {
        Ok(fastpath::ConsistencyMode::Strong) => true,
        Ok(fastpath::ConsistencyMode::Fast) => core.consistency == Consistency::Strong,
        Err(_) => {
            let rule = format!("must be FAST (0) or STRONG (1), is {}", request.consistency_mode);
            return Err(Invalid::new("consistency_mode", rule));
        }
    };
    let grace_seconds = match request.grace_period_seconds {
        None => DEFAULT_GRACE_SECONDS,
        Some(seconds) => u32::try_from(seconds)
            .map_err(|_| Invalid::new("grace_period_seconds", format!("must not be negative, is {seconds}")))?,
    };
    let ttl = request.ttl_seconds_after_finished.map(u32::try_from).transpose();
    let ttl = ttl.map_err(|_| Invalid::new("ttl_seconds_after_finished", "must not be negative"))?;
    let policy = Policy {
        expire_at_seconds,
        failure: FailurePolicy::from_wire(request.failure_policy)?,
        recovery_seconds: recovery_timeout(request.recovery_timeout_seconds)?,
        grace_seconds,
        pull: PullPolicy::from_wire(request.pull_policy)?,
        strong,
        ttl_after_finished_seconds: ttl,
        attached: request.attached,
    };
    Ok(Wanted {
        namespace,
        name: request.name,
        request_id: request.request_id,
        spec: Arc::new(spec),
        expires: policy.expires(&core.timing.clock),
        policy,
        labels: request.labels,
    })
}

/// An expire time as it goes over the wire: Unix seconds, 0 = never.
pub(super) fn expire_time(seconds: i64) -> Result<Option<i64>, Invalid> {
    match seconds {
        0 => Ok(None),
        seconds if seconds < 0 => {
            Err(Invalid::new("expire_time_seconds", format!("must not be negative, is {seconds}")))
        }
        seconds if seconds > LAST_SECOND => {
            Err(Invalid::new("expire_time_seconds", format!("must be before the year 10000, is {seconds}")))
        }
        seconds => Ok(Some(seconds)),
    }
}

/// A recovery timeout as it goes over the wire: seconds, 0 = the default.
pub(super) fn recovery_timeout(seconds: i32) -> Result<u32, Invalid> {
    match u32::try_from(seconds) {
        Ok(0) => Ok(DEFAULT_RECOVERY_SECONDS),
        Ok(seconds) => Ok(seconds),
        Err(_) => Err(Invalid::new("recovery_timeout_seconds", format!("must be at least 1, is {seconds}"))),
    }
}

/// Nothing is admitted before claims and reports are put together: rule 8.
async fn wait_ready(core: &Core, deadline: Instant) -> Result<(), Status> {
    if *core.ready.borrow() {
        return Ok(());
    }
    let mut ready = core.ready.subscribe();
    match tokio::time::timeout_at(deadline.into(), ready.wait_for(|ready| *ready)).await {
        Ok(Ok(_)) => Ok(()),
        _ => Err(Status::unavailable("the controller is starting and has not heard of all agents; hint: try again")),
    }
}

/// Puts the claim into the table: from here on the name is taken, and seen by everybody.
fn admit(core: &Core, wanted: &Wanted) -> Result<(Key, Arc<str>), Taken> {
    let generated = wanted.name.is_empty();
    for attempt in 0..ATTEMPTS {
        let name = match (generated, wanted.request_id.is_empty()) {
            (false, _) => wanted.name.clone(),
            (true, true) => names::random(),
            (true, false) => names::of_request(&wanted.namespace, &wanted.request_id, attempt),
        };
        let key = Key::new(&wanted.namespace, &name);
        let uid = new_uid();
        let now_ms = core.timing.clock.now_ms();
        let mut policy = wanted.policy.clone();
        let mut claim = Claim::new(key.clone(), uid.clone(), wanted.spec.clone(), policy.clone(), now_ms);
        claim.labels = wanted.labels.clone();
        claim.request_id = wanted.request_id.clone();
        if large(&wanted.spec) {
            policy.strong = true;
            claim.policy = policy;
        }
        let mut entry = Entry::new_busy(Arc::new(claim), &core.timing.clock);
        entry.expires = wanted.expires;
        let looked = core.table.insert(&key, entry, |entry| taken(entry, wanted, generated));
        match looked {
            Ok(()) => return Ok((key, uid)),
            Err(Taken::TryAnother) => {}
            Err(taken) => return Err(taken),
        }
    }
    Err(Taken::TryAnother)
}

/// An agent's record cannot carry the whole claim, so it has to be in the store before the sandbox runs.
fn large(spec: &SandboxSpec) -> bool {
    let strings = spec.command.iter().chain(&spec.args).map(String::len).sum::<usize>()
        + spec.envs.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
    // JSON may write a byte as six.
    strings * 6 > MAX_DOCUMENT_BYTES / 2
}

/// The rules of a name that is in use.
fn taken(entry: &mut Entry, wanted: &Wanted, generated: bool) -> Taken {
    let claim = &entry.claim;
    if generated && (wanted.request_id.is_empty() || claim.request_id != wanted.request_id) {
        return Taken::TryAnother;
    }
    let (name, phase) = (&claim.key.name, claim.status.phase);
    if phase == Phase::Terminating || claim.deletion.is_some() {
        let sentence = format!("sandbox {name:?} is being deleted; hint: wait for it with `fsb-ctl rm --wait {name}`");
        return Taken::Refused(retry::failed_precondition(sentence, std::time::Duration::from_secs(1)));
    }
    if !phase.alive() {
        let hint = match phase {
            Phase::Expired => format!("fsb-ctl rm {name}"),
            _ => format!("fsb-ctl rm {name}` or `fsb-ctl reset {name}"),
        };
        return Taken::Refused(Status::already_exists(format!("sandbox {name:?} is {phase}; hint: `{hint}`")));
    }
    if claim.spec != wanted.spec {
        return Taken::Refused(Status::already_exists(format!(
            "sandbox {name:?} exists with another configuration; hint: choose another name, or `fsb-ctl rm {name}`"
        )));
    }
    if entry.creating {
        let (joiner, end) = oneshot::channel();
        entry.joiners.push(joiner);
        return Taken::Joined(end);
    }
    Taken::Same(claim.clone())
}

/// Strong: the claim is durable before anything is started.
async fn written_first(core: &Core, key: &Key, uid: &Arc<str>, strong: bool, deadline: Instant) -> Result<(), Failure> {
    let receipt = core.table.with_uid(key, uid, |entry| {
        (strong || entry.claim.policy.strong).then(|| core.queue.put(entry.claim.clone(), true))
    });
    let Some(Some(receipt)) = receipt else { return Ok(()) };
    let refusal = |code, message: String| Failure::Refused(fsb_proto::Refusal::Invalid, Status::new(code, message));
    match tokio::time::timeout_at(deadline.into(), receipt).await {
        Ok(Ok(Outcome::Written)) => Ok(()),
        Ok(Ok(Outcome::Refused { reason, message })) => {
            let code = match reason {
                "DuplicateName" => tonic::Code::AlreadyExists,
                "Quota" => tonic::Code::ResourceExhausted,
                "Forbidden" => tonic::Code::PermissionDenied,
                _ => tonic::Code::InvalidArgument,
            };
            Err(refusal(code, format!("the claim was refused: {message}")))
        }
        Ok(Err(_)) => Err(Failure::Cancelled),
        Err(_) => Err(refusal(
            tonic::Code::DeadlineExceeded,
            "the claim could not be written in time; hint: see the controller's log, or use the fast mode".into(),
        )),
    }
}

/// A create that failed leaves nothing: the claim goes at once, or as soon as the agent has confirmed that nothing
/// is left. Returns who waited for it.
fn undo(core: &Arc<Core>, key: &Key, uid: &Arc<str>, failure: &Failure) -> Vec<oneshot::Sender<Answer>> {
    let nobody_has_it = failure.left_nothing();
    let joiners = core.table.with_uid(key, uid, |entry| {
        let joiners = std::mem::take(&mut entry.joiners);
        if !nobody_has_it {
            let mut claim = (*entry.claim).clone();
            if claim.deletion.is_none() {
                claim.deletion = Some(Deletion { requested_at_ms: core.timing.clock.now_ms(), grace_seconds: Some(0) });
                claim.status.reason = "StartFailed".into();
                claim.status.message = failure.to_status().message().to_owned();
            }
            claim.status.phase = Phase::Terminating;
            drop(core.commit(entry, claim, false));
        }
        joiners
    });
    if nobody_has_it {
        core.drop_claim(key, uid, false);
    }
    joiners.unwrap_or_default()
}

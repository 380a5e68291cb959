//! DeleteSandbox and UpdateSandbox: a change of the claim, durable before the answer; the work comes after it.

use super::create::{expire_time, recovery_timeout};
use super::not_found;
use crate::claims::{Claim, Deletion, Key, Outcome, Phase};
use crate::clock;
use crate::core::Core;
use fsb_proto::bounds::{self, Bounded};
use fsb_proto::domain::FailurePolicy;
use fsb_proto::fastpath::{self, update_request::Update};
use fsb_proto::{Invalid, fastpath::SandboxInfo};
use std::sync::Arc;
use tokio::sync::oneshot;
use tonic::Status;

/// Asks for the end of a sandbox. Asking again changes nothing, but `force` shortens what is under way.
pub async fn delete(core: Arc<Core>, key: Key, force: bool) -> Result<(), Status> {
    let receipt = core
        .table
        .with(&key, |entry| {
            let mut claim = (*entry.claim).clone();
            let requested_at_ms = core.timing.clock.now_ms();
            let deletion = claim.deletion.get_or_insert(Deletion { requested_at_ms, grace_seconds: None });
            if force {
                deletion.grace_seconds = Some(0);
            }
            claim.status.phase = Phase::Terminating;
            if let Some(cancel) = &entry.cancel {
                cancel.cancel();
            }
            if claim == *entry.claim {
                return None;
            }
            entry.not_before = None;
            entry.failures = 0;
            Some(core.commit(entry, claim, true))
        })
        .ok_or_else(|| not_found(&key))?;
    core.wakeups.now(&key);
    if let Some(receipt) = receipt {
        durable(&core, &key, receipt).await;
    }
    Ok(())
}

/// Changes what may be changed. Returns the claim as it is then, and a sentence.
pub async fn update(
    core: Arc<Core>,
    key: Key,
    request: fastpath::UpdateRequest,
) -> Result<(SandboxInfo, String), Status> {
    request.check()?;
    let changed = core
        .table
        .with(&key, |entry| {
            let mut claim = (*entry.claim).clone();
            let message = amend(&mut claim, &request)?;
            let receipt = (claim != *entry.claim).then(|| core.commit(entry, claim, true));
            if matches!(request.update, Some(Update::ExpireTimeSeconds(_))) {
                // Also where it is the time that it had: it is read anew by the clock as it stands now.
                entry.expires = entry.claim.policy.expires(&core.timing.clock);
            }
            Ok::<_, Status>((receipt, message))
        })
        .ok_or_else(|| not_found(&key))?;
    let (receipt, message) = changed?;
    core.wakeups.now(&key);
    if let Some(receipt) = receipt {
        durable(&core, &key, receipt).await;
    }
    let (claim, persisted) = core.table.get(&key).ok_or_else(|| not_found(&key))?;
    Ok((claim.to_info(persisted), message))
}

/// Puts the change into the claim, or says why it cannot be.
fn amend(claim: &mut Claim, request: &fastpath::UpdateRequest) -> Result<String, Status> {
    let (name, phase) = (claim.key.name.clone(), claim.status.phase);
    if claim.deletion.is_some() {
        return Err(Status::failed_precondition(format!("sandbox {name:?} is being deleted")));
    }
    let mut message = "updated";
    match &request.update {
        None => {}
        Some(Update::ExpireTimeSeconds(seconds)) => {
            let at = expire_time(*seconds)?;
            if !matches!(phase, Phase::Pending | Phase::Bound | Phase::Running | Phase::Lost) {
                return Err(Status::failed_precondition(format!("sandbox {name:?} is {phase} and cannot expire")));
            }
            claim.policy.expire_at_seconds = at;
        }
        Some(Update::FailurePolicy(policy)) => claim.policy.failure = FailurePolicy::from_wire(*policy)?,
        Some(Update::RecoveryTimeoutSeconds(seconds)) => claim.policy.recovery_seconds = recovery_timeout(*seconds)?,
        Some(Update::ResetRevision(revision)) => message = reset(claim, revision)?,
    }
    for (key, value) in &request.labels {
        if value.is_empty() {
            claim.labels.remove(key);
        } else {
            claim.labels.insert(key.clone(), value.clone());
        }
    }
    // What only takes labels away is let through: a claim of an earlier version may have more.
    if request.labels.values().any(|value| !value.is_empty()) {
        bounds::labels(&claim.labels)?;
    }
    Ok(message.to_owned())
}

fn reset(claim: &mut Claim, revision: &str) -> Result<&'static str, Status> {
    let Some(wanted) = clock::parse_rfc3339(revision) else {
        let rule = format!("must be an RFC 3339 time such as 2024-01-31T12:00:00.123456789Z, is {revision:?}");
        return Err(Invalid::new("reset_revision", rule).into());
    };
    let (name, phase) = (&claim.key.name, claim.status.phase);
    if phase == Phase::Expired {
        return Err(Status::failed_precondition(format!(
            "sandbox {name:?} is Expired and cannot be reset; hint: `fsb-ctl rm {name}`, and create it again"
        )));
    }
    if claim.abridged {
        return Err(Status::failed_precondition(format!(
            "sandbox {name:?} came back from its agent without its command, arguments and environment and cannot be reset"
        )));
    }
    let asked = [&claim.reset_revision, &claim.status.accepted_reset_revision]
        .into_iter()
        .flatten()
        .filter_map(|earlier| clock::parse_rfc3339(earlier))
        .max();
    if asked.is_some_and(|asked| wanted <= asked) {
        return Ok("this revision, or a later one, was carried out or is under way");
    }
    claim.reset_revision = Some(revision.to_owned());
    Ok("reset")
}

/// Waits until the change is durable. Where the store is out of reach the answer does not wait for ever: the write is
/// tried on, and the work has begun.
async fn durable(core: &Core, key: &Key, receipt: oneshot::Receiver<Outcome>) {
    if tokio::time::timeout(core.timing.durable_wait, receipt).await.is_err() {
        tracing::warn!(sandbox = %key, "a change is not written yet and was answered all the same");
    }
}

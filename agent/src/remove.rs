//! Deleting: the answer comes at once, the rest happens behind it. An instance is gone when its process is dead, its
//! container and layer are removed, and the keeper was told to forget it.

use crate::Agent;
use crate::disk;
use crate::error::{Error, Result};
use crate::instance::{Instance, Phase, Removal};
use crate::{lock, logs, stop};
use fsb_proto::agent::DeleteRequest;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

impl Agent {
    /// Begins to stop and remove an instance. Says whether nothing of it is left already.
    ///
    /// # Errors
    /// [`Error::Stale`] if a newer generation of the claim is known here.
    pub async fn delete(self: &Arc<Self>, request: DeleteRequest) -> Result<bool> {
        let grace = match request.grace_period_seconds {
            None => None,
            Some(seconds) => Some(Duration::from_secs(
                u64::try_from(seconds)
                    .map_err(|_| fsb_proto::Invalid::new("grace_period_seconds", "must not be negative"))?,
            )),
        };
        let target = match &request.claim {
            Some(claim) if !claim.uid.is_empty() => {
                let mut ledger = lock(&self.ledger);
                let found = ledger.find(&claim.uid, claim.generation)?;
                let older = ledger.older(&claim.uid, claim.generation);
                if found.is_none() && older.is_none() {
                    // A create of this generation that is still on its way comes too late.
                    ledger.forget(&claim.uid, claim.generation, true);
                }
                found.or(older)
            }
            _ if request.instance_id.is_empty() => {
                return Err(fsb_proto::Invalid::new("instance_id", "must not be empty without a claim").into());
            }
            _ => self.find(&request.instance_id),
        };
        let gone = match target {
            None => true,
            Some(instance) => self.remove(&instance, grace, request.remove_logs).await,
        };
        if request.remove_logs && !request.log_instance_ids.is_empty() {
            self.remove_logs(request.log_instance_ids).await;
        }
        Ok(gone)
    }

    /// Removes the logs of these instances, but of those that write to them.
    pub(crate) async fn remove_logs(self: &Arc<Self>, mut ids: Vec<String>) {
        ids.retain(|id| self.find(id).is_none_or(|instance| instance.state().end.is_some()));
        let agent = self.clone();
        let removed = disk::io(move || {
            ids.iter().for_each(|id| logs::remove(&agent, id));
            Ok(())
        });
        if let Err(error) = removed.await {
            tracing::warn!(%error, "logs could not be removed");
        }
    }

    /// Stops and removes an instance. Says whether that is done already.
    async fn remove(self: &Arc<Self>, instance: &Arc<Instance>, grace: Option<Duration>, logs: bool) -> bool {
        let (phase, cleaned, alive) = {
            let mut state = instance.state();
            let asked = state.removal.get_or_insert_default();
            asked.logs |= logs;
            let asked = *asked;
            state.binding.remove = true;
            state.binding.remove_logs = asked.logs;
            (state.phase, state.cleaned, state.end.is_none())
        };
        instance.changed();
        match phase {
            Phase::Gone => true,
            Phase::Ended if cleaned => {
                finish(self, instance).await;
                true
            }
            Phase::Running | Phase::Stopping if alive => {
                stop::begin(self, instance, grace);
                false
            }
            // The start path or the reaper sees the removal and goes on with it.
            _ => false,
        }
    }

    /// The controller has written down the end of these instances.
    pub(crate) async fn forget(self: &Arc<Self>, ids: &[String]) {
        for id in ids {
            let Some(instance) = lock(&self.instances).get(id.as_str()).cloned() else { continue };
            self.forget_one(&instance).await;
        }
    }

    async fn forget_one(self: &Arc<Self>, instance: &Arc<Instance>) {
        let cleaned = {
            let mut state = instance.state();
            if state.end.is_none() {
                return;
            }
            state.removal.get_or_insert_default();
            state.cleaned
        };
        if cleaned {
            finish(self, instance).await;
        }
    }

    /// An instance has ended. Those that nobody asks for are not kept for ever.
    pub(crate) fn note_ended(self: &Arc<Self>, id: &Arc<str>) {
        let oldest = lock(&self.ended).push(id.clone(), Instant::now());
        if let Some(oldest) = oldest.filter(|oldest| lock(&self.instances).contains_key(oldest)) {
            let agent = self.clone();
            self.tracker.spawn(async move { agent.forget(&[oldest.to_string()]).await });
        }
    }
}

/// Forgets ended instances that no controller has asked about for an hour.
pub(crate) async fn run(agent: Arc<Agent>) {
    let mut tick = tokio::time::interval(Duration::from_secs(60));
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = agent.shutdown.cancelled() => return,
        }
        loop {
            let Some(id) = lock(&agent.ended).pop_old(Instant::now()) else { break };
            let instance = lock(&agent.instances).get(&id).cloned();
            if let Some(instance) = instance {
                agent.forget_one(&instance).await;
            }
        }
    }
}

/// The last step of an instance that is cleaned up: its logs if that was asked for, its record, its memory.
pub(crate) async fn finish(agent: &Arc<Agent>, instance: &Arc<Instance>) {
    let (id, logs) = {
        let mut state = instance.state();
        if state.phase == Phase::Gone {
            return;
        }
        state.phase = Phase::Gone;
        (state.id.clone(), state.removal.unwrap_or(Removal { logs: false }).logs)
    };
    if logs {
        agent.remove_logs(vec![id.to_string()]).await;
    }
    if let Err(error) = agent.keeper.forget(&id).await {
        tracing::warn!(instance = %id, %error, "the keeper could not be told to forget it");
    }
    lock(&agent.instances).remove(&id);
    lock(&agent.ledger).forget(&instance.uid, instance.generation, true);
    agent.publish_removed(instance);
    instance.changed();
    tracing::debug!(instance = %id, "removed");
}

impl Agent {
    /// An instance by its id, its alias, or its claim's name, meaning the newest of that name.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Instance>> {
        if let Some(instance) = lock(&self.instances).get(name) {
            return Some(instance.clone());
        }
        let candidates: Vec<Arc<Instance>> = {
            let ledger = lock(&self.ledger);
            if let Some(instance) = ledger.by_alias(name) {
                return Some(instance);
            }
            ledger.handles().cloned().collect()
        };
        let named = candidates.into_iter().filter(|instance| instance.state().binding.claim == name);
        named.max_by_key(|instance| instance.born)
    }

    /// The instance of that name, or the error that says there is none.
    pub(crate) fn get(&self, name: &str) -> Result<Arc<Instance>> {
        self.find(name).ok_or_else(|| Error::NotFound(format!("sandbox {name:?}")))
    }
}

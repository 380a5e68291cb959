//! The way back from a start that failed: what it took, given back in reverse.

use crate::Agent;
use crate::error::StartError;
use crate::instance::{Instance, Phase};
use crate::keeper::Paused;
use crate::reaper;
use crate::{lock, stop};
use std::sync::Arc;

/// What a start has taken. Dropped before it was disarmed (a panic), it goes the way back in the background.
pub(crate) struct Undo(Option<Taken>);

struct Taken {
    agent: Arc<Agent>,
    instance: Arc<Instance>,
    paused: Option<Paused>,
}

impl Undo {
    /// `instance` holds a slot and its ports.
    pub(crate) fn new(agent: Arc<Agent>, instance: Arc<Instance>) -> Self {
        Self(Some(Taken { agent, instance, paused: None }))
    }

    /// A container was taken as well.
    pub(crate) fn holds(&mut self, paused: Paused) -> &Paused {
        let taken = self.0.as_mut().expect("only disarm and unwind empty it, and both consume it");
        taken.paused.insert(paused)
    }

    /// Gives the container back, the rest stays.
    pub(crate) async fn discard_container(&mut self) {
        if let Some(taken) = &mut self.0
            && let Some(left) = taken.discard().await
        {
            tracing::warn!(instance = %taken.instance.id(), left, "a container was not cleaned up at once");
        }
    }

    /// It runs: nothing is to be given back.
    pub(crate) fn disarm(mut self) {
        self.0 = None;
    }

    /// Gives everything back, then says so to those who wait. The error gets what the clean-up reported.
    pub(crate) async fn unwind(mut self, error: StartError) -> StartError {
        match self.0.take() {
            Some(taken) => taken.unwind(error).await,
            None => error,
        }
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if let Some(taken) = self.0.take() {
            let cause = crate::Error::Internal("the start broke off".into());
            tokio::spawn(taken.unwind(StartError::new(crate::Stage::Take, cause)));
        }
    }
}

/// Undoes a start that an agent before this one was killed in.
pub(crate) async fn undo_adopted(agent: Arc<Agent>, instance: Arc<Instance>) {
    let taken = Taken { agent, instance, paused: None };
    let cause = crate::Error::Unavailable("the agent was restarted while the sandbox was starting".into());
    let error = taken.unwind(StartError::new(crate::Stage::Exec, cause)).await;
    tracing::info!(%error, "undone");
}

impl Taken {
    /// Kills and removes the container, with its log: nobody was told of it.
    async fn discard(&mut self) -> Option<String> {
        let (id, pidfd, cgroups) = match self.paused.take() {
            Some(paused) => (paused.made.id, paused.pidfd, paused.made.cgroups),
            None => {
                let state = self.instance.state();
                (state.id.to_string(), state.pidfd.clone()?, state.cgroups.clone())
            }
        };
        // Nothing to hold the process's end back for.
        let mounts = self.instance.state().mounts.take();
        drop(mounts);
        stop::kill_now(&pidfd);
        reaper::ended(&pidfd).await;
        // The keeper writes the log; after its word that it is complete no file comes back.
        let end = self.instance.until(|state| (state.end.is_some() || !state.in_keeper).then_some(()));
        let _ = tokio::time::timeout(reaper::PATIENCE, end).await;
        lock(&self.agent.instances).remove(&*id);
        {
            let mut state = self.instance.state();
            state.id = "".into();
            state.pidfd = None;
            state.end = None;
            state.seen_started = false;
            state.in_keeper = false;
            state.cgroups.clear();
        }
        match self.agent.clear(&id, cgroups.clone(), true).await {
            Ok(()) => {
                let _ = self.agent.keeper.forget(&id).await;
                None
            }
            Err(left) => {
                // The record stays until the rest is gone too, so that a crash does not lose it.
                self.agent.reap_remains(id, cgroups);
                Some(left)
            }
        }
    }

    async fn unwind(mut self, mut error: StartError) -> StartError {
        error.cleanup = self.discard().await;
        let instance = &self.instance;
        // A delete that came in between must not be overtaken by a create that is late.
        let deleted = instance.state().removal.is_some();
        lock(&self.agent.ledger).forget(&instance.uid, instance.generation, deleted);
        let (ticket, visible) = {
            let mut state = instance.state();
            state.phase = Phase::Gone;
            state.failure = Some(error.clone());
            state.pin = None;
            (state.ticket.take(), state.published || deleted)
        };
        drop(ticket);
        if visible {
            self.agent.publish_removed(instance);
        }
        instance.changed();
        error
    }
}

//! Cleans up behind instances that are over: their cgroups, then slot and ports are free and the end is reported. Their
//! layers are given to the [`crate::trash`], and nobody waits for that.

use crate::Agent;
use crate::disk;
use crate::instance::{Instance, Phase, Removal};
use crate::keeper::Paused;
use crate::{async_fd, logs, remove, stop};
use fsb_host::cgroup;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Clean-ups at the same time.
const WORKERS: usize = 2;
/// How long the steps before a clean-up may take: a killed process that is not gone, a log that is not complete.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How long the first try waits for a cgroup that is still busy, as it is for some milliseconds. Further tries do not
/// wait: there are few workers, and sandboxes whose processes do not die must not have all of them.
const FIRST_TRY: Duration = Duration::from_millis(20);
const FIRST_RETRY: Duration = Duration::from_millis(20);
const LONGEST_RETRY: Duration = Duration::from_secs(5);

pub(crate) struct Reaper {
    workers: Semaphore,
}

impl Reaper {
    pub(crate) fn new() -> Self {
        Self { workers: Semaphore::new(WORKERS) }
    }
}

impl Agent {
    /// Cleans up behind an instance that has ended; the rest follows when nobody has to be told of it any more.
    pub(crate) fn reap(self: &Arc<Self>, instance: Arc<Instance>) {
        let agent = self.clone();
        self.tracker.spawn(async move {
            let (id, cgroups) = {
                let state = instance.state();
                (state.id.clone(), state.cgroups.clone())
            };
            let there = (agent.clone(), instance.clone(), id.clone());
            // One trip to a worker for all of it: each one is two wake-ups.
            let cleaned = move |patience| {
                let (agent, instance, id) = &there;
                cgroup::remove(&cgroups, patience)?;
                agent.release(instance);
                let (mounts, removal) = {
                    let mut state = instance.state();
                    (state.mounts.take(), state.removal)
                };
                agent.trash.take(id, mounts);
                if removal.is_some_and(|removal| removal.logs) {
                    logs::remove(agent, id);
                    instance.state().removal = Some(Removal { logs: false });
                }
                Ok(())
            };
            if !agent.insist(&id, cleaned).await {
                return;
            }
            let removal = {
                let mut state = instance.state();
                state.cleaned = true;
                state.removal
            };
            instance.changed();
            if removal.is_some() {
                remove::finish(&agent, &instance).await;
            }
        });
    }

    /// Nothing of an instance runs any more: its slot and ports are free, and its end is reported.
    fn release(self: &Arc<Self>, instance: &Arc<Instance>) {
        let ticket = instance.state().ticket.take();
        // Whoever sees that it has ended may count on its slot.
        drop(ticket);
        let id = {
            let mut state = instance.state();
            state.phase = Phase::Ended;
            state.pidfd = None;
            state.pin = None;
            self.publish_state(&mut state);
            state.id.clone()
        };
        instance.changed();
        self.note_ended(&id);
    }

    /// Cleans up behind a container that nobody was told of, then has the keeper forget it.
    pub(crate) fn reap_remains(self: &Arc<Self>, id: String, cgroups: Vec<PathBuf>) {
        let agent = self.clone();
        self.tracker.spawn(async move {
            let there = (agent.clone(), id.clone());
            let cleaned = move |patience| {
                let (agent, id) = &there;
                cgroup::remove(&cgroups, patience)?;
                agent.trash.take(id, None);
                Ok(())
            };
            if agent.insist(&id, cleaned).await {
                let _ = agent.keeper.forget(&id).await;
            }
        });
    }

    /// Ends a paused container that nobody wants.
    pub(crate) fn discard(self: &Arc<Self>, paused: Paused) {
        let agent = self.clone();
        self.tracker.spawn(async move {
            let Paused { made, pidfd, mounts, .. } = paused;
            drop(mounts);
            stop::kill_now(&pidfd);
            ended(&pidfd).await;
            agent.reap_remains(made.id, made.cgroups);
        });
    }

    /// Ends a container that came without what is needed to end it: the keeper does that.
    pub(crate) fn discard_unusable(self: &Arc<Self>, id: String, cgroups: Vec<PathBuf>) {
        let agent = self.clone();
        self.tracker.spawn(async move {
            let _ = agent.keeper.forget(&id).await;
            agent.reap_remains(id, cgroups);
        });
    }

    /// Removes what a dead container left, its log too if nobody was told of it, in one try. Its layer goes in any case.
    pub(crate) async fn clear(self: &Arc<Self>, id: &str, cgroups: Vec<PathBuf>, logs: bool) -> Result<(), String> {
        let (agent, id) = (self.clone(), id.to_owned());
        let done = disk::io(move || {
            let removed = cgroup::remove(&cgroups, PATIENCE);
            agent.trash.take(&id, None);
            if logs {
                logs::remove(&agent, &id);
            }
            removed
        });
        done.await.map_err(|error| error.to_string())
    }

    /// Does something that may fail for a while until it succeeds, as one of the few workers. It is told how long it may
    /// wait. Shutting down ends it: the next agent finds what is left. Says whether it was done.
    async fn insist(&self, id: &str, work: impl Fn(Duration) -> io::Result<()> + Clone + Send + 'static) -> bool {
        let begun = Instant::now();
        let (mut patience, mut pause) = (FIRST_TRY, FIRST_RETRY);
        loop {
            let done = {
                let _worker = self.reaper.workers.acquire().await;
                let work = work.clone();
                disk::io(move || work(patience)).await
            };
            match done {
                Ok(()) => return true,
                Err(error) if begun.elapsed() >= PATIENCE => {
                    tracing::warn!(instance = id, %error, "cleaning up failed, trying again");
                }
                Err(_) => {}
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.shutdown.cancelled() => return false,
            }
            (patience, pause) = (Duration::ZERO, (pause * 2).min(LONGEST_RETRY));
        }
    }
}

/// Waits until a killed process is dead, at most [`PATIENCE`].
pub(crate) async fn ended(pidfd: &OwnedFd) {
    let Ok(pidfd) = async_fd::register(pidfd.as_fd(), Interest::READABLE) else { return };
    let _ = tokio::time::timeout(PATIENCE, pidfd.readable()).await;
}

//! Cleans up behind instances that are over: cgroups, writable layer, record. In the background, a few at a time.

use crate::Agent;
use crate::instance::{Instance, Phase};
use crate::keeper::Paused;
use crate::{async_fd, remove, stop};
use fsb_host::{cgroup, layer};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Once};
use std::time::Duration;
use tokio::io::Interest;
use tokio::sync::Semaphore;

/// Clean-ups at the same time.
const WORKERS: usize = 2;
/// How long one try waits for a cgroup that is still busy, or for a killed process to be gone.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// What a dead container leaves behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remains {
    pub(crate) cgroups: Vec<PathBuf>,
    pub(crate) layer: PathBuf,
}

pub(crate) struct Reaper {
    workers: Semaphore,
}

impl Reaper {
    pub(crate) fn new() -> Self {
        Self { workers: Semaphore::new(WORKERS) }
    }
}

impl Agent {
    /// Cleans up behind an instance that has ended: its cgroup, then slot and ports are free and the end is reported,
    /// then its layer; the rest follows when nobody has to be told of it any more.
    pub(crate) fn reap(self: &Arc<Self>, instance: Arc<Instance>) {
        let agent = self.clone();
        self.tracker.spawn(async move {
            let (id, cgroups) = {
                let state = instance.state();
                (state.id.clone(), state.cgroups.clone())
            };
            let (layer, released) = (agent.config.paths.layer(&id), Arc::new(Once::new()));
            let there = (agent.clone(), instance.clone(), id.clone());
            // One trip to a worker for all of it: each one is two wake-ups.
            let work = move || {
                let (agent, instance, id) = &there;
                cgroup::remove(&cgroups, PATIENCE)?;
                released.call_once(|| agent.release(instance));
                let mounts = instance.state().mounts.take();
                let unmounted = mounts.is_some();
                // The last hold on it: this unmounts.
                drop(mounts);
                if unmounted { agent.spares.keep(id) } else { layer::remove(&layer) }
            };
            if !agent.insist(&id, work).await {
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
    pub(crate) fn reap_remains(self: &Arc<Self>, id: String, remains: Remains) {
        let agent = self.clone();
        self.tracker.spawn(async move {
            let Remains { cgroups, layer } = remains;
            let work = move || {
                cgroup::remove(&cgroups, PATIENCE)?;
                layer::remove(&layer)
            };
            if agent.insist(&id, work).await {
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
            let remains = Remains { cgroups: made.cgroups, layer: agent.config.paths.layer(&made.id) };
            agent.reap_remains(made.id, remains);
        });
    }

    /// Ends a container that came without what is needed to end it: the keeper does that.
    pub(crate) fn discard_unusable(self: &Arc<Self>, id: String, cgroups: Vec<PathBuf>) {
        let agent = self.clone();
        self.tracker.spawn(async move {
            let _ = agent.keeper.forget(&id).await;
            let layer = agent.config.paths.layer(&id);
            agent.reap_remains(id, Remains { cgroups, layer });
        });
    }

    /// Does something that may fail for a while until it succeeds, as one of the few workers. Shutting down ends it:
    /// the next agent finds what is left. Says whether it was done.
    async fn insist(&self, id: &str, work: impl Fn() -> io::Result<()> + Clone + Send + 'static) -> bool {
        let mut pause = FIRST_RETRY;
        loop {
            let done = {
                let _worker = self.reaper.workers.acquire().await;
                blocking(work.clone()).await
            };
            match done {
                Ok(()) => return true,
                Err(error) => tracing::warn!(instance = id, %error, "cleaning up failed, trying again"),
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.shutdown.cancelled() => return false,
            }
            pause = (pause * 2).min(LONGEST_RETRY);
        }
    }
}

/// Removes what a dead container left, in one try.
pub(crate) async fn clear(remains: Remains) -> Result<(), String> {
    let done = blocking(move || {
        let cgroups = cgroup::remove(&remains.cgroups, PATIENCE);
        layer::remove(&remains.layer).and(cgroups)
    });
    done.await.map_err(|error| error.to_string())
}

/// Waits until a killed process is dead, at most [`PATIENCE`].
pub(crate) async fn ended(pidfd: &OwnedFd) {
    let Ok(pidfd) = async_fd::register(pidfd.as_fd(), Interest::READABLE) else { return };
    let _ = tokio::time::timeout(PATIENCE, pidfd.readable()).await;
}

async fn blocking(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

//! One instance of a claim, from its admission until nothing of it is left.

use crate::admission::Ticket;
use crate::ends;
use crate::error::StartError;
use crate::images::ImagePin;
use crate::lock;
use fsb_host::wire::{Binding, End};
use fsb_proto::agent;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Where an instance is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Admitted, not started. The start path owns it.
    Creating,
    Running,
    /// A stop was asked for.
    Stopping,
    /// The process has ended and its container is gone; slot and ports are free.
    Ended,
    /// Nothing is left of it: removed, or never started.
    Gone,
}

/// What to do once it has ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Removal {
    /// Its log is to be removed.
    pub(crate) logs: bool,
}

/// Everything about an instance that changes.
pub(crate) struct State {
    pub(crate) phase: Phase,
    /// Empty until a container was taken for it.
    pub(crate) id: Arc<str>,
    pub(crate) binding: Binding,
    pub(crate) source: agent::Source,
    pub(crate) cgroups: Vec<PathBuf>,
    pub(crate) pidfd: Option<Arc<OwnedFd>>,
    /// As in [`crate::keeper::Paused`].
    pub(crate) mounts: Option<Arc<File>>,
    /// Its slot and ports, until its container is gone.
    pub(crate) ticket: Option<Ticket<Arc<Instance>>>,
    /// Unix milliseconds, 0 = not yet.
    pub(crate) started_at_ms: i64,
    /// The keeper was told whose it is, and will say when it is over.
    pub(crate) in_keeper: bool,
    /// Watchers were told of it.
    pub(crate) published: bool,
    /// Its program was seen to start, by the start path or by the keeper.
    pub(crate) seen_started: bool,
    pub(crate) end: Option<End>,
    /// Its image is on the way.
    pub(crate) pulling: bool,
    /// Its removal was asked for.
    pub(crate) removal: Option<Removal>,
    /// When SIGKILL is due.
    pub(crate) kill_at: Option<Instant>,
    /// Its container is gone; its writable layer is the trash's.
    pub(crate) cleaned: bool,
    /// Why it never started.
    pub(crate) failure: Option<StartError>,
    /// Keeps its image on the node.
    pub(crate) pin: Option<ImagePin>,
}

pub(crate) struct Instance {
    pub(crate) uid: Box<str>,
    pub(crate) generation: i64,
    /// Its number among all of this agent, in the order in which they came.
    pub(crate) born: u64,
    state: Mutex<State>,
    changed: Notify,
}

impl Instance {
    /// Admitted just now.
    pub(crate) fn new(binding: Binding) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            born: NEXT.fetch_add(1, Ordering::Relaxed),
            uid: binding.claim_uid.as_str().into(),
            generation: binding.generation,
            changed: Notify::new(),
            state: Mutex::new(State {
                phase: Phase::Creating,
                id: "".into(),
                binding,
                source: agent::Source::Unknown,
                cgroups: Vec::new(),
                pidfd: None,
                mounts: None,
                ticket: None,
                started_at_ms: 0,
                in_keeper: false,
                published: false,
                seen_started: false,
                end: None,
                pulling: false,
                removal: None,
                kill_at: None,
                cleaned: false,
                failure: None,
                pin: None,
            }),
        }
    }

    /// Looks at it, or changes it. A change that others wait for is followed by [`Instance::changed`].
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Wakes up everybody who waits for a change.
    pub(crate) fn changed(&self) {
        self.changed.notify_waiters();
    }

    /// Waits until `look` finds what it looks for.
    pub(crate) async fn until<R>(&self, look: impl Fn(&State) -> Option<R>) -> R {
        loop {
            let notified = self.changed.notified();
            tokio::pin!(notified);
            // Registered before the look, so that no change between the two is missed.
            notified.as_mut().enable();
            if let Some(found) = look(&self.state()) {
                return found;
            }
            notified.await;
        }
    }

    /// Its id; empty while it has no container.
    pub(crate) fn id(&self) -> Arc<str> {
        self.state().id.clone()
    }

    /// Waits until its slot and ports are free.
    pub(crate) async fn released(&self) {
        self.until(|state| matches!(state.phase, Phase::Ended | Phase::Gone).then_some(())).await;
    }
}

impl State {
    /// Time between SIGTERM and SIGKILL.
    pub(crate) fn grace(&self) -> Duration {
        Duration::from_secs(self.binding.grace_seconds.into())
    }

    /// The claim, as it goes over the wire.
    pub(crate) fn claim(&self) -> agent::Claim {
        let binding = &self.binding;
        agent::Claim {
            namespace: binding.namespace.clone(),
            name: binding.claim.clone(),
            uid: binding.claim_uid.clone(),
            generation: binding.generation,
        }
    }

    /// As it goes over the wire.
    pub(crate) fn to_wire(&self) -> agent::Instance {
        let phase = match self.phase {
            Phase::Creating => agent::InstancePhase::Creating,
            Phase::Running => agent::InstancePhase::Running,
            Phase::Stopping => agent::InstancePhase::Stopping,
            Phase::Ended | Phase::Gone => agent::InstancePhase::Ended,
        };
        // An end is reported when slot and ports are free, not before.
        let end = self.end.as_ref().filter(|_| matches!(self.phase, Phase::Ended | Phase::Gone));
        let verdict = end.map(|end| ends::verdict(end, &self.binding));
        agent::Instance {
            claim: Some(self.claim()),
            instance_id: self.id.to_string(),
            phase: phase.into(),
            image: self.binding.image.clone(),
            exposed_ports: self.binding.ports.iter().map(|port| i32::from(*port)).collect(),
            exit_code: verdict.as_ref().and_then(|verdict| verdict.exit_code),
            reason: match &verdict {
                Some(verdict) => verdict.reason.to_owned(),
                None if self.pulling => "PullingImage".to_owned(),
                None => String::new(),
            },
            message: verdict.map(|verdict| verdict.message).unwrap_or_default(),
            created_at_ms: self.binding.created_at_ms,
            started_at_ms: self.started_at_ms,
            finished_at_ms: end.map_or(0, |end| end.finished_at_ms),
            claim_document: self.binding.document.clone(),
            alias: self.binding.alias.clone(),
            source: self.source.into(),
        }
    }
}

/// The word for a source in records and metrics.
pub(crate) fn source_word(source: agent::Source) -> &'static str {
    match source {
        agent::Source::Stock => "stock",
        agent::Source::Cast => "cast",
        agent::Source::Libcontainer => "libcontainer",
        agent::Source::Unknown => "none",
    }
}

/// The source of a word in a record.
pub(crate) fn source_of(word: &str) -> agent::Source {
    match word {
        "stock" => agent::Source::Stock,
        "cast" => agent::Source::Cast,
        "libcontainer" => agent::Source::Libcontainer,
        _ => agent::Source::Unknown,
    }
}

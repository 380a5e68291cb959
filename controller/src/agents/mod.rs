//! The agents: one connection and one stream of reports each, side by side, so that a slow or dead one holds up
//! nobody else.

mod client;
mod logs;
mod report;
mod view;
mod watch;

pub use client::{Client, Target, read_token};
pub use logs::collect_logs;
pub use report::rescan;
pub use view::{Link, View};
pub use watch::watch;

use crate::claims::AgentRef;
use crate::config::Timing;
use crate::reconcile::{Standing, observed};
use fsb_proto::agent;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch as signal};

/// Calls to one agent that nobody waits for, at a time.
const BACKGROUND_CALLS: usize = 32;

/// An agent that has reported at least once.
#[derive(Debug)]
pub struct Agent {
    /// Its name.
    pub name: Arc<str>,
    /// Where it is reached.
    pub target: Target,
    /// Its interface.
    pub client: Client,
    /// Bounds calls that nobody waits for.
    pub background: Semaphore,
    view: Mutex<View>,
    evicting: Mutex<HashSet<String>>,
}

impl Agent {
    /// Looks at the merged report or changes it. Short: others wait.
    pub fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The agent in its present life.
    pub fn reference(&self) -> Arc<AgentRef> {
        self.view().reference.clone()
    }

    /// Whether its stream is up.
    pub fn healthy(&self) -> bool {
        self.view().link == Link::Up
    }
}

/// All agents of this controller.
#[derive(Debug)]
pub struct Agents {
    by_name: RwLock<HashMap<Arc<str>, Arc<Agent>>>,
    targets: usize,
    reported: AtomicUsize,
    complete: signal::Sender<bool>,
    started: Instant,
    lost_after: Duration,
    settle: Duration,
}

impl Agents {
    /// None has reported yet; `targets` are expected to.
    pub fn new(targets: usize, timing: &Timing) -> Self {
        Self {
            by_name: RwLock::default(),
            targets,
            reported: AtomicUsize::new(0),
            complete: signal::channel(targets == 0).0,
            started: Instant::now(),
            lost_after: timing.agent_lost_after,
            settle: timing.settle,
        }
    }

    /// An agent by its name.
    pub fn get(&self, name: &str) -> Option<Arc<Agent>> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// All agents that have reported, in the order of their names.
    pub fn list(&self) -> Vec<Arc<Agent>> {
        let mut all: Vec<_> = self.by_name.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// How many have their stream up.
    pub fn healthy(&self) -> usize {
        self.list().iter().filter(|agent| agent.healthy()).count()
    }

    /// Waits until every agent has reported once.
    pub async fn all_reported(&self) {
        let mut complete = self.complete.subscribe();
        // The sender lives in self.
        let _ = complete.wait_for(|complete| *complete).await;
    }

    /// What is known of an agent in one of its lives, and of one instance on it. `gone`: it was said before that
    /// nothing of the instance is left. `confirmed`: when the agent answered the create.
    pub fn standing(
        &self,
        of: &AgentRef,
        uid: &str,
        generation: i64,
        gone: bool,
        confirmed: Option<Instant>,
    ) -> Standing {
        let Some(agent) = self.get(&of.name) else { return self.standing_of_unknown(gone) };
        let view = agent.view();
        if view.reference.uid != of.uid {
            return Standing::Restarted;
        }
        match view.link {
            Link::Up => {}
            Link::Down | Link::Lost { .. } if gone => return Standing::Restarted,
            Link::Down => return Standing::Unknown,
            Link::Lost { since } => return Standing::Lost { since },
        }
        match view.of_claim(uid, generation) {
            _ if gone => Standing::Missing,
            Some(instance) => Standing::Present(observed(instance)),
            None if confirmed.is_none_or(|confirmed| view.began > confirmed) => Standing::Missing,
            None => Standing::Unreported,
        }
    }

    fn standing_of_unknown(&self, gone: bool) -> Standing {
        if gone {
            return Standing::Restarted;
        }
        if self.reported.load(Ordering::Acquire) == self.targets {
            return Standing::Retired;
        }
        if self.started.elapsed() < self.lost_after.max(self.settle) {
            return Standing::Unknown;
        }
        Standing::Lost { since: self.started + self.lost_after }
    }

    /// Takes over an agent's first snapshot of a stream. `None` where another target goes by this name.
    fn insert(
        &self,
        target: &Target,
        client: &Client,
        snapshot: agent::Snapshot,
        began: Instant,
        first: bool,
    ) -> Option<Arc<Agent>> {
        let view = View::new(snapshot, began);
        let name = view.reference.name.clone();
        let mut by_name = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        let agent = match by_name.get(&name) {
            Some(agent) if agent.target != *target => return None,
            Some(agent) => {
                *agent.view() = view;
                agent.clone()
            }
            None => {
                let agent = Arc::new(Agent {
                    name: name.clone(),
                    target: target.clone(),
                    client: client.clone(),
                    background: Semaphore::new(BACKGROUND_CALLS),
                    view: Mutex::new(view),
                    evicting: Mutex::default(),
                });
                // The target's agent goes by a new name: the old one is no more.
                by_name.retain(|_, other| other.target != *target);
                by_name.insert(name, agent.clone());
                agent
            }
        };
        drop(by_name);
        if first {
            self.reported.fetch_add(1, Ordering::AcqRel);
        }
        Some(agent)
    }

    /// The snapshot of a target's first stream was worked in.
    fn note_complete(&self) {
        if self.reported.load(Ordering::Acquire) == self.targets {
            self.complete.send_replace(true);
        }
    }
}

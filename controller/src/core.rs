//! What the parts of the controller share, and the two ways in which a claim changes.

use crate::agents::Agents;
use crate::claims::{
    AttachedReader, Change, Claim, ClaimStore, Entry, Key, Outcome, Queue, Refused, Table, Tombstones, WriteError,
};
use crate::config::{Consistency, Timing};
use crate::metrics::Metrics;
use crate::reconcile::Wakeups;
use crate::registry::Registry;
use fsb_rpc::Readers;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The shared parts. Each knows its own locks; none of them is held across an await.
pub struct Core {
    /// Times.
    pub timing: Timing,
    /// What a create does that leaves it open.
    pub consistency: Consistency,
    /// Names whose rows the store could not read, until they are written again.
    pub unreadable: Mutex<BTreeSet<Key>>,
    /// Where there is room.
    pub registry: Registry,
    /// All claims.
    pub table: Arc<Table>,
    /// Their way to the store.
    pub queue: Arc<Queue>,
    /// The agents.
    pub agents: Agents,
    /// Which claims to look at, and when.
    pub wakeups: Wakeups,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Who reads logs.
    pub log_readers: Readers,
    /// Who watches claims.
    pub watchers: Readers,
    /// Tasks that have to end before the process does.
    pub tracker: TaskTracker,
    /// The controller stops.
    pub stop: CancellationToken,
    /// Claims and reports are put together: creates are admitted.
    pub ready: watch::Sender<bool>,
}

impl Core {
    /// Reads the claims and puts the parts together. Nothing runs yet.
    pub async fn new(
        store: Arc<dyn ClaimStore>,
        agents: usize,
        timing: Timing,
        consistency: Consistency,
    ) -> Result<Arc<Self>, WriteError> {
        let loaded = store.load().await?;
        let metrics = Arc::new(Metrics::default());
        let table = Arc::new(Table::default());
        for claim in loaded.claims {
            let key = claim.key.clone();
            // A store has a name once.
            let _ = table.insert(&key, Entry::new(Arc::new(claim), true, &timing.clock), |_| ());
        }
        let tombstones = Tombstones::new(loaded.tombstones);
        let unreadable = Mutex::new(loaded.unreadable.into_iter().collect());
        Ok(Arc::new_cyclic(|core: &Weak<Core>| {
            let observer = {
                let core = core.clone();
                move |claim: &Arc<Claim>, outcome: Outcome| {
                    if let Some(core) = core.upgrade() {
                        core.written(claim, outcome);
                    }
                }
            };
            let queue = Queue::new(store, tombstones, metrics.clone(), &timing, observer);
            Core {
                agents: Agents::new(agents, &timing),
                timing,
                consistency,
                unreadable,
                registry: Registry::default(),
                table,
                queue: Arc::new(queue),
                wakeups: Wakeups::default(),
                metrics,
                log_readers: Readers::new("logs"),
                watchers: Readers::new("watches"),
                tracker: TaskTracker::new(),
                stop: CancellationToken::new(),
                ready: watch::channel(false).0,
            }
        }))
    }

    /// Makes `claim` the state of the entry: slots that it does not hold any more are freed, watchers hear of it.
    /// Called with the entry's lock held.
    pub fn set(&self, entry: &mut Entry, claim: Claim) {
        let claim = Arc::new(claim);
        if entry.claim.status.generation != claim.status.generation {
            entry.confirmed = None;
            (entry.purging, entry.purged) = (false, false);
            entry.pushed = None;
            entry.lost_since = None;
            entry.reader = AttachedReader::default();
        }
        entry.finished = claim.finished().then(|| entry.finished.unwrap_or_else(Instant::now));
        if entry.claim.policy.expire_at_seconds != claim.policy.expire_at_seconds {
            entry.expires = claim.policy.expires(&self.timing.clock);
        }
        entry.reservations.retain(|reservation| claim.holds(reservation.generation()));
        entry.gone.retain(|generation| {
            *generation == claim.status.generation
                || claim.status.leftovers.iter().any(|left| left.generation == *generation)
        });
        entry.claim = claim.clone();
        entry.durable = false;
        self.table.tell(Change::Changed { claim, persisted: entry.persisted });
    }

    /// As [`set`](Self::set), and the state goes to the store. Called with the entry's lock held.
    pub fn commit(&self, entry: &mut Entry, claim: Claim, urgent: bool) -> oneshot::Receiver<Outcome> {
        self.set(entry, claim);
        self.queue.put(entry.claim.clone(), urgent)
    }

    /// Takes a claim out of the table and of the store. `entomb`: an instance may be left out of reach.
    pub fn drop_claim(self: &Arc<Self>, key: &Key, uid: &Arc<str>, entomb: bool) {
        let persisted = self.table.with_uid(key, uid, |entry| entry.persisted).unwrap_or(false);
        // The tombstone first: nobody may take a late report for a new claim.
        self.queue.remove(key, uid, persisted, entomb);
        let removed = self.table.remove(key, uid);
        self.wakeups.forget(key);
        if removed.is_some_and(|entry| entry.contested) {
            crate::agents::rescan(self, key);
        }
    }

    /// Has a look at every claim that is, or may be, on this agent.
    pub fn wake_agent(&self, name: &str) {
        let mut keys = Vec::new();
        self.table.for_each(|entry| {
            let status = &entry.claim.status;
            let here = status.agent.as_ref().is_some_and(|agent| &*agent.name == name)
                || status.leftovers.iter().any(|left| &*left.agent.name == name);
            if here {
                keys.push(entry.claim.key.clone());
            }
        });
        for key in keys {
            // What failed while it was away is tried at once.
            self.table.with(&key, |entry| entry.not_before = None);
            self.wakeups.now(&key);
        }
    }

    /// Has a look at every claim.
    pub fn wake_all(&self) {
        let mut keys = Vec::new();
        self.table.for_each(|entry| keys.push(entry.claim.key.clone()));
        keys.iter().for_each(|key| self.wakeups.now(key));
    }

    /// The store has taken or refused a claim.
    fn written(&self, claim: &Arc<Claim>, outcome: Outcome) {
        let key = &claim.key;
        match outcome {
            Outcome::Written => {
                self.unreadable.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
                let look = self.table.with_uid(key, &claim.uid, |entry| {
                    let first = !std::mem::replace(&mut entry.persisted, true);
                    entry.durable = Arc::ptr_eq(&entry.claim, claim);
                    if first {
                        self.table.tell(Change::Changed { claim: entry.claim.clone(), persisted: true });
                    }
                    // What waits for this is that an end may be forgotten by the agent.
                    entry.durable && claim.status.finished_at_ms != 0
                });
                if look == Some(true) {
                    self.wakeups.now(key);
                }
            }
            Outcome::Refused { reason, message } => {
                self.metrics.claim_refused(reason);
                tracing::error!(sandbox = %key, reason, message,
                    "the store refuses a claim; its sandbox is stopped when the orphan timeout is over");
                self.table.with_uid(key, &claim.uid, |entry| {
                    entry
                        .refused
                        .get_or_insert(Refused { since: Instant::now(), message: format!("{reason}: {message}") });
                });
                self.wakeups.now(key);
            }
        }
    }
}

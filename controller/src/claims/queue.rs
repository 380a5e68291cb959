//! The way of claims to the store: one operation of a name after the other, retried for ever.
//!
//! A name's operations never overtake each other, so a late write cannot bring a removed claim back: what is still
//! waiting for a removed UID is dropped, and its tombstone refuses what comes later. Of several writes of one claim
//! that wait only the last is done.

use super::{Claim, ClaimStore, Key, Tombstones, WriteError};
use crate::config::Timing;
use crate::metrics::Metrics;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

/// What became of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is durable.
    Written,
    /// The store will never take it.
    Refused {
        /// A word.
        reason: &'static str,
        /// A sentence.
        message: String,
    },
}

type Observer = Box<dyn Fn(&Arc<Claim>, Outcome) + Send + Sync>;
type Waiter = oneshot::Sender<Outcome>;

enum Op {
    Put { claim: Arc<Claim>, urgent: bool, waiters: Vec<Waiter> },
    Remove { uid: Arc<str>, entomb: bool },
}

#[derive(Default)]
struct Name {
    waiting: VecDeque<Op>,
    /// UID of the put that is with the store now.
    putting: Option<Arc<str>>,
}

struct State {
    names: HashMap<Key, Name>,
    tombstones: Tombstones,
}

/// The queue of all names.
pub struct Queue {
    store: Arc<dyn ClaimStore>,
    state: Mutex<State>,
    observer: Observer,
    metrics: Arc<Metrics>,
    retry_least: Duration,
    retry_most: Duration,
    idle: Notify,
    closed: CancellationToken,
}

impl Queue {
    /// A queue before `store`. `observer` hears of every outcome and the state it is about; it is called without any lock of the queue.
    pub fn new(
        store: Arc<dyn ClaimStore>,
        tombstones: Tombstones,
        metrics: Arc<Metrics>,
        timing: &Timing,
        observer: impl Fn(&Arc<Claim>, Outcome) + Send + Sync + 'static,
    ) -> Self {
        Self {
            store,
            state: Mutex::new(State { names: HashMap::new(), tombstones }),
            observer: Box::new(observer),
            metrics,
            retry_least: timing.retry_least,
            retry_most: timing.retry_most,
            idle: Notify::new(),
            closed: CancellationToken::new(),
        }
    }

    /// Wants this state of the claim written. The receiver hears when it, or a later state, is; it hears nothing when
    /// the claim was removed before.
    pub fn put(self: &Arc<Self>, claim: Arc<Claim>, urgent: bool) -> oneshot::Receiver<Outcome> {
        let (waiter, receipt) = oneshot::channel();
        let mut state = self.lock();
        if state.tombstones.contains(&claim.uid) {
            return receipt;
        }
        let key = claim.key.clone();
        let (name, start) = entry(&mut state, &key);
        match name.waiting.back_mut() {
            Some(Op::Put { claim: waiting, urgent: also, waiters }) if waiting.uid == claim.uid => {
                *waiting = claim;
                *also |= urgent;
                waiters.push(waiter);
            }
            _ => {
                name.waiting.push_back(Op::Put { claim, urgent, waiters: vec![waiter] });
                self.metrics.claims_waiting.inc();
            }
        }
        drop(state);
        self.start(key, start);
        receipt
    }

    /// The claim of this UID is gone. `persisted`: the store may have it. `entomb`: an instance may be left.
    pub fn remove(self: &Arc<Self>, key: &Key, uid: &Arc<str>, persisted: bool, entomb: bool) {
        let mut state = self.lock();
        state.tombstones.insert(uid.clone(), Instant::now(), entomb);
        let mut in_store = persisted || entomb;
        if let Some(name) = state.names.get_mut(key) {
            let before = name.waiting.len();
            name.waiting.retain(|op| !matches!(op, Op::Put { claim, .. } if claim.uid == *uid));
            self.metrics.claims_waiting.dec_by((before - name.waiting.len()) as i64);
            in_store |= name.putting.as_ref() == Some(uid);
        }
        if !in_store {
            return;
        }
        let (name, start) = entry(&mut state, key);
        name.waiting.push_back(Op::Remove { uid: uid.clone(), entomb });
        self.metrics.claims_waiting.inc();
        drop(state);
        self.start(key.clone(), start);
    }

    /// Whether the claim of this UID is gone.
    pub fn entombed(&self, uid: &str) -> bool {
        self.lock().tombstones.contains(uid)
    }

    /// Waits until nothing waits for the store any more. Dropping the future gives up.
    pub async fn flush(&self) {
        loop {
            let idle = self.idle.notified();
            if self.lock().names.is_empty() {
                return;
            }
            idle.await;
        }
    }

    /// No more tries, and the store is closed. What is not written by now comes back from the agents.
    pub async fn close(&self) {
        self.closed.cancel();
        self.store.close().await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(self: &Arc<Self>, key: Key, start: bool) {
        if start {
            let queue = self.clone();
            tokio::spawn(async move { queue.drive(key).await });
        }
    }

    /// Works off one name and ends when nothing waits for it.
    async fn drive(self: Arc<Self>, key: Key) {
        while let Some(op) = self.next(&key) {
            if self.closed.is_cancelled() {
                return;
            }
            match op {
                Op::Put { claim, urgent, waiters } => self.drive_put(&key, claim, urgent, waiters).await,
                Op::Remove { uid, entomb } => self.drive_remove(&key, uid, entomb).await,
            }
        }
        self.idle.notify_waiters();
    }

    fn next(&self, key: &Key) -> Option<Op> {
        let mut state = self.lock();
        let name = state.names.get_mut(key)?;
        name.putting = None;
        let Some(op) = name.waiting.pop_front() else {
            state.names.remove(key);
            return None;
        };
        if let Op::Put { claim, .. } = &op {
            name.putting = Some(claim.uid.clone());
        }
        Some(op)
    }

    async fn drive_put(&self, key: &Key, mut claim: Arc<Claim>, mut urgent: bool, mut waiters: Vec<Waiter>) {
        let mut failures = 0;
        let outcome = loop {
            match self.store.put(claim.clone(), urgent).await {
                Ok(()) => break Some(Outcome::Written),
                Err(WriteError::Final { reason, message }) => break Some(Outcome::Refused { reason, message }),
                Err(WriteError::Transient(_)) if self.closed.is_cancelled() => return,
                Err(WriteError::Transient(why)) => self.back_off(key, &mut failures, &why).await,
            }
            let mut state = self.lock();
            if state.tombstones.contains(&claim.uid) {
                break None;
            }
            let Some(name) = state.names.get_mut(key) else { continue };
            if let Some(Op::Put { claim: newer, .. }) = name.waiting.front()
                && newer.uid == claim.uid
                && let Some(Op::Put { claim: newer, urgent: also, waiters: more }) = name.waiting.pop_front()
            {
                claim = newer;
                urgent |= also;
                waiters.extend(more);
                self.metrics.claims_waiting.dec();
            }
        };
        self.metrics.claims_waiting.dec();
        let Some(outcome) = outcome else { return };
        (self.observer)(&claim, outcome.clone());
        for waiter in waiters {
            let _ = waiter.send(outcome.clone());
        }
    }

    async fn drive_remove(&self, key: &Key, uid: Arc<str>, entomb: bool) {
        let mut failures = 0;
        loop {
            match self.store.remove(key.clone(), uid.clone(), entomb).await {
                Ok(()) => break,
                Err(WriteError::Transient(_)) if self.closed.is_cancelled() => return,
                Err(WriteError::Transient(why)) => self.back_off(key, &mut failures, &why).await,
                Err(WriteError::Final { reason, message }) => {
                    tracing::error!(claim = %key, reason, message, "the store refuses to remove a claim");
                    break;
                }
            }
        }
        self.metrics.claims_waiting.dec();
    }

    async fn back_off(&self, key: &Key, failures: &mut u32, why: &str) {
        *failures += 1;
        self.metrics.claim_write_errors.inc();
        if failures.is_power_of_two() {
            tracing::warn!(claim = %key, failures, why, "a claim could not be written and is tried again");
        }
        let pause = crate::backoff::delay(self.retry_least, self.retry_most, *failures);
        // A pause is cut short by the end, which the next failure sees.
        let _ = tokio::time::timeout(pause, self.closed.cancelled()).await;
    }
}

/// The name's queue, and whether somebody has to be started to work it off.
fn entry<'a>(state: &'a mut State, key: &Key) -> (&'a mut Name, bool) {
    let start = !state.names.contains_key(key);
    (state.names.entry(key.clone()).or_default(), start)
}

#[cfg(test)]
mod tests;

//! All claims as they are right now, written or not.

use super::{Claim, Key, Policy};
use crate::clock::Clock;
use crate::registry::Reservation;
use fsb_rpc::{Feed, Watcher};
use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

const SHARDS: usize = 32;
/// The longest time that a claim can be kept after its end.
const LONGEST_TTL: Duration = Duration::from_secs(u32::MAX as u64);

/// The store will never take this claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Since when.
    pub since: Instant,
    /// The store's word and sentence.
    pub message: String,
}

/// What is known of the reader that a claim's creator is, who follows its output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttachedReader {
    /// When it last took something.
    pub seen: Option<Instant>,
    /// It has had the last byte.
    pub done: bool,
}

/// A claim and what this process knows about it.
#[derive(Debug)]
pub struct Entry {
    /// Its state.
    pub claim: Arc<Claim>,
    /// The store has it, in this or an earlier state.
    pub persisted: bool,
    /// The store has exactly this state.
    pub durable: bool,
    /// The store has refused it.
    pub refused: Option<Refused>,
    /// Slots and ports, one per generation that may hold some.
    pub reservations: Vec<Reservation>,
    /// Generations of which an agent has said that nothing is left.
    pub gone: Vec<i64>,
    /// An agent has said that nothing is left of the current instance and that its logs are gone too.
    pub purged: bool,
    /// The agent has been told to remove the current instance with its logs and is at it: with its word that nothing is left
    /// the claim is purged.
    pub purging: bool,
    /// When the agent answered the create: an older report says nothing about the instance.
    pub confirmed: Option<Instant>,
    /// The policy that the agent was told.
    pub pushed: Option<Policy>,
    /// Ends the start that is under way.
    pub cancel: Option<CancellationToken>,
    /// A client's create is under way: others who create the same wait for its end.
    pub creating: bool,
    /// Those who wait.
    pub joiners: Vec<oneshot::Sender<Result<Arc<Claim>, tonic::Status>>>,
    /// Failed tries in a row of what the claim needs next.
    pub failures: u32,
    /// An instance of another claim of this name waits for this one to go.
    pub contested: bool,
    /// No other try before.
    pub not_before: Option<Instant>,
    /// When it expires: the claim's time of the wall clock, read once, when this process got to know it.
    pub expires: Option<Instant>,
    /// When it ended. From the claim only where a process before this one saw the end.
    pub finished: Option<Instant>,
    /// Who is attached to the output of the current instance.
    pub reader: AttachedReader,
    /// Since when its agent is lost. From the claim only where a process before this one saw the loss.
    pub lost_since: Option<Instant>,
    busy: bool,
    again: bool,
}

impl Entry {
    /// A claim that nobody works on. Its times are those of the wall clock as it stands now.
    pub fn new(claim: Arc<Claim>, persisted: bool, clock: &Clock) -> Self {
        let most = Duration::from_secs(claim.policy.recovery_seconds.into());
        Self {
            expires: claim.policy.expires(clock),
            finished: claim.finished().then(|| clock.since(claim.status.finished_at_ms, LONGEST_TTL)),
            // One of a process before this one is on its way back.
            reader: AttachedReader { seen: Some(Instant::now()), done: false },
            lost_since: claim.status.agent_lost_at_ms.map(|at| clock.since(at, most)),
            claim,
            persisted,
            durable: persisted,
            refused: None,
            reservations: Vec::new(),
            gone: Vec::new(),
            purged: false,
            purging: false,
            confirmed: None,
            pushed: None,
            cancel: None,
            creating: false,
            joiners: Vec::new(),
            failures: 0,
            contested: false,
            not_before: None,
            busy: false,
            again: false,
        }
    }

    /// A claim that its creator works on.
    pub fn new_busy(claim: Arc<Claim>, clock: &Clock) -> Self {
        Self { busy: true, creating: true, cancel: Some(CancellationToken::new()), ..Self::new(claim, false, clock) }
    }

    /// Whether somebody works on it.
    pub fn busy(&self) -> bool {
        self.busy
    }
}

/// What watchers hear.
#[derive(Debug, Clone)]
pub enum Change {
    /// The claim as it is now.
    Changed {
        /// Its state.
        claim: Arc<Claim>,
        /// Whether the store has it.
        persisted: bool,
    },
    /// It is gone.
    Removed {
        /// Its last state.
        claim: Arc<Claim>,
    },
}

impl Change {
    /// The claim that it is about.
    pub fn claim(&self) -> &Arc<Claim> {
        match self {
            Change::Changed { claim, .. } | Change::Removed { claim } => claim,
        }
    }
}

/// The table: sharded by name, so that no lock is everybody's.
#[derive(Debug)]
pub struct Table {
    shards: Vec<Mutex<HashMap<Key, Entry>>>,
    hasher: RandomState,
    changes: Feed<Change>,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            changes: Feed::default(),
        }
    }
}

impl Table {
    /// Puts a claim in, or looks at the one that has the name.
    pub fn insert<T>(&self, key: &Key, entry: Entry, occupied: impl FnOnce(&mut Entry) -> T) -> Result<(), T> {
        match self.shard(key).entry(key.clone()) {
            MapEntry::Occupied(mut there) => Err(occupied(there.get_mut())),
            MapEntry::Vacant(vacant) => {
                self.tell(Change::Changed { claim: entry.claim.clone(), persisted: entry.persisted });
                vacant.insert(entry);
                Ok(())
            }
        }
    }

    /// Looks at a claim or changes it. Short: others wait.
    pub fn with<T>(&self, key: &Key, action: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        self.shard(key).get_mut(key).map(action)
    }

    /// As [`with`](Self::with), if the claim has this UID.
    pub fn with_uid<T>(&self, key: &Key, uid: &str, action: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        self.shard(key).get_mut(key).filter(|entry| &*entry.claim.uid == uid).map(action)
    }

    /// The claim and whether the store has it.
    pub fn get(&self, key: &Key) -> Option<(Arc<Claim>, bool)> {
        self.with(key, |entry| (entry.claim.clone(), entry.persisted))
    }

    /// Takes a claim out, if it has this UID.
    pub fn remove(&self, key: &Key, uid: &str) -> Option<Entry> {
        let mut shard = self.shard(key);
        if &*shard.get(key)?.claim.uid != uid {
            return None;
        }
        let entry = shard.remove(key)?;
        self.tell(Change::Removed { claim: entry.claim.clone() });
        Some(entry)
    }

    /// Every claim that passes, in the order of their names.
    pub fn list(&self, pass: impl Fn(&Claim) -> bool) -> Vec<(Arc<Claim>, bool)> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend(
                shard.values().filter(|entry| pass(&entry.claim)).map(|entry| (entry.claim.clone(), entry.persisted)),
            );
        }
        all.sort_by(|a, b| a.0.key.cmp(&b.0.key));
        all
    }

    /// Calls `each` with every claim.
    pub fn for_each(&self, mut each: impl FnMut(&Entry)) {
        for shard in &self.shards {
            shard.lock().unwrap_or_else(PoisonError::into_inner).values().for_each(&mut each);
        }
    }

    /// Begins work on a claim. `None` if it is gone or somebody works on it, who will look again when done.
    pub fn begin(self: &Arc<Self>, key: &Key) -> Option<Turn> {
        self.with(key, |entry| {
            if entry.busy {
                entry.again = true;
                return None;
            }
            entry.busy = true;
            entry.again = false;
            Some(entry.claim.uid.clone())
        })
        .flatten()
        .map(|uid| Turn { table: self.clone(), key: key.clone(), uid, ended: false })
    }

    /// The turn of the one who put a busy claim in.
    pub fn turn(self: &Arc<Self>, key: &Key, uid: &Arc<str>) -> Turn {
        Turn { table: self.clone(), key: key.clone(), uid: uid.clone(), ended: false }
    }

    /// Changes from here on.
    pub fn watch(&self) -> Watcher<Change> {
        self.changes.watch()
    }

    /// Tells watchers of a change. Called with the claim's lock held, so that changes of one claim come in order.
    pub fn tell(&self, change: Change) {
        if self.changes.is_watched() {
            let bytes = change.claim().weight();
            self.changes.tell(change, bytes);
        }
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, HashMap<Key, Entry>> {
        let index = self.hasher.hash_one(key) as usize % SHARDS;
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to work on a claim. It ends with the value, also in a panic.
#[derive(Debug)]
pub struct Turn {
    table: Arc<Table>,
    key: Key,
    uid: Arc<str>,
    ended: bool,
}

impl Turn {
    /// Ends the turn. Whether something happened meanwhile that wants another look.
    pub fn end(mut self) -> bool {
        self.ended = true;
        self.finish()
    }

    fn finish(&self) -> bool {
        self.table
            .with_uid(&self.key, &self.uid, |entry| {
                entry.busy = false;
                entry.cancel = None;
                entry.creating = false;
                // Whoever still waits for the end of a create that panicked hears that nobody will answer.
                entry.joiners.clear();
                std::mem::take(&mut entry.again)
            })
            .unwrap_or(false)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.ended {
            self.finish();
        }
    }
}

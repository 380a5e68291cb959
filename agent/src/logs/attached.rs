//! Readers whom sandboxes wait for: how far they are, for the keeper.
//!
//! What has changed is told by one task, the latest of it and in order, so that no reader waits for the keeper and a fast
//! one does not wake it for every block.

use crate::{Agent, lock};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// A reader that goes on without a pause is told of after so many bytes.
const STEP: u64 = 256 << 10;

/// All of them.
#[derive(Default)]
pub(super) struct Attached {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    next: u64,
    /// By instance, the place of each of its readers, by number.
    readers: HashMap<String, HashMap<u64, u64>>,
    changed: HashSet<String>,
}

/// One of them, until it is dropped.
pub(super) struct Reading {
    all: Arc<Attached>,
    id: String,
    number: u64,
    told: u64,
}

impl Reading {
    /// Begins to read the log of the instance `id` at `place`.
    pub(super) fn begin(all: &Arc<Attached>, id: &str, place: u64) -> Self {
        let mut state = lock(&all.state);
        let number = state.next;
        state.next += 1;
        drop(state);
        let mut reading = Self { all: all.clone(), id: id.to_owned(), number, told: 0 };
        reading.tell(place);
        reading
    }

    /// It has read up to `place`, and goes on.
    pub(super) fn passed(&mut self, place: u64) {
        if place >= self.told + STEP {
            self.tell(place);
        }
    }

    /// It has read up to `place`, where there is no more for now. Whether the keeper knows.
    pub(super) fn knows(&self, place: u64) -> bool {
        self.told == place
    }

    /// The keeper is to know that it has read up to `place`.
    pub(super) fn tell(&mut self, place: u64) {
        self.told = place;
        let mut state = lock(&self.all.state);
        state.readers.entry(self.id.clone()).or_default().insert(self.number, place);
        state.changed.insert(self.id.clone());
        drop(state);
        self.all.changed.notify_one();
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut state = lock(&self.all.state);
        if let Some(readers) = state.readers.get_mut(&self.id) {
            readers.remove(&self.number);
            if readers.is_empty() {
                state.readers.remove(&self.id);
            }
        }
        state.changed.insert(self.id.clone());
        drop(state);
        self.all.changed.notify_one();
    }
}

/// Tells the keeper, until the agent ends.
pub(crate) async fn tell(agent: Arc<Agent>) {
    let attached = &agent.logs.attached;
    loop {
        tokio::select! {
            () = attached.changed.notified() => {}
            () = agent.shutdown.cancelled() => return,
        }
        let changed: Vec<(Option<u64>, String)> = {
            let mut state = lock(&attached.state);
            let ids = std::mem::take(&mut state.changed);
            let slowest = |id: &String| state.readers.get(id).and_then(|readers| readers.values().min().copied());
            ids.into_iter().map(|id| (slowest(&id), id)).collect()
        };
        for (taken, id) in changed {
            // A keeper that is gone holds nothing.
            let _ = agent.keeper.read_log(&id, taken).await;
        }
    }
}

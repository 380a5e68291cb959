//! Who wants to be looked at, and when: at most one time per claim, the earliest.

use crate::claims::Key;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::Notify;

/// The set. As large as the number of claims at most, so it needs no other bound.
#[derive(Debug, Default)]
pub struct Wakeups {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    due: BTreeSet<(Instant, Key)>,
    when: HashMap<Key, Instant>,
}

impl Wakeups {
    /// Look at this claim now.
    pub fn now(&self, key: &Key) {
        self.at(key, Instant::now());
    }

    /// Look at this claim at `time`, if nothing wakes it earlier.
    pub fn at(&self, key: &Key, time: Instant) {
        let mut state = self.lock();
        match state.when.get(key).copied() {
            Some(earlier) if earlier <= time => return,
            Some(later) => {
                state.due.remove(&(later, key.clone()));
            }
            None => {}
        }
        let first = state.due.first().is_none_or(|(at, _)| time < *at);
        state.when.insert(key.clone(), time);
        state.due.insert((time, key.clone()));
        drop(state);
        if first {
            self.changed.notify_one();
        }
    }

    /// This claim is gone.
    pub fn forget(&self, key: &Key) {
        let mut state = self.lock();
        if let Some(at) = state.when.remove(key) {
            state.due.remove(&(at, key.clone()));
        }
    }

    /// The next claim that is due. Waits for it; must be waited for by one task only.
    pub async fn next(&self) -> Key {
        loop {
            let changed = self.changed.notified();
            let wait = {
                let mut state = self.lock();
                match state.due.first().map(|(at, _)| *at) {
                    Some(at) if at <= Instant::now() => {
                        if let Some((_, key)) = state.due.pop_first() {
                            state.when.remove(&key);
                            return key;
                        }
                        None
                    }
                    other => other,
                }
            };
            match wait {
                Some(at) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(at.into()) => {}
                        () = changed => {}
                    }
                }
                None => changed.await,
            }
        }
    }

    /// How many claims have a time.
    pub fn len(&self) -> usize {
        self.lock().when.len()
    }

    /// Whether no claim has a time.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_claim_is_woken_once_at_its_earliest_time() {
        let wakeups = Wakeups::default();
        let (a, b) = (Key::new("n", "a"), Key::new("n", "b"));
        let now = Instant::now();
        wakeups.at(&a, now + Duration::from_secs(3600));
        wakeups.at(&b, now + Duration::from_millis(5));
        wakeups.now(&a);
        wakeups.at(&a, now + Duration::from_secs(7200));
        assert_eq!(wakeups.next().await, a);
        assert_eq!(wakeups.next().await, b);
        assert!(wakeups.is_empty());
    }

    #[test]
    fn a_claim_that_is_gone_leaves_nothing() {
        let wakeups = Wakeups::default();
        let a = Key::new("n", "a");
        wakeups.at(&a, Instant::now() + Duration::from_secs(3600));
        wakeups.forget(&a);
        assert!(wakeups.is_empty() && wakeups.lock().due.is_empty());
    }
}

//! UIDs of claims that are gone, so that nothing late brings one back.
//!
//! Bounded by their number: a clock that is set makes none of them older.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longer than any call to an agent or a write can be under way.
const KEPT: Duration = Duration::from_secs(15 * 60);
/// The most that are kept; the oldest go first. Memory stays flat whatever the rate of removals.
const MAX_RECENT: usize = 65_536;
/// The most lasting ones, in memory and in the store. An agent that comes back after so many others have been removed
/// while theirs was out of reach is believed.
pub(super) const MAX_LASTING: usize = 65_536;

/// The set.
#[derive(Debug, Default)]
pub struct Tombstones {
    recent: HashMap<Arc<str>, Instant>,
    order: VecDeque<(Instant, Arc<str>)>,
    lasting: HashSet<Arc<str>>,
    lasting_order: VecDeque<Arc<str>>,
}

impl Tombstones {
    /// With those that the store has kept, the oldest first.
    pub fn new(lasting: impl IntoIterator<Item = Arc<str>>) -> Self {
        let mut tombstones = Self::default();
        lasting.into_iter().for_each(|uid| tombstones.insert_lasting(uid));
        tombstones
    }

    fn insert_lasting(&mut self, uid: Arc<str>) {
        if !self.lasting.insert(uid.clone()) {
            return;
        }
        self.lasting_order.push_back(uid);
        if self.lasting_order.len() > MAX_LASTING
            && let Some(oldest) = self.lasting_order.pop_front()
        {
            self.lasting.remove(&oldest);
        }
    }

    /// The claim of this UID is gone. `lasting`: an instance of it may come back, whenever that is.
    pub fn insert(&mut self, uid: Arc<str>, now: Instant, lasting: bool) {
        if lasting {
            self.insert_lasting(uid);
            return;
        }
        while let Some((since, _)) = self.order.front() {
            if self.order.len() < MAX_RECENT && now.duration_since(*since) < KEPT {
                break;
            }
            if let Some((since, uid)) = self.order.pop_front()
                && self.recent.get(&uid) == Some(&since)
            {
                self.recent.remove(&uid);
            }
        }
        self.recent.insert(uid.clone(), now);
        self.order.push_back((now, uid));
    }

    /// Whether the claim of this UID is gone.
    pub fn contains(&self, uid: &str) -> bool {
        self.recent.contains_key(uid) || self.lasting.contains(uid)
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.recent.len() + self.lasting.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_removals_do_not_fill_the_memory() {
        let mut tombstones = Tombstones::default();
        let now = Instant::now();
        for i in 0..1_000_000u32 {
            tombstones.insert(i.to_string().into(), now, false);
        }
        assert!(tombstones.len() <= MAX_RECENT);
        assert!(tombstones.contains("999999"));
        assert!(!tombstones.contains("0"));
    }

    #[test]
    fn lasting_tombstones_are_bounded_while_the_program_runs_and_the_oldest_goes_first() {
        let mut tombstones = Tombstones::new(["before".into()]);
        let now = Instant::now();
        for i in 0..MAX_LASTING {
            tombstones.insert(i.to_string().into(), now, true);
            tombstones.insert(i.to_string().into(), now, true);
        }
        assert_eq!(tombstones.len(), MAX_LASTING);
        assert!(!tombstones.contains("before") && tombstones.contains("0"));
    }

    #[test]
    fn an_old_tombstone_goes_and_a_lasting_one_stays() {
        let mut tombstones = Tombstones::new(["kept".into()]);
        let now = Instant::now();
        tombstones.insert("a".into(), now, false);
        tombstones.insert("b".into(), now + KEPT, false);
        assert!(!tombstones.contains("a"));
        assert!(tombstones.contains("b") && tombstones.contains("kept"));
    }
}

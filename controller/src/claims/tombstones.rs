//! UIDs of claims that are gone, so that nothing late brings one back.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longer than any call to an agent or a write can be under way.
const KEPT: Duration = Duration::from_secs(15 * 60);
/// The most that are kept; the oldest go first. Memory stays flat whatever the rate of removals.
const MOST: usize = 65_536;

/// The set.
#[derive(Debug, Default)]
pub struct Tombstones {
    recent: HashMap<Arc<str>, Instant>,
    order: VecDeque<(Instant, Arc<str>)>,
    lasting: HashSet<Arc<str>>,
}

impl Tombstones {
    /// With those that the store has kept.
    pub fn new(lasting: impl IntoIterator<Item = Arc<str>>) -> Self {
        Self { lasting: lasting.into_iter().collect(), ..Self::default() }
    }

    /// The claim of this UID is gone. `lasting`: remember it for as long as this program runs.
    pub fn insert(&mut self, uid: Arc<str>, now: Instant, lasting: bool) {
        if lasting {
            self.lasting.insert(uid);
            return;
        }
        while let Some((since, _)) = self.order.front() {
            if self.order.len() < MOST && now.duration_since(*since) < KEPT {
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
        assert!(tombstones.len() <= MOST);
        assert!(tombstones.contains("999999"));
        assert!(!tombstones.contains("0"));
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

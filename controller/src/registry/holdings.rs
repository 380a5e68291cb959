//! Who holds a slot on which agent, and with which ports.
//!
//! A slab with a table over it: a reservation knows its number in the slab and gives itself back without a search; a
//! report finds a sandbox by agent and holder. Reported ones are listed per agent too, so that the next whole report
//! finds out which of them are gone.
//!
//! The table is open addressing with linear probing, and what is taken out closes its gap: slots are taken and freed
//! all the time, and a table with tombstones would have to be built anew again and again. It holds hashes beside the
//! numbers, so that a probe rarely has to look into the slab, which is too large for a processor's caches.

use super::hash::Seed;
use super::{Holder, Place};
use std::hash::{BuildHasher, Hasher};

/// A holding's number. It stays the same for as long as the holding lives.
pub type Number = u32;

/// Stands for no number: a pool with four billion sandboxes would not fit into memory.
const NONE: Number = u32::MAX;

/// Who holds: 128 bits of a hash over agent, UID and generation. Two that are alike by chance would need 10^19
/// sandboxes at a time, and nobody outside chooses UIDs.
type Identity = u128;

/// Why a slot is taken: by reservations of ours, by the agent's report, or both. It is free when none of them is left.
#[derive(Debug)]
pub struct Holding {
    identity: Identity,
    pub place: Place,
    /// Sorted.
    pub ports: Box<[u16]>,
    /// Reservations that are alive.
    pub reserved: u32,
    /// Its position in the agent's list of reported ones.
    pub reported: Option<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    hash: u32,
    number: Number,
}

const EMPTY: Bucket = Bucket { hash: 0, number: NONE };

/// All holdings of a pool.
#[derive(Debug, Default)]
pub struct Holdings {
    slab: Vec<Option<Holding>>,
    vacant: Vec<Number>,
    /// A power of two of them, or none; at most two of three are in use.
    buckets: Vec<Bucket>,
    seeds: (Seed, Seed),
}

impl Holdings {
    /// The holding of `holder` on this agent, and whether it is a new one, without reservation, report or ports.
    pub fn find_or_add(&mut self, place: Place, holder: &Holder) -> (Number, bool) {
        if (self.slab.len() - self.vacant.len() + 1) * 3 > self.buckets.len() * 2 {
            self.grow();
        }
        let identity = self.identity(place, holder);
        let bucket = match self.search(identity) {
            Ok(bucket) => return (self.buckets[bucket].number, false),
            Err(bucket) => bucket,
        };
        let holding = Holding { identity, place, ports: Box::default(), reserved: 0, reported: None };
        let number = match self.vacant.pop() {
            Some(number) => {
                self.slab[number as usize] = Some(holding);
                number
            }
            None => {
                self.slab.push(Some(holding));
                (self.slab.len() - 1) as Number
            }
        };
        self.buckets[bucket] = Bucket { hash: identity as u32, number };
        (number, true)
    }

    /// The holding of `holder` on this agent.
    pub fn find(&self, place: Place, holder: &Holder) -> Option<Number> {
        if self.buckets.is_empty() {
            return None;
        }
        let bucket = self.search(self.identity(place, holder)).ok()?;
        Some(self.buckets[bucket].number)
    }

    /// The holding of this number.
    pub fn get(&self, number: Number) -> Option<&Holding> {
        self.slab.get(number as usize)?.as_ref()
    }

    /// The holding of this number, to change it.
    pub fn get_mut(&mut self, number: Number) -> Option<&mut Holding> {
        self.slab.get_mut(number as usize)?.as_mut()
    }

    /// Takes a holding out. Its number may be another one's from here on.
    pub fn remove(&mut self, number: Number) -> Option<Holding> {
        let holding = self.slab.get_mut(number as usize)?.take()?;
        let mask = self.buckets.len() - 1;
        let mut gap = holding.identity as usize & mask;
        while self.buckets[gap].number != number {
            gap = (gap + 1) & mask;
        }
        // What comes after the gap moves into it, if it is not already where it belongs or nearer to that.
        let mut next = (gap + 1) & mask;
        while self.buckets[next].number != NONE {
            let home = self.buckets[next].hash as usize & mask;
            if (next.wrapping_sub(home) & mask) >= (next.wrapping_sub(gap) & mask) {
                self.buckets[gap] = self.buckets[next];
                gap = next;
            }
            next = (next + 1) & mask;
        }
        self.buckets[gap] = EMPTY;
        self.vacant.push(number);
        Some(holding)
    }

    /// The bucket with this identity, or the empty one where it would be. There is an empty one.
    fn search(&self, identity: Identity) -> Result<usize, usize> {
        let mask = self.buckets.len() - 1;
        let mut at = identity as usize & mask;
        loop {
            let Bucket { hash, number } = self.buckets[at];
            if number == NONE {
                return Err(at);
            }
            if hash == identity as u32 && self.get(number).is_some_and(|holding| holding.identity == identity) {
                return Ok(at);
            }
            at = (at + 1) & mask;
        }
    }

    fn grow(&mut self) {
        let size = (self.buckets.len() * 2).max(16);
        let before = std::mem::replace(&mut self.buckets, vec![EMPTY; size]);
        for bucket in before.into_iter().filter(|bucket| bucket.number != NONE) {
            let mut at = bucket.hash as usize & (size - 1);
            while self.buckets[at].number != NONE {
                at = (at + 1) & (size - 1);
            }
            self.buckets[at] = bucket;
        }
    }

    fn identity(&self, place: Place, holder: &Holder) -> Identity {
        let half = |seed: &Seed| {
            let mut hasher = seed.build_hasher();
            hasher.write_u64(u64::from(place.index) << 32 | u64::from(place.epoch));
            hasher.write_u64(holder.generation as u64);
            hasher.write(holder.uid.as_bytes());
            hasher.finish()
        };
        u128::from(half(&self.seeds.0)) << 64 | u128::from(half(&self.seeds.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn what_is_in_it_is_found_and_what_was_taken_out_is_not(ops in prop::collection::vec((0u32..60, any::<bool>()), 0..400)) {
            let mut holdings = Holdings::default();
            let mut model: BTreeMap<u32, Number> = BTreeMap::new();
            let place = Place { index: 3, epoch: 1 };
            let holder = |uid: u32| Holder { uid: uid.to_string().into(), generation: 1 };
            for (uid, add) in ops {
                if add {
                    let (number, new) = holdings.find_or_add(place, &holder(uid));
                    prop_assert_eq!(new, model.insert(uid, number).is_none_or(|before| before != number));
                } else if let Some(number) = model.remove(&uid) {
                    prop_assert!(holdings.remove(number).is_some());
                    prop_assert!(holdings.remove(number).is_none());
                }
                for uid in 0..60 {
                    prop_assert_eq!(holdings.find(place, &holder(uid)), model.get(&uid).copied());
                }
                prop_assert_eq!(holdings.find(Place { index: 3, epoch: 2 }, &holder(uid)), None);
            }
            let alive = holdings.buckets.iter().filter(|bucket| bucket.number != NONE).count();
            prop_assert_eq!(alive, model.len());
        }
    }
}

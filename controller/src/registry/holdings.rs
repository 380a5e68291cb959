//! Who holds a slot on which agent.
//!
//! One table with the holdings in it: a reservation gives itself back and a report finds a sandbox with the same look,
//! by agent and holder.
//!
//! Open addressing with linear probing; what is taken out closes its gap: slots are taken and freed all the time, and a
//! table with tombstones would have to be built anew again and again. The table is too large for a processor's nearer
//! caches, and what a look costs is the lines of memory that it waits for. So a holding is one word, at most half of
//! the table is in use, and where a look begins is told by the holder alone: it is fetched while the agent is still
//! being chosen.

use super::hash::Seed;
use super::prefetch::prefetch;
use super::{Holder, Place};
use std::hash::{BuildHasher, Hasher};

/// Which holding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// A hash over UID, generation and agent, never 0; the lower half is of the holder alone. Two that are alike by
    /// chance would need 10^8 sandboxes in a pool, and nobody outside chooses UIDs.
    pub identity: u64,
    /// The agent.
    pub place: Place,
}

/// Why a slot is taken: by reservations of ours, by the agent's report, or both. It is free when none of them is left.
///
/// The bits, from the lowest: the identity, whether it is reported, the number of reservations. 0 = nothing is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holding(u64);

/// Bits of an identity.
const IDENTITY: u64 = (1 << 55) - 1;
const REPORTED: u64 = 1 << 55;
const RESERVATION: u64 = 1 << 56;

const EMPTY: Holding = Holding(0);

impl Holding {
    fn identity(self) -> u64 {
        self.0 & IDENTITY
    }
}

/// Where in the table a holding is, until one is added or taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position(usize);

/// All holdings of a pool.
#[derive(Debug, Default)]
pub struct Holdings {
    /// A power of two of them, or none; at most half are in use.
    table: Vec<Holding>,
    count: usize,
    seed: Seed,
}

impl Holdings {
    /// What a holder's keys have in common.
    #[inline]
    pub fn hash(&self, holder: &Holder) -> u64 {
        let mut hasher = self.seed.build_hasher();
        hasher.write_u64(holder.generation as u64);
        hasher.write(holder.uid.as_bytes());
        hasher.finish()
    }

    /// The key of the holder with this hash on this agent.
    #[inline]
    pub fn key(&self, hash: u64, place: Place) -> Key {
        let mut hasher = self.seed.build_hasher();
        hasher.write_u64(hash);
        hasher.write_u64(u64::from(place.index) << 32 | u64::from(place.epoch));
        let identity = (hasher.finish() << 32 | hash & u64::from(u32::MAX)) & IDENTITY;
        Key { identity: identity.max(1), place }
    }

    /// A look for a holder with this hash will come soon.
    #[inline]
    pub fn expect(&self, hash: u64) {
        prefetch(&self.table, hash as usize & self.table.len().wrapping_sub(1));
    }

    /// The holding of this key, and whether it is a new one, neither reserved nor reported.
    #[inline]
    pub fn find_or_add(&mut self, key: Key) -> (Position, bool) {
        if (self.count + 1) * 2 > self.table.len() {
            self.grow();
        }
        match self.search(key.identity) {
            Ok(at) => (Position(at), false),
            Err(at) => {
                self.table[at] = Holding(key.identity);
                self.count += 1;
                (Position(at), true)
            }
        }
    }

    /// The holding of this key.
    #[inline]
    pub fn find(&self, key: Key) -> Option<Position> {
        if self.table.is_empty() { None } else { self.search(key.identity).ok().map(Position) }
    }

    /// One reservation more.
    pub fn reserve(&mut self, at: Position) {
        let Holding(holding) = &mut self.table[at.0];
        *holding = holding.checked_add(RESERVATION).unwrap_or(*holding);
    }

    /// One reservation less, if there is any.
    pub fn unreserve(&mut self, at: Position) {
        let Holding(holding) = &mut self.table[at.0];
        *holding = holding.checked_sub(RESERVATION).unwrap_or(*holding);
    }

    /// The agent reports it, or not any more.
    pub fn set_reported(&mut self, at: Position, reported: bool) {
        let Holding(holding) = &mut self.table[at.0];
        *holding = if reported { *holding | REPORTED } else { *holding & !REPORTED };
    }

    /// Whether nothing is left for which the slot is taken.
    pub fn is_over(&self, at: Position) -> bool {
        self.table[at.0].0 & !IDENTITY == 0
    }

    /// Takes a holding out. What comes after the gap moves into it, if it is not already where it belongs or nearer to
    /// that.
    pub fn remove(&mut self, at: Position) {
        let mask = self.table.len() - 1;
        let (mut gap, mut next) = (at.0, (at.0 + 1) & mask);
        while self.table[next] != EMPTY {
            let home = self.table[next].identity() as usize & mask;
            if (next.wrapping_sub(home) & mask) >= (next.wrapping_sub(gap) & mask) {
                self.table[gap] = self.table[next];
                gap = next;
            }
            next = (next + 1) & mask;
        }
        self.table[gap] = EMPTY;
        self.count -= 1;
    }

    /// Where this one is, or the empty place where it would be. There is an empty one.
    #[inline]
    fn search(&self, identity: u64) -> Result<usize, usize> {
        let mask = self.table.len() - 1;
        let mut at = identity as usize & mask;
        loop {
            let found = self.table[at];
            if found == EMPTY {
                return Err(at);
            }
            if found.identity() == identity {
                return Ok(at);
            }
            at = (at + 1) & mask;
        }
    }

    #[cold]
    fn grow(&mut self) {
        let size = (self.table.len() * 2).max(16);
        let before = std::mem::replace(&mut self.table, vec![EMPTY; size]);
        for holding in before.into_iter().filter(|holding| *holding != EMPTY) {
            let (Ok(at) | Err(at)) = self.search(holding.identity());
            self.table[at] = holding;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const PLACE: Place = Place { index: 3, epoch: 1 };

    fn key(holdings: &Holdings, uid: u32, place: Place) -> Key {
        holdings.key(holdings.hash(&Holder { uid: uid.to_string().into(), generation: 1 }), place)
    }

    proptest! {
        #[test]
        fn what_is_in_it_is_found_and_what_was_taken_out_is_not(
            ops in prop::collection::vec((0u32..60, 0..4), 0..400)
        ) {
            let mut holdings = Holdings::default();
            let mut model: BTreeMap<u32, (u32, bool)> = BTreeMap::new();
            for (uid, op) in ops {
                let wanted = key(&holdings, uid, PLACE);
                match op {
                    0 | 1 => {
                        let (at, new) = holdings.find_or_add(wanted);
                        prop_assert_eq!(new, !model.contains_key(&uid));
                        let (reserved, reported) = model.entry(uid).or_default();
                        if op == 0 {
                            holdings.reserve(at);
                            *reserved += 1;
                        } else {
                            holdings.set_reported(at, true);
                            *reported = true;
                        }
                    }
                    _ => {
                        let Some(at) = holdings.find(wanted) else { continue };
                        let (reserved, reported) = model.get_mut(&uid).unwrap();
                        if op == 2 {
                            holdings.unreserve(at);
                            *reserved = reserved.saturating_sub(1);
                        } else {
                            holdings.set_reported(at, false);
                            *reported = false;
                        }
                        prop_assert_eq!(holdings.is_over(at), (*reserved, *reported) == (0, false));
                        if holdings.is_over(at) {
                            holdings.remove(at);
                            model.remove(&uid);
                        }
                    }
                }
                for uid in 0..60 {
                    prop_assert_eq!(holdings.find(key(&holdings, uid, PLACE)).is_some(), model.contains_key(&uid));
                    prop_assert_eq!(holdings.find(key(&holdings, uid, Place { index: 3, epoch: 2 })), None);
                }
            }
            prop_assert_eq!(holdings.table.iter().filter(|holding| **holding != EMPTY).count(), model.len());
            prop_assert_eq!(holdings.count, model.len());
        }
    }

    #[test]
    fn a_holding_with_more_reservations_than_can_be_counted_stays_what_it_is() {
        let mut holdings = Holdings::default();
        let wanted = key(&holdings, 1, PLACE);
        let (at, _) = holdings.find_or_add(wanted);
        (0..1000).for_each(|_| holdings.reserve(at));
        assert_eq!(holdings.find(wanted), Some(at));
        (0..1000).for_each(|_| holdings.unreserve(at));
        assert!(holdings.is_over(at));
        assert_eq!(holdings.find(wanted), Some(at));
    }
}

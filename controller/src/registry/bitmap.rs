//! Sets of agents as bits, with a summary that lets a search skip what is empty.
//!
//! One bit per agent of a pool and one summary bit per 64 agents. Putting an agent into a set or taking it out is one
//! store; asking for "open, has the image, does not use the port" is a walk over words that stops at the first hit.
//! 10,000 agents are 157 words.

use super::Place;

/// Agents per word, and words per word of the summary.
const BITS: usize = 64;

/// A set of small numbers.
#[derive(Debug, Clone, Default)]
pub struct Bitmap {
    words: Vec<u64>,
    summary: Vec<u64>,
    count: u32,
}

/// What a member has to be besides.
#[derive(Debug, Clone, Copy)]
pub struct Filter<'a> {
    /// In this set too.
    pub with: Option<&'a Bitmap>,
    /// In none of these.
    pub without: &'a [&'a Bitmap],
    /// None of these; a handful.
    pub except: &'a [Place],
}

impl Bitmap {
    /// Puts `index` in or takes it out. Whether that changed anything.
    pub fn set(&mut self, index: u32, on: bool) -> bool {
        let (word, bit) = (index as usize / BITS, 1u64 << (index as usize % BITS));
        if word >= self.words.len() {
            if !on {
                return false;
            }
            self.words.resize(word + 1, 0);
            self.summary.resize(word / BITS + 1, 0);
        }
        let changed = (self.words[word] & bit != 0) != on;
        if changed && on {
            self.words[word] |= bit;
            self.summary[word / BITS] |= 1 << (word % BITS);
            self.count += 1;
        } else if changed {
            self.words[word] &= !bit;
            if self.words[word] == 0 {
                self.summary[word / BITS] &= !(1 << (word % BITS));
            }
            self.count -= 1;
        }
        changed
    }

    /// Whether `index` is in the set.
    #[inline]
    pub fn contains(&self, index: u32) -> bool {
        self.word(index as usize / BITS) & (1u64 << (index as usize % BITS)) != 0
    }

    /// How many are in the set.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The first member that passes at or after `start`, going round at the end. A start beyond the end is the
    /// beginning.
    pub fn first_from(&self, start: u32, filter: Filter<'_>) -> Option<u32> {
        let words = self.words.len();
        if words == 0 {
            return None;
        }
        let start = if start as usize >= words * BITS { 0 } else { start as usize };
        let (first, bit) = (start / BITS, start % BITS);
        let hit = |word: usize, mask: u64| {
            let bits = self.passing(word, filter) & mask;
            (bits != 0).then(|| (word * BITS) as u32 + bits.trailing_zeros())
        };
        if let Some(found) = hit(first, !0 << bit) {
            return Some(found);
        }
        for (from, end) in [(first + 1, words), (0, first + 1)] {
            let mut word = from;
            while let Some(next) = self.next_word(word, end, filter) {
                if let Some(found) = hit(next, !0) {
                    return Some(found);
                }
                word = next + 1;
            }
        }
        None
    }

    #[inline]
    fn word(&self, word: usize) -> u64 {
        self.words.get(word).copied().unwrap_or(0)
    }

    /// The members in a word that pass.
    fn passing(&self, word: usize, filter: Filter<'_>) -> u64 {
        let mut bits = self.word(word) & filter.with.map_or(!0, |set| set.word(word));
        for set in filter.without {
            bits &= !set.word(word);
        }
        for index in filter.except.iter().map(|place| place.index as usize) {
            if index / BITS == word {
                bits &= !(1u64 << (index % BITS));
            }
        }
        bits
    }

    /// The first word in `from..end` in which this set and the other one have something.
    fn next_word(&self, from: usize, end: usize, filter: Filter<'_>) -> Option<usize> {
        let summary = |set: &Self, at: usize| set.summary.get(at).copied().unwrap_or(0);
        let mut from = from;
        while from < end {
            let at = from / BITS;
            let both = summary(self, at) & filter.with.map_or(!0, |set| summary(set, at));
            let rest = both & (!0u64 << (from % BITS));
            if rest != 0 {
                let word = at * BITS + rest.trailing_zeros() as usize;
                return (word < end).then_some(word);
            }
            from = (at + 1) * BITS;
        }
        None
    }
}

impl Filter<'_> {
    /// Everything passes.
    #[cfg(test)]
    pub const NONE: Filter<'static> = Filter { with: None, without: &[], except: &[] };

    /// Whether this one passes.
    #[inline]
    pub fn passes(&self, index: u32) -> bool {
        self.with.is_none_or(|set| set.contains(index))
            && !self.without.iter().any(|set| set.contains(index))
            && !self.except.iter().any(|place| place.index == index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn bitmap(members: &BTreeSet<u32>) -> Bitmap {
        let mut bitmap = Bitmap::default();
        for &member in members {
            assert!(bitmap.set(member, true));
            assert!(!bitmap.set(member, true));
        }
        bitmap
    }

    fn members() -> impl Strategy<Value = BTreeSet<u32>> {
        prop_oneof![prop::collection::btree_set(0u32..12_000, 0..40), prop::collection::btree_set(0u32..130, 0..120),]
    }

    proptest! {
        #[test]
        fn a_walk_finds_the_next_member_that_passes_round_the_end(
            a in members(), b in members(), out in members(), start in 0u32..20_000,
        ) {
            let (left, right, without) = (bitmap(&a), bitmap(&b), bitmap(&out));
            let except: Vec<Place> = a.iter().take(1).map(|index| Place { index: *index, epoch: 1 }).collect();
            let filter = Filter { with: Some(&right), without: &[&without], except: &except };
            let expected: BTreeSet<u32> = a.intersection(&b).copied()
                .filter(|index| !out.contains(index) && a.first() != Some(index)).collect();
            let found = left.first_from(start, filter);
            let size = (left.words.len() * 64).max(1) as u32;
            let begin = if start >= size { 0 } else { start };
            let next = expected.range(begin..).next().or_else(|| expected.iter().next()).copied();
            prop_assert_eq!(found, next);
            for &member in &a {
                prop_assert_eq!(filter.passes(member), expected.contains(&member));
            }
        }

        #[test]
        fn taking_out_undoes_putting_in(a in members()) {
            let mut set = bitmap(&a);
            prop_assert_eq!(set.len(), a.len());
            for &member in &a {
                prop_assert!(set.contains(member));
                prop_assert!(set.set(member, false));
                prop_assert!(!set.set(member, false));
            }
            prop_assert!(set.is_empty());
            prop_assert_eq!(set.first_from(0, Filter::NONE), None);
        }
    }
}

//! Sets of agents as bits, with a summary that lets a search skip what is empty.
//!
//! One bit per agent of a pool and one summary bit per 64 agents. Taking an agent out of a set is one store, whatever
//! number of images it has; asking for "open, has the image, does not use the port" is a walk over words that stops
//! at the first hit, from a random member. 10,000 agents are 157 words; finding the n-th member looks at one number per
//! 4096 agents, then at eight, then at eight words.

/// Agents per word, words per group, groups per block.
const BITS: usize = 64;
const GROUP: usize = 8;
const BLOCK: usize = 64;

/// A set of small numbers.
#[derive(Debug, Clone, Default)]
pub struct Bitmap {
    words: Vec<u64>,
    summary: Vec<u64>,
    /// Members per 8 words.
    groups: Vec<u16>,
    /// Members per 64 words.
    blocks: Vec<u32>,
    count: u32,
}

impl Bitmap {
    /// Puts `index` in or takes it out.
    pub fn set(&mut self, index: u32, on: bool) {
        let (word, bit) = (index as usize / BITS, 1u64 << (index as usize % BITS));
        if word >= self.words.len() {
            if !on {
                return;
            }
            self.words.resize(word + 1, 0);
            self.summary.resize(word / BLOCK + 1, 0);
            self.blocks.resize(word / BLOCK + 1, 0);
            self.groups.resize(self.blocks.len() * (BLOCK / GROUP), 0);
        }
        let had = self.words[word] & bit != 0;
        match (had, on) {
            (false, true) => {
                self.words[word] |= bit;
                self.groups[word / GROUP] += 1;
                self.blocks[word / BLOCK] += 1;
                self.count += 1;
                self.summary[word / BLOCK] |= 1 << (word % BLOCK);
            }
            (true, false) => {
                self.words[word] &= !bit;
                self.groups[word / GROUP] -= 1;
                self.blocks[word / BLOCK] -= 1;
                self.count -= 1;
                if self.words[word] == 0 {
                    self.summary[word / BLOCK] &= !(1 << (word % BLOCK));
                }
            }
            _ => {}
        }
    }

    /// Whether `index` is in the set.
    pub fn contains(&self, index: u32) -> bool {
        self.word(index as usize / BITS) & (1u64 << (index as usize % BITS)) != 0
    }

    /// How many are in the set.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The member that has `rank` members before it.
    pub fn select(&self, rank: u32) -> Option<u32> {
        if rank >= self.count {
            return None;
        }
        let mut rank = rank;
        let mut block = 0;
        while rank >= self.blocks[block] {
            rank -= self.blocks[block];
            block += 1;
        }
        let mut group = block * (BLOCK / GROUP);
        while rank >= u32::from(self.groups[group]) {
            rank -= u32::from(self.groups[group]);
            group += 1;
        }
        let mut word = group * GROUP;
        loop {
            let members = self.words[word].count_ones();
            if rank < members {
                break;
            }
            rank -= members;
            word += 1;
        }
        Some((word * BITS) as u32 + select_bit(self.words[word], rank))
    }

    fn word(&self, word: usize) -> u64 {
        self.words.get(word).copied().unwrap_or(0)
    }

    fn summary_word(&self, word: usize) -> u64 {
        self.summary.get(word).copied().unwrap_or(0)
    }
}

/// The position of the set bit that has `rank` set bits below it; there is one.
fn select_bit(word: u64, rank: u32) -> u32 {
    let (mut bits, mut rank, mut position) = (word, rank, 0);
    for width in [32, 16, 8] {
        let below = (bits & ((1 << width) - 1)).count_ones();
        if rank >= below {
            rank -= below;
            bits >>= width;
            position += width;
        }
    }
    for _ in 0..rank {
        bits &= bits - 1;
    }
    position + bits.trailing_zeros()
}

/// Everything that is in all of `with`, in none of `without`, and not one of `except`.
pub struct Query<'a> {
    /// The first is the one that the walk follows.
    pub with: &'a [&'a Bitmap],
    /// Sets to leave out.
    pub without: &'a [&'a Bitmap],
    /// Single members to leave out; a handful.
    pub except: &'a [u32],
}

impl Query<'_> {
    /// Two answers by chance, different ones where there are two. Every member of the first set is as likely to be
    /// where the walk begins.
    pub fn sample(&self, chance: [u32; 2]) -> Option<(u32, u32)> {
        let base = self.with[0];
        // A share of the members: as even as the remainder of a division, and much cheaper.
        let from = |chance: u32| base.select(((u64::from(chance) * u64::from(base.count)) >> 32) as u32);
        let first = self.first_from(from(chance[0])?)?;
        let mut second = self.first_from(from(chance[1])?).unwrap_or(first);
        if second == first {
            second = self.first_from(first + 1).unwrap_or(first);
        }
        Some((first, second))
    }

    /// The first member at or after `start`, going round at the end. A start beyond the end is the beginning.
    pub fn first_from(&self, start: u32) -> Option<u32> {
        let words = self.with[0].words.len();
        if words == 0 {
            return None;
        }
        let start = if start as usize >= words * BITS { 0 } else { start as usize };
        let (first, bit) = (start / BITS, start % BITS);
        let hit = |word: usize, mask: u64| {
            let bits = self.bits(word) & mask;
            (bits != 0).then(|| (word * 64) as u32 + bits.trailing_zeros())
        };
        if let Some(found) = hit(first, !0 << bit) {
            return Some(found);
        }
        let mut word = first + 1;
        while let Some(next) = self.next_word(word, words) {
            if let Some(found) = hit(next, !0) {
                return Some(found);
            }
            word = next + 1;
        }
        word = 0;
        while let Some(next) = self.next_word(word, first + 1) {
            if let Some(found) = hit(next, !0) {
                return Some(found);
            }
            word = next + 1;
        }
        None
    }

    /// Whether nothing answers the query.
    pub fn is_empty(&self) -> bool {
        self.first_from(0).is_none()
    }

    fn bits(&self, word: usize) -> u64 {
        let mut bits = self.with.iter().fold(!0, |bits, set| bits & set.word(word));
        for set in self.without {
            bits &= !set.word(word);
        }
        for &index in self.except {
            if index as usize / 64 == word {
                bits &= !(1u64 << (index % 64));
            }
        }
        bits
    }

    /// The first word in `from..end` in which all of `with` have something.
    fn next_word(&self, from: usize, end: usize) -> Option<usize> {
        let mut from = from;
        while from < end {
            let summary = self.with.iter().fold(!0u64, |bits, set| bits & set.summary_word(from / 64));
            let rest = summary & (!0u64 << (from % 64));
            if rest != 0 {
                let word = from / 64 * 64 + rest.trailing_zeros() as usize;
                return (word < end).then_some(word);
            }
            from = (from / 64 + 1) * 64;
        }
        None
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
            bitmap.set(member, true);
        }
        bitmap
    }

    fn members() -> impl Strategy<Value = BTreeSet<u32>> {
        prop_oneof![prop::collection::btree_set(0u32..12_000, 0..40), prop::collection::btree_set(0u32..130, 0..120),]
    }

    proptest! {
        #[test]
        fn a_query_finds_the_next_member_round_the_end(
            a in members(), b in members(), out in members(), start in 0u32..20_000,
        ) {
            let (left, right, without) = (bitmap(&a), bitmap(&b), bitmap(&out));
            let except: Vec<u32> = a.iter().copied().take(1).collect();
            let query = Query { with: &[&left, &right], without: &[&without], except: &except };
            let expected: BTreeSet<u32> = a.intersection(&b).copied()
                .filter(|i| !out.contains(i) && !except.contains(i)).collect();
            let found = query.first_from(start);
            let size = (left.words.len() * 64).max(1) as u32;
            let begin = if start >= size { 0 } else { start };
            let next = expected.range(begin..).next().or_else(|| expected.iter().next()).copied();
            prop_assert_eq!(found, next);
        }

        #[test]
        fn a_member_is_found_by_its_rank(a in members()) {
            let set = bitmap(&a);
            for (rank, member) in a.iter().enumerate() {
                prop_assert_eq!(set.select(rank as u32), Some(*member));
            }
            prop_assert_eq!(set.select(a.len() as u32), None);
        }

        #[test]
        fn two_samples_are_two_members_where_there_are_two(a in members(), chance in any::<[u32; 2]>()) {
            let set = bitmap(&a);
            let everything = Query { with: &[&set], without: &[], except: &[] };
            match everything.sample(chance) {
                Some((first, second)) => {
                    prop_assert!(a.contains(&first) && a.contains(&second));
                    prop_assert_eq!(first == second, a.len() == 1);
                }
                None => prop_assert!(a.is_empty()),
            }
        }

        #[test]
        fn taking_out_undoes_putting_in(a in members()) {
            let mut set = bitmap(&a);
            prop_assert_eq!(set.len(), a.len());
            for &member in &a {
                prop_assert!(set.contains(member));
                set.set(member, false);
                set.set(member, false);
            }
            prop_assert!(set.is_empty());
            let everything = Query { with: &[&set], without: &[], except: &[] };
            prop_assert!(everything.is_empty());
        }
    }
}

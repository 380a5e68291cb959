//! A hasher for the registry's tables: a multiplication per eight bytes, folded, with a seed of its own per table.
//!
//! Keys are ids that the controller made and names that its agents reported; nobody who asks can add any. So there is
//! no need for the standard library's hasher, which costs several times as much for keys this short.

use std::hash::{BuildHasher, Hasher};

/// Odd, with bits everywhere: the fractional part of the golden ratio.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Builds hashers of one seed.
#[derive(Debug, Clone)]
pub struct Seed(u64);

impl Default for Seed {
    fn default() -> Self {
        Self(rand::random())
    }
}

impl BuildHasher for Seed {
    type Hasher = Folding;

    #[inline]
    fn build_hasher(&self) -> Folding {
        Folding(self.0)
    }
}

/// The state.
#[derive(Debug)]
pub struct Folding(u64);

impl Folding {
    #[inline]
    fn mix(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * u128::from(MULTIPLIER);
        // Both halves: the low one alone has little of the word's high bits.
        self.0 = (product as u64) ^ (product >> 64) as u64 ^ word.rotate_left(23);
    }
}

impl Hasher for Folding {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            let last = match bytes.last_chunk() {
                // What was mixed in already is shifted out.
                Some(last) => u64::from_le_bytes(*last) >> (64 - 8 * rest.len()),
                None => rest.iter().rev().fold(0, |last, byte| last << 8 | u64::from(*byte)),
            };
            self.mix(last ^ ((rest.len() as u64) << 56));
        }
    }

    #[inline]
    fn write_u8(&mut self, value: u8) {
        self.mix(value.into());
    }

    #[inline]
    fn write_u16(&mut self, value: u16) {
        self.mix(value.into());
    }

    #[inline]
    fn write_u32(&mut self, value: u32) {
        self.mix(value.into());
    }

    #[inline]
    fn write_u64(&mut self, value: u64) {
        self.mix(value);
    }

    #[inline]
    fn write_usize(&mut self, value: usize) {
        self.mix(value as u64);
    }

    #[inline]
    fn finish(&self) -> u64 {
        let product = u128::from(self.0) * u128::from(MULTIPLIER);
        (product as u64) ^ (product >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn keys_that_differ_little_spread_over_all_bits() {
        let seed = Seed(1);
        let uids: Vec<String> = (0..50_000).map(|n| format!("00000000-0000-4000-8000-{n:012x}")).collect();
        // Tables take a bucket from the low bits and a tag from the high ones.
        for shift in [0, 25, 47] {
            let seen: HashSet<u64> = uids.iter().map(|uid| seed.hash_one(uid) >> shift & 0xffff).collect();
            // 50,000 balls leave 47 % of 65,536 boxes empty; 34,985 are expected to have one.
            assert!((34_000..36_000).contains(&seen.len()), "{} at {shift}", seen.len());
        }
        assert_ne!(seed.hash_one("a"), seed.hash_one("a\0"));
        assert_ne!(seed.hash_one(1u32), Seed(2).hash_one(1u32));
    }
}

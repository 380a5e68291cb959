//! Sets of agents that are drawn from.
//!
//! Beside the bits there is a list of the members, so that a draw is one look into it, whatever the number of agents.
//! Who leaves the set only loses its bit: it stays listed until a draw meets it or it comes back. An agent's stock of
//! an image goes and comes all the time.

use super::bitmap::{Bitmap, Filter};
use super::prefetch::prefetch;
use rand::{RngCore, rngs::SmallRng};

/// Draws that may meet members that do not pass before the bits are searched.
const DRAWS: usize = 8;

/// A set of agents.
#[derive(Debug, Default)]
pub struct Members {
    bits: Bitmap,
    /// Each member once, and some that were members.
    list: Vec<u32>,
    /// Who is in the list.
    listed: Bitmap,
}

impl Members {
    /// Puts an agent in or takes it out.
    pub fn set(&mut self, agent: u32, on: bool) {
        self.bits.set(agent, on);
        if on && self.listed.set(agent, true) {
            self.list.push(agent);
        }
    }

    /// Who is in the set.
    pub fn bits(&self) -> &Bitmap {
        &self.bits
    }

    /// A draw with this chance comes soon.
    #[inline]
    pub fn expect(&self, chance: u64) {
        prefetch(&self.list, self.position(chance as u32));
        prefetch(&self.list, self.position((chance >> 32) as u32));
    }

    /// Two of those who pass, different ones where there are two. `chance` decides which, and `random` where it chose
    /// some who do not pass: then each of the others is as likely as before.
    #[inline]
    pub fn draw_two(&mut self, chance: u64, filter: Filter<'_>, random: &mut SmallRng) -> Option<(u32, u32)> {
        let (first, second) = (self.listed_at(chance as u32)?, self.listed_at((chance >> 32) as u32)?);
        let passes = |agent: u32| self.bits.contains(agent) && filter.passes(agent);
        if first != second && passes(first) && passes(second) {
            return Some((first, second));
        }
        self.draw_carefully(filter, random)
    }

    /// The same where the first draw did not do: a port is in use, or the set is small.
    #[inline(never)]
    fn draw_carefully(&mut self, filter: Filter<'_>, random: &mut SmallRng) -> Option<(u32, u32)> {
        let first = match self.draw(random, |agent| filter.passes(agent)) {
            Ok(agent) => agent,
            Err(last) => self.bits.first_from(last?, filter)?,
        };
        if self.bits.len() == 1 {
            return Some((first, first));
        }
        let second = match self.draw(random, |agent| agent != first && filter.passes(agent)) {
            Ok(agent) => agent,
            Err(_) => self.bits.first_from(first + 1, filter).unwrap_or(first),
        };
        Some((first, second))
    }

    /// One by chance who passes, each as likely as the other. If draws met none: the last member that was drawn.
    fn draw(&mut self, random: &mut SmallRng, passes: impl Fn(u32) -> bool) -> Result<u32, Option<u32>> {
        let mut last = None;
        let mut draws = 0;
        while draws < DRAWS {
            let chance = random.next_u32();
            let Some(agent) = self.listed_at(chance) else { break };
            if !self.bits.contains(agent) {
                self.list.swap_remove(self.position(chance));
                self.listed.set(agent, false);
                continue;
            }
            if passes(agent) {
                return Ok(agent);
            }
            last = Some(agent);
            draws += 1;
        }
        Err(last)
    }

    #[inline]
    fn listed_at(&self, chance: u32) -> Option<u32> {
        self.list.get(self.position(chance)).copied()
    }

    /// A share of the list: as even as the remainder of a division, and much cheaper.
    #[inline]
    fn position(&self, chance: u32) -> usize {
        ((u64::from(chance) * self.list.len() as u64) >> 32) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::super::Place;
    use super::*;
    use proptest::prelude::*;
    use rand::{RngCore, SeedableRng};
    use std::collections::{BTreeMap, BTreeSet};

    fn random() -> SmallRng {
        SmallRng::seed_from_u64(1)
    }

    proptest! {
        #[test]
        fn two_that_are_drawn_are_two_that_pass_where_there_are_two(
            steps in prop::collection::vec((0u32..200, any::<bool>()), 0..300),
            with in prop::collection::btree_set(0u32..200, 0..200), out in prop::collection::btree_set(0u32..200, 0..100),
        ) {
            let (mut members, mut model) = (Members::default(), BTreeSet::new());
            let (mut allowed, mut busy) = (Bitmap::default(), Bitmap::default());
            with.iter().for_each(|agent| { allowed.set(*agent, true); });
            out.iter().for_each(|agent| { busy.set(*agent, true); });
            let mut random = random();
            for (agent, on) in steps {
                members.set(agent, on);
                if on { model.insert(agent) } else { model.remove(&agent) };
                let except: Vec<Place> = model.iter().take(1).map(|index| Place { index: *index, epoch: 1 }).collect();
                let filter = Filter { with: Some(&allowed), without: &[&busy], except: &except };
                let good: BTreeSet<u32> = model.iter().copied().filter(|agent| filter.passes(*agent)).collect();
                match members.draw_two(random.next_u64(), filter, &mut random) {
                    Some((first, second)) => {
                        prop_assert!(good.contains(&first) && good.contains(&second));
                        prop_assert_eq!(first == second, good.len() == 1);
                    }
                    None => prop_assert!(good.is_empty()),
                }
            }
        }
    }

    #[test]
    fn each_member_is_as_likely_as_the_other_however_often_it_left_and_came_back() {
        let (mut members, mut random) = (Members::default(), random());
        for round in 0..50 {
            for agent in 0..1000 {
                members.set(agent * 64, (agent + round) % 3 != 0);
            }
            members.draw_two(random.next_u64(), Filter::NONE, &mut random);
        }
        let mut drawn: BTreeMap<u32, u32> = BTreeMap::new();
        for _ in 0..66_600 {
            let (first, second) = members.draw_two(random.next_u64(), Filter::NONE, &mut random).unwrap();
            *drawn.entry(first).or_default() += 1;
            *drawn.entry(second).or_default() += 1;
        }
        // 200 each are expected, 14 is the standard deviation.
        assert!(drawn.len() >= 666 && drawn.values().all(|times| (120..280).contains(times)), "{drawn:?}");
        assert!(members.list.len() <= 1000, "nobody is listed twice");
    }
}

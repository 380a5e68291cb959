//! In which order samples are taken: all cells in one run, round by round, in a new random order each round, so that
//! whatever the machine does meanwhile hits all of them alike. A cell with fewer samples takes part in rounds that
//! are spread over the whole run.

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// The order of all samples: `rounds()` yields the cells (by their position in `samples`) of each round.
#[derive(Debug, Clone)]
pub struct Plan {
    samples: Vec<usize>,
    seed: u64,
}

impl Plan {
    /// `samples[i]` samples of cell `i`, ordered by `seed`.
    pub fn new(samples: Vec<usize>, seed: u64) -> Self {
        Self { samples, seed }
    }

    /// The number of samples in all.
    pub fn total(&self) -> usize {
        self.samples.iter().sum()
    }

    /// The cells of each round, in the order in which they are sampled.
    pub fn rounds(&self) -> impl Iterator<Item = Vec<usize>> + '_ {
        let most = self.samples.iter().copied().max().unwrap_or(0);
        let mut random = StdRng::seed_from_u64(self.seed);
        (0..most).map(move |round| {
            let due = |count: usize, round: usize| round * count / most;
            let mut cells: Vec<usize> = (0..self.samples.len())
                .filter(|&cell| due(self.samples[cell], round + 1) > due(self.samples[cell], round))
                .collect();
            cells.shuffle(&mut random);
            cells
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_gets_its_samples_and_none_twice_in_a_round() {
        let plan = Plan::new(vec![1000, 300, 7, 0], 1);
        let mut counts = [0; 4];
        for round in plan.rounds() {
            for (cell, count) in counts.iter_mut().enumerate() {
                let times = round.iter().filter(|&&c| c == cell).count();
                assert!(times <= 1);
                *count += times;
            }
        }
        assert_eq!(counts, [1000, 300, 7, 0]);
        assert_eq!(plan.total(), 1307);
    }

    #[test]
    fn fewer_samples_are_spread_over_the_whole_run() {
        let plan = Plan::new(vec![1000, 10], 1);
        let when: Vec<usize> =
            plan.rounds().enumerate().filter(|(_, cells)| cells.contains(&1)).map(|(round, _)| round).collect();
        assert!(when.windows(2).all(|pair| pair[1] - pair[0] == 100), "{when:?}");
    }

    #[test]
    fn the_order_changes_from_round_to_round_and_is_repeatable() {
        let orders = |seed| Plan::new(vec![50; 6], seed).rounds().collect::<Vec<_>>();
        assert_eq!(orders(3), orders(3));
        assert_ne!(orders(3), orders(4));
        assert!(orders(3).windows(2).any(|pair| pair[0] != pair[1]));
        // No cell always follows the same neighbour.
        let first: std::collections::BTreeSet<usize> = orders(3).iter().map(|round| round[0]).collect();
        assert_eq!(first.len(), 6);
    }
}

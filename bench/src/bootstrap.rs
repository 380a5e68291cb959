//! How far a percentile, or the ratio of two, might be off by chance: percentile bootstrap. Samples are drawn again from
//! the samples, with replacement and from a fixed seed; the middle 95 % of what comes out is the interval.

use crate::stats::rank;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Resamples of each distribution.
const RESAMPLES: usize = 2000;
const SEED: u64 = 0x5eed;

/// 95 % of the resamples lie in it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

impl Interval {
    /// The middle 95 % of some values; `None` for no values.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let at = |part: f64| values.get(((values.len() as f64 * part) as usize).min(values.len().checked_sub(1)?));
        Some(Self { low: *at(0.025)?, high: *at(0.975)? })
    }

    /// Whether the other one has no value in common with this.
    pub fn apart(&self, other: &Self) -> bool {
        self.high < other.low || other.high < self.low
    }
}

/// The percentiles of many resamples of one distribution.
#[derive(Debug, Clone)]
pub struct Resampled {
    /// For each of the percentiles that were asked for, its value in each resample.
    values: Vec<Vec<f64>>,
}

impl Resampled {
    /// Resamples `samples` and keeps the `percents`. `stream` is another one for each distribution of a ratio: theirs
    /// are drawn independently.
    pub fn of(samples: &[u64], percents: &[usize], stream: u64) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_unstable();
        let n = sorted.len();
        let mut random = StdRng::seed_from_u64(SEED ^ stream);
        let mut values = vec![Vec::with_capacity(RESAMPLES); percents.len()];
        if n > 0 {
            // Positions are drawn rather than values: the n-th smallest position is that of the n-th smallest value.
            let mut drawn = vec![0u32; n];
            for _ in 0..RESAMPLES {
                drawn.iter_mut().for_each(|position| *position = random.random_range(0..n as u32));
                for (values, percent) in values.iter_mut().zip(percents) {
                    let (_, position, _) = drawn.select_nth_unstable(rank(n, *percent) - 1);
                    values.push(sorted[*position as usize] as f64);
                }
            }
        }
        Self { values }
    }

    /// Of the percentile with this position in what was asked for, in the samples' unit.
    pub fn interval(&self, percent: usize) -> Option<Interval> {
        Interval::of(self.values[percent].clone())
    }

    /// Of the ratio of that percentile to the one of another distribution.
    pub fn ratio(&self, by: &Self, percent: usize) -> Option<Interval> {
        Interval::of(self.values[percent].iter().zip(&by.values[percent]).map(|(a, b)| a / b.max(1.0)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uniform from `from` to `to`, the same each time.
    fn samples(n: usize, from: u64, to: u64, seed: u64) -> Vec<u64> {
        let mut random = StdRng::seed_from_u64(seed);
        (0..n).map(|_| random.random_range(from..to)).collect()
    }

    #[test]
    fn an_interval_holds_the_true_ratio_and_shrinks_with_more_samples() {
        let ratio = |n| {
            let a = Resampled::of(&samples(n, 200_000, 400_000, 1), &[50, 99], 0);
            let b = Resampled::of(&samples(n, 100_000, 200_000, 2), &[50, 99], 1);
            (a.ratio(&b, 0).unwrap(), a.ratio(&b, 1).unwrap())
        };
        let (few, _) = ratio(100);
        let (many, p99) = ratio(5000);
        assert!(few.low < 2.0 && 2.0 < few.high, "{few:?}");
        assert!(many.low < 2.0 && 2.0 < many.high, "{many:?}");
        assert!(many.high - many.low < few.high - few.low);
        assert!(p99.low < 2.0 && 2.0 < p99.high, "{p99:?}");
    }

    #[test]
    fn about_nineteen_of_twenty_intervals_hold_the_true_median() {
        let holds = |seed: &u64| {
            let interval = Resampled::of(&samples(300, 0, 1000, *seed), &[50], 0).interval(0).unwrap();
            interval.low <= 500.0 && 500.0 <= interval.high
        };
        let held = (0..100).filter(holds).count();
        assert!((88..=100).contains(&held), "{held} of 100");
    }

    #[test]
    fn the_same_samples_give_the_same_interval() {
        let once = || Resampled::of(&samples(300, 1, 1000, 7), &[50, 99], 3).interval(1);
        assert_eq!(once(), once());
        assert!(Resampled::of(&[], &[50], 0).interval(0).is_none());
        assert_eq!(Resampled::of(&[7], &[50], 0).interval(0), Some(Interval { low: 7.0, high: 7.0 }));
    }

    #[test]
    fn intervals_are_apart_only_without_a_common_value() {
        let interval = |low, high| Interval { low, high };
        assert!(interval(1.0, 2.0).apart(&interval(2.1, 3.0)) && interval(4.0, 5.0).apart(&interval(2.1, 3.0)));
        assert!(!interval(1.0, 2.5).apart(&interval(2.1, 3.0)));
    }
}

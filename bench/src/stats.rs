//! What becomes of samples: exact percentiles, and the slope of a line.

use serde::{Deserialize, Serialize};

/// A distribution of times, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub n: usize,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
}

impl Summary {
    /// Of samples in nanoseconds; `None` without samples.
    pub fn of(samples: &[u64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_unstable();
        let us = |percent| percentile(&sorted, percent).map(|ns| ns as f64 / 1e3);
        Some(Self { n: sorted.len(), p50_us: us(50)?, p90_us: us(90)?, p99_us: us(99)?, max_us: us(100)? })
    }
}

/// The nearest-rank percentile of sorted samples: the smallest one that at least `percent` of them do not exceed.
pub fn percentile(sorted: &[u64], percent: usize) -> Option<u64> {
    sorted.get(rank(sorted.len(), percent) - 1).copied()
}

/// The nearest rank of a percentile of `n` samples, counted from 1.
pub fn rank(n: usize, percent: usize) -> usize {
    (n * percent).div_ceil(100).max(1)
}

/// The median of anything with an order.
pub fn median(samples: &[i64]) -> Option<i64> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

/// The slope of the least-squares line through `(x, y)`; `None` for fewer than two different x.
pub fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let n = points.len() as f64;
    let mean_x = points.iter().map(|p| p.0).sum::<f64>() / n;
    let mean_y = points.iter().map(|p| p.1).sum::<f64>() / n;
    let spread = points.iter().map(|p| (p.0 - mean_x).powi(2)).sum::<f64>();
    (spread > 0.0).then(|| points.iter().map(|p| (p.0 - mean_x) * (p.1 - mean_y)).sum::<f64>() / spread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples_by_nearest_rank() {
        let samples: Vec<u64> = (1..=1000).rev().map(|n| n * 1000).collect();
        let summary = Summary::of(&samples).unwrap();
        assert_eq!(summary, Summary { n: 1000, p50_us: 500.0, p90_us: 900.0, p99_us: 990.0, max_us: 1000.0 });
        assert_eq!(Summary::of(&[7000]).unwrap().p50_us, 7.0);
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(percentile(&[1, 2, 3], 50), Some(2));
        assert_eq!(percentile(&[1, 2], 50), Some(1));
    }

    #[test]
    fn a_slope_is_that_of_the_line() {
        assert_eq!(slope(&[(100.0, 5.0), (300.0, 405.0), (500.0, 805.0)]), Some(2.0));
        assert_eq!(slope(&[(1.0, 1.0)]), None);
        assert_eq!(slope(&[]), None);
        assert_eq!(median(&[3, 1, 2]), Some(2));
        assert_eq!(median(&[]), None);
    }
}

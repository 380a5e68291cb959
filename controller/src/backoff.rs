//! How long to wait before another try.

use std::time::Duration;

/// Doubles from `least` with every failure up to `most`, give or take a quarter, so that many who failed together do
/// not come back together.
pub fn delay(least: Duration, most: Duration, failures: u32) -> Duration {
    let doubled = least.saturating_mul(1u32 << failures.saturating_sub(1).min(20));
    let jitter = rand::random_range(0.75..1.25);
    doubled.min(most).mul_f64(jitter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_grows_and_stays_bounded() {
        let (least, most) = (Duration::from_millis(100), Duration::from_secs(10));
        assert!(delay(least, most, 1) <= Duration::from_millis(125));
        assert!(delay(least, most, 4) >= Duration::from_millis(600));
        assert!(delay(least, most, u32::MAX) <= Duration::from_millis(12_500));
    }
}

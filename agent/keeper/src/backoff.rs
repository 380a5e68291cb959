//! How long to wait before a daemon is started again. Pure.

use std::time::Duration;

/// The first wait.
const FIRST: Duration = Duration::from_millis(10);
/// The longest wait of a daemon that never served.
const LONGEST: Duration = Duration::from_secs(5);
/// The longest wait of one that served before it died: somebody killed it, or a request does.
const LONGEST_SERVED: Duration = Duration::from_millis(100);
/// Who lived so long starts with the first wait again.
const STABLE: Duration = Duration::from_secs(1);

/// Doubles with every early death.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    early_deaths: u32,
}

impl Backoff {
    /// The wait after a daemon that lived for `lived` and `served` or not.
    pub(crate) fn after(&mut self, lived: Duration, served: bool) -> Duration {
        if lived >= STABLE {
            self.early_deaths = 0;
        }
        let wait = FIRST * 2u32.saturating_pow(self.early_deaths.min(16));
        self.early_deaths += 1;
        wait.min(if served { LONGEST_SERVED } else { LONGEST })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_dies_at_its_start_is_tried_less_and_less_often() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..12).map(|_| backoff.after(Duration::ZERO, false).as_millis()).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5000, 5000, 5000]);
        assert_eq!(backoff.after(STABLE, false), FIRST);
    }

    #[test]
    fn a_daemon_that_served_is_back_soon() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..6).map(|_| backoff.after(Duration::from_millis(300), true).as_millis()).collect();
        assert_eq!(waits, [10, 20, 40, 80, 100, 100]);
    }
}

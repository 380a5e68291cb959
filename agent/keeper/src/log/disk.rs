//! Whether writing to a file is a copy into memory, or waiting.

use std::cell::Cell;
use std::time::{Duration, Instant};
use tracing::warn;

/// A write that took so long has waited for the disk, or for the processor.
const SLOW: Duration = Duration::from_millis(20);
/// For so long the disk is believed to be slow.
const MEMORY: Duration = Duration::from_secs(1);
/// Once in so long it is said.
const SAID: Duration = Duration::from_secs(60);

/// What is known of the disk that all logs lie on. Buffered writes to ext4 and others cannot be asked not to wait
/// (RWF_NOWAIT is EOPNOTSUPP, preadv2(2)): they are timed instead.
#[derive(Default)]
pub(super) struct Disk {
    slow_until: Cell<Option<Instant>>,
    said_at: Cell<Option<Instant>>,
}

impl Disk {
    /// Whether a write at `now` is expected not to wait.
    pub(super) fn is_quick(&self, now: Instant) -> bool {
        self.slow_until.get().is_none_or(|until| now >= until)
    }

    /// A write took so long, until `now`.
    pub(super) fn wrote(&self, took: Duration, now: Instant) {
        if took < SLOW {
            return;
        }
        self.slow_until.set(Some(now + MEMORY));
        if self.said_at.get().is_none_or(|at| now.saturating_duration_since(at) >= SAID) {
            self.said_at.set(Some(now));
            warn!(
                took_ms = took.as_millis() as u64,
                "writing logs takes long; hint: is the log directory's disk slow?"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_was_slow_is_not_waited_for_for_a_while() {
        let (disk, now) = (Disk::default(), Instant::now());
        assert!(disk.is_quick(now));
        disk.wrote(SLOW / 2, now);
        assert!(disk.is_quick(now));
        disk.wrote(SLOW, now);
        assert!(!disk.is_quick(now));
        assert!(!disk.is_quick(now + MEMORY / 2));
        assert!(disk.is_quick(now + MEMORY));
    }
}

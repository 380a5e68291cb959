//! When a pipe is read again: at once, or with many others at the next tick.

use std::cell::Cell;
use std::time::Duration;
use tokio::time::Instant;

/// Pipes that are not read at once are read at multiples of this, all together: one wake-up serves many lines.
pub(crate) const TICK: Duration = Duration::from_millis(8);
/// A pipe that had bytes twice within this is chatty.
const CHATTY: Duration = Duration::from_millis(20);
/// Once so much was there at once (a quarter of a pipe's room), the writer is fast, and waiting would slow it down.
const FAST: usize = 16 << 10;
/// So many reads within one tick, over all pipes, and every wake-up for a single line is one too many.
const BUSY: u32 = 8;

/// How busy all pipes together are.
pub(crate) struct Pace {
    zero: Instant,
    tick: Cell<u64>,
    reads: Cell<u32>,
    reads_before: Cell<u32>,
}

impl Pace {
    /// Of pipes that were quiet so far.
    pub(crate) fn new() -> Self {
        Self { zero: Instant::now(), tick: Cell::new(0), reads: Cell::new(0), reads_before: Cell::new(0) }
    }

    /// Counts a read of `bytes` at `now` from a pipe that was read at `before`. Returns whether its next read should
    /// wait for a tick.
    pub(crate) fn should_wait(&self, bytes: usize, before: Option<Instant>, now: Instant) -> bool {
        let tick = self.number(now);
        let passed = tick - self.tick.replace(tick);
        if passed > 0 {
            self.reads_before.set(if passed == 1 { self.reads.get() } else { 0 });
            self.reads.set(0);
        }
        self.reads.set(self.reads.get() + 1);
        let busy = self.reads.get().max(self.reads_before.get()) > BUSY;
        let chatty = before.is_some_and(|before| now - before < CHATTY);
        bytes < FAST && (busy || chatty)
    }

    /// The next tick after `now`, the same for all pipes.
    pub(crate) fn next_tick(&self, now: Instant) -> Instant {
        self.zero + Duration::from_millis((self.number(now) + 1) * TICK.as_millis() as u64)
    }

    fn number(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.zero).as_millis() as u64 / TICK.as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_after_a_silence_does_not_wait() {
        let pace = Pace::new();
        let now = pace.zero + Duration::from_secs(5);
        assert!(!pace.should_wait(10, None, now));
        assert!(!pace.should_wait(10, Some(now - CHATTY), now));
    }

    #[test]
    fn a_chatty_pipe_waits_unless_it_is_fast() {
        let pace = Pace::new();
        let now = pace.zero + TICK;
        assert!(pace.should_wait(10, Some(now - TICK), now));
        assert!(!pace.should_wait(FAST, Some(now - TICK), now));
    }

    #[test]
    fn many_slow_pipes_wait_together_until_they_are_quiet() {
        let pace = Pace::new();
        let now = pace.zero + TICK;
        for _ in 0..BUSY {
            assert!(!pace.should_wait(10, None, now));
        }
        assert!(pace.should_wait(10, None, now));
        assert!(pace.should_wait(10, None, now + TICK), "the tick before was busy");
        assert!(!pace.should_wait(10, None, now + 3 * TICK));
    }

    #[test]
    fn ticks_are_the_same_for_all() {
        let pace = Pace::new();
        let early = pace.next_tick(pace.zero + TICK);
        assert_eq!(early, pace.next_tick(pace.zero + TICK + TICK / 2));
        assert_eq!(early, pace.zero + 2 * TICK);
    }
}

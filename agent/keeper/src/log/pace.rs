//! When the pipes are looked at again: when the kernel tells of bytes, or after a rest in which many lines gather. Pure.
//!
//! A wake-up costs more than the line that it is for. Lines that come one by one after a silence are taken at once;
//! from the second one within a short time on, the kernel is not asked any more, and all pipes are looked at every few
//! milliseconds. A writer that would fill its pipe meanwhile shortens the rest, until the kernel is asked again, which is
//! no worse then: by the time that we are awake, the writer has gone on.

use std::time::{Duration, Instant};

/// The longest rest: what a follower may see late.
const LONGEST: Duration = Duration::from_millis(5);
/// The shortest rest that is worth a timer.
const SHORTEST: Duration = Duration::from_micros(500);
/// Bytes came twice within this: more are to be expected. After so long without any, the kernel is asked again.
const CHATTY: Duration = Duration::from_millis(20);
/// A pipe that gave so much (of the 64 KiB that it can hold) is about to stop its writer.
const MUCH: usize = 40 << 10;
/// If no pipe gave more than this, there is time to rest.
pub(super) const LITTLE: usize = 12 << 10;
/// How long a writer is watched before it is believed that it would not fill its pipe.
const WINDOW: Duration = Duration::from_millis(2);

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Wait until the kernel tells of bytes.
    Sleep,
    /// Look again after this.
    Rest(Duration),
    /// Look again as soon as everybody else had a turn: the writers have not waited.
    Again,
}

/// How busy all pipes together are.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum Pace {
    /// Nothing ever came.
    #[default]
    Silent,
    /// Lines come one by one; the last one came then.
    Quiet { bytes_at: Instant },
    /// They come in numbers.
    Chatty { rest: Duration, bytes_at: Instant },
    /// As fast as we can: so many bytes of one pipe since then.
    Fast { since: Instant, bytes: usize },
}

impl Pace {
    /// What comes after a look at `now`, in which no pipe gave more than `most` bytes.
    pub(crate) fn after(&mut self, most: usize, now: Instant) -> Next {
        let soon = |at: Instant| now.saturating_duration_since(at) < CHATTY;
        *self = match *self {
            Self::Silent | Self::Quiet { .. } if most >= MUCH => Self::Fast { since: now, bytes: 0 },
            Self::Quiet { bytes_at } if most > 0 && soon(bytes_at) => Self::Chatty { rest: LONGEST, bytes_at: now },
            Self::Silent | Self::Quiet { .. } if most > 0 => Self::Quiet { bytes_at: now },
            Self::Silent | Self::Quiet { .. } => *self,
            Self::Chatty { bytes_at, .. } if most == 0 && !soon(bytes_at) => Self::Quiet { bytes_at },
            Self::Chatty { rest, .. } if most >= MUCH && rest <= SHORTEST => Self::Fast { since: now, bytes: 0 },
            Self::Chatty { rest, bytes_at } => {
                let rest = match most {
                    MUCH.. => (rest / 2).max(SHORTEST),
                    LITTLE.. => rest,
                    _ => (rest * 2).min(LONGEST),
                };
                Self::Chatty { rest, bytes_at: if most > 0 { now } else { bytes_at } }
            }
            Self::Fast { since, bytes } => {
                let (passed, bytes) = (now.saturating_duration_since(since), bytes + most);
                let in_a_rest = bytes as f64 * SHORTEST.as_secs_f64() / passed.as_secs_f64();
                match passed {
                    passed if passed < WINDOW => Self::Fast { since, bytes },
                    _ if in_a_rest < LITTLE as f64 => Self::Chatty { rest: SHORTEST, bytes_at: now },
                    _ => Self::Fast { since: now, bytes: 0 },
                }
            }
        };
        match *self {
            Self::Chatty { rest, .. } => Next::Rest(rest),
            Self::Fast { .. } if most >= MUCH => Next::Again,
            Self::Silent | Self::Quiet { .. } | Self::Fast { .. } => Next::Sleep,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn lines_after_a_silence_are_waited_for() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        assert_eq!(pace.after(10, start), Next::Sleep);
        assert_eq!(pace.after(10, start + 100 * MS), Next::Sleep);
    }

    #[test]
    fn lines_in_a_row_gather_until_they_end() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        pace.after(10, start);
        assert_eq!(pace.after(10, start + MS), Next::Rest(LONGEST));
        assert_eq!(pace.after(0, start + 6 * MS), Next::Rest(LONGEST));
        assert_eq!(pace.after(10, start + 11 * MS), Next::Rest(LONGEST));
        assert_eq!(pace.after(0, start + 16 * MS), Next::Rest(LONGEST));
        assert_eq!(pace.after(0, start + 31 * MS), Next::Sleep);
    }

    #[test]
    fn a_full_pipe_shortens_the_rest_until_there_is_none() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        pace.after(10, now);
        let mut last = LONGEST;
        assert_eq!(pace.after(10, now), Next::Rest(last));
        while let Next::Rest(rest) = pace.after(MUCH, now) {
            assert!(rest < last, "{rest:?}");
            last = rest;
        }
        assert_eq!(last, SHORTEST);
    }

    #[test]
    fn a_fast_writer_is_believed_to_be_slow_only_when_it_was_for_a_while() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        assert_eq!(pace.after(MUCH, start), Next::Again);
        assert_eq!(pace.after(100, start + MS), Next::Sleep);
        assert_eq!(pace.after(4 * MUCH, start + 2 * MS), Next::Again, "fast again");
        assert_eq!(pace.after(100, start + 4 * MS), Next::Rest(SHORTEST));
        assert_eq!(pace.after(100, start + 5 * MS), Next::Rest(2 * SHORTEST));
        assert_eq!(pace.after(LITTLE, start + 6 * MS), Next::Rest(2 * SHORTEST), "just right");
    }
}

//! Whether a log's oldest file may go. Pure, but for whom it wakes up.
//!
//! A sandbox whose creator follows its output is *attached*: what that reader has not taken stays, and where there is no
//! room for more, its programs wait, as on a pipe. All others never wait for a reader. What was taken stays for one more
//! file's length, so that a reader whose connection broke finds again what was on its way. A reader that is away for
//! [`PATIENCE`] holds nothing any more.

use std::cell::Cell;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How long an attached sandbox waits for a reader that is not there.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// What holds a log's files.
#[derive(Default)]
pub(crate) struct Hold {
    state: Cell<State>,
    changed: Notify,
}

#[derive(Debug, Default, Clone, Copy)]
enum State {
    /// Whose it is was not heard yet. Its program may run: it waits for that, if it fills its files so soon.
    #[default]
    Unknown,
    /// Nothing does.
    Free,
    /// A reader, who has taken so many bytes and may be away.
    Held { taken: u64, away_since: Option<Instant> },
    /// The program has ended, and its last words may have one file more.
    Ending,
}

impl Hold {
    /// It has an owner, who is attached to it or not.
    pub(super) fn bound(&self, attached: bool, now: Instant) {
        if matches!(self.state.get(), State::Unknown) {
            let held = State::Held { taken: 0, away_since: Some(now) };
            self.set(if attached { held } else { State::Free });
        }
    }

    /// The reader is there and has taken the log's first `taken` bytes; `None`: it is away.
    pub(super) fn read(&self, taken: Option<u64>, now: Instant) {
        let State::Held { taken: before, away_since } = self.state.get() else { return };
        let held = |taken, away_since| State::Held { taken, away_since };
        self.set(match taken {
            _ if is_over(away_since, now) => State::Free,
            Some(taken) => held(taken, None),
            None => held(before, away_since.or(Some(now))),
        });
    }

    /// What is left of the output has to be written, whoever reads.
    pub(super) fn end(&self) {
        self.set(match self.state.get() {
            State::Held { .. } => State::Ending,
            State::Unknown => State::Free,
            state => state,
        });
    }

    /// How many files are kept, where `files` are wanted.
    pub(super) fn files(&self, files: usize) -> usize {
        match self.state.get() {
            State::Unknown | State::Free => files,
            State::Held { .. } => files.max(2),
            State::Ending => files.max(2) + 1,
        }
    }

    /// Whether a file may go that ends at `oldest` in a log that ends at `end` and whose files have `max_bytes`.
    pub(super) fn may_go(&self, oldest: u64, end: u64, max_bytes: u64, now: Instant) -> bool {
        match self.state.get() {
            State::Unknown => false,
            State::Free | State::Ending => true,
            State::Held { away_since, .. } if is_over(away_since, now) => {
                self.state.set(State::Free);
                true
            }
            State::Held { taken, .. } => taken >= end || taken >= oldest.saturating_add(max_bytes),
        }
    }

    /// Waits until [`may_go`](Self::may_go) may say something else.
    pub(super) async fn changed(&self) {
        let State::Held { away_since: Some(since), .. } = self.state.get() else {
            return self.changed.notified().await;
        };
        tokio::select! {
            () = self.changed.notified() => {}
            () = tokio::time::sleep_until((since + PATIENCE).into()) => {}
        }
    }

    fn set(&self, state: State) {
        self.state.set(state);
        self.changed.notify_one();
    }
}

fn is_over(away_since: Option<Instant>, now: Instant) -> bool {
    away_since.is_some_and(|since| now.saturating_duration_since(since) >= PATIENCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: u64 = 100;

    fn attached(now: Instant) -> Hold {
        let hold = Hold::default();
        hold.bound(true, now);
        hold
    }

    #[test]
    fn nobody_waits_for_a_reader_who_is_not_attached() {
        let (hold, now) = (Hold::default(), Instant::now());
        assert!(!hold.may_go(100, 500, FILE, now), "whose it is, is not known");
        hold.bound(false, now);
        hold.read(Some(0), now);
        assert!(hold.may_go(100, 500, FILE, now));
        assert_eq!(hold.files(1), 1);
    }

    #[test]
    fn what_an_attached_reader_has_not_taken_stays_and_what_it_has_for_another_file() {
        let now = Instant::now();
        let hold = attached(now);
        assert_eq!((hold.files(1), hold.files(5)), (2, 5));
        assert!(!hold.may_go(100, 500, FILE, now));
        for (taken, may) in [(99, false), (100, false), (199, false), (200, true)] {
            hold.read(Some(taken), now);
            assert_eq!(hold.may_go(100, 500, FILE, now), may, "{taken}");
        }
        hold.read(Some(150), now);
        assert!(hold.may_go(100, 150, FILE, now), "there is no more to take");
        hold.read(Some(120), now);
        assert!(!hold.may_go(100, 150, FILE, now), "it came again and had less");
        hold.end();
        assert!(hold.may_go(100, 150, FILE, now));
        assert_eq!((hold.files(1), hold.files(5)), (3, 6));
    }

    #[test]
    fn a_reader_that_stays_away_holds_nothing_any_more() {
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        let hold = attached(start);
        assert!(!hold.may_go(100, 500, FILE, later(9)));
        hold.read(Some(50), later(9));
        assert!(!hold.may_go(100, 500, FILE, later(99)), "it is there");
        hold.read(None, later(100));
        hold.read(None, later(105));
        assert!(!hold.may_go(100, 500, FILE, later(109)));
        assert!(hold.may_go(100, 500, FILE, later(110)));
        hold.read(Some(50), later(111));
        assert!(hold.may_go(100, 500, FILE, later(111)), "it comes too late");

        let hold = attached(start);
        hold.read(Some(50), later(10));
        assert!(hold.may_go(100, 500, FILE, later(10)), "also if nobody has looked meanwhile");
    }
}

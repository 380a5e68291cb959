//! Which instances have ended, in this order and for how long, by a clock that nobody sets.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Ended instances that are remembered for a controller to ask for.
const MAX_ENDED: usize = 10_000;
/// How long they are.
const KEPT: Duration = Duration::from_secs(3600);

/// Ids of ended instances, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Ended(VecDeque<(Instant, Arc<str>)>);

impl Ended {
    /// One has ended, or was found by an agent that has just begun. Returns the oldest where there are too many.
    pub(crate) fn push(&mut self, id: Arc<str>, now: Instant) -> Option<Arc<str>> {
        self.0.push_back((now, id));
        if self.0.len() > MAX_ENDED { self.0.pop_front().map(|(_, id)| id) } else { None }
    }

    /// Takes out one that nobody has asked for in time.
    pub(crate) fn pop_old(&mut self, now: Instant) -> Option<Arc<str>> {
        self.0.pop_front_if(|(since, _)| now.saturating_duration_since(*since) >= KEPT).map(|(_, id)| id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ended_instance_is_kept_for_an_hour_and_the_oldest_of_too_many_goes() {
        let (mut ended, now) = (Ended::default(), Instant::now());
        assert_eq!(ended.push("a".into(), now), None);
        assert_eq!(ended.push("b".into(), now + KEPT / 2), None);
        assert_eq!(ended.pop_old(now + KEPT - Duration::from_secs(1)), None);
        assert_eq!(ended.pop_old(now + KEPT).as_deref(), Some("a"));
        assert_eq!(ended.pop_old(now + KEPT), None);
        for _ in 1..MAX_ENDED {
            assert_eq!(ended.push("c".into(), now + KEPT), None);
        }
        assert_eq!(ended.push("d".into(), now + KEPT).as_deref(), Some("b"));
    }
}

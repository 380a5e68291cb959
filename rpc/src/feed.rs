//! What watchers hear: one queue for all of them, with bounds on how far one may be behind.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// So many events wait for a watcher at most.
const EVENTS: usize = 4096;
/// So many bytes of them.
const BYTES: usize = 4 << 20;

/// Tells all watchers what happens. The newest events are kept once for all, and nothing for nobody.
#[derive(Debug)]
pub struct Feed<T>(Arc<Shared<T>>);

#[derive(Debug)]
struct Shared<T> {
    kept: Mutex<Kept<T>>,
    news: Notify,
}

#[derive(Debug)]
struct Kept<T> {
    events: VecDeque<(T, usize)>,
    bytes: usize,
    /// The number of the first one that is kept.
    first: u64,
    watchers: usize,
}

/// Hears what happens from its making on.
#[derive(Debug)]
pub struct Watcher<T> {
    feed: Arc<Shared<T>>,
    next: u64,
}

/// A watcher did not read for 4,096 events or 4 MiB: what it missed is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behind;

impl<T> Default for Feed<T> {
    fn default() -> Self {
        let kept = Kept { events: VecDeque::new(), bytes: 0, first: 0, watchers: 0 };
        Self(Arc::new(Shared { kept: Mutex::new(kept), news: Notify::new() }))
    }
}

impl<T> Feed<T> {
    /// Whether anybody would hear it.
    pub fn is_watched(&self) -> bool {
        self.0.kept().watchers > 0
    }

    /// Tells an event that takes about `bytes` of memory.
    pub fn tell(&self, event: T, bytes: usize) {
        let mut kept = self.0.kept();
        if kept.watchers == 0 {
            return;
        }
        kept.events.push_back((event, bytes));
        kept.bytes += bytes;
        while kept.events.len() > EVENTS || kept.bytes > BYTES && kept.events.len() > 1 {
            kept.drop_first();
        }
        drop(kept);
        self.0.news.notify_waiters();
    }

    /// Hears what is told from here on.
    pub fn watch(&self) -> Watcher<T> {
        let mut kept = self.0.kept();
        kept.watchers += 1;
        let next = kept.first + kept.events.len() as u64;
        drop(kept);
        Watcher { feed: self.0.clone(), next }
    }
}

impl<T> Shared<T> {
    fn kept(&self) -> MutexGuard<'_, Kept<T>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Kept<T> {
    fn drop_first(&mut self) {
        if let Some((_, bytes)) = self.events.pop_front() {
            self.bytes -= bytes;
            self.first += 1;
        }
    }
}

impl<T: Clone> Watcher<T> {
    /// The next event. May be given up and asked again.
    ///
    /// # Errors
    /// [`Behind`] if it is not kept any more.
    pub async fn next(&mut self) -> Result<T, Behind> {
        loop {
            let news = self.feed.news.notified();
            {
                let kept = self.feed.kept();
                let index = self.next.checked_sub(kept.first).ok_or(Behind)?;
                if let Some((event, _)) = kept.events.get(index as usize) {
                    self.next += 1;
                    return Ok(event.clone());
                }
            }
            news.await;
        }
    }
}

impl<T> Drop for Watcher<T> {
    fn drop(&mut self) {
        let mut kept = self.feed.kept();
        kept.watchers -= 1;
        if kept.watchers == 0 {
            while !kept.events.is_empty() {
                kept.drop_first();
            }
            kept.events.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn every_watcher_hears_everything_in_order_from_its_beginning_on() {
        let feed = Feed::default();
        feed.tell(0, 1);
        assert!(!feed.is_watched());
        let mut early = feed.watch();
        feed.tell(1, 1);
        let mut late = feed.watch();
        feed.tell(2, 1);
        block_on(async {
            assert_eq!((early.next().await, early.next().await), (Ok(1), Ok(2)));
            assert_eq!(late.next().await, Ok(2));
            let told = tokio::join!(late.next(), early.next(), async { feed.tell(3, 1) });
            assert_eq!((told.0, told.1), (Ok(3), Ok(3)));
        });
        drop((early, late));
        assert!(feed.0.kept().events.is_empty(), "nothing is kept for nobody");
    }

    #[test]
    fn who_is_too_far_behind_is_told_and_costs_no_more_memory() {
        for (bytes, most) in [(1, EVENTS), (64 << 10, 64)] {
            let feed = Feed::default();
            let (mut slow, mut slower) = (feed.watch(), feed.watch());
            (0..most).for_each(|n| feed.tell(n, bytes));
            assert_eq!(block_on(slow.next()), Ok(0), "it may be behind so far");
            (0..3 * most).for_each(|n| feed.tell(n, bytes));
            assert_eq!((block_on(slow.next()), block_on(slower.next())), (Err(Behind), Err(Behind)));
            assert_eq!(feed.0.kept().events.len(), most);
        }
        let feed = Feed::default();
        let mut watcher = feed.watch();
        feed.tell(7, 2 * BYTES);
        assert_eq!(block_on(watcher.next()), Ok(7), "one that is too long by itself is told");
    }
}

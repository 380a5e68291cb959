//! Who is in: strangers, and those that have shown that they may be.

use crate::Bounds;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// The connections of one listener.
pub(crate) struct Hall {
    bounds: Bounds,
    room_for_strangers: Arc<Semaphore>,
    /// Kept back: strangers never have it.
    room_for_known: Arc<Semaphore>,
    strangers: Mutex<Strangers>,
}

#[derive(Default)]
struct Strangers {
    next: u64,
    /// In the order in which they came; dropping the sender shows one out.
    by_number: BTreeMap<u64, oneshot::Sender<()>>,
}

impl Hall {
    pub(crate) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self {
            bounds,
            room_for_strangers: Arc::new(Semaphore::new(bounds.strangers as usize)),
            room_for_known: Arc::new(Semaphore::new(bounds.known as usize)),
            strangers: Mutex::default(),
        })
    }

    fn strangers(&self) -> MutexGuard<'_, Strangers> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new stranger; the one that came first makes room where there is none. The other value ends when this one is to
    /// go.
    pub(crate) async fn enter(self: &Arc<Self>) -> (Guest, oneshot::Receiver<()>) {
        if self.room_for_strangers.available_permits() == 0
            && let Some((number, _)) = self.strangers().by_number.pop_first()
        {
            tracing::debug!(number, "too many connections have not shown that they may be here: the first is closed");
        }
        // Never closed. Short: whoever was shown out has nothing to finish.
        let permit = self.room_for_strangers.clone().acquire_owned().await.ok();
        let (stays, shown_out) = oneshot::channel();
        let mut strangers = self.strangers();
        let number = strangers.next;
        strangers.next += 1;
        strangers.by_number.insert(number, stays);
        drop(strangers);
        let place = Place { hall: self.clone(), number, known: AtomicBool::new(false), permit: Mutex::new(permit) };
        (Guest(Arc::new(place)), shown_out)
    }

    /// Waits until nobody is left.
    pub(crate) async fn empty(&self) {
        // In this order: a stranger may yet become known, and nobody the other way.
        let _strangers = self.room_for_strangers.acquire_many(self.bounds.strangers).await;
        let _known = self.room_for_known.acquire_many(self.bounds.known).await;
    }
}

/// A connection's place: a stranger's, until what serves the connection says otherwise.
#[derive(Clone)]
pub struct Guest(Arc<Place>);

struct Place {
    hall: Arc<Hall>,
    number: u64,
    known: AtomicBool,
    /// Of the hall's room, of either kind.
    permit: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Guest {
    /// The peer has shown that it may be here, and stays as long as it likes. For each request: all but the first cost
    /// nothing. While as many are known as there is room for, it stays a stranger, which is served as well.
    pub fn admit(&self) {
        let place = &*self.0;
        if place.known.load(Ordering::Relaxed) {
            return;
        }
        let Ok(permit) = place.hall.room_for_known.clone().try_acquire_owned() else { return };
        // Not there any more: it was shown out a moment ago.
        let Some(stays) = place.hall.strangers().by_number.remove(&place.number) else { return };
        place.known.store(true, Ordering::Relaxed);
        *place.permit.lock().unwrap_or_else(PoisonError::into_inner) = Some(permit);
        // Nobody holds anything against it any more.
        let _ = stays.send(());
    }

    /// Done when the guest, still a stranger, has to go.
    pub(crate) async fn overstayed(&self, patience: Duration, mut shown_out: oneshot::Receiver<()>) {
        let ended = match tokio::time::timeout(patience, &mut shown_out).await {
            Ok(ended) => ended,
            Err(_) => {
                drop(self.0.hall.strangers().by_number.remove(&self.0.number));
                // Ends at once: shown out just now, or admitted in this very moment.
                shown_out.await
            }
        };
        if ended.is_ok() {
            std::future::pending().await
        }
    }

    /// The connection is closed.
    pub(crate) fn leave(&self) {
        self.0.hall.strangers().by_number.remove(&self.0.number);
        self.0.permit.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest").field("number", &self.0.number).field("known", &self.0.known).finish()
    }
}

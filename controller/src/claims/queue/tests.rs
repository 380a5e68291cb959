use super::*;
use crate::claims::{Loaded, Phase, Policy};
use fsb_proto::SandboxSpec;
use futures_util::future::BoxFuture;
use std::sync::atomic::{AtomicU32, Ordering};

/// A store in memory that is slow, and fails as often as it is told to.
#[derive(Default)]
struct Store {
    rows: Mutex<HashMap<Key, Arc<Claim>>>,
    writes: AtomicU32,
    failures: AtomicU32,
    refuse: AtomicU32,
}

impl Store {
    async fn fail(&self) -> Result<(), WriteError> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.writes.fetch_add(1, Ordering::SeqCst);
        let left = self.failures.load(Ordering::SeqCst);
        if left > 0 {
            self.failures.store(left - 1, Ordering::SeqCst);
            return Err(WriteError::Transient("out of reach".into()));
        }
        Ok(())
    }
}

impl ClaimStore for Store {
    fn load(&self) -> BoxFuture<'_, Result<Loaded, WriteError>> {
        Box::pin(async { Ok(Loaded::default()) })
    }

    fn put(&self, claim: Arc<Claim>, _: bool) -> BoxFuture<'_, Result<(), WriteError>> {
        Box::pin(async move {
            self.fail().await?;
            if self.refuse.load(Ordering::SeqCst) > 0 {
                return Err(WriteError::Final { reason: "Quota", message: "no".into() });
            }
            self.rows.lock().unwrap().insert(claim.key.clone(), claim);
            Ok(())
        })
    }

    fn remove(&self, key: Key, uid: Arc<str>, _: bool) -> BoxFuture<'_, Result<(), WriteError>> {
        Box::pin(async move {
            self.fail().await?;
            let mut rows = self.rows.lock().unwrap();
            if rows.get(&key).is_some_and(|row| row.uid == uid) {
                rows.remove(&key);
            }
            Ok(())
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

fn queue() -> (Arc<Store>, Arc<Queue>, Arc<Metrics>) {
    let store = Arc::new(Store::default());
    let metrics = Arc::new(Metrics::default());
    let timing =
        Timing { retry_least: Duration::from_millis(1), retry_most: Duration::from_millis(2), ..Timing::default() };
    let queue = Queue::new(store.clone(), Tombstones::default(), metrics.clone(), &timing, |_, _| {});
    (store, Arc::new(queue), metrics)
}

fn claim(uid: &str, generation: i64) -> Arc<Claim> {
    let spec = Arc::new(SandboxSpec { image: "busybox".into(), ..Default::default() });
    let mut claim = Claim::new(Key::new("n", "a"), uid.into(), spec, Policy::default(), 1);
    claim.status.generation = generation;
    claim.status.phase = Phase::Running;
    Arc::new(claim)
}

fn row(store: &Store) -> Option<(String, i64)> {
    let rows = store.rows.lock().unwrap();
    rows.get(&Key::new("n", "a")).map(|claim| (claim.uid.to_string(), claim.status.generation))
}

#[tokio::test]
async fn the_last_of_many_states_is_written_and_those_between_are_not() {
    let (store, queue, metrics) = queue();
    let receipts: Vec<_> = (1..=100).map(|generation| queue.put(claim("u", generation), false)).collect();
    for receipt in receipts {
        assert_eq!(receipt.await, Ok(Outcome::Written));
    }
    assert_eq!(row(&store), Some(("u".into(), 100)));
    assert!(store.writes.load(Ordering::SeqCst) < 10);
    assert_eq!(metrics.claims_waiting.get(), 0);
}

// F8
#[tokio::test]
async fn a_write_is_tried_until_it_succeeds() {
    let (store, queue, metrics) = queue();
    store.failures.store(50, Ordering::SeqCst);
    assert_eq!(queue.put(claim("u", 1), false).await, Ok(Outcome::Written));
    assert_eq!(metrics.claim_write_errors.get(), 50);
}

#[tokio::test]
async fn a_refusal_is_told_and_not_tried_again() {
    let (store, queue, _) = queue();
    store.refuse.store(1, Ordering::SeqCst);
    let outcome = queue.put(claim("u", 1), false).await.unwrap();
    assert!(matches!(outcome, Outcome::Refused { reason: "Quota", .. }));
    assert_eq!(store.writes.load(Ordering::SeqCst), 1);
}

// Rule 6
#[tokio::test]
async fn a_late_write_never_brings_a_removed_claim_back() {
    let (store, queue, metrics) = queue();
    for round in 0..50 {
        let uid: Arc<str> = format!("u{round}").into();
        store.failures.store(round % 4, Ordering::SeqCst);
        drop(queue.put(claim(&uid, 1), false));
        tokio::time::sleep(Duration::from_micros(u64::from(round) * 100)).await;
        drop(queue.put(claim(&uid, 2), false));
        queue.remove(&Key::new("n", "a"), &uid, true, false);
        assert!(queue.put(claim(&uid, 3), false).await.is_err(), "it is never written");
        queue.flush().await;
        assert_eq!(row(&store), None, "round {round}");
    }
    assert_eq!(metrics.claims_waiting.get(), 0);
}

#[tokio::test]
async fn the_next_claim_of_a_name_comes_after_the_end_of_the_one_before() {
    let (store, queue, _) = queue();
    drop(queue.put(claim("first", 1), false));
    store.failures.store(5, Ordering::SeqCst);
    queue.remove(&Key::new("n", "a"), &"first".into(), true, false);
    assert_eq!(queue.put(claim("second", 1), false).await, Ok(Outcome::Written));
    queue.flush().await;
    assert_eq!(row(&store), Some(("second".into(), 1)));
    assert!(queue.entombed("first") && !queue.entombed("second"));
}

#[tokio::test]
async fn what_the_store_never_had_is_not_removed_from_it() {
    let (store, queue, _) = queue();
    queue.remove(&Key::new("n", "a"), &"u".into(), false, false);
    queue.flush().await;
    assert_eq!(store.writes.load(Ordering::SeqCst), 0);
}

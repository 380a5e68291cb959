//! Takes images off the disk that have lost their names, once nobody uses them.
//!
//! An image that is removed while a sandbox runs from it stays, pinned, and nobody is told when the last pin goes: it may
//! be another agent's, or a keeper's. So whoever sees such an image looks again, less and less often, until it is gone.

use crate::{Agent, disk};
use std::sync::Arc;
use std::time::Duration;

/// Paused containers of a removed image are dead by then.
const FIRST_LOOK: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Sweeps the store at the start, for what a crash has left, and whenever images have come or gone.
pub(crate) async fn run(agent: Arc<Agent>) {
    let mut pause = FIRST_LOOK;
    loop {
        agent.drop_nameless().await;
        let done = match agent.images.store.sweep().await {
            Ok(swept) => swept.put_off == 0 && swept.parts == 0 && !swept.busy,
            Err(error) => {
                tracing::warn!(%error, "the image store could not be swept");
                false
            }
        };
        tokio::select! {
            () = agent.images.changed.notified() => pause = FIRST_LOOK,
            () = tokio::time::sleep(pause), if !done => pause = (pause * 2).min(LONGEST_PAUSE),
            () = agent.shutdown.cancelled() => return,
        }
    }
}

impl Agent {
    /// Drops the stock of images that have lost their names, also those that another agent took.
    async fn drop_nameless(self: &Arc<Self>) {
        let (agent, mut images) = (self.clone(), self.pool.images());
        let nameless = disk::work(move || {
            images.retain(|digest| matches!(agent.images.store.resolve(digest), Ok(None)));
            images
        });
        for digest in nameless.await.unwrap_or_default() {
            self.drop_stock(&digest);
        }
    }

    /// Drops the paused containers of an image, and what is known of it.
    pub(crate) fn drop_stock(self: &Arc<Self>, digest: &str) {
        self.images.drop_cached(digest);
        for paused in self.pool.drain(digest) {
            self.discard(paused);
        }
    }
}

//! Tells the keeper which programs run, after those who asked for them were told: it then brings their records up to
//! date. One message for all starts of a moment, so that a burst does not wake the keeper for each.

use crate::{Agent, lock};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;

/// Answers under way are written by then, and starts of the same moment are in.
const LATER: Duration = Duration::from_millis(2);
/// Programs in one message, far below its longest.
const MOST: usize = 1024;

#[derive(Default)]
pub(crate) struct Launched {
    programs: Mutex<Vec<(String, i64)>>,
    some: Notify,
}

impl Launched {
    /// The program of this instance runs, since `at_ms`.
    pub(crate) fn note(&self, id: &str, at_ms: i64) {
        lock(&self.programs).push((id.to_owned(), at_ms));
        self.some.notify_one();
    }
}

/// Passes on what is noted, until the agent stops. What it does not come to say, the keeper finds out.
pub(crate) async fn run(agent: Arc<Agent>) {
    loop {
        tokio::select! {
            () = agent.launched.some.notified() => {}
            () = agent.shutdown.cancelled() => return,
        }
        tokio::time::sleep(LATER).await;
        let programs = std::mem::take(&mut *lock(&agent.launched.programs));
        for programs in programs.chunks(MOST) {
            if let Err(error) = agent.keeper.launched(programs.to_vec()).await {
                tracing::debug!(%error, "the keeper could not be told what runs");
            }
        }
    }
}

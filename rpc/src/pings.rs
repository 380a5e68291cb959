//! Peers that are gone without a word.

use h2::{Ping, PingPong};
use std::time::Duration;

/// How one end finds out that the other is gone without a word.
#[derive(Debug, Clone, Copy)]
pub struct Pings {
    /// How often the other end is asked.
    pub every: Duration,
    /// How long it may take to answer.
    pub timeout: Duration,
}

impl Pings {
    /// Asks until no answer comes.
    pub(crate) async fn unanswered(self, connection: Option<PingPong>) {
        // Nobody else has taken it: it is there.
        let Some(mut connection) = connection else { return std::future::pending().await };
        loop {
            tokio::time::sleep(self.every).await;
            if !matches!(tokio::time::timeout(self.timeout, connection.ping(Ping::opaque())).await, Ok(Ok(_))) {
                return;
            }
        }
    }
}

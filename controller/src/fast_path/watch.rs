//! The Watch stream: what is there, then every change, until the client is too slow.

use crate::claims::{Change, Claim, Key};
use crate::core::Core;
use fsb_proto::fastpath::{WatchEvent, watch_event::Event};
use fsb_rpc::{Behind, Reader};
use std::collections::HashSet;
use std::sync::Arc;
use tokio::sync::mpsc;
use tonic::Status;

/// Events that wait for the client before the stream itself waits.
const BUFFER: usize = 8;

/// What a watcher wants to hear of.
#[derive(Debug, Clone)]
pub struct Filter {
    /// `None` = every namespace.
    pub namespace: Option<String>,
    /// `None` = every name.
    pub name: Option<String>,
}

impl Filter {
    fn passes(&self, claim: &Claim) -> bool {
        self.namespace.as_ref().is_none_or(|namespace| **namespace == *claim.key.namespace)
            && self.name.as_ref().is_none_or(|name| **name == *claim.key.name)
    }
}

/// Starts the stream of who has a place among the watchers. Its task ends with the client or with the controller.
pub fn watch(core: Arc<Core>, filter: Filter, place: Reader) -> mpsc::Receiver<Result<WatchEvent, Status>> {
    let (events, stream) = mpsc::channel(BUFFER);
    let stop = core.stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            _ = run(core, filter, events) => {}
        }
        drop(place);
    });
    stream
}

type Events = mpsc::Sender<Result<WatchEvent, Status>>;

/// `None` = the client is gone.
async fn run(core: Arc<Core>, filter: Filter, events: Events) -> Option<()> {
    // Heard of from before the first look, so nothing falls between.
    let mut changes = core.table.watch();
    let mut known = everything(&core, &filter, &events).await?;
    loop {
        let change = tokio::select! {
            change = changes.next() => change,
            () = events.closed() => return None,
        };
        match change {
            Ok(change) if !filter.passes(change.claim()) => {}
            Ok(Change::Changed { claim, persisted }) => {
                known.insert(claim.key.clone());
                send(&events, Event::Changed(claim.to_info(persisted))).await?;
            }
            Ok(Change::Removed { claim }) => {
                if known.remove(&claim.key) {
                    send(&events, Event::Removed(claim.to_info(false))).await?;
                }
            }
            Err(Behind) => {
                core.metrics.watches_dropped.inc();
                let status = Status::resource_exhausted(
                    "the watcher did not read 4,096 events or 4 MiB and is dropped; hint: watch again",
                );
                return events.send(Err(status)).await.ok();
            }
        }
    }
}

/// Everything that is there. Returns what the client knows then.
async fn everything(core: &Core, filter: &Filter, events: &Events) -> Option<HashSet<Key>> {
    let claims = core.table.list(|claim| filter.passes(claim));
    let known = claims.iter().map(|(claim, _)| claim.key.clone()).collect();
    for (claim, persisted) in claims {
        send(events, Event::Changed(claim.to_info(persisted))).await?;
    }
    send(events, Event::Synced(true)).await?;
    Some(known)
}

async fn send(events: &Events, event: Event) -> Option<()> {
    events.send(Ok(WatchEvent { event: Some(event) })).await.ok()
}

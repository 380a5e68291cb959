//! The Watch stream: what is there, then every change, and everything again for a client that was too slow.

use crate::claims::{Change, Claim, Key};
use crate::core::Core;
use fsb_proto::fastpath::{SandboxInfo, WatchEvent, watch_event::Event};
use fsb_rpc::Reader;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::broadcast::error::RecvError;
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
    let mut changes = core.table.subscribe();
    let mut known: HashMap<Key, Arc<str>> = HashMap::new();
    everything(&core, &filter, &mut known, &events).await?;
    loop {
        let change = tokio::select! {
            change = changes.recv() => change,
            () = events.closed() => return None,
        };
        match change {
            Ok(change) if !filter.passes(change.claim()) => {}
            Ok(Change::Changed { claim, persisted }) => {
                known.insert(claim.key.clone(), claim.uid.clone());
                send(&events, Event::Changed(claim.to_info(persisted))).await?;
            }
            Ok(Change::Removed { claim }) => {
                if known.remove(&claim.key).is_some() {
                    send(&events, Event::Removed(claim.to_info(false))).await?;
                }
            }
            Err(RecvError::Lagged(_)) => {
                core.metrics.watch_resyncs.inc();
                changes = core.table.subscribe();
                everything(&core, &filter, &mut known, &events).await?;
            }
            Err(RecvError::Closed) => return None,
        }
    }
}

/// Everything that is there, and what the client knows and is not there any more.
async fn everything(core: &Core, filter: &Filter, known: &mut HashMap<Key, Arc<str>>, events: &Events) -> Option<()> {
    let claims = core.table.list(|claim| filter.passes(claim));
    let now: HashMap<Key, Arc<str>> = claims.iter().map(|(claim, _)| (claim.key.clone(), claim.uid.clone())).collect();
    for key in known.keys().filter(|key| !now.contains_key(*key)) {
        let removed = SandboxInfo {
            sandbox_id: key.name.to_string(),
            sandbox_name: key.name.to_string(),
            namespace: key.namespace.to_string(),
            ..Default::default()
        };
        send(events, Event::Removed(removed)).await?;
    }
    *known = now;
    for (claim, persisted) in claims {
        send(events, Event::Changed(claim.to_info(persisted))).await?;
    }
    send(events, Event::Synced(true)).await
}

async fn send(events: &Events, event: Event) -> Option<()> {
    events.send(Ok(WatchEvent { event: Some(event) })).await.ok()
}

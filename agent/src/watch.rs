//! The stream that controllers watch: a snapshot, then every change, and a heartbeat.

use crate::Agent;
use crate::instance::{Instance, Phase, State};
use crate::{lock, now_ms};
use fsb_proto::agent::{self, event::Event as Kind};
use fsb_rpc::{Behind, Feed, Watcher};
use futures_util::stream::{self, Stream};
use prost::Message;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tonic::Status;

/// Between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// What a watcher is told that was too far behind.
const BEHIND: &str =
    "the watcher did not read 4,096 events or 4 MiB and is dropped; hint: watch again, the snapshot has all";

/// Where changes are told.
pub(crate) struct Hub {
    changes: Feed<agent::Event>,
    /// `None` = watched by a controller, or never watched by one; otherwise since when it is not.
    unwatched: watch::Sender<Option<Instant>>,
    controllers: std::sync::Mutex<usize>,
}

impl Hub {
    pub(crate) fn new() -> Self {
        Self { changes: Feed::default(), unwatched: watch::Sender::new(None), controllers: Default::default() }
    }

    /// Sandboxes were found that a controller before this agent's time had a policy for: it is missed from now on.
    pub(crate) fn missed(&self) {
        if *lock(&self.controllers) == 0 {
            self.unwatched.send_replace(Some(Instant::now()));
        }
    }

    /// Since when no controller watches, if one did before.
    pub(crate) fn watched(&self) -> watch::Receiver<Option<Instant>> {
        self.unwatched.subscribe()
    }

    /// The stock has changed.
    pub(crate) fn stock(&self, stock: Vec<agent::Stock>) {
        self.tell(Kind::Stock(agent::StockReport { stock }));
    }

    fn tell(&self, event: Kind) {
        let event = agent::Event { event: Some(event) };
        let bytes = event.encoded_len();
        self.changes.tell(event, bytes);
    }
}

/// Counts a controller for as long as it watches.
struct Controller(Arc<Agent>);

impl Controller {
    fn new(agent: Arc<Agent>) -> Self {
        let mut controllers = lock(&agent.hub.controllers);
        *controllers += 1;
        agent.hub.unwatched.send_replace(None);
        drop(controllers);
        Self(agent)
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let mut controllers = lock(&self.0.hub.controllers);
        *controllers -= 1;
        if *controllers == 0 {
            self.0.hub.unwatched.send_replace(Some(Instant::now()));
        }
    }
}

impl Agent {
    /// Tells watchers how an instance is now.
    pub(crate) fn publish(&self, instance: &Instance) {
        self.publish_state(&mut instance.state());
    }

    /// The same under the lock under which it was changed: so that the changes of one instance stay in order, and each
    /// is told once.
    pub(crate) fn publish_state(&self, state: &mut State) {
        if !self.hub.changes.is_watched() {
            // Not for nobody: building the event copies the claim.
            return;
        }
        if state.phase != Phase::Gone {
            state.published = true;
            self.hub.tell(Kind::Instance(state.to_wire()));
        }
    }

    /// Tells watchers that nothing is left of an instance.
    pub(crate) fn publish_removed(&self, instance: &Instance) {
        let state = instance.state();
        self.hub.tell(Kind::Removed(agent::Removed { instance_id: state.id.to_string(), claim: Some(state.claim()) }));
    }

    /// Images came or went.
    pub(crate) fn images_changed(&self) {
        self.hub.tell(Kind::Images(agent::Images { references: self.images.names() }));
        self.pool.look_again();
    }

    /// How everything is now.
    pub fn snapshot(&self) -> agent::Snapshot {
        let mut instances: Vec<Arc<Instance>> = lock(&self.instances).values().cloned().collect();
        let (used, creating) = {
            let ledger = lock(&self.ledger);
            (ledger.used(), ledger.handles().cloned().collect::<Vec<_>>())
        };
        instances.extend(creating.into_iter().filter(|instance| instance.state().id.is_empty()));
        let reported = instances.iter().filter_map(|instance| {
            let mut state = instance.state();
            state.published = true;
            (state.phase != Phase::Gone).then(|| state.to_wire())
        });
        agent::Snapshot {
            agent: Some(self.info()),
            instances: reported.collect(),
            images: self.images.names(),
            stock: self.pool.report(),
            used_slots: used as i32,
            no_room: self.room.why(),
        }
    }

    fn heartbeat(&self) -> agent::Event {
        let used_slots = lock(&self.ledger).used() as i32;
        let heartbeat = agent::Heartbeat { time_ms: now_ms(), used_slots, no_room: self.room.why() };
        agent::Event { event: Some(Kind::Heartbeat(heartbeat)) }
    }

    /// A snapshot, then every change and heartbeats, until the agent stops or the stream is dropped. While a controller
    /// watches, AutoRecreate sandboxes are not stopped (`lost.rs`).
    pub fn watch(
        self: &Arc<Self>,
        is_controller: bool,
    ) -> impl Stream<Item = Result<agent::Event, Status>> + Send + use<> {
        struct Watching {
            agent: Arc<Agent>,
            _controller: Option<Controller>,
            changes: Watcher<agent::Event>,
            heartbeat: Interval,
            snapshot_due: bool,
            over: bool,
        }
        let mut heartbeat = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Listens before the snapshot is taken, so that no change falls between the two.
        let changes = self.hub.changes.watch();
        let watching = Watching {
            agent: self.clone(),
            _controller: is_controller.then(|| Controller::new(self.clone())),
            changes,
            heartbeat,
            snapshot_due: true,
            over: false,
        };
        stream::unfold(watching, |mut watching| async move {
            let agent = watching.agent.clone();
            if watching.over {
                return None;
            }
            if watching.snapshot_due {
                watching.snapshot_due = false;
                let snapshot = agent::Event { event: Some(Kind::Snapshot(agent.snapshot())) };
                return Some((Ok(snapshot), watching));
            }
            let event = tokio::select! {
                biased;
                () = agent.shutdown.cancelled() => return None,
                _ = watching.heartbeat.tick() => agent.heartbeat(),
                change = watching.changes.next() => match change {
                    Ok(event) => event,
                    Err(Behind) => {
                        tracing::warn!("a watcher does not read and is dropped");
                        watching.over = true;
                        return Some((Err(Status::resource_exhausted(BEHIND)), watching));
                    }
                },
            };
            Some((Ok(event), watching))
        })
    }
}

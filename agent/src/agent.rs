//! The agent: what all of its parts share, how it opens, and what a program that links it can call.

use crate::admission::Ledger;
use crate::changes::Changes;
use crate::config::Config;
use crate::ended::Ended;
use crate::error::{Error, Result, StartError};
use crate::images::{self, Images, Resolved};
use crate::instance::{Instance, Phase};
use crate::keeper::{Keeper, Paused};
use crate::launched::{self, Launched};
use crate::logs::Logs;
use crate::metrics::{Metrics, Timing};
use crate::order::Order;
use crate::outcome::UnderWay;
use crate::pool::{self, Pool};
use crate::reaper::Reaper;
use crate::room::{self, Room};
use crate::spares::{self, Spares};
use crate::stage::Stage;
use crate::start::{self, DEFAULT_DEADLINE, Started};
use crate::trash::Trash;
use crate::watch::Hub;
use crate::{collect, events, inodes, lock, logs, lost, plugins, recover, remove};
use fsb_host::usage;
use fsb_image::Store;
use fsb_proto::agent::{self, CreateRequest, DeleteRequest, Source};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// One agent. Everything it does goes through its keeper, which outlives it.
pub struct Agent {
    pub(crate) config: Config,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) ledger: Arc<Mutex<Ledger<Arc<Instance>>>>,
    /// By id, as long as anything of them is left.
    pub(crate) instances: Mutex<HashMap<Arc<str>, Arc<Instance>>>,
    /// Those that have ended.
    pub(crate) ended: Mutex<Ended>,
    pub(crate) pool: Pool,
    pub(crate) room: Room,
    pub(crate) launched: Launched,
    pub(crate) under_way: UnderWay,
    pub(crate) images: Images,
    pub(crate) hub: Hub,
    pub(crate) changes: Arc<Changes>,
    pub(crate) logs: Logs,
    pub(crate) metrics: Metrics,
    pub(crate) reaper: Reaper,
    pub(crate) spares: Arc<Spares>,
    pub(crate) trash: Trash,
    pub(crate) tracker: TaskTracker,
    pub(crate) shutdown: CancellationToken,
    uid: String,
}

impl Agent {
    /// Connects to the keeper, finds again what an agent before this one left, and begins to work.
    ///
    /// # Errors
    /// If the image store or the infra directory cannot be read, or the keeper does not answer.
    pub async fn open(config: Config, keeper: OwnedFd) -> Result<Arc<Self>> {
        let store =
            Store::open(config.paths.images()).map_err(|error| Error::Internal(format!("the image store: {error}")))?;
        let found = plugins::collect(&config.plugin_dir, &config.plugin_roots)
            .map_err(|error| Error::io(config.plugin_dir.display(), &error))?;
        for rejected in &found.rejected {
            tracing::warn!(rejected, "a plugin is not mounted into sandboxes");
        }
        let images = Images::new(store, found.plugins, config.plugin_wrap.as_deref())?;
        let (keeper, welcome, events) = Keeper::connect(keeper).await?;
        let memory = config.memory_limit.unwrap_or_else(|| memory_limit(&config));
        let spares = Arc::new(Spares::find(&config.paths));
        let trash = Trash::start(&config.paths, spares.clone()).map_err(|error| Error::io("a thread", &error))?;
        let agent = Arc::new(Self {
            pool: Pool::new(config.make, config.per_image, config.pool_bytes(memory), config.warm_images.clone()),
            ledger: Arc::new(Mutex::new(Ledger::new(config.capacity))),
            instances: Mutex::default(),
            ended: Mutex::default(),
            room: Room::default(),
            launched: Launched::default(),
            under_way: UnderWay::default(),
            images,
            hub: Hub::new(),
            changes: Changes::open(),
            logs: Logs::new(),
            metrics: Metrics::new(),
            reaper: Reaper::new(),
            trash,
            spares,
            tracker: TaskTracker::new(),
            shutdown: CancellationToken::new(),
            uid: config.uid.clone().unwrap_or_else(|| welcome.incarnation.clone()),
            keeper,
            config,
        });
        recover::adopt(&agent, welcome.known);
        // It lasts as long as the keeper does: nobody waits for it at the end.
        tokio::spawn(events::run(agent.clone(), events));
        agent.tracker.spawn(launched::run(agent.clone()));
        agent.tracker.spawn(pool::run(agent.clone()));
        agent.tracker.spawn(room::run(agent.clone()));
        agent.tracker.spawn(pool::warm::run(agent.clone()));
        let changes = agent.shutdown.clone().run_until_cancelled_owned(agent.changes.clone().run());
        agent.tracker.spawn(async move {
            let _ = changes.await;
        });
        agent.tracker.spawn(images::run(agent.clone()));
        agent.tracker.spawn(collect::run(agent.clone()));
        agent.tracker.spawn(remove::run(agent.clone()));
        agent.tracker.spawn(lost::run(agent.clone()));
        agent.tracker.spawn(spares::run(agent.clone()));
        agent.tracker.spawn(inodes::run(agent.clone()));
        agent.tracker.spawn(logs::tell(agent.clone()));
        agent.tracker.spawn(recover::sweep(agent.clone()));
        Ok(agent)
    }

    /// Starts a sandbox within 60 s, and answers when its process runs. Anything that fails is undone first.
    pub async fn start(self: &Arc<Self>, request: CreateRequest) -> Result<Started, StartError> {
        self.start_within(request, DEFAULT_DEADLINE).await
    }

    /// [`Agent::start`] with another deadline.
    pub async fn start_within(
        self: &Arc<Self>,
        request: CreateRequest,
        within: Duration,
    ) -> Result<Started, StartError> {
        let order = Order::from_wire(&request).map_err(|error| StartError::new(Stage::Admission, error.into()))?;
        drop(request);
        start::create(self, order, within).await
    }

    /// Kills an instance and waits until nothing of it is left.
    pub async fn stop_and_remove(self: &Arc<Self>, id: &str) -> Result<()> {
        let instance = self.find(id);
        let request = DeleteRequest {
            instance_id: id.to_owned(),
            grace_period_seconds: Some(0),
            remove_logs: true,
            ..Default::default()
        };
        let gone = self.delete(request).await?;
        if let (false, Some(instance)) = (gone, instance) {
            instance.until(|state| (state.phase == Phase::Gone).then_some(())).await;
        }
        Ok(())
    }

    /// Waits until an instance has ended, its container is gone and its slot is free.
    pub async fn wait_ended(&self, id: &str) -> Result<agent::Instance> {
        let instance = self.get(id)?;
        instance.released().await;
        let state = instance.state();
        Ok(state.to_wire())
    }

    /// How many paused containers there are of an image, under any of its names.
    pub fn stock(&self, image: &str) -> usize {
        match self.images.store.resolve(image) {
            Ok(Some(image)) => self.pool.count(&image.digest),
            _ => 0,
        }
    }

    /// Done when the keeper is gone, and with it every sandbox of this agent.
    pub async fn keeper_gone(&self) {
        self.keeper.gone().await;
    }

    /// The metrics in Prometheus' text format.
    pub fn metrics_text(&self) -> String {
        let (capacity, used) = {
            let ledger = lock(&self.ledger);
            (ledger.capacity(), ledger.used())
        };
        let usage = self.config.cgroups.as_ref().map(usage::of_sandboxes).unwrap_or_default();
        self.metrics.render(capacity, used, usage)
    }

    /// Takes no new sandboxes from here on; what runs goes on.
    pub fn cordon(&self) {
        lock(&self.ledger).cordon();
    }

    /// Ends the background work and waits for starts under way, at most `patience`. Sandboxes are not touched: they are
    /// the keeper's, and the next agent finds them again.
    pub async fn close(&self, patience: Duration) {
        self.cordon();
        self.shutdown.cancel();
        self.trash.close();
        self.tracker.close();
        if tokio::time::timeout(patience, self.tracker.wait()).await.is_err() {
            tracing::warn!("not everything under way was done before the end");
        }
    }

    /// Who this agent is.
    pub(crate) fn info(&self) -> agent::AgentInfo {
        let config = &self.config;
        agent::AgentInfo {
            name: config.name.clone(),
            namespace: config.namespace.clone(),
            pool: config.pool.clone(),
            node: config.node.clone(),
            uid: self.uid.clone(),
            capacity: i32::try_from(config.capacity).unwrap_or(i32::MAX),
            ip: config.ip.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cordoned: lock(&self.ledger).cordoned(),
            runtime: "container".to_owned(),
        }
    }

    /// An instance has its container.
    pub(crate) fn enter(
        &self,
        instance: &Arc<Instance>,
        paused: &Paused,
        source: Source,
        image: &Arc<Resolved>,
    ) -> Arc<str> {
        let id: Arc<str> = paused.made.id.as_str().into();
        {
            let mut state = instance.state();
            state.id = id.clone();
            state.source = source;
            state.cgroups = paused.made.cgroups.clone();
            state.pidfd = Some(paused.pidfd.clone());
            state.mounts = paused.mounts.clone();
            state.pin = Some(image.shelf.pin.clone());
        }
        lock(&self.instances).insert(id.clone(), instance.clone());
        id
    }

    /// What is left to do when a create was answered.
    pub(crate) fn after_start(
        &self,
        order: &Order,
        instance: Option<Arc<Instance>>,
        source: Source,
        failed: Option<&StartError>,
        timing: &Timing,
    ) {
        if let Some(shelf) = &timing.shelf {
            self.pool.took(shelf);
        }
        let (request, claim) = (&order.request_id, &order.binding.claim_uid);
        if let Some(instance) = &instance {
            // Who stopped it since, or saw it end, has told that.
            let mut state = instance.state();
            if state.phase == Phase::Running {
                self.publish_state(&mut state);
            }
            drop(state);
            tracing::debug!(request, claim, instance = %instance.id(), "started");
        }
        match failed {
            Some(error) if error.cause.refusal().is_none() => {
                tracing::warn!(request, claim, %error, "a start failed");
            }
            Some(error) => tracing::info!(request, claim, %error, "a start was refused"),
            None => {}
        }
        if instance.is_some() || failed.is_some() {
            self.metrics.started(source, failed.is_some(), timing);
        }
    }
}

/// The memory that this agent and its sandboxes may use, in bytes: its cgroup's limit, or what the machine has.
fn memory_limit(config: &Config) -> u64 {
    let limit = config.cgroups.as_ref().and_then(usage::memory_limit);
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()
    });
    limit.into_iter().chain(machine.map(|kib| kib << 10)).min().unwrap_or(1 << 30)
}

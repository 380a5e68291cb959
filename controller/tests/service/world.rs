//! A controller, agents and a client, with short times.

use super::fake::FakeAgent;
use clap::Parser;
use fsb_controller::claims::{Claim, ClaimStore, Embedded, Key, Loaded, WriteError};
use fsb_controller::config::Timing;
use fsb_controller::{Config, Controller};
use fsb_proto::fastpath::fast_path_service_client::FastPathServiceClient;
use fsb_proto::fastpath::*;
use fsb_rpc::{Address, Channel};
use futures_util::future::BoxFuture;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tonic::{Code, Status};

/// Longer than anything here takes, shorter than anybody's patience.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The embedded store with faults on demand.
pub(crate) struct Store {
    inner: Embedded,
    faults: Arc<Faults>,
}

#[derive(Default)]
pub(crate) struct Faults {
    /// Every write fails and may be tried again.
    pub(crate) transient: AtomicBool,
    /// Every put is refused for good.
    pub(crate) refuse: AtomicBool,
    /// `put name phase` and `remove name`, in order.
    pub(crate) writes: Mutex<Vec<String>>,
}

impl ClaimStore for Store {
    fn load(&self) -> BoxFuture<'_, Result<Loaded, WriteError>> {
        self.inner.load()
    }

    fn put(&self, claim: Arc<Claim>, urgent: bool) -> BoxFuture<'_, Result<(), WriteError>> {
        Box::pin(async move {
            if self.faults.transient.load(Ordering::SeqCst) {
                return Err(WriteError::Transient("no space left on device".into()));
            }
            if self.faults.refuse.load(Ordering::SeqCst) {
                return Err(WriteError::Final { reason: "Quota", message: "over the quota".into() });
            }
            let line = format!("put {} {}", claim.key.name, claim.status.phase);
            self.inner.put(claim, urgent).await?;
            self.faults.writes.lock().unwrap().push(line);
            Ok(())
        })
    }

    fn remove(&self, key: Key, uid: Arc<str>, entomb: bool) -> BoxFuture<'_, Result<(), WriteError>> {
        Box::pin(async move {
            if self.faults.transient.load(Ordering::SeqCst) {
                return Err(WriteError::Transient("no space left on device".into()));
            }
            let line = format!("remove {}", key.name);
            self.inner.remove(key, uid, entomb).await?;
            self.faults.writes.lock().unwrap().push(line);
            Ok(())
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.close()
    }
}

pub(crate) struct World {
    pub(crate) agents: Vec<FakeAgent>,
    pub(crate) controller: Option<Controller>,
    pub(crate) client: FastPathServiceClient<Channel>,
    pub(crate) faults: Arc<Faults>,
    pub(crate) timing: Timing,
    flags: Vec<String>,
    dir: TempDir,
}

/// Times for tests: everything happens, soon.
fn timing() -> Timing {
    Timing {
        agent_lost_after: Duration::from_millis(300),
        settle: Duration::from_secs(5),
        create_deadline: Duration::from_secs(10),
        call: Duration::from_millis(500),
        retry_least: Duration::from_millis(10),
        retry_most: Duration::from_millis(100),
        orphan_timeout: Duration::from_millis(200),
        durable_wait: Duration::from_millis(200),
        ..Timing::default()
    }
}

impl World {
    /// A controller with `agents` agents of default-pool in namespace default.
    pub(crate) async fn new(agents: usize) -> Self {
        Self::with(agents, &[], |_| {}).await
    }

    /// The same, with further flags, and agents changed before they are first seen.
    pub(crate) async fn with(agents: usize, flags: &[&str], change: impl Fn(&mut FakeAgent)) -> Self {
        let dir = tempfile::Builder::new().prefix("fsb").tempdir_in("/tmp").unwrap();
        let agents = (1..=agents)
            .map(|number| {
                let mut agent = FakeAgent::new(dir.path(), &format!("agent-{number}"));
                change(&mut agent);
                agent.serve();
                agent
            })
            .collect();
        let mut world = Self {
            agents,
            controller: None,
            client: client(&dir.path().join("c.sock")),
            faults: Arc::default(),
            timing: timing(),
            flags: flags.iter().map(|flag| flag.to_string()).collect(),
            dir,
        };
        world.start().await;
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the controller on the claims that are there.
    pub(crate) async fn start(&mut self) {
        let mut arguments = vec![
            "fsb-controller".to_owned(),
            "--fastpath-bind-address=off".into(),
            "--metrics-bind-address=127.0.0.1:0".into(),
            "--health-probe-bind-address=127.0.0.1:0".into(),
            format!("--fastpath-socket={}", self.path("c.sock").display()),
            format!("--claims={}", self.path("claims.redb").display()),
        ];
        arguments.extend(self.agents.iter().map(|agent| format!("--agent-socket={}", agent.path.display())));
        arguments.extend(self.flags.clone());
        let config = Config::try_parse_from(arguments).unwrap();
        let store = Store { inner: Embedded::open(&config.claims).unwrap().0, faults: self.faults.clone() };
        let controller = Controller::start_with(&config, Arc::new(store), self.timing.clone()).await.unwrap();
        self.controller = Some(controller);
        self.client = client(&self.path("c.sock"));
    }

    /// Ends the controller. What waits for the store is written if the store takes it.
    pub(crate) async fn stop(&mut self) {
        if let Some(controller) = self.controller.take() {
            controller.stop(Duration::from_millis(500)).await;
        }
    }

    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.start().await;
        self.ready().await;
    }

    pub(crate) async fn ready(&self) {
        let core = self.controller.as_ref().unwrap().core().clone();
        let mut ready = core.ready.subscribe();
        tokio::time::timeout(PATIENCE, ready.wait_for(|ready| *ready)).await.unwrap().unwrap();
    }

    pub(crate) fn request(name: &str) -> CreateRequest {
        CreateRequest { image: "busybox".into(), name: name.into(), ..Default::default() }
    }

    pub(crate) async fn try_create(&self, request: CreateRequest) -> Result<CreateResponse, Status> {
        self.client.clone().create_sandbox(request).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn create(&self, name: &str) -> CreateResponse {
        self.try_create(Self::request(name)).await.unwrap()
    }

    pub(crate) async fn get(&self, name: &str) -> Result<SandboxInfo, Status> {
        let request = GetRequest { sandbox_id: name.into(), namespace: String::new() };
        self.client.clone().get_sandbox(request).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn list(&self) -> Vec<SandboxInfo> {
        let request = ListRequest { all_namespaces: true, ..Default::default() };
        self.client.clone().list_sandboxes(request).await.unwrap().into_inner().items
    }

    pub(crate) async fn delete(&self, name: &str) {
        let request = DeleteRequest { sandbox_id: name.into(), ..Default::default() };
        self.client.clone().delete_sandbox(request).await.unwrap();
    }

    pub(crate) async fn update(&self, name: &str, update: update_request::Update) -> Result<UpdateResponse, Status> {
        let request = UpdateRequest { sandbox_id: name.into(), update: Some(update), ..Default::default() };
        self.client.clone().update_sandbox(request).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn reset(&self, name: &str, revision: &str) -> UpdateResponse {
        self.update(name, update_request::Update::ResetRevision(revision.into())).await.unwrap()
    }

    /// Waits until the sandbox is as it should be.
    pub(crate) async fn until(&self, name: &str, what: &str, right: impl Fn(&SandboxInfo) -> bool) -> SandboxInfo {
        let until = Instant::now() + PATIENCE;
        loop {
            let info = self.get(name).await;
            match info {
                Ok(info) if right(&info) => return info,
                other if Instant::now() > until => panic!("{name} never became {what}: {other:?}"),
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    pub(crate) async fn until_phase(&self, name: &str, phase: &str) -> SandboxInfo {
        self.until(name, phase, |info| info.phase == phase).await
    }

    pub(crate) async fn until_gone(&self, name: &str) {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.get(name).await {
                Err(status) if status.code() == Code::NotFound => return,
                other if Instant::now() > until => panic!("{name} never went: {other:?}"),
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    /// Which agent has the sandbox.
    pub(crate) fn agent_of(&mut self, info: &SandboxInfo) -> &mut FakeAgent {
        self.agents.iter_mut().find(|agent| agent.name() == info.agent_pod).unwrap()
    }

    /// How many instances hold a slot, on all agents.
    pub(crate) fn live(&self) -> usize {
        self.agents.iter().map(|agent| agent.state().live().count()).sum()
    }

    /// Slots that the controller takes for used.
    pub(crate) fn used(&self) -> usize {
        let core = self.controller.as_ref().unwrap().core();
        self.agents.iter().map(|agent| core.registry.used(&agent.name())).sum()
    }

    /// Keeps everything as it is for a while that is long for these times.
    pub(crate) async fn pass(&self) {
        tokio::time::sleep(self.timing.agent_lost_after * 2).await;
    }
}

/// Waits until something holds.
pub(crate) async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn client(path: &Path) -> FastPathServiceClient<Channel> {
    let channel = Channel::new(Address::Unix(path.to_owned()), PATIENCE, None);
    FastPathServiceClient::new(channel)
}

//! An agent at its wire: real gRPC on a real unix socket, admission rules of the contract, no containers.

use fsb_proto::agent::agent_service_server::{AgentService, AgentServiceServer};
use fsb_proto::agent::{event::Event as Kind, *};
use fsb_proto::{Refusal, fastpath};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status};

/// What the next create does instead of starting.
#[derive(Clone)]
pub(crate) enum Next {
    Refuse(Refusal, &'static str),
    Break(Status),
    /// Takes so long, then starts.
    Slow(Duration),
}

pub(crate) struct State {
    pub(crate) info: AgentInfo,
    pub(crate) instances: BTreeMap<String, Instance>,
    pub(crate) images: Vec<String>,
    pub(crate) stock: Vec<Stock>,
    pub(crate) next: VecDeque<Next>,
    /// So many deletes fail.
    pub(crate) failing_deletes: u32,
    /// Deletes are answered and not carried out.
    pub(crate) stop_hangs: bool,
    /// Deletes are carried out at once, and answered later.
    pub(crate) answers_late: bool,
    pub(crate) creates: Vec<CreateRequest>,
    pub(crate) deletes: Vec<DeleteRequest>,
    pub(crate) updates: Vec<UpdateRequest>,
    pub(crate) forgotten: Vec<String>,
    /// Calls other than Watch never answer.
    pub(crate) mute: bool,
    /// No heartbeat, no events.
    pub(crate) silent: bool,
    newest: HashMap<String, i64>,
    count: u64,
    events: broadcast::Sender<Event>,
}

impl State {
    fn tell(&self, kind: Kind) {
        if !self.silent {
            let _ = self.events.send(Event { event: Some(kind) });
        }
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            agent: Some(self.info.clone()),
            instances: self.instances.values().cloned().collect(),
            images: self.images.clone(),
            stock: self.stock.clone(),
            used_slots: self.live().count() as i32,
            ..Snapshot::default()
        }
    }

    /// Those that hold a slot.
    pub(crate) fn live(&self) -> impl Iterator<Item = &Instance> {
        self.instances.values().filter(|instance| instance.phase() != InstancePhase::Ended)
    }

    fn start(&mut self, request: &CreateRequest) -> Result<CreateResponse, Status> {
        let claim = request.claim.clone().unwrap_or_default();
        let newest = self.newest.get(&claim.uid).copied().unwrap_or(0);
        if claim.generation < newest {
            return Err(Refusal::Stale.status("a newer generation is known"));
        }
        if let Some(there) = self.instances.values().find(|there| there.claim.as_ref() == Some(&claim)) {
            return Ok(CreateResponse { instance_id: there.instance_id.clone(), existed: true, ..Default::default() });
        }
        if self.info.capacity != 0 && self.live().count() >= self.info.capacity as usize {
            return Err(Refusal::Full.status("no free slot"));
        }
        let taken = |port: &&i32| self.live().any(|there| there.exposed_ports.contains(port));
        if let Some(port) = request.exposed_ports.iter().find(taken) {
            return Err(Refusal::PortTaken.status(format!("port {port} is in use")));
        }
        self.count += 1;
        self.newest.insert(claim.uid.clone(), claim.generation);
        let instance_id = format!("{:0>20}{:0>12}", self.info.name.replace('-', ""), self.count);
        let instance = Instance {
            claim: Some(claim),
            instance_id: instance_id.clone(),
            phase: InstancePhase::Running as i32,
            image: request.image.clone(),
            exposed_ports: request.exposed_ports.clone(),
            created_at_ms: 1,
            started_at_ms: fsb_controller::clock::now_ms(),
            claim_document: request.claim_document.clone(),
            ..Default::default()
        };
        self.tell(Kind::Instance(instance.clone()));
        let started_at_ms = instance.started_at_ms;
        self.instances.insert(instance_id.clone(), instance);
        Ok(CreateResponse { instance_id, started_at_ms, source: Source::Stock as i32, existed: false })
    }

    fn find(&self, request: &DeleteRequest) -> Option<String> {
        let Some(claim) = &request.claim else {
            return self.instances.get(&request.instance_id).map(|found| found.instance_id.clone());
        };
        let same = |there: &&Instance| {
            there.claim.as_ref().is_some_and(|of| of.uid == claim.uid && of.generation == claim.generation)
        };
        self.instances.values().find(same).map(|found| found.instance_id.clone())
    }

    /// Takes an instance away and says so.
    pub(crate) fn remove(&mut self, instance_id: &str) {
        if let Some(instance) = self.instances.remove(instance_id) {
            self.tell(Kind::Removed(Removed { instance_id: instance_id.into(), claim: instance.claim }));
        }
    }

    /// The process of an instance has ended.
    pub(crate) fn end(&mut self, instance_id: &str, exit_code: i32, reason: &str) {
        if let Some(instance) = self.instances.get_mut(instance_id) {
            instance.phase = InstancePhase::Ended as i32;
            instance.exit_code = Some(exit_code);
            instance.reason = reason.into();
            instance.finished_at_ms = fsb_controller::clock::now_ms();
            let instance = instance.clone();
            self.tell(Kind::Instance(instance));
        }
    }
}

/// The agent. It serves until it is killed or dropped.
pub(crate) struct FakeAgent {
    pub(crate) path: PathBuf,
    state: Arc<Mutex<State>>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl FakeAgent {
    pub(crate) fn new(dir: &Path, name: &str) -> Self {
        let info = AgentInfo {
            name: name.into(),
            namespace: "default".into(),
            pool: "default-pool".into(),
            node: format!("node-of-{name}"),
            uid: format!("{name}-1"),
            capacity: 5,
            ip: "10.213.1.1".into(),
            version: "1".into(),
            ..Default::default()
        };
        let state = State {
            info,
            instances: BTreeMap::new(),
            images: vec!["busybox:latest".into()],
            stock: vec![],
            next: VecDeque::new(),
            failing_deletes: 0,
            stop_hangs: false,
            answers_late: false,
            creates: vec![],
            deletes: vec![],
            updates: vec![],
            forgotten: vec![],
            mute: false,
            silent: false,
            newest: HashMap::new(),
            count: 0,
            events: broadcast::channel(1024).0,
        };
        Self { path: dir.join(format!("{name}.sock")), state: Arc::new(Mutex::new(state)), runtime: None }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn name(&self) -> String {
        self.state().info.name.clone()
    }

    /// Serves on a runtime of its own, so that killing it breaks its connections too.
    pub(crate) fn serve(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (path, service) = (self.path.clone(), Service { state: self.state.clone() });
        let (ready, wait) = std::sync::mpsc::channel();
        runtime.spawn(async move {
            let listener = tokio::net::UnixListener::bind(path).unwrap();
            ready.send(()).unwrap();
            tonic::transport::Server::builder()
                .add_service(AgentServiceServer::new(service))
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .unwrap();
        });
        wait.recv().unwrap();
        self.runtime = Some(runtime);
    }

    /// As kill -9 of its server: connections break, what runs goes on.
    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        let _ = std::fs::remove_file(&self.path);
    }

    /// As the death of its keeper: another incarnation with nothing on it.
    pub(crate) fn reborn(&mut self) {
        self.kill();
        {
            let mut state = self.state();
            state.instances.clear();
            state.newest.clear();
            let uid = format!("{}x", state.info.uid);
            state.info.uid = uid;
        }
        self.serve();
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Service {
    state: Arc<Mutex<State>>,
}

impl Service {
    async fn hear(&self) -> Result<(), Status> {
        if self.state.lock().unwrap().mute {
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

type Stream<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AgentService for Service {
    async fn create(&self, request: Request<CreateRequest>) -> Result<Response<CreateResponse>, Status> {
        self.hear().await?;
        let request = request.into_inner();
        let next = {
            let mut state = self.state.lock().unwrap();
            state.creates.push(request.clone());
            state.next.pop_front()
        };
        match next {
            Some(Next::Refuse(refusal, sentence)) => return Err(refusal.status(sentence)),
            Some(Next::Break(status)) => return Err(status),
            Some(Next::Slow(time)) => {
                // As the real one: the start goes on when the caller has gone.
                let state = self.state.clone();
                let start = tokio::spawn(async move {
                    tokio::time::sleep(time).await;
                    state.lock().unwrap().start(&request)
                });
                return start.await.unwrap().map(Response::new);
            }
            None => {}
        }
        self.state.lock().unwrap().start(&request).map(Response::new)
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        self.hear().await?;
        let request = request.into_inner();
        let (id, answers_late) = {
            let mut state = self.state.lock().unwrap();
            state.deletes.push(request.clone());
            if state.failing_deletes > 0 {
                state.failing_deletes -= 1;
                return Err(Status::internal("the runtime is stuck"));
            }
            if let Some(claim) = &request.claim {
                let newest = state.newest.get(&claim.uid).copied().unwrap_or(0);
                if claim.generation < newest {
                    return Err(Refusal::Stale.status("a newer generation is known"));
                }
            }
            let Some(id) = state.find(&request) else { return Ok(Response::new(DeleteResponse { gone: true })) };
            if state.stop_hangs {
                return Ok(Response::new(DeleteResponse { gone: false }));
            }
            if let Some(instance) = state.instances.get_mut(&id) {
                instance.phase = InstancePhase::Stopping as i32;
            }
            (id, state.answers_late)
        };
        let state = self.state.clone();
        let removed = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(2)).await;
            state.lock().unwrap().remove(&id);
            tokio::time::sleep(Duration::from_millis(50)).await;
        });
        if answers_late {
            removed.await.unwrap();
        }
        Ok(Response::new(DeleteResponse { gone: false }))
    }

    async fn update(&self, request: Request<UpdateRequest>) -> Result<Response<UpdateResponse>, Status> {
        self.state.lock().unwrap().updates.push(request.into_inner());
        Ok(Response::new(UpdateResponse {}))
    }

    async fn forget(&self, request: Request<ForgetRequest>) -> Result<Response<ForgetResponse>, Status> {
        let mut state = self.state.lock().unwrap();
        for id in request.into_inner().instance_ids {
            state.remove(&id);
            state.forgotten.push(id);
        }
        Ok(Response::new(ForgetResponse {}))
    }

    type WatchStream = Stream<Event>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (sender, stream) = mpsc::channel(64);
        let (snapshot, mut events) = {
            let state = self.state.lock().unwrap();
            (state.snapshot(), state.events.subscribe())
        };
        let state = self.state.clone();
        tokio::spawn(async move {
            let first = Event { event: Some(Kind::Snapshot(snapshot)) };
            if sender.send(Ok(first)).await.is_err() {
                return;
            }
            let mut beat = tokio::time::interval(Duration::from_millis(30));
            loop {
                let event = tokio::select! {
                    event = events.recv() => match event { Ok(event) => event, Err(_) => return },
                    _ = beat.tick() => {
                        if state.lock().unwrap().silent {
                            continue;
                        }
                        Event { event: Some(Kind::Heartbeat(Heartbeat::default())) }
                    }
                };
                if sender.send(Ok(event)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<Snapshot>, Status> {
        Ok(Response::new(self.state.lock().unwrap().snapshot()))
    }

    type LogsStream = Stream<fastpath::LogChunk>;

    /// Ten chunks that say whose log it is; a following one goes on for ever.
    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let request = request.into_inner();
        let (sender, stream) = mpsc::channel(1);
        tokio::spawn(async move {
            for number in 0u64.. {
                if number == 10 && !request.follow {
                    return;
                }
                let line = fastpath::LogLine {
                    text: format!("{} {number}", request.instance_id).into_bytes().into(),
                    ..Default::default()
                };
                if sender.send(Ok(fastpath::LogChunk { lines: vec![line], ..Default::default() })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn list_logs(&self, _: Request<ListLogsRequest>) -> Result<Response<ListLogsResponse>, Status> {
        Ok(Response::new(ListLogsResponse::default()))
    }

    async fn remove_logs(&self, _: Request<RemoveLogsRequest>) -> Result<Response<RemoveLogsResponse>, Status> {
        Ok(Response::new(RemoveLogsResponse {}))
    }

    async fn set_warm_images(
        &self,
        _: Request<SetWarmImagesRequest>,
    ) -> Result<Response<SetWarmImagesResponse>, Status> {
        Ok(Response::new(SetWarmImagesResponse {}))
    }

    async fn import_image(&self, _: Request<ImportImageRequest>) -> Result<Response<ImageInfo>, Status> {
        Err(Status::unimplemented("no images here"))
    }

    type PullImageStream = Stream<PullProgress>;

    async fn pull_image(&self, _: Request<PullImageRequest>) -> Result<Response<Self::PullImageStream>, Status> {
        Err(Status::unimplemented("no images here"))
    }

    async fn list_images(&self, _: Request<ListImagesRequest>) -> Result<Response<ListImagesResponse>, Status> {
        Ok(Response::new(ListImagesResponse::default()))
    }

    async fn remove_image(&self, _: Request<RemoveImageRequest>) -> Result<Response<RemoveImageResponse>, Status> {
        Ok(Response::new(RemoveImageResponse::default()))
    }

    async fn ping(&self, _: Request<PingRequest>) -> Result<Response<PingResponse>, Status> {
        Ok(Response::new(PingResponse {}))
    }
}

//! A controller for tests: serves the Fast-Path on a unix socket, remembers what it was asked, and lets sandboxes
//! live as a test has scripted it.
#![allow(dead_code)] // Each test program uses a part of it.

use fsb_proto::fastpath::fast_path_service_server::{FastPathService, FastPathServiceServer};
use fsb_proto::fastpath::watch_event::Event;
use fsb_proto::fastpath::*;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status};

/// How long a client may be silent, and half of how long the tests of it have it wait.
pub const SILENCE: Duration = Duration::from_secs(2);

/// A server that asks whether its clients are still there.
pub fn server() -> tonic::transport::Server {
    let often = Duration::from_millis(500);
    tonic::transport::Server::builder().http2_keepalive_interval(Some(often)).http2_keepalive_timeout(Some(SILENCE))
}

/// What the controller was asked.
#[derive(Default)]
pub struct Calls {
    pub creates: Vec<CreateRequest>,
    pub deletes: Vec<DeleteRequest>,
    pub updates: Vec<UpdateRequest>,
    pub logs: Vec<LogsRequest>,
    pub tokens: Vec<Option<String>>,
}

/// How it answers.
#[derive(Default)]
pub struct Script {
    /// Refuses every create.
    pub refuse: Option<Status>,
    /// What a sandbox writes.
    pub lines: Vec<LogLine>,
    /// How its log breaks off after that.
    pub breaks: Option<Status>,
    /// What it goes on with at this place, for a reader that comes back; a second of them breaks off no more.
    pub rest: Option<(i64, Vec<LogLine>)>,
    /// So many bytes were rotated away before the first line.
    pub skipped_bytes: i64,
    /// How it ends when its log was read; `None` = it runs on.
    pub exit_code: Option<i32>,
    pub reason: String,
    /// A deletion takes so long.
    pub removal: Duration,
    pub agents: Vec<AgentSummary>,
    /// Answers Watch as an old controller would.
    pub no_watch: bool,
}

#[derive(Default)]
pub struct State {
    pub calls: Calls,
    pub script: Script,
    pub sandboxes: Vec<SandboxInfo>,
}

#[derive(Clone, Default)]
struct Service(Arc<Mutex<State>>);

/// A running controller and a home directory for the program under test.
pub struct Controller {
    pub directory: tempfile::TempDir,
    pub socket: PathBuf,
    state: Arc<Mutex<State>>,
    _runtime: tokio::runtime::Runtime,
}

impl Controller {
    pub fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("fsb-t").tempdir().unwrap();
        let socket = directory.path().join("c.sock");
        let service = Service::default();
        let state = Arc::clone(&service.0);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(async { tokio::net::UnixListener::bind(&socket) }).unwrap();
        runtime.spawn(
            server()
                .add_service(FastPathServiceServer::new(service))
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
        Self { directory, socket, state, _runtime: runtime }
    }

    pub fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A sandbox that is there already.
    pub fn add(&self, info: SandboxInfo) {
        self.state().sandboxes.push(info);
    }

    /// The program with this controller as its endpoint.
    pub fn ctl(&self, words: &[&str]) -> Command {
        let mut command = ctl(self.directory.path(), words);
        command.env("FSB_ENDPOINT", format!("unix:{}", self.socket.display()));
        command
    }

    /// Runs the program to its end.
    pub fn run(&self, words: &[&str]) -> Output {
        self.ctl(words).output().unwrap()
    }
}

/// The program in an environment of its own.
pub fn ctl(home: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fsb-ctl"));
    command.args(words).env_clear().env("HOME", home).env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.current_dir(home).stdin(std::process::Stdio::null());
    command
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

pub fn line(stream: LogStream, text: &'static str) -> LogLine {
    LogLine { stream: stream as i32, time_ns: 1_700_000_000_000_000_001, text: text.as_bytes().into(), partial: false }
}

pub fn sandbox(name: &str, phase: &str) -> SandboxInfo {
    SandboxInfo {
        sandbox_id: name.into(),
        sandbox_name: name.into(),
        namespace: "default".into(),
        phase: phase.into(),
        image: "busybox".into(),
        instance_id: "i1".into(),
        created_at: 1_700_000_000,
        ..SandboxInfo::default()
    }
}

impl Service {
    fn find(&self, name: &str, namespace: &str) -> Result<SandboxInfo, Status> {
        let state = self.0.lock().unwrap();
        let found = state.sandboxes.iter().find(|info| info.sandbox_id == name && info.namespace == namespace);
        found.cloned().ok_or_else(|| Status::not_found(format!("there is no sandbox {name} in {namespace}")))
    }

    fn note<T>(&self, request: &Request<T>) {
        let token = request.metadata().get("authorization").map(|value| value.to_str().unwrap().to_owned());
        self.0.lock().unwrap().calls.tokens.push(token);
    }
}

type Stream<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl FastPathService for Service {
    async fn create_sandbox(&self, request: Request<CreateRequest>) -> Result<Response<CreateResponse>, Status> {
        self.note(&request);
        let request = request.into_inner();
        let mut state = self.0.lock().unwrap();
        state.calls.creates.push(request.clone());
        if let Some(status) = &state.script.refuse {
            return Err(status.clone());
        }
        let name = if request.name.is_empty() { "made-up" } else { &request.name }.to_owned();
        let endpoints: Vec<String> = request.exposed_ports.iter().map(|port| format!("10.213.1.2:{port}")).collect();
        let info = SandboxInfo { namespace: request.namespace, ..sandbox(&name, "Running") };
        state.sandboxes.push(info);
        Ok(Response::new(CreateResponse {
            sandbox_id: name.clone(),
            agent_pod: "agent-1".into(),
            endpoints,
            sandbox_name: name,
        }))
    }

    async fn delete_sandbox(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let request = request.into_inner();
        self.find(&request.sandbox_id, &request.namespace)?;
        let mut state = self.0.lock().unwrap();
        let (removal, all) = (state.script.removal, Arc::clone(&self.0));
        for info in state.sandboxes.iter_mut().filter(|info| info.sandbox_id == request.sandbox_id) {
            info.phase = "Terminating".into();
        }
        state.calls.deletes.push(request.clone());
        tokio::spawn(async move {
            tokio::time::sleep(removal).await;
            all.lock().unwrap().sandboxes.retain(|info| info.sandbox_id != request.sandbox_id);
        });
        Ok(Response::new(DeleteResponse { success: true }))
    }

    async fn update_sandbox(&self, request: Request<UpdateRequest>) -> Result<Response<UpdateResponse>, Status> {
        let request = request.into_inner();
        let sandbox = self.find(&request.sandbox_id, &request.namespace)?;
        self.0.lock().unwrap().calls.updates.push(request);
        Ok(Response::new(UpdateResponse { success: true, message: String::new(), sandbox: Some(sandbox) }))
    }

    async fn list_sandboxes(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        self.note(&request);
        let request = request.into_inner();
        let mut items = self.0.lock().unwrap().sandboxes.clone();
        items.retain(|info| request.all_namespaces || info.namespace == request.namespace);
        Ok(Response::new(ListResponse { items }))
    }

    async fn get_sandbox(&self, request: Request<GetRequest>) -> Result<Response<SandboxInfo>, Status> {
        self.note(&request);
        let request = request.into_inner();
        self.find(&request.sandbox_id, &request.namespace).map(Response::new)
    }

    type LogsStream = Stream<LogChunk>;

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let request = request.into_inner();
        self.find(&request.sandbox_id, &request.namespace)?;
        let (send, receive) = tokio::sync::mpsc::channel(4);
        let all = Arc::clone(&self.0);
        let (lines, exit_code, breaks, comes_back, first) = {
            let mut state = all.lock().unwrap();
            state.calls.logs.push(request.clone());
            let script = &state.script;
            let (lines, breaks) = match &script.rest {
                Some((place, rest)) if request.from_offset == Some(*place) => (rest.clone(), None),
                _ => (script.lines.clone(), script.breaks.clone()),
            };
            let instance_id = if script.rest.is_some() { "i1".to_owned() } else { String::new() };
            let next_offset = script.rest.as_ref().map_or(0, |(place, _)| *place);
            let first =
                LogChunk { skipped_bytes: script.skipped_bytes, instance_id, next_offset, ..Default::default() };
            (lines, script.exit_code, breaks, script.rest.is_some(), first)
        };
        tokio::spawn(async move {
            let _ = send.send(Ok(first.clone())).await;
            for lines in lines.chunks(1000) {
                let next_offset = first.next_offset;
                let _ = send.send(Ok(LogChunk { lines: lines.to_vec(), next_offset, ..Default::default() })).await;
            }
            let broke = breaks.is_some();
            if let Some(status) = breaks {
                let _ = send.send(Err(status)).await;
            }
            // A reader that may come back is waited for.
            if !request.follow || broke && comes_back {
                return;
            }
            let Some(code) = exit_code else {
                // It runs on: the log stays open until the reader goes.
                send.closed().await;
                return;
            };
            drop(send);
            // The log ends a little before the phase says so.
            tokio::time::sleep(Duration::from_millis(50)).await;
            let removal = {
                let mut state = all.lock().unwrap();
                let reason = state.script.reason.clone();
                for info in state.sandboxes.iter_mut().filter(|info| info.sandbox_id == request.sandbox_id) {
                    info.phase = if code == 0 { "Succeeded" } else { "Failed" }.into();
                    info.exit_code = Some(code);
                    info.reason.clone_from(&reason);
                }
                let created = state.calls.creates.last();
                let is_removed = created.is_some_and(|create| create.ttl_seconds_after_finished == Some(0));
                is_removed.then_some(state.script.removal)
            };
            if let Some(removal) = removal {
                tokio::time::sleep(Duration::from_millis(20) + removal).await;
                all.lock().unwrap().sandboxes.retain(|info| info.sandbox_id != request.sandbox_id);
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    type WatchStream = Stream<WatchEvent>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        if self.0.lock().unwrap().script.no_watch {
            return Err(Status::unimplemented(""));
        }
        let name = request.into_inner().sandbox_id;
        let (send, receive) = tokio::sync::mpsc::channel(4);
        let all = Arc::clone(&self.0);
        tokio::spawn(async move {
            let event = |event| Ok(WatchEvent { event: Some(event) });
            let mut last = None;
            let mut synced = false;
            loop {
                let now = all.lock().unwrap().sandboxes.iter().find(|info| info.sandbox_id == name).cloned();
                let sent = match (&last, &now) {
                    (before, Some(info)) if *before != now => send.send(event(Event::Changed(info.clone()))).await,
                    (Some(_), None) => send.send(event(Event::Removed(sandbox(&name, "")))).await,
                    _ => Ok(()),
                };
                last = now;
                if !synced {
                    synced = true;
                    let _ = send.send(event(Event::Synced(true))).await;
                }
                if sent.is_err() || send.is_closed() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn list_agents(&self, _: Request<ListAgentsRequest>) -> Result<Response<ListAgentsResponse>, Status> {
        Ok(Response::new(ListAgentsResponse {
            items: self.0.lock().unwrap().script.agents.clone(),
            ..Default::default()
        }))
    }
}

//! The controller's life: open the claims, watch the agents, admit, serve, stop.

mod debug;
mod grpc;
mod http;
mod listen;

use crate::agents::{self, Client, Target, read_token};
use crate::claims::{ClaimStore, Embedded, Recovery};
use crate::config::{Auth, Bind, Config, Consistency, Timing};
use crate::core::Core;
use crate::error::Error;
use crate::fast_path::{FastPath, Tokens};
use crate::reconcile;
use fsb_proto::fastpath::fast_path_service_server::FastPathServiceServer;
use fsb_rpc::{Bounds, raise_open_files};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// The largest request. Argument lists over the kernel's limit are refused with a sentence, so they have to be read.
const MAX_REQUEST: usize = 32 << 20;

/// A controller that serves.
pub struct Controller {
    core: Arc<Core>,
    tasks: JoinSet<()>,
    addresses: Addresses,
    _socket: Option<listen::Socket>,
}

/// The addresses that were bound; an asked-for port 0 is a real one here.
#[derive(Debug, Clone, Default)]
pub struct Addresses {
    /// Fast-Path.
    pub fast_path: Option<SocketAddr>,
    /// Metrics.
    pub metrics: Option<SocketAddr>,
    /// Health.
    pub health: Option<SocketAddr>,
    /// What the process does.
    pub profiling: Option<SocketAddr>,
}

impl Controller {
    /// Starts everything that the flags ask for, with the embedded store.
    pub async fn start(config: &Config) -> Result<Self, Error> {
        let (store, recovery) = Embedded::open(&config.claims)?;
        let controller = Self::start_with(config, Arc::new(store), config.timing()).await?;
        if recovery != Recovery::Clean {
            controller.core.metrics.store_moved_aside.inc();
        }
        Ok(controller)
    }

    /// Starts with this store and these times.
    pub async fn start_with(config: &Config, store: Arc<dyn ClaimStore>, timing: Timing) -> Result<Self, Error> {
        let tokens = config.auth_token_file.as_deref().map(Tokens::read).transpose()?.map(Arc::new);
        let targets = targets(config)?;
        let token = config.agent_token_file.as_deref().map(read_token).transpose()?;
        let consistency: Consistency = config.fastpath_consistency_mode;
        let core = Core::new(store, targets.len(), timing, consistency)
            .await
            .map_err(|error| Error::Store { path: config.claims.clone(), why: error.to_string() })?;

        let tcp = fast_path_over_tcp(config, tokens.is_some()).await?;
        let unix = listen::unix(&config.fastpath_socket).await?;
        let metrics = listen::tcp(&config.metrics_bind_address).await?;
        let health = listen::tcp(&config.health_probe_bind_address).await?;
        // Without tokens it is on the socket alone.
        let profiling = match config.profiling && tokens.is_some() {
            true => listen::tcp(&config.profiling_bind_address).await?,
            false => None,
        };
        let address = |listener: &Option<TcpListener>| listener.as_ref().and_then(|at| at.local_addr().ok());
        let addresses = Addresses {
            fast_path: address(&tcp),
            metrics: address(&metrics),
            health: address(&health),
            profiling: address(&profiling),
        };
        tracing::info!(fast_path = ?addresses.fast_path, socket = %config.fastpath_socket.display(),
            metrics = ?addresses.metrics, health = ?addresses.health, agents = targets.len(), "the controller starts");

        let mut tasks = JoinSet::new();
        for target in targets {
            let client = Client::new(&target, token.as_deref(), core.timing.agent_lost_after, core.timing.call)?;
            tasks.spawn(agents::watch(core.clone(), target, client));
        }
        tasks.spawn(settle(core.clone()));
        tasks.spawn(agents::collect_logs(core.clone()));

        let service = FastPathServiceServer::new(FastPath::new(core.clone(), tokens.clone()))
            .max_decoding_message_size(MAX_REQUEST)
            .max_encoding_message_size(usize::MAX);
        let debug = http::profiling(core.clone(), tokens.clone());
        let bounds = [grpc::CONNECTIONS, grpc::CONNECTIONS, http::CONNECTIONS, http::CONNECTIONS, http::CONNECTIONS];
        let [on_tcp, on_unix, of_metrics, of_health, of_profiling] = Bounds::fit(bounds, raise_open_files());
        if let Some(listener) = tcp {
            tasks.spawn(grpc::serve(listener, on_tcp, service.clone(), tokens.clone(), core.stop.clone()));
        }
        let mut socket = None;
        if let Some((listener, at)) = unix {
            socket = Some(at);
            let service = debug::Beside::new(service, config.profiling.then(|| debug.clone()));
            tasks.spawn(grpc::serve(listener, on_unix, service, tokens, core.stop.clone()));
        }
        let plain = [
            (metrics, of_metrics, http::metrics(core.clone())),
            (health, of_health, http::health(core.clone())),
            (profiling, of_profiling, debug),
        ];
        for (listener, bounds, pages) in plain {
            let Some(listener) = listener else { continue };
            tasks.spawn(http::serve(listener, bounds, pages, core.stop.clone()));
        }
        Ok(Self { core, tasks, addresses, _socket: socket })
    }

    /// The addresses that were bound.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// The shared parts, for tests and for programs that have the controller in them.
    pub fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Stops: no new calls, those in flight get `deadline` to end, what waits for the store is written.
    pub async fn stop(mut self, deadline: Duration) {
        self.core.stop.cancel();
        let core = self.core.clone();
        let orderly = async {
            while self.tasks.join_next().await.is_some() {}
            core.tracker.close();
            core.tracker.wait().await;
            core.queue.flush().await;
        };
        if tokio::time::timeout(deadline, orderly).await.is_err() {
            tracing::warn!(tasks = self.core.tracker.len(), "not everything ended in time; the agents know what runs");
        }
        self.tasks.abort_all();
        self.core.queue.close().await;
    }
}

/// Without authentication there is no Fast-Path over TCP, unless it is said that there shall be.
async fn fast_path_over_tcp(config: &Config, tokens: bool) -> Result<Option<TcpListener>, Error> {
    let open = !tokens && config.auth == Some(Auth::None);
    if !tokens && !open {
        if config.fastpath_bind_address != Bind::Off {
            tracing::info!("no Fast-Path over TCP: there is neither --auth-token-file nor --auth none");
        }
        return Ok(None);
    }
    let listener = listen::tcp(&config.fastpath_bind_address).await?;
    if let Some(address) = listener.as_ref().and_then(|listener| listener.local_addr().ok()).filter(|_| open) {
        if !config.insecure_bind && !address.ip().to_canonical().is_loopback() {
            return Err(Error::OpenToAll { address });
        }
        tracing::warn!(%address, "--auth none: whoever reaches this address may start sandboxes, see their environment \
            and logs, and delete them");
    }
    Ok(listener)
}

fn targets(config: &Config) -> Result<Vec<Target>, Error> {
    let mut targets: Vec<Target> = config.agent_sockets.iter().cloned().map(Target::Unix).collect();
    for address in &config.agent_addresses {
        targets.push(Target::http(address, config.agent_port)?);
    }
    Ok(targets)
}

/// Rule 8: claims and reports are put together before anything is admitted or decided.
async fn settle(core: Arc<Core>) {
    tokio::select! {
        () = core.stop.cancelled() => return,
        () = core.agents.all_reported() => {}
        () = tokio::time::sleep(core.timing.settle) => {
            tracing::warn!("not all agents have reported; the controller goes on without them");
        }
    }
    core.ready.send_replace(true);
    core.wake_all();
    tracing::info!(healthy_agents = core.agents.healthy(), "the controller admits sandboxes");
    // Claims of agents that never reported are decided when the agents count as lost.
    let patience = core.clone();
    core.tracker.spawn(async move {
        tokio::select! {
            () = patience.stop.cancelled() => {}
            () = tokio::time::sleep(patience.timing.agent_lost_after) => patience.wake_all(),
        }
    });
    reconcile::run(core).await;
}

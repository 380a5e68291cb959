//! Cells that start over gRPC, each on one open connection over a unix socket.

use crate::agent::{self, Agent, Stock};
use crate::burst::{self, Burst};
use crate::cell::{Cell, Source, Started};
use crate::clock;
use crate::image::REFERENCE;
use crate::payload::Payload;
use crate::refill::Meter;
use anyhow::{Context, bail};
use fsb_proto::fastpath::fast_path_service_client::FastPathServiceClient;
use fsb_proto::{agent as agent_wire, fastpath};
use fsb_rpc::Channel;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::runtime::Runtime;

const PATIENCE: Duration = Duration::from_secs(30);
/// How long the stock may take to be full before a burst.
const REFILLED: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(2);

/// The create request of a bench's instance.
pub fn request(name: &str, words: &[&str]) -> agent_wire::CreateRequest {
    agent_wire::CreateRequest {
        claim: Some(agent_wire::Claim {
            namespace: "default".into(),
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            generation: 1,
        }),
        image: REFERENCE.to_owned(),
        command: words.iter().map(|word| (*word).to_owned()).collect(),
        ..Default::default()
    }
}

/// `agent-rpc`: one Create call to an agent.
pub struct AgentRpc {
    agent: Agent,
    stock: Stock,
    refill: Option<Meter>,
    count: u64,
}

impl AgentRpc {
    /// To an agent that has the image.
    pub fn new(agent: Agent, refill: Option<Meter>) -> Self {
        Self { agent, stock: Stock::default(), refill, count: 0 }
    }
}

impl Cell for AgentRpc {
    fn name(&self) -> &'static str {
        "agent-rpc"
    }

    fn refill_us(&mut self) -> Option<f64> {
        self.refill.as_ref()?.cpu_us()
    }

    fn start(&mut self, payload: Payload, due_ns: Option<u64>) -> anyhow::Result<Started> {
        self.refill.iter_mut().for_each(|meter| meter.started(1));
        self.stock.wait(|| self.agent.paused())?;
        self.count += 1;
        let request = request(&format!("bench-{}", self.count), &[payload.path()]);
        due_ns.into_iter().for_each(clock::wait_until);
        let called_ns = clock::now_ns();
        let response = self.agent.create(request)?;
        let stamp = self.agent.stamp(&response.instance_id);
        self.agent.remove(&response.instance_id)?;
        self.stock.wait(|| self.agent.paused())?;
        Ok(Started { called_ns, stamp_ns: stamp?, source: Source::from_wire(response.source) })
    }
}

/// `path`: one CreateSandbox call to a controller, which has one agent.
pub struct WholePath {
    runtime: Rc<Runtime>,
    client: FastPathServiceClient<Channel>,
    agent: Agent,
    stock: Stock,
    refill: Option<Meter>,
}

impl WholePath {
    /// Connects to the controller at `socket`; `agent` is the one that it has.
    pub fn connect(runtime: &Rc<Runtime>, socket: &Path, agent: Agent, refill: Option<Meter>) -> anyhow::Result<Self> {
        let channel = runtime.block_on(agent::channel(socket))?;
        let client = FastPathServiceClient::new(channel);
        Ok(Self { runtime: runtime.clone(), client, agent, stock: Stock::default(), refill })
    }

    /// All calls in one instant, on the one connection; returns what was made.
    async fn create_all(client: &FastPathServiceClient<Channel>, ask: burst::Ask) -> (Burst, Vec<String>) {
        let called_ns = clock::now_ns();
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..ask.count {
            let mut client = client.clone();
            let request = fastpath::CreateRequest {
                image: REFERENCE.to_owned(),
                command: vec![ask.payload.path().to_owned()],
                ..Default::default()
            };
            calls.spawn(async move { tokio::time::timeout(PATIENCE, client.create_sandbox(request)).await });
        }
        let mut burst = Burst::at(called_ns);
        let mut sandboxes = Vec::with_capacity(ask.count);
        while let Some(call) = calls.join_next().await {
            match call {
                Ok(Ok(Ok(created))) => sandboxes.push(created.into_inner().sandbox_id),
                Ok(Ok(Err(status))) => burst.put(Err(status.into())),
                Ok(Err(_)) => burst.put(Err(anyhow::anyhow!("no answer within {PATIENCE:?}"))),
                Err(error) => burst.put(Err(error.into())),
            }
        }
        (burst, sandboxes)
    }

    async fn stamp(client: &mut FastPathServiceClient<Channel>, sandbox: &str) -> anyhow::Result<u64> {
        let request = fastpath::LogsRequest { sandbox_id: sandbox.to_owned(), follow: true, ..Default::default() };
        let mut chunks = client.logs(request).await?.into_inner();
        agent::first_stamp(&mut chunks).await
    }

    async fn remove(client: &mut FastPathServiceClient<Channel>, sandbox: &str) -> anyhow::Result<()> {
        let request = || fastpath::DeleteRequest { sandbox_id: sandbox.to_owned(), force: true, ..Default::default() };
        client.delete_sandbox(request()).await?;
        loop {
            let get = fastpath::GetRequest { sandbox_id: sandbox.to_owned(), ..Default::default() };
            match client.get_sandbox(get).await {
                Err(status) if status.code() == tonic::Code::NotFound => return Ok(()),
                Err(status) => return Err(status.into()),
                Ok(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}

impl Cell for WholePath {
    fn name(&self) -> &'static str {
        "path"
    }

    fn refill_us(&mut self) -> Option<f64> {
        self.refill.as_ref()?.cpu_us()
    }

    fn burst(&mut self, ask: burst::Ask) -> anyhow::Result<Burst> {
        self.refill.iter_mut().for_each(|meter| meter.started(ask.count));
        let ready = self.stock.wait_within(REFILLED, || self.agent.paused())?;
        if (ready as usize) < ask.count {
            bail!("the stock has {ready} containers for a burst of {}", ask.count);
        }
        let runtime = self.runtime.clone();
        let client = self.client.clone();
        let before = self.agent.starts()?;
        let (mut burst, sandboxes) = runtime.block_on(Self::create_all(&client, ask));
        for (source, n) in agent::since(&before, self.agent.starts()?) {
            burst.put_source(source, n);
        }
        for sandbox in sandboxes {
            let mut client = self.client.clone();
            let stamp =
                runtime.block_on(async { tokio::time::timeout(PATIENCE, Self::stamp(&mut client, &sandbox)).await });
            burst.put(stamp.unwrap_or_else(|_| bail!("{sandbox} wrote no stamp within {PATIENCE:?}")));
            runtime
                .block_on(async { tokio::time::timeout(PATIENCE, Self::remove(&mut client, &sandbox)).await })
                .with_context(|| format!("{sandbox} is not gone after {PATIENCE:?}"))??;
        }
        Ok(burst)
    }

    fn start(&mut self, payload: Payload, due_ns: Option<u64>) -> anyhow::Result<Started> {
        self.refill.iter_mut().for_each(|meter| meter.started(1));
        self.stock.wait(|| self.agent.paused())?;
        let request = fastpath::CreateRequest {
            image: REFERENCE.to_owned(),
            command: vec![payload.path().to_owned()],
            ..Default::default()
        };
        let runtime = self.runtime.clone();
        let before = self.agent.starts()?;
        let client = &mut self.client;
        due_ns.into_iter().for_each(clock::wait_until);
        let called_ns = clock::now_ns();
        let created = runtime
            .block_on(async { tokio::time::timeout(PATIENCE, client.create_sandbox(request)).await })
            .context("no answer in time")??
            .into_inner();
        let sandbox = created.sandbox_id;
        let stamp = runtime.block_on(async { tokio::time::timeout(PATIENCE, Self::stamp(client, &sandbox)).await });
        let source = agent::since(&before, self.agent.starts()?).into_keys().next();
        runtime
            .block_on(async { tokio::time::timeout(PATIENCE, Self::remove(client, &sandbox)).await })
            .with_context(|| format!("{sandbox} is not gone after {PATIENCE:?}"))??;
        self.stock.wait(|| self.agent.paused())?;
        match stamp {
            Ok(stamp) => Ok(Started { called_ns, stamp_ns: stamp?, source }),
            Err(_) => bail!("{sandbox} wrote no stamp within {PATIENCE:?}"),
        }
    }
}

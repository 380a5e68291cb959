//! What a call costs that does nothing: the floor below everything that is asked of an agent or a controller.

use crate::agent::{Agent, channel, runtime};
use crate::clock;
use crate::image::{Image, REFERENCE};
use crate::interrupt;
use crate::machine::Watch;
use crate::node::Node;
use crate::payload::Payload;
use crate::report::{Report, Row, rounded};
use crate::stats::Summary;
use crate::workspace::Workspace;
use anyhow::Context;
use fsb_proto::agent::agent_service_client::AgentServiceClient;
use fsb_proto::fastpath::fast_path_service_client::FastPathServiceClient;
use fsb_proto::{agent, fastpath};
use fsb_rpc::Channel;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{SysconfVar, sysconf};
use std::path::{Path, PathBuf};

/// Calls that are not counted: connections, buffers and caches become what they are at work.
const WARM_UP: usize = 200;
/// Cells are sampled in turns of so many calls, so that the machine's moods hit all of them alike.
const TURN: usize = 200;
/// A sandbox that the controller knows.
const KNOWN: &str = "known";

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Calls of each cell
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    pub n: usize,
    /// Where the private node and all files are kept while it runs [default: /tmp]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    /// Nothing at all, at the agent.
    Ping,
    /// One sandbox, at the controller.
    Get,
    /// One that is not there.
    GetUnknown,
}

struct Cell {
    name: &'static str,
    call: Call,
    server: i32,
    taken_ns: Vec<u64>,
    cpu_ticks: u64,
}

struct Clients {
    agent: AgentServiceClient<Channel>,
    controller: FastPathServiceClient<Channel>,
}

/// Runs it.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let workspace = Workspace::create(options.root.as_deref())?;
    let image = Image::create(&workspace.path().join("image"))?;
    let watch = Watch::begin(workspace.path());
    let node = Node::up(&workspace)?;
    let (to_agent, to_controller) = (node.agent()?, node.controller()?);
    let runtime = runtime()?;
    Agent::connect(&runtime, &to_agent)?.import(&image.archive, REFERENCE)?;
    let mut cells = [
        Cell::of("noop", Call::Ping, &to_agent)?,
        Cell::of("controller-get", Call::Get, &to_controller)?,
        Cell::of("controller-get-unknown", Call::GetUnknown, &to_controller)?,
    ];
    let rows = runtime.block_on(async {
        let mut clients = Clients {
            agent: AgentServiceClient::new(channel(&to_agent).await?),
            controller: FastPathServiceClient::new(channel(&to_controller).await?),
        };
        clients.start_known().await?;
        for cell in &cells {
            for _ in 0..WARM_UP {
                clients.call(cell.call).await?;
            }
        }
        let mut left = options.n;
        while left > 0 {
            interrupt::check()?;
            let turn = left.min(TURN);
            for cell in &mut cells {
                cell.turn(&mut clients, turn).await?;
            }
            left -= turn;
        }
        cells.iter().map(Cell::row).collect::<anyhow::Result<Vec<Row>>>()
    })?;
    Ok(Report { scenario: "rpc".into(), machine: watch.end(Vec::new()), cells: rows })
}

impl Cell {
    fn of(name: &'static str, call: Call, socket: &Path) -> anyhow::Result<Self> {
        // The kernel notes who listens on a unix socket (SO_PEERCRED, unix(7)).
        let stream = std::os::unix::net::UnixStream::connect(socket)?;
        let server = getsockopt(&stream, PeerCredentials)?.pid();
        Ok(Self { name, call, server, taken_ns: Vec::new(), cpu_ticks: 0 })
    }

    async fn turn(&mut self, clients: &mut Clients, calls: usize) -> anyhow::Result<()> {
        let before = cpu_ticks(self.server)?;
        for _ in 0..calls {
            let began = clock::now_ns();
            clients.call(self.call).await?;
            self.taken_ns.push(clock::now_ns() - began);
        }
        self.cpu_ticks += cpu_ticks(self.server)? - before;
        Ok(())
    }

    fn row(&self) -> anyhow::Result<Row> {
        let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock tick")? as f64;
        let cpu_us = self.cpu_ticks as f64 * 1e6 / per_second / self.taken_ns.len().max(1) as f64;
        let row = Row::of_values(self.name, [("cpu_us", rounded(cpu_us, 1))]);
        Ok(Row { summary: Summary::of(&self.taken_ns), ..row })
    }
}

impl Clients {
    async fn start_known(&mut self) -> anyhow::Result<()> {
        let request = fastpath::CreateRequest {
            name: KNOWN.into(),
            image: REFERENCE.into(),
            command: [Payload::Tiny.path(), "stay"].map(str::to_owned).to_vec(),
            ..Default::default()
        };
        self.controller.create_sandbox(request).await?;
        Ok(())
    }

    async fn call(&mut self, call: Call) -> anyhow::Result<()> {
        let get = |name: &str| fastpath::GetRequest { sandbox_id: name.into(), ..Default::default() };
        match call {
            Call::Ping => drop(self.agent.ping(agent::PingRequest {}).await?),
            Call::Get => drop(self.controller.get_sandbox(get(KNOWN)).await?),
            Call::GetUnknown => match self.controller.get_sandbox(get("unknown")).await {
                Err(status) if status.code() == tonic::Code::NotFound => {}
                Err(status) => return Err(status.into()),
                Ok(_) => anyhow::bail!("a sandbox that was never created is there"),
            },
        }
        Ok(())
    }
}

/// Time on a processor of all threads of a process, in clock ticks (proc(5), fields 14 and 15). The kernel derives it
/// from exact run times, so only the sum is rounded.
fn cpu_ticks(pid: i32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).context(path)?;
    let fields: Vec<&str> = text.rsplit_once(')').context("no name in stat")?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
    ticks(11).zip(ticks(12)).map(|(user, system)| user + system).context("no times in stat")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_process_that_works_goes_on() {
        let own = std::process::id() as i32;
        let before = cpu_ticks(own).unwrap();
        while cpu_ticks(own).unwrap() < before + 2 {}
        assert!(cpu_ticks(i32::MAX).is_err());
    }
}

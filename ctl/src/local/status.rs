//! `local status`.

use super::dirs::Dirs;
use super::process::Process;
use super::record::Node;
use super::tcp::Auth;
use super::{firewall, lock, up};
use crate::client;
use crate::config::Settings;
use crate::error::Result;
use crate::output::{self, FormatArg, or_dash};
use crate::units;
use fsb_proto::fastpath::AgentSummary;
use serde::Serialize;
use std::path::{Path, PathBuf};

#[derive(Serialize)]
struct Status {
    /// Every process runs and every agent is healthy.
    up: bool,
    processes: Vec<Proc>,
    agents: Vec<AgentView>,
    /// Why the controller's agents are not known.
    controller_error: Option<String>,
    sockets: Vec<Place>,
    /// The Fast-Path over TCP.
    tcp: Option<TcpView>,
    directories: Vec<Place>,
    /// The node's rules are in force: nobody but this machine reaches its sandboxes.
    firewall: bool,
    egress: bool,
}

#[derive(Serialize)]
struct Proc {
    name: String,
    pid: Option<i32>,
    running: bool,
    seconds: Option<u64>,
}

#[derive(Serialize)]
struct Place {
    path: PathBuf,
    exists: bool,
}

#[derive(Serialize)]
struct TcpView {
    address: String,
    auth: Auth,
    /// `None` without authentication.
    token_file: Option<PathBuf>,
}

#[derive(Serialize)]
struct AgentView {
    name: String,
    namespace: String,
    pool: String,
    healthy: bool,
    cordoned: bool,
    used: i32,
    capacity: i32,
    paused: i32,
    ip: String,
    images: Vec<String>,
    version: String,
    /// Why it makes no new containers; empty if it does.
    no_room: String,
    /// Why libcontainer makes its containers; empty if moulds do.
    no_moulds: String,
}

impl From<AgentSummary> for AgentView {
    fn from(agent: AgentSummary) -> Self {
        Self {
            name: agent.name,
            namespace: agent.namespace,
            pool: agent.pool,
            healthy: agent.healthy,
            cordoned: agent.cordoned,
            used: agent.used,
            capacity: agent.capacity,
            paused: agent.paused,
            ip: agent.ip,
            images: agent.images,
            version: agent.version,
            no_room: agent.no_room,
            no_moulds: String::new(),
        }
    }
}

/// Exits with 1 if the node is not up.
pub(crate) fn run(dirs: &Dirs, settings: &Settings, format: FormatArg) -> Result<u8> {
    // Others see nothing of it, and would be told that it is not up.
    super::need_root()?;
    let status = look(dirs, settings)?;
    output::show(format.output, &status, |wide| {
        let mut rows = vec![("NODE".to_owned(), if status.up { "up" } else { "not up" }.to_owned())];
        for process in &status.processes {
            let text = match (process.running, process.pid) {
                (true, Some(pid)) => {
                    let age = process.seconds.map(|s| units::age(std::time::Duration::from_secs(s)));
                    format!("running, process {pid}, {}", age.unwrap_or_default())
                }
                (_, Some(pid)) => format!("dead, was process {pid}"),
                _ => "not running".into(),
            };
            rows.push((process.name.clone(), text));
        }
        let controller = status.processes.iter().any(|process| process.name == "controller" && process.running);
        if let Some(error) = status.controller_error.as_ref().filter(|_| controller) {
            rows.push(("agents".into(), format!("unknown: {error}")));
        }
        for agent in &status.agents {
            let room = if agent.capacity == 0 { "no limit".into() } else { format!("of {}", agent.capacity) };
            let health = if agent.healthy { "healthy" } else { "not healthy" };
            let text = format!(
                "{health}, {} sandboxes {room}, {} paused, pool {}, namespace {}, {}",
                agent.used,
                agent.paused,
                agent.pool,
                agent.namespace,
                or_dash(&agent.ip)
            );
            rows.push((agent.name.clone(), text));
            if !agent.no_room.is_empty() {
                rows.push((String::new(), format!("no new containers: {}", agent.no_room)));
            }
            if !agent.no_moulds.is_empty() {
                rows.push((String::new(), format!("no moulds, slow starts: {}", agent.no_moulds)));
            }
        }
        if let Some(tcp) = &status.tcp {
            rows.push(("tcp".into(), format!("{}, {}", tcp.address, tcp.auth.open_to(dirs))));
        }
        if status.up && !status.firewall {
            let gone = format!("gone: fsb-ctl local down{0}, then up{0}", dirs.flag());
            rows.push(("firewall".into(), gone));
        }
        rows.push(("egress".into(), if status.egress { "open" } else { "closed" }.into()));
        let shown = |place: &&Place| wide || !place.exists || place.path.extension().is_some();
        for place in status.sockets.iter().chain(&status.directories).filter(shown) {
            let text = if place.exists { "there" } else { "missing" };
            rows.push((place.path.display().to_string(), text.into()));
        }
        output::pairs(rows)
    })?;
    Ok(u8::from(!status.up))
}

fn look(dirs: &Dirs, settings: &Settings) -> Result<Status> {
    let node = Node::read(dirs);
    let view = |name: String, process: Option<Process>| Proc {
        name,
        pid: process.map(|process| process.pid),
        running: process.is_some_and(|process| process.alive()),
        seconds: process.filter(Process::alive).and_then(|process| process.age()).map(|age| age.as_secs()),
    };
    let mut processes = vec![view("supervisor".into(), lock::holder(&dirs.lock()))];
    let mut sockets = vec![place(&dirs.controller_socket())];
    processes.push(view("controller".into(), node.as_ref().and_then(|node| node.controller)));
    for agent in node.iter().flat_map(|node| &node.agents) {
        let keeper = node.as_ref().and_then(|node| node.keepers.get(&agent.name)).map(|keeper| keeper.keeper);
        processes.push(view(format!("keeper {}", agent.name), keeper));
        sockets.push(place(&dirs.agent_socket(&agent.name)));
    }
    let (mut agents, controller_error) = match client::runtime()?.block_on(up::agents(dirs, settings)) {
        Ok(agents) => (agents.into_iter().map(AgentView::from).collect(), None),
        Err(why) => (Vec::new(), Some(why)),
    };
    for (name, why) in node.iter().flat_map(|node| node.without_moulds(dirs)) {
        let agent: Option<&mut AgentView> = agents.iter_mut().find(|agent: &&mut AgentView| agent.name == name);
        agent.into_iter().for_each(|agent| agent.no_moulds = why.clone());
    }
    let healthy = |name: &str| agents.iter().any(|agent: &AgentView| agent.name == name && agent.healthy);
    let all_healthy = node.as_ref().is_some_and(|node| node.agents.iter().all(|agent| healthy(&agent.name)));
    let firewall = nix::unistd::geteuid().is_root() && firewall::is_in_force(dirs);
    Ok(Status {
        up: all_healthy && processes.iter().all(|process| process.running),
        processes,
        agents,
        controller_error,
        sockets,
        tcp: node.as_ref().and_then(Node::over_tcp).map(|(tcp, address)| TcpView {
            address: address.to_owned(),
            auth: tcp.auth,
            token_file: (tcp.auth == Auth::Tokens).then(|| dirs.tokens()),
        }),
        directories: [&dirs.run, &dirs.state, &dirs.log].map(|path| place(path)).into(),
        egress: firewall && node.is_some_and(|node| node.egress),
        firewall,
    })
}

fn place(path: &Path) -> Place {
    Place { path: path.to_owned(), exists: path.exists() }
}

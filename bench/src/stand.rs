//! What cells run on: a launcher, keepers, a node, each started when the first cell needs it.

use crate::agent::{Agent, runtime};
use crate::cell::{Cell, Remote};
use crate::helper::{Helper, Hub, Process};
use crate::image::{Image, REFERENCE};
use crate::keeper::{Keeper, Settings};
use crate::node::Node;
use crate::peer::Runtime as Peer;
use crate::peer::containerd::Containerd;
use crate::refill::Meter;
use crate::rpc::{AgentRpc, WholePath};
use crate::workspace::Workspace;
use crate::{interrupt, lib_cells};
use anyhow::{Context, bail};
use std::cell::RefCell;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

/// The cells, in the order in which they are shown.
pub const CELLS: [&str; 13] = [
    "floor-fork",
    "floor-spawn",
    "floor-cold",
    "agent-stock",
    "agent-cast",
    "agent-libcontainer",
    "agent-rpc",
    "path",
    "bwrap",
    "crun",
    "runc",
    "youki",
    "containerd",
];

/// What cells need, started when the first one needs it. Fields end in this order: helpers before their keepers.
pub struct Stand<'a> {
    workspace: &'a Workspace,
    image: &'a Image,
    /// Further variables of its agents, such as `POOL_PER_IMAGE`; set before the first cell.
    pub env: Vec<(String, String)>,
    launcher: Option<Rc<RefCell<Helper>>>,
    keepers: Vec<Keeper>,
    node: Option<Node>,
}

impl<'a> Stand<'a> {
    /// With nothing started yet.
    pub fn new(workspace: &'a Workspace, image: &'a Image) -> Self {
        Self { workspace, image, env: Vec::new(), launcher: None, keepers: Vec::new(), node: None }
    }

    /// Those of `names` that this machine can run; why it cannot run the others goes into `warnings`.
    pub fn cells(&mut self, names: &[&'static str], warnings: &mut Vec<String>) -> anyhow::Result<Vec<Box<dyn Cell>>> {
        let mut cells = Vec::with_capacity(names.len());
        for name in names {
            interrupt::check()?;
            match self.cell(name) {
                Ok(cell) => cells.push(cell),
                Err(error) => warnings.push(format!("{name} is left out: {error:#}")),
            }
        }
        if cells.is_empty() {
            bail!("nothing to measure: {}", warnings.join("; "));
        }
        Ok(cells)
    }

    /// The cell called `name`, with what it needs.
    pub fn cell(&mut self, name: &'static str) -> anyhow::Result<Box<dyn Cell>> {
        Ok(match name {
            "floor-fork" | "floor-spawn" => {
                let launcher = self.launcher()?;
                Box::new(Remote::new(name, "everything but the process", &launcher))
            }
            "floor-cold" => Box::new(Remote::new(name, "admission, log, record", &self.launcher()?)),
            "bwrap" | "crun" | "runc" | "youki" => {
                let peer = Peer::named(name).context("no such runtime")?;
                peer.find()?;
                let launcher = match peer {
                    Peer::Crun => Rc::new(RefCell::new(launcher(self.workspace.path(), self.workspace.name(), true)?)),
                    _ => self.launcher()?,
                };
                Box::new(Remote::new(name, peer.leaves_out(), &launcher))
            }
            "containerd" => Box::new(Containerd::start(self.workspace, self.image)?),
            "agent-stock" | "agent-cast" | "agent-libcontainer" => {
                let mut helper = lib_cells::start(self.workspace, self.image, name, self.env.clone())?;
                // Answers only when its stock is full: what that took belongs to no refill.
                helper.stages();
                let meter = match name {
                    "agent-stock" => Meter::open(self.workspace.path(), "stock"),
                    _ => None,
                };
                Box::new(Remote::new(name, "", &Rc::new(RefCell::new(helper))).metered(meter))
            }
            "agent-rpc" => Box::new(self.agent_rpc()?),
            "path" => Box::new(self.whole_path()?),
            other => bail!("no such cell: {other}"),
        })
    }

    fn launcher(&mut self) -> anyhow::Result<Rc<RefCell<Helper>>> {
        if self.launcher.is_none() {
            self.launcher = Some(Rc::new(RefCell::new(launcher(self.workspace.path(), self.workspace.name(), false)?)));
        }
        self.launcher.clone().context("no launcher")
    }

    fn agent_rpc(&mut self) -> anyhow::Result<AgentRpc> {
        let settings =
            Settings { name: "rpc".into(), warm: vec![REFERENCE.into()], env: self.env.clone(), ..Settings::default() };
        let keeper = Keeper::start(self.workspace, &settings)?;
        let socket = keeper.socket.clone();
        self.keepers.push(keeper);
        let mut agent = Agent::connect(&runtime()?, &socket)?;
        agent.import(&self.image.archive, REFERENCE)?;
        agent.warm(REFERENCE)?;
        agent.settled()?;
        Ok(AgentRpc::new(agent, Meter::open(self.workspace.path(), "rpc")))
    }

    fn whole_path(&mut self) -> anyhow::Result<WholePath> {
        let node = Node::up_with(self.workspace, self.env.clone())?;
        let sockets = (node.controller()?, node.agent()?);
        self.node = Some(node);
        let runtime = runtime()?;
        let mut agent = Agent::connect(&runtime, &sockets.1)?;
        agent.import(&self.image.archive, REFERENCE)?;
        agent.warm(REFERENCE)?;
        agent.settled()?;
        let name = sockets.1.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let meter = Meter::open(self.workspace.path(), name);
        WholePath::connect(&runtime, &sockets.0, agent, meter)
    }
}

/// Starts a launcher, and another one when it does not answer: one start that hangs is not to take the others with it.
fn launcher(root: &Path, cgroup: &str, hide_unified: bool) -> anyhow::Result<Helper> {
    let (again, again_cgroup) = (root.to_owned(), cgroup.to_owned());
    let first = launcher_once(root, cgroup, hide_unified)?;
    Ok(first.restarted_by(move || launcher_once(&again, &again_cgroup, hide_unified)))
}

fn launcher_once(root: &Path, cgroup: &str, hide_unified: bool) -> anyhow::Result<Helper> {
    let name = if hide_unified { "launcher-crun" } else { "launcher" };
    let hub = Hub::open(root, &format!("{name}.sock"))?;
    let log = root.join(format!("{name}.out"));
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("launcher").arg("--connect").arg(hub.path()).arg("--root").arg(root);
    command.arg("--cgroup").arg(cgroup);
    if hide_unified {
        command.arg("--hide-unified");
    }
    let process = Process::start(&mut command, name, &log)?;
    hub.accept(process, &log, true)
}

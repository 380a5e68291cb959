//! `RUN/node.json`: what was started, so that it can be found again.

use super::dirs::Dirs;
use super::place::Place;
use super::process::Process;
use super::subnets::Subnet;
use super::tcp::Tcp;
use crate::error::{Context, Result};
use fsb_files::Access;
use fsb_host::making::Making;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// A node: the plan, and the processes that carry it out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Node {
    pub(crate) agents: Vec<Agent>,
    /// The /16 of the agents' networks.
    pub(crate) subnet: String,
    pub(crate) egress: bool,
    pub(crate) warm_images: Vec<String>,
    pub(crate) controller_args: Vec<String>,
    /// `None` = the controller's socket alone.
    pub(crate) tcp: Option<Tcp>,
    /// The controller's TCP addresses.
    pub(crate) addresses: Addresses,
    /// Where its cgroups lie,
    pub(crate) place: Place,
    /// and in which directories, one per hierarchy.
    pub(crate) cgroups: Vec<PathBuf>,
    pub(crate) controller: Option<Process>,
    /// By the agent's name.
    pub(crate) keepers: BTreeMap<String, Keeper>,
}

/// One agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Agent {
    pub(crate) name: String,
    pub(crate) pool: String,
    pub(crate) namespace: String,
    /// 0 = no limit.
    pub(crate) capacity: u32,
    /// The third byte of its network.
    pub(crate) octet: u8,
}

/// Where the controller listens beside its socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Addresses {
    /// Only where [`Node::tcp`] asks for it.
    pub(crate) fastpath: Option<String>,
    pub(crate) metrics: String,
    pub(crate) health: String,
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(fastpath) = &self.fastpath {
            write!(f, "{fastpath}, ")?;
        }
        write!(f, "{} (metrics), {} (health)", self.metrics, self.health)
    }
}

/// The two processes of a keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Keeper {
    /// `unshare`, outside of the pid namespace: with it the kernel ends the keeper.
    pub(crate) unshare: Process,
    /// PID 1 of the namespace: with it the kernel ends everything of the agent.
    pub(crate) keeper: Process,
}

impl Keeper {
    pub(crate) fn alive(&self) -> bool {
        self.keeper.alive()
    }
}

impl Node {
    /// What the node says of itself; `None` if it is not there or cannot be read.
    pub(crate) fn read(dirs: &Dirs) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(dirs.record()).ok()?).ok()
    }

    /// Replaces the file in one step.
    pub(crate) fn write(&self, dirs: &Dirs) -> Result<()> {
        let path = dirs.record();
        let next = path.with_extension("next");
        let text = serde_json::to_vec_pretty(self).context(|| "cannot write down the node".into())?;
        fsb_files::write(&next, text, Access::Owner).context(|| format!("cannot write {}", next.display()))?;
        std::fs::rename(&next, &path).context(|| format!("cannot write {}", path.display()))
    }

    /// Whether anything of it still runs.
    pub(crate) fn lives(&self) -> bool {
        self.controller.as_ref().is_some_and(Process::alive) || self.keepers.values().any(Keeper::alive)
    }

    /// Where the Fast-Path is served over TCP.
    pub(crate) fn over_tcp(&self) -> Option<(&Tcp, &str)> {
        self.tcp.as_ref().zip(self.addresses.fastpath.as_deref())
    }

    /// Agents whose containers libcontainer makes, and why no mould does.
    pub(crate) fn without_moulds(&self, dirs: &Dirs) -> Vec<(&str, String)> {
        let agents = self.agents.iter().map(|agent| agent.name.as_str());
        let why = |agent: &str| match dirs.making(agent) {
            Some(Making::Libcontainer { why } | Making::Nothing { why }) => Some(why),
            _ => None,
        };
        agents.filter_map(|agent| Some((agent, why(agent)?))).collect()
    }

    /// The address of an agent's sandboxes.
    pub(crate) fn ip(&self, agent: &Agent) -> Option<Ipv4Addr> {
        self.subnet.parse::<Subnet>().ok().map(|subnet| subnet.sandboxes(agent.octet))
    }
}

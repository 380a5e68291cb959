//! The flags of `local up` and the agents that they ask for.

use super::capacity;
use super::dirs::Dirs;
use super::record::Agent;
use super::subnets::Subnet;
use super::tcp;
use crate::error::{Failure, Result};
use fsb_proto::domain::{DEFAULT_NAMESPACE, DEFAULT_POOL, validate_dns_name};
use std::ffi::OsString;

/// 107 bytes are the longest path of a unix socket without its NUL (unix(7)). A socket is bound as `.new-4194304`, with the
/// largest process id, before it is `.sock`.
const MAX_SOCKET_PATH: usize = 107 - 7;
/// One /24 of the node's /16 each, the first and the last left alone.
const MAX_AGENTS: usize = 200;

/// What to start.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Flags {
    /// How many agents
    #[arg(long, default_value_t = 1, value_name = "N", conflicts_with = "agent")]
    agents: usize,
    /// One agent by its properties: name=…,pool=…,namespace=…,capacity=…
    #[arg(long, value_name = "K=V,…")]
    agent: Vec<String>,
    /// Sandboxes that one agent may run at a time, 0 = no limit [default: what memory allows, at least 100]
    #[arg(long, value_name = "N")]
    capacity: Option<u32>,
    /// Where the agents get their networks from, a /16
    #[arg(long, default_value = "10.213.0.0/16", value_name = "CIDR")]
    pub(crate) subnet: Subnet,
    /// Leave out forwarding and masquerading: sandboxes reach nothing but each other
    #[arg(long)]
    pub(crate) no_egress: bool,
    /// Keep paused containers for this image
    #[arg(long, value_name = "REFERENCE")]
    pub(crate) warm_image: Vec<String>,
    #[command(flatten)]
    pub(crate) tcp: tcp::Flags,
    /// Pass an argument on to fsb-controller
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) controller_arg: Vec<String>,
}

impl Flags {
    /// The same flags for `local serve`.
    pub(crate) fn to_arguments(&self) -> Vec<OsString> {
        let mut words: Vec<String> = vec![format!("--subnet={}", self.subnet)];
        if self.agent.is_empty() {
            words.push(format!("--agents={}", self.agents));
        }
        words.extend(self.agent.iter().map(|agent| format!("--agent={agent}")));
        words.extend(self.capacity.map(|capacity| format!("--capacity={capacity}")));
        words.extend(self.no_egress.then(|| "--no-egress".to_owned()));
        words.extend(self.warm_image.iter().map(|image| format!("--warm-image={image}")));
        words.extend(self.tcp.to_arguments());
        words.extend(self.controller_arg.iter().map(|word| format!("--controller-arg={word}")));
        words.into_iter().map(OsString::from).collect()
    }

    /// The agents that are asked for; their networks are chosen later.
    pub(crate) fn agents(&self, dirs: &Dirs, available_kib: u64) -> Result<Vec<Agent>> {
        let count = if self.agent.is_empty() { self.agents } else { self.agent.len() };
        if count == 0 || count > MAX_AGENTS {
            return Err(Failure::usage(format!("a node has 1 to {MAX_AGENTS} agents, not {count}")));
        }
        let capacity = self.capacity.unwrap_or_else(|| capacity::of_an_agent(available_kib, count));
        let plain = |index: usize| Agent {
            name: format!("agent-{}", index + 1),
            pool: DEFAULT_POOL.to_owned(),
            namespace: DEFAULT_NAMESPACE.to_owned(),
            capacity,
            octet: 0,
        };
        let mut agents: Vec<Agent> = Vec::new();
        for index in 0..count {
            let agent = match self.agent.get(index) {
                Some(text) => properties(plain(index), text)?,
                None => plain(index),
            };
            if agents.iter().any(|other| other.name == agent.name) {
                return Err(Failure::usage(format!("two agents are called {}", agent.name)));
            }
            let sockets = [dirs.agent_socket(&agent.name), dirs.controller_socket()];
            if let Some(socket) = sockets.iter().find(|socket| socket.as_os_str().len() > MAX_SOCKET_PATH) {
                let what =
                    format!("{} is longer than the {MAX_SOCKET_PATH} bytes that its path may have", socket.display());
                return Err(Failure::usage(what).hint("choose a shorter --root"));
            }
            agents.push(agent);
        }
        Ok(agents)
    }
}

fn properties(mut agent: Agent, text: &str) -> Result<Agent> {
    let wrong = |why: String| {
        Failure::usage(format!("--agent {text}: {why}"))
            .hint("--agent name=a,pool=default-pool,namespace=default,capacity=8")
    };
    for property in text.split(',').filter(|property| !property.is_empty()) {
        let (key, value) = property.split_once('=').ok_or_else(|| wrong(format!("{property:?} is not K=V")))?;
        let checked =
            |field| validate_dns_name(field, value).map(|()| value.to_owned()).map_err(|e| wrong(e.to_string()));
        match key {
            "name" if matches!(value, "controller" | "netns" | "images" | "tokens") => {
                return Err(wrong(format!("{value} is taken by the node itself")));
            }
            "name" => agent.name = checked("name")?,
            "pool" => agent.pool = checked("pool")?,
            "namespace" => agent.namespace = checked("namespace")?,
            "capacity" => agent.capacity = value.parse().map_err(|_| wrong(format!("{value:?} is not a number")))?,
            _ => return Err(wrong(format!("there is no property {key:?}"))),
        }
    }
    Ok(agent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::path::Path;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: Flags,
    }

    fn flags(words: &[&str]) -> Flags {
        Line::try_parse_from(std::iter::once("x").chain(words.iter().copied())).unwrap().flags
    }

    fn agents(words: &[&str]) -> Result<Vec<Agent>> {
        flags(words).agents(&Dirs::of(Some(Path::new("/tmp/n"))), 1 << 20)
    }

    #[test]
    fn agents_are_numbered_or_described() {
        let names: Vec<_> = agents(&["--agents", "3"]).unwrap().into_iter().map(|a| a.name).collect();
        assert_eq!(names, ["agent-1", "agent-2", "agent-3"]);
        let described = agents(&["--agent", "name=a,pool=p,capacity=3", "--agent", "namespace=n"]).unwrap();
        assert_eq!((described[0].name.as_str(), described[0].pool.as_str(), described[0].capacity), ("a", "p", 3));
        assert_eq!((described[1].name.as_str(), described[1].namespace.as_str()), ("agent-2", "n"));
    }

    #[test]
    fn agents_that_cannot_be_are_refused() {
        for bad in ["name=../x", "name=controller", "name=tokens", "capacity=many", "speed=9", "name"] {
            assert_eq!(agents(&["--agent", bad]).unwrap_err().code, 2, "{bad}");
        }
        assert!(agents(&["--agent", "name=a", "--agent", "name=a"]).is_err());
        assert!(agents(&["--agents", "0"]).is_err());
        let long = Dirs::of(Some(Path::new(&format!("/tmp/{}", "x".repeat(100)))));
        assert!(flags(&[]).agents(&long, 0).unwrap_err().hint.unwrap().contains("shorter"));
    }

    #[test]
    fn the_supervisor_gets_the_same_flags() {
        let words = ["--agent=name=a", "--capacity=7", "--no-egress", "--warm-image=b", "--controller-arg=--profiling"];
        let before = flags(&words);
        let again = Line::try_parse_from(std::iter::once("x".into()).chain(before.to_arguments())).unwrap().flags;
        assert_eq!(format!("{before:?}"), format!("{again:?}"));
    }
}

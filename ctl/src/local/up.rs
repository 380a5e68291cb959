//! `local up`: starts the supervisor and waits until every agent is ready and has made a first container.

use super::agents::Flags;
use super::dirs::Dirs;
use super::supervisor::TAKEN;
use super::{down, lock, program};
use crate::client;
use crate::config::{Endpoint, Settings};
use crate::error::{Context, Failure, Result};
use crate::local::record::{Agent, Keeper, Node};
use crate::{doctor, output, tokens};
use fsb_host::making::Making;
use fsb_proto::fastpath::fast_path_service_client::FastPathServiceClient;
use fsb_proto::fastpath::{AgentSummary, ListAgentsRequest, ListAgentsResponse};
use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);
const ASK: Duration = Duration::from_secs(2);
/// A log that has grown beyond this is put aside at the next start.
const LOG_BYTES: u64 = 10 << 20;
const TAIL_LINES: usize = 25;

pub(crate) fn run(flags: &Flags, dirs: &Dirs, settings: &Settings) -> Result<u8> {
    super::need_root()?;
    // Said now and not in a log.
    flags.agents(dirs, 0)?;
    flags.tcp.asked(dirs)?;
    for name in ["fsb-controller", "fsb-keeper", "fsb-agent", "fsb-spawner"] {
        program::ours(name)?;
    }
    if lock::holder(&dirs.lock()).is_some() {
        output::talk(&format!(
            "the local node is up already; to change it: fsb-ctl local down{}, then up again",
            dirs.flag()
        ));
        let node = ready(dirs, settings, None).map_err(|why| {
            Failure::new(why).hint(format!("fsb-ctl local status{}, and {}", dirs.flag(), dirs.node_log().display()))
        })?;
        welcome(dirs, &node)?;
        return Ok(0);
    }
    doctor::need_what_is_needed(dirs)?;
    let log = open_log(dirs)?;
    let before = log.metadata().map(|metadata| metadata.len()).unwrap_or(0);
    let mut supervisor = start(flags, dirs, log)?;
    let spinner = output::spinner("starting the local node");
    let outcome = ready(dirs, settings, Some(&mut supervisor));
    spinner.finish_and_clear();
    match outcome {
        Ok(node) => {
            welcome(dirs, &node)?;
            Ok(0)
        }
        Err(why) => {
            output::talk(&format!("the last lines of {}:", dirs.node_log().display()));
            output::talk(&tail(dirs, before));
            doctor::tell_problems(dirs);
            if let Err(failure) = down::stop(dirs, false) {
                output::failure(&failure);
            }
            let _ = supervisor.wait();
            Err(Failure::new(format!("the local node did not start: {why}"))
                .hint("`fsb-ctl doctor` checks this machine; what was started is stopped again"))
        }
    }
}

fn open_log(dirs: &Dirs) -> Result<File> {
    let path = dirs.node_log();
    dirs.make()?;
    if path.metadata().is_ok_and(|metadata| metadata.len() > LOG_BYTES) {
        let _ = std::fs::rename(&path, path.with_extension("log.1"));
    }
    fsb_files::open(&path, File::options().append(true).create(true))
        .context(|| format!("cannot open {}", path.display()))
}

fn start(flags: &Flags, dirs: &Dirs, log: File) -> Result<Child> {
    let me = std::env::current_exe().context(|| "cannot find fsb-ctl itself".into())?;
    let error = log.try_clone().context(|| "cannot open the log twice".into())?;
    let mut command = Command::new(me);
    command.args(["local", "serve", "--detached"]).args(flags.to_arguments());
    if let Some(root) = &dirs.root {
        command.arg("--root").arg(root);
    } else {
        command.env_remove("FSB_ROOT");
    }
    command.current_dir("/").stdin(Stdio::null()).stdout(log).stderr(error);
    command.spawn().context(|| "cannot start the supervisor".into())
}

/// Waits until the controller knows every agent as healthy and each has made a first container. The error says what is
/// missing.
fn ready(dirs: &Dirs, settings: &Settings, supervisor: Option<&mut Child>) -> std::result::Result<Node, String> {
    let runtime = client::runtime().map_err(|failure| failure.to_string())?;
    runtime.block_on(wait(dirs, settings, supervisor))
}

async fn wait(
    dirs: &Dirs,
    settings: &Settings,
    mut supervisor: Option<&mut Child>,
) -> std::result::Result<Node, String> {
    let until = Instant::now() + DEADLINE;
    loop {
        if let Some(Ok(Some(status))) = supervisor.as_mut().map(|child| child.try_wait()) {
            if status.code() != Some(i32::from(TAKEN)) {
                return Err(format!("the supervisor has ended ({status})"));
            }
            // Somebody else started the node in the same moment.
            supervisor = None;
        }
        // A node whose supervisor was killed answers as well; it is up when the new one has taken it over.
        let ours = supervisor.as_ref().map(|child| child.id() as i32);
        let held = lock::holder(&dirs.lock()).map(|process| process.pid);
        let missing = match Node::read(dirs) {
            _ if held.is_none() || ours.is_some_and(|pid| held != Some(pid)) => {
                "the supervisor has not begun".to_owned()
            }
            None => "the supervisor has not written down its plan".to_owned(),
            Some(node) if let Some(why) = barren(&node, dirs) => return Err(why),
            Some(node) => match agents(dirs, settings).await {
                Err(why) => format!("the controller does not answer: {why}"),
                Ok(known) => match unready(&node, &known, |agent| dirs.making(agent).is_some()) {
                    names if names.is_empty() => return Ok(node),
                    names => format!("not ready: {}", names.join(", ")),
                },
            },
        };
        if Instant::now() > until {
            return Err(missing);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The agents that the node's controller knows.
pub(crate) async fn agents(dirs: &Dirs, settings: &Settings) -> std::result::Result<Vec<AgentSummary>, String> {
    ask(dirs, settings).await.map(|answer| answer.items)
}

/// What the node's controller says of itself and its agents.
pub(crate) async fn ask(dirs: &Dirs, settings: &Settings) -> std::result::Result<ListAgentsResponse, String> {
    let ask = async {
        let channel = client::channel(&Endpoint::Unix(dirs.controller_socket())).await?;
        let mut request = client::request(ListAgentsRequest {}, ASK);
        let token = settings.token.clone().or_else(|| tokens::read(&dirs.tokens()));
        if let Some(token) = token.and_then(|token| format!("Bearer {token}").parse().ok()) {
            request.metadata_mut().insert("authorization", token);
        }
        let answer = FastPathServiceClient::new(channel).list_agents(request).await;
        answer.map(|answer| answer.into_inner()).map_err(|status| status.message().to_owned())
    };
    tokio::time::timeout(ASK, ask).await.unwrap_or_else(|_| Err("no answer in time".into()))
}

/// Why an agent can make no container at all.
fn barren(node: &Node, dirs: &Dirs) -> Option<String> {
    // What a dead one has left is not said of this one.
    let lives = |agent: &&Agent| node.keepers.get(&agent.name).is_some_and(Keeper::alive);
    node.agents.iter().filter(lives).find_map(|agent| match dirs.making(&agent.name)? {
        Making::Nothing { why } => Some(format!("{} can make no container: {why}", agent.name)),
        Making::Cast | Making::Libcontainer { .. } => None,
    })
}

fn unready(node: &Node, known: &[AgentSummary], has_made: impl Fn(&str) -> bool) -> Vec<String> {
    let healthy = |name: &str, namespace: &str| {
        known.iter().any(|agent| agent.healthy && agent.name == name && agent.namespace == namespace)
    };
    let missing = node.agents.iter().filter(|agent| !healthy(&agent.name, &agent.namespace) || !has_made(&agent.name));
    missing.map(|agent| agent.name.clone()).collect()
}

/// The end of what was logged since this start.
fn tail(dirs: &Dirs, from: u64) -> String {
    let text = std::fs::read(dirs.node_log()).unwrap_or_default();
    let new = String::from_utf8_lossy(text.get(from as usize..).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = new.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].iter().map(|line| format!("  {line}\n")).collect()
}

fn welcome(dirs: &Dirs, node: &Node) -> Result<()> {
    let agents: Vec<String> = node
        .agents
        .iter()
        .map(|agent| {
            let room = if agent.capacity == 0 { "any number of".to_owned() } else { agent.capacity.to_string() };
            let ip = node.ip(agent).map(|ip| ip.to_string()).unwrap_or_default();
            format!("  {} (pool {}, namespace {}, {ip}, {room} sandboxes)", agent.name, agent.pool, agent.namespace)
        })
        .collect();
    output::line(&format!("the local node is up:\n{}", agents.join("\n")))?;
    output::line(&format!("controller: unix:{}", dirs.controller_socket().display()))?;
    if let Some((tcp, address)) = node.over_tcp() {
        output::line(&format!("            {address}, {}", tcp.auth.open_to(dirs)))?;
        tcp.warning(address).iter().for_each(|warning| output::warning(warning));
    }
    if dirs.root.is_some() {
        output::line(&format!("use it:     export FSB_ENDPOINT=unix:{}", dirs.controller_socket().display()))?;
    }
    for (agent, why) in node.without_moulds(dirs) {
        output::warning(&format!("{agent} has no moulds, so that what is not in stock starts slowly: {why}"));
    }
    output::line(&format!("stop it:    fsb-ctl local down{}", dirs.flag()))?;
    output::line("Sandboxes of one agent share its network and trust each other on it.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::place::Place;
    use crate::local::record::Addresses;

    #[test]
    fn a_node_is_ready_when_each_of_its_own_agents_is_healthy_and_has_made_a_container() {
        let agent =
            |name: &str| Agent { name: name.into(), pool: "p".into(), namespace: "n".into(), capacity: 1, octet: 1 };
        let text = String::new;
        let node = Node {
            agents: vec![agent("a"), agent("b")],
            subnet: "10.213.0.0/16".into(),
            egress: false,
            warm_images: vec![],
            controller_args: vec![],
            tcp: None,
            addresses: Addresses { fastpath: None, metrics: text(), health: text() },
            place: Place::Own,
            cgroups: vec![],
            controller: None,
            keepers: Default::default(),
        };
        let known = |name: &str, namespace: &str, healthy| AgentSummary {
            name: name.into(),
            namespace: namespace.into(),
            healthy,
            ..AgentSummary::default()
        };
        let all_have_made = |known: &[AgentSummary]| unready(&node, known, |_| true);
        assert_eq!(all_have_made(&[known("a", "n", true), known("b", "other", true)]), ["b"]);
        assert_eq!(all_have_made(&[known("a", "n", false), known("b", "n", true)]), ["a"]);
        let both = [known("b", "n", true), known("a", "n", true)];
        assert!(all_have_made(&both).is_empty());
        assert_eq!(unready(&node, &both, |agent| agent == "b"), ["a"], "it has made no container yet");
    }
}

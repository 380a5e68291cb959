//! Starting the controller, and its TCP addresses.

use super::dirs::Dirs;
use super::environment;
use super::process::Process;
use super::program;
use super::record::{Addresses, Node};
use super::tcp::{Auth, Tcp};
use crate::error::{Context, Failure, Result};
use crate::tokens;
use std::net::TcpListener;
use std::process::Stdio;
use tokio::process::{Child, Command};

/// Starts the controller.
pub(crate) fn start(dirs: &Dirs, node: &Node) -> Result<(Child, Process)> {
    let path = program::ours("fsb-controller")?;
    let mut command = Command::new(&path);
    command.arg("--fastpath-socket").arg(dirs.controller_socket());
    for agent in &node.agents {
        command.arg("--agent-socket").arg(dirs.agent_socket(&agent.name));
    }
    command.arg("--claims").arg(dirs.claims());
    match node.over_tcp() {
        None => command.arg("--fastpath-bind-address=off"),
        Some((tcp, address)) => {
            command.args(["--fastpath-bind-address", address]);
            command.args(tcp.insecure_bind.then_some("--insecure-bind"));
            match tcp.auth {
                Auth::None => command.arg("--auth=none"),
                Auth::Tokens => {
                    tokens::ensure(&dirs.tokens())?;
                    command.arg("--auth-token-file").arg(dirs.tokens())
                }
            }
        }
    };
    command.args(["--metrics-bind-address", &node.addresses.metrics]);
    command.args(["--health-probe-bind-address", &node.addresses.health]);
    command.args(&node.controller_args);
    let child = command
        .env_clear()
        .envs(environment::of_controller(dirs))
        .current_dir("/")
        // Ctrl-C at a supervisor in the foreground is for the supervisor alone.
        .process_group(0)
        .stdin(Stdio::null())
        .spawn()
        .context(|| format!("cannot start {}", path.display()))?;
    let process = child.id().and_then(|pid| Process::of(pid as i32));
    let process = process.ok_or_else(|| Failure::new("the controller ended as soon as it was started"))?;
    Ok((child, process))
}

impl Addresses {
    /// The machine's own node has known ports for what is always there; a node with a root takes free ones.
    pub(crate) fn choose(dirs: &Dirs, tcp: Option<&Tcp>) -> Result<Self> {
        let own = |port: u16| format!("127.0.0.1:{}", if dirs.root.is_none() { port } else { 0 });
        // All are held while they are chosen, so that they differ.
        let mut held = Vec::new();
        let mut choose = |asked: &str| -> Result<String> {
            let Some(host) = asked.strip_suffix(":0") else { return Ok(asked.to_owned()) };
            let wrong = || format!("there is no free TCP port on {asked}");
            let listener = listen(asked).context(wrong)?;
            let port = listener.local_addr().context(wrong)?.port();
            held.push(listener);
            Ok(format!("{host}:{port}"))
        };
        Ok(Self {
            fastpath: tcp.map(|tcp| choose(&tcp.asked)).transpose()?,
            metrics: choose(&own(9091))?,
            health: choose(&own(9092))?,
        })
    }

    /// Whether a controller can listen on all of them now. A port that was chosen stays free only by chance until
    /// then.
    pub(crate) fn are_free(&self) -> bool {
        let all = self.fastpath.iter().chain([&self.metrics, &self.health]);
        all.into_iter().all(|address| listen(address).is_ok())
    }
}

/// Listens on `host:port`; an empty host is every address, as for the controller.
fn listen(address: &str) -> std::io::Result<TcpListener> {
    match address.strip_prefix(':') {
        Some(port) => {
            TcpListener::bind(format!("[::]:{port}")).or_else(|_| TcpListener::bind(format!("0.0.0.0:{port}")))
        }
        None => TcpListener::bind(address),
    }
}

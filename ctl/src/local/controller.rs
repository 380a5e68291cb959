//! Starting the controller, and its TCP addresses.

use super::dirs::Dirs;
use super::environment;
use super::process::Process;
use super::program;
use super::record::{Addresses, Node};
use crate::error::{Context, Failure, Result};
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
    command.args(["--fastpath-bind-address", &node.addresses.fastpath]);
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
    /// The machine's own node has known ports; a node with a root takes free ones.
    pub(crate) fn choose(dirs: &Dirs) -> Result<Self> {
        let address = |port: u16| format!("127.0.0.1:{port}");
        if dirs.root.is_none() {
            return Ok(Self { fastpath: address(9090), metrics: address(9091), health: address(9092) });
        }
        // All three are held while they are chosen, so that they differ.
        let listen = || TcpListener::bind("127.0.0.1:0").context(|| "there is no free TCP port".into());
        let listeners = [listen()?, listen()?, listen()?];
        let mut ports = Vec::new();
        for listener in &listeners {
            ports.push(listener.local_addr().context(|| "there is no free TCP port".into())?.port());
        }
        Ok(Self { fastpath: address(ports[0]), metrics: address(ports[1]), health: address(ports[2]) })
    }

    /// Whether a controller can listen on all of them now. A port that was chosen stays free only by chance until
    /// then.
    pub(crate) fn are_free(&self) -> bool {
        [&self.fastpath, &self.metrics, &self.health].into_iter().all(|address| TcpListener::bind(address).is_ok())
    }
}

//! A private agent: a keeper in pid, mount and network namespaces of its own, so that the kernel ends everything
//! with it, on directories and cgroups that carry the run's name.

use crate::helper::{Process, children};
use crate::workspace::Workspace;
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// How an agent of the bench differs from the default.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Name of the agent: its directories, its cgroup.
    pub name: String,
    /// The agent program with its arguments, instead of fsb-agent.
    pub program: Vec<String>,
    /// `FSB_MAKE`: how it gets containers.
    pub make: Option<&'static str>,
    /// Images that paused containers are kept of.
    pub warm: Vec<String>,
    /// Further variables of its environment, such as `POOL_PER_IMAGE`.
    pub env: Vec<(String, String)>,
}

/// A running keeper.
#[derive(Debug)]
pub struct Keeper {
    process: Process,
    /// Output of all its daemons.
    pub log: PathBuf,
    /// The agent's socket.
    pub socket: PathBuf,
}

impl Keeper {
    /// Starts one.
    pub fn start(workspace: &Workspace, settings: &Settings) -> anyhow::Result<Self> {
        let root = workspace.path();
        let name = settings.name.as_str();
        let log = root.join(format!("{name}.out"));
        let socket = root.join(format!("{name}.sock"));
        for dir in ["state", "log"] {
            std::fs::create_dir_all(root.join(dir))?;
        }
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child=SIGKILL", "--mount", "--mount-proc", "--net", "--"]);
        command.arg(program("fsb-keeper")?);
        // The agent that a user runs, and nothing of the environment that the bench itself was started with.
        command.env_clear();
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("LOG_LEVEL", "warn");
        command.env("FSB_RUN_DIR", workspace.run());
        command.env("FSB_STATE_DIR", root.join("state"));
        command.env("FSB_LOG_DIR", root.join("log"));
        command.env("FSB_CGROUP", format!("{}/{name}", workspace.name()));
        command.env("POD_NAME", name);
        command.env("AGENT_CAPACITY", "0");
        command.env("AGENT_PORT", "0");
        command.env("AGENT_SOCKET", &socket);
        command.env("WARM_IMAGES", settings.warm.join(","));
        if let Some(make) = settings.make {
            command.env("FSB_MAKE", make);
        }
        command.envs(settings.env.iter().map(|(key, value)| (key, value)));
        if !settings.program.is_empty() {
            command.env("FSB_AGENT_PROGRAM", settings.program.join(" "));
        }
        let process = Process::start(&mut command, name, &log)?;
        Ok(Self { process, log, socket })
    }

    /// Its process, for a helper that it has started.
    pub fn into_process(self) -> Process {
        self.process
    }

    /// The process id of its agent server.
    pub fn agent(&self) -> anyhow::Result<i32> {
        let keeper = children(self.process.pid()).into_iter().next().context("the keeper does not run")?;
        children(keeper)
            .into_iter()
            .find(|pid| comm(*pid) == "fsb-agent")
            .with_context(|| format!("keeper {keeper} has no agent; see {}", self.log.display()))
    }
}

/// A program of Fast Sandbox: beside this one, where `cargo build` puts all of them.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    // Tests run from target/release/deps.
    let found = own.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file());
    match found {
        Some(path) => Ok(path),
        None => bail!("{name} is not beside {}\nhint: make build", own.display()),
    }
}

fn comm(pid: i32) -> String {
    std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("comm")).unwrap_or_default().trim().to_owned()
}

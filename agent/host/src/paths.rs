//! Where an agent keeps what.
//!
//! One node has one run, state and log directory (`FSB_RUN_DIR`, `FSB_STATE_DIR`, `FSB_LOG_DIR`); images and logs
//! are shared by all agents of the node, everything else lies below the agent's name.

use std::path::{Path, PathBuf};

/// How the names of layers end that wait for a container.
pub const SPARE: &str = ".spare";
/// How the names of layers end that are to be removed.
pub const REMOVED: &str = ".removed";

/// The directories of one agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    run: PathBuf,
    state: PathBuf,
    log: PathBuf,
    agent: String,
}

impl Paths {
    /// The directories of the agent `agent` below the given ones.
    pub fn new(run: impl Into<PathBuf>, state: impl Into<PathBuf>, log: impl Into<PathBuf>, agent: &str) -> Self {
        Self { run: run.into(), state: state.into(), log: log.into(), agent: agent.to_owned() }
    }

    /// From the environment: `FSB_RUN_DIR` (/run/fast-sandbox), `FSB_STATE_DIR` (/var/lib/fast-sandbox),
    /// `FSB_LOG_DIR` (/var/log/fast-sandbox), and `POD_NAME` (agent) as the agent's name.
    pub fn from_env() -> Self {
        let var =
            |key: &str, default: &str| std::env::var(key).ok().filter(|v| !v.is_empty()).unwrap_or(default.into());
        Self::new(
            var("FSB_RUN_DIR", "/run/fast-sandbox"),
            var("FSB_STATE_DIR", "/var/lib/fast-sandbox"),
            var("FSB_LOG_DIR", "/var/log/fast-sandbox"),
            &var("POD_NAME", "agent"),
        )
    }

    /// The agent's name.
    pub fn agent(&self) -> &str {
        &self.agent
    }

    /// Short-lived files of this agent, on a tmpfs: below it records and the runtime's state.
    pub fn run(&self) -> PathBuf {
        self.run.join(&self.agent)
    }

    /// One file per sandbox: `<instance id>.json`. Readable by the janitor.
    pub fn records(&self) -> PathBuf {
        self.run().join("records")
    }

    /// What the spawner says of itself ([`crate::making::Making`]), once it has tried to make a container.
    pub fn making(&self) -> PathBuf {
        self.run().join("making.json")
    }

    /// libcontainer's own state. Nothing in it outlives the making of a container.
    pub fn runtime_state(&self) -> PathBuf {
        self.run().join("runtime")
    }

    /// The parent of all sandboxes' own layers (see [`crate::layer`]): `<instance id>`, and those of dead ones:
    /// `<instance id>.removed` where they are to be removed, `<instance id>.spare` where they wait for the next one.
    pub fn layers(&self) -> PathBuf {
        self.state.join(&self.agent).join("layers")
    }

    /// The layer of one sandbox.
    pub fn layer(&self, instance: &str) -> PathBuf {
        self.layers().join(instance)
    }

    /// The layer of a dead one that the next one may have.
    pub fn spare(&self, instance: &str) -> PathBuf {
        self.layers().join(format!("{instance}{SPARE}"))
    }

    /// The layer of a dead one that is to be removed.
    pub fn removed(&self, instance: &str) -> PathBuf {
        self.layers().join(format!("{instance}{REMOVED}"))
    }

    /// The image store of the node.
    pub fn images(&self) -> PathBuf {
        self.state.join("images")
    }

    /// Logs of the node: `<instance id>.log`, rotated ones `<instance id>.log.1` (newest) and so on.
    pub fn logs(&self) -> &Path {
        &self.log
    }

    /// The log of one sandbox.
    pub fn log(&self, instance: &str) -> PathBuf {
        self.log.join(format!("{instance}.log"))
    }
}

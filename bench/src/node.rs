//! A private local node, brought up and taken down by fsb-ctl as a user does it.

use crate::keeper::program;
use crate::workspace::Workspace;
use anyhow::{Context, bail};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A local node. It is taken down when this is dropped.
#[derive(Debug)]
pub struct Node {
    root: PathBuf,
    ctl: PathBuf,
    env: Vec<(String, String)>,
}

impl Node {
    /// Brings one up below `workspace`, as a user has it.
    pub fn up(workspace: &Workspace) -> anyhow::Result<Self> {
        Self::up_with(workspace, Vec::new())
    }

    /// Brings one up whose programs get `env` besides, such as `POOL_PER_IMAGE`.
    pub fn up_with(workspace: &Workspace, env: Vec<(String, String)>) -> anyhow::Result<Self> {
        let node = Self { root: workspace.path().join("node"), ctl: program("fsb-ctl")?, env };
        let mut up = node.command(["local", "up", "--no-egress"]);
        if !node.env.is_empty() {
            // A larger stock is for more sandboxes than an agent takes where nothing is said.
            up.args(["--capacity", "0"]);
        }
        let output = up.output().context("run fsb-ctl local up")?;
        if !output.status.success() {
            bail!("fsb-ctl local up: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(node)
    }

    /// The controller's socket.
    pub fn controller(&self) -> anyhow::Result<PathBuf> {
        self.socket(|name| name == "controller.sock")
    }

    /// The socket of its first agent.
    pub fn agent(&self) -> anyhow::Result<PathBuf> {
        self.socket(|name| name.starts_with("agent-") && name.ends_with(".sock"))
    }

    fn command<const N: usize>(&self, words: [&str; N]) -> Command {
        let mut command = Command::new(&self.ctl);
        command.args(words).arg("--root").arg(&self.root).stdin(Stdio::null());
        // Ctrl-C in the terminal is for the bench alone, which then takes the node down.
        command.process_group(0);
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        command
    }

    fn socket(&self, is: impl Fn(&str) -> bool) -> anyhow::Result<PathBuf> {
        let mut found = Vec::new();
        walk(&self.root, 4, &mut |path| {
            if path.file_name().and_then(|name| name.to_str()).is_some_and(&is) {
                found.push(path.to_owned());
            }
        });
        found.sort();
        found.into_iter().next().with_context(|| format!("no such socket below {}", self.root.display()))
    }
}

/// Takes down the node that a killed run left in `workspace`, if there is one.
pub fn remove(workspace: &Path) {
    let root = workspace.join("node");
    if let (true, Ok(ctl)) = (root.exists(), program("fsb-ctl")) {
        drop(Node { root, ctl, env: Vec::new() });
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        match self.command(["local", "down", "--purge"]).output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                eprintln!("fsb-bench: fsb-ctl local down: {}", String::from_utf8_lossy(&output.stderr).trim())
            }
            Err(error) => eprintln!("fsb-bench: fsb-ctl local down: {error}"),
        }
    }
}

fn walk(dir: &Path, depth: usize, see: &mut impl FnMut(&Path)) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        see(&entry.path());
        if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), depth - 1, see);
        }
    }
}

//! Ending a node: everything that it made goes, images, claims and logs stay. Works with half-made nodes, and twice.

use super::dirs::Dirs;
use super::process;
use super::record::{Keeper, Node};
use super::{cgroups, environment, firewall, global, mounts, network, sweep};
use crate::error::{Failure, Result};
use nix::sys::signal::Signal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The controller writes its last claims down.
const CONTROLLER_GRACE: Duration = Duration::from_secs(10);
const KILLED: Duration = Duration::from_secs(10);
/// A keeper gives sandboxes 10 s at most (`FSB_STOP_TIMEOUT`), and itself some seconds more.
const KEEPERS_GRACE: Duration = Duration::from_secs(16);

/// How sandboxes end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With SIGTERM, their grace period, and their last words in the log.
    Orderly,
    /// At once: nothing of theirs is kept, or nobody is there to ask them.
    AtOnce,
}

/// Ends the node. Goes on after a failure; the last one is the answer, the others are told.
pub(crate) fn tear_down(dirs: &Dirs, node: Option<&Node>, ending: Ending) -> Result<()> {
    let mut failures = Vec::new();
    let mut try_to = |result: Result<()>| failures.extend(result.err());
    try_to(end_processes(dirs, node, ending));
    let mut parents = node.map(|node| node.cgroups.clone()).unwrap_or_default();
    for parent in cgroups::own().into_iter().chain(roots()) {
        if !parents.contains(&parent) {
            parents.push(parent);
        }
    }
    try_to(cgroups::remove(&parents, &dirs.cgroup));
    for name in agent_names(dirs, node) {
        try_to(mounts::unmount_below(&dirs.state.join(&name)).and_then(|()| sweep::remove(&dirs.state.join(&name))));
        try_to(network::unpin(&dirs.netns(&name)));
    }
    try_to(network::remove_links(dirs));
    try_to(global::alone(|| global::return_settings(dirs)));
    if let Some(node) = node {
        node.place.leave();
    }
    try_to(global::alone(|| firewall::close(dirs)));
    let unmounted = mounts::unmount_below(&dirs.run);
    let clear = unmounted.is_ok();
    try_to(unmounted);
    if clear {
        try_to(sweep::remove(&dirs.run));
    }
    let last = failures.pop();
    // The supervisor says this, too.
    failures.iter().for_each(|failure| fsb_log::line(&format!("error: {failure}")));
    last.map_or(Ok(()), Err)
}

/// Removes images, claims and logs of a node that is down.
pub(crate) fn purge(dirs: &Dirs) -> Result<()> {
    sweep::remove(&dirs.state)?;
    sweep::remove(&dirs.log)?;
    if let Some(root) = &dirs.root {
        // Only if nothing of somebody else's is in it.
        let _ = std::fs::remove_dir(root);
    }
    Ok(())
}

fn end_processes(dirs: &Dirs, node: Option<&Node>, ending: Ending) -> Result<()> {
    let stuck = |what: &str| Err(Failure::new(format!("{what} does not end")));
    if let Some(node) = node {
        if node.controller.is_some_and(|controller| !controller.stop(CONTROLLER_GRACE)) {
            return stuck("the controller");
        }
        let keepers: Vec<Keeper> = node.keepers.values().copied().collect();
        if ending == Ending::Orderly {
            let until = Instant::now() + KEEPERS_GRACE;
            keepers.iter().for_each(|keeper| keeper.keeper.signal(Signal::SIGTERM));
            for keeper in &keepers {
                keeper.keeper.wait(until.saturating_duration_since(Instant::now()));
            }
        }
        keepers.iter().for_each(|keeper| keeper.keeper.signal(Signal::SIGKILL));
        keepers.iter().try_for_each(sweep::end)?;
    }
    // Started in the moment before the record was written, or the record is lost.
    let strays = process::with_variable(&environment::mark(dirs));
    strays.iter().for_each(|stray| stray.signal(Signal::SIGKILL));
    match strays.iter().find(|stray| !stray.wait(KILLED)) {
        Some(stray) => stuck(&format!("process {}", stray.pid)),
        None => Ok(()),
    }
}

/// The roots of the hierarchies: a node that somebody started from another cgroup has its own there.
fn roots() -> Vec<PathBuf> {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    mounts::points(&table).into_iter().filter(|point| point.starts_with("/sys/fs/cgroup")).collect()
}

/// The agents in the record, and those that only their directories tell of.
fn agent_names(dirs: &Dirs, node: Option<&Node>) -> Vec<String> {
    let mut names: Vec<String> =
        node.map(|node| node.agents.iter().map(|agent| agent.name.clone()).collect()).unwrap_or_default();
    let pinned = std::fs::read_dir(dirs.run.join("netns")).into_iter().flatten().flatten();
    let layers = std::fs::read_dir(&dirs.state).into_iter().flatten().flatten();
    let layers = layers.filter(|entry| entry.path().join("layers").is_dir() && entry.file_name() != "images");
    names.extend(pinned.chain(layers).filter_map(|entry| entry.file_name().into_string().ok()));
    names.sort();
    names.dedup();
    names
}

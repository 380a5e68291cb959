//! What all nodes of a machine share: the order in which they choose networks, and the kernel's switch for
//! forwarding, which is put back to what it was when the last node that needs it goes.

use super::dirs::Dirs;
use super::lock::Lock;
use crate::error::{Context, Failure, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Held for the moment of a choice; removed afterwards.
const LOCK: &str = "/run/fast-sandbox.lock";
/// There while a node needs forwarding.
const FORWARDING: &str = "/run/fast-sandbox.forwarding";
const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";
const WAIT: Duration = Duration::from_secs(30);

/// Does `work` while no other node does anything of the kind.
pub(crate) fn alone<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let lock = Lock::take(Path::new(LOCK), WAIT)?
        .ok_or_else(|| Failure::new(format!("another node is starting or stopping and keeps {LOCK}")))?;
    let result = work();
    lock.remove();
    result
}

/// Who needs forwarding, and what the switch said before the first of them.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Forwarding {
    before: String,
    /// Run directories of the nodes, by their table's name.
    nodes: BTreeMap<String, PathBuf>,
}

/// Turns forwarding on for a node. Only within [`alone`].
pub(crate) fn forward(dirs: &Dirs) -> Result<()> {
    let now = std::fs::read_to_string(SWITCH).context(|| format!("cannot read {SWITCH}"))?;
    let next = joined(read(), dirs, now.trim());
    write(&next)?;
    std::fs::write(SWITCH, "1").context(|| format!("cannot turn forwarding on in {SWITCH}"))
}

/// The node does not need forwarding any more. Only within [`alone`].
pub(crate) fn unforward(dirs: &Dirs) -> Result<()> {
    let Some(state) = read() else { return Ok(()) };
    let next = left(state, dirs, |run| run.join("node.json").exists());
    if !next.nodes.is_empty() {
        return write(&next);
    }
    std::fs::write(SWITCH, &next.before).context(|| format!("cannot put {SWITCH} back"))?;
    std::fs::remove_file(FORWARDING).context(|| format!("cannot remove {FORWARDING}"))
}

fn read() -> Option<Forwarding> {
    serde_json::from_slice(&std::fs::read(FORWARDING).ok()?).ok()
}

fn write(state: &Forwarding) -> Result<()> {
    let text = serde_json::to_vec(state).context(|| format!("cannot write {FORWARDING}"))?;
    std::fs::write(FORWARDING, text).context(|| format!("cannot write {FORWARDING}"))
}

fn joined(state: Option<Forwarding>, dirs: &Dirs, now: &str) -> Forwarding {
    let mut state = state.unwrap_or_else(|| Forwarding { before: now.to_owned(), nodes: BTreeMap::new() });
    state.nodes.insert(dirs.table.clone(), dirs.run.clone());
    state
}

/// Without the node, and without nodes that are gone and never said so.
fn left(mut state: Forwarding, dirs: &Dirs, lives: impl Fn(&Path) -> bool) -> Forwarding {
    state.nodes.retain(|name, run| *name != dirs.table && lives(run));
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarding_is_remembered_from_before_the_first_node_until_the_last_one_goes() {
        let (a, b) = (Dirs::of(Some(Path::new("/tmp/no-a"))), Dirs::of(Some(Path::new("/tmp/no-b"))));
        let state = joined(None, &a, "0");
        let state = joined(Some(state), &b, "1");
        assert_eq!((state.before.as_str(), state.nodes.len()), ("0", 2));
        let state = left(state, &a, |_| true);
        assert_eq!((state.before.as_str(), state.nodes.len()), ("0", 1));
        assert!(left(state, &b, |_| true).nodes.is_empty());
    }

    #[test]
    fn a_node_that_never_said_goodbye_does_not_keep_forwarding_on() {
        let (a, b) = (Dirs::of(Some(Path::new("/tmp/no-a"))), Dirs::of(Some(Path::new("/tmp/no-b"))));
        let state = joined(Some(joined(None, &a, "0")), &b, "1");
        assert!(left(state, &b, |run| run != a.run).nodes.is_empty());
    }
}

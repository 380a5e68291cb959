//! What all nodes of a machine share: the order in which they choose networks, and settings of the kernel, which are put
//! back to what they were when the last node that needs them goes: the switch for forwarding, the controllers that the
//! cgroups of v2 in which nodes lie give to their children, and the limit of epoll watches.

use super::dirs::Dirs;
use super::lock::Lock;
use crate::error::{Context, Failure, Result};
use fsb_files::Access;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Held for the moment of a choice; removed afterwards.
const LOCK: &str = "/run/fast-sandbox.lock";
/// There while a node needs forwarding.
const FORWARDING: &str = "/run/fast-sandbox.forwarding";
const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";
/// Whoever turns that switch changes `forwarding` of all interfaces here, and whether hosts take redirects
/// (`inet_forward_change` in the kernel's net/ipv4/devinet.c).
const INTERFACES: &str = "/proc/sys/net/ipv4/conf";
/// There while there is a node: the other settings.
const SETTINGS: &str = "/run/fast-sandbox.settings";
/// The name of files with the controllers that a cgroup of v2 gives to its children.
const GIVEN: &str = "cgroup.subtree_control";
/// How many epoll watches a user of the machine may have (epoll(7)).
const WATCHES: &str = "/proc/sys/fs/epoll/max_user_watches";
const WAIT: Duration = Duration::from_secs(30);

/// Does `work` while no other node does anything of the kind.
pub(crate) fn alone<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let lock = Lock::take(Path::new(LOCK), WAIT)?
        .ok_or_else(|| Failure::new(format!("another node is starting or stopping and keeps {LOCK}")))?;
    let result = work();
    lock.remove();
    result
}

/// Who needs settings, and how they were before the first of them.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Needed {
    before: BTreeMap<PathBuf, String>,
    /// Run directories of the nodes, by their table's name.
    nodes: BTreeMap<String, PathBuf>,
}

/// Writes down that a node needs forwarding. Returns whether it was off before the first of them: then what others
/// forward is none that somebody asked for. Only within [`alone`].
pub(crate) fn need_forwarding(dirs: &Dirs) -> Result<bool> {
    let next = joined(read(FORWARDING), dirs, settings());
    write(FORWARDING, &next)?;
    Ok(next.was_off())
}

/// Turns forwarding on. Only within [`alone`], after [`need_forwarding`].
pub(crate) fn forward() -> Result<()> {
    std::fs::write(SWITCH, "1").context(|| format!("cannot turn forwarding on in {SWITCH}"))
}

/// The node does not need forwarding any more. Only within [`alone`].
pub(crate) fn unforward(dirs: &Dirs) -> Result<()> {
    let Some(before) = leave(FORWARDING, dirs)? else { return Ok(()) };
    let (switch, others): (Vec<_>, Vec<_>) = before.iter().partition(|(path, _)| **path == Path::new(SWITCH));
    for (path, value) in switch.into_iter().chain(others) {
        match std::fs::read_to_string(path) {
            // An interface that has gone meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Ok(now) if now == *value => {}
            _ => std::fs::write(path, value).context(|| format!("cannot put {} back", path.display()))?,
        }
    }
    std::fs::remove_file(FORWARDING).context(|| format!("cannot remove {FORWARDING}"))
}

/// Writes down that a node needs controllers for its cgroups, which its keepers turn on, and as many epoll watches as no
/// sandbox can take. `given`: the file of the cgroup of v2 in which it lies. Only within [`alone`].
pub(crate) fn need_settings(dirs: &Dirs, given: Option<PathBuf>) -> Result<()> {
    let paths = given.into_iter().chain([WATCHES.into()]);
    let mut state = joined(read(SETTINGS), dirs, BTreeMap::new());
    // Nodes may lie in different cgroups: of each what was before the first of them.
    for path in paths.filter(|path| !state.before.contains_key(path)).collect::<Vec<_>>() {
        if let Ok(value) = std::fs::read_to_string(&path) {
            state.before.insert(path, value);
        }
    }
    write(SETTINGS, &state)?;
    if let Some(watches) = state.before.get(Path::new(WATCHES)).and_then(|before| enough_watches(before)) {
        // It may be read-only, in a container: then it is as README's Limits say.
        let _ = std::fs::write(WATCHES, watches.to_string());
    }
    Ok(())
}

/// The node's cgroups are gone. Only within [`alone`].
pub(crate) fn return_settings(dirs: &Dirs) -> Result<()> {
    let Some(before) = leave(SETTINGS, dirs)? else { return Ok(()) };
    if let Some(watches) = before.get(Path::new(WATCHES)) {
        let _ = std::fs::write(WATCHES, watches);
    }
    for (path, given) in before.iter().filter(|(path, _)| path.ends_with(GIVEN)) {
        let now = match std::fs::read_to_string(path) {
            // The unit has gone in which a node lay.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            other => other.context(|| format!("cannot read {}", path.display()))?,
        };
        for controller in surplus(given, &now) {
            match std::fs::write(path, format!("-{controller}")) {
                // Somebody else has begun to use it meanwhile.
                Err(error) if error.kind() == ErrorKind::ResourceBusy => {}
                other => other.context(|| format!("cannot take {controller} back in {}", path.display()))?,
            }
        }
    }
    std::fs::remove_file(SETTINGS).context(|| format!("cannot remove {SETTINGS}"))
}

/// The kernel's default is what fits into a 25th of the memory, for all programs of a user together: root in a sandbox
/// would have them all, and the node's programs could wait for nothing any more. With so many memory ends first, and that
/// is the sandbox's own.
fn enough_watches(before: &str) -> Option<u64> {
    before.trim().parse::<u64>().ok()?.checked_mul(25)
}

/// The controllers that were turned on for nodes.
fn surplus<'a>(before: &str, now: &'a str) -> Vec<&'a str> {
    let had = |controller: &str| before.split_whitespace().any(|name| name == controller);
    let ours = |controller: &&str| ["cpu", "memory", "pids"].contains(controller) && !had(controller);
    now.split_whitespace().filter(ours).collect()
}

/// Takes the node off the list. Returns what was before the first of them if it was the last.
fn leave(file: &str, dirs: &Dirs) -> Result<Option<BTreeMap<PathBuf, String>>> {
    let Some(state) = read(file) else { return Ok(None) };
    let next = left(state, dirs, |run| run.join("node.json").exists());
    if next.nodes.is_empty() { Ok(Some(next.before)) } else { write(file, &next).map(|()| None) }
}

/// Everything that the switch changes, as it is now.
fn settings() -> BTreeMap<PathBuf, String> {
    let interfaces = std::fs::read_dir(INTERFACES).into_iter().flatten().flatten();
    let forwarding = interfaces.map(|entry| entry.path().join("forwarding"));
    let paths = [SWITCH.into(), Path::new(INTERFACES).join("all/accept_redirects")].into_iter().chain(forwarding);
    paths
        .filter_map(|path| Some((std::fs::read_to_string(&path).ok()?, path)))
        .map(|(value, path)| (path, value))
        .collect()
}

fn read(file: &str) -> Option<Needed> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

fn write(file: &str, state: &Needed) -> Result<()> {
    let text = serde_json::to_vec(state).context(|| format!("cannot write {file}"))?;
    fsb_files::write(Path::new(file), text, Access::Owner).context(|| format!("cannot write {file}"))
}

impl Needed {
    fn was_off(&self) -> bool {
        self.before.get(Path::new(SWITCH)).is_none_or(|value| value.trim() == "0")
    }
}

fn joined(state: Option<Needed>, dirs: &Dirs, before: BTreeMap<PathBuf, String>) -> Needed {
    let mut state = state.unwrap_or_else(|| Needed { before, nodes: BTreeMap::new() });
    state.nodes.insert(dirs.table.clone(), dirs.run.clone());
    state
}

/// Without the node, and without nodes that are gone and never said so.
fn left(mut state: Needed, dirs: &Dirs, lives: impl Fn(&Path) -> bool) -> Needed {
    state.nodes.retain(|name, run| *name != dirs.table && lives(run));
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarding_is_remembered_from_before_the_first_node_until_the_last_one_goes() {
        let (a, b) = (Dirs::of(Some(Path::new("/tmp/no-a"))), Dirs::of(Some(Path::new("/tmp/no-b"))));
        let says = |value: &str| BTreeMap::from([(PathBuf::from(SWITCH), value.to_owned())]);
        let state = joined(None, &a, says("0"));
        let state = joined(Some(state), &b, says("1"));
        assert_eq!((&state.before, state.nodes.len()), (&says("0"), 2));
        assert!(state.was_off(), "for the second one too");
        let state = left(state, &a, |_| true);
        assert_eq!((&state.before, state.nodes.len()), (&says("0"), 1));
        assert!(left(state, &b, |_| true).nodes.is_empty());
    }

    #[test]
    fn only_controllers_that_were_turned_on_for_nodes_are_taken_back() {
        assert_eq!(surplus("memory pids\n", "cpuset cpu io memory pids\n"), ["cpu"]);
        assert!(surplus("cpu memory pids\n", "memory pids\n").is_empty());
    }

    #[test]
    fn a_node_that_never_said_goodbye_does_not_keep_forwarding_on() {
        let (a, b) = (Dirs::of(Some(Path::new("/tmp/no-a"))), Dirs::of(Some(Path::new("/tmp/no-b"))));
        let state = joined(Some(joined(None, &a, BTreeMap::new())), &b, BTreeMap::new());
        assert!(left(state, &b, |run| run != a.run).nodes.is_empty());
    }
}

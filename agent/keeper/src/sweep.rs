//! Removes what is left of containers: processes, cgroups, writable layers, the runtime's state.

use crate::keeper::Keeper;
use crate::store;
use fsb_host::cgroup::{self, Tree};
use fsb_host::paths::{Paths, REMOVED};
use fsb_host::{process, tree};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

/// How long a killed process may take to end, and a cgroup to be empty. It is busy for more than 5 ms after a kill.
const PATIENCE: Duration = Duration::from_secs(2);
/// The wait between two attempts doubles from the first to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(1);
const LONGEST_WAIT: Duration = Duration::from_millis(50);

/// Kills children that are nobody's, and waits until the reaper has them: inits that a dead spawner left half-made,
/// and its moulds. A mould may clone until it is dead, and the kernel may leave out children while others end, so
/// this asks until two answers in a row are empty.
pub(crate) async fn kill_strangers(keeper: &Rc<Keeper>) {
    let end = Instant::now() + PATIENCE;
    let mut wait = FIRST_WAIT;
    let (mut empty, mut killed) = (0, 0);
    while empty < 2 && Instant::now() < end {
        let strangers = strangers(keeper);
        empty = if strangers.is_empty() { empty + 1 } else { 0 };
        for pid in &strangers {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        killed = killed.max(strangers.len());
        sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
    if killed > 0 {
        info!(killed, "children without a record were killed");
    }
    if empty == 0 {
        warn!(pids = ?strangers(keeper), "killed children do not end");
    }
}

fn strangers(keeper: &Keeper) -> Vec<i32> {
    let mut pids = process::children().unwrap_or_else(|error| {
        warn!(%error, "children cannot be listed");
        Vec::new()
    });
    let table = keeper.table.borrow();
    pids.retain(|pid| !table.has_pid(*pid) && keeper.agent.pid() != Some(*pid));
    pids
}

/// Removes what is left of a container that was never finished.
pub(crate) async fn leftovers(keeper: &Rc<Keeper>, id: &str) {
    cgroups(id, &keeper.tree.sandbox(id)).await;
    for dir in [keeper.paths.layer(id), keeper.paths.runtime_state().join(id)] {
        remove_dir(&dir);
    }
}

/// Removes the cgroup of a mould that has ended.
pub(crate) async fn mould(keeper: &Keeper, id: &str) {
    cgroups(id, &keeper.tree.mould(id)).await;
}

async fn cgroups(id: &str, dirs: &[PathBuf]) {
    let end = Instant::now() + PATIENCE;
    let mut wait = FIRST_WAIT;
    while let Err(error) = cgroup::remove(dirs, Duration::ZERO) {
        if Instant::now() >= end {
            warn!(id, %error, "a cgroup cannot be removed");
            break;
        }
        sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// Removes what an earlier keeper of this agent left. Its sandboxes should have died with it; where it was no PID 1
/// they may live.
pub(crate) fn before_start(paths: &Paths, tree: &Tree) {
    let all = containers(tree);
    if !all.is_empty() {
        info!(containers = all.len(), "an earlier keeper left sandboxes or moulds: they are removed");
    }
    for (_, dirs) in &all {
        // 0 stands for a process of another pid namespace, and to kill(2) for our own process group.
        for pid in cgroup::processes(dirs).into_iter().filter(|pid| *pid > 0) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    remove_cgroups(&all);
    store::clear(&paths.records());
    entries(&paths.runtime_state()).iter().for_each(|dir| remove_dir(dir));
    give_up(&paths.layers());
}

/// Renames layers so that the agent removes them: that may take long. None may be one that the next container is offered.
fn give_up(layers: &Path) {
    for layer in entries(layers) {
        let mut name = layer.clone().into_os_string();
        if name.as_encoded_bytes().ends_with(REMOVED.as_bytes()) {
            continue;
        }
        name.push(REMOVED);
        if let Err(error) = std::fs::rename(&layer, name) {
            warn!(layer = %layer.display(), %error, "a layer of an earlier keeper stays");
        }
    }
}

/// Removes the cgroups of all sandboxes and moulds, layers and records: they are dead, and so is the agent.
pub(crate) fn at_stop(paths: &Paths, tree: &Tree) {
    remove_cgroups(&containers(tree));
    store::clear(&paths.records());
    entries(&paths.layers()).iter().chain(&entries(&paths.runtime_state())).for_each(|dir| remove_dir(dir));
}

/// Sandboxes and moulds with their cgroups.
fn containers(tree: &Tree) -> Vec<(String, Vec<PathBuf>)> {
    let sandboxes = tree.list().into_iter().map(|id| (tree.sandbox(&id), id));
    let moulds = tree.moulds().into_iter().map(|id| (tree.mould(&id), id));
    sandboxes.chain(moulds).map(|(dirs, id)| (id, dirs)).collect()
}

fn remove_cgroups(containers: &[(String, Vec<PathBuf>)]) {
    for (id, dirs) in containers {
        if let Err(error) = cgroup::remove(dirs, PATIENCE / 10) {
            warn!(id, %error, "a cgroup cannot be removed");
        }
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn remove_dir(dir: &Path) {
    if let Err(error) = tree::remove(dir) {
        warn!(%error, "a directory stays");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_of_an_earlier_keeper_are_the_agents_to_remove_and_nobodys_to_use() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b.spare", "c.removed"] {
            std::fs::create_dir_all(dir.path().join(name).join("upper")).unwrap();
        }
        give_up(dir.path());
        let mut left: Vec<_> =
            entries(dir.path()).into_iter().filter_map(|path| path.file_name().map(Into::into)).collect();
        left.sort();
        let left: Vec<std::ffi::OsString> = left;
        assert_eq!(left, ["a.removed", "b.spare.removed", "c.removed"]);
    }
}

//! What the sandboxes of an agent use together, and what its cgroup allows: read with cgroups-rs, for metrics and
//! budgets, never on the start path.

use crate::cgroup::{Tree, Version};
use cgroups_rs::memory::MemController;
use cgroups_rs::pid::PidController;
use std::path::PathBuf;

/// Sums over all sandboxes of an agent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub memory_bytes: u64,
    /// Processes and threads.
    pub processes: u64,
}

/// What all sandboxes of the agent use now. What cannot be read counts as 0.
pub fn of_sandboxes(tree: &Tree) -> Usage {
    let dir = |controller: &str| existing(tree.dir(controller)?.join("sandboxes"));
    let v2 = tree.version() == Version::V2;
    Usage {
        memory_bytes: dir("memory").map_or(0, |dir| MemController::new(dir, v2).memory_stat().usage_in_bytes),
        processes: dir("pids").and_then(|dir| PidController::new(dir, v2).get_pid_current().ok()).unwrap_or(0),
    }
}

/// The memory limit of the agent's own cgroup, in bytes; `None` = no limit.
pub fn memory_limit(tree: &Tree) -> Option<u64> {
    let dir = existing(tree.dir("memory")?.to_owned())?;
    let limit = MemController::new(dir, tree.version() == Version::V2).memory_stat().limit_in_bytes;
    // v1 writes "no limit" as the largest number of whole pages.
    u64::try_from(limit).ok().filter(|limit| *limit > 0 && *limit < i64::MAX as u64 / 2)
}

fn existing(dir: PathBuf) -> Option<PathBuf> {
    dir.join("cgroup.procs").exists().then_some(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_that_is_not_there_uses_nothing_and_has_no_limit() {
        let tree = Tree::discover("fsb-test-of-nothing").unwrap();
        assert_eq!(of_sandboxes(&tree), Usage::default());
        assert_eq!(memory_limit(&tree), None);
    }
}

//! Log files whose claim is gone: kept for a while, then removed.

use crate::core::Core;
use fsb_proto::agent;
use fsb_proto::bounds::MAX_INSTANCE_IDS;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Looks through the nodes' log files in rounds until the controller stops.
pub async fn collect_logs(core: Arc<Core>) {
    let mut quiet = Quiet::new(&core);
    loop {
        tokio::select! {
            () = core.stop.cancelled() => return,
            () = tokio::time::sleep(core.timing.log_round) => round(&core, &mut quiet).await,
        }
    }
}

async fn round(core: &Arc<Core>, quiet: &mut Quiet) {
    let mut nodes = HashSet::new();
    for agent in core.agents.list() {
        // Logs are the node's; one agent of it is enough.
        let node = agent.reference().node.clone();
        if !agent.healthy() || !nodes.insert(node.clone()) {
            continue;
        }
        let Ok(files) = agent.client.list_logs().await else { continue };
        // Collected after the list: what has begun since is not in it.
        let wanted = wanted(core);
        let old = quiet.old(&node, &files, Instant::now(), core.timing.clock.now_ms());
        let orphaned: Vec<String> = old.into_iter().filter(|id| !wanted.contains(id)).collect();
        if !orphaned.is_empty() {
            tracing::info!(agent = %agent.name, files = orphaned.len(), "logs without a claim are removed");
            for some in orphaned.chunks(MAX_INSTANCE_IDS) {
                if agent.client.remove_logs(some.to_vec()).await.is_err() {
                    core.metrics.agent_call_errors.inc();
                }
            }
        }
    }
}

fn wanted(core: &Arc<Core>) -> HashSet<String> {
    let mut wanted = HashSet::new();
    core.table.for_each(|entry| {
        wanted.insert(entry.claim.status.instance_id.clone());
        wanted.extend(entry.claim.status.previous.iter().map(|previous| previous.instance_id.clone()));
    });
    for agent in core.agents.list() {
        wanted.extend(agent.view().instances().map(|instance| instance.instance_id.clone()));
    }
    wanted
}

/// Since when nothing was written to the logs of each node. Only at its first look, after the start of the controller,
/// that is read from the files' own times; a clock that is set later makes no log older.
struct Quiet {
    kept: Duration,
    first_until: Instant,
    nodes: HashMap<Arc<str>, HashMap<String, (i64, Instant)>>,
}

impl Quiet {
    fn new(core: &Core) -> Self {
        Self {
            kept: core.timing.log_retention,
            first_until: Instant::now() + core.timing.log_round * 2,
            nodes: HashMap::new(),
        }
    }

    /// The logs that nothing was written to for as long as they are kept.
    fn old(&mut self, node: &Arc<str>, files: &[agent::LogFile], now: Instant, wall_ms: i64) -> Vec<String> {
        let first = now < self.first_until && !self.nodes.contains_key(node);
        let before = self.nodes.remove(node).unwrap_or_default();
        let since = |file: &agent::LogFile| match before.get(&file.instance_id) {
            Some((modified_ms, since)) if *modified_ms == file.modified_ms => *since,
            None if first => {
                let age = u64::try_from(wall_ms.saturating_sub(file.modified_ms)).unwrap_or(0);
                now.checked_sub(Duration::from_millis(age).min(self.kept)).unwrap_or(now)
            }
            _ => now,
        };
        let seen: HashMap<_, _> =
            files.iter().map(|file| (file.instance_id.clone(), (file.modified_ms, since(file)))).collect();
        let old = seen.iter().filter(|(_, (_, since))| now.saturating_duration_since(*since) >= self.kept);
        let old = old.map(|(id, _)| id.clone()).collect();
        self.nodes.insert(node.clone(), seen);
        old
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_old_when_nothing_was_written_for_long_and_not_when_the_clock_is_set() {
        const HOUR_MS: i64 = 3_600_000;
        let file = |id: &str, modified_ms| agent::LogFile { instance_id: id.into(), bytes: 1, modified_ms };
        let (now, node) = (Instant::now(), Arc::<str>::from("node"));
        let minutes = |n: u64| Duration::from_secs(60 * n);
        let mut quiet = Quiet { kept: minutes(60), first_until: now + minutes(20), nodes: HashMap::new() };
        // What a controller before this one has left is as old as its file says.
        let mut files = vec![file("old", 0), file("new", HOUR_MS)];
        assert_eq!(quiet.old(&node, &files, now, HOUR_MS + 1), ["old"]);
        files.remove(0);
        files.push(file("later", HOUR_MS + 2));
        for (after, wall_ms) in [(10, i64::MAX), (20, 0), (59, 5 * 365 * 24 * HOUR_MS)] {
            assert!(quiet.old(&node, &files, now + minutes(after), wall_ms).is_empty(), "{after} minutes later");
        }
        assert_eq!(quiet.old(&node, &files, now + minutes(60), 0), ["new"]);
        files[1].modified_ms += 1;
        assert_eq!(quiet.old(&node, &files, now + minutes(70), 0), ["new"], "the other was written to");
        files.remove(0);
        assert_eq!(quiet.old(&node, &files, now + minutes(130), 0), ["later"]);
    }
}

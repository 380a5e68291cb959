//! Log files whose claim is gone: kept for a while, then removed.

use crate::clock;
use crate::core::Core;
use fsb_proto::agent;
use std::collections::HashSet;
use std::sync::Arc;

/// Looks through the nodes' log files in rounds until the controller stops.
pub async fn collect_logs(core: Arc<Core>) {
    loop {
        tokio::select! {
            () = core.stop.cancelled() => return,
            () = tokio::time::sleep(core.timing.log_round) => round(&core).await,
        }
    }
}

async fn round(core: &Arc<Core>) {
    let mut nodes = HashSet::new();
    for agent in core.agents.list() {
        // Logs are the node's; one agent of it is enough.
        if !agent.healthy() || !nodes.insert(agent.reference().node.clone()) {
            continue;
        }
        let Ok(files) = agent.client.list_logs().await else { continue };
        // Collected after the list: what has begun since is not in it.
        let wanted = wanted(core);
        let oldest = clock::now_ms() - core.timing.log_retention.as_millis() as i64;
        let orphaned = orphaned(files, &wanted, oldest);
        if !orphaned.is_empty() {
            tracing::info!(agent = %agent.name, files = orphaned.len(), "logs without a claim are removed");
            if agent.client.remove_logs(orphaned).await.is_err() {
                core.metrics.agent_call_errors.inc();
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

fn orphaned(files: Vec<agent::LogFile>, wanted: &HashSet<String>, oldest_ms: i64) -> Vec<String> {
    files
        .into_iter()
        .filter(|file| file.modified_ms < oldest_ms && !wanted.contains(&file.instance_id))
        .map(|file| file.instance_id)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_old_logs_that_no_claim_and_no_agent_knows_are_removed() {
        let file = |id: &str, modified_ms| agent::LogFile { instance_id: id.into(), bytes: 1, modified_ms };
        let wanted = HashSet::from(["a".to_owned()]);
        let files = vec![file("a", 1), file("b", 1), file("c", 100)];
        assert_eq!(orphaned(files, &wanted, 50), vec!["b".to_owned()]);
    }
}

//! The Logs stream: passed through from the agent, at the client's pace.

use super::not_found;
use crate::agents::Agent;
use crate::claims::{AgentRef, Key};
use crate::core::Core;
use fsb_proto::{agent, fastpath};
use std::sync::Arc;
use tonic::{Status, Streaming};

/// Opens the log of a sandbox at the agent that has it.
pub async fn open(
    core: &Core,
    key: &Key,
    request: &fastpath::LogsRequest,
) -> Result<Streaming<fastpath::LogChunk>, Status> {
    let (claim, _) = core.table.get(key).ok_or_else(|| not_found(key))?;
    let status = &claim.status;
    let (reference, instance_id) = if request.previous {
        let previous = status.previous.as_ref().ok_or_else(|| {
            Status::not_found(format!("sandbox {:?} has no instance before the current one", key.name))
        })?;
        (previous.agent.clone(), previous.instance_id.clone())
    } else {
        match &status.agent {
            Some(agent) if !status.instance_id.is_empty() => (agent.clone(), status.instance_id.clone()),
            _ => {
                return Err(Status::failed_precondition(format!(
                    "sandbox {:?} is {} and has no log yet; hint: try again when it runs, or see --previous",
                    key.name, status.phase
                )));
            }
        }
    };
    let agent = whose(core, &reference).ok_or_else(|| {
        Status::unavailable(format!(
            "the log of {:?} lies on node {:?}, and agent {:?} cannot be reached; hint: try again when it is back",
            key.name, reference.node, reference.name
        ))
    })?;
    let request = agent::LogsRequest {
        instance_id,
        follow: request.follow,
        tail_lines: request.tail_lines,
        since_ms: request.since_ms,
    };
    agent.client.logs(request).await.map_err(|status| Status::new(status.code(), status.message()))
}

/// The agent itself, or another one of its node: logs are the node's.
fn whose(core: &Core, reference: &AgentRef) -> Option<Arc<Agent>> {
    let own = core.agents.get(&reference.name).filter(|agent| agent.healthy());
    own.or_else(|| {
        core.agents
            .list()
            .into_iter()
            .find(|agent| agent.healthy() && !reference.node.is_empty() && agent.reference().node == reference.node)
    })
}

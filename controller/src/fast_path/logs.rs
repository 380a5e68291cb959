//! The Logs stream: passed through from the agent, at the client's pace. It ends without an error only where the log
//! does.

use super::not_found;
use crate::agents::Agent;
use crate::claims::{AgentRef, Key};
use crate::core::Core;
use fsb_proto::{agent, fastpath};
use futures_util::stream::{self, Stream};
use std::sync::Arc;
use tonic::Status;
use tracing::Instrument;

/// Opens the log of a sandbox at the agent that has it.
pub async fn open(
    core: &Core,
    key: &Key,
    request: &fastpath::LogsRequest,
) -> Result<impl Stream<Item = Result<fastpath::LogChunk, Status>> + Send + use<>, Status> {
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
    let place = core.log_readers.admit(&key.namespace)?;
    let request = agent::LogsRequest {
        instance_id,
        follow: request.follow,
        tail_lines: request.tail_lines,
        since_ms: request.since_ms,
        namespace: key.namespace.to_string(),
    };
    // Apart from the client: the agent takes calls that are let go of before they were answered for an attack, if there
    // are many, and closes the connection.
    let client = agent.client.clone();
    let opened = tokio::spawn(async move { client.logs(request).await }.in_current_span()).await;
    let opened = opened.map_err(|error| Status::internal(error.to_string()))?;
    let chunks = opened.map_err(|status| Status::new(status.code(), status.message()))?;
    let cut_off = cut_off(key);
    let stop = core.stop.clone();
    Ok(stream::try_unfold((chunks, place), move |(mut chunks, place)| {
        let (stop, cut_off) = (stop.clone(), cut_off.clone());
        async move {
            tokio::select! {
                biased;
                chunk = chunks.message() => match chunk {
                    Ok(chunk) => Ok(chunk.map(|chunk| (chunk, (chunks, place)))),
                    // The connection broke: the agent's own words have no source.
                    Err(status) if std::error::Error::source(&status).is_some() => Err(cut_off("its agent is gone")),
                    Err(status) => Err(status),
                },
                () = stop.cancelled() => Err(cut_off("the controller ends")),
            }
        }
    }))
}

/// For a log that does not end here.
fn cut_off(key: &Key) -> impl Fn(&str) -> Status + Clone + use<> {
    let name = key.name.clone();
    move |why| Status::unavailable(format!("the log of {name:?} breaks off here: {why}; hint: read it again"))
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

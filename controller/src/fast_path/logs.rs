//! The Logs stream: passed through from the agent, at the client's pace. It ends without an error only where the log
//! does.

use super::not_found;
use crate::agents::Agent;
use crate::claims::{AgentRef, AttachedReader, Claim, Key};
use crate::core::Core;
use fsb_proto::{agent, fastpath};
use futures_util::stream::{self, Stream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::Status;
use tracing::Instrument;

/// Opens the log of a sandbox at the agent that has it.
pub async fn open(
    core: &Arc<Core>,
    key: &Key,
    request: &fastpath::LogsRequest,
) -> Result<impl Stream<Item = Result<fastpath::LogChunk, Status>> + Send + use<>, Status> {
    let (claim, _) = core.table.get(key).ok_or_else(|| not_found(key))?;
    let (reference, instance_id) = whose(&claim, request)?;
    let agent = who_has(core, &reference).ok_or_else(|| {
        Status::unavailable(format!(
            "the log of {:?} lies on node {:?}, and agent {:?} cannot be reached; hint: try again when it is back",
            key.name, reference.node, reference.name
        ))
    })?;
    let place = core.log_readers.admit(&key.namespace)?;
    let attached =
        request.attached && request.follow && claim.policy.attached && claim.status.instance_id == instance_id;
    let mut reader = attached.then(|| Attached::new(core.clone(), &claim));
    let request = agent::LogsRequest {
        instance_id: instance_id.clone(),
        follow: request.follow,
        tail_lines: request.tail_lines,
        since_ms: request.since_ms,
        namespace: key.namespace.to_string(),
        from_offset: request.from_offset,
        attached,
    };
    // Apart from the client: the agent takes calls that are let go of before they were answered for an attack, if there
    // are many, and closes the connection.
    let client = agent.client.clone();
    let opened = tokio::spawn(async move { client.logs(request).await }.in_current_span()).await;
    let opened = opened.map_err(|error| Status::internal(error.to_string()))?;
    let chunks = opened.map_err(|status| Status::new(status.code(), status.message()))?;
    let cut_off = cut_off(key);
    let stop = core.stop.clone();
    let mut first = Some(instance_id);
    Ok(stream::try_unfold((chunks, place), move |(mut chunks, place)| {
        let (stop, cut_off) = (stop.clone(), cut_off.clone());
        // It asks for more: it has what came before.
        if let Some(reader) = &mut reader {
            reader.took();
        }
        let (first, reader) = (first.take(), reader.clone());
        async move {
            tokio::select! {
                biased;
                chunk = chunks.message() => match chunk {
                    Ok(Some(mut chunk)) => {
                        chunk.instance_id = first.unwrap_or_default();
                        Ok(Some((chunk, (chunks, place))))
                    }
                    Ok(None) => {
                        if let Some(reader) = reader {
                            reader.has_all();
                        }
                        Ok(None)
                    }
                    // The connection broke: the agent's own words have no source.
                    Err(status) if std::error::Error::source(&status).is_some() => Err(cut_off("its agent is gone")),
                    Err(status) => Err(status),
                },
                () = stop.cancelled() => Err(cut_off("the controller ends")),
            }
        }
    }))
}

/// The instance that a request means, and where its log lies.
fn whose(claim: &Claim, request: &fastpath::LogsRequest) -> Result<(Arc<AgentRef>, String), Status> {
    let (status, name) = (&claim.status, &claim.key.name);
    let current = status.agent.as_ref().filter(|_| !status.instance_id.is_empty());
    let current = current.map(|agent| (agent.clone(), status.instance_id.clone()));
    let previous = status.previous.as_ref().map(|before| (before.agent.clone(), before.instance_id.clone()));
    if !request.instance_id.is_empty() {
        let known = current.into_iter().chain(previous).find(|(_, id)| *id == request.instance_id);
        return known.ok_or_else(|| {
            Status::failed_precondition(format!(
                "InstanceChanged: sandbox {name:?} has another instance than {}, and its log is not kept any more",
                request.instance_id
            ))
        });
    }
    if request.previous {
        return previous
            .ok_or_else(|| Status::not_found(format!("sandbox {name:?} has no instance before the current one")));
    }
    current.ok_or_else(|| {
        Status::failed_precondition(format!(
            "sandbox {name:?} is {} and has no log yet; hint: try again when it runs, or see --previous",
            status.phase
        ))
    })
}

/// The reader that follows the output of a sandbox that it has created: its removal waits for it.
#[derive(Clone)]
struct Attached {
    core: Arc<Core>,
    key: Key,
    uid: Arc<str>,
    generation: i64,
    told: Option<Instant>,
}

/// How often a reader that goes on is noted.
const NOTED: Duration = Duration::from_secs(1);

impl Attached {
    fn new(core: Arc<Core>, claim: &Claim) -> Self {
        let (key, uid, generation) = (claim.key.clone(), claim.uid.clone(), claim.status.generation);
        Self { core, key, uid, generation, told: None }
    }

    /// It has taken something.
    fn took(&mut self) {
        let now = Instant::now();
        if self.told.is_none_or(|told| now.saturating_duration_since(told) >= NOTED) {
            self.told = Some(now);
            self.note(|reader| reader.seen = Some(now));
        }
    }

    /// It has had the last byte.
    fn has_all(&self) {
        self.note(|reader| reader.done = true);
        self.core.wakeups.now(&self.key);
    }

    fn note(&self, note: impl FnOnce(&mut AttachedReader)) {
        self.core.table.with_uid(&self.key, &self.uid, |entry| {
            if entry.claim.status.generation == self.generation {
                note(&mut entry.reader);
            }
        });
    }
}

/// For a log that does not end here.
fn cut_off(key: &Key) -> impl Fn(&str) -> Status + Clone + use<> {
    let name = key.name.clone();
    move |why| Status::unavailable(format!("the log of {name:?} breaks off here: {why}; hint: read it again"))
}

/// The agent itself, or another one of its node: logs are the node's.
fn who_has(core: &Core, reference: &AgentRef) -> Option<Arc<Agent>> {
    let own = core.agents.get(&reference.name).filter(|agent| agent.healthy());
    own.or_else(|| {
        core.agents
            .list()
            .into_iter()
            .find(|agent| agent.healthy() && !reference.node.is_empty() && agent.reference().node == reference.node)
    })
}

//! The output of sandboxes: read from the files that the keeper writes, followed as they grow.

mod attached;
mod follow;
mod open;
mod record;
mod tail;

use crate::Agent;
use crate::disk;
use crate::error::{Error, Result};
use crate::is_instance_id;
pub(crate) use attached::tell;

use attached::{Attached, Reading};
use follow::{Follower, Growth, blocking};
use fsb_host::logfile::{base_path, numbered};
use fsb_host::paths::Paths;
use fsb_proto::Invalid;
use fsb_proto::agent::{LogFile, LogsRequest};
use fsb_proto::fastpath::LogChunk;
use fsb_rpc::Readers;
use futures_util::TryFutureExt;
use futures_util::stream::{self, Stream};
use open::OpenLogs;
use std::io;
use std::sync::Arc;
use std::time::UNIX_EPOCH;
use tail::{Chunk, Start, Tail};
use tokio::sync::Semaphore;
use tonic::Status;

/// Reads of files at a time.
const READS: usize = 16;

/// What the readers of logs share.
pub(crate) struct Logs {
    readers: Readers,
    turns: Semaphore,
    attached: Arc<Attached>,
    open: Arc<OpenLogs>,
}

impl Logs {
    /// Nobody reads yet.
    pub(crate) fn new() -> Self {
        let (attached, open) = (Arc::default(), Arc::default());
        Self { readers: Readers::new("logs"), turns: Semaphore::new(READS), attached, open }
    }
}

impl Agent {
    /// The log of an instance; followed until it has ended and all is read. Its reader sets the pace.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is neither such an instance nor a log of one, [`Error::TooMany`] if its namespace,
    /// or all together, have too many readers already.
    pub async fn logs(
        self: &Arc<Self>,
        request: &LogsRequest,
    ) -> Result<impl Stream<Item = Result<LogChunk, Status>> + Send + use<>> {
        let instance = self.find(&request.instance_id);
        let (id, namespace) = match &instance {
            Some(instance) => {
                let state = instance.state();
                (state.id.to_string(), state.binding.namespace.clone())
            }
            None => (request.instance_id.clone(), request.namespace.clone()),
        };
        let path = self.config.paths.log(&id);
        let looked = path.clone();
        let known = is_instance_id(&id) && (instance.is_some() || disk::work(move || looked.exists()).await?);
        if !known {
            return Err(Error::NotFound(format!("a log of {:?}", request.instance_id)));
        }
        let start = start(request)?;
        let refused = |status: Status| Error::TooMany(status.message().to_owned());
        let place = self.logs.readers.admit(&namespace).map_err(refused)?;
        let growth = Growth::new(self.changes.clone(), self.config.paths.logs().to_owned());
        let instance = instance.filter(|_| request.follow);
        // A sandbox that was created without it waits for nobody.
        let attached = request.attached && instance.as_ref().is_some_and(|instance| instance.state().binding.attached);
        let (agent, since_ms) = (self.clone(), request.since_ms);
        let open = self.logs.open.read(&id);
        let opened = async move {
            let tail = blocking(&agent.logs.turns, move || Tail::open(path, start, since_ms)).await;
            let tail = tail.map_err(|error| Error::io(format!("the log of {id}"), &error))?;
            let attached = attached.then(|| Reading::begin(&agent.logs.attached, &id, tail.position()));
            Ok(Follower { agent, id, open, tail: Some(tail), instance, attached, growth, _place: place })
        };
        let lines = |follower| {
            stream::try_unfold(follower, async |mut follower: Follower| {
                Ok(follower.next().await?.map(|chunk| (to_wire(chunk), follower)))
            })
        };
        Ok(opened.map_ok(lines).try_flatten_stream())
    }
}

/// Where a reader wants to begin.
fn start(request: &LogsRequest) -> Result<Start, Invalid> {
    let natural =
        |name: &'static str, number| u64::try_from(number).map_err(|_| Invalid::new(name, "must not be negative"));
    match (request.tail_lines, request.from_offset) {
        (None, None) => Ok(Start::Oldest),
        (Some(lines), None) => Ok(Start::Last(natural("tail_lines", lines)?)),
        (None, Some(place)) if request.since_ms == 0 => Ok(Start::At(natural("from_offset", place)?)),
        (_, Some(_)) => Err(Invalid::new("from_offset", "must not stand beside tail_lines or since_ms")),
    }
}

fn to_wire(chunk: Chunk) -> LogChunk {
    LogChunk {
        lines: chunk.lines,
        offset: chunk.begin as i64,
        next_offset: chunk.end as i64,
        skipped_bytes: chunk.skipped as i64,
        instance_id: String::new(),
    }
}

/// All logs of the node.
pub(crate) fn list(paths: &Paths) -> Vec<LogFile> {
    let mut logs = std::collections::BTreeMap::<String, LogFile>::new();
    for entry in std::fs::read_dir(paths.logs()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((id, suffix)) = name.split_once(".log") else { continue };
        let rotated = suffix.strip_prefix('.').is_some_and(|n| n.parse::<u32>().is_ok());
        let Ok(meta) = entry.metadata() else { continue };
        if !is_instance_id(id) || !(suffix.is_empty() || rotated) {
            continue;
        }
        let modified = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let modified_ms = modified.map_or(0, |since| since.as_millis() as i64);
        let log =
            logs.entry(id.to_owned()).or_insert_with(|| LogFile { instance_id: id.to_owned(), ..Default::default() });
        log.bytes += meta.len() as i64;
        log.modified_ms = log.modified_ms.max(modified_ms);
    }
    logs.into_values().collect()
}

/// Removes the log of an instance with its rotated files. What is not an instance id has none.
pub(crate) fn remove(agent: &Agent, id: &str) {
    if !is_instance_id(id) {
        return;
    }
    let log = agent.config.paths.log(id);
    // Whoever reads it still is told that it breaks off.
    agent.logs.open.removed(id, || tail::end(&log));
    let there = (0..).map(|n| numbered(&log, n)).take_while(|path| *path == log || path.symlink_metadata().is_ok());
    for path in there.collect::<Vec<_>>().into_iter().chain([base_path(&log)]) {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "a log could not be removed");
            }
            _ => {}
        }
    }
}

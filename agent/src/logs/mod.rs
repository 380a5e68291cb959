//! The output of sandboxes: read from the files that the keeper writes, followed as they grow.

mod follow;
mod record;
mod tail;

use crate::Agent;
use crate::disk;
use crate::error::{Error, Result};
use crate::is_instance_id;
use follow::{Follower, Growth, blocking};
use fsb_host::paths::Paths;
use fsb_proto::agent::{LogFile, LogsRequest};
use fsb_proto::fastpath::LogChunk;
use fsb_rpc::Readers;
use futures_util::TryFutureExt;
use futures_util::stream::{self, Stream};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::UNIX_EPOCH;
use tail::Tail;
use tokio::sync::Semaphore;
use tonic::Status;

/// Reads of files at a time.
const READS: usize = 16;

/// What the readers of logs share.
pub(crate) struct Logs {
    readers: Readers,
    turns: Semaphore,
}

impl Logs {
    /// Nobody reads yet.
    pub(crate) fn new() -> Self {
        Self { readers: Readers::new("logs"), turns: Semaphore::new(READS) }
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
        let lines = match request.tail_lines {
            None => None,
            Some(lines) => {
                Some(u64::try_from(lines).map_err(|_| fsb_proto::Invalid::new("tail_lines", "must not be negative"))?)
            }
        };
        let refused = |status: Status| Error::TooMany(status.message().to_owned());
        let place = self.logs.readers.admit(&namespace).map_err(refused)?;
        let growth = Growth::new(self.changes.clone(), self.config.paths.logs().to_owned());
        let instance = instance.filter(|_| request.follow);
        let (agent, since_ms) = (self.clone(), request.since_ms);
        let opened = async move {
            let tail = blocking(&agent.logs.turns, move || Tail::open(path, lines, since_ms)).await;
            let tail = tail.map_err(|error| Error::io(format!("the log of {id}"), &error))?;
            Ok(Follower { agent, id, tail: Some(tail), instance, growth, _place: place })
        };
        let lines = |follower| {
            stream::try_unfold(follower, async |mut follower: Follower| {
                Ok(follower.next().await?.map(|lines| (LogChunk { lines }, follower)))
            })
        };
        Ok(opened.map_ok(lines).try_flatten_stream())
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
pub(crate) fn remove(paths: &Paths, id: &str) {
    if !is_instance_id(id) {
        return;
    }
    let log = paths.log(id);
    for n in 0.. {
        let path = if n == 0 { log.clone() } else { PathBuf::from(format!("{}.{n}", log.display())) };
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound && n > 0 => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a log could not be removed");
                break;
            }
        }
    }
}

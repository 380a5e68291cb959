//! The output of sandboxes: read from the files that the keeper writes, followed as they grow.

mod record;
mod tail;

use crate::Agent;
use crate::async_fd::Changes;
use crate::error::{Error, Result};
use crate::instance::Instance;
use crate::is_instance_id;
use fsb_host::paths::Paths;
use fsb_proto::agent::{LogFile, LogsRequest};
use fsb_proto::fastpath::LogChunk;
use futures_util::stream::Stream;
use nix::sys::inotify::{AddWatchFlags, WatchDescriptor};
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::UNIX_EPOCH;
use tail::Tail;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Chunks that a slow reader may be behind.
const BEHIND: usize = 8;

impl Agent {
    /// The log of an instance; followed until it has ended and all is read.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is neither such an instance nor a log of one.
    pub fn logs(
        self: &Arc<Self>,
        request: &LogsRequest,
    ) -> Result<impl Stream<Item = Result<LogChunk, Status>> + Send + use<>> {
        let instance = self.find(&request.instance_id);
        let id = match &instance {
            Some(instance) => instance.id().to_string(),
            None => request.instance_id.clone(),
        };
        let path = self.config.paths.log(&id);
        let known = instance.is_some() || (is_instance_id(&id) && path.exists());
        if !known || !is_instance_id(&id) {
            return Err(Error::NotFound(format!("a log of {:?}", request.instance_id)));
        }
        let lines = match request.tail_lines {
            None => None,
            Some(lines) => {
                Some(u64::try_from(lines).map_err(|_| fsb_proto::Invalid::new("tail_lines", "must not be negative"))?)
            }
        };
        let (sender, receiver) = mpsc::channel(BEHIND);
        let (since_ms, follow, agent) = (request.since_ms, request.follow, self.clone());
        tokio::spawn(async move {
            let pumped = tokio::select! {
                pumped = pump(path, lines, since_ms, follow.then_some(instance), &sender) => pumped,
                () = sender.closed() => Ok(()),
                () = agent.shutdown.cancelled() => return,
            };
            if let Err(error) = pumped {
                let _ = sender.send(Err(Error::io(format!("the log of {id}"), &error).into())).await;
            }
        });
        Ok(ReceiverStream::new(receiver))
    }
}

/// Sends what is there, and with `follow` what comes, until that instance has ended (an unknown one has).
async fn pump(
    path: PathBuf,
    lines: Option<u64>,
    since_ms: i64,
    follow: Option<Option<Arc<Instance>>>,
    sender: &mpsc::Sender<Result<LogChunk, Status>>,
) -> io::Result<()> {
    let mut growth = match &follow {
        Some(_) => Some(Growth::new(path.clone())?),
        None => None,
    };
    let mut tail = blocking(move || Tail::open(path, lines, since_ms)).await?;
    loop {
        // Both before the read: what happens after them is seen in the next round.
        if let Some(growth) = &mut growth {
            growth.changes.clear()?;
            growth.watch(&tail)?;
        }
        let over = match &follow {
            Some(Some(instance)) => instance.state().end.is_some(),
            _ => true,
        };
        loop {
            let (read, lines) = blocking(move || tail.read().map(|lines| (tail, lines))).await?;
            tail = read;
            if lines.is_empty() {
                break;
            }
            if sender.send(Ok(LogChunk { lines })).await.is_err() {
                return Ok(());
            }
        }
        let (Some(growth), Some(Some(instance)), false) = (&mut growth, &follow, over) else { return Ok(()) };
        if growth.stale(&tail) {
            continue;
        }
        tokio::select! {
            grown = growth.changes.wait() => grown?,
            () = instance.until(|state| state.end.is_some().then_some(())) => {}
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Wakes up when a log grows or is rotated.
struct Growth {
    changes: Changes,
    directory: PathBuf,
    watched: Option<(u64, WatchDescriptor)>,
    for_new: Option<WatchDescriptor>,
}

impl Growth {
    fn new(path: PathBuf) -> io::Result<Self> {
        let directory = path.parent().map_or_else(|| PathBuf::from("/"), PathBuf::from);
        Ok(Self { changes: Changes::new()?, directory, watched: None, for_new: None })
    }

    /// Watches the file that is being written; where there is none, or it was renamed and no new one came yet, also
    /// the directory.
    fn watch(&mut self, tail: &Tail) -> io::Result<()> {
        let inotify = self.changes.inotify();
        let current = tail.current();
        if self.watched.map(|(number, _)| number) != current.map(|(_, number)| number) {
            if let Some((_, old)) = self.watched.take() {
                // Gone by itself where the file was deleted.
                let _ = inotify.rm_watch(old);
            }
            if let Some((file, number)) = current {
                // The file itself, whatever it is called by now.
                let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
                let kinds = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_MOVE_SELF;
                self.watched = Some((number, inotify.add_watch(&path, kinds)?));
            }
        }
        let in_place = tail.in_place();
        if in_place && let Some(watch) = self.for_new.take() {
            let _ = inotify.rm_watch(watch);
        }
        if !in_place && self.for_new.is_none() {
            let kinds = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
            self.for_new = Some(inotify.add_watch(&self.directory, kinds)?);
        }
        Ok(())
    }

    /// Whether the tail has moved on to a file that is not watched yet, or lost the name it had.
    fn stale(&self, tail: &Tail) -> bool {
        let current = tail.current().map(|(_, number)| number);
        self.watched.map(|(number, _)| number) != current || tail.in_place() == self.for_new.is_some()
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

//! One reader of one log: what is there, and with `follow` what comes, no faster than it is read.

use super::attached::Reading;
use super::open::Open;
use super::tail::{Chunk, Tail};
use crate::Agent;
use crate::changes::{Changes, Watch};
use crate::error::Error;
use crate::instance::Instance;
use fsb_rpc::Reader;
use nix::sys::inotify::AddWatchFlags;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tonic::Status;

/// How often a follower looks that cannot be told.
const LOOK: Duration = Duration::from_millis(100);

/// A log that did not grow for so long may wait for its reader.
const SETTLED: Duration = Duration::from_millis(50);

/// A reader of a log. Nothing is read before it is asked for: what waits for who does not read on is one block.
pub(super) struct Follower {
    pub(super) agent: Arc<Agent>,
    pub(super) id: String,
    pub(super) open: Open,
    /// Where the reading is; `None` while a thread for files has it.
    pub(super) tail: Option<Tail>,
    /// Followed until it has ended; `None`: what is there is all.
    pub(super) instance: Option<Arc<Instance>>,
    /// The instance waits for this reader.
    pub(super) attached: Option<Reading>,
    pub(super) growth: Growth,
    pub(super) _place: Reader,
}

impl Follower {
    /// The next lines. `None` = these were all.
    ///
    /// # Errors
    /// If the log cannot be read, or the agent ends before the log does.
    pub(super) async fn next(&mut self) -> Result<Option<Chunk>, Status> {
        let agent = self.agent.clone();
        tokio::select! {
            biased;
            chunk = self.lines() => match chunk {
                Ok(None) if self.was_cut_off() => Err(Status::data_loss(format!(
                    "the rest of the log of {} was removed before it was read", self.id
                ))),
                chunk => chunk.map_err(|error| Error::io(format!("the log of {}", self.id), &error).into()),
            },
            () = agent.shutdown.cancelled() => {
                let message = format!("the agent ends in the middle of the log of {}", self.id);
                Err(Status::unavailable(message + "; hint: read it again, nothing of it is lost"))
            }
        }
    }

    fn was_cut_off(&self) -> bool {
        self.tail.as_ref().is_some_and(|tail| self.open.had_more(tail.position()))
    }

    async fn lines(&mut self) -> io::Result<Option<Chunk>> {
        // Asked again: what was returned before is taken.
        if let (Some(attached), Some(tail)) = (&mut self.attached, &self.tail) {
            attached.passed(tail.position());
        }
        loop {
            // Both before the read: what happens after them is seen in the next round.
            self.growth.seen();
            let over = self.instance.as_ref().is_none_or(|instance| instance.state().end.is_some());
            let Some(mut tail) = self.tail.take() else { return Ok(None) };
            let (tail, chunk) = blocking(&self.agent.logs.turns, move || {
                let chunk = tail.read()?;
                Ok((tail, chunk))
            })
            .await?;
            let tail = self.tail.insert(tail);
            if chunk.is_some() {
                return Ok(chunk);
            }
            let Some(instance) = self.instance.as_ref().filter(|_| !over) else { return Ok(None) };
            if !self.growth.covers(tail) {
                // It may have grown before it was watched.
                self.growth.watch(tail);
                continue;
            }
            tokio::select! {
                () = self.growth.grown() => {}
                () = settled(&mut self.attached, tail.position()) => {}
                () = instance.until(|state| state.end.is_some().then_some(())) => {}
            }
        }
    }
}

/// Tells how far a reader has come, when nothing has followed for a while: its sandbox may wait for that.
async fn settled(attached: &mut Option<Reading>, place: u64) {
    match attached {
        Some(attached) if !attached.knows(place) => {
            tokio::time::sleep(SETTLED).await;
            attached.tell(place);
        }
        _ => std::future::pending().await,
    }
}

/// Runs what reads files on a thread for that, as one of a few at a time: others need those threads too.
pub(super) async fn blocking<T: Send + 'static>(
    turns: &Semaphore,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let _turn = turns.acquire().await;
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Wakes up when a log grows or is rotated.
pub(super) struct Growth {
    changes: Arc<Changes>,
    directory: PathBuf,
    /// The file that is being written, by the tail's number for it.
    file: Option<(u64, Watch)>,
    /// The directory: where there is no file, or it was renamed and no new one came yet.
    for_new: Option<Watch>,
}

impl Growth {
    /// Of the logs in `directory`.
    pub(super) fn new(changes: Arc<Changes>, directory: PathBuf) -> Self {
        Self { changes, directory, file: None, for_new: None }
    }

    /// Whether everything is watched that tells of the tail's next line.
    fn covers(&self, tail: &Tail) -> bool {
        let watched = self.file.as_ref().map(|(number, _)| *number);
        watched == tail.current().map(|(_, number)| number) && (tail.in_place() || self.for_new.is_some())
    }

    fn watch(&mut self, tail: &Tail) {
        let current = tail.current();
        if self.file.as_ref().map(|(number, _)| *number) != current.map(|(_, number)| number) {
            self.file = current.map(|(file, number)| {
                // The file itself, whatever it is called by now.
                let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
                (number, self.changes.watch(&path, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_MOVE_SELF))
            });
        }
        if tail.in_place() {
            self.for_new = None;
        } else if self.for_new.is_none() {
            let kinds = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
            self.for_new = Some(self.changes.watch(&self.directory, kinds));
        }
    }

    fn seen(&mut self) {
        let file = self.file.iter_mut().map(|(_, watch)| watch);
        file.chain(&mut self.for_new).for_each(Watch::seen);
    }

    async fn grown(&mut self) {
        let changed = async |watch: Option<&mut Watch>| match watch {
            Some(watch) => watch.changed(LOOK).await,
            None => std::future::pending().await,
        };
        tokio::select! {
            () = changed(self.file.as_mut().map(|(_, watch)| watch)) => {}
            () = changed(self.for_new.as_mut()) => {}
        }
    }
}

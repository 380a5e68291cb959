//! The log file of one instance: both streams, rotated by size, retried while the disk refuses.

use super::Handle;
use super::engine::Engine;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tracing::{error, info};

/// When to begin a new file and how many to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rotation {
    /// A file with so many bytes is full; records are never split, so it may have one batch more.
    pub(crate) max_bytes: u64,
    /// Files kept, the one being written included.
    pub(crate) files: usize,
}

/// Waits between attempts to write to a disk that refuses.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(2);

/// One instance's file. Its two pumps take turns.
pub(crate) struct Sink<E: Engine> {
    path: PathBuf,
    rotation: Rotation,
    handle: Rc<Handle>,
    open: tokio::sync::Mutex<Option<Open<E>>>,
}

struct Open<E: Engine> {
    file: E::File,
    bytes: u64,
}

impl<E: Engine> Sink<E> {
    /// The file appears with its first byte, or with [`Sink::touch`].
    pub(crate) fn new(path: PathBuf, rotation: Rotation, handle: Rc<Handle>) -> Self {
        Self { path, rotation, handle, open: tokio::sync::Mutex::new(None) }
    }

    /// Makes the file, so that a reader finds it before there is output. Best effort: a write makes it too.
    pub(crate) async fn touch(&self) {
        let mut open = self.open.lock().await;
        if open.is_none() && !self.handle.is_over() {
            *open = self.open_file().await.ok();
        }
    }

    /// Writes whole records and hands the buffer back, empty. While the disk refuses (full, read-only, gone) it tries
    /// again and the sandbox's own writes wait, so nothing is lost; it gives up only when the instance is forgotten.
    pub(crate) async fn write(&self, mut batch: Vec<u8>) -> Vec<u8> {
        let mut open = self.open.lock().await;
        let mut wait = FIRST_RETRY;
        let mut refused = false;
        loop {
            if self.handle.is_forgotten() {
                break;
            }
            let (result, back) = self.attempt(&mut open, batch).await;
            batch = back;
            match result {
                Ok(()) => {
                    if refused {
                        info!(file = %self.path.display(), "the log can be written again");
                    }
                    break;
                }
                Err(error) if !refused => {
                    refused = true;
                    error!(file = %self.path.display(), %error,
                        "the log cannot be written: the sandbox waits; hint: free space on the log directory's disk");
                }
                Err(_) => {}
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.handle.forgotten() => {}
            }
            wait = (wait * 2).min(LAST_RETRY);
        }
        batch.clear();
        batch
    }

    /// Closes the file.
    pub(crate) async fn close(&self) {
        self.open.lock().await.take();
    }

    async fn attempt(&self, open: &mut Option<Open<E>>, batch: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        let fits = |open: &Open<E>| open.bytes == 0 || open.bytes + batch.len() as u64 <= self.rotation.max_bytes;
        if open.as_ref().is_some_and(|open| !fits(open)) {
            *open = None;
            if let Err(error) = rotate::<E>(&self.path, self.rotation.files).await {
                return (Err(error), batch);
            }
        }
        if open.is_none() {
            match self.open_file().await {
                Ok(new) => *open = Some(new),
                Err(error) => return (Err(error), batch),
            }
        }
        let target = open.as_mut().expect("it was opened above");
        let bytes = batch.len() as u64;
        // The offset is ours: an attempt that failed half-way is overwritten by the next one.
        let (result, batch) = E::write(&target.file, batch, target.bytes).await;
        if result.is_ok() {
            target.bytes += bytes;
        }
        (result, batch)
    }

    async fn open_file(&self) -> io::Result<Open<E>> {
        let file = E::open(&self.path).await?;
        let bytes = std::fs::metadata(&self.path)?.len();
        Ok(Open { file, bytes })
    }
}

/// `x.log.1` → `x.log.2` and so on, `x.log` → `x.log.1`; the oldest of `files` goes.
async fn rotate<E: Engine>(path: &Path, files: usize) -> io::Result<()> {
    let numbered = |number: usize| match number {
        0 => path.to_owned(),
        number => PathBuf::from(format!("{}.{number}", path.display())),
    };
    if files <= 1 {
        return missing_is_fine(E::remove(path).await);
    }
    for number in (0..files - 1).rev() {
        missing_is_fine(E::rename(&numbered(number), &numbered(number + 1)).await)?;
    }
    Ok(())
}

fn missing_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

//! The log file of one instance: both streams, rotated by size, retried while the disk refuses.
//!
//! A write into the page cache is a copy, a new file or a rename one of names: as long as the disk is quick, the keeper's
//! thread does them itself ([`Sink::write_now`]). Trying again, and all of it once the disk was slow, goes through the
//! engine ([`Sink::write`]).

use super::Handle;
use super::engine::{Engine, MODE};
use fsb_host::epoll::write_at;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
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

/// One instance's file. Its two pipes take turns.
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

impl<E: Engine> Open<E> {
    /// Whether so much more may go into this file. A batch never goes into two.
    fn has_room(&self, bytes: usize, rotation: &Rotation) -> bool {
        self.bytes == 0 || self.bytes + bytes as u64 <= rotation.max_bytes
    }
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

    /// [`Sink::touch`] by plain system calls. Returns whether there is nothing left to do for it.
    pub(crate) fn touch_now(&self) -> bool {
        let Ok(mut open) = self.open.try_lock() else { return false };
        if open.is_none() && !self.handle.is_over() {
            *open = self.open_now().ok();
        }
        open.is_some() || self.handle.is_over()
    }

    fn open_now(&self) -> io::Result<Open<E>> {
        let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).mode(MODE).open(&self.path)?;
        let bytes = file.metadata()?.len();
        Ok(Open { file: E::adopt(file), bytes })
    }

    /// Writes whole records by plain system calls, if the file is open and nobody else is at it. If that does not
    /// succeed at once, nothing was written that counts, and [`Sink::write`] is to do it.
    pub(crate) fn write_now(&self, batch: &[u8]) -> bool {
        if self.handle.is_forgotten() {
            return true;
        }
        let Ok(mut open) = self.open.try_lock() else { return false };
        if open.as_ref().is_some_and(|open| !open.has_room(batch.len(), &self.rotation)) {
            *open = None;
            *open = self.rotate_now().ok();
        }
        let Some(target) = open.as_mut() else { return false };
        let written = write_at(&target.file, batch, target.bytes) == Ok(batch.len());
        if written {
            target.bytes += batch.len() as u64;
        }
        written
    }

    fn rotate_now(&self) -> io::Result<Open<E>> {
        for step in steps(&self.path, self.rotation.files) {
            missing_is_fine(match step {
                Step::Remove(path) => std::fs::remove_file(path),
                Step::Rename(from, to) => std::fs::rename(from, to),
            })?;
        }
        let mut options = std::fs::OpenOptions::new();
        let file = options.create_new(true).write(true).mode(MODE).open(&self.path)?;
        Ok(Open { file: E::adopt(file), bytes: 0 })
    }

    /// Writes whole records. While the disk refuses (full, read-only, gone) it tries
    /// again and the sandbox's own writes wait, so nothing is lost; it gives up only when the instance is forgotten.
    pub(crate) async fn write(&self, mut batch: Vec<u8>) {
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
    }

    /// Closes the file, unless somebody is at it, who is the last one then.
    pub(crate) fn close(&self) {
        if let Ok(mut open) = self.open.try_lock() {
            open.take();
        }
    }

    async fn attempt(&self, open: &mut Option<Open<E>>, batch: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        if let Err(error) = self.make_room(open, batch.len()).await {
            return (Err(error), batch);
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

    /// Opens the file, and rotates it first if it lacks room.
    async fn make_room(&self, open: &mut Option<Open<E>>, bytes: usize) -> io::Result<()> {
        if open.is_none() {
            *open = Some(self.open_file().await?);
        }
        if open.as_ref().is_some_and(|open| open.has_room(bytes, &self.rotation)) {
            return Ok(());
        }
        *open = None;
        for step in steps(&self.path, self.rotation.files) {
            missing_is_fine(match step {
                Step::Remove(path) => E::remove(&path).await,
                Step::Rename(from, to) => E::rename(&from, &to).await,
            })?;
        }
        *open = Some(self.open_file().await?);
        Ok(())
    }

    async fn open_file(&self) -> io::Result<Open<E>> {
        let file = E::open(&self.path).await?;
        let bytes = std::fs::metadata(&self.path)?.len();
        Ok(Open { file, bytes })
    }
}

/// Part of a rotation.
enum Step {
    Remove(PathBuf),
    Rename(PathBuf, PathBuf),
}

/// `x.log.1` → `x.log.2` and so on, `x.log` → `x.log.1`; the oldest of `files` goes. Begun again after a failure it goes
/// on where it was: what is renamed leaves a gap, which nothing is moved over.
fn steps(path: &Path, files: usize) -> Vec<Step> {
    let numbered = |number: usize| match number {
        0 => path.to_owned(),
        number => PathBuf::from(format!("{}.{number}", path.display())),
    };
    if files <= 1 {
        return vec![Step::Remove(path.to_owned())];
    }
    // There may be many fewer than are kept, and each rename is a trip to the disk.
    let there = (0..files - 1).take_while(|number| numbered(*number).symlink_metadata().is_ok()).count();
    (0..there).rev().map(|number| Step::Rename(numbered(number), numbered(number + 1))).collect()
}

fn missing_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
